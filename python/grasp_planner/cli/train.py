"""`grasp train`: collect data in a task's environment, train its world model, write a card."""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

from grasp_planner import tasks
from grasp_planner.cli.arguments import positive, seed, task_name
from grasp_planner.cli.interruption import exit_status, progress, stop_requests
from grasp_planner.tasks.card import metrics, write_card
from grasp_planner.tasks.evaluation import evaluate, expert_checks
from grasp_planner.tasks.training import Recipe
from grasp_planner.tasks.weights import save_weights


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `train` to the subcommands of `grasp`."""
    parser = subparsers.add_parser(
        "train",
        help="train the world model of a task",
        description="Collects transitions in the task's environment, trains its world model and "
        "writes weights, model card and metrics. Interrupted, the same command carries on.",
    )
    add = parser.add_argument
    add("task", type=task_name, metavar="TASK", help=f"one of {', '.join(tasks.names())}")
    add("--out", type=Path, metavar="DIR", help=f"({default_folder('TASK')})")
    add(
        "--transitions",
        type=positive,
        metavar="N",
        help=f"to collect (the recipe's: {recipes('transitions')})",
    )
    add(
        "--steps",
        type=positive,
        metavar="N",
        help=f"optimiser steps in all (the recipe's: {recipes('steps')})",
    )
    add("--seed", type=seed, default=0, help="of data and training (0)")
    add(
        "--evaluation-episodes",
        type=positive,
        default=1000,
        metavar="N",
        help="unseen ones, for the errors on the model card (1000)",
    )
    add(
        "--expert-problems",
        type=positive,
        default=100,
        metavar="N",
        help="at each horizon, for the expert's success on the model card (100)",
    )
    parser.set_defaults(run=run)


def default_folder(task: str) -> Path:
    """Where a task is trained unless `--out` says otherwise."""
    return Path("out") / f"train-{task}"


def recipes(field: str) -> str:
    """One number of every task's recipe, for the help."""
    numbers = {name: getattr(tasks.task_class(name).recipe, field) for name in tasks.names()}
    return ", ".join(f"{name} {number:,}" for name, number in numbers.items())


def run(args: argparse.Namespace) -> int:
    """Trains; returns the exit status."""
    return exit_status("grasp train", lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
    task_class = tasks.task_class(args.task)
    recipe: Recipe = replace(task_class.recipe, seed=args.seed)
    if args.transitions is not None:
        recipe = replace(recipe, transitions=args.transitions)
    if args.steps is not None:
        recipe = recipe.with_steps(args.steps)
    folder: Path = args.out or default_folder(task_class.name)
    resumed = (folder / "training" / "checkpoint.pt").exists()
    began = time.process_time()
    with stop_requests() as requested, progress() as report:
        model = task_class.train(
            recipe, folder / "training", report=report, should_stop=lambda: bool(requested)
        )
    seconds = None if resumed else time.process_time() - began
    save_weights(model, folder, task=task_class.name)
    task = tasks.load(task_class.name, weights=folder)
    errors = evaluate(task, episodes=args.evaluation_episodes, seed=args.seed)
    expert = expert_checks(task, problems=args.expert_problems, seed=args.seed)
    card = write_card(folder, task_class, metrics(task, recipe, errors, expert, seconds))
    print(card.read_text(encoding="utf-8"))
    call = f"grasp_planner.tasks.load({task.name!r}, weights={str(folder)!r})"
    print(f"written to {folder}; use it: {call}")
