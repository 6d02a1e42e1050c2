"""A tile of ROWS rows through an MLP world model, forward and backward, by one program.

The equations are those of `reference.mlp_dynamics`. No layer fits into registers, so a layer's
input waits in the program's scratch (mlp_structure.py), which stays in the L1 and L2 caches, and
its output is made a chunk of columns at a time: multiply, finish in registers, store. Weights
stream from L2, each once per tile and direction. A barrier separates what one thread writes from
what another reads.

Rows of states and actions are a pointer to row 0 and a stride: time steps of one plan, or one time
step of many plans. Rows at or past `live` are read as 0 and never written outside of scratch.
"""

from __future__ import annotations

import triton
import triton.language as tl

from grasp_kernels.triton.mlp_layer import (
    factor,
    finish,
    matrix,
    normalise,
    origin,
    pass_back,
    settle,
    share_groups,
)
from grasp_kernels.triton.mlp_structure import (
    SUMS,
    activation,
    bias_at,
    chunk,
    has_norm,
    is_affine,
    is_elementwise,
    is_whole,
    last_layer,
    output_scale_at,
    piece,
    pitch,
    saved_size,
    stages,
    state_features,
    weight_at,
    width,
)


@triton.jit
def own_scratch(factors, saved, MODEL: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """This program's part of both scratch tensors, `origin` in it set."""
    program = tl.program_id(0).to(tl.int64)
    factors += program * (2 * ROWS * pitch(MODEL, COLUMNS))
    saved += program * saved_size(MODEL, ROWS, COLUMNS)
    tl.store(saved + saved_size(MODEL, ROWS, COLUMNS) - ROWS, 0.0)
    tl.debug_barrier()
    return factors, saved


@triton.jit
def product(
    values, weight, column, zero,
    INPUTS: tl.constexpr, OUTPUTS: tl.constexpr, TRANSPOSED: tl.constexpr,
    ROWS: tl.constexpr, PITCH: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """`values [ROWS, INPUTS] @ weight`, of whose OUTPUTS columns those in `column`; float32.

    `weight` is stored row by row as (INPUTS, OUTPUTS), or the other way round if TRANSPOSED.
    Products of float32 are exact to float32 ("ieee"), not tf32; what bfloat16 weights multiply has
    been rounded when it was stored.
    """
    STEP: tl.constexpr = chunk(INPUTS, DEPTH)
    WHOLE: tl.constexpr = is_whole(INPUTS, STEP) and is_whole(OUTPUTS, column.shape[0])
    STAGES: tl.constexpr = stages(INPUTS if TRANSPOSED else OUTPUTS, weight.dtype.element_ty)
    line = values + (zero + tl.arange(0, ROWS))[:, None] * PITCH
    total = tl.zeros([ROWS, column.shape[0]], tl.float32)
    for first in tl.range(zero, INPUTS, STEP, num_stages=STAGES):
        k = first + tl.arange(0, STEP)
        if is_whole(INPUTS, STEP):
            a = tl.load(line + k[None, :])
        else:
            a = tl.load(line + k[None, :], mask=(k < INPUTS)[None, :], other=0.0)
        if TRANSPOSED:
            at = weight + column[:, None] * INPUTS + k[None, :]
            inside = (column < OUTPUTS)[:, None] & (k < INPUTS)[None, :]
        else:
            at = weight + k[:, None] * OUTPUTS + column[None, :]
            inside = (k < INPUTS)[:, None] & (column < OUTPUTS)[None, :]
        b = tl.load(at) if WHOLE else tl.load(at, mask=inside, other=0.0)
        if TRANSPOSED:
            b = tl.trans(b)
        total = tl.dot(a, b, total, input_precision="ieee")
    return total


@triton.jit
def gather_input(
    state, state_stride, action, action_stride, live, constants, factors, saved,
    MODEL: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """`((state, action) - input_mean) * input_inverse_scale`, the first layer's factor."""
    FEATURES: tl.constexpr = state_features(MODEL)
    INPUTS: tl.constexpr = width(MODEL, -1)
    CHUNK: tl.constexpr = piece(INPUTS, COLUMNS)
    zero = origin(saved, MODEL, ROWS, COLUMNS)
    row = zero + tl.arange(0, ROWS)[:, None]
    alive = row < live
    target = factor(factors, 0, MODEL, ROWS, COLUMNS) + row * pitch(MODEL, COLUMNS)
    for column0 in tl.range(zero, INPUTS, CHUNK):
        column = column0 + tl.arange(0, CHUNK)[None, :]
        of_state, inside = column < FEATURES, column < INPUTS
        of_action = inside & (column >= FEATURES)
        s = tl.load(state + row * state_stride + column, mask=alive & of_state, other=0.0)
        a = action + row * action_stride + (column - FEATURES)
        u = s + tl.load(a, mask=alive & of_action, other=0.0)
        mean = tl.load(constants + column, mask=inside, other=0.0)
        inverse_scale = tl.load(constants + INPUTS + column, mask=inside, other=0.0)
        u = (u - mean) * inverse_scale
        tl.store(target + column, u.to(factors.dtype.element_ty))


@triton.jit
def forward(
    state, state_stride, action, action_stride, live, out, out_stride,
    weights, constants, factors, saved, SAVE: tl.constexpr,
    MODEL: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """`F(state, action)` into `out`, and with SAVE what `backward` needs into `saved`.

    Without `out` only what is saved counts. Ends with a barrier: results may be read.
    """
    gather_input(
        state, state_stride, action, action_stride, live, constants, factors, saved,
        MODEL, ROWS, COLUMNS,
    )  # fmt: skip
    tl.debug_barrier()
    for layer in tl.static_range(last_layer(MODEL) + 1):
        # The values of the last layer matter only to `out`, or to its own derivative.
        if layer < last_layer(MODEL) or out is not None or not is_affine(MODEL, layer):
            layer_forward(
                live, state, state_stride, out, out_stride, weights, constants, factors, saved,
                layer, SAVE, MODEL, ROWS, COLUMNS, DEPTH,
            )  # fmt: skip
            tl.debug_barrier()


@triton.jit
def layer_forward(
    live, state, state_stride, out, out_stride, weights, constants, factors, saved,
    LAYER: tl.constexpr, SAVE: tl.constexpr,
    MODEL: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """`activation(LayerNorm(W h + b))`, a chunk of columns at a time."""
    WIDTH: tl.constexpr = width(MODEL, LAYER)
    INPUTS: tl.constexpr = width(MODEL, LAYER - 1)
    CHUNK: tl.constexpr = chunk(WIDTH, COLUMNS)
    PITCH: tl.constexpr = pitch(MODEL, COLUMNS)
    zero = origin(saved, MODEL, ROWS, COLUMNS)
    row = zero + tl.arange(0, ROWS)[:, None]
    values = factor(factors, LAYER, MODEL, ROWS, COLUMNS)
    weight = weights + weight_at(MODEL, LAYER)
    total = tl.zeros([ROWS], tl.float32)
    for column0 in tl.range(zero, WIDTH, CHUNK):
        column = column0 + tl.arange(0, CHUNK)
        inside = (column < WIDTH)[None, :]
        z = product(values, weight, column, zero, INPUTS, WIDTH, True, ROWS, PITCH, DEPTH)
        column = column[None, :]
        z += tl.load(constants + bias_at(MODEL, LAYER) + column, mask=inside, other=0.0)
        if is_elementwise(MODEL, LAYER):
            finish(
                z, row, column, inside, live, state, state_stride, out, out_stride, constants,
                factors, saved, LAYER, SAVE, MODEL, ROWS, COLUMNS,
            )  # fmt: skip
        else:
            tl.store(matrix(saved, SUMS, MODEL, ROWS, COLUMNS) + row * PITCH + column, z)
            total += tl.sum(tl.where(inside, z, 0.0), axis=1)
    if has_norm(MODEL, LAYER):
        tl.debug_barrier()
        normalise(
            total, live, state, state_stride, out, out_stride, constants, factors, saved,
            LAYER, SAVE, MODEL, ROWS, COLUMNS,
        )  # fmt: skip
    if activation(MODEL, LAYER) == "simnorm":
        tl.debug_barrier()
        share_groups(
            live, state, state_stride, out, out_stride, constants, factors, saved,
            LAYER, SAVE, MODEL, ROWS, COLUMNS,
        )  # fmt: skip


@triton.jit
def backward(
    cotangent, cotangent_stride, live, weights, constants, factors, saved,
    MODEL: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """From the cotangent of the model's output to that of the first layer's sums.

    After `forward` with SAVE, and before `input_gradient`. Ends with a barrier.
    """
    LAST: tl.constexpr = last_layer(MODEL)
    FEATURES: tl.constexpr = state_features(MODEL)
    CHUNK: tl.constexpr = piece(FEATURES, COLUMNS)
    zero = origin(saved, MODEL, ROWS, COLUMNS)
    row = zero + tl.arange(0, ROWS)[:, None]
    for column0 in tl.range(zero, FEATURES, CHUNK):
        column = column0 + tl.arange(0, CHUNK)[None, :]
        inside = column < FEATURES
        mask = inside & (row < live)
        g = tl.load(cotangent + row * cotangent_stride + column, mask=mask, other=0.0)
        g *= tl.load(constants + output_scale_at(MODEL) + column, mask=inside, other=0.0)
        pass_back(g, row, column, constants, factors, saved, LAST, MODEL, ROWS, COLUMNS)
    tl.debug_barrier()
    settle(constants, factors, saved, LAST, MODEL, ROWS, COLUMNS)
    for step in tl.static_range(LAST):
        layer_backward(weights, constants, factors, saved, LAST - step, MODEL, ROWS, COLUMNS, DEPTH)


@triton.jit
def layer_backward(
    weights, constants, factors, saved,
    LAYER: tl.constexpr,
    MODEL: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """From the cotangent of a layer's sums, through W, to that of the sums of the layer below."""
    WIDTH: tl.constexpr = width(MODEL, LAYER)
    INPUTS: tl.constexpr = width(MODEL, LAYER - 1)
    CHUNK: tl.constexpr = chunk(INPUTS, COLUMNS)
    PITCH: tl.constexpr = pitch(MODEL, COLUMNS)
    zero = origin(saved, MODEL, ROWS, COLUMNS)
    row = zero + tl.arange(0, ROWS)[:, None]
    values = factor(factors, LAYER, MODEL, ROWS, COLUMNS)
    weight = weights + weight_at(MODEL, LAYER)
    for column0 in tl.range(zero, INPUTS, CHUNK):
        column = column0 + tl.arange(0, CHUNK)
        g = product(values, weight, column, zero, WIDTH, INPUTS, False, ROWS, PITCH, DEPTH)
        pass_back(
            g, row, column[None, :], constants, factors, saved, LAYER - 1, MODEL, ROWS, COLUMNS
        )
    tl.debug_barrier()
    settle(constants, factors, saved, LAYER - 1, MODEL, ROWS, COLUMNS)


@triton.jit
def input_gradient(
    column, weights, constants, factors, saved,
    MODEL: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """After `backward`: the cotangent of the inputs in `column`, [ROWS, columns].

    Inputs are states, then actions; the action's gradient costs its own columns of W only.
    """
    INPUTS: tl.constexpr = width(MODEL, -1)
    WIDTH: tl.constexpr = width(MODEL, 0)
    PITCH: tl.constexpr = pitch(MODEL, COLUMNS)
    zero = origin(saved, MODEL, ROWS, COLUMNS)
    values = factor(factors, 0, MODEL, ROWS, COLUMNS)
    g = product(values, weights, column, zero, WIDTH, INPUTS, False, ROWS, PITCH, DEPTH)
    scale = tl.load(constants + INPUTS + column, mask=column < INPUTS, other=0.0)
    return g * scale[None, :]
