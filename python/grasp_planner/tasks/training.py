"""Training of a task's world model: collect, fit with growing unrolls, resume where it was cut off.

Everything lives in one folder: `data/shard-*.npz` (seeded by recipe seed and shard number, so a
shard is the same whenever it is collected) and `checkpoint.pt` (model, optimiser, generator,
step). Both are replaced atomically. A run that was killed and started again ends in the same
weights, bit for bit, as one that was not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from grasp_planner.interruptible import (
    Checkpoint,
    Report,
    ShouldStop,
    TrainingInterrupted,
    never,
    no_report,
    one_thread,
    optimise,
    replacing,
)
from grasp_planner.tasks.data import DataEnvironment, collect

if TYPE_CHECKING:
    from grasp_planner.tasks.task import Task

_SHARD_EPISODES = 400


@dataclass(frozen=True)
class Recipe:
    """How a world model is trained. Every field is part of the checkpoint's identity."""

    transitions: int = 300_000
    episode_steps: int = 20
    hidden: int = 128
    layers: int = 3
    input_gain: float = 3.0
    """Factor on the first layer's initial weights: contact is a matter of centimetres on a map of
    metres, and a network that starts smooth is slow to resolve it."""
    batch: int = 256
    learning_rate: float = 8e-3
    weight_decay: float = 1e-4
    smooth: float = 0.05
    """Errors below this, in typical one-step changes, are squared, larger ones count linearly."""
    stages: tuple[tuple[int, int], ...] = ((1, 6_000), (3, 4_000), (8, 6_000))
    """(unroll length, optimiser steps), in order."""
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple((int(k), int(n)) for k, n in self.stages))
        longest = max((unroll for unroll, _ in self.stages), default=0)
        if not 1 <= longest <= self.episode_steps or min(n for _, n in self.stages) < 0:
            raise ValueError(
                f"stages {self.stages} must unroll between 1 and episode_steps = "
                f"{self.episode_steps} steps and have non-negative lengths"
            )
        if self.transitions < self.episode_steps:
            raise ValueError(
                f"transitions = {self.transitions} is less than one episode of {self.episode_steps}"
            )

    @property
    def steps(self) -> int:
        """Optimiser steps in all."""
        return sum(count for _, count in self.stages)

    @property
    def episodes(self) -> int:
        return math.ceil(self.transitions / self.episode_steps)

    def with_steps(self, steps: int) -> Recipe:
        """The same recipe with its stages scaled to `steps` in all."""
        if steps < 1:
            raise ValueError(f"steps must be at least 1, not {steps}")
        ends = np.cumsum([count for _, count in self.stages]) / self.steps
        bounds = np.rint(np.concatenate(([0.0], ends)) * steps).astype(int)
        counts = np.diff(bounds)
        return replace(
            self,
            stages=tuple(
                (unroll, int(count)) for (unroll, _), count in zip(self.stages, counts, strict=True)
            ),
        )

    def unroll(self, step: int) -> int:
        """The unroll length of an optimiser step."""
        for unroll, count in self.stages:
            if step < count:
                return unroll
            step -= count
        return self.stages[-1][0]


def _identity(task: str, recipe: Recipe) -> dict[str, Any]:
    stages = [list(stage) for stage in recipe.stages]
    return {"task": task, **asdict(recipe), "stages": stages}


def describe(recipe: dict[str, Any]) -> str:
    """The training of a recipe's fields in words, for the model card."""
    stages = ", then ".join(f"{n} steps of unroll {k}" for k, n in recipe["stages"])
    return (
        f"AdamW, batch {recipe['batch']}, learning rate {recipe['learning_rate']} with warm-up "
        f"and cosine decay, weight decay {recipe['weight_decay']}, one thread; smooth absolute "
        f"error of an open loop: {stages}."
    )


def gather_data(
    task: type[Task],
    recipe: Recipe,
    folder: Path,
    report: Report = no_report,
    should_stop: ShouldStop = never,
) -> tuple[Tensor, Tensor]:
    """The environment's states (episodes, L+1, E) and actions (episodes, L, A).

    Collects the shards that are missing; the environment is made only if there are any.
    """
    folder.mkdir(parents=True, exist_ok=True)
    states, actions = [], []
    world: DataEnvironment | None = None
    for shard, first in enumerate(range(0, recipe.episodes, _SHARD_EPISODES)):
        episodes = min(_SHARD_EPISODES, recipe.episodes - first)
        path = folder / f"shard-{shard:04d}.npz"
        if not path.exists():
            if should_stop():
                raise TrainingInterrupted(f"stopped after {first} of {recipe.episodes} episodes")
            if world is None:
                world = task.make_environment()
            generator = np.random.default_rng([recipe.seed, shard])
            new = collect(world, generator, episodes, recipe.episode_steps, task.behaviours)
            with replacing(path) as partial, open(partial, "wb") as file:
                np.savez(file, states=new[0], actions=new[1])
        with np.load(path) as arrays:
            states.append(torch.from_numpy(arrays["states"]))
            actions.append(torch.from_numpy(arrays["actions"]))
        done = min(recipe.transitions, (first + episodes) * recipe.episode_steps)
        report("collect", done, recipe.transitions, None)
    return torch.cat(states), torch.cat(actions)


