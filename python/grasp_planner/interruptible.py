"""What long computations share: progress, a polite stop, and checkpoints to go on from."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

#: `report(phase, done, total, loss)`; `loss` is None while data are collected.
Report = Callable[[str, int, int, "float | None"], None]
ShouldStop = Callable[[], bool]


def no_report(phase: str, done: int, total: int, loss: float | None) -> None:
    """A `Report` for nobody."""


def never() -> bool:
    """A `ShouldStop` of a training that nobody interrupts."""
    return False


class CheckpointMismatchError(ValueError):
    """The folder holds a run of another recipe."""


class TrainingInterrupted(Exception):
    """Stopped on request, everything saved; the same call goes on from here."""


@dataclass(frozen=True)
class Checkpoint:
    """A file with a run's progress, replaced atomically, and what the run is of."""

    path: Path
    identity: dict[str, Any]
    """JSON-like; a file of another identity is refused by the names of what differs."""

    def load(self) -> dict[str, Any] | None:
        """What `save` was given last; None if there is no file.

        Raises CheckpointMismatchError where the file is of another run.
        """
        if not self.path.exists():
            return None
        saved: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
        was, now = saved["identity"], self.identity
        if was != now:
            changed = sorted(k for k in {*was, *now} if was.get(k) != now.get(k))
            raise CheckpointMismatchError(
                f"{self.path.parent} holds another run: "
                + ", ".join(f"{k} was {was.get(k)}, now {now.get(k)}" for k in changed)
                + "; choose another folder or delete this one"
            )
        return saved

    def save(self, **content: Any) -> None:
        """Writes `content` and the identity; a kill on the way leaves the file as it was."""
        with replacing(self.path) as partial:
            torch.save({"identity": self.identity, **content}, partial)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A sibling to write to, moved onto `path` only when complete."""
    partial = path.with_name(f".{path.name}.partial")
    yield partial
    os.replace(partial, path)


@contextmanager
def one_thread() -> Iterator[None]:
    """128-wide layers gain nothing from more, and the sums keep one order on every machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
