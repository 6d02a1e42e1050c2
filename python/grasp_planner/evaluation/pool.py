"""Worker processes that share out an evaluation's units."""

from __future__ import annotations

import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import groupby
from multiprocessing.connection import Connection, wait
from typing import Any

from grasp_planner.evaluation.units import Settings, Unit
from grasp_planner.evaluation.worker import failure, serve


class WorkerError(RuntimeError):
    """A worker process ended before it could begin."""


class Worker:
    """A process, the units it is to plan, and the pipe to it."""

    def __init__(self, settings: Settings) -> None:
        context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, settings), daemon=True)
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # which the process inherits
        try:
            self.process.start()
        finally:
            signal.signal(signal.SIGINT, handler)
        theirs.close()  # so that its death is the end of the pipe
        self.ready = False
        self.units: deque[Unit] = deque()
        """The first is being planned."""

    def begin(self) -> None:
        with suppress(BrokenPipeError):  # `receive` will see it
            self.connection.send(self.units[0])

    def receive(self) -> dict[str, Any] | None:
        """The result of its first unit; None when it has become ready."""
        try:
            result: dict[str, Any] | None = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            how = f"the worker process ended with exit code {self.process.exitcode}"
            if not self.ready:
                raise WorkerError(f"{how} before its first plan") from None
            result = failure(self.units[0], how)
        self.ready = True
        return result

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def grouped(units: Iterable[Unit]) -> list[list[Unit]]:
    """The units of a problem together, as they follow each other: the planners that take turns."""
    groups = groupby(units, lambda unit: (unit.task, unit.horizon, unit.problem))
    return [list(group) for _, group in groups]


def plan_all(
    settings: Settings,
    units: Sequence[Unit],
    workers: int,
    report: Callable[[dict[str, Any]], object],
) -> None:
    """Plans every unit, each `report`ed as it ends; the planners of a problem by one worker.

    Raises WorkerError; whatever it raises, no worker is left.
    """
    groups = deque(map(deque, grouped(units)))
    busy: dict[Connection, Worker] = {}

    def hire(units: deque[Unit]) -> None:
        worker = Worker(settings)
        worker.units = units
        busy[worker.connection] = worker

    try:
        while groups and len(busy) < workers:
            hire(groups.popleft())
        while busy:
            for connection in wait(list(busy)):
                assert isinstance(connection, Connection)
                worker = busy[connection]
                result = worker.receive()
                if result is not None:
                    worker.units.popleft()
                    report(result)
                rest = worker.units or (groups.popleft() if groups else deque())
                if rest and worker.process.is_alive():
                    worker.units = rest
                    worker.begin()
                    continue
                del busy[connection]
                worker.stop()
                if rest:  # it died over the unit before
                    hire(rest)
    finally:
        for worker in busy.values():
            worker.stop()
