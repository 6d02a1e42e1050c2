"""The surrogates of the shipped tasks: their data, their training, their files and their cards.

`surrogate.safetensors` lies beside the weights of the world model whose gradient it stands for, and
says in its header which that is: it is refused beside another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from grasp_planner.interruptible import Checkpoint, Report, ShouldStop, never, no_report, one_thread
from grasp_planner.surrogate import Surrogate, SurrogateRecipe, fit
from grasp_planner.surrogate_errors import measure
from grasp_planner.tasks.data import collect
from grasp_planner.tasks.evaluation import EVALUATION_STREAM
from grasp_planner.tasks.training import gather_data
from grasp_planner.tasks.weights import load_module, save_module

if TYPE_CHECKING:
    from grasp_planner.tasks.task import Task

SURROGATE_FILE = "surrogate.safetensors"
CARD_FILE = "SURROGATE.md"
TRANSITIONS = 60_000
"""Of the task's exploration, to fit to: a fifth of what its world model is trained on."""
#: Where the default recipe's noise would be too little: beside 32 latent features, two are true.
STATE_NOISE = {"wall-pixels": 0.3}
_EPISODES, _STEPS = 150, 80  # to measure on
_KIND = "surrogate"


def default_recipe(task: str) -> SurrogateRecipe:
    """What `grasp train-surrogate` does for a task unless it is told otherwise."""
    recipe = SurrogateRecipe()
    return replace(recipe, state_noise=STATE_NOISE.get(task, recipe.state_noise))


def fingerprint(world_model: nn.Module) -> str:
    """A short hash of all parameters and buffers: their names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, value in sorted(world_model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def train_surrogate(
    task: Task,
    recipe: SurrogateRecipe,
    folder: Path,
    *,
    report: Report = no_report,
    should_stop: ShouldStop = never,
) -> Surrogate:
    """Collects data and fits a surrogate in `folder`, from where an earlier call stopped.

    The data are the first `TRANSITIONS` that `grasp train` would collect with the recipe's seed.
    Raises TrainingInterrupted, everything saved, soon after `should_stop()` is true, and
    CheckpointMismatchError where `folder` holds a run of another recipe or world model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data = replace(task.recipe, transitions=TRANSITIONS, seed=recipe.seed)
    identity = {
        **asdict(recipe),
        "task": task.name,
        "transitions": TRANSITIONS,
        "world_model": fingerprint(task.world_model),
    }
    checkpoint = Checkpoint(folder / "checkpoint.pt", identity)
    checkpoint.claim()  # before the first shard: data of two seeds are never mixed
    with one_thread():
        states, actions = gather_data(type(task), data, folder / "data", report, should_stop)
        rows = _rows(task, states, actions)
    return fit(
        task.world_model,
        *rows,
        recipe=recipe,
        state_scale=task.state_scale,
        checkpoint=checkpoint,
        report=report,
        should_stop=should_stop,
    )


def measure_surrogate(task: Task, surrogate: Surrogate, *, seed: int = 0) -> list[dict[str, float]]:
    """`surrogate_errors.measure` on episodes of the exploration that no training has seen."""
    generator = np.random.default_rng([seed, EVALUATION_STREAM])
    arrays = collect(task.environment, generator, _EPISODES, _STEPS, task.behaviours)
    states, actions, _ = (torch.from_numpy(array) for array in arrays)
    return measure(surrogate, task.world_model, *_rows(task, states, actions), seed=seed)


