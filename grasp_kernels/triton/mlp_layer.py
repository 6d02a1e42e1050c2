"""Between the products of an MLP tile: norm, activation, and where the result goes.

An elementwise layer (no norm, no simnorm) is finished on the chunk of columns that its product has
just made. The others need a whole row first: their sums go to scratch, and `normalise`, then
`share_groups`, make further passes over it. The way back mirrors this.

`row` and `column` are index tiles that broadcast to the tile of values.
"""

from __future__ import annotations

import triton
import triton.language as tl

from grasp_kernels.triton.mlp_activations import activate
from grasp_kernels.triton.mlp_structure import (
    SUMS,
    activation,
    bias_at,
    group,
    group_count,
    group_padded,
    group_rows,
    has_norm,
    is_elementwise,
    is_residual,
    last_layer,
    output_scale_at,
    piece,
    pitch,
    saved_size,
    slope_slot,
    slots,
    state_features,
    width,
)


@triton.jit
def matrix(
    saved, SLOT: tl.constexpr, MODEL: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """The scratch matrix in a slot; slot `slots(MODEL)` is where 1 / deviation starts."""
    return saved + SLOT * ROWS * pitch(MODEL, COLUMNS)


@triton.jit
def factor(
    factors, LAYER: tl.constexpr, MODEL: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """What layer LAYER multiplies; on the way back, what its transpose does, in the other one."""
    return factors + (LAYER % 2) * ROWS * pitch(MODEL, COLUMNS)


@triton.jit
def origin(saved, MODEL: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """0, and only a GPU knows it: what every index of a layer is counted from.

    Addresses that start from a constant are the same for all layers, all iterations and all plans.
    A compiler then computes them once, ahead of all loops, and spills them: 700 bytes a thread.
    """
    zero = tl.load(saved + saved_size(MODEL, ROWS, COLUMNS) - ROWS).to(tl.int32)
    return tl.multiple_of(zero, 1024)


@triton.jit
def hand_on(
    h, row, column, mask, live, state, state_stride, out, out_stride, constants, factors,
    LAYER: tl.constexpr, MODEL: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Stores a layer's output: the next layer's factor or, after the last one, the next state."""
    if last_layer(MODEL) > LAYER:
        target = factor(factors, LAYER + 1, MODEL, ROWS, COLUMNS)
        h = h.to(factors.dtype.element_ty)
        tl.store(target + row * pitch(MODEL, COLUMNS) + column, h, mask=mask)
    elif out is not None:
        scale = constants + output_scale_at(MODEL) + column
        inside = column < state_features(MODEL)
        gain = tl.load(scale, mask=inside, other=0.0)
        shift = tl.load(scale + state_features(MODEL), mask=inside, other=0.0)
        mask = mask & (row < live) & inside
        h = tl.fma(gain, h, shift)
        if is_residual(MODEL):
            h += tl.load(state + row * state_stride + column, mask=mask, other=0.0)
        tl.store(out + row * out_stride + column, h, mask=mask)


@triton.jit
def finish(
    z, row, column, mask, live, state, state_stride, out, out_stride, constants, factors, saved,
    LAYER: tl.constexpr, SAVE: tl.constexpr,
    MODEL: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The elementwise activation, its slope saved, and the output handed on."""
    h, slope = activate(z, activation(MODEL, LAYER))
    if SAVE and activation(MODEL, LAYER) != "identity":
        slopes = matrix(saved, slope_slot(MODEL, LAYER), MODEL, ROWS, COLUMNS)
        tl.store(slopes + row * pitch(MODEL, COLUMNS) + column, slope, mask=mask)
    hand_on(
        h, row, column, mask, live, state, state_stride, out, out_stride, constants, factors,
        LAYER, MODEL, ROWS, COLUMNS,
    )  # fmt: skip


@triton.jit
def normalise(
    total, live, state, state_stride, out, out_stride, constants, factors, saved,
    LAYER: tl.constexpr, SAVE: tl.constexpr,
    MODEL: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """LayerNorm of the sums in scratch, whose totals [ROWS] are known.

    The squares are summed about the mean, in a pass of their own: sum(z^2) - mean^2 cancels.
    """
    WIDTH: tl.constexpr = width(MODEL, LAYER)
    CHUNK: tl.constexpr = piece(WIDTH, COLUMNS)
    gains = constants + bias_at(MODEL, LAYER) + WIDTH
    zero = origin(saved, MODEL, ROWS, COLUMNS)
    row = zero + tl.arange(0, ROWS)
    sums = matrix(saved, SUMS, MODEL, ROWS, COLUMNS) + row[:, None] * pitch(MODEL, COLUMNS)
    mean = total * (1.0 / WIDTH)
    squares = tl.zeros([ROWS], tl.float32)
    for column0 in tl.range(zero, WIDTH, CHUNK):
        column = column0 + tl.arange(0, CHUNK)
        centred = tl.load(sums + column[None, :]) - mean[:, None]
        squares += tl.sum(tl.where((column < WIDTH)[None, :], centred * centred, 0.0), axis=1)
    inverse = 1.0 / tl.sqrt(squares * (1.0 / WIDTH) + tl.load(gains + 2 * WIDTH))
    if SAVE:
        deviations = matrix(saved, slots(MODEL), MODEL, ROWS, COLUMNS)
        tl.store(deviations + LAYER * ROWS + row, inverse)
    for column0 in tl.range(zero, WIDTH, CHUNK):
        column = column0 + tl.arange(0, CHUNK)[None, :]
        inside = column < WIDTH
        normalised = (tl.load(sums + column) - mean[:, None]) * inverse[:, None]
        if SAVE:
            kept = matrix(saved, slope_slot(MODEL, LAYER) + 1, MODEL, ROWS, COLUMNS)
            tl.store(kept + row[:, None] * pitch(MODEL, COLUMNS) + column, normalised)
        gain = tl.load(gains + column, mask=inside, other=0.0)
        z = tl.fma(normalised, gain, tl.load(gains + WIDTH + column, mask=inside, other=0.0))
        if activation(MODEL, LAYER) == "simnorm":
            tl.store(sums + column, z)
        else:
            finish(
                z, row[:, None], column, inside, live, state, state_stride, out, out_stride,
                constants, factors, saved, LAYER, SAVE, MODEL, ROWS, COLUMNS,
            )  # fmt: skip


@triton.jit
def group_tile(tile, LAYER: tl.constexpr, MODEL: tl.constexpr, ROWS: tl.constexpr):
    """Tile number `tile` of a layer in groups: rows, columns and mask, [rows, groups, members]."""
    GROUP: tl.constexpr = group(MODEL, LAYER)
    GROUPS: tl.constexpr = width(MODEL, LAYER) // GROUP
    MEMBERS: tl.constexpr = group_padded(GROUP)
    COUNT: tl.constexpr = group_count(GROUPS, MEMBERS)
    HEIGHT: tl.constexpr = group_rows(ROWS, COUNT * MEMBERS)
    across: tl.constexpr = (GROUPS + COUNT - 1) // COUNT
    row = (tile // across) * HEIGHT + tl.arange(0, HEIGHT)[:, None, None]
    number = (tile % across) * COUNT + tl.arange(0, COUNT)[None, :, None]
    member = tl.arange(0, MEMBERS)[None, None, :]
    inside = (number < GROUPS) & (member < GROUP)
    return row, number * GROUP + member, inside & (row < ROWS)


@triton.constexpr_function
def group_tiles(model, layer, rows):
    """How many tiles `group_tile` cuts a layer into."""
    groups, members = width(model, layer) // group(model, layer), group_padded(group(model, layer))
    count = group_count(groups, members)
    return -(-groups // count) * (rows // group_rows(rows, count * members))


@triton.jit
def share_groups(
    live, state, state_stride, out, out_stride, constants, factors, saved,
    LAYER: tl.constexpr, SAVE: tl.constexpr,
    MODEL: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """simnorm of the sums in scratch: a softmax over each group of neighbours."""
    PITCH: tl.constexpr = pitch(MODEL, COLUMNS)
    sums = matrix(saved, SUMS, MODEL, ROWS, COLUMNS)
    for tile in tl.range(origin(saved, MODEL, ROWS, COLUMNS), group_tiles(MODEL, LAYER, ROWS)):
        row, column, inside = group_tile(tile, LAYER, MODEL, ROWS)
        z = tl.load(sums + row * PITCH + column, mask=inside, other=-3.0e38)
        top = tl.max(z, axis=2, keep_dims=True)
        # The largest member adds 1 to its group; a group without members only pads the tile.
        grown = tl.where(inside, tl.exp(z - top), 0.0)
        total = tl.sum(grown, axis=2, keep_dims=True)
        share = grown / tl.where(total == 0.0, 1.0, total)
        if SAVE:
            slopes = matrix(saved, slope_slot(MODEL, LAYER), MODEL, ROWS, COLUMNS)
            tl.store(slopes + row * PITCH + column, share, mask=inside)
        hand_on(
            share, row, column, inside, live, state, state_stride, out, out_stride, constants,
            factors, LAYER, MODEL, ROWS, COLUMNS,
        )  # fmt: skip


@triton.jit
def pass_back(
    g, row, column, constants, factors, saved,
    LAYER: tl.constexpr, MODEL: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Takes the cotangent of a layer's output through its activation, and stores it.

    An elementwise layer is then done: what is stored is the factor of its transposed weights. With
    a norm it is the cotangent of the normalised sums, for `settle`.
    """
    place = row * pitch(MODEL, COLUMNS) + column
    if activation(MODEL, LAYER) != "identity" and activation(MODEL, LAYER) != "simnorm":
        slopes = matrix(saved, slope_slot(MODEL, LAYER), MODEL, ROWS, COLUMNS)
        g *= tl.load(slopes + place)
    if is_elementwise(MODEL, LAYER):
        target = factor(factors, LAYER, MODEL, ROWS, COLUMNS)
        tl.store(target + place, g.to(factors.dtype.element_ty))
    else:
        if activation(MODEL, LAYER) != "simnorm":
            gains = constants + bias_at(MODEL, LAYER) + width(MODEL, LAYER)
            g *= tl.load(gains + column, mask=column < width(MODEL, LAYER), other=0.0)
        tl.store(matrix(saved, SUMS, MODEL, ROWS, COLUMNS) + place, g)


@triton.jit
def settle(
    constants, factors, saved,
    LAYER: tl.constexpr, MODEL: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The rest of the way back through a layer that `pass_back` could not finish."""
    if activation(MODEL, LAYER) == "simnorm":
        share_groups_back(constants, factors, saved, LAYER, MODEL, ROWS, COLUMNS)
        tl.debug_barrier()
    if has_norm(MODEL, LAYER):
        normalise_back(factors, saved, LAYER, MODEL, ROWS, COLUMNS)
        tl.debug_barrier()


@triton.jit
def share_groups_back(
    constants, factors, saved,
    LAYER: tl.constexpr, MODEL: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """`share (g - sum(share g))` in each group."""
    PITCH: tl.constexpr = pitch(MODEL, COLUMNS)
    sums = matrix(saved, SUMS, MODEL, ROWS, COLUMNS)
    shares = matrix(saved, slope_slot(MODEL, LAYER), MODEL, ROWS, COLUMNS)
    for tile in tl.range(origin(saved, MODEL, ROWS, COLUMNS), group_tiles(MODEL, LAYER, ROWS)):
        row, column, inside = group_tile(tile, LAYER, MODEL, ROWS)
        place = row * PITCH + column
        g = tl.load(sums + place, mask=inside, other=0.0)
        share = tl.load(shares + place, mask=inside, other=0.0)
        g = share * (g - tl.sum(share * g, axis=2, keep_dims=True))
        if has_norm(MODEL, LAYER):
            gains = constants + bias_at(MODEL, LAYER) + width(MODEL, LAYER)
            g *= tl.load(gains + column, mask=inside, other=0.0)
            tl.store(sums + place, g, mask=inside)
        else:
            target = factor(factors, LAYER, MODEL, ROWS, COLUMNS)
            tl.store(target + place, g.to(factors.dtype.element_ty), mask=inside)


@triton.jit
def normalise_back(
    factors, saved,
    LAYER: tl.constexpr, MODEL: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """`(g - mean(g) - normalised mean(g normalised)) / deviation`."""
    WIDTH: tl.constexpr = width(MODEL, LAYER)
    CHUNK: tl.constexpr = piece(WIDTH, COLUMNS)
    zero = origin(saved, MODEL, ROWS, COLUMNS)
    row = zero + tl.arange(0, ROWS)
    line = row[:, None] * pitch(MODEL, COLUMNS)
    cotangents = matrix(saved, SUMS, MODEL, ROWS, COLUMNS) + line
    kept = matrix(saved, slope_slot(MODEL, LAYER) + 1, MODEL, ROWS, COLUMNS) + line
    plain = tl.zeros([ROWS], tl.float32)
    along = tl.zeros([ROWS], tl.float32)
    for column0 in tl.range(zero, WIDTH, CHUNK):
        column = column0 + tl.arange(0, CHUNK)[None, :]
        g = tl.load(cotangents + column, mask=column < WIDTH, other=0.0)
        normalised = tl.load(kept + column, mask=column < WIDTH, other=0.0)
        plain += tl.sum(g, axis=1)
        along += tl.sum(g * normalised, axis=1)
    deviations = matrix(saved, slots(MODEL), MODEL, ROWS, COLUMNS)
    inverse = tl.load(deviations + LAYER * ROWS + row)
    plain *= 1.0 / WIDTH
    along *= 1.0 / WIDTH
    target = factor(factors, LAYER, MODEL, ROWS, COLUMNS) + line
    for column0 in tl.range(zero, WIDTH, CHUNK):
        column = column0 + tl.arange(0, CHUNK)[None, :]
        g = tl.load(cotangents + column) - plain[:, None]
        g = inverse[:, None] * tl.fma(-tl.load(kept + column), along[:, None], g)
        tl.store(target + column, g.to(factors.dtype.element_ty))
