"""From frames to latents, and what becomes of latents: the parts of the world model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from grasp_planner.tasks.mlp import ResidualMLP
from grasp_planner.tasks.wall_pixels.frames import SIZE, render

_CHANNELS = (16, 32, 64)
_CHUNK = 4096  # frames at a time


class Encoder(nn.Module):
    """Frames (..., 64, 64) uint8 -> latents (..., D): three strided convolutions, one layer."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features
        first, second, third = _CHANNELS
        self.network = nn.Sequential(
            nn.Conv2d(1, first, 8, stride=4, padding=2),  # patches: most of the work is here
            nn.SiLU(),
            nn.Conv2d(first, second, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(second, third, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(third * (SIZE // 16) ** 2, features),
        )

    def forward(self, frames: Tensor) -> Tensor:
        latents: Tensor = self.network(frames.reshape(-1, 1, SIZE, SIZE).float() / 255)
        return latents.reshape(*frames.shape[:-2], self.features)

    @torch.no_grad()
    def see(self, positions: Tensor) -> Tensor:
        """(..., 2) -> (..., D): the latents of the frames that the camera takes there."""
        chunks = positions.reshape(-1, 2).split(_CHUNK)
        latents = torch.cat([self(render(chunk)) for chunk in chunks])
        return latents.reshape(*positions.shape[:-1], self.features)


class PixelModel(ResidualMLP):
    """The dynamics of latents, a `ResidualMLP`; beside it the encoder they come from, and a probe.

    The probe is linear, (..., D) -> (..., 2), fitted to the finished latents. It reads positions
    off them, for judging plans and for pictures; neither the encoder nor the dynamics know of it.
    """

    def __init__(
        self, state_features: int, action_features: int, *, hidden: int = 128, layers: int = 3
    ) -> None:
        super().__init__(state_features, action_features, hidden=hidden, layers=layers)
        self.encoder = Encoder(state_features)
        self.probe = nn.Linear(state_features, 2)

    @torch.no_grad()
    def fit_normalisation(self, state: Tensor, action: Tensor, next_state: Tensor) -> None:
        """One unit for all features: it is the distance of latents that means something."""
        super().fit_normalisation(state, action, next_state)
        for scale in (self.state_scale, self.change_scale):
            scale.fill_(scale.square().mean().sqrt())

    @torch.no_grad()
    def fit_probe(self, latents: Tensor, positions: Tensor) -> None:
        """Least squares, (rows, D) and (rows, 2)."""
        inputs, target = latents.double(), positions.double()
        inputs_mean, target_mean = inputs.mean(0), target.mean(0)
        inputs = inputs - inputs_mean
        gram = inputs.T @ inputs
        gram += 1e-6 * gram.diagonal().mean() * torch.eye(len(gram))  # latents can be redundant
        weight = torch.linalg.solve(gram, inputs.T @ (target - target_mean)).T
        self.probe.weight.copy_(weight)
        self.probe.bias.copy_(target_mean - weight @ inputs_mean)
