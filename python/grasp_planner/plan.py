"""What a planner returns."""

from __future__ import annotations

from dataclasses import dataclass, field

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
        cost: `(B,)`, weighted squared distance of the last state to the goal; inf where no
            candidate had a finite rollout.
        candidate_cost: `(B, R)`, the best cost of every candidate.
        loss_history: `(iterations, B, R)`, total lifted loss before each iteration's step.
        iterations: how many lifted iterations ran.
        finite: `(B,)` bool, False where every candidate of the problem went non-finite.
        backend: which kernels ran, and why those.
        path: "whole-plan MLP kernels" where the world model allowed them, else "general path: " and
            the reason: model and kernels were called iteration by iteration.
        snapshots: iteration -> virtual states `(B, R, T + 1, D)`, for the iterations asked for.
    """

    actions: Tensor
    states: Tensor
    cost: Tensor
    candidate_cost: Tensor
    loss_history: Tensor
    iterations: int
    finite: Tensor
    backend: str
    path: str
    snapshots: dict[int, Tensor] = field(default_factory=dict)
