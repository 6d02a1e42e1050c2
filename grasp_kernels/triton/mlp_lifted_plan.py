"""Many lifted iterations through an MLP world model, in one launch.

A program owns a plan for all iterations (docs/method.md): the model at all time steps, losses and
cotangent, the state step with its noise, the model's transpose for the action, the action step.
Plans do not depend on each other, so no iteration ever waits for the host or for another program,
and states, actions and moments of a plan stay in the caches of one multiprocessor.

Time is cut in tiles of ROWS steps, taken *backwards*: a tile moves the states after its inputs,
t + 1 for t in the tile, and the last of the tile before it in time is an input of its own.
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
from grasp_kernels.triton.mlp_structure import (
    OWN,
    action_features,
    chunk,
    pitch,
    plan_tile,
    programs_for,
    scratch,
    state_features,
)
from grasp_kernels.triton.mlp_tile import backward, forward, input_gradient, own_scratch
from grasp_kernels.triton.rng import noise_tile

NOISE_FEATURES = tl.constexpr(32)
RUNTIME_INTEGERS = [
    "plans",
    "steps",
    "iterations",
    "first_iteration",
    "key_low",
    "key_high",
    "modes",
]


@triton.jit(do_not_specialize=RUNTIME_INTEGERS)
def mlp_lifted_plan_kernel(
    trajectory, actions, first_moment, second_moment, sound, goal, schedule, rates, plan_ids,
    feature_weight, low, high, weights, constants, history, factors, saved,
    beta1: tl.float64, beta2: tl.float64, first_power1: tl.float64, first_power2: tl.float64,
    epsilon, plans, steps, iterations, first_iteration, key_low, key_high, modes,
    NOISE: tl.constexpr, FREE: tl.constexpr,
    MODEL: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    FEATURES: tl.constexpr = state_features(MODEL)
    ACTIONS: tl.constexpr = action_features(MODEL)
    factors, saved = own_scratch(factors, saved, MODEL, ROWS, COLUMNS)
    tiles = tl.cdiv(steps, ROWS)
    plan = tl.program_id(0).to(tl.int64)
    # Scratch is per program: with more plans than programs, a program takes several in turn. What
    # belongs to a plan is read from memory where it is used; registers are for the model.
    for _ in tl.range(0, tl.cdiv(plans - tl.program_id(0), tl.num_programs(0))):
        power1 = tl.full([], first_power1, tl.float64)
        power2 = tl.full([], first_power2, tl.float64)
        for k in tl.range(0, iterations):
            weight_and_scale = schedule + 2 * k
            dynamics, goal_loss = 0.0, 0.0
            first = (tiles - 1).to(tl.int64) * ROWS
            for _ in tl.range(0, tiles):
                live = tl.minimum(steps - first, ROWS)
                inputs = trajectory + (plan * (steps + 1) + first) * FEATURES
                offset = (plan * steps + first) * ACTIONS
                prediction = matrix(saved, OWN, MODEL, ROWS, COLUMNS)
                forward(
                    inputs, FEATURES, actions + offset, ACTIONS, live,
                    prediction, pitch(MODEL, COLUMNS), weights, constants, factors, saved, True,
                    MODEL, ROWS, COLUMNS, DEPTH,
                )  # fmt: skip
                tile_dynamics, tile_goal = step_states(
                    prediction, inputs + FEATURES, goal + plan * FEATURES, feature_weight,
                    rates + 3 * plan, weight_and_scale, plan_ids + plan, first, live, steps,
                    key_low, key_high, first_iteration + k, modes, NOISE, FREE,
                    origin(saved, MODEL, ROWS, COLUMNS), MODEL, ROWS, COLUMNS,
                )  # fmt: skip
                dynamics += tile_dynamics
                goal_loss += tile_goal
                tl.debug_barrier()
                backward(
                    prediction, pitch(MODEL, COLUMNS), live, weights, constants, factors, saved,
                    MODEL, ROWS, COLUMNS, DEPTH,
                )  # fmt: skip
                wrong = descend(
                    actions, first_moment, second_moment, offset, live, rates + 3 * plan + 2,
                    low, high, beta1, beta2, power1, power2, epsilon,
                    weights, constants, factors, saved, MODEL, ROWS, COLUMNS, DEPTH,
                )  # fmt: skip
                tl.store(sound + plan, False, mask=wrong > 0)
                tl.debug_barrier()
                first -= ROWS
            total = dynamics + tl.load(weight_and_scale) * goal_loss
            tl.store(history + plans.to(tl.int64) * k + plan, total)
            tl.store(sound + plan, False, mask=is_finite(total) == 0)
            power1 *= beta1
            power2 *= beta2
        plan += tl.num_programs(0)


@triton.jit
def step_states(
    prediction, states, goal, feature_weight, rates, weight_and_scale, plan_id, first, live,
    horizon, key_low, key_high, iteration, modes,
    NOISE: tl.constexpr, FREE: tl.constexpr,
    zero, MODEL: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """`reference.lifted_step` on a tile: both losses, and predictions become cotangents.

    Pointers are those of the plan and the iteration; `states` is the state after step `first`.
    `zero` is `mlp_layer.origin`.
    """
    FEATURES: tl.constexpr = state_features(MODEL)
    CHUNK: tl.constexpr = chunk(FEATURES, NOISE_FEATURES)
    row = zero + tl.arange(0, ROWS)
    step = first.to(tl.int32) + 1 + row  # the time of the states that move
    state_lr = tl.load(rates)
    goal_weight = tl.load(weight_and_scale)
    dynamics = tl.zeros([ROWS], tl.float32)
    goal_loss = tl.zeros([ROWS], tl.float32)
    moves = (row < live) if FREE else (row < live) & (step < horizon)
    for feature0 in tl.range(zero, FEATURES, CHUNK):
        feature = feature0 + tl.arange(0, CHUNK)
        inside = feature < FEATURES
        mask = (row < live)[:, None] & inside[None, :]
        cells = prediction + row[:, None] * pitch(MODEL, COLUMNS) + feature[None, :]
        places = states + row[:, None] * FEATURES + feature[None, :]
        state = tl.load(places, mask=mask, other=0.0)
        predicted = tl.load(cells, mask=mask, other=0.0)
        target = tl.load(goal + feature, mask=inside, other=0.0)[None, :]
        residual = predicted - state
        error = tl.where(mask, predicted - target, 0.0)
        weighted_residual, weighted_error = residual, error
        if feature_weight is not None:
            w = tl.load(feature_weight + feature, mask=inside, other=0.0)[None, :]
            weighted_residual, weighted_error = w * residual, w * error
        dynamics += tl.sum(weighted_residual * residual, axis=1)
        goal_loss += tl.sum(weighted_error * error, axis=1)
        tl.store(cells, 2.0 * tl.fma(goal_weight, weighted_error, weighted_residual), mask=mask)
        state = tl.fma(2.0 * state_lr, weighted_residual, state)
        if NOISE != "none":
            group = feature0 // 4 + tl.arange(0, CHUNK // 4)
            xi = noise_tile(
                step, group, FEATURES + zero, tl.load(plan_id), key_low + zero, key_high + zero,
                iteration, horizon, modes, NOISE,
            )  # fmt: skip
            noise_scale = tl.load(weight_and_scale + 1) * tl.load(rates + 1)
            state = tl.fma(noise_scale, xi, state)
        tl.store(places, state, mask=mask & moves[:, None])
    return tl.sum(dynamics, axis=0), tl.sum(goal_loss, axis=0)


@triton.jit
def descend(
    actions, first_moment, second_moment, offset, live, lr, low, high,
    beta1, beta2, power1, power2, epsilon, weights, constants, factors, saved,
    MODEL: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """The action step on a tile of time steps; returns how many gradients were not finite."""
    ACTIONS: tl.constexpr = action_features(MODEL)
    CHUNK: tl.constexpr = chunk(ACTIONS, COLUMNS)
    zero = origin(saved, MODEL, ROWS, COLUMNS)
    row = zero + tl.arange(0, ROWS)[:, None]
    wrong = tl.zeros([ROWS], tl.int32)
    for column0 in tl.range(zero, ACTIONS, CHUNK):
        feature = column0 + tl.arange(0, CHUNK)
        column = feature[None, :]
        gradient = input_gradient(
            state_features(MODEL) + feature, weights, constants, factors, saved,
            MODEL, ROWS, COLUMNS, DEPTH,
        )  # fmt: skip
        mask = (row < live) & (column < ACTIONS)
        wrong += tl.sum((mask & (is_finite(gradient) == 0)).to(tl.int32), axis=1)
        step_actions(
            actions, first_moment, second_moment, offset + row * ACTIONS + column, column, mask,
            gradient, tl.load(lr), low, high, beta1, beta2, power1, power2, epsilon,
        )  # fmt: skip
    return tl.sum(wrong, axis=0)


def mlp_lifted_plan_(
    trajectory: Tensor,
    actions: Tensor,
    first_moment: Tensor | None,
    second_moment: Tensor | None,
    sound: Tensor,
    goal: Tensor,
    schedule: Tensor,
    rates: Tensor,
    plan_ids: Tensor,
    feature_weight: Tensor | None,
    low: Tensor | None,
    high: Tensor | None,
    weights: Tensor,
    constants: Tensor,
    structure: Sequence[int],
    seed: int,
    first_iteration: int,
    noise: str,
    modes: int,
    free_terminal: bool,
    beta1: float,
    beta2: float,
    epsilon: float,
    first_step: int,
) -> Tensor:
    """Moves `trajectory` (N, T+1, D) and `actions` (N, T, A); returns the losses (K, N)."""
    plans, steps, _ = actions.shape
    history = torch.empty(len(schedule), plans, device=trajectory.device)
    if history.numel() == 0:
        return history
    model, tile = tuple(structure), plan_tile(steps, weights.dtype)
    programs = programs_for(plans, trajectory)
    with configs.on_device(trajectory):
        mlp_lifted_plan_kernel[(programs,)](
            trajectory,
            actions,
            first_moment,
            second_moment,
            sound,
            goal,
            schedule,
            rates,
            plan_ids,
            feature_weight,
            low,
            high,
            weights,
            constants,
            history,
            *scratch(model, tile, programs, weights),
            beta1,
            beta2,
            beta1**first_step,
            beta2**first_step,
            epsilon,
            plans,
            steps,
            len(schedule),
            configs.int32_bits(first_iteration),
            configs.int32_bits(seed),
            configs.int32_bits(seed >> 32),
            modes,
            NOISE=noise,
            FREE=free_terminal,
            MODEL=model,
            **tile.launch(),
        )
    return history
