"""The `grasp` command: one file per subcommand."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from grasp_planner.cli import plan, train


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a subcommand; returns the process's exit status."""
    parser = argparse.ArgumentParser(
        prog="grasp",
        description="Lifted planning through world models (GRASP, arXiv 2602.00475).",
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands = {"plan": plan, "train": train}
    for command in commands.values():
        command.add_parser(subparsers)
    args = parser.parse_args(argv)
    return commands[args.command].run(args)


def entry_point() -> None:
    """What the installed `grasp` script calls."""
    sys.exit(main())
