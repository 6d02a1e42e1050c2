"""`grasp bench`: every case behind its correctness gate, then timed; `grasp bench compare A B`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from grasp_planner.cli.arguments import integer, positive

RED = 1  # exit status: a gate failed, or something got slower
USAGE = 2  # exit status: the command could not run as asked
INTERRUPTED = 130  # exit status: Ctrl-C; what was measured is written


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `bench` to the subcommands of `grasp`."""
    parser = subparsers.add_parser(
        "bench",
        help="time every op against baselines and this machine's ceilings; compare two runs",
        description="Runs the cases of bench/ on what this machine has, each behind a correctness "
        "gate, and writes bench.json, bench.csv and bench.html. Exit status 1 if a gate is red.",
    )
    cores = os.cpu_count() or 1
    add = parser.add_argument
    add("--quick", action="store_true", help="small shapes, few turns; ends within a minute")
    add("--case", default="", metavar="TEXT", help="only cases whose name contains this (all)")
    add("--list", action="store_true", help="print the names of the cases and stop")
    add("--out", type=Path, default=Path("out/bench"), metavar="DIR", help="(out/bench)")
    add(
        "--threads",
        type=thread_counts,
        default=tuple(sorted({1, min(2, cores)})),
        metavar="N,N",
        help="CPU thread counts, each a row (1 and, where there are two processors, 2)",
    )
    add("--rounds", type=positive, metavar="N", help="most turns of a case (25; with --quick 15)")
    add("--cold-rounds", type=integer(0), metavar="N", help="calls with cold caches (9, 5)")
    add("--no-compile", action="store_true", help="leave torch.compile out")
    add("--no-peers", action="store_true", help="leave planners of other projects out")
    add(
        "--scaling",
        action=argparse.BooleanOptionalAction,
        help="time and memory over N, T and D, of the ops that --case names (on; off with --quick)",
    )
    parser.set_defaults(run=run)
    commands = parser.add_subparsers(dest="bench_command", metavar="compare")
    comparing = commands.add_parser(
        "compare",
        help="say what got slower between two reports",
        description="Exit status 1 if something got slower than the spread of both explains.",
    )
    comparing.add_argument("before", type=Path, help="bench.json, or its folder")
    comparing.add_argument("after", type=Path, help="bench.json, or its folder")
    comparing.set_defaults(run=run_compare)


def thread_counts(text: str) -> tuple[int, ...]:
    """An argparse type: whole numbers of at least 1, by commas."""
    return tuple(sorted({positive(part) for part in text.split(",")}))


def run(args: argparse.Namespace) -> int:
    """Measures and reports; returns the exit status."""
    from grasp_bench import main  # not at import: planning needs none of it

    status: int = main.run(args)
    return status


def run_compare(args: argparse.Namespace) -> int:
    """Compares two reports; returns the exit status."""
    from grasp_bench import compare
    from rich.console import Console

    try:
        found = compare.compare(compare.load(args.before), compare.load(args.after))
    except (OSError, compare.NotAReport) as error:
        print(f"grasp bench compare: {error}", file=sys.stderr)
        return USAGE
    compare.print_comparison(Console(), found)
    status: int = found.status
    return status
