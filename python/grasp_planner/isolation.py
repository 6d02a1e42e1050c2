"""Problems that the world model cannot be planned through, kept apart from those that it can.

Plans do not depend on what is planned beside them. So where a batch fails, its halves are planned
each for itself, down to the problems that fail alone: all others get the plans that they would have
got anyway. A problem that is too large for the memory by itself is tried with fewer rows at a time.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from grasp_planner.inputs import Problem
from grasp_planner.plan import Plan, in_short, level_of_caller
from grasp_planner.world_model import WorldModelError

if TYPE_CHECKING:
    from grasp_planner.base import Planner

Solve = Callable[["Planner", Problem, bool], Plan]
"""`solve(planner, problem, whole)`: a plan, or an error; `whole` unless it is a part of a batch."""


class ModelFailureWarning(RuntimeWarning):
    """Some problems could not be planned; the message names them. Others are unaffected."""


def solve_apart(planner: Planner, problem: Problem, solve: Solve) -> Plan:
    """The plans of all problems that can be planned; an error if none can."""
    plan, first_error = _try(planner, problem, solve, whole=True)
    if plan is not None or first_error is None:
        assert plan is not None
        return plan
    parts: list[tuple[list[int], Plan | None]] = []
    failures: dict[int, str] = {}
    failed = [(list(range(problem.count)), first_error)]
    while failed:
        rows, error = failed.pop()
        if len(rows) > 1:
            for half in _halves(rows):
                plan, found = _try(planner, problem.take(half), solve, whole=False)
                if found is None:
                    parts.append((half, plan))
                else:
                    failed.append((half, found))
            continue
        plan = None
        if error.out_of_memory:
            plan, error = _with_fewer_rows(planner, problem.take(rows), solve, error)
        if plan is None:
            failures.update(dict.fromkeys(rows, str(error)))
        parts.append((rows, plan))
    if len(failures) == problem.count:
        raise first_error
    if failures:
        warn_of_failures(problem, failures)
    return joined(problem, parts, failures)


def warn_of_failures(problem: Problem, failures: dict[int, str]) -> None:
    """Name the problems of these numbers; `failures` says why each could not be planned."""
    ids = in_short([f"plan_id {int(problem.problem_ids[b])}" for b in sorted(failures)])
    message = (
        f"{len(failures)} of {problem.count} problems could not be planned: {ids} "
        f"({next(iter(failures.values()))}). All other plans are unaffected."
    )
    warnings.warn(message, ModelFailureWarning, stacklevel=level_of_caller())


def _try(
    planner: Planner, problem: Problem, solve: Solve, whole: bool
) -> tuple[Plan | None, WorldModelError | None]:
    """The plan, or why there is none; what the failed search held is free when this returns."""
    try:
        return solve(planner, problem, whole), None
    except (WorldModelError, torch.OutOfMemoryError, MemoryError) as failed:
        if isinstance(failed, WorldModelError):
            # Without its traceback, which holds every tensor of the search.
            error = failed.with_traceback(None)
        else:
            error = WorldModelError(f"out of memory: {failed}", out_of_memory=True)
    if error.out_of_memory and problem.start.device.type == "cuda":
        torch.cuda.empty_cache()
    return None, error


def _with_fewer_rows(
    planner: Planner, problem: Problem, solve: Solve, error: WorldModelError
) -> tuple[Plan | None, WorldModelError]:
    """`max_rows` halved until the plan fits; the last error if it never does."""
    most = planner.config.max_rows or planner._samples() * planner.config.horizon
    while error.out_of_memory and most > 1:
        most //= 2
        smaller = copy.copy(planner)
        smaller.config = replace(planner.config, max_rows=most)
        plan, found = _try(smaller, problem, solve, whole=False)
        if found is None:
            return plan, error
        error = found
    return None, error


def part_of(count: int, rank: int, size: int) -> range:
    """Of `count` things in order, those of part `rank` of `size` parts as even as can be."""
    return range(count * rank // size, count * (rank + 1) // size)


def _halves(rows: list[int]) -> list[list[int]]:
    middle = (len(rows) + 1) // 2
    return [rows[:middle], rows[middle:]]


def joined(
    problem: Problem, parts: list[tuple[list[int], Plan | None]], failures: dict[int, str]
) -> Plan:
    """One plan for all problems; of those without one, nothing but their start."""
    some = next(plan for _, plan in parts if plan is not None)
    known = [plan for _, plan in parts if plan is not None]
    iterations = max(plan.iterations for plan in known)
    order = torch.tensor([b for rows, _ in parts for b in rows], dtype=torch.int64)
    order = order.argsort().to(problem.start.device)

    def history(plan: Plan) -> Tensor:
        """`(B, iterations, R)`, NaN where there was none."""
        found = plan.loss_history.movedim(1, 0)
        lacks = len(found), iterations - found.shape[1], found.shape[2]
        return torch.cat((found, found.new_full(lacks, torch.nan)), 1)

    def values(name: str, plan: Plan | None, rows: list[int]) -> Tensor:
        of = some if plan is None else plan
        value = history(of) if name == "loss_history" else getattr(of, name)
        if plan is not None:
            return value
        if name == "actions":
            return problem.actions[rows].to(value)
        empty = {"states": torch.nan, "loss_history": torch.nan, "finite": False}
        made = value.new_full((1, *value.shape[1:]), empty.get(name, torch.inf))
        if name == "states":
            made[:, 0] = problem.start_given[rows]
        return made

    joined: dict[str, Any] = {}
    names = ("actions", "states", "cost", "candidate_cost", "violation", "finite", "loss_history")
    for name in names:
        joined[name] = torch.cat([values(name, plan, rows) for rows, plan in parts])[order]
    joined["loss_history"] = joined["loss_history"].movedim(0, 1)
    snapshots = {}
    for k in some.snapshots:
        like = some.snapshots[k]
        pieces = [
            like.new_full((1, *like.shape[1:]), torch.nan) if plan is None else plan.snapshots[k]
            for _, plan in parts
        ]
        snapshots[k] = torch.cat(pieces)[order]
    rest = {f.name: getattr(some, f.name) for f in fields(Plan) if f.name not in joined}
    rest |= {
        "iterations": iterations,
        "model_calls": sum(plan.model_calls for plan in known),
        "out_of_time": any(plan.out_of_time for plan in known),
        "snapshots": snapshots,
        "failures": dict(sorted(failures.items())),
    }
    return Plan(**joined, **rest)
