"""The planner's loop for MLP world models, in a handful of launches.

`planner._Search.run` calls the model and the fused step from Python, iteration by iteration. Where
the model is an MLP that `grasp_kernels.MLPDynamics` can describe, one launch runs all iterations
from one sync to the next, and one more the sync. Same variables, same noise, same plans.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from grasp_kernels import MLPDynamics, UnsupportedModel, mlp_lifted_plan_, mlp_rollout, mlp_sync_
from grasp_kernels.backends import choose
from grasp_planner.config import GraspConfig

if TYPE_CHECKING:
    from grasp_planner.planner import _Search

WHOLE_PLAN = "whole-plan MLP kernels"
LAUNCH = 100  # iterations at most, so that Ctrl-C and `progress` never wait for long


class GeneralPathWarning(UserWarning):
    """An MLP world model is planned through call by call; the message says what stands in the way.

    Given once per model.
    """


def find_dynamics(
    world_model: Any, config: GraspConfig, start: Tensor, state_scale: Tensor | None
) -> tuple[MLPDynamics | None, str]:
    """The world model's description for kernels, in the planner's units; or None, and why not.

    A world model is an `MLPDynamics`, or offers one by a method `mlp_dynamics()`, which is compared
    with the model itself before it is believed.
    """
    offer = getattr(world_model, "mlp_dynamics", None)
    if isinstance(world_model, MLPDynamics):
        dynamics = world_model
    elif callable(offer):
        try:
            dynamics = offer()
            dynamics.check_against(world_model)
        except (UnsupportedModel, ValueError) as error:
            _tell_once(world_model, str(error))
            return None, f"general path: {error}"
    else:
        return None, "general path: the world model is no MLPDynamics and offers none"
    return _allowed(dynamics, config, start, state_scale)


def _allowed(
    dynamics: MLPDynamics, config: GraspConfig, start: Tensor, state_scale: Tensor | None
) -> tuple[MLPDynamics | None, str]:
    backend = choose(start.device, start.dtype)
    if config.state_optimizer != "sgd":
        reason = f"state_optimizer is {config.state_optimizer!r}"
    elif config.state_gradient_scale != 0.0:
        reason = f"state_gradient_scale is {config.state_gradient_scale}"
    elif start.dtype != dynamics.compute_dtype:
        reason = f"states are {start.dtype}"
    elif start.shape[1] != dynamics.state_features:
        reason = f"states have {start.shape[1]} features"  # the model's own error comes next
    elif backend == "reference":
        reason = "there are no fused kernels here"
    elif not _fits(backend, dynamics):
        reason = "the model is too wide for the GPU kernels"
    else:
        return dynamics.in_units(state_scale), WHOLE_PLAN
    return None, f"general path: {reason}"


def _fits(backend: str, dynamics: MLPDynamics) -> bool:
    if backend == "native":
        return True
    from grasp_kernels.triton import mlp_fits

    return bool(mlp_fits(dynamics.structure))


_told: weakref.WeakSet[Any] = weakref.WeakSet()


def _tell_once(world_model: Any, reason: str) -> None:
    if world_model not in _told:
        _told.add(world_model)
        message = f"planning call by call, not by whole-plan kernels: {reason}"
        warnings.warn(message, GeneralPathWarning, stacklevel=4)


class Rollouts:
    """Stands in for `CheckedModel` where rollouts are all that is asked of it."""

    def __init__(self, dynamics: MLPDynamics) -> None:
        self.dynamics = dynamics

    def rollout(self, start: Tensor, actions: Tensor, max_rows: int | None = None) -> Tensor:
        """States `(N, T + 1, D)`; memory does not grow with T, so `max_rows` is met by itself."""
        return mlp_rollout(self.dynamics, start, actions)


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
        if config.sync_every and last % config.sync_every == 0 and last < config.iterations:
            sync(search, dynamics, config.sync_steps)
        search.snapshot(last, snapshots)
        if progress is not None:
            for k in range(first, last + 1):
                progress(k)
    sync(search, dynamics, config.final_sync_steps)


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
        optimizer=config.sync_optimizer,
        stop_cost=config.stop_cost,
        blend=config.sync_blend if follow else 0.0,
        terminal=config.terminal,
        sound=search.sound,
        compare_bounds=False,
    )
    if config.stop_cost is not None:
        search.active = (search.best_cost > config.stop_cost).to(torch.float32)
