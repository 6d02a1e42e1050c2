"""The sync phase: gradient steps on the actions through the true rollout, written out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from grasp_kernels.reference.action_step import action_update_
from grasp_kernels.reference.mlp_rollout import mlp_rollout, mlp_rollout_backward


def mlp_sync_(
    trajectory: Tensor,
    actions: Tensor,
    best_cost: Tensor,
    best_actions: Tensor,
    best_states: Tensor,
    sound: Tensor,
    start: Tensor,
    goal: Tensor,
    lr: Tensor,
    cost_weight: Tensor | None,
    low: Tensor | None,
    high: Tensor | None,
    weights: Tensor,
    constants: Tensor,
    structure: Sequence[int],
    steps: int,
    adam: bool,
    beta1: float,
    beta2: float,
    epsilon: float,
    stop_cost: float,
    blend: float,
    free_terminal: bool,
) -> None:
    """`steps` times: roll out, keep the best, step on `|s_T - g|^2`; then roll out once more.

    A rollout that is finite and cheaper than `best_cost (N,)` replaces `best_actions` and
    `best_states`. A plan whose best cost is at most `stop_cost` does not move. At the end the free
    rows of `trajectory` move by `blend` towards the last rollout, where that is finite.
    """
    model = weights, constants, structure
    w = goal.new_ones(goal.shape[-1]) if cost_weight is None else cost_weight
    first_moment = torch.zeros_like(actions) if adam else None
    second_moment = torch.zeros_like(actions) if adam else None
    for step in range(steps + 1):
        states = mlp_rollout(start, actions, *model)
        error = states[:, -1] - goal
        cost = (w * error.square()).sum(-1)
        arrived = torch.isfinite(cost) & torch.isfinite(states).flatten(1).all(1)
        sound &= arrived
        better = arrived & (cost < best_cost)
        best_cost.copy_(torch.where(better, cost, best_cost))
        for best, found in ((best_actions, actions), (best_states, states)):
            best.copy_(torch.where(better[:, None, None], found, best))
        if step == steps:
            break
        cotangent = torch.zeros_like(states)
        cotangent[:, -1] = 2 * w * error
        _, gradient = mlp_rollout_backward(cotangent, states, actions, *model)
        sound &= torch.isfinite(gradient).flatten(1).all(1)
        action_update_(
            actions,
            gradient,
            first_moment,
            second_moment,
            torch.where(best_cost > stop_cost, lr, 0.0),
            low,
            high,
            (beta1, beta2),
            epsilon,
            (1 - beta1 ** (step + 1), 1 - beta2 ** (step + 1)),
        )
    if blend > 0:
        inner = trajectory[:, 1 : trajectory.shape[1] - (not free_terminal)]
        reached = states[:, 1 : 1 + inner.shape[1]]
        moved = reached if blend == 1 else inner.lerp(reached, blend)  # whatever `inner` was
        inner.copy_(torch.where(arrived[:, None, None], moved, inner))
