"""The sync phase through an MLP world model, in one launch: gradient steps through the rollout.

A program owns ROWS plans, as in mlp_rollout.py, for all steps: roll out, keep what is the best so
far, walk back for the gradient, move the actions; at the end the trajectory moves towards the last
rollout. The states of a rollout are kept for the way back; derivatives are made again.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from grasp_kernels.triton import configs
from grasp_kernels.triton.mlp_action_step import is_finite, step_actions
from grasp_kernels.triton.mlp_layer import matrix, origin
from grasp_kernels.triton.mlp_rollout import adjoint_step, copy_rows, roll_out
from grasp_kernels.triton.mlp_structure import (
    OWN,
    action_features,
    chunk,
    piece,
    pitch,
    rollout_tile,
    scratch,
    state_features,
)
from grasp_kernels.triton.mlp_tile import input_gradient, own_scratch

RUNTIME_INTEGERS = ["plans", "steps", "descents"]


@triton.jit(do_not_specialize=RUNTIME_INTEGERS)
def mlp_sync_kernel(
    trajectory, actions, best_cost, best_actions, best_states, sound, start, goal, lr, cost_weight,
    low, high, weights, constants, first_moment, second_moment, states, factors, saved,
    beta1: tl.float64, beta2: tl.float64, epsilon, stop_cost, blend, plans, steps, descents,
    BLEND: tl.constexpr, FREE: tl.constexpr,
    MODEL: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    FEATURES: tl.constexpr = state_features(MODEL)
    ACTIONS: tl.constexpr = action_features(MODEL)
    first = tl.program_id(0).to(tl.int64) * ROWS
    live = tl.minimum(plans - first, ROWS)
    factors, saved = own_scratch(factors, saved, MODEL, ROWS, COLUMNS)
    adjoint = matrix(saved, OWN, MODEL, ROWS, COLUMNS)
    state_stride = (steps + 1).to(tl.int64) * FEATURES
    action_stride = steps.to(tl.int64) * ACTIONS
    states += first * state_stride
    first_action = first * action_stride
    plan = first + tl.arange(0, ROWS)
    owned = plan < plans
    power1 = tl.full([], beta1, tl.float64)
    power2 = tl.full([], beta2, tl.float64)
    zero = origin(saved, MODEL, ROWS, COLUMNS)
    start += first * FEATURES
    copy_rows(start, FEATURES, states, state_stride, live, zero, FEATURES, ROWS, COLUMNS)
    tl.debug_barrier()
    for descent in tl.range(0, descents + 1):
        roll_out(
            states, actions + first_action, live, steps, weights, constants, factors, saved,
            MODEL, ROWS, COLUMNS, DEPTH,
        )  # fmt: skip
        zero = origin(saved, MODEL, ROWS, COLUMNS)
        cost = arrival(
            adjoint, states + steps.to(tl.int64) * FEATURES, state_stride,
            goal + first * FEATURES, cost_weight, live, zero, MODEL, ROWS, COLUMNS,
        )  # fmt: skip
        lost = tl.where(is_finite(cost), 0, 1)
        lost += count_lost(states, state_stride, live, steps + 1, zero, MODEL, ROWS, COLUMNS)
        tl.store(sound + plan, False, mask=owned & (lost > 0))
        better = owned & (lost == 0) & (cost < tl.load(best_cost + plan, mask=owned, other=0.0))
        tl.store(best_cost + plan, cost, mask=better)
        keep(
            states, best_states + first * state_stride, state_stride, steps + 1, better, zero,
            FEATURES, ROWS, COLUMNS,
        )  # fmt: skip
        keep(
            actions + first_action, best_actions + first_action, action_stride, steps, better, zero,
            ACTIONS, ROWS, COLUMNS,
        )  # fmt: skip
        tl.debug_barrier()
        if descent < descents:
            wrong = walk_back(
                adjoint, states, actions, first_moment, second_moment, first_action, live, steps,
                lr + first, best_cost + first, stop_cost, low, high,
                beta1, beta2, power1, power2, epsilon,
                weights, constants, factors, saved, MODEL, ROWS, COLUMNS, DEPTH,
            )  # fmt: skip
            tl.store(sound + plan, False, mask=owned & (wrong > 0))
            power1 *= beta1
            power2 *= beta2
        elif BLEND:
            blend_rows(
                trajectory + first * state_stride + FEATURES, states + FEATURES, state_stride,
                steps if FREE else steps - 1, owned & (lost == 0), blend, zero,
                FEATURES, ROWS, COLUMNS,
            )  # fmt: skip


@triton.jit
def arrival(
    adjoint, last_states, stride, goal, cost_weight, live, zero,
    MODEL: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """`w . (s_T - g)^2` of each plan [ROWS]; its gradient goes to `adjoint`."""
    FEATURES: tl.constexpr = state_features(MODEL)
    CHUNK: tl.constexpr = piece(FEATURES, COLUMNS)
    row = zero + tl.arange(0, ROWS)[:, None]
    cost = tl.zeros([ROWS], tl.float32)
    for column0 in tl.range(zero, FEATURES, CHUNK):
        column = column0 + tl.arange(0, CHUNK)[None, :]
        inside = column < FEATURES
        mask = (row < live) & inside
        error = tl.load(last_states + row * stride + column, mask=mask, other=0.0)
        error -= tl.load(goal + row * FEATURES + column, mask=mask, other=0.0)
        weighted = error
        if cost_weight is not None:
            weighted = error * tl.load(cost_weight + column, mask=inside, other=0.0)
        cost += tl.sum(weighted * error, axis=1)
        tl.store(adjoint + row * pitch(MODEL, COLUMNS) + column, 2.0 * weighted, mask=mask)
    return cost


@triton.jit
def count_lost(
    states, stride, live, times, zero,
    MODEL: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """How many numbers of each plan's states are not finite, [ROWS]."""
    FEATURES: tl.constexpr = state_features(MODEL)
    CHUNK: tl.constexpr = piece(FEATURES, COLUMNS)
    row = zero + tl.arange(0, ROWS)[:, None]
    lost = tl.zeros([ROWS], tl.int32)
    for _ in tl.range(0, times):
        for column0 in tl.range(zero, FEATURES, CHUNK):
            column = column0 + tl.arange(0, CHUNK)[None, :]
            mask = (row < live) & (column < FEATURES)
            state = tl.load(states + row * stride + column, mask=mask, other=0.0)
            lost += tl.sum(tl.where(is_finite(state), 0, 1), axis=1)
        states += FEATURES
    return lost


