"""An MLP world model and its Jacobians at many rows, in one launch.

A program takes a tile of ROWS rows through the model once, keeping slopes, and then walks back once
for each output feature, with the cotangent that is 1 at that feature in every row: row `feature` of
each row's Jacobian. Where there are fewer tiles than the GPU runs programs, several programs share
a tile: each runs the model for itself and takes every so many-th feature. A row's bits depend on
its tile's shape only, not on who computes it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from grasp_kernels.triton import configs
from grasp_kernels.triton.mlp_layer import matrix, origin, pass_back, settle
from grasp_kernels.triton.mlp_structure import (
    MLPTile,
    action_features,
    activation,
    chunk,
    is_elementwise,
    is_residual,
    last_layer,
    output_scale_at,
    piece,
    pitch,
    plan_tile,
    programs_for,
    scratch,
    slope_slot,
    state_features,
    weight_at,
    width,
)
from grasp_kernels.triton.mlp_tile import forward, input_gradient, layer_backward, own_scratch


@triton.jit(do_not_specialize=["rows", "shares"])
def mlp_jacobians_kernel(
    states, actions, prediction, state_jacobian, action_jacobian,
    weights, constants, factors, saved,
    rows, shares,
    MODEL: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    FEATURES: tl.constexpr = state_features(MODEL)
    ACTIONS: tl.constexpr = action_features(MODEL)
    factors, saved = own_scratch(factors, saved, MODEL, ROWS, COLUMNS)
    for item in tl.range(tl.program_id(0), tl.cdiv(rows, ROWS) * shares, tl.num_programs(0)):
        first = (item // shares).to(tl.int64) * ROWS
        live = tl.minimum(rows - first, ROWS)
        # All who share a tile write its prediction, the same bits.
        forward(
            states + first * FEATURES, FEATURES, actions + first * ACTIONS, ACTIONS, live,
            prediction + first * FEATURES, FEATURES, weights, constants, factors, saved, True,
            MODEL, ROWS, COLUMNS, DEPTH,
        )  # fmt: skip
        for feature in tl.range(item % shares, FEATURES, shares):
            backward_from(feature, weights, constants, factors, saved, MODEL, ROWS, COLUMNS, DEPTH)
            store_gradient(
                state_jacobian + (first * FEATURES + feature) * FEATURES,
                action_jacobian + (first * FEATURES + feature) * ACTIONS,
                feature, live, weights, constants, factors, saved, MODEL, ROWS, COLUMNS, DEPTH,
            )  # fmt: skip
            tl.debug_barrier()


@triton.jit
def backward_from(
    feature, weights, constants, factors, saved,
    MODEL: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """As `mlp_tile.backward`, from the cotangent that is 1 at output `feature` and 0 elsewhere.

    Behind an elementwise last layer that is a multiple of one row of W, without a product.
    """
    LAST: tl.constexpr = last_layer(MODEL)
    BY_ROW: tl.constexpr = LAST > 0 and is_elementwise(MODEL, LAST)
    TOP: tl.constexpr = LAST - 1 if BY_ROW else LAST
    SIZE: tl.constexpr = width(MODEL, TOP)
    CHUNK: tl.constexpr = piece(SIZE, COLUMNS)
    zero = origin(saved, MODEL, ROWS, COLUMNS)
    row = zero + tl.arange(0, ROWS)[:, None]
    seed = tl.load(constants + output_scale_at(MODEL) + feature)
    if BY_ROW:
        if activation(MODEL, LAST) != "identity":
            slopes = matrix(saved, slope_slot(MODEL, LAST), MODEL, ROWS, COLUMNS)
            seed *= tl.load(slopes + row * pitch(MODEL, COLUMNS) + feature)
        seed = seed.to(factors.dtype.element_ty).to(tl.float32)  # a factor, as of every product
    for column0 in tl.range(zero, SIZE, CHUNK):
        column = column0 + tl.arange(0, CHUNK)[None, :]
        if BY_ROW:
            line = weights + weight_at(MODEL, LAST) + feature * SIZE + column
            g = seed * tl.load(line, mask=column < SIZE, other=0.0).to(tl.float32)
        else:
            g = tl.where(column == feature, seed, 0.0)
        g = tl.broadcast_to(g, [ROWS, CHUNK])
        pass_back(g, row, column, constants, factors, saved, TOP, MODEL, ROWS, COLUMNS)
    tl.debug_barrier()
    settle(constants, factors, saved, TOP, MODEL, ROWS, COLUMNS)
    for step in tl.static_range(TOP):
        layer_backward(weights, constants, factors, saved, TOP - step, MODEL, ROWS, COLUMNS, DEPTH)


@triton.jit
def store_gradient(
    state_gradient, action_gradient, feature, live, weights, constants, factors, saved,
    MODEL: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Of output `feature`, by all inputs; the pointers are those of the first row."""
    FEATURES: tl.constexpr = state_features(MODEL)
    ACTIONS: tl.constexpr = action_features(MODEL)
    INPUTS: tl.constexpr = width(MODEL, -1)
    CHUNK: tl.constexpr = chunk(INPUTS, COLUMNS)
    zero = origin(saved, MODEL, ROWS, COLUMNS)
    row = zero + tl.arange(0, ROWS)[:, None]
    for column0 in tl.range(zero, INPUTS, CHUNK):
        column = column0 + tl.arange(0, CHUNK)
        g = input_gradient(column, weights, constants, factors, saved, MODEL, ROWS, COLUMNS, DEPTH)
        column = column[None, :]
        if is_residual(MODEL):
            g += tl.where(column == feature, 1.0, 0.0)
        alive = row < live
        of_state = alive & (column < FEATURES)
        tl.store(state_gradient + row * (FEATURES * FEATURES) + column, g, mask=of_state)
        of_action = alive & (column >= FEATURES) & (column < INPUTS)
        place = row * (FEATURES * ACTIONS) + (column - FEATURES)
        tl.store(action_gradient + place, g, mask=of_action)


def jacobians_tile(dtype: torch.dtype) -> MLPTile:
    """For any rows; like those of a long plan, never a function of how many there are."""
    return plan_tile(64, dtype)


def mlp_jacobians(
    states: Tensor, actions: Tensor, weights: Tensor, constants: Tensor, structure: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Predictions (M, D), dF/ds (M, D, D) and dF/da (M, D, A) at `states` (M, D), `actions`."""
    (rows, features), width = states.shape, actions.shape[1]
    prediction = torch.empty_like(states)
    state_jacobian = states.new_empty(rows, features, features)
    action_jacobian = states.new_empty(rows, features, width)
    if rows == 0:
        return prediction, state_jacobian, action_jacobian
    model, tile = tuple(structure), jacobians_tile(weights.dtype)
    tiles = triton.cdiv(rows, tile.rows)
    programs = programs_for(tiles * features, weights)
    shares = max(1, programs // tiles)
    with configs.on_device(states):
        mlp_jacobians_kernel[(programs,)](
            states,
            actions,
            prediction,
            state_jacobian,
            action_jacobian,
            weights,
            constants,
            *scratch(model, tile, programs, weights),
            rows,
            shares,
            MODEL=model,
            **tile.launch(),
        )
    return prediction, state_jacobian, action_jacobian
