"""Both losses of every time step: the state step without the cotangent and the move."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from grasp_kernels.triton import configs
from grasp_kernels.triton.losses import empty_shares, sum_feature_tiles
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
    "steps",
    "features",
    "padded_rows",
]


@triton.jit(do_not_specialize=RUNTIME_INTEGERS)
def lifted_loss_kernel(
    prediction,
    trajectory,
    goal,
    feature_weight,
    time_weight,
    dynamics,
    goal_error,
    trajectory_plan_stride,
    trajectory_step_stride,
    steps,
    features,
    padded_rows,
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
    store_losses(
        dynamics, goal_error, w * residual, residual, w * error, error, v,
        plan, row, steps, padded_rows,
    )  # fmt: skip


def lifted_loss(
    prediction: Tensor,
    trajectory: Tensor,
    goal: Tensor,
    feature_weight: Tensor | None,
    time_weight: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Dynamics and goal error per time step, each (N, T)."""
    plans, steps, features = prediction.shape
    if prediction.numel() == 0:
        dynamics = torch.zeros(plans, steps, device=prediction.device)
        return dynamics, torch.zeros_like(dynamics)
    tile = configs.tile_for(features)
    shares = empty_shares(prediction, tile)
    with configs.on_device(prediction):
        lifted_loss_kernel[configs.grid(plans, steps, features, tile)](
            prediction,
            trajectory,
            goal,
            feature_weight,
            time_weight,
            *shares,
            *trajectory.stride()[:2],
            steps,
            features,
            shares[0].shape[-1],
            VECTOR=configs.vector(prediction, trajectory, goal, feature_weight),
            **configs.launch(features, tile),
        )
        return sum_feature_tiles(*shares, plans, steps)
