"""The planner's loop for MLP world models, in a handful of launches.

`planner._Search.run` calls the model and the fused step from Python, iteration by iteration. Where
the model is an MLP that `grasp_kernels.MLPDynamics` can describe, one launch runs all iterations
from one sync to the next, and one more the sync. Same variables, same noise, same plans.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from grasp_kernels import MLPDynamics, mlp_lifted_plan_, mlp_sync_
from grasp_planner.config import GAUSS_NEWTON, GraspConfig
from grasp_planner.models import describe

if TYPE_CHECKING:
    from grasp_planner.planner import _Search

WHOLE_PLAN = "whole-plan MLP kernels"
LAUNCH = 100  # iterations at most, so that Ctrl-C and `progress` never wait for long


def find_dynamics(
    world_model: Any, config: GraspConfig, start: Tensor, state_scale: Tensor | None
) -> tuple[MLPDynamics | None, str]:
    """A world model's description that these kernels can plan through; or None, and why not."""
    if config.state_optimizer != "sgd":
        reason = f"state_optimizer is {config.state_optimizer!r}"
    elif config.state_gradient_scale != 0.0:
        reason = f"state_gradient_scale is {config.state_gradient_scale}"
    elif config.hold != 1:
        reason = f"actions are held for {config.hold} steps"
    else:
        dynamics, reason = describe(world_model, start, state_scale)
        if dynamics is not None:
            return dynamics, WHOLE_PLAN
    return None, f"general path: {reason}"


def run(
    search: _Search,
    dynamics: MLPDynamics,
    snapshots: frozenset[int],
    progress: Callable[[int], object] | None,
) -> None:
    """What `search.run` does: iterations, every so often a sync, and a last one."""
    config = search.config
    sync(search, dynamics, 0, follow=False)
    search.snapshot(0, snapshots)
    for first, last in launches(config, snapshots):
        iterate(search, dynamics, first, last)
        search.iteration, search.model_calls = last, search.model_calls + 2 * (last - first + 1)
        if config.sync_every and last % config.sync_every == 0 and last < config.iterations:
            sync(search, dynamics, config.sync_steps)
        search.snapshot(last, snapshots)
        if progress is not None:
            for k in range(first, last + 1):
                progress(k)
        if search.budget.check():
            break
    sync(search, dynamics, 0 if search.budget.spent else config.final_sync_steps)


def launches(config: GraspConfig, snapshots: frozenset[int]) -> Iterator[tuple[int, int]]:
    """Iterations `first ... last` that run in one launch: up to a sync, a snapshot, or `LAUNCH`."""
    first = 1
    for k in range(1, config.iterations + 1):
        synced = config.sync_every and k % config.sync_every == 0
        if synced or k in snapshots or k - first + 1 == LAUNCH or k == config.iterations:
            yield first, k
            first = k + 1


def iterate(search: _Search, dynamics: MLPDynamics, first: int, last: int) -> None:
    """Lifted iterations `first ... last`: states, actions and losses."""
    config, problem = search.config, search.problem
    search.loss_history[first - 1 : last] = mlp_lifted_plan_(
        dynamics,
        search.trajectory,
        search.actions,
        problem.goal,
        search.action_memory,
        schedule=search.schedule[first - 1 : last],
        first_iteration=first,
        state_lr=config.state_lr * search.active,
        action_lr=config.action_lr * search.active,
        noise_factor=search.active,
        seed=config.seed,
        plan_ids=problem.plan_ids,
        noise=config.noise,
        modes=config.noise_modes,
        feature_weight=problem.feature_weight,
        low=problem.action_low,
        high=problem.action_high,
        terminal=config.terminal,
        optimizer=config.action_optimizer,
        sound=search.sound,
        compare_bounds=False,
    )


def sync(search: _Search, dynamics: MLPDynamics, steps: int, follow: bool = True) -> None:
    """Gradient steps through the true rollout; the best is kept, the states follow."""
    config, problem = search.config, search.problem
    if config.sync_optimizer == GAUSS_NEWTON:
        search.gauss_newton(steps)
        steps = 0
    search.model_calls += config.horizon * (2 * steps + 1)
    mlp_sync_(
        dynamics,
        search.trajectory,
        search.actions,
        search.best_cost,
        search.best_actions,
        search.best_states,
        problem.start,
        problem.goal,
        steps=steps,
        lr=config.sync_lr,
        cost_weight=problem.goal_feature_weight,
        low=problem.action_low,
        high=problem.action_high,
        optimizer="adam" if steps == 0 else config.sync_optimizer,
        stop_cost=config.stop_cost,
        blend=config.sync_blend if follow else 0.0,
        terminal=config.terminal,
        sound=search.sound,
        compare_bounds=False,
    )
    if config.stop_cost is not None:
        search.active = (search.best_cost > config.stop_cost).to(torch.float32)
    search.tell()