def _rows(task: Task, states: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
    """States (episodes, L+1, E) as (rows, D), without the last ones, which have no action."""
    return task.observe(states[:, :-1]).flatten(0, 1), actions.flatten(0, 1)


def save_surrogate(surrogate: Surrogate, folder: Path, *, task: Task) -> Path:
    """Writes the tensors, and what they belong to; returns the file's path."""
    whose = fingerprint(task.world_model)
    path = folder / SURROGATE_FILE
    return save_module(surrogate, path, _KIND, task=task.name, world_model=whose)


def load_surrogate(task: Task, folder: Path | None = None) -> Surrogate:
    """The surrogate of a task's folder, or of another, in evaluation mode and frozen.

    Raises:
        FileNotFoundError: there is none; the message says how to train one.
        ValueError: the file is of another task, or of another world model of this one.
    """
    path = (folder or task.folder) / SURROGATE_FILE
    command = f"grasp train-surrogate {task.name} --out {path.parent}"
    if not path.exists():
        raise FileNotFoundError(f"{task.name}: no surrogate at {path}; train one with `{command}`")

    def build(header: dict[str, Any]) -> Surrogate:
        if header["world_model"] != fingerprint(task.world_model):
            raise ValueError(
                f"{path} belongs to another world model of {task.name}; train one of this with "
                f"`{command}`"
            )
        return Surrogate(**header["sizes"])

    found: Surrogate = load_module(path, _KIND, task=task.name, build=build)
    return found


def write_card(
    folder: Path, task: Task, surrogate: Surrogate, recipe: SurrogateRecipe, seconds: float | None
) -> Path:
    """Measures, and writes `SURROGATE.md` beside the weights; `seconds` None of a resumed run."""
    found = measure_surrogate(task, surrogate, seed=recipe.seed)
    card = folder / CARD_FILE
    card.write_text("\n".join(_card(task, surrogate, recipe, seconds, found)), encoding="utf-8")
    return card


def _card(
    task: Task,
    surrogate: Surrogate,
    recipe: SurrogateRecipe,
    seconds: float | None,
    found: list[dict[str, float]],
) -> Iterator[str]:
    sizes = surrogate.sizes
    parameters = sum(parameter.numel() for parameter in surrogate.parameters())
    took = "" if seconds is None else f" It took {seconds / 60:.1f} minutes of one core."
    command = f"grasp train-surrogate {task.name} --steps {recipe.steps} --seed {recipe.seed}"
    yield f"# Surrogate of the state gradient of {task.name}\n"
    yield f"Written by `{command}`; every number is measured on episodes it was not fitted to.\n"
    yield "## Model"
    yield (
        f"`Surrogate` of {sizes['state_features']} state features and {sizes['action_features']} "
        f"actions: {sizes['units']} units, slopes by a network of {sizes['layers']} layers of "
        f"{sizes['hidden']}; {parameters:,} parameters. It belongs to the world model "
        f"`{fingerprint(task.world_model)}` and is refused by any other.\n"
    )
    yield "## Recipe"
    yield (
        f"{recipe.steps:,} steps of AdamW on {recipe.batch} states, of {TRANSITIONS:,} transitions "
        f"as `grasp train` collects them (seed {recipe.seed}); learning rate "
        f"{recipe.learning_rate:g} with warm-up and cosine decay, weight decay "
        f"{recipe.weight_decay:g} on the slopes, one thread. Error of the gradient, squared where "
        "it is small and absolute where it is large, for cotangents of length 1: white, from "
        "another data state to the prediction, and from the state to the prediction. The states "
        f"shown have noise of up to {recipe.state_noise:g} on them, the gradients asked for are "
        f"those without.{took}\n"
    )
    yield "## Errors"
    yield (
        "Lengths are in units of `state_scale`, and so is the noise on the states. *Error* is "
        "relative: the root of the summed squares over that of the exact gradients, which the "
        "longest of them decide. *Median error* is that of one answer, in lengths of its "
        "cotangent. *The cotangent* is what the error would be if it were returned as it came. "
        "*From the data* compares with the exact gradient at the state without noise, to which "
        "the surrogate should keep closer than the exact gradient at the noisy state does. "
        "*Gain*: 99 % of the answers are at most so many times as long as their cotangents.\n"
    )
    heads = {
        "noise": "noise",
        "error": "error",
        "median": "median error",
        "cosine": "cosine",
        "identity": "the cotangent",
        "from_data": "from the data",
        "exact_from_data": "exact gradient, from the data",
        "gain": "gain",
        "exact_gain": "exact gain",
    }
    yield f"| {' | '.join(heads.values())} |"
    yield "|---" * len(heads) + "|"
    for row in found:
        numbers = [f"{row[name]:.3f}" for name in heads if name != "noise"]
        yield f"| {row['noise']:g} | {' | '.join(numbers)} |"
    yield ""
