"""The fused state step: both losses, the model's cotangent, the noise and the move, in one pass.

Per element it reads prediction and state once, writes cotangent and state once, and keeps all the
rest (residual, goal error, gradient, four normals per Philox call) in registers. The formulas are
those of `grasp_kernels.reference.lifted_step`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from grasp_kernels.triton import configs
from grasp_kernels.triton.losses import empty_shares, sum_feature_tiles
from grasp_kernels.triton.rng import noise_tile
from grasp_kernels.triton.tile import (
    load_errors,
    load_features,
    load_rows,
    store_losses,
    tile_of,
    tile_pointers,
)

RUNTIME_INTEGERS = [
    "trajectory_plan_stride",
    "trajectory_step_stride",
    "gradient_plan_stride",
    "gradient_step_stride",
    "coefficient_plan_stride",
    "coefficient_stride",
    "key_low",
    "key_high",
    "iteration",
    "first_step",
    "last_step",
    "horizon",
    "modes",
    "steps",
    "features",
    "padded_rows",
]


@triton.jit(do_not_specialize=RUNTIME_INTEGERS)
def lifted_step_kernel(
    trajectory,
    prediction,
    goal,
    coefficients,
    plan_ids,
    feature_weight,
    time_weight,
    state_gradient,
    dynamics,
    goal_error,
    cotangent,
    trajectory_plan_stride,
    trajectory_step_stride,
    gradient_plan_stride,
    gradient_step_stride,
    coefficient_plan_stride,
    coefficient_stride,
    state_gradient_scale,
    key_low,
    key_high,
    iteration,
    first_step,
    last_step,
    horizon,
    modes,
    steps,
    features,
    padded_rows,
    NOISE: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    VECTOR: tl.constexpr,
    WHOLE: tl.constexpr,
):
    plan, row, feature, in_row, mask = tile_of(steps, features, ROWS, TILE, VECTOR, WHOLE)
    own = coefficients + plan * coefficient_plan_stride
    state_lr = tl.load(own).to(tl.float32)
    goal_weight = tl.load(own + coefficient_stride).to(tl.float32)

    # Row r of the tile moves the state of step r + 1.
    states = trajectory + plan * trajectory_plan_stride + trajectory_step_stride
    state_pointers = tile_pointers(states, trajectory_step_stride, row, feature, VECTOR)
    state, residual, error = load_errors(
        prediction, state_pointers, goal, plan, row, feature, in_row, mask, steps, features,
        VECTOR, WHOLE,
    )  # fmt: skip
    w = load_features(feature_weight, feature, in_row, VECTOR, WHOLE)
    v = load_rows(time_weight, row, steps)
    weighted_residual = w * residual
    weighted_error = w * error

    half_cotangent = tl.fma(goal_weight * v[:, None], weighted_error, weighted_residual)
    tl.store(
        tile_pointers(cotangent, features, plan * steps + row, feature, VECTOR),
        (2.0 * half_cotangent).to(cotangent.dtype.element_ty),
        mask=mask,
    )

    # s <- s - state_lr (-2 w residual + state_gradient_scale m) + noise_scale xi
    state = tl.fma(2.0 * state_lr, weighted_residual, state)
    if state_gradient is not None:
        gradients = state_gradient + plan * gradient_plan_stride + gradient_step_stride
        gradient_pointers = tile_pointers(gradients, gradient_step_stride, row, feature, VECTOR)
        gradient = tl.load(gradient_pointers, mask=mask, other=0.0).to(tl.float32)
        state = tl.fma(-state_lr * state_gradient_scale, gradient, state)
    step = first_step + 1 + row
    if NOISE != "none":
        noise_scale = tl.load(own + 2 * coefficient_stride).to(tl.float32)
        group = tl.program_id(2) * (TILE // 4) + tl.arange(0, TILE // 4)
        xi = noise_tile(
            step, group, features, tl.load(plan_ids + plan), key_low, key_high, iteration,
            horizon, modes, NOISE,
        )  # fmt: skip
        state = tl.fma(noise_scale, xi, state)
    moves = mask & (step <= last_step)[:, None]
    tl.store(state_pointers, state.to(trajectory.dtype.element_ty), mask=moves)

    store_losses(
        dynamics, goal_error, weighted_residual, residual, weighted_error, error, v,
        plan, row, steps, padded_rows,
    )  # fmt: skip


def lifted_step_(
    trajectory: Tensor,
    prediction: Tensor,
    goal: Tensor,
    coefficients: Tensor,
    plan_ids: Tensor,
    feature_weight: Tensor | None,
    time_weight: Tensor | None,
    state_gradient: Tensor | None,
    state_gradient_scale: float,
    seed: int,
    iteration: int,
    noise: str,
    modes: int,
    first_step: int,
    horizon: int,
    free_terminal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Moves `trajectory` (N, T+1, D); returns dynamics, goal error (N, T), cotangent (N, T, D)."""
    plans, steps, features = prediction.shape
    cotangent = torch.empty_like(prediction)
    if cotangent.numel() == 0:
        dynamics = torch.zeros(plans, steps, device=prediction.device)
        return dynamics, torch.zeros_like(dynamics), cotangent
    tile = configs.tile_for(features, noise, trajectory.element_size())
    shares = empty_shares(prediction, tile)
    gradient_strides = (0, 0) if state_gradient is None else state_gradient.stride()[:2]
    with configs.on_device(trajectory):
        lifted_step_kernel[configs.grid(plans, steps, features, tile)](
            trajectory,
            prediction,
            goal,
            coefficients,
            plan_ids,
            feature_weight,
            time_weight,
            state_gradient,
            *shares,
            cotangent,
            *trajectory.stride()[:2],
            *gradient_strides,
            *coefficients.stride(),
            state_gradient_scale,
            configs.int32_bits(seed),
            configs.int32_bits(seed >> 32),
            configs.int32_bits(iteration),
            first_step,
            horizon if free_terminal else horizon - 1,
            horizon,
            modes,
            steps,
            features,
            shares[0].shape[-1],
            NOISE=noise,
            VECTOR=configs.vector(trajectory, prediction, goal, feature_weight, state_gradient),
            **configs.launch(features, tile),
        )
        dynamics, goal_error = sum_feature_tiles(*shares, plans, steps)
    return dynamics, goal_error, cotangent
