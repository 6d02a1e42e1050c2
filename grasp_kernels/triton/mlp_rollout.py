"""The rollout of an MLP world model and its adjoint: each one launch, whatever the horizon.

A program owns ROWS plans and walks with them through time. The steps of a rollout depend on each
other, so all that is parallel is the plans.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from grasp_kernels.triton import configs
from grasp_kernels.triton.mlp_layer import matrix, origin
from grasp_kernels.triton.mlp_structure import (
    OWN,
    action_features,
    chunk,
    is_residual,
    piece,
    pitch,
    rollout_tile,
    scratch,
    state_features,
)
from grasp_kernels.triton.mlp_tile import backward, forward, input_gradient, own_scratch

RUNTIME_INTEGERS = ["plans", "steps"]


@triton.jit
def roll_out(
    states, actions, live, steps, weights, constants, factors, saved,
    MODEL: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Fills `states` of ROWS plans from time 1 on; pointers are those of the first plan."""
    state_stride = (steps + 1).to(tl.int64) * state_features(MODEL)
    action_stride = steps.to(tl.int64) * action_features(MODEL)
    for _ in tl.range(0, steps):
        following = states + state_features(MODEL)
        forward(
            states, state_stride, actions, action_stride, live, following, state_stride,
            weights, constants, factors, saved, False, MODEL, ROWS, COLUMNS, DEPTH,
        )  # fmt: skip
        states = following
        actions += action_features(MODEL)


