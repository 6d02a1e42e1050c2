"""How a search runs: who is told, when it ends, and how it goes on after it was killed.

Symbols: B problems, B' <= B of them still searched, R candidates each.
"""

from __future__ import annotations

import hashlib
import operator
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from grasp_planner.inputs import Problem
from grasp_planner.interruptible import CheckpointMismatchError, replacing
from grasp_planner.world_model import module_of

Progress = Callable[[int], object]


@dataclass(frozen=True, eq=False)
class Moment:
    """A search under way, as a callback gets it; valid during the call, and only to be read.

    Attributes:
        iteration: how many iterations are over.
        model_calls: dependent model calls so far, as `Plan.model_calls`.
        actions: `(B, T, A)`, of the best plans so far.
        cost: `(B,)`, of their rollout; inf where there is none yet.
        live: `(B',)` int64, which problems are still searched.
        variables: what the planner moves, by name, B' (or B' R) rows each, in the planner's units:
            of `GraspPlanner` `trajectory` and `actions`, of CEM `mean` and `std`, and so on.
    """

    iteration: int
    model_calls: int
    actions: Tensor
    cost: Tensor
    live: Tensor
    variables: Mapping[str, Tensor] = field(default_factory=dict)


Callback = Callable[[Moment], object]


class Budget:
    """How much time a search has; it is asked after every iteration, and never without a limit."""

    def __init__(self, milliseconds: float | None, device: torch.device) -> None:
        if milliseconds is not None:
            number = isinstance(milliseconds, Real) and not isinstance(milliseconds, bool)
            if not number or not milliseconds > 0:
                raise ValueError(f"time_budget_ms must be a number above 0, got {milliseconds!r}")
        self._end = None if milliseconds is None else time.perf_counter() + milliseconds / 1e3
        self._device = device
        self.spent = False

    def check(self) -> bool:
        """Whether the time is over. With a limit it waits for the device: time is real time."""
        if self._end is not None:
            if self._device.type != "cpu":
                torch.accelerator.synchronize(self._device)
            self.spent = time.perf_counter() >= self._end
        return self.spent


# ------------------------------------------------------------------------------------ who is told


