"""The gradient's norm by time step: what a planner feels of the first step, and of the last."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from grasp_planner.diagnostics.setting import Setting, checked, checked_actions, straight_line


@dataclass(frozen=True, eq=False)
class GradientNorms:
    """Euclidean norms of gradients by time step, float64 on the CPU; NaN where the model is.

    Attributes:
        shooting_actions: `(B, T)`, of the cost at the end of the rollout for a_t, t = 0 ... T - 1,
            per unit of action.
        shooting_states: `(B, T)`, of that cost for the rollout's s_t, t = 1 ... T, per unit of
            scaled state: how loud the end of the rollout is at step t.
        lifted_actions: `(B, T)`, of the lifted objective for a_t, at the virtual states.
    """

    shooting_actions: Tensor
    shooting_states: Tensor
    lifted_actions: Tensor


def gradient_norms(
    setting: Setting, actions: Tensor, states: Tensor | None = None
) -> GradientNorms:
    """Gradient norms by time step of B plans, one for each problem.

    Args:
        setting: world model and B problems.
        actions: `(B, T, A)`.
        states: `(B, T + 1, D)` unscaled virtual states for the lifted objective, of which those
            inside count; None is the straight line from start to goal.

    Raises:
        TypeError, ValueError: an argument is wrong; it is named.
    """
    actions = checked_actions(setting, actions, plans=len(setting))
    plans, steps, width = actions.shape
    model, dtype, _ = setting.precise(width)
    start, goal = setting.scaled(setting.start).to(dtype), setting.scaled(setting.goal).to(dtype)
    each = torch.arange(plans, device=actions.device)
    if states is None:
        trajectory = straight_line(start, goal, steps)
    else:
        given = checked("states", states, "(B, T + 1, D)", 3)
        expected = (plans, steps + 1, start.shape[1])
        if given.shape != expected:
            raise ValueError(f"states must be {expected}, got {tuple(given.shape)}")
        trajectory = setting.scaled(given).to(dtype)

    with torch.enable_grad():
        controls = [step.requires_grad_() for step in actions.to(dtype).unbind(1)]
        reached, state = [], start
        for control in controls:
            state = model(state, control)
            reached.append(state)
        cost = setting.costs(state, each).sum()
        found = torch.autograd.grad(cost, [*controls, *reached], materialize_grads=True)

        joint = torch.stack([control.detach() for control in controls], 1).requires_grad_()
        inputs = trajectory[:, :-1].flatten(0, 1)
        prediction = model(inputs, joint.flatten(0, 1)).unflatten(0, (plans, steps))
        defects = (prediction[:, :-1] - trajectory[:, 1:-1]).square().sum()
        lifted = defects + setting.costs(prediction[:, -1], each).sum()
        (by_joint,) = torch.autograd.grad(lifted, joint)

    def norms(gradients: Tensor) -> Tensor:
        return gradients.norm(dim=-1).double().cpu()

    return GradientNorms(
        norms(torch.stack(found[:steps], 1)),
        norms(torch.stack(found[steps:], 1)),
        norms(by_joint),
    )
