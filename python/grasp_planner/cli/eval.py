"""`grasp eval`: planners side by side on the same problems, each problem planned alone."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from grasp_planner import tasks
from grasp_planner.cli.arguments import listed, positive, seed
from grasp_planner.cli.launched import USAGE, run_by_ranks
from grasp_planner.distributed.launch import Ranks
from grasp_planner.evaluation import page, summary
from grasp_planner.evaluation.pool import WorkerError, grouped, plan_all
from grasp_planner.evaluation.units import Settings, Store, described, write
from grasp_planner.presets import PLANNERS
from grasp_planner.tasks import MissingExtraError
from grasp_planner.tasks.requirements import require

FAILED = 1  # exit status: some plans could not be made
SILENCE = 10.0  # seconds between lines of progress where there is no terminal


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `eval` to the subcommands of `grasp`."""
    parser = subparsers.add_parser(
        "eval",
        help="compare planners on tasks: success in the real environment, and time",
        description="Plans the same problems with every planner, one problem at a time, and "
        "executes the plans, open loop, in the real environment. Writes eval.json, eval.csv and "
        "eval.html. After an interruption of any kind, the same command goes on where it stopped. "
        "Under torchrun the ranks share out the plans. Exit status 1 if some plans could not be "
        "made (of rank 0), 3 if a rank was lost.",
    )
    add = parser.add_argument
    add(
        "--tasks",
        type=listed(known_task),
        default=list(tasks.names()),
        metavar="A,B",
        help=f"of {', '.join(tasks.names())} (all)",
    )
    add("--horizons", type=listed(positive), default=[50, 80], metavar="T,T", help="(50,80)")
    add(
        "--planners",
        type=listed(planner_name),
        default=list(PLANNERS),
        metavar="A,B",
        help=f"of {', '.join(PLANNERS)} (all)",
    )
    add("--problems", type=positive, default=24, metavar="B", help="per task and horizon (24)")
    add("--seed", type=seed, default=0, help="of the problems and of the noise (0)")
    add("--out", type=Path, default=Path("out/eval"), metavar="DIR", help="(out/eval)")
    cores = os.cpu_count() or 1
    add("--workers", type=positive, metavar="N",
        help=f"processes ({cores}, shared by the ranks of a machine)")  # fmt: skip
    add("--threads", type=positive, default=1, metavar="N", help="CPU threads of each worker (1)")
    add("--no-pictures", action="store_true", help="tables only, which need no matplotlib")
    add("--timeout", type=positive, default=600, metavar="S",
        help="seconds after which a rank that finishes no plan is lost (600)")  # fmt: skip
    parser.set_defaults(run=run)


