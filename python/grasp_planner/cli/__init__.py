"""The `grasp` command: one file per subcommand."""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
from collections.abc import Sequence

from grasp_planner.cli import bench, diagnose, eval, plan, profile, train, train_surrogate

DISTRIBUTION = "grasp-kernels"


def version() -> str:
    """The installed version; a source tree on the path has none."""
    try:
        return importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a subcommand; returns the process's exit status."""
    parser = argparse.ArgumentParser(
        prog="grasp",
        description="Lifted planning through world models (GRASP, arXiv 2602.00475).",
    )
    parser.add_argument("--version", action="version", version=f"{DISTRIBUTION} {version()}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (plan, eval, diagnose, train, train_surrogate, profile, bench):
        command.add_parser(subparsers)
    args = parser.parse_args(argv)
    status: int = args.run(args)
    return status


def entry_point() -> None:
    """What the installed `grasp` script calls."""
    sys.exit(main())
