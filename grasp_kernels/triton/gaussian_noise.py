"""The noise of the state step on its own: for initialisation, and as a window on the generator."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from grasp_kernels.triton import configs
from grasp_kernels.triton.rng import noise_tile
from grasp_kernels.triton.tile import tile_of, tile_pointers

RUNTIME_INTEGERS = [
    "key_low", "key_high", "iteration", "first_step", "horizon", "modes", "steps", "features",
]  # fmt: skip


@triton.jit(do_not_specialize=RUNTIME_INTEGERS)
def gaussian_noise_kernel(
    plan_ids,
    noise,
    key_low,
    key_high,
    iteration,
    first_step,
    horizon,
    modes,
    steps,
    features,
    NOISE: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    VECTOR: tl.constexpr,
    WHOLE: tl.constexpr,
):
    plan, row, feature, _, mask = tile_of(steps, features, ROWS, TILE, VECTOR, WHOLE)
    group = tl.program_id(2) * (TILE // 4) + tl.arange(0, TILE // 4)
    xi = noise_tile(
        first_step + row, group, features, tl.load(plan_ids + plan), key_low, key_high, iteration,
        horizon, modes, NOISE,
    )  # fmt: skip
    pointers = tile_pointers(noise + plan * steps * features, features, row, feature, VECTOR)
    tl.store(pointers, xi.to(noise.dtype.element_ty), mask=mask)


def gaussian_noise(
    plan_ids: Tensor,
    steps: int,
    features: int,
    seed: int,
    iteration: int,
    noise: str,
    modes: int,
    first_step: int,
    horizon: int,
    dtype: torch.dtype,
) -> Tensor:
    """Noise (N, steps, features) for the time steps `first_step ... first_step + steps - 1`."""
    shape, device = (len(plan_ids), steps, features), plan_ids.device
    if noise == "none":
        return torch.zeros(shape, dtype=dtype, device=device)
    out = torch.empty(shape, dtype=dtype, device=device)
    if out.numel() == 0:
        return out
    tile = configs.tile_for(features, noise, out.element_size())
    with configs.on_device(plan_ids):
        gaussian_noise_kernel[configs.grid(*shape, tile)](
            plan_ids,
            out,
            configs.int32_bits(seed),
            configs.int32_bits(seed >> 32),
            configs.int32_bits(iteration),
            first_step,
            horizon,
            modes,
            steps,
            features,
            NOISE=noise,
            VECTOR=configs.vector(out),
            **configs.launch(features, tile),
        )
    return out
