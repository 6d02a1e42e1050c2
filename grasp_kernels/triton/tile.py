"""What the lifted kernels share: the addresses of a tile, and the lifted problem on it.

A program holds a tile of ROWS time steps by TILE features of one plan. `trajectory` has one row
more than `prediction`: prediction row r is compared with trajectory row r + 1.

Two promises of the launcher, as compile-time constants, decide how a tile is loaded:

    VECTOR  elements in 16 bytes if every row starts on a 16-byte boundary and is a whole number of
            16 bytes long, else 1. Declared to the compiler, which otherwise has to assume the worst
            and turns one 128-bit access into four of 32.
    WHOLE   the tiles divide the row, so features need no mask.

Addresses are 64-bit: N (T + 1) D passes 2^31 for a batch of wide latents.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tile_of(
    steps,
    features,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    VECTOR: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """This program's plan, rows [ROWS], features [TILE], and the masks of features and tile."""
    plan = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    feature = tl.program_id(2) * TILE + tl.arange(0, TILE)
    # Declaring the mask constant over 16 bytes: any element could be the last one otherwise.
    in_row = tl.max_constancy(feature < features, [VECTOR])
    # With one row a tile the grid has no row too many.
    mask = tl.full([1, 1], True, tl.int1) if ROWS == 1 else (row < steps)[:, None]
    if not WHOLE:
        mask = mask & in_row[None, :]
    return plan, row, feature, in_row, mask


@triton.jit
def tile_pointers(base, row_stride, row, feature, VECTOR: tl.constexpr):
    """Pointers [ROWS, TILE] to rows that are `row_stride` elements apart."""
    pointers = base + row.to(tl.int64)[:, None] * row_stride + feature[None, :]
    if VECTOR > 1:
        pointers = tl.multiple_of(pointers, [1, 16])
    return pointers


@triton.jit
def load_features(base, feature, in_row, VECTOR: tl.constexpr, WHOLE: tl.constexpr):
    """One value per feature, float32 [1, TILE]; 1 where there is no tensor."""
    if base is None:
        return 1.0
    else:
        pointers = base + feature
        if VECTOR > 1:
            pointers = tl.multiple_of(pointers, [16])
        values = tl.load(pointers) if WHOLE else tl.load(pointers, mask=in_row, other=0.0)
        return values.to(tl.float32)[None, :]


@triton.jit
def load_rows(base, row, steps):
    """One value per time step, float32 [ROWS]; 1 where there is no tensor."""
    if base is None:
        return tl.full(row.shape, 1.0, tl.float32)
    else:
        return tl.load(base + row, mask=row < steps, other=0.0).to(tl.float32)


@triton.jit
def load_errors(
    prediction,
    state_pointers,
    goal,
    plan,
    row,
    feature,
    in_row,
    mask,
    steps,
    features,
    VECTOR: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """The states s_{t+1} of the tile, its residual and its goal error."""
    pointers = tile_pointers(prediction, features, plan * steps + row, feature, VECTOR)
    predicted = tl.load(pointers, mask=mask, other=0.0).to(tl.float32)
    state = tl.load(state_pointers, mask=mask, other=0.0).to(tl.float32)
    target = load_features(goal + plan * features, feature, in_row, VECTOR, WHOLE)
    return state, predicted - state, predicted - target


@triton.jit
def sum_of_products(x, y):
    """Sums of `x * y` by fours, [ROWS, TILE] to [ROWS, TILE / 4], products fused into sums."""
    shape: tl.constexpr = [x.shape[0], x.shape[1] // 4, 2, 2]
    x_even, x_odd = tl.split(tl.reshape(x, shape))
    y_even, y_odd = tl.split(tl.reshape(y, shape))
    x0, x2 = tl.split(x_even)
    x1, x3 = tl.split(x_odd)
    y0, y2 = tl.split(y_even)
    y1, y3 = tl.split(y_odd)
    return tl.fma(x3, y3, tl.fma(x2, y2, tl.fma(x1, y1, x0 * y0)))


@triton.jit
def store_losses(
    dynamics,
    goal_error,
    weighted_residual,
    residual,
    weighted_error,
    error,
    time_weight,
    plan,
    row,
    steps,
    padded_rows,
):
    """This tile's share of both losses, one value per row, into [feature tile, plan and step].

    No atomics: `losses.py` adds the shares of a row up, always in the same order.
    """
    share = tl.program_id(2).to(tl.int64) * padded_rows + plan * steps + row
    # Both sums in one reduction, which halves its barriers.
    both = tl.join(
        sum_of_products(weighted_residual, residual), sum_of_products(weighted_error, error)
    )
    dynamics_share, goal_share = tl.split(tl.sum(both, axis=1))
    tl.store(dynamics + share, dynamics_share, mask=row < steps)
    tl.store(goal_error + share, time_weight * goal_share, mask=row < steps)
