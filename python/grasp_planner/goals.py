"""Goals beyond one state: subsets of features, regions, waypoints, alternatives.

A goal is a set of states, and a plan is as far from it as its last state is from the nearest state
of the set, `sum_d w_d (s_T - nearest(s_T))_d^2` with the planner's `goal_feature_weight`. All
planners take any of these where they take a goal state. In the planner a goal is a `Target`: the
same in units of `state_scale`, a row per problem.

Symbols: B problems, b of them, R candidates each, K states of a goal, T steps, D state features.
"""

from __future__ import annotations

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from numbers import Real
from typing import Any, ClassVar

import torch
from torch import Tensor


class Goal(ABC):
    """A set of states to end in; see the classes that are one."""

    per_problem: ClassVar[dict[str, int]]
    """The tensors of a goal, and how many dimensions each has where it has a row per problem: with
    one fewer, all problems share it."""

    @abstractmethod
    def target(self, start: Tensor, units: Tensor) -> Target:
        """In units `(D,)`, for problems that start at `start (B, D)`, unscaled.

        Raises:
            TypeError, ValueError: a part of the goal has the wrong shape, type or device, or is not
                finite; it is named.
        """

    def take(self, rows: Tensor) -> Goal:
        """The goals of the problems `rows`; parts that all problems share stay as they are."""
        parts = {n: getattr(self, n)[rows] for n in self.per_problem if self._has_rows(n)}
        return replace(self, **parts)  # type: ignore[type-var]

    def copy(self) -> Goal:
        """The same, whatever is done to the tensors of this one."""
        names = [n for n in self.per_problem if isinstance(getattr(self, n), Tensor)]
        return replace(self, **{n: getattr(self, n).clone() for n in names})  # type: ignore

    def differs(self, other: Any, count: int) -> Tensor:
        """`(count,)` bool: which of `count` problems has another goal here than in `other`."""
        every = torch.ones(count, dtype=torch.bool)
        if type(other) is not type(self):
            return every
        differs = ~every
        for name, ours in vars(self).items():
            theirs = getattr(other, name)
            if not isinstance(ours, Tensor) or not isinstance(theirs, Tensor):
                differs |= torch.as_tensor(ours is not theirs and ours != theirs)
            elif ours.shape != theirs.shape or not self._has_rows(name):
                differs |= not torch.equal(ours, theirs)
            else:
                differs |= rows_differ(ours, theirs).cpu()
        return differs

    def _has_rows(self, name: str) -> bool:
        part = getattr(self, name)
        return isinstance(part, Tensor) and part.dim() == self.per_problem.get(name)


def rows_differ(ours: Tensor, theirs: Tensor) -> Tensor:
    """`(B,)` bool: which rows of `(B, ...)` are not the same in both."""
    return (ours != theirs).unsqueeze(-1).flatten(1).any(1)  # (B,) is of rows, too


@dataclass(frozen=True, eq=False)
class Subset(Goal):
    """Some features of a state; the others may end anywhere.

    Attributes:
        state: `(B, D)` or `(D,)`; what it says about other features is not read, but finite.
        features: which features, each 0 ... D - 1, the same for all problems.
    """

    per_problem: ClassVar = {"state": 2}

    state: Tensor
    features: Sequence[int]

    def target(self, start: Tensor, units: Tensor) -> Target:
        state = _states("goal.state", self.state, start)
        mask = torch.zeros_like(units)
        features = _whole_numbers("goal.features", self.features)
        for feature in features:
            if not 0 <= feature < len(units):
                raise ValueError(f"goal.features must be from 0 to {len(units) - 1}, got {feature}")
            mask[feature] = 1.0
        if not features:
            raise ValueError("goal.features must name a feature, got none")
        return Point(torch.where(mask > 0, state, start) / units, mask)


