"""What all planners share: one `plan` call, true rollouts, the best so far, and who is watching.

Symbols: B problems, R candidates each, T steps, D state features, A action features.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar

import torch
from torch import Tensor

import grasp_kernels
from grasp_kernels import gaussian_noise
from grasp_planner.blocks import sum_blocks
from grasp_planner.inputs import Problem, check_problem
from grasp_planner.models import KernelModel, open_model, roll_out, terminal_cost
from grasp_planner.newton import along
from grasp_planner.options import PlannerConfig
from grasp_planner.plan import Plan, warn_non_finite
from grasp_planner.world_model import CheckedModel, WorldModel, frozen, needed

Progress = Callable[[int], object]


@dataclass(frozen=True, eq=False)
class Moment:
    """The best plans so far, as `trace` gets them; valid during the call, not to be changed.

    Attributes:
        iteration: how many iterations are over.
        model_calls: dependent model calls so far, as `Plan.model_calls`.
        actions: `(B, T, A)`.
        cost: `(B,)`, of their rollout; inf where there is none yet.
    """

    iteration: int
    model_calls: int
    actions: Tensor
    cost: Tensor


Trace = Callable[[Moment], object]


class Budget:
    """How much time a search has; it is asked after every iteration, and never without a limit."""

    def __init__(self, milliseconds: float | None, device: torch.device) -> None:
        if milliseconds is not None:
            number = isinstance(milliseconds, Real) and not isinstance(milliseconds, bool)
            if not number or not milliseconds > 0:
                raise ValueError(f"time_budget_ms must be a number above 0, got {milliseconds!r}")
        self._end = None if milliseconds is None else time.perf_counter() + milliseconds / 1e3
        self._device = device
        self.spent = False

    def check(self) -> bool:
        """Whether the time is over. With a limit it waits for the device: time is real time."""
        if self._end is not None:
            if self._device.type != "cpu":
                torch.accelerator.synchronize(self._device)
            self.spent = time.perf_counter() >= self._end
        return self.spent


class OutOfTime(Exception):
    """The budget is spent; the search keeps what it has."""


class Planner(ABC):
    """A planner over one world model: settings once, then any number of `plan` calls.

    Args:
        world_model: `F(state (rows, D), action (rows, A)) -> next state (rows, D)`; see
            `WorldModel`.
        config: how to plan; of the planner's own config class.
    """

    config_type: ClassVar[type[PlannerConfig]]

    def __init__(self, world_model: WorldModel, config: Any = None) -> None:
        if not callable(world_model):
            raise TypeError(f"world_model must be callable, got {type(world_model).__name__}")
        if config is not None and not isinstance(config, self.config_type):
            raise TypeError(
                f"config must be a {self.config_type.__name__}, got {type(config).__name__}"
            )
        self.world_model = world_model
        self.config: Any = self.config_type() if config is None else config

    @abstractmethod
    def plan(
        self,
        start: Tensor,
        goal: Tensor,
        *,
        actions: Tensor | None = None,
        plan_ids: Tensor | None = None,
        time_budget_ms: float | None = None,
        progress: Progress | None = None,
        trace: Trace | None = None,
    ) -> Plan:
        """The best plan found for each of B problems."""


class RolloutPlanner(Planner):
    """A planner that judges whole plans by rolling them out; a subclass says which, and when."""

    def plan(
        self,
        start: Tensor,
        goal: Tensor,
        *,
        actions: Tensor | None = None,
        plan_ids: Tensor | None = None,
        time_budget_ms: float | None = None,
        progress: Progress | None = None,
        trace: Trace | None = None,
    ) -> Plan:
        """The best plan found for each of B problems.

        Args:
            start, goal: `(B, D)` (or `(D,)` for one problem), finite, same dtype and device.
            actions: `(B, T, A)` warm start, one of the plans that are compared.
            plan_ids: `(B,)` int64, the name of each problem for its noise; None is 0 ... B - 1. The
                same id gives the same plan alone or in a batch.
            time_budget_ms: milliseconds after which no further iteration begins: the best plan so
                far is returned, and `Plan.out_of_time` says so. At least one iteration is made.
                None is no limit.
            progress: called with k after every iteration is issued.
            trace: called with a `Moment` whenever the best plans may have become better.

        Raises:
            TypeError, ValueError: an argument or the world model's answer is wrong; it is named.
        """
        with torch.inference_mode(False), frozen(self.world_model), torch.no_grad():
            problem = check_problem(
                self.world_model,
                self.config,
                start,
                goal,
                actions,
                plan_ids,
                samples=self._samples(),
            )
            budget = Budget(time_budget_ms, problem.start.device)
            model = open_model(self.world_model, problem.start, problem.state_scale)
            search = Search(model, self.config, problem, self._samples(), budget, progress, trace)
            with suppress(OutOfTime):
                self._run(search)
            return search.result()

    @abstractmethod
    def _samples(self) -> int:
        """Into how many samples a problem is split at most, for the names of their noise."""

    @abstractmethod
    def _run(self, search: Search) -> None:
        """The algorithm: whatever it rolls out through `search` competes to be the plan."""


class Search:
    """One call of `plan` under way. States are in units of the config's `state_scale`."""

    def __init__(
        self,
        model: KernelModel | CheckedModel,
        config: PlannerConfig,
        problem: Problem,
        samples: int,
        budget: Budget,
        progress: Progress | None,
        trace: Trace | None,
    ) -> None:
        self.model, self.problem = model, problem
        self.config: Any = config  # of the planner's own class
        self.samples = samples
        self._budget, self._progress, self._trace = budget, progress, trace
        self.start, self.goal = problem.start, problem.goal
        self.iterations = self.model_calls = 0
        self.low, self.high = box(problem)
        self.warm = self.clip(problem.actions)
        ones = self.start.new_ones(problem.state_features)
        weight = problem.goal_feature_weight
        self.goal_weight = ones if weight is None else weight.to(ones.dtype)
        self.best_cost = self.start.new_full((problem.plans,), torch.inf)
        self.best_actions = self.warm
        states = self.start[:, None].expand(-1, config.horizon + 1, -1)
        # Of a plan without any finite rollout nothing is known but its start.
        self.best_states = torch.full_like(states, torch.nan).contiguous()
        self.best_states[:, 0] = self.start
        self.sound = torch.ones_like(self.best_cost, dtype=torch.bool)
        self.history: list[Tensor] = []
        #: The problems that are still searched; `start`, `goal`, `warm`, all rollouts are theirs.
        self.live = torch.arange(problem.plans, device=self.start.device)

    def leave(self, found: Tensor) -> None:
        """The live problems where `found (B',)` are done; their best plans stay what they are."""
        self.live, self.start, self.goal, self.warm = (
            values[~found] for values in (self.live, self.start, self.goal, self.warm)
        )

    # ------------------------------------------------------------------------------ noise, bounds

    def normals(self, count: int, steps: int, features: int, iteration: int) -> Tensor:
        """White noise `(B, count, steps, features)`, a function of seed, plan id and iteration."""
        ids = self.problem.problem_ids[self.live, None] * self.samples
        ids = ids + torch.arange(count, device=ids.device)
        noise = gaussian_noise(
            ids.numel(),
            steps,
            features,
            seed=self.config.seed,
            iteration=iteration,
            plan_ids=ids.flatten(),
            dtype=self.start.dtype,
        )
        return noise.view(*ids.shape, steps, features)

    @property
    def centre(self) -> Tensor:
        """The middle of the action box `(A,)`; where it is open, what is nearest to 0."""
        closed = torch.isfinite(self.low) & torch.isfinite(self.high)
        return self.clip(torch.where(closed, (self.low + self.high) / 2, 0.0))

    @property
    def half_width(self) -> Tensor:
        """Half the width of the action box `(A,)`, the unit of exploration.

        1 where the box is open, and where it is one point: units are divided by.
        """
        half = (self.high - self.low) / 2
        return torch.where(torch.isfinite(half) & (half > 0), half, 1.0)

    def clip(self, actions: Tensor) -> Tensor:
        return actions.clamp(self.low, self.high)

    # ------------------------------------------------------------------------------ true rollouts

    def rollout(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        """States `(B, R, T + 1, D)` and cost `(B, R)` of actions `(B, R, T, A)`; the best is kept.

        A rollout that is not finite costs inf.
        """
        states = self.imagine(actions)
        cost = self.cost_of(states)
        self.keep(actions, states, cost)
        return states, cost

    def imagine(self, actions: Tensor, start: Tensor | None = None) -> Tensor:
        """States `(B, R, T + 1, D)` of actions `(B, R, T, A)`, from the problems' starts."""
        problems, candidates = actions.shape[:2]
        if start is None:
            start = self.start[:, None].expand(-1, candidates, -1)
        rows, controls = start.flatten(0, 1), actions.flatten(0, 1)
        states = roll_out(self.model, rows, controls, self.config.max_rows)
        self.model_calls += self.config.horizon
        return states.view(problems, candidates, *states.shape[1:])

    def cost_of(self, states: Tensor) -> Tensor:
        """`sum_d w_d (s_T - g)_d^2`, `(B, R)`; inf where a state is not finite."""
        cost = terminal_cost(states, self.goal[:, None], self.goal_weight)
        sound = self.sound[self.live] & torch.isfinite(cost).all(1)
        self.sound = self.sound.index_copy(0, self.live, sound)
        return cost

    def cost_gradient(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        """`rollout`'s cost, and its gradient for one action per block, `(B, R, K, A)`."""
        problems, candidates = actions.shape[:2]
        controls = actions.flatten(0, 1).detach().requires_grad_()
        rows = self.start.repeat_interleave(candidates, 0)
        gradient = torch.empty_like(controls)
        states = []
        most = self.config.max_rows or max(len(rows), 1)
        for n in range(0, len(rows), most):
            block = slice(n, n + most)
            with torch.enable_grad():
                found = self.model.rollout(rows[block], controls[block], self.config.max_rows)
                goal = self.goal.repeat_interleave(candidates, 0)[block]
                cost = (self.goal_weight * (found[:, -1] - goal).square()).sum()
            (part,) = torch.autograd.grad(cost, controls, allow_unused=True)
            gradient[block] = needed(part)[block]
            states.append(found.detach())
        self.model_calls += 2 * self.config.horizon
        shape = (problems, candidates, self.config.horizon + 1, rows.shape[1])
        whole = (torch.cat(states) if states else rows.new_empty(shape)).view(shape)
        cost = self.cost_of(whole)
        self.keep(actions, whole, cost)
        return cost, sum_blocks(gradient, self.config.hold).unflatten(0, (problems, candidates))

    def finish(self, actions: Tensor) -> None:
        """Plans `(B, R, T, A)` after the last iteration: where the search came to rest."""
        self.rollout(self.clip(actions))
        self.tell()

    # ------------------------------------------------------------------------------- the best plan

    def keep(self, actions: Tensor, states: Tensor, cost: Tensor) -> None:
        """Each problem's cheapest of `(B, R, ...)`, where it is cheaper than what there was."""
        if cost.numel() == 0:
            return
        least, which = cost.min(1)
        rows = torch.arange(len(which), device=which.device)
        self.choose(
            least < self.best_cost[self.live], actions[rows, which], states[rows, which], least
        )

    def choose(self, where: Tensor, actions: Tensor, states: Tensor, cost: Tensor) -> None:
        """From now on these are the best of the live problems `where (B',)`."""
        self.best_cost = self._chosen(where, cost, self.best_cost)
        self.best_actions = self._chosen(where, actions, self.best_actions)
        self.best_states = self._chosen(where, states, self.best_states)

    def _chosen(self, where: Tensor, new: Tensor, best: Tensor) -> Tensor:
        """`best (B, ...)` with `new (B', ...)` in it; selecting by a mask would wait for it."""
        return best.index_copy(0, self.live, along(where, new, best[self.live]))

    def done(self, iteration: int) -> None:
        """An iteration is over: remember the best cost, tell who asked to know, mind the time."""
        self.iterations = iteration
        self.history.append(self.best_cost)
        self.tell()
        if self._progress is not None:
            self._progress(iteration)
        if self._budget.check():
            raise OutOfTime

    def tell(self) -> None:
        """The best plans so far, to whoever traces them."""
        if self._trace is not None:
            best = self.best_actions, self.best_cost
            self._trace(Moment(self.iterations, self.model_calls, *best))

    def result(self) -> Plan:
        problem = self.problem
        if not bool(self.sound.all()):
            warn_non_finite(self.sound[:, None], problem.problem_ids)
        states = self.best_states * problem.units
        states[:, 0] = problem.start_given  # as it came: scaling and back may round
        history = (
            torch.stack(self.history)
            if self.history
            else self.best_cost.new_empty(0, problem.plans)
        )
        return Plan(
            actions=self.best_actions,
            states=states,
            cost=self.best_cost,
            candidate_cost=self.best_cost[:, None],
            loss_history=history[..., None],
            iterations=self.iterations,
            model_calls=self.model_calls,
            finite=torch.isfinite(self.best_cost),
            backend=grasp_kernels.backend_for(self.start.device, self.start.dtype),
            path=self.model.path,
            out_of_time=self._budget.spent,
        )


def box(problem: Problem) -> tuple[Tensor, Tensor]:
    """The action bounds `(A,)` in the states' dtype, infinite where there are none."""
    open_end = problem.start.new_full((problem.action_features,), torch.inf)
    low = -open_end if problem.action_low is None else problem.action_low.to(open_end)
    high = open_end if problem.action_high is None else problem.action_high.to(open_end)
    return low, high
