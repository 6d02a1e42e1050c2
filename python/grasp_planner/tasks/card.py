"""The model card: what a world model was trained on and how wrong it is, all of it measured."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from grasp_planner.tasks.data import BEHAVIOURS
from grasp_planner.tasks.evaluation import OPEN_LOOP_STEPS
from grasp_planner.tasks.mlp import ResidualMLP
from grasp_planner.tasks.task import Task
from grasp_planner.tasks.training import Recipe

CARD_FILE = "MODEL_CARD.md"
METRICS_FILE = "metrics.json"


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("torch", "numpy", "gymnasium", "gymnasium-robotics", "mujoco"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def metrics(
    task: type[Task],
    model: ResidualMLP,
    recipe: Recipe,
    errors: dict[str, Any],
    seconds: float | None,
) -> dict[str, Any]:
    """Everything the card says, for machines; `seconds` of an uninterrupted run, else None."""
    return {
        "task": task.name,
        "action_features": model.action_features,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "recipe": asdict(recipe),
        "training_seconds": None if seconds is None else round(seconds, 1),
        "versions": _versions(),
        "errors": errors,
    }


def _row(label: str, summary: dict[str, float], unit: str) -> str:
    numbers = " | ".join(f"{summary[key]:.4f}" for key in ("median", "mean", "p90", "p99"))
    return f"| {label} | {numbers} | {unit} |"


def render(task: type[Task], content: dict[str, Any]) -> str:
    """The card as Markdown."""
    recipe, errors = content["recipe"], content["errors"]
    stages = ", then ".join(f"{n} steps of unroll {k}" for k, n in recipe["stages"])
    behaviours = ", ".join(f"{share:.0%} {behaviour.__name__}" for behaviour, share in BEHAVIOURS)
    units = dict.fromkeys(task.feature_groups, task.unit)
    if "velocity" in units:
        units["velocity"] = f"{task.unit}/s"
    seconds = content["training_seconds"]
    took = "" if seconds is None else f" Data and training took {seconds / 60:.1f} minutes."
    lines = [
        f"# World model of {task.name}",
        "",
        "Written by `grasp train`; every number is measured on episodes the model has not seen.",
        "",
        "## Model",
        f"`ResidualMLP`: {len(task.state_names)} state features ({', '.join(task.state_names)}), "
        f"{content['action_features']} actions, "
        f"{recipe['layers']} hidden layers of {recipe['hidden']}, SiLU, "
        f"{content['parameters']:,} parameters.",
        "",
        "## Data",
        f"{recipe['transitions']:,} transitions from the real environment in episodes of "
        f"{recipe['episode_steps']} steps, seed {recipe['seed']}, starts all over the free space. "
        f"Actions: {behaviours} (see `tasks/data.py`).",
        "",
        "## Recipe",
        f"AdamW, batch {recipe['batch']}, learning rate {recipe['learning_rate']} with warm-up "
        f"and cosine decay, weight decay {recipe['weight_decay']}, one thread; smooth absolute "
        f"error of an open loop: {stages}.{took}",
        "",
        "## Errors",
        f"{errors['episodes']} episodes of {max(OPEN_LOOP_STEPS)} steps, seed {errors['seed']}, of "
        "the same behaviours as the data. Euclidean error; open loop means that the model is fed "
        f"with its own predictions. Near a wall are the {errors['near_wall_share']:.0%} of the "
        "steps that begin or end within reach of one.",
        "",
        "| | median | mean | 90 % | 99 % | unit |",
        "|---|---|---|---|---|---|",
    ]
    for name, unit in units.items():
        lines.append(_row(f"one step, {name}", errors["one_step"][name], unit))
        lines.append(
            _row(f"one step near a wall, {name}", errors["one_step_near_wall"][name], unit)
        )
        for horizon in OPEN_LOOP_STEPS:
            summary = errors["open_loop"][name][str(horizon)]
            lines.append(_row(f"open loop, {horizon} steps, {name}", summary, unit))
    steps = " | ".join(f"{k} steps" for k in OPEN_LOOP_STEPS)
    lines += [
        "",
        "Median open-loop error by behaviour:",
        "",
        f"| | {steps} | unit |",
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
