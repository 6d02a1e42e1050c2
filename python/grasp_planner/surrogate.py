"""A learned surrogate of the gradient that flows back through a world model's state input.

The exact one, `(dF/ds)^T cotangent`, follows whatever a network does between and beyond the states
it was trained on, and virtual states are such states most of the time. The surrogate is fitted to
the exact one on data states only, and answers elsewhere as on the data nearby. In units of
`state_scale`, with an input `x` of normalised state and action:

    surrogate(s, a, c) = c + write^T (gate(x) * (read^T c))      read (D, K), write (K, D)

This is the adjoint of a residual network with one hidden layer of K units, whose slopes `gate` are
a small network's, in (-1, 1). So it is linear in the cotangent by construction, hence right in sign
and scale for cotangents of every size; it is no further from the identity than the norms of `read`
and `write` allow, anywhere; its cost and size grow with D, not with D squared; and every linear
`dF/ds` is among them if K >= D. Two things make it blind to directions off the data:

- denoising: it is shown a data state with noise on it and asked for the exact gradient of the state
  without, so that it learns the mean of what the data states nearby answer;
- states beyond the box of the data are seen on its border.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from grasp_planner.interruptible import (
    Checkpoint,
    Report,
    ShouldStop,
    never,
    no_report,
    one_thread,
    optimise,
)
from grasp_planner.world_model import CheckedModel, WorldModel, frozen


@dataclass(frozen=True)
class SurrogateRecipe:
    """How a surrogate is fitted. Every field is part of a checkpoint's identity.

    Attributes:
        steps: optimiser steps. >= 1.
        batch: data states in each. >= 1.
        units: K, the hidden units whose slopes are learned. >= 1; at least D, or no linear model
            of full rank can be matched.
        hidden, layers: width and depth of the network of slopes. >= 1.
        learning_rate: AdamW's, with warm-up and cosine decay. > 0.
        weight_decay: AdamW's, on the network of slopes, to keep it smooth. >= 0.
        state_noise: most noise on the states that the surrogate is shown, a standard deviation in
            units of `state_scale`; each row draws its own between 0 and this. >= 0.
        seed: of initial weights, batches, noise and cotangents. >= 0.
    """

    steps: int = 12_000
    batch: int = 512
    units: int = 128
    hidden: int = 128
    layers: int = 2
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    state_noise: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "units", "hidden", "layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("weight_decay", "state_noise", "seed"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and >= 0, not {getattr(self, name)}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be finite and > 0, not {self.learning_rate}")


class Surrogate(nn.Module):
    """`(state (rows, D), action (rows, A), cotangent (rows, D)) -> (rows, D)`; see the module.

    All float32 and in the world model's own units: `cotangent` is a gradient with respect to the
    next state, the answer one with respect to the state. Rows are independent, NaN stays in its
    row. Untrained, it returns the cotangent. Raises ValueError naming an input of another shape.

    Args:
        state_features: D, >= 1.
        action_features: A, >= 1.
        units, hidden, layers: see `SurrogateRecipe`.
    """

    state_mean: Tensor
    state_scale: Tensor
    state_low: Tensor
    state_high: Tensor
    action_mean: Tensor
    action_scale: Tensor

    def __init__(
        self,
        state_features: int,
        action_features: int,
        *,
        units: int = 128,
        hidden: int = 128,
        layers: int = 2,
    ) -> None:
        super().__init__()
        if min(state_features, action_features, units, hidden, layers) < 1:
            raise ValueError("every size of a Surrogate must be at least 1")
        self.state_features = state_features
        self.action_features = action_features
        self.units = units
        self.hidden = hidden
        self.layers = layers
        self.register_buffer("state_mean", torch.zeros(state_features))
        self.register_buffer("state_scale", torch.ones(state_features))
        self.register_buffer("state_low", torch.full((state_features,), -torch.inf))
        self.register_buffer("state_high", torch.full((state_features,), torch.inf))
        self.register_buffer("action_mean", torch.zeros(action_features))
        self.register_buffer("action_scale", torch.ones(action_features))
        widths = [state_features + action_features] + [hidden] * layers
        modules: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            modules += [nn.Linear(inputs, outputs), nn.SiLU()]
        self.slopes = nn.Sequential(*modules, nn.Linear(widths[-1], units), nn.Tanh())
        self.read = nn.Parameter(torch.randn(state_features, units) / math.sqrt(state_features))
        self.write = nn.Parameter(torch.zeros(units, state_features))

    @property
    def sizes(self) -> dict[str, int]:
        """What the constructor takes to build another like it."""
        names = ("state_features", "action_features", "units", "hidden", "layers")
        return {name: getattr(self, name) for name in names}

    @torch.no_grad()
    def fit_normalisation(self, states: Tensor, actions: Tensor, state_scale: Tensor) -> None:
        """Sets the constants from data `(rows, D)` and `(rows, A)`, and the unit `(D,)`."""
        self.state_mean.copy_(states.mean(0))
        self.state_scale.copy_(state_scale)
        self.state_low.copy_(states.amin(0))
        self.state_high.copy_(states.amax(0))
        self.action_mean.copy_(actions.mean(0))
        self.action_scale.copy_(spread(actions))

    def forward(self, state: Tensor, action: Tensor, cotangent: Tensor) -> Tensor:
        for name, value, features in (
            ("state", state, self.state_features),
            ("action", action, self.action_features),
            ("cotangent", cotangent, self.state_features),
        ):
            if value.shape != (*state.shape[:-1], features):
                raise ValueError(
                    f"{name} must be (rows, {features}) with the rows of state "
                    f"{tuple(state.shape)}, got {tuple(value.shape)}"
                )
        inside = state.clamp(self.state_low, self.state_high)
        inputs = torch.cat(
            (
                (inside - self.state_mean) / self.state_scale,
                (action - self.action_mean) / self.action_scale,
            ),
            dim=-1,
        )
        heard = (cotangent * self.state_scale) @ self.read
        change: Tensor = (self.slopes(inputs) * heard) @ self.write
        return cotangent + change / self.state_scale


def spread(values: Tensor) -> Tensor:
    """Standard deviation `(features,)` of `(rows, features)`; of a constant feature 1."""
    deviation = values.std(0, correction=0)
    return torch.where(deviation > 1e-6, deviation, torch.ones_like(deviation))


def exact_gradient(
    world_model: Callable[..., Tensor],
    state: Tensor,
    action: Tensor,
    cotangent: Tensor | Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """`(dF/ds)^T cotangent` by autograd, and the cotangent, both `(rows, D)`.

    `cotangent` may be a function of the prediction. Zeros where the next state forgets the last.
    """
    with torch.enable_grad():
        given = state.detach().requires_grad_()
        prediction = world_model(given, action)
        if callable(cotangent):
            cotangent = cotangent(prediction.detach())
        if not prediction.requires_grad:
            return torch.zeros_like(state), cotangent
        (gradient,) = torch.autograd.grad(prediction, given, cotangent, allow_unused=True)
    return torch.zeros_like(state) if gradient is None else gradient, cotangent


@dataclass(frozen=True)
class Examples:
    """What a surrogate is fitted to or measured on, and how cotangents are drawn there."""

    states: Tensor
    """(rows, D)."""
    actions: Tensor
    """(rows, A)."""
    scale: Tensor
    """(D,)."""
    generator: torch.Generator

    def rows(self, count: int) -> tuple[Tensor, Tensor]:
        """`count` states and their actions, at random."""
        index = torch.randint(len(self.states), (count,), generator=self.generator)
        return self.states[index], self.actions[index]

    def normal(self, *shape: int) -> Tensor:
        """White noise."""
        return torch.randn(shape, generator=self.generator, dtype=self.states.dtype)

    def cotangents(self, prediction: Tensor, state: Tensor) -> Tensor:
        """One of the kinds that planning sees for each row, of length 1 in units of `scale`.

        By turns: white, as residuals of noisy virtual states are; the prediction's distance from
        another data state, as from a goal; and from the state itself, one step behind.
        """
        others, _ = self.rows(len(state))
        kinds = [self.normal(*state.shape), (prediction - others) / self.scale]
        kinds.append((prediction - state) / self.scale)
        row = torch.arange(len(state))
        chosen = torch.stack(kinds)[row % len(kinds), row]
        length = chosen.norm(dim=-1, keepdim=True)
        return chosen / (length + 1e-12) / self.scale


def fit(
    world_model: WorldModel,
    states: Tensor,
    actions: Tensor,
    *,
    recipe: SurrogateRecipe | None = None,
    state_scale: Tensor | None = None,
    checkpoint: Checkpoint | None = None,
    report: Report = no_report,
    should_stop: ShouldStop = never,
    checkpoint_seconds: float = 15.0,
) -> Surrogate:
    """Fits a surrogate of `world_model`'s state gradient to data, on one thread of the CPU.

    The loss is `sqrt(1 + |error|^2) - 1` in units of `state_scale`, for cotangents of length 1: at
    an impact a world model's gradient can be many times as long as the cotangent, and a squared
    error would spend the network on these few states. The world model and the caller's random state
    are left as they were.

    Args:
        world_model: `F(state (rows, D), action (rows, A)) -> next state (rows, D)`, on the CPU.
        states: (rows, D) float32, finite: where the world model was trained.
        actions: (rows, A) float32, finite: what was done there.
        recipe: how; None is the default one.
        state_scale: (D,) > 0, the unit of each feature; None is its spread in the data.
        checkpoint: where to save, and to go on from, bit for bit. Its identity is the caller's to
            choose: it should name the world model, the data and the recipe.
        report: called often with ("train", steps done, of, loss).
        should_stop: asked between steps; once true, all is saved and TrainingInterrupted raised.
        checkpoint_seconds: how much work a kill without that courtesy may cost.

    Raises:
        TypeError, ValueError: an argument, or what the world model answers, is wrong; it is named.
        CheckpointMismatchError: `checkpoint` is another run's.
        TrainingInterrupted: `should_stop()` was true.
    """
    recipe = SurrogateRecipe() if recipe is None else recipe
    check_data(states, actions)
    scale = spread(states) if state_scale is None else _checked_scale(state_scale, states)
    with torch.random.fork_rng(devices=[]):  # the caller's random state is not ours to move
        torch.manual_seed(recipe.seed)
        surrogate = Surrogate(
            states.shape[1],
            actions.shape[1],
            units=recipe.units,
            hidden=recipe.hidden,
            layers=recipe.layers,
        )
    surrogate.fit_normalisation(states, actions, scale)
    smooth = list(surrogate.slopes.parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": smooth, "weight_decay": recipe.weight_decay},
            {"params": [surrogate.read, surrogate.write], "weight_decay": 0.0},
        ]
    )
    data = Examples(states, actions, scale, torch.Generator().manual_seed(recipe.seed))
    model = CheckedModel(world_model)

    def report_finite(phase: str, done: int, total: int, loss: float | None) -> None:
        if loss is not None and not math.isfinite(loss):
            raise ValueError(f"world_model's gradient on the data gave a loss of {loss}")
        report(phase, done, total, loss)

    with torch.inference_mode(False), frozen(world_model), one_thread():
        optimise(
            surrogate,
            optimizer,
            data.generator,
            lambda _: _loss(model, surrogate, data, recipe),
            steps=recipe.steps,
            learning_rate=recipe.learning_rate,
            checkpoint=checkpoint,
            report=report_finite,
            should_stop=should_stop,
            checkpoint_seconds=checkpoint_seconds,
        )
    return surrogate.eval().requires_grad_(False)


def _loss(
    model: CheckedModel, surrogate: Surrogate, data: Examples, recipe: SurrogateRecipe
) -> Tensor:
    state, action = data.rows(recipe.batch)
    wanted, cotangent = exact_gradient(model, state, action, lambda p: data.cotangents(p, state))
    level = recipe.state_noise * torch.rand(len(state), 1, generator=data.generator)
    shown = state + level * data.scale * data.normal(*state.shape)
    error = (surrogate(shown, action, cotangent) - wanted) * data.scale
    return ((1 + error.square().sum(-1)).sqrt() - 1).mean()


def check_data(states: Tensor, actions: Tensor) -> None:
    for name, value in (("states", states), ("actions", actions)):
        if value.dim() != 2 or value.dtype != torch.float32 or value.device.type != "cpu":
            raise ValueError(
                f"{name} must be (rows, features), float32 on the CPU, got "
                f"{tuple(value.shape)} {value.dtype} on {value.device}"
            )
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"{name} contain a number that is not finite")
    if len(states) != len(actions) or len(states) == 0:
        raise ValueError(
            f"states and actions must have the same rows, at least one, got {len(states)} and "
            f"{len(actions)}"
        )


def _checked_scale(state_scale: Tensor, states: Tensor) -> Tensor:
    if state_scale.shape != states.shape[1:] or not bool(
        ((state_scale > 0) & torch.isfinite(state_scale)).all()
    ):
        raise ValueError(
            f"state_scale must be ({states.shape[1]},), finite and > 0, got {state_scale}"
        )
    return state_scale.detach().to(states)