def unroll_loss(
    model: nn.Module, states: Tensor, actions: Tensor, unit: Tensor, smooth: float
) -> Tensor:
    """Smooth absolute error of an open loop, in the unit (D,): a typical one-step change, or less.

    Impacts depend on where in a simulator's substep they fall and cannot be predicted to the end. A
    squared error spends the network on them; an absolute one lets free motion become exact.

    states (B, K+1, D), actions (B, K, A); gradients flow through all K steps.
    """
    state, loss = states[:, 0], states.new_zeros(())
    for t in range(actions.shape[1]):
        state = model(state, actions[:, t])
        predicted, target = state / unit, states[:, t + 1] / unit
        loss = loss + nn.functional.smooth_l1_loss(predicted, target, beta=smooth)
    return loss / actions.shape[1]


def train(
    task: type[Task],
    recipe: Recipe,
    folder: Path,
    *,
    observe: Callable[[Tensor], Tensor] = lambda environment_states: environment_states,
    report: Report = no_report,
    should_stop: ShouldStop = never,
    checkpoint_seconds: float = 15.0,
) -> nn.Module:
    """Trains to the recipe's end, from the checkpoint in `folder` if there is one.

    Args:
        task: gives the environment, the behaviours and the untrained model, which must offer
            `fit_normalisation` and `change_scale`; its name is checked against the checkpoint's.
        recipe: what to do.
        folder: data and checkpoint; created if need be.
        observe: (..., E) -> (..., D), the model's states of the environment's.
        report: called often with the progress.
        should_stop: asked between steps; once true, all is saved and TrainingInterrupted raised.
        checkpoint_seconds: how much work a kill without that courtesy may cost.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = Checkpoint(folder / "checkpoint.pt", _identity(task.name, recipe))
    checkpoint.claim()  # before the first shard: data of two recipes are never mixed
    with one_thread():
        states, actions = gather_data(task, recipe, folder / "data", report, should_stop)
        states = observe(states)
        model, unit = _new_model(task, recipe, states, actions)
        generator = torch.Generator().manual_seed(recipe.seed)
        optimise(
            model,
            torch.optim.AdamW(model.parameters(), weight_decay=recipe.weight_decay),
            generator,
            lambda step: _loss(model, generator, states, actions, unit, recipe, step),
            steps=recipe.steps,
            learning_rate=recipe.learning_rate,
            checkpoint=checkpoint,
            report=report,
            should_stop=should_stop,
            checkpoint_seconds=checkpoint_seconds,
        )
    return model


def _new_model(
    task: type[Task], recipe: Recipe, states: Tensor, actions: Tensor
) -> tuple[nn.Module, Tensor]:
    """An untrained model that knows the data's mean and spread, and the loss's unit (D,)."""
    features, controls = states.shape[-1], actions.shape[-1]
    with torch.random.fork_rng(devices=[]):  # the caller's random state is not ours to move
        torch.manual_seed(recipe.seed)
        model: Any = task.new_model(recipe, features, controls)
    model.fit_normalisation(
        states[:, :-1].reshape(-1, features),
        actions.reshape(-1, controls),
        states[:, 1:].reshape(-1, features),
    )
    unit = model.change_scale.clone()
    for group, weight in task.loss_weights.items():
        unit[list(task.feature_groups[group])] /= weight
    return model, unit


def _loss(
    model: nn.Module,
    generator: torch.Generator,
    states: Tensor,
    actions: Tensor,
    unit: Tensor,
    recipe: Recipe,
    step: int,
) -> Tensor:
    unroll = recipe.unroll(step)
    episodes, length = actions.shape[:2]
    episode = torch.randint(episodes, (recipe.batch, 1), generator=generator)
    first = torch.randint(length - unroll + 1, (recipe.batch, 1), generator=generator)
    time_rows = first + torch.arange(unroll + 1)
    return unroll_loss(
        model,
        states[episode, time_rows],
        actions[episode, time_rows[:, :-1]],
        unit,
        recipe.smooth,
    )
