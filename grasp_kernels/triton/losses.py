"""Losses of rows longer than one tile: shares per feature tile, then their sum in a fixed order."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from grasp_kernels.triton import configs

ROWS = 32
TILES = 32


@triton.jit(do_not_specialize=["tiles", "padded_rows"])
def sum_feature_tiles_kernel(
    dynamics_shares,
    goal_shares,
    dynamics,
    goal_error,
    tiles,
    padded_rows,
    ROWS: tl.constexpr,
    TILES: tl.constexpr,
):
    """Shares [tiles, padded_rows] to sums [padded_rows], TILES shares of ROWS rows at a time."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    in_rows = tl.max_constancy(row < padded_rows, [4])
    dynamics_sum = tl.zeros([ROWS], tl.float32)
    goal_sum = tl.zeros([ROWS], tl.float32)
    for first in tl.range(0, tiles, TILES):
        tile = first + tl.arange(0, TILES)
        mask = (tile < tiles)[:, None] & in_rows[None, :]
        offset = tile.to(tl.int64)[:, None] * padded_rows + row[None, :]
        offset = tl.multiple_of(offset, [1, 4])
        dynamics_sum += tl.sum(tl.load(dynamics_shares + offset, mask=mask, other=0.0), axis=0)
        goal_sum += tl.sum(tl.load(goal_shares + offset, mask=mask, other=0.0), axis=0)
    tl.store(dynamics + row, dynamics_sum, mask=in_rows)
    tl.store(goal_error + row, goal_sum, mask=in_rows)


def empty_shares(prediction: Tensor, tile: configs.Tile) -> tuple[Tensor, Tensor]:
    """Room for both losses of every row in every feature tile, each `(tiles, padded_rows)`.

    N T rows are padded to a multiple of four, so that the sum reads them 128 bits at a time.
    """
    plans, steps, features = prediction.shape
    shape = (triton.cdiv(features, tile.features), 4 * triton.cdiv(plans * steps, 4))
    dynamics = torch.empty(shape, dtype=torch.float32, device=prediction.device)
    return dynamics, torch.empty_like(dynamics)


def sum_feature_tiles(
    dynamics: Tensor, goal_error: Tensor, plans: int, steps: int
) -> tuple[Tensor, Tensor]:
    """Both losses per row, each `(N, T)`, from their shares `(tiles, padded_rows)`."""
    tiles, padded_rows = dynamics.shape
    if tiles > 1:
        sums = dynamics.new_empty(1, padded_rows), goal_error.new_empty(1, padded_rows)
        sum_feature_tiles_kernel[(triton.cdiv(padded_rows, ROWS),)](
            dynamics,
            goal_error,
            *sums,
            tiles,
            padded_rows,
            ROWS=ROWS,
            TILES=TILES,
            num_warps=4,
            **configs.OPTIONS,
        )
        dynamics, goal_error = sums
    rows = plans * steps
    return dynamics[0, :rows].view(plans, steps), goal_error[0, :rows].view(plans, steps)
