"""How far a world model is from its environment, measured on episodes it has not seen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from grasp_planner.tasks.data import behaviour_name, collect

if TYPE_CHECKING:
    from grasp_planner.tasks.task import Task

OPEN_LOOP_STEPS = (10, 25, 50, 80)
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


def _step_errors(predicted: dict[str, Tensor], true: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: (predicted[name] - value).norm(dim=-1) for name, value in true.items()}


@torch.no_grad()
def evaluate(task: Task, *, episodes: int = 1000, seed: int = 0) -> dict[str, Any]:
    """One-step and open-loop errors of a task's world model against its environment.

    Measured on fresh episodes of the exploration's behaviours, as long as the longest of
    OPEN_LOOP_STEPS. Steps that begin or end where `task.is_hard` are also summed up alone.
    """
    model, generator = task.world_model, np.random.default_rng([seed, EVALUATION_STREAM])
    arrays = collect(task.environment, generator, episodes, max(OPEN_LOOP_STEPS), task.behaviours)
    truth, actions, behaviour = (torch.from_numpy(array) for array in arrays)
    states, quantities = task.observe(truth), task.environment_quantities(truth)
    one_step = _step_errors(
        task.quantities(model(states[:, :-1].flatten(0, 1), actions.flatten(0, 1))),
        {name: value[:, 1:].flatten(0, 1) for name, value in quantities.items()},
    )
    imagined = task.quantities(open_loop(model, states[:, 0], actions))
    drift = _step_errors(imagined, quantities)
    result: dict[str, Any] = {
        "episodes": episodes,
        "seed": seed,
        "one_step": {name: _summary(error) for name, error in one_step.items()},
        "open_loop": {
            name: {str(k): _summary(error[:, k]) for k in OPEN_LOOP_STEPS}
            for name, error in drift.items()
        },
        "open_loop_median_by_behaviour": {
            name: {
                behaviour_name(behave): {
                    str(k): float(error[behaviour == index, k].median()) for k in OPEN_LOOP_STEPS
                }
                for index, (behave, _) in enumerate(task.behaviours)
            }
            for name, error in drift.items()
        },
    }
    if task.hard_steps is not None:
        hard = task.is_hard(truth)
        steps = (hard[:, :-1] | hard[:, 1:]).flatten()
        result["hard_share"] = float(steps.float().mean())
        result["one_step_hard"] = {name: _summary(e[steps]) for name, e in one_step.items()}
    return result


def expert_checks(task: Task, *, problems: int = 100, seed: int = 0) -> dict[str, Any]:
    """`Task.expert_check` at each of the task's horizons."""
    shares = {
        str(horizon): task.expert_check(task.sample_problems(problems, horizon=horizon, seed=seed))
        for horizon in task.horizons
    }
    return {"problems": problems, "seed": seed, "horizons": shares}
