"""`grasp train-surrogate`: fit a surrogate of a world model's state gradient, write its card."""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

from grasp_planner import tasks
from grasp_planner.cli.arguments import positive, seed, task_name
from grasp_planner.cli.interruption import exit_status, progress, stop_requests
from grasp_planner.tasks.surrogates import (
    default_recipe,
    save_surrogate,
    train_surrogate,
    write_card,
)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `train-surrogate` to the subcommands of `grasp`."""
    parser = subparsers.add_parser(
        "train-surrogate",
        help="train a surrogate of a world model's state gradient",
        description="Collects states in the task's environment, fits a surrogate of its world "
        "model's state gradient to them and writes weights and card. Interrupted, the same "
        "command carries on.",
    )
    add = parser.add_argument
    add("task", type=task_name, metavar="TASK", help=f"one of {', '.join(tasks.names())}")
    add("--out", type=Path, metavar="DIR", help=f"({default_folder('TASK')})")
    add("--weights", type=Path, metavar="DIR", help="of the world model (the shipped ones)")
    steps = default_recipe("").steps
    add("--steps", type=positive, default=steps, metavar="N", help=f"of the optimiser ({steps:,})")
    add("--seed", type=seed, default=0, help="of data and training (0)")
    parser.set_defaults(run=run)


def default_folder(task: str) -> Path:
    """Where a surrogate is trained unless `--out` says otherwise."""
    return Path("out") / f"train-surrogate-{task}"


def run(args: argparse.Namespace) -> int:
    """Trains; returns the exit status."""
    return exit_status("grasp train-surrogate", lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
    task = tasks.load(args.task, weights=args.weights)
    recipe = replace(default_recipe(task.name), steps=args.steps, seed=args.seed)
    folder: Path = args.out or default_folder(task.name)
    training = folder / "surrogate-training"  # `grasp train --out` may have used the same folder
    resumed = (training / "checkpoint.pt").exists()
    began = time.process_time()
    with stop_requests() as requested, progress() as report:
        surrogate = train_surrogate(
            task, recipe, training, report=report, should_stop=lambda: bool(requested)
        )
    seconds = None if resumed else time.process_time() - began
    save_surrogate(surrogate, folder, task=task)
    card = write_card(folder, task, surrogate, recipe, seconds)
    print(card.read_text(encoding="utf-8"))
    print(f"written to {folder}; use it: task.surrogate({str(folder)!r})")
