"""Lifted plans whose time axis is shared out: every rank has a stretch of steps of all plans.

A lifted step of a virtual state looks at the state before it and at nothing else (METHOD: the
residual `s_t - F(s_{t-1}, a_{t-1})`, differentiated for `s_t` alone). So an iteration needs one row
of the rank before, whatever the horizon. What is serial stays so: a true rollout passes from rank
to rank, and its gradient back.

Symbols: N plans, T steps of which this rank has t, D state features, A action features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from grasp_kernels.reference import block_sum
from grasp_planner.config import GAUSS_NEWTON
from grasp_planner.costs import NEVER, Objective
from grasp_planner.distributed.neighbours import Neighbours
from grasp_planner.goals import Point
from grasp_planner.initial import plan_blocks
from grasp_planner.inputs import Problem
from grasp_planner.isolation import Solve, part_of
from grasp_planner.lifted_plans import LiftedPlans
from grasp_planner.models import KernelModel
from grasp_planner.plan import Plan
from grasp_planner.planner import GraspPlanner
from grasp_planner.search import Algorithm, Search
from grasp_planner.synced_plans import all_finite, rollout_cost
from grasp_planner.whole_plan import WHOLE_PLAN
from grasp_planner.world_model import CheckedModel, needed

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
    """The steps of lifted plans that are this rank's."""

    def __init__(self, search: Search, span: Span, neighbours: Neighbours) -> None:
        super().__init__(search)
        self.span, self.neighbours = span, neighbours
        self.first, self.horizon = span.first, span.horizon
        if not self.ends:  # the last row here is a state like any other
            self.end = span.steps + 1

    def begin(self) -> None:
        pieces = -(-self.span.steps // self.span.piece)
        shape = (*self.search.history.shape, pieces)
        #: Every iteration's losses, `(K, B, R, pieces)`: those of others are asked for at the end.
        self.pieces = self.schedule.new_full(shape, torch.nan)
        super().begin()

    # ------------------------------------------------------------------------- lifted iterations

    def iterate(self, k: int) -> int:
        before = self.neighbours.shift(self.trajectory[:, -1])
        if before is not None:
            self.trajectory[:, 0] = before
        return super().iterate(k)

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
            given = (actions, start)
            if ranks.last:
                found, back = torch.autograd.grad(total, given, allow_unused=True)
            else:
                cotangent = ranks.receive(end.detach(), 1)
                found, back = torch.autograd.grad(end, given, cotangent, allow_unused=True)
            found = needed(found)
            if not ranks.first:
                ranks.send(torch.zeros_like(start) if back is None else back, -1)
        return states.detach(), ranks.from_last(cost.detach()), found

    def passed_on(self, plans: slice, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Where the rank before has left these plans, and their states `(n, t + 1, D)` from there
        on; the next rank gets the last of them.
        """
        ranks, start = self.neighbours, self.start[plans]
        if not ranks.first:
            start = ranks.receive(start, -1)
        start = start.detach().requires_grad_(actions.requires_grad)
        states = self.model.rollout(start, actions, self.config.max_rows)
        if not ranks.last:
            ranks.send(states[:, -1].detach(), 1)
        return start, states

    def imagine(self, actions: Tensor) -> Tensor:
        blocks = plan_blocks(len(actions), self.config.max_rows)
        parts = [self.passed_on(plans, actions[plans])[1] for plans in blocks]
        return torch.cat(parts) if parts else super().imagine(actions)

    def finite(self, states: Tensor) -> Tensor:
        return self.neighbours.all_true(all_finite(states))

    def share(self) -> None:
        self.sound = self.neighbours.all_true(self.sound)
        super().share()


class TimeSlice(GraspPlanner):
    """What a rank makes of a planner: one of the steps that are its own, for one `plan`."""

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

    def plan(self, *args: Any, **given: Any) -> Plan:
        """Of this rank's steps: actions `(B, t, A)` and states `(B, t + 1, D)`, the first of which
        is the last of the rank before; all else is of the whole plan.
        """
        found = super().plan(*args, **given)
        states, snapshots = found.states, dict(found.snapshots)
        for rows in (states, *snapshots.values()):
            before = self.neighbours.shift(rows[..., -1, :])
            if before is not None:
                rows[..., 0, :] = before
        history = self.sliced.whole_history(found.loss_history)
        return replace(found, loss_history=history)

    def _solved(self, problem: Problem, solve: Solve) -> Plan:
        """An error ends the search on all ranks: nothing is tried again on one of them alone."""
        return solve(self, problem, True)

    def _open(self, problem: Problem) -> KernelModel | CheckedModel:
        model = super()._open(problem)
        if model.path == WHOLE_PLAN:
            raise ValueError(
                "over 'time' plans step by step: set config.kernels to 'step', with which one "
                "process finds the same plans"
            )
        if not model.markov:
            raise ValueError("over 'time' needs a world model of single states without noise")
        whole = isinstance(problem.target, Point) and problem.target.mask is None
        if not whole or Objective.of(self.config, problem, self.config.iterations).adds:
            raise ValueError(
                "over 'time' needs a goal that is one state, and a config that adds nothing to it"
            )
        return model

    def _algorithm(self, search: Search) -> Algorithm:
        self.sliced = SlicedPlans(search, self.span, self.neighbours)
        return self.sliced
