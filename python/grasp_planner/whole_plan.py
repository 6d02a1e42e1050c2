"""The planner's loop for MLP world models, in a handful of launches.

`planner.LiftedPlans` calls the model and the fused step from Python, iteration by iteration. Where
the model is an MLP that `grasp_kernels.MLPDynamics` can describe, one launch runs all iterations
from one sync to the next, and one more the sync. Same variables, same noise, same plans.
"""

from __future__ import annotations

import torch

from grasp_kernels import mlp_lifted_plan_, mlp_sync_
from grasp_planner.config import GAUSS_NEWTON, GraspConfig
from grasp_planner.costs import NEVER, Objective
from grasp_planner.goals import is_one_state
from grasp_planner.inputs import Problem
from grasp_planner.lifted_plans import LiftedPlans
from grasp_planner.models import KernelModel
from grasp_planner.search import Search

WHOLE_PLAN = "whole-plan MLP kernels"
LAUNCH = 100  # iterations at most, so that Ctrl-C and `progress` never wait for long


def obstacle(config: GraspConfig, problem: Problem) -> str | None:
    """What of the settings or the problem these kernels do not know; None if nothing."""
    if Objective.of(config, problem, config.iterations).adds:
        return "the config adds to the goal's cost"
    if not is_one_state(problem.target):
        return "the goal is more than one state"
    if config.state_optimizer != "sgd":
        return f"state_optimizer is {config.state_optimizer!r}"
    if config.state_gradient_scale != NEVER:
        return f"state_gradient_scale is {config.state_gradient_scale}"
    if config.kernels != "whole-plan":
        return f"kernels is {config.kernels!r}"
    if config.hold != 1:
        return f"actions are held for {config.hold} steps"
    return None


class WholePlans(LiftedPlans):
    """Lifted plans whose iterations and syncs are launches."""

    def __init__(self, search: Search, share: range | None = None) -> None:
        super().__init__(search, share=share)
        assert isinstance(self.model, KernelModel)
        self.dynamics = self.model.dynamics

    def first_judgement(self) -> None:
        self.sync(0, follow=False)

    def iterate(self, k: int) -> int:
        """Iterations `k ...` until somebody wants to see, save or sync the plans."""
        config, search = self.config, self.search
        ends = [config.iterations, k - 1 + LAUNCH]
        if config.sync_every:
            ends.append(k - 1 + config.sync_every - (k - 1) % config.sync_every)
        ends += [j for j in search.wanted_snapshots if j >= k]
        for stop in (search.watch.next_stop(k - 1), search.checkpoint.next_stop(k - 1)):
            if stop is not None:
                ends.append(stop)
        last = min(ends)
        losses = mlp_lifted_plan_(
            self.dynamics,
            self.trajectory,
            self.actions,
            self.goal,
            self.action_memory,
            schedule=self.schedule[k - 1 : last],
            first_iteration=k,
            state_lr=config.state_lr * self.active,
            action_lr=config.action_lr * self.active,
            noise_factor=self.active,
            seed=config.seed,
            plan_ids=self.plan_ids,
            noise=config.noise,
            modes=config.noise_modes,
            feature_weight=self.problem.feature_weight,
            low=self.problem.action_low,
            high=self.problem.action_high,
            terminal=config.terminal,
            optimizer=config.action_optimizer,
            sound=self.sound,
            compare_bounds=False,
        )
        self.note(k, losses)
        return last

    def sync(self, steps: int, follow: bool = True) -> None:
        """Gradient steps through the true rollout; the best is kept, the states follow."""
        config, problem = self.config, self.problem
        if config.sync_optimizer == GAUSS_NEWTON:
            self.gauss_newton(steps)
            steps = 0
        self.search.model_calls += config.horizon * (2 * steps + 1)
        mlp_sync_(
            self.dynamics,
            self.trajectory,
            self.actions,
            self.best_cost,
            self.best_actions,
            self.best_states,
            self.start,
            self.goal,
            steps=steps,
            lr=config.sync_lr,
            cost_weight=problem.goal_feature_weight,
            low=problem.action_low,
            high=problem.action_high,
            optimizer="adam" if steps == 0 else config.sync_optimizer,
            stop_cost=config.stop_cost,
            blend=config.sync_blend if follow else 0.0,
            terminal=config.terminal,
            sound=self.sound,
            compare_bounds=False,
        )
        # The kernel's plans are compared by their cost alone; nothing else is asked of them.
        self.best_violation = torch.where(torch.isfinite(self.best_cost), 0.0, torch.inf)
        if config.stop_cost is not None:
            self.active = (~self.arrived()).to(self.active.dtype)
