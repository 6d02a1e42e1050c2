"""The lifted loss and its reshaped gradient, written out (docs/method.md).

    residual_t   = prediction_t - trajectory_{t+1}
    goal_error_t = prediction_t - goal
    dynamics     = sum_t w . residual_t^2             goal = sum_t v_t (w . goal_error_t^2)

`goal_weight` and the cotangents may be a number or one value per plan `(N,)`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class LiftedLoss(NamedTuple):
    """The lifted objective per plan. Each `(N,)`, or `(N, T)` where asked per step."""

    dynamics: Tensor
    """Squared model error of the virtual states, `sum_t w . residual_t^2`."""
    goal: Tensor
    """Squared distance of the predictions to the goal, `sum_t v_t w . goal_error_t^2`."""
    total: Tensor
    """`dynamics + goal_weight * goal`."""


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Narrow storage is computed in float32; float64 stays float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def per_plan(value: float | Tensor, like: Tensor) -> Tensor:
    """A number or `(N,)` tensor, shaped to broadcast against `(N, T, D)`."""
    return torch.as_tensor(value, dtype=like.dtype, device=like.device).reshape(-1, 1, 1)


def block_sum(values: Tensor, block: int = 1024) -> Tensor:
    """Sum over the last axis in blocks of fixed size: one thread or eight, the same bits.

    torch splits a long sum of a single row among its threads, wherever they are.
    """
    length = values.shape[-1]
    if length <= block:
        return values.sum(-1)
    padded = torch.nn.functional.pad(values, (0, -length % block))
    return padded.unflatten(-1, (-1, block)).sum(-1).sum(-1)


def residuals(
    prediction: Tensor,
    trajectory: Tensor,
    goal: Tensor,
    feature_weight: Tensor | None,
    time_weight: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`residual (N,T,D)`, `goal_error (N,T,D)`, `w (D,)`, `v (T,1)`, all in the compute dtype."""
    dtype = compute_dtype(prediction.dtype)
    prediction, trajectory, goal = prediction.to(dtype), trajectory.to(dtype), goal.to(dtype)
    w = prediction.new_ones(goal.shape[-1]) if feature_weight is None else feature_weight.to(dtype)
    v = prediction.new_ones(prediction.shape[1]) if time_weight is None else time_weight.to(dtype)
    return prediction - trajectory[:, 1:], prediction - goal[:, None], w, v[:, None]


def lifted_loss(
    prediction: Tensor,
    trajectory: Tensor,
    goal: Tensor,
    *,
    goal_weight: float | Tensor,
    feature_weight: Tensor | None = None,
    time_weight: Tensor | None = None,
    per_step: bool = False,
) -> LiftedLoss:
    """Plain torch, differentiable by autograd: the oracle for the hand-written backward."""
    residual, goal_error, w, v = residuals(
        prediction, trajectory, goal, feature_weight, time_weight
    )
    dynamics = block_sum(w * residual**2)
    goal_term = block_sum(v * (w * goal_error**2))
    total = dynamics + per_plan(goal_weight, dynamics)[..., 0] * goal_term
    if per_step:
        return LiftedLoss(dynamics, goal_term, total)
    return LiftedLoss(block_sum(dynamics), block_sum(goal_term), block_sum(total))


def lifted_loss_backward(
    dynamics_cotangent: Tensor,
    goal_cotangent: Tensor,
    prediction: Tensor,
    trajectory: Tensor,
    goal: Tensor,
    *,
    feature_weight: Tensor | None = None,
    time_weight: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradients for `prediction` and `trajectory`, from those of the per-step losses `(N, T)`."""
    residual, goal_error, w, v = residuals(
        prediction, trajectory, goal, feature_weight, time_weight
    )
    along_dynamics = 2 * w * dynamics_cotangent[..., None].to(residual.dtype) * residual
    along_goal = 2 * w * goal_cotangent[..., None].to(residual.dtype) * v * goal_error
    trajectory_gradient = torch.zeros_like(trajectory, dtype=residual.dtype)
    trajectory_gradient[:, 1:] = -along_dynamics
    return (along_dynamics + along_goal).to(prediction.dtype), trajectory_gradient.to(
        trajectory.dtype
    )