@dataclass(frozen=True, eq=False)
class Region(Goal):
    """A box: every feature between `low` and `high`, either of which may be infinite.

    Attributes:
        low, high: `(B, D)` or `(D,)`, low <= high, not NaN.
    """

    per_problem: ClassVar = {"low": 2, "high": 2}

    low: Tensor
    high: Tensor

    def target(self, start: Tensor, units: Tensor) -> Target:
        low = _states("goal.low", self.low, start, finite=False)
        high = _states("goal.high", self.high, start, finite=False)
        if bool((low > high).any()):
            raise ValueError("goal.low must not be above goal.high")
        return Box(low / units, high / units)


@dataclass(frozen=True, eq=False)
class Anywhere(Goal):
    """Every state: there is no goal, and the config's `cost` alone counts."""

    per_problem: ClassVar = {}

    def target(self, start: Tensor, units: Tensor) -> Target:
        return Box(torch.full_like(start, -torch.inf), torch.full_like(start, torch.inf))


@dataclass(frozen=True, eq=False)
class Ball(Goal):
    """All states near a centre: `sqrt(sum_d w_d (s - centre)_d^2) <= radius`, on scaled states.

    Attributes:
        centre: `(B, D)` or `(D,)`.
        radius: a number or `(B,)`, >= 0, in the planner's own measure of distance.
    """

    per_problem: ClassVar = {"centre": 2, "radius": 1}

    centre: Tensor
    radius: float | Tensor

    def target(self, start: Tensor, units: Tensor) -> Target:
        centre = _states("goal.centre", self.centre, start)
        radius = self.radius
        if not isinstance(radius, Tensor):
            radius = start.new_tensor(_number("goal.radius", radius))
        elif radius.device != start.device:
            raise ValueError(
                f"goal.radius must be on the device of start, {start.device}, got {radius.device}"
            )
        radius = radius.to(start.dtype)
        if radius.dim() > 1 or (radius.dim() == 1 and len(radius) != len(start)):
            raise ValueError(f"goal.radius must be a number or (B,), got {tuple(radius.shape)}")
        if not bool((radius >= 0).all()):
            raise ValueError("goal.radius must be at least 0")
        return Disc(centre / units, radius.expand(len(start)).clone())


@dataclass(frozen=True, eq=False)
class Alternatives(Goal):
    """Any one of several states: the nearest counts.

    Attributes:
        states: `(B, K, D)` or `(K, D)`, K >= 1.
    """

    per_problem: ClassVar = {"states": 3}

    states: Tensor

    def target(self, start: Tensor, units: Tensor) -> Target:
        return AnyOf(_several("goal.states", self.states, start) / units)


@dataclass(frozen=True, eq=False)
class Waypoints(Goal):
    """States to pass in order, of which the last is to end in.

    Each of the others costs its squared distance to the trajectory at the time when it is passed:
    `steps`, or, where that is None, the times that suit best, in order (by dynamic programming).

    Attributes:
        states: `(B, K, D)` or `(K, D)`, K >= 1.
        steps: K - 1 steps, rising, each from 1 to T - 1; or None.
        weight: of each state's squared distance, beside the last one's. >= 0; 1.
    """

    per_problem: ClassVar = {"states": 3}

    states: Tensor
    steps: Sequence[int] | None = None
    weight: float = 1.0

    def target(self, start: Tensor, units: Tensor) -> Target:
        states = _several("goal.states", self.states, start) / units
        steps = None if self.steps is None else _whole_numbers("goal.steps", self.steps)
        if steps is not None:
            if len(steps) != states.shape[1] - 1:
                raise ValueError(
                    f"goal.steps must be {states.shape[1] - 1}, one for each waypoint but the "
                    f"last, got {len(steps)}"
                )
            falls = any(a >= b for a, b in pairwise(steps))
            if falls or min(steps, default=1) < 1:
                raise ValueError(f"goal.steps must be rising from 1, got {steps}")
        weight = _number("goal.weight", self.weight)
        if not 0 <= weight < math.inf:
            raise ValueError(f"goal.weight must be at least 0 and finite, got {weight}")
        return Path(states[:, -1], states[:, :-1], steps, weight)