@triton.jit
def adjoint_step(
    adjoint, cotangent, state, state_stride, action, action_stride, live,
    weights, constants, factors, saved,
    MODEL: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """`adjoint_t = cotangent_t + (dF/ds)^T adjoint_{t+1}`, in place; cotangents may be absent.

    Runs the model again at time t: its derivatives at all times would not stay in the caches. The
    action's gradient remains to be asked of `input_gradient`.
    """
    FEATURES: tl.constexpr = state_features(MODEL)
    PITCH: tl.constexpr = pitch(MODEL, COLUMNS)
    CHUNK: tl.constexpr = chunk(FEATURES, COLUMNS)
    forward(
        state, state_stride, action, action_stride, live, None, 0,
        weights, constants, factors, saved, True, MODEL, ROWS, COLUMNS, DEPTH,
    )  # fmt: skip
    backward(adjoint, PITCH, live, weights, constants, factors, saved, MODEL, ROWS, COLUMNS, DEPTH)
    zero = origin(saved, MODEL, ROWS, COLUMNS)
    row = zero + tl.arange(0, ROWS)[:, None]
    for column0 in tl.range(zero, FEATURES, CHUNK):
        feature = column0 + tl.arange(0, CHUNK)
        column = feature[None, :]
        g = input_gradient(feature, weights, constants, factors, saved, MODEL, ROWS, COLUMNS, DEPTH)
        mask = (row < live) & (column < FEATURES)
        place = adjoint + row * PITCH + column
        if is_residual(MODEL):
            g += tl.load(place, mask=mask, other=0.0)
        if cotangent is not None:
            g += tl.load(cotangent + row * state_stride + column, mask=mask, other=0.0)
        tl.store(place, g, mask=mask)


@triton.jit(do_not_specialize=RUNTIME_INTEGERS)
def mlp_rollout_kernel(
    start, states, actions, weights, constants, factors, saved,
    plans, steps,
    MODEL: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * ROWS
    live = tl.minimum(plans - first, ROWS)
    factors, saved = own_scratch(factors, saved, MODEL, ROWS, COLUMNS)
    states += first * (steps + 1) * state_features(MODEL)
    start += first * state_features(MODEL)
    copy_rows(
        start, state_features(MODEL), states, (steps + 1).to(tl.int64) * state_features(MODEL),
        live, origin(saved, MODEL, ROWS, COLUMNS), state_features(MODEL), ROWS, COLUMNS,
    )  # fmt: skip
    tl.debug_barrier()
    roll_out(
        states, actions + first * steps * action_features(MODEL), live, steps,
        weights, constants, factors, saved, MODEL, ROWS, COLUMNS, DEPTH,
    )  # fmt: skip


@triton.jit
def copy_rows(
    source, source_stride, target, target_stride, live, zero, SIZE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """SIZE numbers of each live row; `zero` is `mlp_layer.origin`."""
    CHUNK: tl.constexpr = piece(SIZE, COLUMNS)
    row = zero + tl.arange(0, ROWS)[:, None]
    for column0 in tl.range(zero, SIZE, CHUNK):
        column = column0 + tl.arange(0, CHUNK)[None, :]
        mask = (row < live) & (column < SIZE)
        values = tl.load(source + row * source_stride + column, mask=mask, other=0.0)
        tl.store(target + row * target_stride + column, values, mask=mask)


@triton.jit(do_not_specialize=RUNTIME_INTEGERS)
def mlp_rollout_backward_kernel(
    cotangent, states, actions, start_gradient, action_gradient,
    weights, constants, factors, saved,
    plans, steps,
    MODEL: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    FEATURES: tl.constexpr = state_features(MODEL)
    ACTIONS: tl.constexpr = action_features(MODEL)
    PITCH: tl.constexpr = pitch(MODEL, COLUMNS)
    first = tl.program_id(0).to(tl.int64) * ROWS
    live = tl.minimum(plans - first, ROWS)
    factors, saved = own_scratch(factors, saved, MODEL, ROWS, COLUMNS)
    adjoint = matrix(saved, OWN, MODEL, ROWS, COLUMNS)
    state_stride = (steps + 1).to(tl.int64) * FEATURES
    action_stride = steps.to(tl.int64) * ACTIONS
    # From here all pointers move backwards, from time T of the states and T - 1 of the actions.
    cotangent += first * state_stride + steps.to(tl.int64) * FEATURES
    states += first * state_stride + steps.to(tl.int64) * FEATURES
    last_action = first * action_stride + action_stride - ACTIONS
    actions += last_action
    action_gradient += last_action
    zero = origin(saved, MODEL, ROWS, COLUMNS)
    copy_rows(cotangent, state_stride, adjoint, PITCH, live, zero, FEATURES, ROWS, COLUMNS)
    tl.debug_barrier()
    for _ in tl.range(0, steps):
        cotangent -= FEATURES
        states -= FEATURES
        adjoint_step(
            adjoint, cotangent, states, state_stride, actions, action_stride, live,
            weights, constants, factors, saved, MODEL, ROWS, COLUMNS, DEPTH,
        )  # fmt: skip
        store_action_gradient(
            action_gradient, action_stride, live, weights, constants, factors, saved,
            MODEL, ROWS, COLUMNS, DEPTH,
        )  # fmt: skip
        actions -= ACTIONS
        action_gradient -= ACTIONS
        tl.debug_barrier()
    zero = origin(saved, MODEL, ROWS, COLUMNS)
    start_gradient += first * FEATURES
    copy_rows(adjoint, PITCH, start_gradient, FEATURES, live, zero, FEATURES, ROWS, COLUMNS)


@triton.jit
def store_action_gradient(
    gradient, stride, live, weights, constants, factors, saved,
    MODEL: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    CHUNK: tl.constexpr = chunk(action_features(MODEL), COLUMNS)
    zero = origin(saved, MODEL, ROWS, COLUMNS)
    row = zero + tl.arange(0, ROWS)[:, None]
    for column0 in tl.range(zero, action_features(MODEL), CHUNK):
        column = column0 + tl.arange(0, CHUNK)
        g = input_gradient(
            state_features(MODEL) + column, weights, constants, factors, saved,
            MODEL, ROWS, COLUMNS, DEPTH,
        )  # fmt: skip
        mask = (row < live) & (column < action_features(MODEL))[None, :]
        tl.store(gradient + row * stride + column[None, :], g, mask=mask)


def mlp_rollout(
    start: Tensor, actions: Tensor, weights: Tensor, constants: Tensor, structure: Sequence[int]
) -> Tensor:
    """States (N, T+1, D) from `start` (N, D) and `actions` (N, T, A)."""
    plans, steps, _ = actions.shape
    states = torch.empty(plans, steps + 1, start.shape[1], device=start.device)
    if plans == 0:
        return states
    model, tile = tuple(structure), rollout_tile(weights.dtype)
    programs = triton.cdiv(plans, tile.rows)
    with configs.on_device(start):
        mlp_rollout_kernel[(programs,)](
            start,
            states,
            actions,
            weights,
            constants,
            *scratch(model, tile, programs, weights),
            plans,
            steps,
            MODEL=model,
            **tile.launch(),
        )
    return states


def mlp_rollout_backward(
    cotangent: Tensor,
    states: Tensor,
    actions: Tensor,
    weights: Tensor,
    constants: Tensor,
    structure: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Gradients of `start` (N, D) and `actions` (N, T, A), from those of all states."""
    plans, steps, _ = actions.shape
    start_gradient = torch.empty(plans, states.shape[2], device=states.device)
    action_gradient = torch.empty_like(actions)
    if plans == 0:
        return start_gradient, action_gradient
    model, tile = tuple(structure), rollout_tile(weights.dtype)
    programs = triton.cdiv(plans, tile.rows)
    with configs.on_device(states):
        mlp_rollout_backward_kernel[(programs,)](
            cotangent,
            states,
            actions,
            start_gradient,
            action_gradient,
            weights,
            constants,
            *scratch(model, tile, programs, weights),
            plans,
            steps,
            MODEL=model,
            **tile.launch(),
        )
    return start_gradient, action_gradient
