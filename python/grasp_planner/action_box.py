"""The box that actions stay in, and actions in units of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from grasp_kernels import action_step_
from grasp_planner.inputs import Problem


class ActionBox:
    """Bounds `(A,)` in the states' dtype, infinite where there are none.

    Attributes:
        centre: the middle of the box; where it is open, what is nearest to 0.
        half_width: half its width, the unit of exploration; 1 where it is open, and where it is one
            point: units are divided by.
    """

    def __init__(self, problem: Problem) -> None:
        open_end = problem.start.new_full((problem.action_features,), torch.inf)
        low, high = problem.action_low, problem.action_high
        self.low = -open_end if low is None else low.to(open_end)
        self.high = open_end if high is None else high.to(open_end)
        closed = torch.isfinite(self.low) & torch.isfinite(self.high)
        self.centre = self.clip(torch.where(closed, (self.low + self.high) / 2, 0.0))
        half = (self.high - self.low) / 2
        self.half_width = torch.where(torch.isfinite(half) & (half > 0), half, 1.0)
        self._unit_low, self._unit_high = self.to_units(self.low), self.to_units(self.high)

    def clip(self, actions: Tensor) -> Tensor:
        return actions.clamp(self.low, self.high)

    def to_units(self, actions: Tensor) -> Tensor:
        """Actions `(..., A)` in units of half the box from its centre."""
        return (actions - self.centre) / self.half_width

    def from_units(self, values: Tensor) -> Tensor:
        """The actions that `values (..., A)` in units are, inside the box."""
        return self.clip(self.centre + self.half_width * values)

    def clip_units(self, values: Tensor) -> Tensor:
        """Values in units, the actions of which are to be inside the box."""
        return values.clamp(self._unit_low, self._unit_high)

    def free_units(self, values: Tensor, toward: Tensor) -> Tensor:
        """Which values in units `(..., A)` can move at all, and are not at a bound `toward` it."""
        at_low = (values <= self._unit_low) & (toward < 0)
        at_high = (values >= self._unit_high) & (toward > 0)
        return ~(at_low | at_high) & (self._unit_low < self._unit_high)

    def descend_(
        self,
        values: Tensor,
        gradient: Tensor,
        memory: dict[str, Any],
        *,
        lr: float,
        optimizer: str = "adam",
    ) -> None:
        """One projected step on `values (N, K, A)` in units, so that one size suits all actions.

        `gradient (N, K, A)` is for the actions; where it is not finite, nothing moves.
        """
        action_step_(
            values,
            torch.nan_to_num(self.half_width * gradient, 0.0, 0.0, 0.0).contiguous(),
            memory,
            lr=lr,
            low=self._unit_low,
            high=self._unit_high,
            optimizer=optimizer,
            compare_bounds=False,  # they were, before the loop
        )