# -------------------------------------------------------------------- in the planner, in its units


@dataclass(frozen=True, eq=False)
class Target(ABC):
    """A goal in the planner's units: tensors with a row for each of b problems."""

    @abstractmethod
    def nearest(self, states: Tensor, weight: Tensor) -> Tensor:
        """The states of the goal that are nearest to `states (b, R, ..., D)`, `weight (D,)`."""

    def first(self, start: Tensor, candidates: int, weight: Tensor) -> Tensor:
        """A state of the goal for every candidate, `(b, R, D)`: where a straight line leads to."""
        return self.nearest(start[:, None], weight).expand(-1, candidates, -1)

    def on_the_way(self, states: Tensor, weight: Tensor) -> Tensor | None:
        """What `states (b, R, T + 1, D)` cost before their end, `(b, R)`; None is nothing."""
        return None

    def take(self, rows: Tensor) -> Any:
        """The goals of the problems `rows`."""
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{n: v[rows] for n, v in parts.items() if isinstance(v, Tensor)})

    def tensors(self) -> list[Tensor]:
        values = [getattr(self, f.name) for f in fields(self)]
        return [value for value in values if isinstance(value, Tensor)]


@dataclass(frozen=True, eq=False)
class Point(Target):
    """One state `(b, D)`; of it, where `mask (D,)` is not None, the features with 1."""

    state: Tensor
    mask: Tensor | None = None

    def nearest(self, states: Tensor, weight: Tensor) -> Tensor:
        return _beside(self.state, states).expand_as(states)

    def take(self, rows: Tensor) -> Point:
        return Point(self.state[rows], self.mask)


def is_one_state(target: Target) -> bool:
    """Whether it is one state with all its features, which a last virtual state can be fixed to."""
    return isinstance(target, Point) and target.mask is None


@dataclass(frozen=True, eq=False)
class Box(Target):
    """From `low` to `high (b, D)`."""

    low: Tensor
    high: Tensor

    def nearest(self, states: Tensor, weight: Tensor) -> Tensor:
        low, high = _beside(self.low, states), _beside(self.high, states)
        return torch.minimum(torch.maximum(states, low), high)


@dataclass(frozen=True, eq=False)
class Disc(Target):
    """Around `centre (b, D)`, up to `radius (b,)`."""

    centre: Tensor
    radius: Tensor

    def nearest(self, states: Tensor, weight: Tensor) -> Tensor:
        away = states - _beside(self.centre, states)
        distance = (weight * away.square()).sum(-1, keepdim=True).clamp_min(1e-30).sqrt()
        share = (_beside(self.radius[:, None], distance) / distance).clamp_max(1.0)
        # What is inside is its own nearest, to the bit; what has no weight is at no distance.
        return torch.where((share >= 1) | (weight == 0), states, states - (1 - share) * away)


@dataclass(frozen=True, eq=False)
class AnyOf(Target):
    """One of `states (b, K, D)`."""

    states: Tensor

    def nearest(self, states: Tensor, weight: Tensor) -> Tensor:
        best, least = None, None
        for k in range(self.states.shape[1]):  # K copies at once would be K times the memory
            state = _beside(self.states[:, k], states).expand_as(states)
            distance = (weight * (states - state).square()).sum(-1, keepdim=True)
            if best is None or least is None:
                best, least = state, distance
            else:
                best = torch.where(distance < least, state, best)
                least = torch.minimum(distance, least)
        assert best is not None
        return best

    def first(self, start: Tensor, candidates: int, weight: Tensor) -> Tensor:
        """Candidates go to all of them in turn, the nearest of the start first."""
        distance = (weight * (self.states - start[:, None]).square()).sum(-1)
        order = distance.argsort(dim=1, stable=True)
        which = order[:, torch.arange(candidates, device=start.device) % order.shape[1]]
        return self.states.gather(1, which[..., None].expand(-1, -1, start.shape[1]))


