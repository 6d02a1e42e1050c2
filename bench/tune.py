"""Search a planner's settings: how often do plans succeed in the environment, at what price?

    python bench/tune.py --planner cem [--tasks wall,umaze] [--horizons 50] [--problems 12]
                         [--seed 100] [--trials 20] [--threads 1] [--out FILE]       (make tune)

The first trial is the planner's own settings; the others are drawn at random from its space below,
or are all of the space where that has no more than `--trials`. Each problem is planned alone, as
`grasp eval` does, and problems are never those of the table, whose seed is 0. Every trial on a task
and horizon is a line of FILE as soon as it ends; the same command, or one with more trials, goes on
from there. Of many settings tried on a few problems the best looks better than it is: confirm it
with another seed before it becomes the default.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from grasp_bench.log import Line, Log
from grasp_planner import tasks
from grasp_planner.cli.arguments import listed, positive, seed
from grasp_planner.cli.eval import known_task
from grasp_planner.evaluation.statistics import wilson
from grasp_planner.evaluation.worker import plan_unit
from grasp_planner.presets import PLANNERS, make_planner
from rich.console import Console
from rich.table import Table

TABLE_SEED = 0  # of `make table`, which must not see what was tuned on its own problems

Changes = dict[str, Any]
ABOUT = ("planner", "task", "horizon", "problems", "seed", "changes")

# The sampling planners keep the budgets that the literature compares them by, 300 plans in each of
# 30 iterations (iCEM: falling to 100): more would buy success, and be no baseline but a slow one.
SPACES: dict[str, dict[str, tuple[Any, ...]]] = {
    "lifted-newton": {
        "hold": (3, 5, 8),
        "rounds": (2, 3, 6, 8),
        "enough": (0.0, 0.2, 0.3, 0.4),
        "samples": (128, 256, 512),
        "resamples": (64, 128, 256),
        "candidates": (4, 8, 16),
        "refinement": ("lifted", "rollout"),
        "refine_steps": (3, 5, 8, 12),
        "jacobians_every": (1, 2),
        "damping": (1e-4, 1e-3, 1e-2),
        "max_action_step": (0.25, 0.5, 1.0),
        "spread": (1.3, 1.6, 2.0, 3.0),
        "wander": (0.1, 0.2, 0.4),
        "changes": (4.0, 5.0, 8.0, 16.0),
        "elite_share": (0.2, 0.35, 0.5),
        "elite_noise": (0.35, 0.7),
        "score_rollouts": (0, 4, 8, 16),
        "score_action_noise": (0.02, 0.05, 0.1),
        "score_state_noise": (0.02, 0.05, 0.1),
        "effort_weight": (0.0, 0.3, 1.0),
    },
    "cem": {
        "hold": (1, 3, 5, 8, 10),
        "elites": (10, 20, 30, 50),
        "initial_std": (0.5, 0.7, 1.0, 1.5),
        "min_std": (0.0, 0.02, 0.05, 0.1),
        "momentum": (0.0, 0.1, 0.3),
    },
    "icem": {
        "hold": (1, 3, 5),
        "elites": (10, 20, 30, 50),
        "kept": (0.1, 0.3, 0.5),
        "colour": (1.0, 2.0, 2.5, 3.5),
        "initial_std": (0.5, 0.7, 1.0),
        "min_std": (0.0, 0.02, 0.05),
        "momentum": (0.0, 0.1, 0.3),
    },
    "mppi": {
        "hold": (1, 3, 5, 8, 10),
        "temperature": (0.03, 0.05, 0.1, 0.2, 0.5),
        "std": (0.5, 0.7, 1.0, 1.5),
        "last_std": (0.02, 0.05, 0.1, 0.2),
    },
    "gradient": {
        "hold": (1, 3, 5, 8),
        "restarts": (4, 8, 16, 32),
        "iterations": (30, 60, 100, 200),
        "lr": (0.03, 0.1, 0.3),
        "last_lr": (0.003, 0.01, 0.03),
        "spread": (0.5, 1.0, 1.5),
    },
    "latco": {
        "hold": (1, 3, 5),
        "restarts": (4, 8, 16),
        "iterations": (150, 300, 600),
        "state_lr": (0.02, 0.05, 0.1),
        "action_lr": (0.02, 0.05, 0.1),
        "initial_multiplier": (0.1, 1.0, 10.0),
        "multiplier_every": (5, 10, 20),
        "multiplier_rate": (0.25, 0.5, 1.0),
        "tolerance": (1e-7, 1e-6, 1e-5),
        "initialization": ("rollout", "linear"),
        "spread": (0.3, 1.0),
    },
    "grasp": {
        "iterations": (50, 100, 200),
        "candidates": (4, 8, 16),
        "hold": (1, 5),
        "action_lr": (0.05, 0.1, 0.2),
        "noise_scale": (0.05, 0.1, 0.2),
        "initial_noise_scale": (0.5, 1.0, 1.5, 2.0),
        "sync_every": (25, 50, 100),
        "sync_steps": (5, 10, 20),
        "sync_optimizer": ("adam", "gauss-newton"),
        "final_sync_steps": (20, 50, 100),
    },
    "grasp-paper": {  # the paper's plain gradient steps have the units of the world model
        "action_lr": (0.05, 0.2, 0.5, 2.0, 5.0, 20.0),
        "sync_lr": (0.01, 0.05, 0.2, 0.5, 2.0),
    },
}


def trials(planner: str, count: int, seed: int) -> Iterator[Changes]:
    """The planner's own settings, then `count - 1` others; fewer where the space has no more."""
    space = SPACES[planner]
    yield {}
    if math.prod(map(len, space.values())) < count:
        for values in itertools.product(*space.values()):
            yield dict(zip(space, values, strict=True))
        return
    draw, seen = random.Random(f"{planner} {seed}"), set[str]()
    while len(seen) < count - 1:
        changes = {name: draw.choice(values) for name, values in space.items()}
        if valid(planner, changes) and (key := json.dumps(changes)) not in seen:
            seen.add(key)
            yield changes


