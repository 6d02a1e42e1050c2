"""What a planner returns."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class NonFiniteWarning(RuntimeWarning):
    """Some plans met a NaN or an infinity; the message names them. Others are unaffected."""


@dataclass(frozen=True, eq=False)
class Plan:
    """The best plan per problem, judged by its true rollout. B problems, R candidates each.

    Attributes:
        actions: `(B, T, A)`, inside the bounds.
        states: `(B, T + 1, D)`, the rollout of `actions` through the world model from `start`; NaN
            after the start where no candidate had a finite rollout.
        cost: `(B,)`: weighted squared distance of the last state to the goal, and what the config
            adds to it; inf where no candidate had a finite rollout.
        violation: `(B,)`, by how much the worst of the config's constraints is violated; 0 without
            any, inf where `cost` is.
        candidate_cost: `(B, R)`, the best cost of every candidate; R is 1 for planners that sample.
        loss_history: `(iterations, B, R)`: of `GraspPlanner` the total lifted loss before each
            iteration's step, of all others the best cost after each; NaN where a problem was not
            searched any more.
        iterations: how many iterations ran.
        out_of_time: whether the time budget ended the search: what is returned is the best until
            then.
        model_calls: evaluations of the model, or of its gradient, that had to wait for one another:
            a rollout of T steps is T, its gradient T more, a lifted iteration 2, however many rows
            each has. With enough parallel hardware, time is proportional to it.
        finite: `(B,)` bool, False where every candidate of the problem went non-finite.
        backend: which kernels ran, and why those.
        path: "whole-plan MLP kernels" or "MLP kernels" where the world model allowed them, the
            latter with the reason where `GraspPlanner` could not have the former; else "general
            path: " and the reason: the model was called from Python.
        snapshots: iteration -> virtual states `(B, R, T + 1, D)`, for the iterations asked for; NaN
            for problems that were done before.
        failures: problem (0 ... B - 1) -> why it could not be planned, where the world model raised
            an error or memory ran out: its cost is inf, its actions are the warm start.
    """

    actions: Tensor
    states: Tensor
    cost: Tensor
    candidate_cost: Tensor
    loss_history: Tensor
    iterations: int
    model_calls: int
    finite: Tensor
    backend: str
    path: str
    violation: Tensor
    out_of_time: bool = False
    snapshots: dict[int, Tensor] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)


def moved(plan: Plan, device: torch.device | str) -> Plan:
    """The same plan, its tensors on a device."""
    values: dict[str, Any] = {part.name: getattr(plan, part.name) for part in fields(plan)}
    for name, value in values.items():
        if isinstance(value, Tensor):
            values[name] = value.to(device)
    values["snapshots"] = {k: states.to(device) for k, states in plan.snapshots.items()}
    return Plan(**values)


def warn_non_finite(sound: Tensor, problem_ids: Tensor, first: int = 0) -> None:
    """Name every plan that met a NaN or an infinity; `first`: the first candidate's number."""
    broken = [(int(problem_ids[b]), r + first) for b, r in (~sound).nonzero().tolist()]
    names = in_short([f"plan_id {name} candidate {r}" for name, r in broken])
    warnings.warn(
        f"non-finite numbers in {len(broken)} of {sound.numel()} candidates: {names}. "
        "Their best finite rollout, if any, is kept; all other plans are unaffected.",
        NonFiniteWarning,
        stacklevel=level_of_caller(),
    )


def in_short(names: Sequence[str]) -> str:
    """The first ten of the names, and how many more there are."""
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(names[:10]) + more


def level_of_caller() -> int:
    """The `stacklevel` at which a warning points at whoever called this package."""
    here, level, frame = str(Path(__file__).parent), 1, inspect.currentframe()
    frame = frame.f_back if frame is not None else None
    while frame is not None and frame.f_code.co_filename.startswith(here):
        frame, level = frame.f_back, level + 1
    return level
