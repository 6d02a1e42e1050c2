"""What the commands that train share: exit statuses, a stop between two steps, and progress."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from grasp_planner.interruptible import Report, TrainingInterrupted
from grasp_planner.tasks.requirements import MissingExtraError, require

INTERRUPTED = 130
"""What a shell reports for a process ended by Ctrl-C."""


def exit_status(command: str, work: Callable[[], None]) -> int:
    """Does the work of a command that trains; what keeps it from its end goes to standard error."""
    try:
        work()
    except TrainingInterrupted as stop:
        print(f"{stop}; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED
    except (MissingExtraError, ValueError, OSError) as error:
        print(f"{command}: {error}", file=sys.stderr)
        return 2
    return 0


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """Ctrl-C and a polite kill end training between two steps, where everything can be saved."""
    requested: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if requested:  # asked twice: now
            raise KeyboardInterrupt
        requested.append(number)

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield requested
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def progress() -> Iterator[Report]:
    """A bar for each phase on a terminal, on standard error so that the card can be piped."""
    require("rich", task="training")
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    with Progress(
        TextColumn("{task.description:>8}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[loss]}"),
        console=Console(stderr=True),
    ) as bars:
        phases = ("collect", "train")
        rows = {phase: bars.add_task(phase, total=None, loss="") for phase in phases}

        def report(phase: str, done: int, total: int, loss: float | None) -> None:
            note = "" if loss is None else f"loss {loss:.4f}"
            bars.update(rows[phase], completed=done, total=total, loss=note)

        yield report
