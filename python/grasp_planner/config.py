"""The settings of the lifted planner."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from grasp_planner.schedules import Schedule, as_schedule

Bound = float | tuple[float, ...]
NOISES = ("white", "bridge", "none")
OPTIMIZERS = ("adam", "sgd")


@dataclass(frozen=True)
class GraspConfig:
    """How to plan. The defaults are what worked best on the shipped tasks; `paper()` is the paper.

    "paper" below is arXiv 2602.00475.

    Attributes:
        horizon: T, time steps per plan, >= 1.
        iterations: K, lifted iterations, >= 0.
        candidates: R, plans per problem that differ in their noise; the best is returned. Paper: 1.
        state_lr: step on the virtual states; 0.5 jumps to the prediction (`feature_weight` 1). > 0.
        action_lr: step on the actions, in their own units for "adam", per unit of gradient for
            "sgd".
        state_optimizer: "sgd" is the fused step and the paper; "adam" (authors' code) takes three
            passes.
        action_optimizer: "adam" (authors' code) or "sgd" (paper).
        goal_weight: weight of the predictions' distance to the goal. A number or a `Schedule`, >=
            0.
        noise: "white" (paper), "bridge" (smooth in time, crosses walls), "none".
        noise_scale: standard deviation of one iteration's noise on the states. Number or
            `Schedule`, >= 0.
        noise_modes: sine waves in bridge noise, 1 to 64.
        initial_noise_scale: noise of the same kind added to the initial trajectory. >= 0.
        initial_actions_scale: standard deviation of smooth random initial actions; 0 (paper) starts
            at zero. In units of the action. >= 0.
        initialization: "linear" from start to goal (paper), or "rollout" of the initial actions.
        terminal: "fixed": the last virtual state is the goal (paper); "free": it moves too.
        state_scale: (D,), > 0, the unit of each state feature (its standard deviation is a good
            choice). The planner works on state / state_scale, so that one step size, one noise
            scale and one weight mean the same for every feature. None is 1.
        feature_weight: w, (D,), >= 0, on scaled states; None is 1.
        goal_feature_weight: (D,), the weights of the *rollout's* cost; None is `feature_weight`.
        state_gradient_scale: 0 (GRASP) differentiates the model for actions only; up to 1 lets the
            gradient through its state input back in.
        action_low, action_high: the box, a number or (A,); None is unbounded.
        sync_every: iterations between syncs through the true rollout; 0 never.
        sync_steps: gradient steps on the actions in each sync. sync_lr: their size.
        sync_optimizer: "adam" or "sgd" (paper: plain gradient descent).
        sync_blend: how far the states are reset to the rollout after a sync, 0 to 1 (paper).
        final_sync_steps: gradient steps after the last iteration.
        stop_cost: freeze a plan whose rollout cost is at most this; None never does. The test stays
            on the device: nothing is read back.
        max_rows: largest number of (plan, time) rows evaluated at once; None is all. Bounds memory,
            changes no result.
        action_features: A, where neither warm-start actions nor the world model tell.
        seed: of all noise, 0 to 2**64 - 1.
    """

    horizon: int = 50
    iterations: int = 400
    candidates: int = 8
    state_lr: float = 0.25
    action_lr: float = 0.05
    state_optimizer: str = "sgd"
    action_optimizer: str = "adam"
    goal_weight: float | Schedule = 0.02
    noise: str = "bridge"
    noise_scale: float | Schedule = Schedule(0.05, 0.0, "linear")
    noise_modes: int = 8
    initial_noise_scale: float = 0.5
    initial_actions_scale: float = 0.0
    initialization: str = "linear"
    terminal: str = "fixed"
    state_scale: tuple[float, ...] | None = None
    feature_weight: tuple[float, ...] | None = None
    goal_feature_weight: tuple[float, ...] | None = None
    state_gradient_scale: float = 0.0
    action_low: Bound | None = None
    action_high: Bound | None = None
    sync_every: int = 100
    sync_steps: int = 10
    sync_lr: float = 0.05
    sync_optimizer: str = "adam"
    sync_blend: float = 1.0
    final_sync_steps: int = 50
    stop_cost: float | None = None
    max_rows: int | None = None
    action_features: int | None = None
    seed: int = 0

    @classmethod
    def paper(cls, **changes: Any) -> GraspConfig:
        """The paper's algorithm to the letter; `changes` are made on top.

        White noise, linear interpolation, zero actions, fixed goal weight, plain gradient steps on
        states and actions, plain gradient descent in the sync, states reset to its rollout.
        """
        settings: dict[str, Any] = {
            "candidates": 1,
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
            "terminal": "fixed",
            "state_gradient_scale": 0.0,
        }
        return cls(**{**settings, **changes})

    def __post_init__(self) -> None:
        for name in ("goal_weight", "noise_scale"):
            value = getattr(self, name)
            if not isinstance(value, Schedule):
                _check_number(name, value, 0.0)
                object.__setattr__(self, name, as_schedule(value))
        for name, low in (
            ("horizon", 1),
            ("candidates", 1),
            ("noise_modes", 1),
            ("iterations", 0),
            ("sync_every", 0),
            ("sync_steps", 0),
            ("final_sync_steps", 0),
            ("seed", 0),
        ):
            _check_int(name, getattr(self, name), low)
        for name in ("max_rows", "action_features"):
            if getattr(self, name) is not None:
                _check_int(name, getattr(self, name), 1)
        for name in (
            "state_lr",
            "action_lr",
            "sync_lr",
            "initial_noise_scale",
            "initial_actions_scale",
        ):
            _check_number(name, getattr(self, name), 0.0)
        for name in ("state_gradient_scale", "sync_blend"):
            _check_number(name, getattr(self, name), 0.0, 1.0)
        for name, choices in (
            ("noise", NOISES),
            ("state_optimizer", OPTIMIZERS),
            ("action_optimizer", OPTIMIZERS),
            ("sync_optimizer", OPTIMIZERS),
            ("initialization", ("linear", "rollout")),
            ("terminal", ("fixed", "free")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} must be one of {', '.join(map(repr, choices))}, "
                    f"got {getattr(self, name)!r}"
                )
        for name in ("state_scale", "feature_weight", "goal_feature_weight"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, tuple(float(v) for v in value))
                for v in getattr(self, name):
                    _check_number(name, v, 0.0)
        if self.state_scale is not None and min(self.state_scale) == 0.0:
            raise ValueError(f"state_scale must be above 0, got {self.state_scale}")
        for name in ("action_low", "action_high"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, (int, float)):
                object.__setattr__(self, name, tuple(float(v) for v in value))
        _check_bounds(self.action_low, self.action_high)


def _check_int(name: str, value: Any, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < low:
        raise ValueError(f"{name} must be at least {low}, got {value}")


def _check_number(name: str, value: Any, low: float, high: float = math.inf) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not (math.isfinite(value) and low <= value <= high):
        raise ValueError(f"{name} must be finite and from {low:g} to {high:g}, got {value}")


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
