"""What all planners are: settings and a world model, and the one `plan` call."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from typing import Any, ClassVar

import torch
from torch import Tensor

from grasp_planner.algorithm import Algorithm
from grasp_planner.compiled import Accelerated
from grasp_planner.goals import Goal
from grasp_planner.inputs import Context, Problem, check_problem, check_snapshots
from grasp_planner.isolation import Solve, part_of, solve_apart
from grasp_planner.models import KernelModel, open_model
from grasp_planner.options import PlannerConfig
from grasp_planner.plan import Plan
from grasp_planner.running import Budget, Callback, Checkpoint, Progress, Watch
from grasp_planner.search import Search
from grasp_planner.world_model import CheckedModel, WorldModel, frozen


class Planner(ABC):
    """A planner over one world model: settings once, then any number of `plan` calls.

    Args:
        world_model: `F(state (rows, D), action (rows, A)) -> next state (rows, D)`; see
            `WorldModel`.
        config: how to plan; of the planner's own config class.
    """

    config_type: ClassVar[type[PlannerConfig]]
    algorithm_type: ClassVar[type[Algorithm]]
    shard = (0, 1)
    """Of B problems, which part this planner plans, of how many: all, unless processes share."""
    share: range | None = None
    """Of R candidates, those that are planned here; None is all, as for planners that sample."""

    def __init__(self, world_model: WorldModel, config: Any = None) -> None:
        if not callable(world_model):
            raise TypeError(f"world_model must be callable, got {type(world_model).__name__}")
        if config is not None and not isinstance(config, self.config_type):
            raise TypeError(
                f"config must be a {self.config_type.__name__}, got {type(config).__name__}"
            )
        self.world_model = world_model
        self.config: Any = self.config_type() if config is None else config
        self._accelerated: Accelerated | None = None

    def plan(
        self,
        start: Tensor | Mapping[str, Tensor],
        goal: Tensor | Mapping[str, Tensor] | Goal,
        *,
        actions: Tensor | None = None,
        plan_ids: Tensor | None = None,
        context: Context | None = None,
        past_actions: Tensor | None = None,
        time_budget_ms: float | None = None,
        progress: Progress | bool | None = None,
        callback: Callback | None = None,
        callback_at: int | Collection[int] | None = None,
        checkpoint: str | None = None,
        checkpoint_every: int = 10,
        snapshots: Collection[int] = (),
    ) -> Plan:
        """The best plan found for each of B problems.

        Args:
            start: `(B, D)` (or `(D,)` for one problem), finite. Of a `LatentModel`, dicts where its
                latents are, and with a history of H the last H states, `(B, H, D)` or the like.
            goal: one state like it, on the same device (of a dict, some entries are enough); or a
                `Goal`: a subset of features, a region, waypoints, alternatives
                (`grasp_planner.goals`).
            actions: `(B, T, A)` warm start, one of the plans that are compared.
            plan_ids: `(B,)` int64, 0 <= id < 2**63 / samples of a problem: the name of each problem
                for its noise; None is 0 ... B - 1. The same id gives the same plan alone, in a
                batch, or in chunks.
            context: `(B, ...)`, or a dict of such tensors: what belongs to each problem and is
                handed to the config's `cost` and `constraints`, N rows of it, as third argument.
            past_actions: `(B, H - 1, A)`, that led to the last of H states; None is no action.
            time_budget_ms: milliseconds after which no further iteration begins: the best plan so
                far is returned (by `GraspPlanner` after one more rollout), and `Plan.out_of_time`
                says so. At least one iteration is made, or one launch of several where whole plans
                are in a kernel. > 0; None is no limit.
            progress: called with k after iteration k is issued; True shows a progress bar.
            callback: called with a `Moment`, to look at and not to change: after the iterations
                `callback_at` (every so many, or these), or, where that is None, whenever the best
                plans may have become better.
            checkpoint: a file that the search is saved to every `checkpoint_every` iterations
                (>= 1; 10), replaced at once. Where it exists, the search goes on from it, to the
                same plans, bit for bit; when all is done it holds the end, and the same call
                returns that. Its time budget begins anew.
            snapshots: iterations (0 is the initialisation) whose virtual states are kept; of
                `GraspPlanner` alone.

        Raises:
            TypeError, ValueError: an argument or the world model's answer is wrong; it is named.
            CheckpointMismatchError: `checkpoint` is of a search for other plans.
            WorldModelError: the world model raised an error, or memory ran out, for every problem
                by itself. Where it is for some, the others are planned: see `Plan.failures`.
        """
        with torch.inference_mode(False), ExitStack() as stack, torch.no_grad():
            for model in self._models():
                stack.enter_context(frozen(model))
            problem = check_problem(
                self.world_model,
                self.config,
                start,
                goal,
                actions,
                plan_ids,
                self._samples(),
                context,
                past_actions,
            )
            budget = Budget(time_budget_ms, problem.start.device)
            watch = Watch(progress, callback, callback_at)
            saved = Checkpoint(checkpoint, checkpoint_every)
            wanted = check_snapshots(snapshots, self._iterations())

            def solve(planner: Planner, part: Problem, whole: bool) -> Plan:
                search = Search(planner, part, budget, watch, saved if whole else None, wanted)
                search.run()
                return search.result()

            return self._solved(problem, solve)

    def _solved(self, problem: Problem, solve: Solve) -> Plan:
        """The plans of those problems that are this planner's, whichever of them can be planned."""
        rank, size = self.shard
        if size > 1:
            problem = problem.take(list(part_of(problem.count, rank, size)))
        return solve_apart(self, problem, solve)

    def accelerated(self) -> Accelerated:
        """How this planner calls its world model; what is compiled once stays so."""
        if self._accelerated is None:
            self._accelerated = Accelerated(self.world_model, self.config.compile)
        return self._accelerated

    def _models(self) -> tuple[Callable[..., Tensor], ...]:
        """All that is learned and that plans depend on: left as it was, and told apart."""
        return (self.world_model,)

    @abstractmethod
    def _samples(self) -> int:
        """Into how many samples a problem is split at most, for the names of their noise."""

    def _iterations(self) -> int:
        """How many iterations a search has at most."""
        return int(self.config.iterations)

    def _open(self, problem: Problem) -> KernelModel | CheckedModel:
        """The world model in the planner's units, by kernels where that is possible."""
        return open_model(
            self.world_model,
            problem.start,
            problem.state_scale,
            problem.rows,
            self.config.precision,
            self.accelerated().call,
        )

    def _algorithm(self, search: Search) -> Algorithm:
        """The planner's variables in one search."""
        return self.algorithm_type(search)
