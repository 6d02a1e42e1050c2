"""What is diagnosed: a world model, problems to plan through it, and how success is measured.

Symbols: B problems, N plans, T steps, D state features, A action features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from grasp_planner.diagnostics.precision import in_double
from grasp_planner.world_model import CheckedModel, WorldModel

#: `(states (n, D), problems (n,) int64) -> (n,)`: each state's distance to the goal of its problem.
Distance = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Setting:
    """A world model and B problems, in a planner's units. States given to it are unscaled.

    Everything is computed on a copy of the world model, in float64 where that is possible
    (`precision` says), on the device of `start`; the world model itself is never called.

    Attributes:
        world_model: `F(state (rows, D), action (rows, A)) -> (rows, D)`; see `WorldModel`.
        start, goal: `(B, D)`, or `(D,)` for one problem; floating, finite.
        state_scale: `(D,)`, the unit of each feature, above 0; None is 1. Norms and costs are of
            `state / state_scale`.
        goal_feature_weight: `(D,)`, w >= 0, at least one above 0; None is 1. A plan costs
            `sum_d w_d (s_T - g)_d^2`, on scaled states.
        action_low, action_high: the box, a number or `(A,)`; None is open.
        success_radius: at most so far from its goal a plan has arrived; above 0. None: unknown, and
            what needs it refuses.
        distance: measures that, `(states (n, D), problems (n,)) -> (n,)`, of unscaled states in the
            dtype of the computation. None is the square root of the cost.

    Raises:
        TypeError, ValueError: an argument is wrong; it is named.
    """

    world_model: WorldModel
    start: Tensor
    goal: Tensor
    state_scale: Any = None
    goal_feature_weight: Any = None
    action_low: float | Sequence[float] | Tensor | None = None
    action_high: float | Sequence[float] | Tensor | None = None
    success_radius: float | None = None
    distance: Distance | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not callable(self.world_model):
            raise TypeError(f"world_model must be callable, got {type(self.world_model).__name__}")
        start = checked("start", self.start, "(B, D)", 2)
        goal = checked("goal", self.goal, "(B, D)", 2)
        if goal.shape != start.shape:
            raise ValueError(
                f"goal must have the shape of start, {tuple(start.shape)}, got {tuple(goal.shape)}"
            )
        object.__setattr__(self, "start", start)
        object.__setattr__(self, "goal", goal)
        if bool((self.scale <= 0).any()):
            raise ValueError(f"state_scale must be above 0, got {self.scale.tolist()}")
        if bool((self.weight < 0).any()) or not bool((self.weight > 0).any()):
            raise ValueError(
                f"goal_feature_weight must be >= 0 and not all 0, got {self.weight.tolist()}"
            )
        radius = self.success_radius
        if radius is not None and not (math.isfinite(radius) and radius > 0):
            raise ValueError(f"success_radius must be finite and above 0, got {radius}")

    def __len__(self) -> int:
        return len(self.start)

    @cached_property
    def scale(self) -> Tensor:
        """`(D,)`, float64."""
        return self._features("state_scale", self.state_scale)

    @cached_property
    def weight(self) -> Tensor:
        """`(D,)`, float64."""
        return self._features("goal_feature_weight", self.goal_feature_weight)

    def precise(self, width: int) -> tuple[CheckedModel, torch.dtype, str]:
        """The copied model on scaled states, its dtype, and why that is not float64, or ""."""
        if "_precise" not in vars(self):
            state = self.start[:1]
            probe = state.new_zeros(1, width).clamp(*self.bounds(width, state.dtype))
            model, reason = in_double(self.world_model, state, probe)
            dtype = self.start.dtype if reason else torch.float64
            found = CheckedModel(model, self.scale.to(dtype)), dtype, reason
            object.__setattr__(self, "_precise", found)
        kept: tuple[CheckedModel, torch.dtype, str] = vars(self)["_precise"]
        return kept

    def bounds(self, width: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
        """The action box, two tensors `(A,)`, infinite where it is open."""
        ends = []
        for name, given, open_end in (
            ("action_low", self.action_low, -math.inf),
            ("action_high", self.action_high, math.inf),
        ):
            value = open_end if given is None else given
            bound = torch.as_tensor(value, dtype=dtype, device=self.start.device)
            if bound.numel() not in (1, width) or bool(bound.isnan().any()):
                raise ValueError(f"{name} must be a number or A = {width} numbers, got {given}")
            ends.append(bound.expand(width))
        if bool((ends[0] > ends[1]).any()):
            raise ValueError(
                f"action_low must not be above action_high, got {self.action_low} and "
                f"{self.action_high}"
            )
        return ends[0], ends[1]

    def half_box(self, width: int, dtype: torch.dtype) -> Tensor:
        """Half the width of the action box `(A,)`, 1 where it is open or a point."""
        low, high = self.bounds(width, dtype)
        half = (high - low) / 2
        return torch.where(half.isfinite() & (half > 0), half, 1.0)

    def scaled(self, states: Tensor) -> Tensor:
        """Unscaled states `(..., D)` in units of `state_scale`, float64."""
        return states.to(torch.float64) / self.scale

    def problem(self, index: int) -> int:
        """`index`, if there is such a problem."""
        if not 0 <= index < len(self):
            raise ValueError(f"problem must be from 0 to {len(self) - 1}, got {index}")
        return index

    def rollout(self, actions: Tensor, problems: Tensor | None = None) -> Tensor:
        """Scaled states `(N, T + 1, D)` under `actions (N, T, A)`, differentiable.

        `problems (N,)` says which problem's start each begins at; None is one plan each.
        """
        model, dtype, _ = self.precise(actions.shape[-1])
        start = self.scaled(self.start if problems is None else self.start[problems]).to(dtype)
        return model.rollout(start, actions.to(dtype))

    def costs(self, states: Tensor, problems: Tensor) -> Tensor:
        """`(n,)`: what plans for `problems (n,)` cost that end in scaled states `(n, D)`."""
        error = states - self.scaled(self.goal[problems]).to(states)
        return (self.weight.to(states) * error.square()).sum(-1)

    def distances(self, states: Tensor, problems: Tensor) -> Tensor:
        """`(n,)`: how far scaled states `(n, D)` are from the goals of `problems (n,)`; NaN stays.

        In units of `success_radius`'s own measure: `distance`, else the square root of the cost.
        """
        if self.distance is None:
            return self.costs(states, problems).sqrt()
        found = self.distance(states * self.scale.to(states), problems)
        if not isinstance(found, Tensor) or found.shape != problems.shape:
            raise ValueError(
                f"distance must return a tensor of shape {tuple(problems.shape)}, got "
                f"{tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__}"
            )
        return found

    def radius(self) -> float:
        """The success radius, of those who cannot do without it."""
        if self.success_radius is None:
            raise ValueError("success_radius is not known, and needed here: give it to Setting")
        return self.success_radius

    def arrived(self, states: Tensor, problems: Tensor) -> Tensor:
        """`(n,)` bool: scaled states `(n, D)` are within the success radius; NaN is not."""
        return self.distances(states, problems) <= self.radius()

    def _features(self, name: str, given: Any) -> Tensor:
        size = self.start.shape[1]
        values = torch.ones(size) if given is None else torch.as_tensor(given)
        values = values.detach().to(device=self.start.device, dtype=torch.float64)
        if values.shape != (size,) or not bool(values.isfinite().all()):
            raise ValueError(f"{name} must be D = {size} finite numbers, got {given}")
        return values


def checked(name: str, value: Any, form: str, dimensions: int) -> Tensor:
    """A finite floating tensor of so many dimensions; one fewer is a batch of one."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor {form}, got {type(value).__name__}")
    if value.dim() == dimensions - 1:
        value = value[None]
    if value.dim() != dimensions or value.numel() == 0:
        raise ValueError(f"{name} must be {form}, none of them 0, got {tuple(value.shape)}")
    if not value.is_floating_point():
        raise TypeError(f"{name} must be floating, got {value.dtype}")
    if not bool(value.isfinite().all()):
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    return value.detach().clone()


def checked_actions(setting: Setting, actions: Any, *, plans: int) -> Tensor:
    """Actions `(plans, T, A)`, or `(T, A)` for one."""
    actions = checked("actions", actions, "(N, T, A)", 3)
    if len(actions) != plans:
        raise ValueError(f"actions must be (N, T, A) with N = {plans}, got {tuple(actions.shape)}")
    setting.bounds(actions.shape[2])
    return actions


def straight_line(start: Tensor, goal: Tensor, steps: int) -> Tensor:
    """`(N, D)` twice -> `(N, T + 1, D)`, where a lifted search begins."""
    share = torch.linspace(0, 1, steps + 1, dtype=start.dtype, device=start.device)
    return torch.lerp(start[:, None], goal[:, None], share[:, None])
