"""The variables of a lifted plan as it begins: trajectory, actions, and what is tabulated before.

Symbols: N plans, T steps, D state features, A action features, K iterations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from grasp_kernels import gaussian_noise
from grasp_planner.blocks import first_of_blocks, hold_actions
from grasp_planner.config import GraspConfig
from grasp_planner.inputs import Problem
from grasp_planner.schedules import Schedule

INITIALISATION = 0  # the iteration whose noise belongs to the initial trajectory
INITIAL_ACTIONS = 2**32 - 1  # and the one whose noise belongs to the initial actions


def schedule_table(config: GraspConfig, like: Tensor) -> Tensor:
    """`(K, 2)` on the device: goal weight and noise scale of every iteration."""
    assert isinstance(config.goal_weight, Schedule)
    assert isinstance(config.noise_scale, Schedule)
    count = config.iterations
    rows = [
        (config.goal_weight(k, count), config.noise_scale(k, count)) for k in range(1, count + 1)
    ]
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return torch.tensor(rows, dtype=dtype, device="cpu").reshape(-1, 2).to(like.device)


def state_noise(
    config: GraspConfig, problem: Problem, *, iteration: int, first_step: int, steps: int
) -> Tensor:
    """The noise `(N, steps, D)` of rows `first_step ...` of the trajectory."""
    return gaussian_noise(
        problem.plans,
        steps,
        problem.state_features,
        seed=config.seed,
        iteration=iteration,
        plan_ids=problem.plan_ids,
        noise=config.noise,
        modes=config.noise_modes,
        first_step=first_step,
        horizon=config.horizon,
        dtype=problem.start.dtype,
    )


def initialise(model: Any, config: GraspConfig, problem: Problem) -> tuple[Tensor, Tensor]:
    """The first trajectory `(N, T + 1, D)` and actions `(N, T, A)`."""
    steps = config.horizon
    actions = problem.actions.clone()
    if config.initial_actions_scale:
        xi = gaussian_noise(
            problem.plans,
            steps,
            problem.action_features,
            seed=config.seed,
            iteration=INITIAL_ACTIONS,
            plan_ids=problem.plan_ids,
            noise="white" if config.noise == "white" else "bridge",
            modes=config.noise_modes,
            dtype=actions.dtype,
        )
        xi = hold_actions(first_of_blocks(xi, config.hold), config.hold, steps)
        # The first candidate of each problem keeps the actions as given, so a warm start is never
        # lost.
        first = torch.arange(problem.plans, device=xi.device) % config.candidates == 0
        actions += torch.where(first[:, None, None], 0.0, config.initial_actions_scale * xi)
    if problem.action_low is not None:
        actions = actions.maximum(problem.action_low)
    if problem.action_high is not None:
        actions = actions.minimum(problem.action_high)
    if config.initialization == "rollout" or problem.warm:
        blocks = plan_blocks(problem.plans, config.max_rows)
        parts = [model.rollout(problem.start[plans], actions[plans]) for plans in blocks]
        trajectory = (
            torch.cat(parts) if parts else actions.new_empty(0, steps + 1, problem.state_features)
        )
    else:
        progress = torch.linspace(0, 1, steps + 1, dtype=actions.dtype, device=actions.device)
        trajectory = torch.lerp(problem.start[:, None], problem.goal[:, None], progress[:, None])
    if config.initial_noise_scale and config.noise != "none":
        xi = state_noise(config, problem, iteration=INITIALISATION, first_step=1, steps=steps - 1)
        trajectory[:, 1:-1] += config.initial_noise_scale * xi
    if config.terminal == "fixed":
        trajectory[:, -1] = problem.goal
    return trajectory.contiguous(), actions


def plan_blocks(plans: int, max_rows: int | None) -> list[slice]:
    """All plans in blocks of at most `max_rows`."""
    rows = max_rows or max(plans, 1)
    return [slice(n, n + rows) for n in range(0, plans, rows)]
