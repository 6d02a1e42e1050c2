"""How often do plans reach their goals, with the default settings and the paper's, at what price?

    python bench/planner.py [--tasks A,B] [--seeds 0,1,2] [--problems 30] [--threads 1]
                            [--json FILE]                              (make bench-planner)

Every seed draws its own problems, none of which a straight line solves, and seeds the planner's
noise. All settings plan the same problems with the same world model: the default ones,
`GraspConfig.paper()`, and the paper's with the step sizes that a search found best for the task.
A plan succeeds if its last state is within the task's success radius of the goal: under the model,
and when its actions are executed, open loop, in the real environment. Time is wall clock of one
batch over its problems.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from grasp_planner import tasks
from grasp_planner.cli.arguments import listed, positive, seed
from grasp_planner.cli.plan import task_config, timed_plan
from grasp_planner.evaluation.statistics import wilson
from rich.console import Console
from rich.table import Table

HORIZONS = {"pointmaze-umaze": 50, "wall-single": 60}
#: The paper's plain gradient steps have the units of one world model. These sizes did best,
#: under the model, of about a dozen pairs from 0.05 up, on other problems (20 of seed 100).
SEARCHED_STEPS = {
    "pointmaze-umaze": {"action_lr": 20.0, "sync_lr": 2.0},
    "wall-single": {"action_lr": 0.5, "sync_lr": 0.5},
}
SETTINGS = ("default", "paper", "paper, searched")


@dataclass(frozen=True)
class Run:
    """One batch of problems, planned and executed."""

    task: str
    horizon: int
    settings: str
    seed: int
    problems: int
    reached_model: int
    reached_environment: int
    seconds: float
    backend: str

    def __str__(self) -> str:
        return (
            f"{self.task} {self.settings}, seed {self.seed}: "
            f"model {self.reached_model}/{self.problems}, "
            f"environment {self.reached_environment}/{self.problems}, "
            f"{1e3 * self.seconds / self.problems:.0f} ms per plan"
        )


def measure(task: tasks.Task, settings: str, seed: int, problems: int, console: Console) -> Run:
    """Draws, plans, executes, counts."""
    horizon = HORIZONS[task.name]
    batch = task.sample_problems(problems, horizon=horizon, seed=seed)
    changes = SEARCHED_STEPS[task.name] if settings == "paper, searched" else {}
    config = task_config(task, horizon=horizon, seed=seed, paper=settings != "default", **changes)
    label = f"{task.name} {settings} seed {seed}"
    plan, seconds = timed_plan(task, batch, config, console, label=label)
    in_model = int(task.reached(plan.states, batch).sum())
    in_environment = int(task.execute(plan.actions, batch).sum())
    return Run(
        task.name,
        horizon,
        settings,
        seed,
        problems,
        in_model,
        in_environment,
        seconds,
        plan.backend,
    )


def share(reached: int, problems: int) -> str:
    """A percentage, with Wilson's 95 % interval for as many independent problems."""
    low, high = wilson(reached, problems)
    return f"{reached / problems:.0%} ({100 * low:.0f}-{100 * high:.0f})"


def show(console: Console, runs: list[Run]) -> None:
    """A row per seed, and one of all seeds together."""
    seeds = sorted({run.seed for run in runs})
    table = Table(
        title=f"{runs[0].problems} problems a seed (95 % intervals of all)", title_justify="left"
    )
    for column in ("task", "T", "settings", "seed", "model", "environment", "ms per plan"):
        table.add_column(column, justify="left" if column in ("task", "settings") else "right")
    for task, settings in dict.fromkeys((run.task, run.settings) for run in runs):
        group = [run for run in runs if (run.task, run.settings) == (task, settings)]
        for run in group:
            table.add_row(
                task,
                str(run.horizon),
                settings,
                str(run.seed),
                f"{run.reached_model / run.problems:.0%}",
                f"{run.reached_environment / run.problems:.0%}",
                f"{1e3 * run.seconds / run.problems:.0f}",
                end_section=run is group[-1] and len(seeds) == 1,
            )
        if len(seeds) > 1:
            problems = sum(run.problems for run in group)
            table.add_row(
                task,
                str(group[0].horizon),
                settings,
                "all",
                share(sum(run.reached_model for run in group), problems),
                share(sum(run.reached_environment for run in group), problems),
                f"{1e3 * sum(run.seconds for run in group) / problems:.0f}",
                style="bold",
                end_section=True,
            )
    console.print(table)
    console.print(f"backend: {runs[0].backend}; {torch.get_num_threads()} CPU threads")


def task_name(text: str) -> str:
    if text not in HORIZONS:
        raise argparse.ArgumentTypeError(f"no task {text!r}; there are: {', '.join(HORIZONS)}")
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    add = parser.add_argument
    add("--tasks", type=listed(task_name), default=[*HORIZONS], metavar="A,B", help="(all)")
    add("--seeds", type=listed(seed), default=[0, 1, 2], metavar="S,S", help="(0,1,2)")
    add("--problems", type=positive, default=30, metavar="B", help="per seed (30)")
    add("--threads", type=positive, default=1, metavar="N", help="CPU threads (1)")
    add("--json", type=Path, metavar="FILE", help="write every run to this file (none)")
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 100)
    torch.set_num_threads(options.threads)

    runs = []
    for name in options.tasks:
        task = tasks.load(name)
        for settings in SETTINGS:
            for number in options.seeds:
                runs.append(measure(task, settings, number, options.problems, console))
                console.print(str(runs[-1]), highlight=False)
    show(console, runs)
    if options.json:
        report: dict[str, object] = {"torch": torch.__version__, "threads": torch.get_num_threads()}
        report["runs"] = [asdict(run) for run in runs]
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
