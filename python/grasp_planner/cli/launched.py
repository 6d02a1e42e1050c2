"""What commands that run under `torchrun` share: their ranks, signals, and the words on a loss."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import torch

from grasp_planner.cli.interruption import INTERRUPTED
from grasp_planner.distributed.launch import LaunchError, RankLostError, Ranks, ranks

USAGE = 2  # exit status: the command could not run as asked
LOST = 3  # exit status: another rank died, left or fell silent


def run_by_ranks(
    command: str,
    device: torch.device | str,
    timeout: float,
    work: Callable[[Ranks], int],
    interrupted: str,
    lost: str = "",
) -> int:
    """That of `work` by the ranks, or of what kept it from its end, which standard error tells.

    `interrupted`, `lost`: what to say of what there is then.
    """
    try:
        with world(command, device, timeout) as found:
            return work(found)
    except KeyboardInterrupt:
        print(f"{command}: interrupted; {interrupted}", file=sys.stderr)
        return INTERRUPTED
    except RankLostError as error:
        print(f"{command}: {error}" + (f"; {lost}" if lost else ""), file=sys.stderr)
        return LOST
    except LaunchError as error:
        print(f"{command}: {error}", file=sys.stderr)
        return USAGE


@contextmanager
def world(command: str, device: torch.device | str, timeout: float) -> Iterator[Ranks]:
    """The ranks that run this command together.

    A launcher ends ranks by SIGTERM when one of them died, and by several signals after Ctrl-C:
    the first is a KeyboardInterrupt here, after which the names of the dead are said.
    """
    with ranks(device, timeout) as found:
        if found.size == 1:
            yield found
            return
        for name in found.died_before:
            print(f"{command}: {name} died; starting again", file=sys.stderr, flush=True)
        with first_signal_interrupts():
            try:
                yield found
            except KeyboardInterrupt:
                dead = deaths(found)
                if dead or found.first:
                    words = "; ".join(["told to end", *dead])
                    print(f"{command}: {found.name}: {words}", file=sys.stderr, flush=True)
                raise


@contextmanager
def naming_the_lost(found: Ranks, what: str) -> Iterator[None]:
    """Where a collective failed, which rank it was; `what` was expected of it.

    Raises RankLostError.
    """
    try:
        yield
    except RankLostError:
        found.meet(what)  # who does not come is named
        raise


def deaths(found: Ranks) -> list[str]:
    """Who is lost; or that this can no longer be known."""
    try:
        return found.lost()
    except RankLostError as error:
        return [str(error)]


@contextmanager
def first_signal_interrupts() -> Iterator[None]:
    """SIGINT or SIGTERM raises KeyboardInterrupt; what follows it does not disturb the end."""
    numbers = (signal.SIGINT, signal.SIGTERM)

    def deaf() -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)

    def interrupt(number: int, frame: FrameType | None) -> None:
        deaf()
        raise KeyboardInterrupt

    previous = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    except BaseException:
        deaf()  # the process ends: no signal is to break off what it does last
        raise
    for number, handler in previous.items():
        signal.signal(number, handler)
