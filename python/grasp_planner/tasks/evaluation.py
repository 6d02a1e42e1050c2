"""How far a world model is from its environment, measured on episodes it has not seen."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from grasp_planner.tasks.data import BEHAVIOURS, DataEnvironment, collect

OPEN_LOOP_STEPS = (10, 25, 50)
#: Shards of training data are seeded by their number; this one is never reached by them.
EVALUATION_STREAM = 1_000_003


@torch.no_grad()
def open_loop(model: nn.Module, start: Tensor, actions: Tensor) -> Tensor:
    """(B, D), (B, T, A) -> (B, T+1, D): the model fed with its own predictions."""
    states = [start]
    for t in range(actions.shape[1]):
        states.append(model(states[-1], actions[:, t]))
    return torch.stack(states, dim=1)


def _summary(errors: Tensor) -> dict[str, float]:
    return {
        "median": float(errors.median()),
        "mean": float(errors.mean()),
        "p90": float(torch.quantile(errors, 0.9)),
        "p99": float(torch.quantile(errors, 0.99)),
    }


@torch.no_grad()
def evaluate(
    model: nn.Module,
    environment: DataEnvironment,
    *,
    groups: dict[str, tuple[int, ...]],
    clearance: Any,
    near_wall: float,
    episodes: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """One-step and open-loop errors against the environment.

    Args:
        groups: named feature groups whose Euclidean error is reported, e.g. position and velocity.
        clearance: `(rows, D) -> (rows,)`, free distance to the nearest wall.
        near_wall: steps that begin or end closer than this to a wall are also summed up alone.
        episodes: fresh ones, of the exploration's behaviours, as long as the longest horizon.
        seed: of those episodes.
    """
    generator = np.random.default_rng([seed, EVALUATION_STREAM])
    arrays = collect(environment, generator, episodes, max(OPEN_LOOP_STEPS))
    states, actions, behaviour = (torch.from_numpy(array) for array in arrays)
    features = states.shape[-1]
    before, after = states[:, :-1].reshape(-1, features), states[:, 1:].reshape(-1, features)
    predicted = model(before, actions.reshape(-1, actions.shape[-1]))
    free_distance = np.minimum(clearance(before.numpy()), clearance(after.numpy()))
    near = torch.from_numpy(np.asarray(free_distance < near_wall))
    imagined = open_loop(model, states[:, 0], actions)
    result: dict[str, Any] = {
        "episodes": episodes,
        "seed": seed,
        "near_wall_share": float(near.float().mean()),
        "one_step": {},
        "one_step_near_wall": {},
        "open_loop": {},
        "open_loop_median_by_behaviour": {},
    }
    for name, columns in groups.items():
        chosen = list(columns)
        one_step = (predicted - after)[:, chosen].norm(dim=-1)
        drift = (imagined - states)[..., chosen].norm(dim=-1)
        result["one_step"][name] = _summary(one_step)
        result["one_step_near_wall"][name] = _summary(one_step[near])
        result["open_loop"][name] = {str(k): _summary(drift[:, k]) for k in OPEN_LOOP_STEPS}
        result["open_loop_median_by_behaviour"][name] = {
            behave.__name__: {
                str(k): float(drift[behaviour == index, k].median()) for k in OPEN_LOOP_STEPS
            }
            for index, (behave, _) in enumerate(BEHAVIOURS)
        }
    return result
