"""Normals from Philox words: the white noise of the paper, and the smooth bridge.

Box-Muller turns each pair of words into a pair of normals. The uniform `u = ((word >> 9) + 1/2)
2^-23` is exact in float32 and never 0 or 1, so the logarithm is finite: |z| <= sqrt(-2 ln 2^-24) =
5.77.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from grasp_kernels.reference.philox import words_at


def normals_from_words(words: Tensor) -> Tensor:
    """Box-Muller over the last axis, pair by pair, float64: `(..., 4 G)` -> `(..., 4 G)`.

    In float64 for every storage: a rounded `2 pi u` alone would cost more than 1e-6.
    """
    uniform = ((words >> 9).to(torch.float64) + 0.5) * 2.0**-23
    first, second = uniform.unflatten(-1, (-1, 2)).unbind(-1)
    radius = (-2 * first.log()).sqrt()
    angle = 2 * math.pi * second
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1).flatten(-2)


def bridge_modes(rows: Tensor, horizon: int, modes: int) -> Tensor:
    """`sin(k pi t / horizon) / k` for each row t and mode k = 1 ... modes, `(len(rows), modes)`
    float64.

    The argument is reduced modulo 2 in integers first, so the ends are exactly zero.
    """
    k = torch.arange(1, modes + 1, device=rows.device)
    phase = (rows[:, None] * k) % (2 * horizon)
    wave = torch.sin(math.pi * phase.to(torch.float64) / horizon)
    return torch.where(phase % horizon == 0, 0.0, wave) / k


def gaussian_noise(
    plans: int,
    steps: int,
    features: int,
    *,
    seed: int,
    iteration: int,
    plan_ids: Tensor | None = None,
    noise: str = "white",
    modes: int = 8,
    first_step: int = 0,
    horizon: int | None = None,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Noise `(plans, steps, features)` for the rows `first_step ... first_step + steps - 1`."""
    if plan_ids is None:
        plan_ids = torch.arange(plans, device=device)
    device = plan_ids.device
    rows = torch.arange(first_step, first_step + steps, device=device)
    if noise == "none":
        return torch.zeros(plans, steps, features, dtype=dtype, device=device)
    if noise == "white":
        words = words_at(rows, plan_ids, features, seed, iteration)
        return normals_from_words(words)[..., :features].to(dtype).contiguous()
    horizon = max(first_step + steps if horizon is None else horizon, 1)
    modes_rows = torch.arange(modes, device=device)
    words = words_at(modes_rows, plan_ids, features, seed, iteration)
    z = normals_from_words(words)[..., :features]
    table = bridge_modes(rows, horizon, modes)
    # Mode by mode, not as a matrix product: the sum's order must not depend on the shape.
    noise_sum = torch.zeros(plans, steps, features, dtype=torch.float64, device=device)
    for k in range(modes):
        noise_sum += table[:, k, None] * z[:, None, k]
    return noise_sum.to(dtype)
