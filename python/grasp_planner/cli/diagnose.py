"""`grasp diagnose`: what makes planning through a task's world model hard, and why plans failed."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from grasp_planner import tasks
from grasp_planner.cli.arguments import listed, positive, seed, task_name
from grasp_planner.cli.eval import planner_name
from grasp_planner.diagnostics.figures import pictures
from grasp_planner.diagnostics.page import SECTIONS, page
from grasp_planner.diagnostics.task_report import (
    PARTS,
    Asked,
    Report,
    chosen_horizons,
    diagnose,
)
from grasp_planner.diagnostics.words import findings, plans
from grasp_planner.evaluation.units import write
from grasp_planner.tasks import MissingExtraError

USAGE = 2  # exit status: the command could not run as asked
INTERRUPTED = 130  # exit status: Ctrl-C; nothing is written
EXTRA = "grasp-kernels[diagnose]"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `diagnose` to the subcommands of `grasp`."""
    parser = subparsers.add_parser(
        "diagnose",
        help="what makes planning on a task hard, and why plans failed",
        description="Plans problems of a task and measures: the conditioning of shooting and of "
        "lifting against the horizon, gradients by time step, how small a change of a state fakes "
        "success, slices of both landscapes, the distance to the goal along the plans, the world "
        "model's errors, and why each plan that failed did. Writes diagnose.json and index.html, "
        "which explains itself.",
    )
    add = parser.add_argument
    add("task", type=task_name, metavar="TASK", help=f"one of {', '.join(tasks.names())}")
    add("--planner", type=planner_name, default="lifted-newton", metavar="NAME",
        help="whose plans are diagnosed, as in grasp eval (lifted-newton)")  # fmt: skip
    add("--horizon", type=positive, metavar="T", help="steps per plan (the task's own)")
    add("--problems", type=positive, default=12, metavar="B", help="how many (12)")
    add("--seed", type=seed, default=0, help="of the problems and of all noise (0)")
    add("--horizons", type=listed(positive), metavar="T,T",
        help="where conditioning is measured, up to T (5,10,20,50)")  # fmt: skip
    add("--parts", type=listed(part_name), default=list(PARTS), metavar="A,B",
        help=f"of {', '.join(PARTS)} (all)")  # fmt: skip
    add("--threads", type=positive, default=1, metavar="N", help="CPU threads (1)")
    add("--out", type=Path, metavar="DIR", help="(out/diagnose-TASK)")
    parser.set_defaults(run=run)


def part_name(text: str) -> str:
    """An argparse type: one of the diagnostics."""
    if text not in PARTS:
        raise argparse.ArgumentTypeError(f"unknown part {text!r}; there are: {', '.join(PARTS)}")
    return text


def run(args: argparse.Namespace) -> int:
    """Diagnoses, writes, prints; returns the exit status."""
    before = torch.get_num_threads()
    torch.set_num_threads(args.threads)
    try:
        return run_with_threads(args)
    except KeyboardInterrupt:
        print("grasp diagnose: interrupted; nothing is written", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, TypeError, MissingExtraError, OSError) as error:
        print(f"grasp diagnose: {error}", file=sys.stderr)
        return USAGE
    finally:
        torch.set_num_threads(before)


def run_with_threads(args: argparse.Namespace) -> int:
    from grasp_bench.timing import processor  # not at import: planning needs none of it

    for package in ("scipy", "matplotlib"):  # before the work, not after it
        require(package)
    task = tasks.load(args.task)
    horizon = args.horizon or task.horizons[0]
    horizons = chosen_horizons(args.horizons, horizon)
    if horizons[-1] > horizon:
        raise ValueError(f"--horizons must be up to the horizon, {horizon}, not {horizons[-1]}")
    parts = tuple(part for part in PARTS if part in args.parts)
    asked = Asked(args.planner, horizon, args.problems, args.seed, horizons, parts)
    console = Console(width=None if sys.stdout.isatty() else 100)
    report = with_progress(task, asked)
    report["processor"] = processor()
    out: Path = args.out or Path(f"out/diagnose-{task.name}")
    document = page(report, pictures(report))
    out.mkdir(parents=True, exist_ok=True)
    write(out / "diagnose.json", json.dumps(report, indent=1, allow_nan=False) + "\n")
    write(out / "index.html", document)
    print_summary(console, report)
    console.print(f"written to {out}: diagnose.json, index.html", highlight=False)
    return 0


def with_progress(task: tasks.Task, asked: Asked) -> Report:
    """The report; what is under way is shown on standard error."""
    console = Console(stderr=True)
    if not console.is_terminal:
        return diagnose(task, asked, lambda words: print(words, file=sys.stderr, flush=True))
    with console.status("starting") as status:
        return diagnose(task, asked, status.update)


def require(package: str) -> None:
    """Imports an optional package, or says which extra brings it."""
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise MissingExtraError(
            f"this needs {package}, which cannot be imported ({error}): pip install '{EXTRA}'"
        ) from error


def print_summary(console: Console, report: Report) -> None:
    """The findings, a paragraph each."""
    console.print(plans(report), highlight=False)
    said = findings(report)
    for part, (title, *_) in SECTIONS.items():
        if part in said:
            console.print(f"\n[bold]{title}[/]", highlight=False)
            console.print(Padding(Text(said[part]), (0, 0, 0, 2)))
    for part, reason in report["not_made"].items():
        console.print(f"\n[red]not measured: {SECTIONS[part][0]}[/]: {reason}", highlight=False)
    console.print()
