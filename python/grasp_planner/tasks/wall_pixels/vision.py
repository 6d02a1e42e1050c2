"""Learning to see without being told where the agent is: the encoder's training.

Jointly with a predictor of latents, from frames and actions alone. Four terms:

    prediction   squared error of an open loop in the latents, gradients into both ends of it
    variance     every latent feature keeps a standard deviation of 1 over the batch: no collapse
    covariance   features are decorrelated, weakly: a dot in a plane has no 32 independent features
    odometry     the change of the latent over any stretch is, seen through a linear map, the sum of
                 the actions on it. An absolute error, for walls take some of the actions back.

The first three are VICReg's. Their latents are accurate, but bent: far places may be close.
Odometry straightens them, so that the distance of latents tells about the distance of places.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from grasp_planner.interruptible import Checkpoint, Report, ShouldStop, optimise
from grasp_planner.tasks.mlp import ResidualMLP
from grasp_planner.tasks.training import Recipe
from grasp_planner.tasks.wall_pixels.frames import render
from grasp_planner.tasks.wall_pixels.model import Encoder

_WARMUP = 50


@dataclass(frozen=True)
class PixelRecipe(Recipe):
    """The encoder is trained first, then frozen; the rest is the dynamics', on its latents."""

    latent_features: int = 32
    encoder_steps: int = 1_500
    encoder_batch: int = 64
    """Stretches of `encoder_unroll` steps, each of whose frames is encoded once."""
    encoder_unroll: int = 8
    encoder_learning_rate: float = 2e-3
    prediction: float = 25.0
    variance: float = 25.0
    covariance: float = 0.04
    odometry: float = 50.0

    def with_steps(self, steps: int) -> PixelRecipe:
        """The dynamics get `steps` in all, the encoder the same share of its own."""
        scaled = super().with_steps(steps)
        encoder_steps = max(1, round(self.encoder_steps * steps / self.steps))
        return replace(self, stages=scaled.stages, encoder_steps=encoder_steps)


class _Vision(nn.Module):
    """What is trained; only the encoder is kept."""

    def __init__(self, recipe: PixelRecipe, controls: int) -> None:
        super().__init__()
        self.encoder = Encoder(recipe.latent_features)
        self.predictor = ResidualMLP(
            recipe.latent_features, controls, hidden=recipe.hidden, layers=2
        )
        self.odometer = nn.Linear(recipe.latent_features, controls, bias=False)

    def loss(self, recipe: PixelRecipe, frames: Tensor, actions: Tensor) -> Tensor:
        """Frames (B, K+1, 64, 64), actions (B, K, A) -> ()."""
        latents = self.encoder(frames)
        unroll = actions.shape[1]
        state, prediction = latents[:, 0], latents.new_zeros(())
        for t in range(unroll):
            state = self.predictor(state, actions[:, t])
            prediction = prediction + functional.mse_loss(state, latents[:, t + 1]) / unroll

        rows = latents.flatten(0, 1)
        rows = rows - rows.mean(0)
        covariance = rows.T @ rows / (len(rows) - 1)
        deviation = (covariance.diagonal() + 1e-4).sqrt()
        mixed = covariance - covariance.diagonal().diag()

        travelled = self.odometer(latents[:, 1:] - latents[:, :1])
        meant = actions.cumsum(1) / unroll
        return (
            recipe.prediction * prediction
            + recipe.variance * functional.relu(1 - deviation).mean()
            + recipe.covariance * mixed.square().sum() / rows.shape[1]
            + recipe.odometry * functional.smooth_l1_loss(travelled, meant, beta=0.1)
        )


def train_encoder(
    recipe: PixelRecipe,
    states: Tensor,
    actions: Tensor,
    checkpoint: Path,
    *,
    report: Report,
    should_stop: ShouldStop,
    checkpoint_seconds: float = 15.0,
) -> Encoder:
    """Trains to the recipe's end, from `checkpoint` where there is one.

    Args:
        recipe: what to do; the caller has made sure that the checkpoint is of the same.
        states: (episodes, L+1, 2), where the frames are taken.
        actions: (episodes, L, A).
        checkpoint: file to resume from, bit for bit.
        report, should_stop, checkpoint_seconds: as of `training.train`.
    """
    with torch.random.fork_rng(devices=[]):  # the caller's random state is not ours to move
        torch.manual_seed(recipe.seed)
        vision = _Vision(recipe, actions.shape[-1])
    optimizer = torch.optim.AdamW(vision.parameters(), weight_decay=1e-5)
    generator = torch.Generator().manual_seed(recipe.seed)
    optimise(
        vision,
        optimizer,
        generator,
        lambda _: _loss(vision, generator, states, actions, recipe),
        steps=recipe.encoder_steps,
        learning_rate=recipe.encoder_learning_rate,
        warmup=_WARMUP,
        checkpoint=Checkpoint(checkpoint, {}),  # whose it is, the caller has made sure
        report=report,
        report_every=25,
        should_stop=should_stop,
        checkpoint_seconds=checkpoint_seconds,
        stopped="encoder stopped",
    )
    return vision.encoder.requires_grad_(False)


def _loss(
    vision: _Vision,
    generator: torch.Generator,
    states: Tensor,
    actions: Tensor,
    recipe: PixelRecipe,
) -> Tensor:
    batch, unroll = recipe.encoder_batch, recipe.encoder_unroll
    episodes, length = actions.shape[:2]
    episode = torch.randint(episodes, (batch, 1), generator=generator)
    rows = torch.randint(length - unroll + 1, (batch, 1), generator=generator)
    rows = rows + torch.arange(unroll + 1)
    frames = render(states[episode, rows].flatten(0, 1)).unflatten(0, (batch, unroll + 1))
    return vision.loss(recipe, frames, actions[episode, rows[:, :-1]])