@dataclass(frozen=True, eq=False)
class Path(Target):
    """Past `states (b, K - 1, D)` in order, at `steps` or when it suits, to `last (b, D)`."""

    last: Tensor
    states: Tensor
    steps: tuple[int, ...] | None
    weight: float

    def nearest(self, states: Tensor, weight: Tensor) -> Tensor:
        return _beside(self.last, states).expand_as(states)

    def on_the_way(self, states: Tensor, weight: Tensor) -> Tensor | None:
        count, between = self.states.shape[1], states[:, :, 1:-1]
        if count == 0:
            return None
        if between.shape[2] < count:
            raise ValueError(
                f"goal.states are {count + 1}, which takes as many steps, "
                f"got a horizon of {between.shape[2] + 1}"
            )
        if self.steps is not None and self.steps[-1] > between.shape[2]:
            raise ValueError(
                f"goal.steps must be below the horizon, {between.shape[2] + 1}, got {self.steps}"
            )
        total = None
        for k in range(count):
            waypoint = self.states[:, k, None, None]
            distance = (weight * (between - waypoint).square()).sum(-1)  # (b, R, T - 1)
            if self.steps is not None:
                here = distance[:, :, self.steps[k] - 1]
                total = here if total is None else total + here
            else:
                # The least for waypoints 0 ... k at or before each step, k as late as that step.
                if total is not None:
                    later = distance[:, :, k:] + total[:, :, : distance.shape[2] - k]
                else:
                    later = distance
                total = later.cummin(-1).values
        assert total is not None
        return self.weight * (total if self.steps is not None else total[:, :, -1])


# --------------------------------------------------------------------------------------- the parts


def _beside(ours: Tensor, states: Tensor) -> Tensor:
    """`ours (..., b, D)` against `states (b, R, ..., D)`."""
    return ours.unflatten(-1, (*[1] * (states.dim() - 2), -1))


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    return float(value)


def _whole_numbers(name: str, values: Any) -> tuple[int, ...]:
    try:
        given = tuple(values)
        if any(isinstance(value, bool) for value in given):  # which is an index, too
            raise TypeError("no ints")
        return tuple(operator.index(value) for value in given)
    except TypeError as error:
        raise TypeError(f"{name} must be ints, got {values!r}") from error


def _states(name: str, value: Any, start: Tensor, finite: bool = True) -> Tensor:
    """`(B, D)` like `start`."""
    _check(name, value, start, finite)
    if value.dim() not in (1, 2) or value.shape[-1] != start.shape[1]:
        wanted = f"(B, D) or (D,), D = {start.shape[1]}"
        raise ValueError(f"{name} must be {wanted}, got {tuple(value.shape)}")
    if value.dim() == 2 and len(value) != len(start):
        raise ValueError(
            f"{name} must have a row for each of {len(start)} problems, got {len(value)}"
        )
    return value.expand_as(start).clone()


def _several(name: str, value: Any, start: Tensor) -> Tensor:
    """`(B, K, D)`, each state like one of `start`."""
    _check(name, value, start, True)
    if value.dim() not in (2, 3) or value.shape[-1] != start.shape[1] or value.shape[-2] == 0:
        wanted = f"(B, K, D) or (K, D), K >= 1, D = {start.shape[1]}"
        raise ValueError(f"{name} must be {wanted}, got {tuple(value.shape)}")
    if value.dim() == 3 and len(value) != len(start):
        raise ValueError(
            f"{name} must have a row for each of {len(start)} problems, got {len(value)}"
        )
    return value.expand(len(start), -1, -1).clone()


def _check(name: str, value: Any, start: Tensor, finite: bool) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if value.dtype != start.dtype:
        raise TypeError(f"{name} must have the dtype of start, {start.dtype}, got {value.dtype}")
    if value.device != start.device:
        raise ValueError(
            f"{name} must be on the device of start, {start.device}, got {value.device}"
        )
    if bool(value.isnan().any()) or (finite and bool(value.isinf().any())):
        raise ValueError(f"{name} must {'be finite' if finite else 'not be NaN'}")
