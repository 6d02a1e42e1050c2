"""Many lifted iterations through an MLP world model, written out (docs/method.md)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from grasp_kernels.reference.action_step import action_update_
from grasp_kernels.reference.lifted_step import lifted_step_
from grasp_kernels.reference.mlp_dynamics import backward, forward, unpack


def mlp_lifted_plan_(
    trajectory: Tensor,
    actions: Tensor,
    first_moment: Tensor | None,
    second_moment: Tensor | None,
    sound: Tensor,
    goal: Tensor,
    schedule: Tensor,
    rates: Tensor,
    plan_ids: Tensor,
    feature_weight: Tensor | None,
    low: Tensor | None,
    high: Tensor | None,
    weights: Tensor,
    constants: Tensor,
    structure: Sequence[int],
    seed: int,
    first_iteration: int,
    noise: str,
    modes: int,
    free_terminal: bool,
    beta1: float,
    beta2: float,
    epsilon: float,
    first_step: int,
) -> Tensor:
    """Iterations `first_iteration, ...`, one per row of `schedule (K, 2)`.

    A row is a goal weight and a noise scale. `rates (N, 3)`: state step, factor on the noise,
    action step. `first_step` is the number of the first of Adam's steps. Returns the total loss
    before each iteration's step, `(K, N)`; `sound (N,)` becomes False where a loss or a gradient is
    not finite.
    """
    network = unpack(weights, constants, structure)
    state_lr, noise_factor, action_lr = rates.unbind(-1)
    history = rates.new_empty(len(schedule), len(trajectory))
    for k, (goal_weight, noise_scale) in enumerate(schedule):
        prediction, saved = forward(network, trajectory[:, :-1], actions)
        loss, cotangent = lifted_step_(
            trajectory,
            prediction,
            goal,
            state_lr=state_lr,
            goal_weight=goal_weight,
            noise_scale=noise_scale * noise_factor,
            seed=seed,
            iteration=first_iteration + k,
            plan_ids=plan_ids,
            noise=noise,
            modes=modes,
            feature_weight=feature_weight,
            terminal="free" if free_terminal else "fixed",
        )
        _, gradient = backward(network, saved, cotangent)
        history[k] = loss.total
        sound &= torch.isfinite(loss.total) & torch.isfinite(gradient).flatten(1).all(1)
        corrections = 1 - beta1 ** (first_step + k), 1 - beta2 ** (first_step + k)
        action_update_(
            actions,
            gradient,
            first_moment,
            second_moment,
            action_lr,
            low,
            high,
            (beta1, beta2),
            epsilon,
            corrections,
        )
    return history
