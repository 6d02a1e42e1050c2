"""Autograd wrappers whose backward is the reshaped gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class LiftedLossFunction(torch.autograd.Function):
    """Per-step losses `(dynamics, goal_error)`, each `(N, T)`, from one fused pass.

    With `gd`, `gg` the gradients that arrive for the two losses, the backward is

        prediction        2 w (gd residual_t + gg v_t goal_error_t)
        trajectory_{t+1}  -2 w gd residual_t                             row 0 gets zero
        goal              -sum_t 2 w gg v_t goal_error_t

    With gd = 1 and gg = goal_weight the first is the cotangent that `lifted_step_` returns.

    These are the exact derivatives of the loss in its three arguments. What the *model* passes on
    from `prediction` to its own inputs is the caller's graph: `scale_state_gradient` cuts or
    weakens that path.
    """

    @staticmethod
    def forward(
        prediction: Tensor,
        trajectory: Tensor,
        goal: Tensor,
        feature_weight: Tensor | None,
        time_weight: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        return torch.ops.grasp_kernels.lifted_loss(
            prediction, trajectory, goal, feature_weight, time_weight
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, dynamics_cotangent: Tensor, goal_cotangent: Tensor
    ) -> tuple[Tensor | None, ...]:
        prediction, trajectory, goal, w, v = ctx.saved_tensors
        prediction_gradient, trajectory_gradient = torch.ops.grasp_kernels.lifted_loss_backward(
            dynamics_cotangent, goal_cotangent, prediction, trajectory, goal, w, v
        )
        goal_gradient = None
        if ctx.needs_input_grad[2]:  # rare, so plain torch
            dtype = goal_cotangent.dtype
            error = prediction.to(dtype) - goal.to(dtype)[:, None]
            error = error if w is None else w * error
            scale = goal_cotangent if v is None else goal_cotangent * v
            goal_gradient = (-2 * scale[..., None] * error).sum(1).to(goal.dtype)
        return prediction_gradient, trajectory_gradient, goal_gradient, None, None


class ScaleGradient(torch.autograd.Function):
    """Identity forward; the gradient is multiplied by `scale` on its way back."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return states.view_as(states)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.scale * gradient, None


def scale_state_gradient(states: Tensor, state_gradient_scale: float = 0.0) -> Tensor:
    """`states`, as the model should see them: the gradient through this input is scaled.

    0 (GRASP) cuts the path: the model is differentiated for its actions only. 1 leaves ordinary
    autograd, as in latent collocation. In between it is down-weighted.

        prediction = model(scale_state_gradient(trajectory[:, :-1]), actions)
        lifted_loss(prediction, trajectory, goal, goal_weight=0.05).total.sum().backward()
    """
    if state_gradient_scale == 0.0:
        return states.detach()
    if state_gradient_scale == 1.0:
        return states
    return ScaleGradient.apply(states, state_gradient_scale)
