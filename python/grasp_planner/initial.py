"""The variables of a lifted plan as it begins: trajectory, actions, and what is tabulated before.

Symbols: N plans, T steps, D state features, A action features, K iterations.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from grasp_kernels import gaussian_noise
from grasp_planner.blocks import first_of_blocks, hold_actions
from grasp_planner.config import GraspConfig
from grasp_planner.schedules import Schedule

if TYPE_CHECKING:
    from grasp_planner.lifted_plans import LiftedPlans

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


def state_noise(plans: LiftedPlans, *, iteration: int, first_step: int, steps: int) -> Tensor:
    """The noise `(N, steps, D)` of rows `first_step ...` of the trajectory."""
    config = plans.config
    return gaussian_noise(
        len(plans.start),
        steps,
        plans.problem.state_features,
        seed=config.seed,
        iteration=iteration,
        plan_ids=plans.plan_ids,
        noise=config.noise,
        modes=config.noise_modes,
        first_step=first_step,
        horizon=config.horizon,
        dtype=plans.start.dtype,
    )


def initialise(plans: LiftedPlans) -> tuple[Tensor, Tensor]:
    """The first trajectory `(N, T + 1, D)` and actions `(N, T, A)`."""
    config, problem, model = plans.config, plans.problem, plans.model
    steps, start, goal = config.horizon, plans.start, plans.goal
    actions = problem.actions.repeat_interleave(config.candidates, 0)
    if config.initial_actions_scale:
        xi = gaussian_noise(
            len(start),
            steps,
            problem.action_features,
            seed=config.seed,
            iteration=INITIAL_ACTIONS,
            plan_ids=plans.plan_ids,
            noise="white" if config.noise == "white" else "bridge",
            modes=config.noise_modes,
            dtype=actions.dtype,
        )
        xi = hold_actions(first_of_blocks(xi, config.hold), config.hold, steps)
        # The first candidate of each problem keeps the actions as given, so a warm start is never
        # lost.
        first = torch.arange(len(start), device=xi.device) % config.candidates == 0
        actions += torch.where(first[:, None, None], 0.0, config.initial_actions_scale * xi)
    if problem.action_low is not None:
        actions = actions.maximum(problem.action_low)
    if problem.action_high is not None:
        actions = actions.minimum(problem.action_high)
    if config.initialization == "rollout" or problem.warm:
        blocks = plan_blocks(len(start), config.max_rows)
        parts = [model.rollout(start[rows], actions[rows]) for rows in blocks]
        trajectory = (
            torch.cat(parts) if parts else actions.new_empty(0, steps + 1, problem.state_features)
        )
    else:
        progress = torch.linspace(0, 1, steps + 1, dtype=actions.dtype, device=actions.device)
        state = start[:, : problem.state_features]
        trajectory = torch.lerp(state[:, None], goal[:, None], progress[:, None])
    if config.initial_noise_scale and config.noise != "none":
        xi = state_noise(plans, iteration=INITIALISATION, first_step=1, steps=steps - 1)
        trajectory[:, 1:-1] += config.initial_noise_scale * xi
    if plans.terminal == "fixed":
        trajectory[:, -1] = goal
    return trajectory.contiguous(), actions


def plan_blocks(plans: int, max_rows: int | None) -> list[slice]:
    """All plans in blocks of at most `max_rows`."""
    rows = max_rows or max(plans, 1)
    return [slice(n, n + rows) for n in range(0, plans, rows)]