class Watch:
    """The callers' eyes: a progress bar or a function, and a callback at chosen iterations."""

    def __init__(
        self,
        progress: Progress | bool | None = None,
        callback: Callback | None = None,
        callback_at: int | Collection[int] | None = None,
    ) -> None:
        if not (progress is None or isinstance(progress, bool) or callable(progress)):
            raise TypeError(f"progress must be a function, True or None, got {progress!r}")
        if callback is not None and not callable(callback):
            raise TypeError(f"callback must be callable, got {type(callback).__name__}")
        if callback is None and callback_at is not None:
            raise ValueError("callback_at is given, so callback must be, too")
        self._progress = progress
        self._callback = callback
        self._every, self._at = _iterations("callback_at", callback_at)
        self._advance: Progress | None = progress if callable(progress) else None

    @contextmanager
    def open(self, total: int) -> Iterator[None]:
        """Shows the bar, if one is wanted, while the search runs."""
        if self._progress is not True:
            yield
            return
        from rich.progress import MofNCompleteColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        columns = (*Bars.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
        with Bars(*columns, transient=True) as bars:
            bar = bars.add_task("planning", total=total)
            self._advance = lambda k: bars.update(bar, completed=k)
            yield

    def next_stop(self, after: int) -> int | None:
        """The first iteration after `after` that the callback is to see; None is no one."""
        if self._every is not None:
            return after + self._every - after % self._every
        return min((k for k in self._at if k > after), default=None)

    def advanced(self, iteration: int) -> None:
        if self._advance is not None:
            self._advance(iteration)

    def improved(self, moment: Callable[[], Moment]) -> None:
        """The best plans may have become better."""
        if self._callback is not None and self._every is None and not self._at:
            self._tell(moment())

    def reached(self, iteration: int, moment: Callable[[], Moment]) -> None:
        """An iteration is over."""
        chosen = iteration in self._at or (self._every and iteration % self._every == 0)
        if self._callback is not None and chosen:
            self._tell(moment())

    def _tell(self, moment: Moment) -> None:
        assert self._callback is not None
        seen = {"actions": moment.actions, "cost": moment.cost, "live": moment.live}
        seen.update(moment.variables)
        before = {name: value._version for name, value in seen.items()}
        self._callback(moment)
        changed = [name for name, value in seen.items() if value._version != before[name]]
        if changed:
            raise RuntimeError(
                f"callback changed {', '.join(changed)} in place; what a Moment holds is the "
                "search's own: clone it before you change it"
            )


def _iterations(
    name: str, value: int | Collection[int] | None
) -> tuple[int | None, frozenset[int]]:
    """Every so many iterations, or these."""
    if value is None:
        return None, frozenset()
    try:
        every = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        try:
            chosen = frozenset(operator.index(k) for k in value)  # type: ignore[union-attr]
        except TypeError as error:
            raise TypeError(f"{name} must be an int or ints, got {value!r}") from error
        if not chosen or min(chosen) < 1:
            raise ValueError(f"{name} must be iterations from 1, got {value!r}") from None
        return None, chosen
    if isinstance(value, bool) or every < 1:
        raise ValueError(f"{name} must be at least 1, got {value!r}")
    return every, frozenset()


# ------------------------------------------------------------------------------- who has arrived


class Arrivals:
    """Flags that a device sets, as the host learns of them: without waiting for it, or waiting.

    A CPU's are at hand at once. A GPU's are copied behind its work; until the copy is through,
    nothing is known. Which plans come out does not depend on when: those that have arrived are
    frozen on the device.
    """

    def __init__(self, waits: bool) -> None:
        self._waits = waits
        self._copy: Tensor | None = None
        self._event: Any = None

    def learn(self, flags: Tensor) -> Tensor | None:
        """`flags` `(B',)` bool of now or of an earlier call, on the CPU; None is not known yet."""
        if flags.device.type == "cpu" or self._waits:
            return flags.cpu()
        if flags.device.type != "cuda":  # nothing is known of its events: all go on to the end
            return None
        if self._copy is None:
            self._copy = flags.to("cpu", non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        if not self._event.query():
            return None
        found, self._copy = self._copy, None
        return found


# -------------------------------------------------------------------------- checkpoints of a search


class Checkpoint:
    """A file that holds a search every so many iterations, so that it can go on from there."""

    def __init__(self, path: str | os.PathLike[str] | None, every: Any) -> None:
        if path is not None and not isinstance(path, (str, os.PathLike)):
            raise TypeError(f"checkpoint must be a path, got {type(path).__name__}")
        if isinstance(every, bool) or not isinstance(every, Integral) or every < 1:
            raise ValueError(f"checkpoint_every must be an int of at least 1, got {every!r}")
        self._path = None if path is None else Path(path)
        self._every = int(every)
        self._saved = 0
        self._identity = ""

    def belongs_to(self, planner: Any, problem: Problem) -> None:
        """Whose search it is; asked once, before the loop."""
        if self._path is not None:
            self._identity = identity_of(planner, problem)

    def due(self, iteration: int) -> bool:
        return self._path is not None and iteration // self._every > self._saved // self._every

    def next_stop(self, after: int) -> int | None:
        """The first iteration after `after` that is to be saved."""
        return None if self._path is None else after + self._every - after % self._every

    def save(self, iteration: int, search: dict[str, Any]) -> None:
        """Replaces the file at once, or not at all."""
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self._path) as partial:
            torch.save({"identity": self._identity, "search": search}, partial)
        self._saved = iteration

    def load(self, device: torch.device) -> dict[str, Any] | None:
        """The search that the file holds; None if there is no file."""
        if self._path is None or not self._path.exists():
            return None
        try:
            found = torch.load(self._path, map_location=device, weights_only=True)
            identity, search = found["identity"], found["search"]
        except Exception as error:
            raise CheckpointMismatchError(
                f"checkpoint {self._path} is not one of a search ({error}); remove it or name "
                "another file"
            ) from error
        if identity != self._identity:
            raise CheckpointMismatchError(
                f"checkpoint {self._path} is of another search: arguments, settings or weights "
                "differ; remove it or name another file"
            )
        self._saved = search["iterations"]
        return dict(search)


def identity_of(planner: Any, problem: Problem) -> str:
    """A hash of all that the plans depend on, as far as it can be seen: not a function's code."""
    digest = hashlib.sha256()
    digest.update(f"{type(planner).__name__} {planner.config!r}".encode())
    digest.update(b"" if planner.share is None else f"{planner.share}".encode())
    modules = [module_of(model) for model in planner._models()]
    learned = [t for m in modules if m is not None for t in (*m.parameters(), *m.buffers())]
    for tensor in [*learned, *problem.tensors()]:
        digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        # A copy: what has one number is contiguous whatever its stride, and no bytes to `view`.
        values = tensor.detach().cpu().flatten().clone(memory_format=torch.contiguous_format)
        digest.update(values.view(torch.uint8).numpy().tobytes() if values.numel() else b"")
    return digest.hexdigest()
