"""One state step of the lifted problem, written out (docs/method.md)."""

from __future__ import annotations

import torch
from torch import Tensor

from grasp_kernels.reference.gaussian_noise import gaussian_noise
from grasp_kernels.reference.lifted_loss import LiftedLoss, block_sum, per_plan, residuals


def lifted_step_(
    trajectory: Tensor,
    prediction: Tensor,
    goal: Tensor,
    *,
    state_lr: float | Tensor,
    goal_weight: float | Tensor,
    noise_scale: float | Tensor,
    seed: int,
    iteration: int,
    plan_ids: Tensor | None = None,
    noise: str = "white",
    modes: int = 8,
    feature_weight: Tensor | None = None,
    time_weight: Tensor | None = None,
    state_gradient: Tensor | None = None,
    state_gradient_scale: float = 0.0,
    terminal: str = "fixed",
    first_step: int = 0,
    horizon: int | None = None,
    per_step: bool = False,
) -> tuple[LiftedLoss, Tensor]:
    """Losses and cotangent at the present trajectory; then `trajectory` moves, in place.

    Row r of this slice is step `first_step + r` of a plan of `horizon` steps. Row 0 is an input
    only, and the terminal row moves only with `terminal="free"`.
    """
    plans, steps, features = prediction.shape
    horizon = first_step + steps if horizon is None else horizon
    residual, goal_error, w, v = residuals(
        prediction, trajectory, goal, feature_weight, time_weight
    )
    dtype = residual.dtype
    dynamics = block_sum(w * residual**2)
    goal_term = block_sum(v * (w * goal_error**2))
    weight = per_plan(goal_weight, residual)
    cotangent = 2 * w * (residual + weight * v * goal_error)

    gradient = -2 * w * residual
    if state_gradient is not None:
        gradient = gradient + state_gradient_scale * state_gradient[:, 1:].to(dtype)
    xi = gaussian_noise(
        plans,
        steps,
        features,
        seed=seed,
        iteration=iteration,
        plan_ids=plan_ids,
        noise=noise,
        modes=modes,
        first_step=first_step + 1,  # row r + 1 is the row that moves
        horizon=horizon,
        dtype=dtype,
        device=prediction.device,
    )
    move = per_plan(noise_scale, residual) * xi - per_plan(state_lr, residual) * gradient
    rows = torch.arange(first_step + 1, first_step + steps + 1, device=prediction.device)
    moves = (rows < horizon) | (terminal == "free")
    states = trajectory[:, 1:]
    states.copy_(torch.where(moves[:, None], (states.to(dtype) + move).to(states.dtype), states))

    total = dynamics + weight[..., 0] * goal_term
    if per_step:
        return LiftedLoss(dynamics, goal_term, total), cotangent.to(prediction.dtype)
    loss = LiftedLoss(block_sum(dynamics), block_sum(goal_term), block_sum(total))
    return loss, cotangent.to(prediction.dtype)
