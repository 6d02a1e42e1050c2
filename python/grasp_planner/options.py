"""What every planner's settings share, and how settings say what they accept."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any

from torch import Tensor

from grasp_planner.schedules import Schedule

Bound = float | tuple[float, ...]
CHECK = "check"  # the key of a field's check in its metadata


def integer(default: int | None, low: int, high: float = math.inf) -> Any:
    """A field of `low <= int <= high`; of None too, if that is the default."""
    return _checked(default, lambda name, value: _check_int(name, value, low, high))


def number(default: float | None, low: float = 0.0, high: float = math.inf) -> Any:
    """A field of finite numbers from `low` to `high`; of None too, if that is the default."""
    return _checked(default, lambda name, value: check_number(name, value, low, high))


def positive(default: float) -> Any:
    """A field of finite numbers above 0."""

    def check(name: str, value: Any) -> float:
        return _above_zero(name, check_number(name, value, 0.0))

    return _checked(default, check)


def schedule(default: float | Schedule, above_zero: bool = False, most: float = math.inf) -> Any:
    """A field of `Schedule`s, or of finite numbers from 0 (or above) to `most`: constant ones."""

    def check(name: str, value: Any) -> Schedule:
        if not isinstance(value, Schedule):
            value = Schedule(check_number(name, value, 0.0, most))
        for end in (value.start, value.end):
            if end is not None:
                check_number(name, end, 0.0, most)
            if end is not None and above_zero:
                _above_zero(name, end, value)
        return value

    return _checked(default, check)


def function() -> Any:
    """A field of None or of what can be called."""

    def check(name: str, value: Any) -> Any:
        if not callable(value):
            raise TypeError(f"{name} must be callable, got {type(value).__name__}")
        return value

    return _checked(None, check)


def instances(kind: type) -> Any:
    """A field of one of a kind, or of any number of them, as a tuple."""

    def check(name: str, value: Any) -> tuple[Any, ...]:
        values = (value,) if isinstance(value, kind) else value
        if not isinstance(values, Iterable) or not all(isinstance(v, kind) for v in values):
            raise TypeError(f"{name} must be {kind.__name__}s, got {value!r}")
        return tuple(values)

    return _checked((), check)


def choice(default: str, choices: Sequence[str]) -> Any:
    """A field of one of a few words."""

    def check(name: str, value: Any) -> Any:
        if value not in choices:
            raise ValueError(
                f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}"
            )
        return value

    return _checked(default, check)


def vector(above_zero: bool = False) -> Any:
    """A field of None, of sequences of finite numbers >= 0, or of such numbers by name."""

    def check(name: str, value: Any) -> tuple[Any, ...]:
        named = dict(value) if isinstance(value, Mapping) or _is_named(value) else {}
        if named:
            numbers = {n: check_number(f"{name}[{n!r}]", x, 0.0) for n, x in named.items()}
            if above_zero:
                numbers = {n: _above_zero(name, x, named) for n, x in numbers.items()}
            return tuple(numbers.items())
        values = _vector(name, value, 0.0)
        return tuple(_above_zero(name, v, values) for v in values) if above_zero else values

    return _checked(None, check)


def limit() -> Any:
    """A field of None, a number, or one number per action feature."""

    def check(name: str, value: Any) -> Bound:
        single = isinstance(value, Real) and not isinstance(value, bool)
        return float(value) if single else _vector(name, value, -math.inf)

    return _checked(None, check)


def _checked(default: Any, check: Callable[[str, Any], Any]) -> Any:
    """A field whose value `check` brings to normal form; None passes where it is the default."""

    def unless_none(name: str, value: Any) -> Any:
        return None if value is None and default is None else check(name, value)

    return field(default=default, metadata={CHECK: unless_none})


@dataclass(frozen=True)
class Constraint:
    """What plans are to keep.

    Attributes:
        function: differentiable `g(states (N, T + 1, D), actions (N, T, A)) -> (N,)` or `(N, C)` in
            the world model's units, with a `context` as third argument where `plan` is given one.
        kind: "inequality": g <= 0; or "equality": g = 0. "inequality".
    """

    function: Callable[..., Tensor]
    kind: str = "inequality"

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(f"function must be callable, got {type(self.function).__name__}")
        if self.kind not in ("inequality", "equality"):
            raise ValueError(f"kind must be 'inequality' or 'equality', got {self.kind!r}")


@dataclass(frozen=True)
class PlannerConfig:
    """The settings that every planner has. Any iterable of numbers may stand for a tuple.

    Attributes:
        horizon: T, time steps per plan. >= 1; 50.
        hold: steps that an action is held for: actions are constant over blocks of `hold` steps,
            the last of which may be shorter; a warm start is averaged over each block. >= 1; 1.
        state_scale: (D,), or, of a dict latent, a number by name for each entry, as all of (D,)
            here: the unit of each state feature; its standard deviation is a good choice.
            The planner works on state / state_scale, so that one step size, one noise scale and one
            weight mean the same for every feature. > 0; None is 1.
        goal_feature_weight: w, (D,), on scaled states: a plan costs `sum_d w_d (s_T - g)_d^2` at
            the end of its rollout. >= 0; None is 1.
        action_low, action_high: the box, a number or (A,). None is unbounded.
        max_rows: how many (plan, time) rows the world model sees at once at most. It bounds memory
            and changes no result. >= 1; None is all.
        action_features: A, where neither warm-start actions, bounds nor the world model tell.
            >= 1; None.
        seed: of all noise. 0 to 2**64 - 1; 0.
        precision: what the world model is computed in: "full" is its own, "bfloat16" and "float16"
            are autocast's (of the MLP kernels: bfloat16 weights); states, costs and steps stay as
            they are. "full".
        compile: "torch": `torch.compile` of a world model that is called from Python, and of
            `GraspPlanner`'s lifted iteration around it, at the first plan (seconds to minutes) and
            for the planner's life; "cuda-graph": its calls are captured, per shape, the last 8 of
            them; "none". "none".
        stop_cost: a plan that costs at most this, within all constraints, is good enough: its
            problem takes no part in any later iteration, and costs no more time. >= 0; None never
            stops.
        running_goal_weight: v, of the mean squared distance to the goal of the states on the way. A
            number or a `Schedule`, as all weights here, >= 0; 0.
        action_weight, action_change_weight: u, u', of the mean squared action, and of its mean
            squared change from step to step, in units of the action. >= 0; 0.
        cost: any differentiable `cost(states (N, T + 1, D), actions (N, T, A)) -> (N,)` in the
            world model's units, where `plan` is given a `context` `cost(states, actions, context)`.
            Planners that only sample need no gradient. None is no cost.
        cost_weight: c, of that cost. >= 0; 1.
        constraints: of `Constraint`s, all of which plans are to keep. ().
        constraint_method: "augmented-lagrangian", or "penalty", which leaves multipliers at 0.
            "augmented-lagrangian".
        penalty_weight: p, of squared violations. A number or a `Schedule`, > 0; 10.
        constraint_every: iterations (of `GraspPlanner`: syncs) between updates of the multipliers.
            >= 1; 1.
        constraint_tolerance: a constraint that is violated by at most this, in its own units, is
            kept. >= 0; 1e-3.
    """

    horizon: int = integer(50, 1)
    hold: int = integer(1, 1)
    state_scale: tuple[float, ...] | None = vector(above_zero=True)
    goal_feature_weight: tuple[float, ...] | None = vector()
    action_low: float | tuple[float, ...] | None = limit()
    action_high: float | tuple[float, ...] | None = limit()
    max_rows: int | None = integer(None, 1)
    action_features: int | None = integer(None, 1)
    seed: int = integer(0, 0, 2**64 - 1)
    precision: str = choice("full", ("full", "bfloat16", "float16"))
    compile: str = choice("none", ("none", "torch", "cuda-graph"))
    stop_cost: float | None = number(None)
    running_goal_weight: float | Schedule = schedule(0.0)
    action_weight: float | Schedule = schedule(0.0)
    action_change_weight: float | Schedule = schedule(0.0)
    cost: Callable[..., Tensor] | None = function()  # noqa: RUF009 (a field, as all here)
    cost_weight: float | Schedule = schedule(1.0)
    constraints: tuple[Constraint, ...] = instances(Constraint)
    constraint_method: str = choice("augmented-lagrangian", ("augmented-lagrangian", "penalty"))
    penalty_weight: float | Schedule = schedule(10.0, above_zero=True)
    constraint_every: int = integer(1, 1)
    constraint_tolerance: float = number(1e-3)

    def __post_init__(self) -> None:
        for given in fields(self):
            value = given.metadata[CHECK](given.name, getattr(self, given.name))
            # The normal form of a field, while the frozen instance is being made.
            object.__setattr__(self, given.name, value)
        _check_bounds(self.action_low, self.action_high)

    @property
    def blocks(self) -> int:
        """How many different actions a plan has: `ceil(horizon / hold)`."""
        return -(-self.horizon // self.hold)


def _is_named(value: Any) -> bool:
    """Whether a vector is in its normal form by name: pairs of a name and a number."""
    pairs = isinstance(value, tuple) and all(isinstance(v, tuple) and len(v) == 2 for v in value)
    return pairs and all(isinstance(name, str) for name, _ in value)


def _check_int(name: str, value: Any, low: int, high: float) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if not low <= int(value) <= high:
        raise ValueError(f"{name} must be from {low} to {high}, got {value}")
    return int(value)


def check_settings(given: Iterable[str], kind: type, taken: Collection[str] = ()) -> None:
    """An error unless all names are settings of `kind`, and none is `taken` by who makes it.

    Raises:
        TypeError: it names the others.
    """
    known = {setting.name for setting in fields(kind)}
    unknown = sorted(set(given) - (known - set(taken)))
    if unknown:
        raise TypeError(f"{', '.join(unknown)}: no setting of {kind.__name__} to be given here")


def check_whole(
    name: str, value: Any, least: int, most: float = math.inf, most_is: str = ""
) -> int:
    """An int from `least` to `most`, which is called `most_is`; or an error that names it."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    number = int(value)
    if not least <= number <= most:
        allowed = f"at least {least}" if most == math.inf else f"from {least} to {most_is}, {most}"
        raise ValueError(f"{name} must be {allowed}, got {value}")
    return number


