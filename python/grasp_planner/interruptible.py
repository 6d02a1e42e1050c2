"""What trainings share: progress, a polite stop, checkpoints to go on from, and the loop itself."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

#: `report(phase, done, total, loss)`; `loss` is None while data are collected.
Report = Callable[[str, int, int, "float | None"], None]
ShouldStop = Callable[[], bool]


def no_report(phase: str, done: int, total: int, loss: float | None) -> None:
    """A `Report` for nobody."""


def never() -> bool:
    """A `ShouldStop` of a training that nobody interrupts."""
    return False


class CheckpointMismatchError(ValueError):
    """A file is of another computation: other arguments, settings, weights or recipe."""


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

    def claim(self) -> None:
        """Makes the file this run's before any work, which a folder of another run is refused."""
        if self.load() is None:
            self.save(step=0)

    def save(self, **content: Any) -> None:
        """Writes `content` and the identity; a kill on the way leaves the file as it was."""
        with replacing(self.path) as partial:
            torch.save({"identity": self.identity, **content}, partial)


def optimise(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    loss_at: Callable[[int], Tensor],
    *,
    steps: int,
    learning_rate: float,
    warmup: int | None = None,
    checkpoint: Checkpoint | None,
    report: Report,
    report_every: int = 50,
    should_stop: ShouldStop,
    checkpoint_seconds: float,
    stopped: str = "stopped",
) -> None:
    """Trains `model` in place to the last step, from the checkpoint if there is one, bit for bit.

    The learning rate falls by a cosine to zero after a linear warm-up; gradients longer than 1 are
    cut to 1.

    Args:
        model, optimizer: what is trained, and by what; the optimizer's own rate is not used.
        generator: of all randomness in `loss_at`; saved and restored.
        loss_at: step -> loss (), differentiable.
        steps: in all.
        learning_rate: the highest.
        warmup: steps of it; None is a twentieth of all, from 1 to 500.
        checkpoint: where to save, and to go on from.
        report: called with ("train", steps done, `steps`, loss) each `report_every` and at the end,
            before the last save, which an error there leaves out.
        should_stop: asked between steps; once true, all is saved and TrainingInterrupted raised.
        checkpoint_seconds: how much work a kill without that courtesy may cost.
        stopped: how its message begins.
    """
    if warmup is None:
        warmup = max(1, min(500, steps // 20))
    step = 0
    saved = None if checkpoint is None else checkpoint.load()
    if saved is not None and saved["step"] > 0:
        step = saved["step"]
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        generator.set_state(saved["generator"])

    def save() -> None:
        if checkpoint is not None:
            checkpoint.save(
                step=step,
                model=model.state_dict(),
                optimizer=optimizer.state_dict(),
                generator=generator.get_state(),
            )

    saved_at = time.monotonic()
    while step < steps:
        if should_stop():
            save()
            raise TrainingInterrupted(f"{stopped} after {step} of {steps} steps")
        loss = loss_at(step)
        decay = 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, (step + 1) / warmup) * decay
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % report_every == 0 or step == steps:
            report("train", step, steps, loss.item())
        if step == steps or time.monotonic() - saved_at > checkpoint_seconds:
            save()
            saved_at = time.monotonic()


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
