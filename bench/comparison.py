"""What comparisons of planners share: turns on every problem, a file of plans, and a page."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from grasp_bench.log import Line, Log
from grasp_planner.base import Planner
from grasp_planner.cli.arguments import listed, positive, task_name
from grasp_planner.evaluation.statistics import wilson
from grasp_planner.evaluation.worker import plan_unit
from grasp_planner.tasks import Task
from rich.console import Console

Entrant = TypeVar("Entrant", bound=Hashable)


def arguments(name: str, description: str, default_tasks: Sequence[str]) -> argparse.ArgumentParser:
    """A parser of what every comparison is asked for; `name`: of its files."""
    parser = argparse.ArgumentParser(description=description.split("\n", 1)[0])
    add = parser.add_argument
    add("--tasks", type=listed(task_name), default=list(default_tasks), metavar="A,B",
        help=f"({','.join(default_tasks)})")  # fmt: skip
    add("--horizon", type=positive, default=50, metavar="T", help="(50)")
    add("--threads", type=positive, default=1, metavar="N", help="CPU threads (1)")
    for flag, path in (("--out", f"out/{name}.jsonl"), ("--page", f"docs/{name}.md")):
        add(flag, type=Path, default=Path(path), metavar="FILE", help=f"({path})")
    return parser


def in_turns(
    log: Log,
    task: Task,
    entrants: Sequence[Entrant],
    made: Callable[[Entrant], Planner],
    about: Callable[[Entrant], Line],
    measured: Sequence[str],
    *,
    horizon: int,
    problems: int,
    seed: int,
) -> Iterator[Line]:
    """Each entrant's plan of each problem, made or remembered; entrants take turns on a problem.

    A planner is `made` only for a plan that is missing, and plans once without being counted.
    `about(entrant)` and the problem's number are what a line is about.
    """
    drawn = task.sample_problems(problems, horizon=horizon, seed=seed)
    planners: dict[Entrant, Planner] = {}
    for index in range(problems):
        turn = index % len(entrants)
        for entrant in [*entrants[turn:], *entrants[:turn]]:
            line: dict[str, Any] = {**about(entrant), "problem": index}
            if (key := log.key(line)) not in log.lines:
                if entrant not in planners:
                    planners[entrant] = made(entrant)
                    planners[entrant].plan(drawn.start[:1], drawn.goal[:1])
                found = plan_unit(planners[entrant], task, drawn[[index]], index)
                log.add({**line, **{field: found[field] for field in measured}})
            yield log.lines[key]


def share(lines: Sequence[Line], field: str) -> str:
    """How many succeed, with Wilson's interval, for a table."""
    successes = sum(line[field] for line in lines)
    low, high = wilson(successes, len(lines))
    return f"{successes / len(lines):.0%} ({100 * low:.0f}-{100 * high:.0f})"


def write_page(
    options: argparse.Namespace,
    about: Sequence[str],
    lines: Callable[[argparse.Namespace, Log], Iterator[Line]],
    page: Callable[[argparse.Namespace, Sequence[Line]], Iterator[str]],
    outcome: Callable[[Line], str],
    total: int,
) -> int:
    """Makes all `total` lines, says each one's `outcome`, writes and prints the page: exit status.

    Interrupted, it keeps what was made, and writes no page.
    """
    torch.set_num_threads(options.threads)
    console = Console(stderr=True)
    found: list[Line] = []
    try:
        for line in lines(options, Log(options.out, about)):
            found.append(line)
            words = " ".join(str(line[name]) for name in about)
            console.print(f"{len(found)}/{total}: {words}: {outcome(line)}", highlight=False)
    except KeyboardInterrupt:
        console.print("interrupted; the same command goes on from there")
        return 130
    options.page.parent.mkdir(parents=True, exist_ok=True)
    options.page.write_text("\n".join(page(options, found)))
    print(options.page.read_text())
    return 0
