"""The world model of the shipped tasks: a residual multilayer perceptron.

Raw units outside, normalised units inside:

    inputs     = concat((state - state_mean) / state_scale, (action - action_mean) / action_scale)
    next state = state + change_scale * network(inputs)

`network` is a plain `nn.Sequential` of `Linear` and `SiLU`, and the normalisation constants
are buffers, so the whole model can be read off its attributes. `mlp_dynamics` does, for kernels.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from grasp_kernels import MLPDynamics


class ResidualMLP(nn.Module):
    """`F(state, action) -> next state`: `(B, D), (B, A) -> (B, D)`, or any leading shape."""

    state_mean: Tensor
    state_scale: Tensor
    action_mean: Tensor
    action_scale: Tensor
    change_scale: Tensor

    def __init__(
        self, state_features: int, action_features: int, *, hidden: int = 128, layers: int = 3
    ) -> None:
        super().__init__()
        if min(state_features, action_features, hidden, layers) < 1:
            raise ValueError("every size of a ResidualMLP must be at least 1")
        self.state_features = state_features
        self.action_features = action_features
        self.hidden = hidden
        self.layers = layers
        self.register_buffer("state_mean", torch.zeros(state_features))
        self.register_buffer("state_scale", torch.ones(state_features))
        self.register_buffer("action_mean", torch.zeros(action_features))
        self.register_buffer("action_scale", torch.ones(action_features))
        self.register_buffer("change_scale", torch.ones(state_features))
        widths = [state_features + action_features] + [hidden] * layers
        modules: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            modules += [nn.Linear(inputs, outputs), nn.SiLU()]
        self.network = nn.Sequential(*modules, nn.Linear(widths[-1], state_features))

    @property
    def sizes(self) -> dict[str, int]:
        """What the constructor takes to build another like it."""
        names = ("state_features", "action_features", "hidden", "layers")
        return {name: getattr(self, name) for name in names}

    @torch.no_grad()
    def fit_normalisation(self, state: Tensor, action: Tensor, next_state: Tensor) -> None:
        """Sets the constants from `(rows, features)` data; a constant feature keeps scale 1."""

        def spread(values: Tensor) -> Tensor:
            deviation = values.std(0)
            return torch.where(deviation > 1e-6, deviation, torch.ones_like(deviation))

        self.state_mean.copy_(state.mean(0))
        self.state_scale.copy_(spread(state))
        self.action_mean.copy_(action.mean(0))
        self.action_scale.copy_(spread(action))
        self.change_scale.copy_(spread(next_state - state))

    def mlp_dynamics(self) -> MLPDynamics:
        """This model as kernels take it; parameters and constants are shared, not copied."""
        return MLPDynamics.from_sequential(
            self.network,
            action_features=self.action_features,
            input_mean=torch.cat((self.state_mean, self.action_mean)),
            input_scale=torch.cat((self.state_scale, self.action_scale)),
            output_scale=self.change_scale,
            residual=True,
            check=False,  # the planner compares the whole model
        )

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        inputs = torch.cat(
            (
                (state - self.state_mean) / self.state_scale,
                (action - self.action_mean) / self.action_scale,
            ),
            dim=-1,
        )
        change: Tensor = self.network(inputs)
        return state + self.change_scale * change
