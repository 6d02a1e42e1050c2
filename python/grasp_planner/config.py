"""The settings of the lifted planner."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from grasp_kernels.checks import MAX_MODES, NOISES, OPTIMIZERS, TERMINALS
from grasp_planner.schedules import Schedule

Bound = float | tuple[float, ...]


@dataclass(frozen=True)
class GraspConfig:
    """How to plan. Each field: meaning, range, default, and what the paper has.

    The defaults are what worked best on the shipped tasks; "paper" is arXiv 2602.00475, and
    `GraspConfig.paper()` is its algorithm to the letter. Any iterable of numbers may stand for a
    tuple, and any number for a float.

    Attributes:
        horizon: T, time steps per plan. >= 1; 50.
        iterations: K, lifted iterations. >= 0; 200.
        candidates: R, plans per problem, which differ in their noise; the best is returned.
            >= 1; 8; paper 1.
        state_lr: step on the virtual states; 0.5 jumps to the prediction where `feature_weight` is
            1. > 0; 0.25.
        action_lr: step on the actions, in their units for "adam", per unit of gradient for "sgd".
            > 0; 0.2.
        state_optimizer: "sgd", the fused step (paper), or "adam" (the authors' code), which takes
            three passes over memory. "sgd".
        action_optimizer: "adam" (the authors' code) or "sgd" (paper). "adam".
        goal_weight: weight of every prediction's distance to the goal. A number or a `Schedule`,
            >= 0; 0, since it pulls into walls that must be rounded; paper: fixed.
        noise: "white" (paper), "bridge", smooth in time, which crosses walls, or "none". "bridge".
        noise_scale: factor on one iteration's noise, in units of `state_scale`. A number or a
            `Schedule`, >= 0; linear from 0.2 to 0.
        noise_modes: sine waves in bridge noise. 1 to 64; 8.
        initial_noise_scale: factor on the noise of the initial trajectory, in units of
            `state_scale`. >= 0; 1.5; paper 0.
        initial_actions_scale: factor on the noise that the initial actions of all but the first
            candidate get (white if `noise` is, else bridge), in units of the action. >= 0; 0, as in
            the paper.
        initialization: "linear" from start to goal (paper), or "rollout" of the initial actions;
            a warm start is always rolled out. "linear".
        terminal: "fixed": the last virtual state is the goal (paper); "free": it moves. "fixed".
        state_scale: (D,), the unit of each state feature; its standard deviation is a good choice.
            The planner works on state / state_scale, so that one step size, one noise scale and one
            weight mean the same for every feature. > 0; None is 1.
        feature_weight: w, (D,), on scaled states. >= 0; None is 1.
        goal_feature_weight: (D,), on scaled states, the weights of the *rollout's* cost. >= 0; None
            is `feature_weight`.
        state_gradient_scale: 0 (GRASP) differentiates the model for actions only; up to 1 lets the
            gradient through its state input back in. 0 to 1; 0.
        action_low, action_high: the box, a number or (A,). None is unbounded.
        sync_every: iterations between syncs through the true rollout; 0 never. >= 0; 50.
        sync_steps: gradient steps on the actions in each sync. >= 0; 10.
        sync_lr: their size, as `action_lr`. > 0; 0.05.
        sync_optimizer: "adam" or "sgd" (paper). "adam".
        sync_blend: how far the states move to the rollout after a sync. 0 to 1; 1 (paper).
        final_sync_steps: gradient steps after the last iteration. >= 0; 100; paper `sync_steps`.
        stop_cost: freeze a plan whose rollout cost is at most this, without reading it back from
            the device. >= 0; None never does.
        max_rows: how many (plan, time) rows the world model sees at once at most. It bounds memory
            and changes no result. >= 1; None is all.
        action_features: A, where neither warm-start actions, bounds nor the world model tell.
        seed: of all noise. 0 to 2**64 - 1; 0.
    """

    horizon: int = 50
    iterations: int = 200
    candidates: int = 8
    state_lr: float = 0.25
    action_lr: float = 0.2
    state_optimizer: str = "sgd"
    action_optimizer: str = "adam"
    goal_weight: float | Schedule = 0.0
    noise: str = "bridge"
    noise_scale: float | Schedule = Schedule(0.2, 0.0, "linear")
    noise_modes: int = 8
    initial_noise_scale: float = 1.5
    initial_actions_scale: float = 0.0
    initialization: str = "linear"
    terminal: str = "fixed"
    state_scale: tuple[float, ...] | None = None
    feature_weight: tuple[float, ...] | None = None
    goal_feature_weight: tuple[float, ...] | None = None
    state_gradient_scale: float = 0.0
    action_low: Bound | None = None
    action_high: Bound | None = None
    sync_every: int = 50
    sync_steps: int = 10
    sync_lr: float = 0.05
    sync_optimizer: str = "adam"
    sync_blend: float = 1.0
    final_sync_steps: int = 100
    stop_cost: float | None = None
    max_rows: int | None = None
    action_features: int | None = None
    seed: int = 0

    @classmethod
    def paper(cls, **changes: Any) -> GraspConfig:
        """The paper's algorithm to the letter; `changes` are made on top.

        White noise, linear interpolation, zero actions, fixed goal weight, plain gradient steps on
        states and actions, plain gradient descent in the sync, states reset to its rollout. Step
        sizes depend on the world model; those here suit states of variance 1.
        """
        settings: dict[str, Any] = {
            "iterations": 400,
            "candidates": 1,
            "state_lr": 0.25,
            "action_lr": 0.05,
            "sync_every": 100,
            "sync_steps": 10,
            "sync_lr": 0.05,
            "noise": "white",
            "initial_noise_scale": 0.0,
            "initialization": "linear",
            "initial_actions_scale": 0.0,
            "goal_weight": Schedule(0.05),
            "noise_scale": Schedule(0.05),
            "state_optimizer": "sgd",
            "action_optimizer": "sgd",
            "sync_optimizer": "sgd",
            "sync_blend": 1.0,
            "final_sync_steps": changes.get("sync_steps", 10),  # the last sync is like any other
            "terminal": "fixed",
            "state_gradient_scale": 0.0,
        }
        return cls(**{**settings, **changes})

    def __post_init__(self) -> None:
        for name, (least, most) in INTEGERS.items():
            value = getattr(self, name)
            if not (value is None and name in OPTIONAL):
                self._set(name, _check_int(name, value, least, most))
        for name, (low, high) in NUMBERS.items():
            value = getattr(self, name)
            if not (value is None and name in OPTIONAL):
                self._set(name, _check_number(name, value, low, high))
        for name in ("state_lr", "action_lr", "sync_lr"):
            if getattr(self, name) == 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} must be one of {', '.join(map(repr, choices))}, "
                    f"got {getattr(self, name)!r}"
                )
        for name in ("goal_weight", "noise_scale"):
            value = getattr(self, name)
            if not isinstance(value, Schedule):
                self._set(name, Schedule(_check_number(name, value, 0.0)))
        for name in ("state_scale", "feature_weight", "goal_feature_weight"):
            if getattr(self, name) is not None:
                self._set(name, _vector(name, getattr(self, name), 0.0))
        if self.state_scale is not None and min(self.state_scale, default=1.0) == 0.0:
            raise ValueError(f"state_scale must be above 0, got {self.state_scale}")
        for name in ("action_low", "action_high"):
            bound = getattr(self, name)
            if bound is not None:
                many = not isinstance(bound, Real)
                self._set(name, _vector(name, bound, -math.inf) if many else float(bound))
        _check_bounds(self.action_low, self.action_high)

    def _set(self, name: str, value: Any) -> None:
        """The normal form of a field, while the frozen instance is being made."""
        object.__setattr__(self, name, value)


INTEGERS: dict[str, tuple[int, float]] = {
    "horizon": (1, math.inf),
    "candidates": (1, math.inf),
    "iterations": (0, math.inf),
    "noise_modes": (1, MAX_MODES),
    "sync_every": (0, math.inf),
    "sync_steps": (0, math.inf),
    "final_sync_steps": (0, math.inf),
    "max_rows": (1, math.inf),
    "action_features": (1, math.inf),
    "seed": (0, 2**64 - 1),
}
NUMBERS: dict[str, tuple[float, float]] = {
    "state_lr": (0.0, math.inf),
    "action_lr": (0.0, math.inf),
    "sync_lr": (0.0, math.inf),
    "initial_noise_scale": (0.0, math.inf),
    "initial_actions_scale": (0.0, math.inf),
    "state_gradient_scale": (0.0, 1.0),
    "sync_blend": (0.0, 1.0),
    "stop_cost": (0.0, math.inf),
}
OPTIONAL = ("max_rows", "action_features", "stop_cost")
CHOICES = {
    "noise": NOISES,
    "state_optimizer": OPTIMIZERS,
    "action_optimizer": OPTIMIZERS,
    "sync_optimizer": OPTIMIZERS,
    "initialization": ("linear", "rollout"),
    "terminal": TERMINALS,
}


def _check_int(name: str, value: Any, low: int, high: float) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if not low <= int(value) <= high:
        raise ValueError(f"{name} must be from {low} to {high}, got {value}")
    return int(value)


def _check_number(name: str, value: Any, low: float, high: float = math.inf) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not (math.isfinite(value) and low <= float(value) <= high):
        raise ValueError(f"{name} must be finite and from {low:g} to {high:g}, got {value}")
    return float(value)


def _vector(name: str, values: Any, low: float) -> tuple[float, ...]:
    """A sequence of numbers as a tuple of floats; infinite ones only where `low` is."""
    try:
        numbers = tuple(float(v) for v in values)
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
