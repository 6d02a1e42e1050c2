"""Plans that are variables of their own, and how they meet the world model: by true rollouts.

Symbols: N = B R plans (B problems, R candidates each), T steps, D state features, A action
features.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from grasp_kernels import action_step_, lifted_loss
from grasp_planner import newton
from grasp_planner.algorithm import Algorithm
from grasp_planner.blocks import hold_actions, sum_blocks
from grasp_planner.config import GAUSS_NEWTON
from grasp_planner.costs import best_of, better, excess
from grasp_planner.goals import AnyOf, Path, is_one_state
from grasp_planner.initial import initialise, plan_blocks, schedule_table
from grasp_planner.models import roll_out
from grasp_planner.search import Search
from grasp_planner.world_model import needed


class SyncedPlans(Algorithm):
    """N plans, trajectory and actions, one row each in every variable; syncs, and the best so far.

    Between two syncs somebody else moves them.
    """

    variables: ClassVar = (
        "trajectory",
        "actions",
        "start",
        "goal",
        "plan_ids",
        "active",
        "best_cost",
        "best_actions",
        "best_states",
        "sound",
        "best_violation",
        "action_memory",
        "state_memory",
    )

    def __init__(self, search: Search, share: range | None = None) -> None:
        super().__init__(search)
        self.problem, self.model = search.problem, search.model
        #: Of all T steps, those from `first` on are here; all of them, unless time is sharded.
        self.first, self.horizon = 0, self.config.horizon
        #: Of all R candidates, those that are here.
        every = self.config.candidates
        mine = range(every) if share is None else share
        self.candidates, self.first_candidate = len(mine), mine.start
        self.schedule = schedule_table(self.config, search.start)
        search.best_cost = search.best_cost.to(self.schedule.dtype)  # as the lifted loss
        self.start = search.start.repeat_interleave(self.candidates, 0)
        target, weight = search.objective.target, search.goal_weight
        goals = target.first(search.start_state, every, weight)[:, mine.start : mine.stop]
        self.goal = goals.flatten(0, 1).contiguous()
        candidate = torch.arange(mine.start, mine.stop, device=self.start.device)
        ids = self.problem.problem_ids[:, None] * every + candidate
        self.plan_ids = ids.flatten()
        #: Which plans keep their first actions as given, so that a warm start is never lost.
        self.as_given = (candidate == 0).repeat(len(search.start))
        # A goal of more than one state cannot be the last virtual state: that one is drawn to it.
        whole = isinstance(target, (AnyOf, Path)) or is_one_state(target)
        self.drawn = self.config.terminal == "fixed" and not whole
        self.terminal = "free" if self.drawn else self.config.terminal
        # Rows 1 ... end - 1 of the trajectory are variables.
        self.end = self.config.horizon + (self.terminal == "free")
        self.multiplier_rows = self.candidates

    def begin(self) -> None:
        self.trajectory, self.actions = initialise(self)
        self.action_memory: dict[str, Any] = {}
        self.state_memory: dict[str, Any] = {}
        # 1 while a plan moves, 0 once its rollout is good enough; on the device, never read back.
        self.active = self.schedule.new_ones(len(self.start))
        self.best_cost = self.schedule.new_full((len(self.start),), torch.inf)
        self.best_violation = torch.full_like(self.best_cost, torch.inf)
        self.best_actions = self.actions.clone()
        # Of a plan without any finite rollout nothing is known but its start.
        self.best_states = torch.full_like(self.trajectory, torch.nan)
        self.best_states[:, 0] = self.start[:, : self.problem.state_features]
        # False once a plan has met a NaN or an infinity anywhere.
        self.sound = torch.ones_like(self.active, dtype=torch.bool)
        self.first_judgement()
        self.share()
        self.snapshot(0)

    def first_judgement(self) -> None:
        self.judge()

    def owner(self, plans: slice) -> Tensor:
        """Whose of the live problems the plans are, `(n,)`."""
        every = torch.arange(len(self.goal), device=self.goal.device)
        return every[plans] // self.candidates

    def pressed(self, plans: slice) -> Tensor | None:
        """The plans' multipliers, `(n, 1, C)`."""
        multipliers = self.search.multipliers
        return None if multipliers is None else multipliers.flatten(0, 1)[plans][:, None]

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

    # ------------------------------------------------------------------------------ true rollouts

    def sync(self, steps: int) -> None:
        """`steps` gradient steps on the actions through the true rollout; then states follow it."""
        config, memory = self.config, dict[str, Any]()
        optimizer = config.sync_optimizer
        if optimizer == GAUSS_NEWTON:
            self.gauss_newton(steps)
            # Its steps know the goal alone: what is added to it is left to Adam.
            optimizer, steps = "adam", steps if self.search.objective.adds else 0
        for _ in range(steps):
            gradient = self.judge(with_gradient=True)
            self.move_actions(gradient, memory, config.sync_lr, optimizer)
            if self.search.budget.check():
                break
        self.judge(follow=True)

    def gauss_newton(self, steps: int) -> None:
        """Levenberg-Marquardt through the rollout, for the plans that still move."""
        if steps == 0:
            return
        config, problem = self.config, self.problem
        low, high = self.search.box.low, self.search.box.high
        weight = problem.goal_feature_weight
        how = newton.NewtonSteps(
            goal_weight=torch.ones_like(problem.units) if weight is None else weight,
            hold=config.hold,
            low=low,
            high=high,
            max_rows=config.max_rows,
        )
        for plans in plan_blocks(len(self.goal), config.max_rows):
            start, goal, before = self.start[plans], self.goal[plans], self.actions[plans]
            states = self.model.rollout(start, before, config.max_rows)
            after, _, _ = newton.refine_by_rollout(self.model, how, steps, states, before, goal)
            moving = (self.active[plans] > 0) & all_finite(after)
            self.actions[plans] = torch.where(moving[:, None, None], after, before)
        calls = how.calls(self.trajectory, self.actions) + self.horizon
        self.search.model_calls += self.horizon + calls * steps

    def share(self) -> None:
        """What was found since the last time: each problem's best, its candidates' costs."""
        search = self.search
        cost = self.best_cost.view(-1, self.candidates)
        search.candidate_cost = search.candidate_cost.index_copy(0, search.live, cost)
        search.find_unsound(self.sound.view(-1, self.candidates))
        over = excess(self.best_violation, self.config.constraint_tolerance).view_as(cost)
        which = best_of(cost, over)
        rows = torch.arange(len(which), device=which.device) * self.candidates + which
        least, known = self.best_cost[rows], search.best_cost[search.live]
        # Of equals the first candidate, whenever it came: so candidates may be anywhere.
        worse = better(known, search.excess(), least, over.flatten()[rows])
        wins = torch.isfinite(least) & ~worse
        best = (self.best_actions[rows], self.best_states[rows], least, self.best_violation[rows])
        search.choose(wins, *best)
        if self.config.stop_cost is not None:  # one good candidate is enough
            done = self.arrived().view_as(cost).any(1).repeat_interleave(self.candidates)
            self.active = torch.where(done, 0.0, self.active)
        search.tell()

    def judge(self, with_gradient: bool = False, follow: bool = False) -> Tensor:
        """Roll the actions out, keep what is better than the best so far; the cost's gradient.

        `follow` blends the virtual states with the rollout.
        """
        config = self.config
        self.search.model_calls += self.horizon * (1 + with_gradient)
        gradient = torch.empty_like(self.actions) if with_gradient else self.actions
        for plans in plan_blocks(len(self.goal), config.max_rows):
            states, cost, found = self.rolled_out(plans, with_gradient)
            if found is not None:
                gradient[plans] = found
                self.sound[plans] &= all_finite(found)
            actions = self.actions[plans].detach()
            arrived = torch.isfinite(cost) & self.finite(states)
            self.sound[plans] &= arrived
            self.keep(plans, arrived, actions, states, cost)
            if follow:
                self.press(plans, states, actions)
            if follow and config.sync_blend > 0:
                inner = self.trajectory[plans, 1 : self.end]
                blend = inner.lerp(states[:, 1 : self.end], config.sync_blend)
                inner.copy_(torch.where(arrived[:, None, None], blend, inner))
        if config.stop_cost is not None:
            self.active = (~self.arrived()).to(self.active.dtype)
        return gradient

    def rolled_out(self, plans: slice, with_gradient: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """The rollout `(n, T + 1, D)` of the plans' actions, its cost `(n,)`, the cost's gradient
        `(n, T, A)`.
        """
        objective = self.search.objective
        with torch.set_grad_enabled(with_gradient):
            actions = self.actions[plans].detach().requires_grad_(with_gradient)
            states = self.model.rollout(self.start[plans], actions, self.config.max_rows)
            if objective.plain:
                cost = rollout_cost(states, self.goal[plans], self.problem.goal_feature_weight)
            else:
                ours, pressed = objective.take(self.owner(plans)), self.pressed(plans)
                rows = states[:, None], actions[:, None]
                cost = ours.search_cost(*rows, self.search.now, pressed)[:, 0]
            total = cost.sum()
        found = None
        if with_gradient:
            found = needed(torch.autograd.grad(total, actions, allow_unused=True)[0])
        return states.detach(), cost.detach(), found

    def imagine(self, actions: Tensor) -> Tensor:
        """The rollout `(N, T + 1, D)` of any actions `(N, T, A)`, without its gradient."""
        return roll_out(self.model, self.start, actions, self.config.max_rows)

    @property
    def ends(self) -> bool:
        """Whether the last step of all is here."""
        return self.first + self.config.horizon == self.horizon

    def finite(self, states: Tensor) -> Tensor:
        """Which rollouts `(n, T + 1, D)` are finite, `(n,)`."""
        return all_finite(states)

    def keep(
        self, plans: slice, arrived: Tensor, actions: Tensor, states: Tensor, cost: Tensor
    ) -> None:
        """The best of what each plan was, where its rollout `arrived` at finite numbers."""
        objective, tolerance = self.search.objective, self.config.constraint_tolerance
        violation = torch.zeros_like(cost)
        if not objective.searched_as_judged:
            ours = objective.take(self.owner(plans))
            judged, violation = ours.judged(states[:, None], actions[:, None])
            cost, violation = judged[:, 0].to(cost), violation[:, 0].to(cost)
        over = excess(violation, tolerance), excess(self.best_violation[plans], tolerance)
        wins = arrived & better(cost, over[0], self.best_cost[plans], over[1])
        for name, new in (
            ("best_cost", cost),
            ("best_violation", violation),
            ("best_actions", actions),
            ("best_states", states),
        ):
            best = getattr(self, name)
            best[plans] = newton.along(wins, new, best[plans])

    def press(self, plans: slice, states: Tensor, actions: Tensor) -> None:
        """Multipliers rise by what a sync's last rollouts violate."""
        search, config = self.search, self.config
        if search.multipliers is None or config.constraint_method == "penalty":
            return
        if (search.iterations // max(config.sync_every, 1)) % config.constraint_every:
            return
        ours = search.objective.take(self.owner(plans))
        values, equal = ours.constraints(states[:, None], actions[:, None])
        known = search.multipliers.flatten(0, 1)
        known[plans] = ours.raised(known[plans][:, None], values, equal, search.now)[:, 0]

    def arrived(self) -> Tensor:
        """`(N,)` bool: whose best rollout is good enough."""
        within = self.best_violation <= self.config.constraint_tolerance
        return (self.best_cost <= self.config.stop_cost) & within

    # ------------------------------------------------------------------------------------ the rest

    def snapshot(self, k: int) -> None:
        search = self.search
        if k not in search.wanted_snapshots:
            return
        states = (self.trajectory * self.problem.units).unflatten(0, (-1, self.candidates))
        empty = states.new_full((self.problem.count, *states.shape[1:]), torch.nan)
        search.snapshots[k] = empty.index_copy(0, search.live, states)


def all_finite(values: Tensor) -> Tensor:
    """Per plan, `(N, ...)` to `(N,)` bool."""
    return torch.isfinite(values).flatten(1).all(1)


def rollout_cost(states: Tensor, goal: Tensor, weight: Tensor | None) -> Tensor:
    """`sum_d weight_d (s_T - g)_d^2`, `(N,)`: the goal term of the lifted loss at T."""
    last = states[:, -2:]
    return lifted_loss(last[:, 1:], last, goal, goal_weight=1.0, feature_weight=weight).goal
