"""The model card: what a world model was trained on and how wrong it is, all of it measured."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from grasp_planner.tasks.data import behaviour_name
from grasp_planner.tasks.evaluation import OPEN_LOOP_STEPS
from grasp_planner.tasks.task import Task
from grasp_planner.tasks.training import Recipe

CARD_FILE = "MODEL_CARD.md"
METRICS_FILE = "metrics.json"


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in (
        "torch",
        "numpy",
        "gymnasium",
        "gymnasium-robotics",
        "mujoco",
        "gym-pusht",
        "pymunk",
    ):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def metrics(
    task: Task,
    recipe: Recipe,
    errors: dict[str, Any],
    expert: dict[str, Any],
    seconds: float | None,
) -> dict[str, Any]:
    """Everything the card says, for machines; `seconds` of one core, None of a resumed run."""
    return {
        "task": task.name,
        "architecture": type(task.world_model).__name__,
        "sizes": task.world_model.sizes,
        "parameters": sum(parameter.numel() for parameter in task.world_model.parameters()),
        "recipe": asdict(recipe),
        "training_seconds": None if seconds is None else round(seconds, 1),
        "versions": _versions(),
        "errors": errors,
        "expert": expert,
    }


def _row(label: str, summary: dict[str, float], unit: str) -> str:
    numbers = " | ".join(f"{summary[key]:.4f}" for key in ("median", "mean", "p90", "p99"))
    return f"| {label} | {numbers} | {unit} |"


def _model(task: type[Task], content: dict[str, Any]) -> str:
    sizes = dict(content["sizes"])
    states, actions = sizes.pop("state_features"), sizes.pop("action_features")
    others = ", ".join(f"{name} {value}" for name, value in sizes.items())
    return (
        f"`{content['architecture']}` of {states} state features ({', '.join(task.state_names)}) "
        f"and {actions} actions: {others}; {content['parameters']:,} parameters."
    )


def _expert(expert: dict[str, Any]) -> str:
    shares = "; ".join(
        f"{horizon} steps: {found['environment']:.0%} in the environment, "
        f"{found['model']:.0%} under the model"
        for horizon, found in expert["horizons"].items()
    )
    return (
        "Actions of an expert that knows the environment must succeed under the model too. "
        f"Of {expert['problems']} problems (seed {expert['seed']}) it solves, {shares}."
    )


def render(task: type[Task], content: dict[str, Any]) -> str:
    """The card as Markdown."""
    recipe, errors = content["recipe"], content["errors"]
    behaviours = ", ".join(
        f"{share:.0%} {behaviour_name(behaviour)}" for behaviour, share in task.behaviours
    )
    units = {name: task.units.get(name, task.unit) for name in errors["one_step"]}
    seconds = content["training_seconds"]
    took = (
        ""
        if seconds is None
        else f" Data and training took {seconds / 60:.1f} minutes of one core."
    )
    hard = ""
    if task.hard_steps is not None:
        hard = f" {errors['hard_share']:.0%} of the steps begin or end {task.hard_steps}."
    lines = [
        f"# World model of {task.name}",
        "",
        "Written by `grasp train`; every number is measured on episodes the model has not seen.",
        "",
        "## Model",
        _model(task, content),
        "",
        "## Data",
        f"{recipe['transitions']:,} transitions from the real environment in episodes of "
        f"{recipe['episode_steps']} steps, seed {recipe['seed']}, {task.starts}. "
        f"Actions: {behaviours} (see `tasks/data.py`).",
        "",
        "## Recipe",
        task.describe_training(recipe) + took,
        "",
        "## Expert",
        _expert(content["expert"]),
        "",
        "## Errors",
        f"{errors['episodes']} episodes of {max(OPEN_LOOP_STEPS)} steps, seed {errors['seed']}, of "
        "the same behaviours as the data. Euclidean error; open loop means that the model is fed "
        f"with its own predictions.{hard}",
        "",
        "| | median | mean | 90 % | 99 % | unit |",
        "|---|---|---|---|---|---|",
    ]
    for name, unit in units.items():
        lines.append(_row(f"one step, {name}", errors["one_step"][name], unit))
        if task.hard_steps is not None:
            label = f"one step {task.hard_steps}, {name}"
            lines.append(_row(label, errors["one_step_hard"][name], unit))
        for steps in OPEN_LOOP_STEPS:
            summary = errors["open_loop"][name][str(steps)]
            lines.append(_row(f"open loop, {steps} steps, {name}", summary, unit))
    heads = " | ".join(f"{k} steps" for k in OPEN_LOOP_STEPS)
    lines += [
        "",
        "Median open-loop error by behaviour:",
        "",
        f"| | {heads} | unit |",
        "|---" * (len(OPEN_LOOP_STEPS) + 2) + "|",
    ]
    for name, unit in units.items():
        for behaviour, medians in errors["open_loop_median_by_behaviour"][name].items():
            numbers = " | ".join(f"{medians[str(k)]:.4f}" for k in OPEN_LOOP_STEPS)
            lines.append(f"| {behaviour}, {name} | {numbers} | {unit} |")
    versions = ", ".join(f"{name} {number}" for name, number in content["versions"].items())
    lines += ["", f"Made with {versions}.", ""]
    return "\n".join(lines)


def write_card(folder: Path, task: type[Task], content: dict[str, Any]) -> Path:
    """Writes `MODEL_CARD.md` and `metrics.json` beside the weights; returns the card's path."""
    (folder / METRICS_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    card = folder / CARD_FILE
    card.write_text(render(task, content), encoding="utf-8")
    return card
