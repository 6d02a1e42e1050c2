"""The public call of the second-order lifted step: arguments checked, named in every error.

N plans, T time steps, D state features, A action features, as everywhere.
"""

from __future__ import annotations

import torch
from torch import Tensor

from grasp_kernels.checks import (
    Scalar,
    box_bounds,
    check_int,
    check_like,
    check_tensor,
    check_writable,
    per_plan_columns,
    weight_vector,
)
from grasp_kernels.ops import op
from grasp_kernels.reference import LiftedNewtonStep

DTYPES = (torch.float32, torch.float64)
MAX_SOLVES = 64

newton_step_op = op("lifted_newton_step_")


@torch.no_grad()
def lifted_newton_step_(
    trajectory: Tensor,
    actions: Tensor,
    prediction: Tensor,
    state_jacobian: Tensor,
    action_jacobian: Tensor,
    goal: Tensor,
    *,
    damping: Scalar,
    goal_weight: Tensor | None = None,
    hold: int = 1,
    low: Scalar | None = None,
    high: Scalar | None = None,
    max_action_step: float = torch.inf,
    max_state_step: float = torch.inf,
    solves: int = 2,
    compare_bounds: bool = True,
) -> LiftedNewtonStep:
    """One damped Gauss-Newton step of the lifted problem, on states and held actions together.

        minimise |sqrt(w) (x_T - goal)|^2   subject to   x_{t+1} = F(x_t, a_t)

    with F linearised at every (trajectory_t, actions_t) at once: nothing is serial but two scans of
    small matrices. The least squares step of the actions is damped (Levenberg, Marquardt), the
    states follow the linearised model and so close their defects. The exact formula is that of
    `grasp_kernels.reference.lifted_newton_step_`.

    Args:
        trajectory: `(N, T + 1, D)`, float32 or float64, updated in place but for row 0.
        actions: `(N, T, A)`, same dtype and device, updated in place; equal within blocks of
            `hold`. What lies outside the box is brought inside.
        prediction, state_jacobian, action_jacobian: `(N, T, D)`, `(N, T, D, D)`, `(N, T, D, A)`,
            F and its derivatives at `(trajectory_t, actions_t)`: what `mlp_jacobians` returns.
        goal: `(N, D)`.
        damping: lambda >= 0, a number or one per plan `(N,)`, relative to the mean squared
            sensitivity of the goal error.
        goal_weight: `w (D,)`, floating, >= 0; None is 1. A feature of weight 0 is free.
        hold: steps of a block; the last may be shorter.
        low, high: the box, a number or `(A,)`; None is unbounded.
        max_action_step, max_state_step: largest change of one number, >= 0.
        solves: how often the least squares are solved. Every time after the first, actions that
            stand at a bound and are pushed outward are left out, and the others take over.
        compare_bounds: refuse bounds that cross and negative weights and damping, which reads them
            (on CPU; those on a GPU are never read). A loop that has compared its own once passes
            False.

    Returns:
        `LiftedNewtonStep(goal_error, defect, step)`, each `(N,)`.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape, dtype or device; it is named.
    """
    check_tensor("actions", actions, (None, None, None), "(N, T, A)")
    if actions.dtype not in DTYPES:
        raise TypeError(f"actions must be one of {DTYPES}, got {actions.dtype}")
    plans, steps, width = actions.shape
    if steps < 1:
        raise ValueError("actions must have at least one time step, got T = 0")
    check_tensor("trajectory", trajectory, (plans, steps + 1, None), "(N, T + 1, D)")
    features = trajectory.shape[2]
    if width < 1 or features < 1:
        raise ValueError(f"A and D must be at least 1, got A = {width}, D = {features}")
    for name, tensor, shape, meaning in (
        ("trajectory", trajectory, (plans, steps + 1, features), "(N, T + 1, D)"),
        ("prediction", prediction, (plans, steps, features), "(N, T, D)"),
        ("state_jacobian", state_jacobian, (plans, steps, features, features), "(N, T, D, D)"),
        ("action_jacobian", action_jacobian, (plans, steps, features, width), "(N, T, D, A)"),
        ("goal", goal, (plans, features), "(N, D)"),
    ):
        check_tensor(name, tensor, shape, meaning)
        check_like(name, tensor, "actions", actions)
    check_writable("trajectory", trajectory)
    check_writable("actions", actions)
    check_int("hold", hold, 1, 2**31 - 1)
    check_int("solves", solves, 1, MAX_SOLVES)
    for name, value in (("max_action_step", max_action_step), ("max_state_step", max_state_step)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
            raise ValueError(f"{name} must be a number >= 0, got {value!r}")
    low, high = box_bounds(low, high, actions, compare_bounds)
    weight = weight_vector("goal_weight", goal_weight, features, "(D,)", actions)
    damping = per_plan_columns({"damping": damping}, actions)[:, 0]
    if compare_bounds:
        _check_not_negative("goal_weight", weight)
        _check_not_negative("damping", damping)
    found = newton_step_op(
        trajectory,
        actions,
        prediction,
        state_jacobian,
        action_jacobian,
        goal,
        damping,
        weight,
        low,
        high,
        hold,
        float(max_action_step),
        float(max_state_step),
        solves,
    )
    return LiftedNewtonStep(*found)


def _check_not_negative(name: str, value: Tensor | None) -> None:
    """Reads `value`, so not on a GPU and not while compiling. A NaN passes: its plan shows it."""
    if value is None or value.device.type != "cpu" or torch.compiler.is_compiling():
        return
    if bool((value < 0).any()):
        raise ValueError(f"{name} must not be negative, got {value.min().item():g}")
