"""Small world models whose answers are known."""

from __future__ import annotations

import torch
from grasp_planner.diagnostics import Setting
from torch import Tensor, nn

#: One state feature grows, one shrinks: what T Jacobians in a row do to a gradient.
GROWTH = (1.2, 0.8)


def linear(state: Tensor, action: Tensor) -> Tensor:
    """`s' = diag(GROWTH) s + a`."""
    return state * torch.tensor(GROWTH, dtype=state.dtype) + action


def step(state: Tensor, action: Tensor) -> Tensor:
    """`s' = s + 0.1 a`."""
    return state + 0.1 * action


class Bent(nn.Module):
    """A small network, its states `(rows, 3)`, its actions `(rows, 2)`, float32."""

    action_features = 2

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.network = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 3))
        self.dropout = nn.Dropout(0.5)  # evaluation mode, or nothing below is repeatable

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        return state + self.dropout(self.network(torch.cat([state, action], dim=-1)))


def setting_of(model: object, features: int, **changes: object) -> Setting:
    """One problem from the origin to ones."""
    given = {"start": torch.zeros(features), "goal": torch.ones(features), **changes}
    return Setting(model, **given)  # type: ignore[arg-type]
