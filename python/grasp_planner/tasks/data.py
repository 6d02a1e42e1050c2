"""Exploration: the random actions whose outcomes the world models are trained on.

A planner visits what a planner likes: full throttle, long holds, sliding along walls, gentle
corrections at the goal. Each episode therefore draws one of several behaviours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
#: (generator, episodes, steps, features) -> actions (episodes, steps, features) in [-1, 1].
Behaviour = Callable[[np.random.Generator, int, int, int], Array]


class DataEnvironment(Protocol):
    """What an environment must offer for data to be collected from it."""

    state_features: int
    """E."""
    action_features: int
    """A."""

    def random_states(self, generator: np.random.Generator, count: int) -> Array:
        """(count, E) varied states, all physically possible."""

    def simulate(self, start: Array, actions: Array) -> Array:
        """(B, E), (B, T, A) -> (B, T+1, E); a plan is the same whatever it is batched with."""


def held(generator: np.random.Generator, episodes: int, steps: int, features: int) -> Array:
    """Saturating actions, each kept for a random number of steps."""
    keep = generator.uniform(0.3, 0.95, (episodes, 1))
    fresh = np.clip(1.5 * generator.uniform(-1, 1, (episodes, steps, features)), -1, 1)
    kept = generator.uniform(size=(episodes, steps)) < keep
    actions = fresh.copy()
    for t in range(1, steps):
        actions[:, t] = np.where(kept[:, t, None], actions[:, t - 1], fresh[:, t])
    return actions


def drifting(generator: np.random.Generator, episodes: int, steps: int, features: int) -> Array:
    """First-order autoregressive actions: from slow wandering to nearly white."""
    memory = generator.uniform(0.5, 0.97, (episodes, 1))
    scale = generator.uniform(0.2, 1.2, (episodes, 1))
    noise = generator.standard_normal((episodes, steps, features))
    actions = np.empty_like(noise)
    value = scale * noise[:, 0]
    for t in range(steps):
        actions[:, t] = value
        if t + 1 < steps:
            value = memory * value + scale * np.sqrt(1 - memory**2) * noise[:, t + 1]
    return np.clip(actions, -1, 1)


def white(generator: np.random.Generator, episodes: int, steps: int, features: int) -> Array:
    """Independent uniform actions of a random size."""
    scale = generator.uniform(0.1, 1.0, (episodes, 1, 1))
    return np.asarray(scale * generator.uniform(-1, 1, (episodes, steps, features)))


def perturbed(generator: np.random.Generator, episodes: int, steps: int, features: int) -> Array:
    """Held actions with small white corrections, like a plan half-way through its refinement."""
    base = held(generator, episodes, steps, features)
    scale = generator.uniform(0.0, 0.4, (episodes, 1, 1))
    return np.clip(base + scale * generator.standard_normal(base.shape), -1, 1)


Behaviours = tuple[tuple[Behaviour, float], ...]
BEHAVIOURS: Behaviours = ((held, 0.45), (drifting, 0.25), (white, 0.1), (perturbed, 0.2))


def behaviour_name(behaviour: Behaviour) -> str:
    """As the model card has it."""
    return str(getattr(behaviour, "__name__", behaviour))


def random_actions(
    generator: np.random.Generator,
    episodes: int,
    steps: int,
    features: int,
    behaviours: Behaviours = BEHAVIOURS,
) -> tuple[Array, NDArray[np.intp]]:
    """Actions (episodes, steps, features) in [-1, 1], and each episode's index in `behaviours`."""
    shares = np.array([share for _, share in behaviours])
    choice = generator.choice(len(behaviours), size=episodes, p=shares)
    actions = np.empty((episodes, steps, features))
    for index, (behaviour, _) in enumerate(behaviours):
        chosen = choice == index
        actions[chosen] = behaviour(generator, int(chosen.sum()), steps, features)
    return actions.astype(np.float32).astype(np.float64), choice  # what the model will see


def collect(
    environment: DataEnvironment,
    generator: np.random.Generator,
    episodes: int,
    steps: int,
    behaviours: Behaviours = BEHAVIOURS,
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.intp]]:
    """States (episodes, steps+1, E), actions (episodes, steps, A), behaviours (episodes,)."""
    start = environment.random_states(generator, episodes)
    features = environment.action_features
    actions, choice = random_actions(generator, episodes, steps, features, behaviours)
    states = environment.simulate(start, actions)
    return states.astype(np.float32), actions.astype(np.float32), choice