def valid(planner: str, changes: Changes) -> bool:
    """Whether the settings go together."""
    try:
        PLANNERS[planner][1](**changes)
    except ValueError:
        return False
    return True


def measure(task: tasks.Task, about: Line) -> Line:
    """Plans and executes the problems, one at a time, after a plan that is not counted."""
    horizon, number = about["horizon"], about["seed"]
    problems = task.sample_problems(about["problems"], horizon=horizon, seed=number)
    planner = make_planner(about["planner"], task, horizon=horizon, seed=number, **about["changes"])
    planner.plan(problems.start[:1], problems.goal[:1])
    results = [plan_unit(planner, task, problems[[k]], k) for k in range(len(problems))]
    return {
        **about,
        "success_environment": sum(result["success_environment"] for result in results),
        "success_model": sum(result["success_model"] for result in results),
        "milliseconds_per_plan": statistics.fmean(result["milliseconds"] for result in results),
        "threads": torch.get_num_threads(),
    }


def show(console: Console, lines: list[list[Line]]) -> None:
    """A row per trial, best first: lines of its tasks and horizons together."""
    cells = [f"{line['task']} {line['horizon']}" for line in lines[0]]
    table = Table(title="success in the environment, best first", title_justify="left")
    for column in ("changes", "all", "interval", "model", "ms per plan", *cells):
        table.add_column(column, justify="left" if column == "changes" else "right")
    for trial in sorted(lines, key=rank):
        count = sum(line["problems"] for line in trial)
        real, model = (
            sum(line[f"success_{w}"] for line in trial) for w in ("environment", "model")
        )
        low, high = wilson(real, count)
        changes = " ".join(f"{name}={value}" for name, value in trial[0]["changes"].items())
        table.add_row(
            changes or "[bold]its own settings[/]",
            f"{real / count:.0%}",
            f"{100 * low:.0f}-{100 * high:.0f}",
            f"{model / count:.0%}",
            f"{price(trial):.0f}",
            *(
                f"{line['success_environment'] / line['problems']:.0%} "
                f"{line['milliseconds_per_plan']:.0f} ms"
                for line in trial
            ),
        )
    console.print(table)


def rank(trial: list[Line]) -> tuple[float, float]:
    return -sum(line["success_environment"] for line in trial), price(trial)


def price(trial: list[Line]) -> float:
    return statistics.fmean(line["milliseconds_per_plan"] for line in trial)


def tuning_seed(text: str) -> int:
    """An argparse type: a seed that is not the table's."""
    value = seed(text)
    if value == TABLE_SEED:
        raise argparse.ArgumentTypeError(f"{value} is the table's: settings need other problems")
    return value


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    add = parser.add_argument
    add("--planner", choices=SPACES, required=True, help="whose settings")
    add("--tasks", type=listed(known_task), default=["wall", "umaze"], metavar="A,B",
        help="(wall,umaze)")  # fmt: skip
    add("--horizons", type=listed(positive), default=[50], metavar="T,T", help="(50)")
    add("--problems", type=positive, default=12, metavar="B", help="per task and horizon (12)")
    add("--seed", type=tuning_seed, default=100, help="of problems, noise and trials (100)")
    add("--trials", type=positive, default=20, metavar="N", help="(20)")
    add("--threads", type=positive, default=1, metavar="N", help="CPU threads (1)")
    add("--out", type=Path, metavar="FILE", help="(out/tune/PLANNER.jsonl)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    console = Console(width=None if sys.stdout.isatty() else 220)
    loaded = {name: tasks.load(name) for name in options.tasks}
    log = Log(options.out or Path("out/tune") / f"{options.planner}.jsonl", ABOUT)
    finished: list[list[Line]] = []
    status = 0
    try:
        for number, changes in enumerate(trials(options.planner, options.trials, options.seed), 1):
            trial = []
            for name, horizon in itertools.product(options.tasks, options.horizons):
                values = (options.planner, name, horizon, options.problems, options.seed, changes)
                about = dict(zip(ABOUT, values, strict=True))
                if log.key(about) not in log.lines:
                    log.add(measure(loaded[name], about))
                trial.append(log.lines[log.key(about)])
            finished.append(trial)
            reached, count = -rank(trial)[0], sum(line["problems"] for line in trial)
            words = f"{reached:.0f}/{count}, {price(trial):.0f} ms, {changes}"
            console.print(f"{number}/{options.trials}: {words}", highlight=False)
    except KeyboardInterrupt:
        console.print("interrupted; the same command goes on from there")
        status = 130
    if finished:
        show(console, finished)
    return status


if __name__ == "__main__":
    raise SystemExit(main())
