"""The reshaped gradient of the lifted loss: what enters the model, and what moves the states.

Nothing flows back through the model's state input here: that is the planner's choice to make.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from grasp_kernels.triton import configs
from grasp_kernels.triton.tile import (
    load_errors,
    load_features,
    load_rows,
    tile_of,
    tile_pointers,
)

RUNTIME_INTEGERS = ["trajectory_plan_stride", "trajectory_step_stride", "steps", "features"]


@triton.jit(do_not_specialize=RUNTIME_INTEGERS)
def lifted_loss_backward_kernel(
    dynamics_cotangent,
    goal_cotangent,
    prediction,
    trajectory,
    goal,
    feature_weight,
    time_weight,
    prediction_gradient,
    trajectory_gradient,
    trajectory_plan_stride,
    trajectory_step_stride,
    steps,
    features,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    VECTOR: tl.constexpr,
    WHOLE: tl.constexpr,
):
    plan, row, feature, in_row, mask = tile_of(steps, features, ROWS, TILE, VECTOR, WHOLE)
    states = trajectory + plan * trajectory_plan_stride + trajectory_step_stride
    state_pointers = tile_pointers(states, trajectory_step_stride, row, feature, VECTOR)
    _, residual, error = load_errors(
        prediction, state_pointers, goal, plan, row, feature, in_row, mask, steps, features,
        VECTOR, WHOLE,
    )  # fmt: skip
    w = load_features(feature_weight, feature, in_row, VECTOR, WHOLE)
    v = load_rows(time_weight, row, steps)
    along_dynamics = 2.0 * load_rows(dynamics_cotangent + plan * steps, row, steps)
    along_goal = 2.0 * load_rows(goal_cotangent + plan * steps, row, steps) * v

    residual_gradient = along_dynamics[:, None] * (w * residual)
    gradient = tl.fma(along_goal[:, None], w * error, residual_gradient)
    gradients = prediction_gradient + plan * steps * features
    gradient_pointers = tile_pointers(gradients, features, row, feature, VECTOR)
    dtype = prediction_gradient.dtype.element_ty
    tl.store(gradient_pointers, gradient.to(dtype), mask=mask)

    # Row 0 of a plan is its given start: the program that holds row r = 0 also writes its zeros.
    plan_rows = trajectory_gradient + plan * (steps + 1) * features
    pointers = tile_pointers(plan_rows + features, features, row, feature, VECTOR)
    tl.store(pointers, (-residual_gradient).to(dtype), mask=mask)
    start = tile_pointers(plan_rows, features, row, feature, VECTOR)
    tl.store(start, tl.zeros([ROWS, TILE], dtype), mask=mask & (row == 0)[:, None])


def lifted_loss_backward(
    dynamics_cotangent: Tensor,
    goal_cotangent: Tensor,
    prediction: Tensor,
    trajectory: Tensor,
    goal: Tensor,
    feature_weight: Tensor | None,
    time_weight: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Gradients of prediction (N, T, D) and trajectory (N, T+1, D) from the losses' (N, T)."""
    plans, steps, features = prediction.shape
    prediction_gradient = torch.empty_like(prediction)
    if prediction.numel() == 0:
        return prediction_gradient, trajectory.new_zeros(trajectory.shape)
    trajectory_gradient = trajectory.new_empty(trajectory.shape)
    tile = configs.tile_for(features)
    with configs.on_device(prediction):
        lifted_loss_backward_kernel[configs.grid(plans, steps, features, tile)](
            dynamics_cotangent,
            goal_cotangent,
            prediction,
            trajectory,
            goal,
            feature_weight,
            time_weight,
            prediction_gradient,
            trajectory_gradient,
            *trajectory.stride()[:2],
            steps,
            features,
            VECTOR=configs.vector(prediction, trajectory, goal, feature_weight),
            **configs.launch(features, tile),
        )
    return prediction_gradient, trajectory_gradient