def known_task(text: str) -> str:
    """An argparse type: the name of a task, or its alias, as it was given."""
    try:
        tasks.canonical(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def planner_name(text: str) -> str:
    """An argparse type: the name of a planner."""
    if text not in PLANNERS:
        raise argparse.ArgumentTypeError(
            f"unknown planner {text!r}; there are: {', '.join(PLANNERS)}"
        )
    return text


def run(args: argparse.Namespace) -> int:
    """Evaluates with `--threads`, also here, for what is not planned; returns the exit status."""
    before = torch.get_num_threads()
    torch.set_num_threads(args.threads)
    going_on = f"{args.out} keeps every finished plan, and the same command goes on from there"
    try:
        return run_by_ranks(
            "grasp eval",
            "cpu",
            args.timeout,
            lambda ranks: evaluate(args, ranks),
            interrupted=going_on,
            lost=going_on,
        )
    finally:
        torch.set_num_threads(before)


def evaluate(args: argparse.Namespace, ranks: Ranks) -> int:
    """Plans what is missing, each rank its share; the first reports, and its status counts."""
    from grasp_bench.timing import processor  # not at import: planning needs none of it

    console = Console(width=None if sys.stdout.isatty() else 120, quiet=not ranks.first)
    settings = Settings(
        tuple(args.tasks),
        tuple(args.horizons),
        tuple(args.planners),
        args.problems,
        args.seed,
        args.threads,
    )
    try:
        if not args.no_pictures:  # before the work, not after it
            require("matplotlib", task="grasp eval")
        loaded = loaded_tasks(settings.tasks)
        problems = {
            (name, horizon): loaded[name].sample_problems(
                settings.problems, horizon=horizon, seed=settings.seed
            )
            for name, horizon in settings.cells()
        }
        description = described(settings, loaded, processor())
        workers = args.workers or max(1, (os.cpu_count() or 1) // ranks.local_size)
        with Store(args.out, description, ranks) as store:
            plan_missing(settings, store, workers, console, ranks)
            store.gather()
    except (WorkerError, ValueError, MissingExtraError, OSError) as error:
        print(f"grasp eval: {error}", file=sys.stderr)
        return USAGE
    if not ranks.first:
        return 0
    rows = summary.summarise(settings, store.results, description)
    write(args.out / "eval.json", json.dumps(rows, indent=1, allow_nan=False) + "\n")
    write(args.out / "eval.csv", summary.flat(rows))
    pictures = {} if args.no_pictures else page.pictures(rows, store.results, loaded, problems)
    write(args.out / "eval.html", page.page(rows, description, loaded, pictures))
    print_table(console, rows)
    console.print(f"written to {args.out}: eval.json, eval.csv, eval.html", highlight=False)
    errors = sum(row["errors"] for row in rows)
    if errors:
        print(f"grasp eval: {errors} plans could not be made; see eval.html", file=sys.stderr)
    return FAILED if errors else 0


def plan_missing(
    settings: Settings, store: Store, workers: int, console: Console, ranks: Ranks
) -> None:
    """Plans this rank's share of the units that the store has no result of.

    The planners of a problem stay on one rank, where they take turns.
    """
    units = list(settings.units())
    missing = [unit for unit in units if unit not in store.results]
    done = len(units) - len(missing)
    if missing and done:
        console.print(f"{store.folder}: {done} of {len(units)} plans are there; going on")
    share = [unit for group in ranks.mine(grouped(missing)) for unit in group]
    alone = ranks.size == 1
    reporter = (
        Reporter(len(units), done) if alone else Reporter(len(share), 0, " of rank 0's share")
    )
    with reporter if ranks.first else nullcontext():

        def report(result: dict[str, Any]) -> None:
            store.add(result)
            if ranks.first:
                reporter.advance(result)
            ranks.sign()

        plan_all(settings, share, workers, report)


def loaded_tasks(names: tuple[str, ...]) -> dict[str, tasks.Task]:
    """Each task, once, with its environment made: what is missing is missed at once.

    Raises ValueError where one is named twice, MissingExtraError where a package is missing.
    """
    full = [tasks.canonical(name) for name in names]
    for name in full:
        if full.count(name) > 1:
            raise ValueError(f"--tasks names {name} twice: {', '.join(names)}")
    found = {name: tasks.load(name) for name in names}
    for task in found.values():
        task.environment  # noqa: B018
    return found


class Reporter(AbstractContextManager["Reporter"]):
    """A progress bar on a terminal, a line now and then elsewhere; both on standard error."""

    def __init__(self, total: int, done: int, share: str = "") -> None:
        self.total, self.done, self.failed = total, done, 0
        self.share = share
        self.last = time.monotonic()
        console = Console(stderr=True)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(f"plans{share}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self.shown = self.progress if console.is_terminal else nullcontext()
        self.bar = self.progress.add_task("starting", total=total, completed=done)

    def __enter__(self) -> Reporter:
        self.shown.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.shown.__exit__(*error)

    def advance(self, result: dict[str, Any]) -> None:
        self.done += 1
        self.failed += result["error"] is not None
        failed = f", {self.failed} failed" if self.failed else ""
        words = f"{result['task']} T={result['horizon']}{failed}"
        self.progress.update(self.bar, completed=self.done, description=words)
        now = time.monotonic()
        due = now - self.last >= SILENCE or self.done == self.total
        if isinstance(self.shown, nullcontext) and due:
            self.last = now
            print(
                f"{self.done}/{self.total} plans{self.share}, {words}", file=sys.stderr, flush=True
            )


def print_table(console: Console, rows: list[dict[str, Any]]) -> None:
    """The rows in short, a block per task and horizon."""
    table = Table(
        title=f"{rows[0]['problems']} problems each, one at a time, {rows[0]['threads']} CPU "
        "threads (success with 95 % intervals)",
        title_justify="left",
    )
    for column in ("task", "T", "planner", "environment", "model", "ms per plan", "ms to success"):
        table.add_column(column, justify="left" if column in ("task", "planner") else "right")
    for index, row in enumerate(rows):
        following = rows[index + 1] if index + 1 < len(rows) else row
        low, high = row["success_environment_interval"]
        times = (row["milliseconds_per_plan"], row["milliseconds_to_success"])
        table.add_row(
            row["task"],
            str(row["horizon"]),
            row["planner"],
            f"{row['success_environment']:.0%} ({100 * low:.0f}-{100 * high:.0f})",
            f"{row['success_model']:.0%}",
            *("" if value is None else f"{value:.0f}" for value in times),
            end_section=(row["task"], row["horizon"]) != (following["task"], following["horizon"]),
        )
    console.print(table)