@triton.jit
def keep(
    source, target, stride, times, chosen, zero,
    SIZE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Copies `times` rows of SIZE numbers of the plans that are `chosen` [ROWS]."""
    CHUNK: tl.constexpr = piece(SIZE, COLUMNS)
    row = zero + tl.arange(0, ROWS)[:, None]
    for _ in tl.range(0, times):
        for column0 in tl.range(zero, SIZE, CHUNK):
            column = column0 + tl.arange(0, CHUNK)[None, :]
            mask = chosen[:, None] & (column < SIZE)
            place = row * stride + column
            tl.store(target + place, tl.load(source + place, mask=mask, other=0.0), mask=mask)
        source += SIZE
        target += SIZE


@triton.jit
def walk_back(
    adjoint, states, actions, first_moment, second_moment, first_action, live, steps,
    lr, best_cost, stop_cost, low, high, beta1, beta2, power1, power2, epsilon,
    weights, constants, factors, saved,
    MODEL: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """From the adjoint of the last states to the first; each action moves once its gradient is
    known, and is not needed by the times before. Returns how many gradients are not finite, [ROWS].
    """
    FEATURES: tl.constexpr = state_features(MODEL)
    ACTIONS: tl.constexpr = action_features(MODEL)
    CHUNK: tl.constexpr = chunk(ACTIONS, COLUMNS)
    state_stride = (steps + 1).to(tl.int64) * FEATURES
    action_stride = steps.to(tl.int64) * ACTIONS
    wrong = tl.zeros([ROWS], tl.int32)
    states += steps.to(tl.int64) * FEATURES
    offset = first_action + action_stride
    for _ in tl.range(0, steps):
        states -= FEATURES
        offset -= ACTIONS
        adjoint_step(
            adjoint, None, states, state_stride, actions + offset, action_stride, live,
            weights, constants, factors, saved, MODEL, ROWS, COLUMNS, DEPTH,
        )  # fmt: skip
        zero = origin(saved, MODEL, ROWS, COLUMNS)
        row = zero + tl.arange(0, ROWS)
        unfinished = tl.load(best_cost + row, mask=row < live, other=0.0) > stop_cost
        rate = tl.where(unfinished, tl.load(lr + row, mask=row < live, other=0.0), 0.0)
        for column0 in tl.range(zero, ACTIONS, CHUNK):
            feature = column0 + tl.arange(0, CHUNK)
            column = feature[None, :]
            gradient = input_gradient(
                FEATURES + feature, weights, constants, factors, saved, MODEL, ROWS, COLUMNS, DEPTH
            )
            mask = (row < live)[:, None] & (column < ACTIONS)
            wrong += tl.sum((mask & (is_finite(gradient) == 0)).to(tl.int32), axis=1)
            step_actions(
                actions, first_moment, second_moment,
                offset + row[:, None] * action_stride + column, column, mask, gradient,
                rate[:, None], low, high, beta1, beta2, power1, power2, epsilon,
            )  # fmt: skip
        tl.debug_barrier()
    return wrong


@triton.jit
def blend_rows(
    trajectory, states, stride, times, chosen, blend, zero,
    SIZE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """`trajectory` moves by `blend` of the way to `states`, as torch.lerp does it: 1 gets there."""
    CHUNK: tl.constexpr = piece(SIZE, COLUMNS)
    row = zero + tl.arange(0, ROWS)[:, None]
    rest = 1.0 - blend
    for _ in tl.range(0, times):
        for column0 in tl.range(zero, SIZE, CHUNK):
            column = column0 + tl.arange(0, CHUNK)[None, :]
            mask = chosen[:, None] & (column < SIZE)
            place = row * stride + column
            here = tl.load(trajectory + place, mask=mask, other=0.0)
            there = tl.load(states + place, mask=mask, other=0.0)
            way = there - here
            moved = tl.where(blend < 0.5, here + blend * way, there - rest * way)
            moved = tl.where(rest == 0.0, there, moved)  # whatever was here
            tl.store(trajectory + place, moved, mask=mask)
        trajectory += SIZE
        states += SIZE


def mlp_sync_(
    trajectory: Tensor,
    actions: Tensor,
    best_cost: Tensor,
    best_actions: Tensor,
    best_states: Tensor,
    sound: Tensor,
    start: Tensor,
    goal: Tensor,
    lr: Tensor,
    cost_weight: Tensor | None,
    low: Tensor | None,
    high: Tensor | None,
    weights: Tensor,
    constants: Tensor,
    structure: Sequence[int],
    steps: int,
    adam: bool,
    beta1: float,
    beta2: float,
    epsilon: float,
    stop_cost: float,
    blend: float,
    free_terminal: bool,
) -> None:
    """Moves `actions` (N, T, A) by `steps` gradient steps, and all that `reference.mlp_sync_` says.

    The last states and Adam's moments, zero at first, are scratch of the size of the arguments.
    """
    plans, horizon, _ = actions.shape
    if plans == 0:
        return
    model, tile = tuple(structure), rollout_tile(weights.dtype)
    programs = triton.cdiv(plans, tile.rows)
    moments = [torch.zeros_like(actions) if adam else None for _ in range(2)]
    with configs.on_device(actions):
        mlp_sync_kernel[(programs,)](
            trajectory,
            actions,
            best_cost,
            best_actions,
            best_states,
            sound,
            start,
            goal,
            lr,
            cost_weight,
            low,
            high,
            weights,
            constants,
            *moments,
            torch.empty_like(trajectory),
            *scratch(model, tile, programs, weights),
            beta1,
            beta2,
            epsilon,
            stop_cost,
            blend,
            plans,
            horizon,
            steps,
            BLEND=blend > 0,
            FREE=free_terminal,
            MODEL=model,
            **tile.launch(),
        )