def check_number(name: str, value: Any, low: float, high: float = math.inf) -> float:
    """A finite number from `low` to `high`, as a float.

    Raises:
        TypeError, ValueError: it is none, or not in that range; it is named.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not (math.isfinite(value) and low <= float(value) <= high):
        raise ValueError(f"{name} must be finite and from {low:g} to {high:g}, got {value}")
    return float(value)


def _above_zero(name: str, value: float, shown: Any = None) -> float:
    if value == 0:
        raise ValueError(f"{name} must be above 0, got {value if shown is None else shown}")
    return value


def _vector(name: str, values: Any, low: float) -> tuple[float, ...]:
    """A sequence of numbers as a tuple of floats; infinite ones only where `low` is."""
    try:
        given = tuple(values)
        if any(isinstance(v, (str, bool)) for v in given):  # which float() takes for numbers
            raise TypeError("no numbers")
        numbers = tuple(float(v) for v in given)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be a sequence of numbers, got {values!r}") from error
    if any(math.isnan(v) or v < low or (v == math.inf and low > -math.inf) for v in numbers):
        raise ValueError(f"{name} must be numbers from {low:g}, got {numbers}")
    return numbers


def _check_bounds(low: Bound | None, high: Bound | None) -> None:
    lows = low if isinstance(low, tuple) else (low,)
    highs = high if isinstance(high, tuple) else (high,)
    if len(lows) != len(highs) and 1 not in (len(lows), len(highs)):
        raise ValueError(
            "action_low and action_high must be as long as each other, "
            f"got {len(lows)} and {len(highs)}"
        )
    for name, values in (("action_low", lows), ("action_high", highs)):
        if any(v is not None and math.isnan(v) for v in values):
            raise ValueError(f"{name} must not be NaN, got {values}")
    for index in range(max(len(lows), len(highs))):
        lower, upper = lows[index % len(lows)], highs[index % len(highs)]
        if lower is not None and upper is not None and lower > upper:
            raise ValueError(
                "action_low must not be above action_high, "
                f"got {lower} > {upper} for action {index}"
            )
