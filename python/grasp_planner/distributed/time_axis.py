"""Lifted plans whose time axis is shared out: every rank has a stretch of steps of all plans.

A lifted step of a virtual state looks at the state before it and at nothing else (METHOD: the
residual `s_t - F(s_{t-1}, a_{t-1})`, differentiated for `s_t` alone). So an iteration needs one row
of the rank before, whatever the horizon. What is serial stays so: a true rollout passes from rank
to rank, and its gradient back.

Symbols: N plans, T steps of which this rank has t, D state features, A action features.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from grasp_kernels.reference import block_sum
from grasp_planner.algorithm import Algorithm
from grasp_planner.base import Planner
from grasp_planner.config import GAUSS_NEWTON
from grasp_planner.costs import NEVER, Objective
from grasp_planner.distributed.neighbours import Neighbours
from grasp_planner.goals import is_one_state
from grasp_planner.initial import plan_blocks
from grasp_planner.inputs import Problem
from grasp_planner.isolation import Solve, part_of, solve_apart
from grasp_planner.lifted_plans import LiftedPlans
from grasp_planner.models import KernelModel
from grasp_planner.plan import Plan
from grasp_planner.planner import GraspPlanner
from grasp_planner.search import Search
from grasp_planner.synced_plans import all_finite, rollout_cost
from grasp_planner.whole_plan import WHOLE_PLAN
from grasp_planner.world_model import (
    CheckedModel,
    WorldModelError,
    is_out_of_memory,
    needed,
)

T = TypeVar("T")
SUMMED = 1024  # losses of steps that `block_sum` adds up at a time


@dataclass(frozen=True)
class Span:
    """Steps `first ... last - 1` of T; `piece`: losses of so many steps are added up here."""

    first: int
    last: int
    horizon: int
    piece: int

    @property
    def steps(self) -> int:
        return self.last - self.first

    @classmethod
    def of(cls, rank: int, size: int, horizon: int, hold: int) -> Span:
        """Blocks of steps, shared out evenly; a rank never has a part of a block.

        The actions of a block are held; and where there are enough steps, the losses of one are
        added up as one process adds them up.
        """
        unit = math.lcm(hold, SUMMED)
        piece = SUMMED if horizon >= size * unit else 1
        unit = unit if piece == SUMMED else hold
        blocks = -(-horizon // unit)
        if blocks < size:
            raise ValueError(
                f"config.horizon must have a block of held actions for each of {size} ranks, at "
                f"least {(size - 1) * hold + 1} steps, got {horizon}"
            )
        mine = part_of(blocks, rank, size)
        return cls(mine.start * unit, min(mine.stop * unit, horizon), horizon, piece)


class SlicedPlans(LiftedPlans):
    """The steps of lifted plans that are this rank's.

    Ranks wait for one another all the time. So an error of a rank's own work does not end its
    search at once: it keeps step, with NaNs, until the next `share`, where the search ends on all.
    """

    waits = True  # else ranks would learn at different times who has arrived, and need not wait

    def __init__(self, search: Search, span: Span, neighbours: Neighbours) -> None:
        super().__init__(search)
        self.span, self.neighbours = span, neighbours
        self.error: Exception | None = None
        self.first, self.horizon = span.first, span.horizon
        if not self.ends:  # the last row here is a state like any other
            self.end = span.steps + 1

    def begin(self) -> None:
        pieces = -(-self.span.steps // self.span.piece)
        shape = (*self.search.history.shape, pieces)
        #: Every iteration's losses, `(K, B, R, pieces)`: those of others are asked for at the end.
        self.pieces = self.schedule.new_full(shape, torch.nan)
        super().begin()

    # -------------------------------------------------------------------------------- own errors

    def own(self, work: Callable[[], T], instead: Callable[[], T]) -> T:
        """What this rank works out by itself; after an error, something of the same shape."""
        if self.error is None:
            try:
                return work()
            except Exception as error:
                self.error = error
        return instead()

    def share(self) -> None:
        """An error ends the search here, on all ranks: of the world model by the same error."""
        well = self.sound.new_tensor([self.error is None])
        flags = self.neighbours.all_true(torch.cat((self.sound, well)))
        if not bool(flags[-1]):
            self.end_by_error()
        self.sound = flags[:-1]
        super().share()

    def end_by_error(self) -> None:
        """Of the world model where no rank has met another: then problems can be kept apart."""
        (error, self.error), ranks = (self.error, None), self.neighbours
        of_model = error is not None and (
            isinstance(error, WorldModelError) or is_out_of_memory(error)
        )
        told = None if error is None else (of_model, type(error).__name__, str(error))
        everyones = enumerate(ranks.everyones(told))
        errors = [(rank, *said) for rank, said in everyones if said is not None]
        others = [(rank, f"{name}: {words}") for rank, theirs, name, words in errors if not theirs]
        if not others:
            # Without our own frames, which hold every tensor of the search.
            raise WorldModelError(errors[0][3]) from (None if error is None else error.__cause__)
        if error is not None and not of_model:
            raise error
        raise ranks.left_by(*others[0]) from error

    # ------------------------------------------------------------------------- lifted iterations

    def iterate(self, k: int) -> int:
        before = self.neighbours.shift(self.trajectory[:, -1])
        if before is not None:
            self.trajectory[:, 0] = before
        return super().iterate(k)

    def fused_pass(self, k: int, step_loss: Tensor, extra: Tensor | None) -> Tensor:
        whole = super().fused_pass
        return self.own(lambda: whole(k, step_loss, extra), lambda: torch.zeros_like(self.actions))

    def total(self, k: int, step_loss: Tensor) -> Tensor:
        """The loss of the steps that are here; what makes up the whole of it is kept."""
        lacking = -step_loss.shape[1] % self.span.piece
        blocks = pad(step_loss, (0, lacking)).unflatten(1, (-1, self.span.piece))
        pieces = blocks.sum(-1).unflatten(0, (-1, self.candidates))
        self.pieces[k - 1] = self.pieces[k - 1].index_copy(0, self.search.live, pieces)
        return block_sum(step_loss)

    def whole_history(self, found: Tensor) -> Tensor:
        """Losses `(iterations, B, R)` of all steps, from those of the steps that are here."""
        everyones = self.neighbours.everyones(self.pieces[: len(found)].cpu())
        pieces = torch.cat(everyones, -1).to(found.device)
        total = block_sum(pieces) if self.span.piece == 1 else pieces.sum(-1)
        return torch.where(torch.isnan(found), torch.nan, total.to(found.dtype))

    # ------------------------------------------------------------------------------ true rollouts

    def rolled_out(self, plans: slice, with_gradient: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """This rank's steps of the rollout; its cost, which the last rank tells all; its gradient,
        which comes back from rank to rank.
        """
        ranks = self.neighbours
        actions = self.actions[plans].detach().requires_grad_(with_gradient)
        with torch.set_grad_enabled(with_gradient):
            start, states = self.passed_on(plans, actions)
            end, cost = states[:, -1], self.best_cost[plans].clone()  # a place for it
            if ranks.last:
                cost = rollout_cost(states, self.goal[plans], self.problem.goal_feature_weight)
            total = cost.sum()
        found = None
        if with_gradient:
            of, cotangent = (total, None) if ranks.last else (end, ranks.receive(end.detach(), 1))
            found, back = self.own(
                lambda: self.pulled_through(of, (actions, start), cotangent),
                lambda: (torch.zeros_like(actions), torch.zeros_like(start)),
            )
            if not ranks.first:
                ranks.send(back, -1)
        return states.detach(), ranks.from_last(cost.detach()), found

    @staticmethod
    def pulled_through(
        of: Tensor, given: tuple[Tensor, Tensor], cotangent: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The gradients for actions and first state; a model may forget the state."""
        found, back = torch.autograd.grad(of, given, cotangent, allow_unused=True)
        return needed(found), torch.zeros_like(given[1]) if back is None else back

    def passed_on(self, plans: slice, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Where the rank before has left these plans, and their states `(n, t + 1, D)` from there
        on; the next rank gets the last of them.
        """
        ranks, start = self.neighbours, self.start[plans]
        if not ranks.first:
            start = ranks.receive(start, -1)
        start = start.detach().requires_grad_(actions.requires_grad)
        shape = (len(start), self.span.steps + 1, self.problem.state_features)
        states = self.own(
            lambda: self.model.rollout(start, actions, self.config.max_rows),
            lambda: start.new_full(shape, torch.nan),
        )
        if not ranks.last:
            ranks.send(states[:, -1].detach(), 1)
        return start, states

    def imagine(self, actions: Tensor) -> Tensor:
        blocks = plan_blocks(len(actions), self.config.max_rows)
        parts = [self.passed_on(plans, actions[plans])[1] for plans in blocks]
        return torch.cat(parts) if parts else super().imagine(actions)

    def finite(self, states: Tensor) -> Tensor:
        return self.neighbours.all_true(all_finite(states))


class TimeSlice(GraspPlanner):
    """What a rank makes of a planner: one of the steps that are its own, for one `plan`.

    A plan has actions `(B, t, A)` and states `(B, t + 1, D)`, of which those of its own steps count
    and the first is nobody's; all else is of the whole plan.
    """

    def __init__(self, planner: GraspPlanner, neighbours: Neighbours) -> None:
        config = planner.config
        for wrong, words in (
            (config.state_optimizer != "sgd", "config.state_optimizer 'sgd'"),
            (config.state_gradient_scale != NEVER, "config.state_gradient_scale 0"),
            (config.sync_optimizer == GAUSS_NEWTON, "config.sync_optimizer 'adam' or 'sgd'"),
        ):
            if wrong:
                raise ValueError(f"over 'time' needs {words}")
        self.span = Span.of(neighbours.rank, neighbours.size, config.horizon, config.hold)
        self.neighbours = neighbours
        super().__init__(planner.world_model, replace(config, horizon=self.span.steps))
        self._accelerated = planner.accelerated()

    def _solved(self, problem: Problem, solve: Solve) -> Plan:
        """Problems are kept apart as in one process, on all ranks alike."""

        def together(planner: Planner, part: Problem, whole: bool) -> Plan:
            try:
                found = solve(planner, part, whole)
            except (torch.OutOfMemoryError, MemoryError) as error:
                # Nothing may be tried again on one rank alone.
                raise RuntimeError(f"out of memory between two ranks: {error}") from error
            return replace(found, loss_history=self.sliced.whole_history(found.loss_history))

        return solve_apart(self, problem, together)

    def _open(self, problem: Problem) -> KernelModel | CheckedModel:
        model = super()._open(problem)
        if model.path == WHOLE_PLAN:
            raise ValueError(
                "over 'time' plans step by step: set config.kernels to 'step', with which one "
                "process finds the same plans"
            )
        if not model.markov:
            raise ValueError("over 'time' needs a world model of single states without noise")
        adds = Objective.of(self.config, problem, self.config.iterations).adds
        if adds or not is_one_state(problem.target):
            raise ValueError(
                "over 'time' needs a goal that is one state, and a config that adds nothing to it"
            )
        return model

    def _algorithm(self, search: Search) -> Algorithm:
        self.sliced = SlicedPlans(search, self.span, self.neighbours)
        return self.sliced
