"""GraspPlanner: plan through a world model by lifting the trajectory (arXiv 2602.00475).

Symbols: B problems, R candidates each, N = B R plans, T steps, D state features, A action features.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import Tensor

import grasp_kernels
from grasp_kernels import action_step_, lifted_loss, lifted_step_, scale_state_gradient
from grasp_kernels.reference import block_sum
from grasp_planner import newton, whole_plan
from grasp_planner.blocks import hold_actions, sum_blocks
from grasp_planner.config import GAUSS_NEWTON, GraspConfig
from grasp_planner.initial import initialise, plan_blocks, schedule_table, state_noise
from grasp_planner.inputs import Problem, check_problem, check_snapshots
from grasp_planner.models import KernelModel
from grasp_planner.plan import Plan, warn_non_finite
from grasp_planner.search import Budget, Moment, Planner, Progress, Trace, box
from grasp_planner.world_model import CheckedModel, frozen, needed


class GraspPlanner(Planner):
    """Plans from start to goal through any differentiable world model.

        planner = GraspPlanner(world_model, GraspConfig(horizon=50, action_low=-1.0))
        plan = planner.plan(start, goal)      # start, goal (B, D); plan.actions (B, T, A)

    Args:
        world_model: `F(state (rows, D), action (rows, A)) -> next state (rows, D)`; see
            `WorldModel`.
        config: how to plan.
    """

    config_type = GraspConfig

    def plan(
        self,
        start: Tensor,
        goal: Tensor,
        *,
        actions: Tensor | None = None,
        plan_ids: Tensor | None = None,
        time_budget_ms: float | None = None,
        snapshots: Collection[int] = (),
        progress: Progress | None = None,
        trace: Trace | None = None,
    ) -> Plan:
        """The best plan found for each of B problems.

        Args:
            start, goal: `(B, D)` (or `(D,)` for one problem), finite, same dtype and device.
            actions: `(B, T, A)` warm start. The plan returned is never worse than it.
            plan_ids: `(B,)` int64, 0 <= id < 2**63 / R: the name of each problem for its noise;
                None is 0 ... B - 1. The same id gives the same plan alone, in a batch, or in
                chunks.
            time_budget_ms: milliseconds after which no further iteration begins: after one more
                rollout the best plan so far is returned, and `Plan.out_of_time` says so. At least
                one iteration is made, or one launch of several where the whole plan is in a kernel.
                None is no limit.
            snapshots: iterations (0 is the initialisation) whose virtual states are kept.
            progress: called with k after every iteration is issued.
            trace: called with a `Moment` after the first rollout and after every sync.

        Raises:
            TypeError, ValueError: an argument or the world model's answer is wrong; it is named.
        """
        wanted = check_snapshots(snapshots, self.config.iterations)
        with torch.inference_mode(False), frozen(self.world_model):
            problem = check_problem(
                self.world_model,
                self.config,
                start,
                goal,
                actions,
                plan_ids,
                candidates=self.config.candidates,
            )
            with torch.no_grad():
                dynamics, path = whole_plan.find_dynamics(
                    self.world_model, self.config, problem.start, problem.state_scale
                )
                budget = Budget(time_budget_ms, problem.start.device)
                if dynamics is None:
                    model = CheckedModel(self.world_model, problem.state_scale)
                    search = _Search(model, self.config, problem, budget, trace)
                    search.run(wanted, progress)
                else:
                    search = _Search(KernelModel(dynamics), self.config, problem, budget, trace)
                    whole_plan.run(search, dynamics, wanted, progress)
                return search.result(path)


class _Search:
    """The variables of one call of `plan`, and the loop that moves them."""

    def __init__(
        self,
        model: Any,
        config: GraspConfig,
        problem: Problem,
        budget: Budget,
        trace: Trace | None = None,
    ) -> None:
        self.config = config
        self.budget = budget
        self.trace = trace
        self.iteration = self.model_calls = 0
        self.problem = problem
        self.model = model
        self.schedule = schedule_table(config, problem.start)
        self.trajectory, self.actions = initialise(self.model, config, problem)
        self.action_memory: dict[str, Any] = {}
        self.state_memory: dict[str, Any] = {}
        # Rows 1 ... end - 1 of the trajectory are variables.
        self.end = config.horizon + (config.terminal == "free")
        # 1 while a plan moves, 0 once its rollout is good enough; on the device, never read back.
        self.active = self.schedule.new_ones(problem.plans)
        self.step_loss = self.schedule.new_zeros(problem.plans, config.horizon)
        self.loss_history = self.schedule.new_zeros(config.iterations, problem.plans)
        self.best_cost = self.schedule.new_full((problem.plans,), torch.inf)
        self.best_actions = self.actions.clone()
        # Of a plan without any finite rollout nothing is known but its start.
        self.best_states = torch.full_like(self.trajectory, torch.nan)
        self.best_states[:, 0] = problem.start
        # False once a plan has met a NaN or an infinity anywhere.
        self.sound = torch.ones_like(self.active, dtype=torch.bool)
        self.snapshots: dict[int, Tensor] = {}

    # -------------------------------------------------------------------------------- the loop

    def run(self, snapshots: frozenset[int], progress: Callable[[int], object] | None) -> None:
        config = self.config
        fused = config.state_optimizer == "sgd" and config.state_gradient_scale == 0.0
        self.judge()
        self.tell()
        self.snapshot(0, snapshots)
        for k in range(1, config.iterations + 1):
            gradient = self.fused_pass(k) if fused else self.autograd_pass(k)
            self.loss_history[k - 1] = block_sum(self.step_loss)
            self.sound &= torch.isfinite(self.loss_history[k - 1]) & all_finite(gradient)
            self.iteration, self.model_calls = k, self.model_calls + 2
            self.move_actions(
                gradient, self.action_memory, config.action_lr, config.action_optimizer
            )
            if config.sync_every and k % config.sync_every == 0 and k < config.iterations:
                self.sync(config.sync_steps)
            self.snapshot(k, snapshots)
            if progress is not None:
                progress(k)
            if self.budget.check():
                break
        self.sync(0 if self.budget.spent else config.final_sync_steps)

    def fused_pass(self, k: int) -> Tensor:
        """States step, actions' gradient returned: nothing but the model and the fused kernel."""
        config, problem = self.config, self.problem
        goal_weight, noise_scale = self.schedule[k - 1]
        gradient = torch.empty_like(self.actions)
        for plans, first, last in self.blocks():
            block = self.trajectory[plans, first : last + 1]
            # Always a copy: the block moves before the model is differentiated, and the model's
            # graph may hold its input. A reshape of one plan, or of one step, would be a view.
            states = block[:, :-1].clone(memory_format=torch.contiguous_format).flatten(0, 1)
            with torch.enable_grad():
                actions = self.action_rows(plans, first, last)
                prediction = self.model(states, actions)
            active = self.active[plans]
            loss, cotangent = lifted_step_(
                block,
                prediction.view_as(block[:, 1:]),
                problem.goal[plans],
                state_lr=config.state_lr * active,
                goal_weight=goal_weight,
                noise_scale=noise_scale * active,
                seed=config.seed,
                iteration=k,
                plan_ids=problem.plan_ids[plans],
                noise=config.noise,
                modes=config.noise_modes,
                feature_weight=problem.feature_weight,
                terminal=config.terminal,
                first_step=first,
                horizon=config.horizon,
                per_step=True,
            )
            self.step_loss[plans, first:last] = loss.total
            action_gradient = self.model.action_gradient(
                prediction, actions, cotangent.flatten(0, 1)
            )
            gradient[plans, first:last] = action_gradient.view(*cotangent.shape[:2], -1)
        return gradient

    def autograd_pass(self, k: int) -> Tensor:
        """The same by autograd, for state gradients through the model or Adam on the states."""
        config, problem = self.config, self.problem
        goal_weight, noise_scale = self.schedule[k - 1]
        gradient = torch.empty_like(self.actions)
        state_gradient = torch.zeros_like(self.trajectory)
        for plans, first, last in self.blocks():
            with torch.enable_grad():
                block = self.trajectory[plans, first : last + 1].detach().requires_grad_()
                actions = self.action_rows(plans, first, last)
                states = scale_state_gradient(block[:, :-1], config.state_gradient_scale)
                prediction = self.model(states.reshape(-1, problem.state_features), actions)
                loss = lifted_loss(
                    prediction.view_as(block[:, 1:]),
                    block,
                    problem.goal[plans],
                    goal_weight=goal_weight,
                    feature_weight=problem.feature_weight,
                    per_step=True,
                )
                action_gradient, block_gradient = torch.autograd.grad(
                    loss.total.sum(), (actions, block), allow_unused=True
                )
                action_gradient = needed(action_gradient)
            self.step_loss[plans, first:last] = loss.total.detach()
            gradient[plans, first:last] = action_gradient.view_as(gradient[plans, first:last])
            state_gradient[plans, first : last + 1] += block_gradient
        moving = self.trajectory[:, 1 : self.end]
        action_step_(
            moving,
            state_gradient[:, 1 : self.end].contiguous(),
            self.state_memory,
            lr=config.state_lr * self.active,
            optimizer=config.state_optimizer,
        )
        xi = state_noise(config, problem, iteration=k, first_step=1, steps=self.end - 1)
        moving += (noise_scale * self.active)[:, None, None].to(xi.dtype) * xi
        return gradient

    def move_actions(
        self, gradient: Tensor, memory: dict[str, Any], lr: float, optimizer: str
    ) -> None:
        """One projected step on the actions of the plans that still move."""
        if self.config.hold > 1:  # every step of a block gets its sum: equal actions stay equal
            sums = sum_blocks(gradient, self.config.hold)
            gradient = hold_actions(sums, self.config.hold, self.config.horizon).contiguous()
        action_step_(
            self.actions,
            gradient,
            memory,
            lr=lr * self.active,
            low=self.problem.action_low,
            high=self.problem.action_high,
            optimizer=optimizer,
            compare_bounds=False,  # they were, before the loop
        )

    def blocks(self) -> Iterator[tuple[slice, int, int]]:
        """(plans, first, last): blocks of plans and of time steps, at most `max_rows` rows each.

        Time runs backwards. A block moves the states *after* its inputs, so every later block still
        finds its own rows as they were, and the result is that of a single block.
        """
        plans, steps = self.problem.plans, self.config.horizon
        rows = self.config.max_rows or max(plans * steps, 1)
        plan_block, time_block = max(1, rows // steps), min(rows, steps)
        for n in range(0, plans, plan_block):
            for last in range(steps, 0, -time_block):
                yield slice(n, n + plan_block), max(last - time_block, 0), last

    def action_rows(self, plans: slice, first: int, last: int) -> Tensor:
        """The actions of a block as rows `(N T, A)`, a leaf of the graph to come."""
        rows = self.actions[plans, first:last].reshape(-1, self.problem.action_features)
        return rows.detach().requires_grad_()

    # ------------------------------------------------------------------------------ true rollouts

    def sync(self, steps: int) -> None:
        """`steps` gradient steps on the actions through the true rollout; then states follow it."""
        config, memory = self.config, dict[str, Any]()
        if config.sync_optimizer == GAUSS_NEWTON:
            self.gauss_newton(steps)
        else:
            for _ in range(steps):
                gradient = self.judge(with_gradient=True)
                self.move_actions(gradient, memory, config.sync_lr, config.sync_optimizer)
                if self.budget.check():
                    break
        self.judge(follow=True)
        self.tell()

    def gauss_newton(self, steps: int) -> None:
        """Levenberg-Marquardt through the rollout, for the plans that still move."""
        if steps == 0:
            return
        config, problem = self.config, self.problem
        low, high = box(problem)
        weight = problem.goal_feature_weight
        how = newton.NewtonSteps(
            goal_weight=torch.ones_like(problem.units) if weight is None else weight,
            hold=config.hold,
            low=low,
            high=high,
            max_rows=config.max_rows,
        )
        for plans in plan_blocks(problem.plans, config.max_rows):
            start, goal, before = problem.start[plans], problem.goal[plans], self.actions[plans]
            states = self.model.rollout(start, before, config.max_rows)
            after, _, _ = newton.refine_by_rollout(self.model, how, steps, states, before, goal)
            moving = (self.active[plans] > 0) & all_finite(after)
            self.actions[plans] = torch.where(moving[:, None, None], after, before)
        calls = how.calls(self.trajectory, self.actions) + config.horizon
        self.model_calls += config.horizon + calls * steps

    def tell(self) -> None:
        """The best plan per problem, to whoever traces them."""
        if self.trace is not None:
            cost, rows = self.best_rows()
            actions = self.best_actions[rows]
            self.trace(Moment(self.iteration, self.model_calls, actions, cost))

    def best_rows(self) -> tuple[Tensor, Tensor]:
        """Each problem's least cost `(B,)`, and which of the N plans has it."""
        cost, which = self.best_cost.view(-1, self.config.candidates).min(-1)
        first = torch.arange(len(which), device=which.device) * self.config.candidates
        return cost, first + which

    def judge(self, with_gradient: bool = False, follow: bool = False) -> Tensor:
        """Roll the actions out, keep what is better than the best so far; the cost's gradient.

        `follow` blends the virtual states with the rollout.
        """
        config, problem = self.config, self.problem
        self.model_calls += config.horizon * (1 + with_gradient)
        gradient = torch.empty_like(self.actions) if with_gradient else self.actions
        for plans in plan_blocks(problem.plans, config.max_rows):
            with torch.set_grad_enabled(with_gradient):
                actions = self.actions[plans].detach().requires_grad_(with_gradient)
                states = self.model.rollout(problem.start[plans], actions, config.max_rows)
                cost = rollout_cost(states, problem.goal[plans], problem.goal_feature_weight)
                if with_gradient:
                    (found,) = torch.autograd.grad(cost.sum(), actions, allow_unused=True)
                    gradient[plans] = needed(found)
                    self.sound[plans] &= all_finite(gradient[plans])
            states, cost = states.detach(), cost.detach()
            arrived = torch.isfinite(cost) & all_finite(states)
            self.sound[plans] &= arrived
            better = arrived & (cost < self.best_cost[plans])
            self.best_cost[plans] = torch.where(better, cost, self.best_cost[plans])
            better = better[:, None, None]
            self.best_actions[plans] = torch.where(
                better, actions.detach(), self.best_actions[plans]
            )
            self.best_states[plans] = torch.where(better, states, self.best_states[plans])
            if follow and config.sync_blend > 0:
                inner = self.trajectory[plans, 1 : self.end]
                blend = inner.lerp(states[:, 1 : self.end], config.sync_blend)
                inner.copy_(torch.where(arrived[:, None, None], blend, inner))
        if config.stop_cost is not None:
            self.active = (self.best_cost > config.stop_cost).to(self.active.dtype)
        return gradient

    # ------------------------------------------------------------------------------------ the rest

    def snapshot(self, k: int, wanted: frozenset[int]) -> None:
        if k in wanted:
            states = self.trajectory * self.problem.units
            self.snapshots[k] = states.unflatten(0, (-1, self.config.candidates))

    def result(self, path: str) -> Plan:
        config, problem = self.config, self.problem
        shape = (problem.plans // config.candidates, config.candidates)
        cost = self.best_cost.view(shape)
        best_cost, rows = self.best_rows()
        finite = torch.isfinite(cost)
        history = self.loss_history[: self.iteration].unflatten(-1, shape)
        sound = self.sound.view(shape)
        if not bool(sound.all()):
            warn_non_finite(sound, problem.problem_ids)
        states = self.best_states[rows] * problem.units
        states[:, 0] = problem.start_given  # as it came: scaling and back may round
        return Plan(
            actions=self.best_actions[rows],
            states=states,
            cost=best_cost,
            candidate_cost=cost,
            loss_history=history,
            iterations=self.iteration,
            model_calls=self.model_calls,
            finite=finite.any(-1),
            backend=grasp_kernels.backend_for(problem.start.device, problem.start.dtype),
            path=path,
            out_of_time=self.budget.spent,
            snapshots=self.snapshots,
        )


def all_finite(values: Tensor) -> Tensor:
    """Per plan, `(N, ...)` to `(N,)` bool."""
    return torch.isfinite(values).flatten(1).all(1)


def rollout_cost(states: Tensor, goal: Tensor, weight: Tensor | None) -> Tensor:
    """`sum_d weight_d (s_T - g)_d^2`, `(N,)`: the goal term of the lifted loss at T."""
    last = states[:, -2:]
    return lifted_loss(last[:, 1:], last, goal, goal_weight=1.0, feature_weight=weight).goal
