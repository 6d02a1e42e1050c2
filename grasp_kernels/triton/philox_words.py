"""The raw words behind the white noise, to be compared bit for bit between backends."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from grasp_kernels.triton import configs
from grasp_kernels.triton.rng import spread, words
from grasp_kernels.triton.tile import tile_of, tile_pointers

RUNTIME_INTEGERS = ["key_low", "key_high", "iteration", "first_step", "steps", "features"]


@triton.jit(do_not_specialize=RUNTIME_INTEGERS)
def philox_words_kernel(
    plan_ids,
    out,
    key_low,
    key_high,
    iteration,
    first_step,
    steps,
    features,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    VECTOR: tl.constexpr,
    WHOLE: tl.constexpr,
):
    plan, row, feature, _, mask = tile_of(steps, features, ROWS, TILE, VECTOR, WHOLE)
    group = tl.program_id(2) * (TILE // 4) + tl.arange(0, TILE // 4)
    plan_id = tl.load(plan_ids + plan)
    w0, w1, w2, w3 = words(first_step + row, group, features, plan_id, key_low, key_high, iteration)
    pointers = tile_pointers(out + plan * steps * features, features, row, feature, VECTOR)
    tl.store(pointers, spread(w0, w1, w2, w3).to(tl.int32, bitcast=True), mask=mask)


def philox_words(
    plan_ids: Tensor, steps: int, features: int, seed: int, iteration: int, first_step: int
) -> Tensor:
    """Bit patterns, int32 (N, steps, 4 ceil(features / 4)); row r is step `first_step + r`."""
    features = 4 * triton.cdiv(features, 4)  # whole groups
    shape = (len(plan_ids), steps, features)
    out = torch.empty(shape, dtype=torch.int32, device=plan_ids.device)
    if out.numel() == 0:
        return out
    tile = configs.tile_for(features)
    with configs.on_device(plan_ids):
        philox_words_kernel[configs.grid(*shape, tile)](
            plan_ids,
            out,
            configs.int32_bits(seed),
            configs.int32_bits(seed >> 32),
            configs.int32_bits(iteration),
            first_step,
            steps,
            features,
            VECTOR=configs.vector(out),
            **configs.launch(features, tile),
        )
    return out
