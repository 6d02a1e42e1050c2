"""The variables of lifted plans, and the loop that moves them; reads like the equations.

Symbols: N = B R plans (B problems, R candidates each), T steps, D state features, A action
features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from grasp_kernels import action_step_, lifted_loss, lifted_step_, scale_state_gradient
from grasp_kernels.reference import block_sum
from grasp_planner import newton
from grasp_planner.blocks import hold_actions, sum_blocks
from grasp_planner.config import GAUSS_NEWTON
from grasp_planner.costs import NEVER, best_of, better, excess
from grasp_planner.goals import AnyOf, Path, Point
from grasp_planner.initial import initialise, plan_blocks, schedule_table, state_noise
from grasp_planner.search import Algorithm, Search
from grasp_planner.world_model import CheckedModel, needed

#: `(state (rows, D), action (rows, A), cotangent (rows, D)) -> (rows, D)`
Surrogate = Callable[[Tensor, Tensor, Tensor], Tensor]


class LiftedPlans(Algorithm):
    """N lifted plans, and the loop that moves them; one row each in every variable."""

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

    def __init__(
        self, search: Search, surrogate: Surrogate | None = None, share: range | None = None
    ) -> None:
        super().__init__(search)
        self.problem, self.model, self.surrogate = search.problem, search.model, surrogate
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
        whole = isinstance(target, (AnyOf, Path)) or (
            isinstance(target, Point) and target.mask is None
        )
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

    # -------------------------------------------------------------------------------- the loop

    def step(self, k: int) -> int:
        config = self.config
        last = self.iterate(k)
        self.search.model_calls += 2 * (last - k + 1)
        if config.sync_every and last % config.sync_every == 0 and last < config.iterations:
            self.search.iterations = last
            self.sync(config.sync_steps)
            self.share()
        self.snapshot(last)
        return last

    def finish(self) -> None:
        self.sync(0 if self.search.budget.spent else self.config.final_sync_steps)
        self.share()

    def first_judgement(self) -> None:
        self.judge()

    def iterate(self, k: int) -> int:
        """Lifted iteration k; returns the last one made, which is k."""
        config = self.config
        fused = config.state_optimizer == "sgd" and config.state_gradient_scale == NEVER
        loss = torch.zeros_like(self.actions[..., 0], dtype=self.schedule.dtype)
        extra = self.extra_term() if self.drawn or self.search.objective.adds else None
        one_pass = self.fused_pass if fused else self.autograd_pass
        gradient = one_pass(k, loss, None if extra is None else extra[1])
        total = self.total(k, loss)
        if extra is not None:
            total = total + extra[0].to(total)
            gradient = gradient + extra[2]
        self.sound &= torch.isfinite(total) & all_finite(gradient)
        self.note(k, total[None])
        self.move_actions(gradient, self.action_memory, config.action_lr, config.action_optimizer)
        return k

    def total(self, k: int, step_loss: Tensor) -> Tensor:
        """The loss `(N,)` of iteration k from that of its steps, `(N, T)`."""
        return block_sum(step_loss)

    def note(self, first: int, losses: Tensor) -> None:
        """The losses `(iterations, N)` before the steps of iterations `first ...`."""
        search = self.search
        losses = losses.unflatten(1, (-1, self.candidates)).to(search.history.dtype)
        rows = slice(first - 1, first - 1 + len(losses))
        if self.config.stop_cost is not None:  # else all problems are searched to the end
            known = torch.where(search.active[:, None], losses, torch.nan)
            losses = search.history[rows].index_copy(1, search.live, known)
        search.history[rows] = losses

    def extra_term(self) -> tuple[Tensor, Tensor, Tensor]:
        """What is not the lifted loss, at the virtual states: its values `(N,)`, its gradients for
        states `(N, T + 1, D)` and for actions `(N, T, A)`.
        """
        search, objective = self.search, self.search.objective
        costs, by_state, by_action = [], [], []
        rows = self.config.max_rows and max(1, self.config.max_rows // self.config.horizon)
        for plans in plan_blocks(len(self.goal), rows):
            states = self.trajectory[plans].detach().requires_grad_()
            actions = self.actions[plans].detach().requires_grad_()
            ours = objective.take(self.owner(plans))
            with torch.enable_grad():
                lifted = states[:, None], actions[:, None]
                cost = states.new_zeros(len(states), 1)
                if self.drawn:
                    cost = cost + ours.goal(lifted[0])
                if objective.adds:
                    cost = cost + ours.extra(*lifted, search.now, self.pressed(plans))
                total = cost.sum()
            given = (states, actions)
            if total.requires_grad:
                found = torch.autograd.grad(total, given, allow_unused=True, materialize_grads=True)
            else:  # all weights of this iteration are 0
                found = tuple(torch.zeros_like(values) for values in given)
            costs.append(cost.detach()[:, 0])
            by_state.append(found[0])
            by_action.append(found[1])
        if not costs:
            return self.best_cost, torch.zeros_like(self.trajectory), torch.zeros_like(self.actions)
        return torch.cat(costs), torch.cat(by_state), torch.cat(by_action)

    def owner(self, plans: slice) -> Tensor:
        """Whose of the live problems the plans are, `(n,)`."""
        every = torch.arange(len(self.goal), device=self.goal.device)
        return every[plans] // self.candidates

    def pressed(self, plans: slice) -> Tensor | None:
        """The plans' multipliers, `(n, 1, C)`."""
        multipliers = self.search.multipliers
        return None if multipliers is None else multipliers.flatten(0, 1)[plans][:, None]

    def fused_pass(self, k: int, step_loss: Tensor, extra: Tensor | None) -> Tensor:
        """States step, actions' gradient returned: nothing but the model and the fused kernel.

        `extra`: the gradient for the states of what the kernel does not know.
        """
        config, problem = self.config, self.problem
        goal_weight, noise_scale = self.schedule[k - 1]
        gradient = torch.zeros_like(self.actions)
        compiled, traced = None, self.model
        if isinstance(traced, CheckedModel) and traced.markov:
            compiled = self.search.planner.accelerated().lifted
        for plans, first, last in self.blocks():
            block = self.trajectory[plans, first : last + 1]
            seen = slice(first - min(self.model.history - 1, first), last)
            # Always a copy: the block moves before the model is differentiated, and the model's
            # graph may hold its input. A reshape of one plan, or of one step, would be a view.
            states = self.trajectory[plans, seen].clone(memory_format=torch.contiguous_format)
            active = self.active[plans]
            added = None if extra is None else extra[plans, first : last + 1]
            settings = {
                "state_lr": config.state_lr * active,
                "goal_weight": goal_weight,
                "noise_scale": noise_scale * active,
                "seed": config.seed,
                "iteration": k,
                "plan_ids": self.plan_ids[plans],
                "noise": config.noise,
                "modes": config.noise_modes,
                "feature_weight": problem.feature_weight,
                "terminal": self.terminal,
                "first_step": self.first + first,
                "horizon": self.horizon,
            }
            if compiled is not None:
                given = (block, states, self.actions[plans, seen], self.goal[plans], added)
                assert isinstance(traced, CheckedModel)
                found = compiled(traced.unchecked, *given, **settings)
                step_loss[plans, first:last], gradient[plans, first:last] = found
                continue
            with torch.enable_grad():
                actions = self.leaf(self.actions[plans, seen])
                prediction = self.model.lifted(self.start[plans], states, actions, first)
            loss, cotangent = lifted_step_(
                block,
                prediction,
                self.goal[plans],
                state_gradient=added,
                state_gradient_scale=0.0 if added is None else 1.0,
                per_step=True,
                **settings,
            )
            step_loss[plans, first:last] = loss.total
            gradient[plans, seen] += self.model.action_gradient(prediction, actions, cotangent)
        return gradient

    def autograd_pass(self, k: int, step_loss: Tensor, extra: Tensor | None) -> Tensor:
        """The same by autograd, for state gradients through the model or Adam on the states."""
        config, problem = self.config, self.problem
        goal_weight, noise_scale = self.schedule[k - 1]
        surrogate, share = self.surrogate, config.state_gradient_scale(k, config.iterations)
        gradient = torch.zeros_like(self.actions)
        state_gradient = torch.zeros_like(self.trajectory)
        for plans, first, last in self.blocks():
            with torch.enable_grad():
                lead = min(self.model.history - 1, first)
                every = self.leaf(self.trajectory[plans, first - lead : last + 1])
                block = every[:, lead:]
                actions = self.leaf(self.actions[plans, first - lead : last])
                scale = share if surrogate is None else 0.0
                states = scale_state_gradient(every[:, :-1], scale)
                prediction = self.model.lifted(self.start[plans], states, actions, first)
                loss = lifted_loss(
                    prediction,
                    block,
                    self.goal[plans],
                    goal_weight=goal_weight,
                    feature_weight=problem.feature_weight,
                    per_step=True,
                )
                action_gradient, block_gradient, cotangent = torch.autograd.grad(
                    loss.total.sum(), (actions, every, prediction), allow_unused=True
                )
                action_gradient = needed(action_gradient)
            step_loss[plans, first:last] = loss.total.detach()
            gradient[plans, first - lead : last] += action_gradient
            state_gradient[plans, first - lead : last + 1] += block_gradient
            if surrogate is not None:
                back = self.pulled_back(surrogate, states, actions, cotangent)
                state_gradient[plans, first:last] += share * back
        if extra is not None:  # last of all, so that blocks of time change no bit of a sum
            state_gradient += extra
        moving = self.trajectory[:, 1 : self.end]
        action_step_(
            moving,
            state_gradient[:, 1 : self.end].contiguous(),
            self.state_memory,
            lr=config.state_lr * self.active,
            optimizer=config.state_optimizer,
        )
        xi = state_noise(self, iteration=k, rows=range(1, self.end))
        moving += (noise_scale * self.active)[:, None, None].to(xi.dtype) * xi
        return gradient

    def pulled_back(
        self, surrogate: Any, states: Tensor, actions: Tensor, cotangent: Tensor
    ) -> Tensor:
        """What a surrogate takes for `(dF/ds)^T cotangent`, `(n, t, D)`, in the planner's units."""
        units = self.problem.units
        rows = (states.detach() * units).flatten(0, 1), actions.detach().flatten(0, 1)
        found: Any = surrogate(*rows, (cotangent / units).flatten(0, 1))
        if not isinstance(found, Tensor) or found.shape != rows[0].shape:
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"surrogate must return (rows, D) {tuple(rows[0].shape)}, got {shape}")
        return found.to(states).view_as(states) * units

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
        plans, steps = len(self.goal), self.config.horizon
        rows = self.config.max_rows or max(plans * steps, 1)
        plan_block, time_block = max(1, rows // steps), min(rows, steps)
        for n in range(0, plans, plan_block):
            for last in range(steps, 0, -time_block):
                yield slice(n, n + plan_block), max(last - time_block, 0), last

    @staticmethod
    def leaf(values: Tensor) -> Tensor:
        """A copy that a graph to come begins at; a view would be the variable itself."""
        return values.clone(memory_format=torch.contiguous_format).requires_grad_()

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
        parts = [
            self.model.rollout(self.start[plans], actions[plans])
            for plans in plan_blocks(len(actions), self.config.max_rows)
        ]
        empty = actions.new_empty(0, actions.shape[1] + 1, self.problem.state_features)
        return torch.cat(parts) if parts else empty

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
