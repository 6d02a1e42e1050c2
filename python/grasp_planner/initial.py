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
    from grasp_planner.synced_plans import SyncedPlans

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


def state_noise(plans: SyncedPlans, *, iteration: int, rows: range) -> Tensor:
    """The noise `(N, len(rows), D)` of these rows of the trajectory."""
    config = plans.config
    return gaussian_noise(
        len(plans.start),
        len(rows),
        plans.problem.state_features,
        seed=config.seed,
        iteration=iteration,
        plan_ids=plans.plan_ids,
        noise=config.noise,
        modes=config.noise_modes,
        first_step=plans.first + rows.start,
        horizon=plans.horizon,
        dtype=plans.start.dtype,
    )


def initialise(plans: SyncedPlans) -> tuple[Tensor, Tensor]:
    """The first trajectory `(N, T + 1, D)` and actions `(N, T, A)`."""
    config, problem = plans.config, plans.problem
    steps, start, goal = config.horizon, plans.start, plans.goal
    actions = problem.actions.repeat_interleave(plans.candidates, 0)
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
            first_step=plans.first,
            horizon=plans.horizon,
            dtype=actions.dtype,
        )
        xi = hold_actions(first_of_blocks(xi, config.hold), config.hold, steps)
        kept = plans.as_given[:, None, None]
        actions += torch.where(kept, 0.0, config.initial_actions_scale * xi)
    if problem.action_low is not None:
        actions = actions.maximum(problem.action_low)
    if problem.action_high is not None:
        actions = actions.minimum(problem.action_high)
    if config.initialization == "rollout" or problem.warm:
        trajectory = plans.imagine(actions)
    else:
        progress = torch.linspace(
            0, 1, plans.horizon + 1, dtype=actions.dtype, device=actions.device
        )[plans.first : plans.first + steps + 1]
        state = start[:, : problem.state_features]
        trajectory = torch.lerp(state[:, None], goal[:, None], progress[:, None])
    if config.initial_noise_scale and config.noise != "none":
        inner = range(1, steps + (not plans.ends))  # the last row of all stays
        xi = state_noise(plans, iteration=INITIALISATION, rows=inner)
        trajectory[:, inner.start : inner.stop] += config.initial_noise_scale * xi
    if plans.terminal == "fixed" and plans.ends:
        trajectory[:, -1] = goal
    return trajectory.contiguous(), actions


def plan_blocks(plans: int, max_rows: int | None) -> list[slice]:
    """All plans in blocks of at most `max_rows`."""
    rows = max_rows or max(plans, 1)
    return [slice(n, n + rows) for n in range(0, plans, rows)]
