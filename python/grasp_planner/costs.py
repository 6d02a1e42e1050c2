"""What a plan costs: its goal, running and action costs, the user's own, and constraints.

    cost   = |s_T - g|^2_w                                           the goal; kernels have it fused
           + v mean_{0<t<T} |s_t - g|^2_w                             `running_goal_weight`
           + u mean_t |a_t|^2 + u' mean_t |a_t - a_{t-1}|^2           `action(_change)_weight`
           + c cost(states, actions)                                  `cost`, `cost_weight`
    search = cost + sum_i (max(0, m_i + 2 p g_i)^2 - m_i^2) / (4 p)   `constraints`,
                                                                      p: `penalty_weight`

`g` is the goal's nearest state. Weights may be schedules: a search goes by those of its iteration,
plans are compared by the ones that they end with. A constraint g_i <= 0 (or = 0: then without the
max) costs `p g_i^2` where it is violated while its multiplier m_i is 0: the quadratic penalty. The
augmented Lagrangian (Nocedal & Wright, *Numerical Optimization*, 2nd ed., ch. 17.4) raises
multipliers, `m_i = max(0, m_i + 2 p g_i)`, until the constraints hold without an infinite p.
Whatever the method, of two plans the one that violates less is better, and what is within
`constraint_tolerance` is no violation.

Symbols: b problems, R candidates each, T steps, D state features, A action features, C constraints.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from grasp_planner.goals import Path, Point, Target
from grasp_planner.inputs import Context, Problem, rows_of
from grasp_planner.options import PlannerConfig
from grasp_planner.schedules import Schedule

MOST_MULTIPLIER = 1e8
NEVER = Schedule(0.0)


@dataclass(frozen=True, eq=False)
class Objective:
    """The cost of plans of b problems, in the planner's units; what users give sees their own.

    `target`: the goals; `goal_weight`, `units` `(D,)`; `total` iterations of the search; `context`:
    what belongs to each problem and is handed to the user's functions; `through_goal`: whether the
    goal's nearest state is differentiated, too, for second derivatives and those for the goal.
    """

    config: PlannerConfig
    target: Target
    goal_weight: Tensor
    units: Tensor
    total: int
    context: Context | None = None
    through_goal: bool = False

    @classmethod
    def of(cls, config: PlannerConfig, problem: Problem, total: int) -> Objective:
        """Of a search of at most `total` iterations."""
        weight = problem.goal_feature_weight
        ones = torch.ones_like(problem.units)
        measure = ones if weight is None else weight.to(ones.dtype)
        return cls(config, problem.target, measure, problem.units, total, problem.context)

    @property
    def plain(self) -> bool:
        """Whether there is nothing but one goal state for each problem: what kernels know."""
        return isinstance(self.target, Point) and not self.adds

    @property
    def adds(self) -> bool:
        """Whether anything is added to the distance of the last state to the goal."""
        config = self.config
        return bool(
            config.running_goal_weight != NEVER
            or config.action_weight != NEVER
            or config.action_change_weight != NEVER
            or config.cost is not None
            or config.constraints
            or isinstance(self.target, Path)
        )

    @property
    def searched_as_judged(self) -> bool:
        """Whether a search goes by the very cost that plans are compared by."""
        config = self.config
        names = ("running_goal_weight", "action_weight", "action_change_weight", "cost_weight")
        constant = all(getattr(config, name).end is None for name in names)
        return constant and not config.constraints

    def take(self, rows: Tensor) -> Objective:
        """The objective of the problems `rows`."""
        context = None if self.context is None else rows_of(self.context, rows)
        return replace(self, target=self.target.take(rows), context=context)

    def weight(self, name: str, iteration: int | None) -> float:
        """A weight of the config in iteration 1 ... total; None is the one it ends with.

        That one is the schedule's `end` even where a single iteration never gets there.
        """
        schedule: Schedule = getattr(self.config, name)
        if iteration is None:
            return schedule.start if schedule.end is None else schedule.end
        total = max(self.total, 1)
        return schedule(min(max(iteration, 1), total), total)

    # -------------------------------------- of plans: states (b, R, T + 1, D), actions (b, R, T, A)

    def search_cost(
        self, states: Tensor, actions: Tensor, iteration: int, multipliers: Tensor | None
    ) -> Tensor:
        """What an iteration makes smaller, `(b, R)`, differentiable."""
        cost = self.goal(states)
        if not self.adds:
            return cost
        return cost + self.extra(states, actions, iteration, multipliers)

    def judged(self, states: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """What plans are compared by: cost and violation, `(b, R)` each; see `Comparison`."""
        cost = self.goal(states)
        if self.adds:
            cost = cost + self._added(states, actions, None)
        if not self.config.constraints:
            return cost, torch.zeros_like(cost)
        values, equal = self.constraints(states, actions)
        violation = torch.where(equal, values.abs(), values.clamp_min(0.0)).amax(-1)
        return cost, violation

    def goal(self, states: Tensor) -> Tensor:
        """`|s_T - g|^2_w`, `(b, R)`."""
        return self._distance(states[:, :, -1])

    def extra(
        self, states: Tensor, actions: Tensor, iteration: int, multipliers: Tensor | None
    ) -> Tensor:
        """All that is added to the goal in an iteration, `(b, R)`: the one term beside kernels."""
        extra = self._added(states, actions, iteration)
        if not self.config.constraints:
            return extra
        values, equal = self.constraints(states, actions)
        rho = self.weight("penalty_weight", iteration)
        known = torch.zeros_like(values) if multipliers is None else multipliers
        pushed = known + 2 * rho * values
        pushed = torch.where(equal, pushed, pushed.clamp_min(0.0))
        return extra + ((pushed.square() - known.square()) / (4 * rho)).sum(-1)

    def raised(self, multipliers: Tensor, values: Tensor, equal: Tensor, iteration: int) -> Tensor:
        """Multipliers `(b, R, C)` after a look at constraints' `values (b, R, C)`."""
        rho = self.weight("penalty_weight", iteration)
        grown = multipliers + 2 * rho * torch.nan_to_num(values, 0.0, 0.0, 0.0)
        grown = torch.where(equal, grown, grown.clamp_min(0.0))
        return grown.clamp(-MOST_MULTIPLIER, MOST_MULTIPLIER)

    def constraints(self, states: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """The constraints' values `(b, R, C)`, and which of them are equalities, `(C,)` bool."""
        count = states.shape[0] * states.shape[1]
        values, equal = [], []
        for n, constraint in enumerate(self.config.constraints):
            name = f"config.constraints[{n}]"
            value = self._called(name, constraint.function, states, actions)
            value = value[:, None] if value.dim() == 1 else value
            if value.dim() != 2 or len(value) != count:
                raise ValueError(
                    f"{name} must return (N,) or (N, C), N = {count}, got {tuple(value.shape)}"
                )
            values.append(value.to(states))
            equal += [constraint.kind == "equality"] * value.shape[1]
        both = torch.cat(values, -1).unflatten(0, states.shape[:2])
        return both, torch.tensor(equal, device="cpu").to(both.device)

    def _distance(self, states: Tensor) -> Tensor:
        """`|s - g|^2_w` of `states (b, R, ..., D)`."""
        nearest = self.target.nearest(states, self.goal_weight)
        nearest = nearest if self.through_goal else nearest.detach()
        return (self.goal_weight * (states - nearest).square()).sum(-1)

    def _added(self, states: Tensor, actions: Tensor, iteration: int | None) -> Tensor:
        """Everything but the goal and the constraints, `(b, R)`."""
        added = states.new_zeros(states.shape[:2])
        running = self.weight("running_goal_weight", iteration)
        if running and states.shape[2] > 2:
            added = added + running * self._distance(states[:, :, 1:-1]).mean(-1)
        on_the_way = self.target.on_the_way(states, self.goal_weight)
        if on_the_way is not None:
            added = added + on_the_way
        effort = self.weight("action_weight", iteration)
        if effort:
            added = added + effort * actions.square().sum(-1).mean(-1)
        change = self.weight("action_change_weight", iteration)
        if change and actions.shape[2] > 1:
            jump = actions[:, :, 1:] - actions[:, :, :-1]
            added = added + change * jump.square().sum(-1).mean(-1)
        own = self.weight("cost_weight", iteration)
        if self.config.cost is not None and own:
            value = self._called("config.cost", self.config.cost, states, actions)
            count = states.shape[0] * states.shape[1]
            if value.shape != (count,):
                raise ValueError(
                    f"config.cost must return (N,) = ({count},), got {tuple(value.shape)}"
                )
            added = added + own * value.view(states.shape[:2]).to(added)
        return added

    def _called(
        self, name: str, function: Callable[..., Any], states: Tensor, actions: Tensor
    ) -> Tensor:
        """A user's function of plans in their own units: `(b R, T + 1, D)`, `(b R, T, A)`."""
        candidates = states.shape[1]
        given: list[Any] = [(states * self.units).flatten(0, 1), actions.flatten(0, 1)]
        if self.context is not None:
            problems = torch.arange(len(states), device=states.device)
            given.append(rows_of(self.context, problems.repeat_interleave(candidates)))
        found = function(*given)
        if not isinstance(found, Tensor):
            raise TypeError(f"{name} must return a tensor, got {type(found).__name__}")
        return found


# --------------------------------------------------------------------------- which plan is the best


def excess(violation: Tensor, tolerance: float) -> Tensor:
    """A violation, and 0 where it is within the tolerance."""
    return torch.where(violation <= tolerance, 0.0, violation)


def better(cost: Tensor, over: Tensor, best_cost: Tensor, best_over: Tensor) -> Tensor:
    """Whether a plan is better: it violates less, or as much (which may be not at all) for less."""
    return torch.isfinite(cost) & ((over < best_over) | ((over == best_over) & (cost < best_cost)))


def best_of(cost: Tensor, over: Tensor) -> Tensor:
    """The best column `(b,)` of costs and excesses `(b, R)`."""
    over = torch.where(torch.isfinite(cost), over, torch.inf)
    least = over.amin(1, keepdim=True)
    return torch.where(over <= least, cost, torch.inf).min(1).indices
