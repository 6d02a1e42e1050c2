"""One lifted Gauss-Newton step on whole plans: states and held actions together, written out.

All time steps are linearised at once, so what is serial in time is two scans of small products:
back, to see the final state as a function of every action, and forth, to move the states.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

JITTER = 1e-6
"""Damping that is always there, relative to the mean eigenvalue of `S S^T`: without it a goal that
the actions cannot reach in full has no least squares step."""


class LiftedNewtonStep(NamedTuple):
    """What one step of every plan met; each `(N,)`."""

    goal_error: Tensor
    """`|e|^2`, the weighted squared goal error where the linearised rollout ends, before the
    step."""
    defect: Tensor
    """`sum_t |d_t|^2`, squared model error of the virtual states before the step, unweighted."""
    step: Tensor
    """The largest change of an action."""


def lifted_newton_step_(
    trajectory: Tensor,
    actions: Tensor,
    prediction: Tensor,
    state_jacobian: Tensor,
    action_jacobian: Tensor,
    goal: Tensor,
    damping: Tensor,
    goal_weight: Tensor | None,
    low: Tensor | None,
    high: Tensor | None,
    hold: int,
    max_action_step: float,
    max_state_step: float,
    solves: int,
) -> LiftedNewtonStep:
    """`trajectory (N, T + 1, D)` and `actions (N, T, A)` move in place.

        d_t    = prediction_t - trajectory_{t+1}
        L_T    = diag(sqrt(w)),   L_t = L_{t+1} A_t                     rows of weight 0 left out
        e      = sqrt(w) (trajectory_T - goal) + sum_t L_{t+1} d_t
        S_k    = sum_{t in block k} L_{t+1} B_t                         blocks of `hold` steps
        delta  = -S^T (S S^T + mu I)^-1 e,   mu = (damping + JITTER) |S|^2 / Dg

    `solves - 1` times, entries at a bound that `delta` pushes outward leave S, and delta is solved
    for again. A block's action is that of its first step. Then

        actions      <- clip(actions + clip(delta, max_action_step), low, high)
        dx_{t+1}     =  clip(A_t dx_t + B_t step_t + d_t, max_state_step),   dx_0 = 0
        trajectory_t <- trajectory_t + dx_t

    A plan without any influence on its goal, `S = 0`, has `delta = 0`.
    """
    steps, features = prediction.shape[1:]
    hold = min(hold, steps)
    root = prediction.new_ones(features) if goal_weight is None else goal_weight.sqrt()
    weighed = root.nonzero()[:, 0]
    defect = prediction - trajectory[:, 1:]

    through = torch.diag(root)[weighed].expand(len(trajectory), -1, -1)  # L_{t+1}: (N, Dg, D)
    error = (root * (trajectory[:, -1] - goal))[:, weighed]
    influence = []  # L_{t+1} B_t, the last step first
    for t in reversed(range(steps)):
        error = error + (through @ defect[:, t, :, None])[..., 0]
        influence.append(through @ action_jacobian[:, t])
        through = through @ state_jacobian[:, t]
    blocks = torch.stack(influence[::-1], dim=1).split(hold, dim=1)
    sensitivity = torch.stack([block.sum(1) for block in blocks], dim=2)  # S: (N, Dg, K, A)

    held = actions[:, ::hold]
    size = sensitivity.double().square().sum((1, 2, 3))
    mu = (damping.double() + JITTER) * size / max(len(weighed), 1)
    delta = _least_squares(sensitivity, error, mu)
    free = torch.ones_like(held, dtype=torch.bool)
    for _ in range(solves - 1):
        free &= ~_pushed_outward(held, delta, low, high)
        delta = _least_squares(sensitivity * free[:, None], error, mu)

    moved = held + delta.clamp(-max_action_step, max_action_step)
    moved = moved if low is None else moved.maximum(low)
    moved = moved if high is None else moved.minimum(high)
    moved = moved.repeat_interleave(hold, dim=1)[:, :steps]
    step = moved - actions
    actions.copy_(moved)

    change = torch.zeros_like(goal)
    for t in range(steps):
        change = (state_jacobian[:, t] @ change[..., None])[..., 0] + defect[:, t]
        change = change + (action_jacobian[:, t] @ step[:, t, :, None])[..., 0]
        change = change.clamp(-max_state_step, max_state_step)
        trajectory[:, t + 1] += change
    return LiftedNewtonStep(
        error.square().sum(-1), defect.square().sum((1, 2)), step.abs().amax((1, 2))
    )


def _least_squares(sensitivity: Tensor, error: Tensor, mu: Tensor) -> Tensor:
    """`-S^T (S S^T + mu I)^-1 e`, `(N, K, A)`; the small system in float64."""
    rows = sensitivity.double().flatten(2)
    gram = rows @ rows.mT + mu[:, None, None] * torch.eye(rows.shape[1]).to(rows)
    factor = torch.linalg.cholesky_ex(gram)[0]  # S = 0: its NaN is replaced below
    forces = torch.cholesky_solve(error.double()[..., None], factor)
    delta = -(rows.mT @ forces)[..., 0].unflatten(1, sensitivity.shape[2:])
    return torch.where(mu[:, None, None] == 0, 0.0, delta).to(error.dtype)


def _pushed_outward(held: Tensor, delta: Tensor, low: Tensor | None, high: Tensor | None) -> Tensor:
    """Which entries stand at a bound and would leave the box."""
    outward = torch.zeros_like(held, dtype=torch.bool)
    if low is not None:
        outward |= (held <= low) & (delta < 0)
    if high is not None:
        outward |= (held >= high) & (delta > 0)
    return outward
