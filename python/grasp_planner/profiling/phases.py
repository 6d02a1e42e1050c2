"""Where the time of a plan goes: the planner's own calls, with a stopwatch around each.

The planner carries no instruments of its own: they would cost more than a small kernel. For the
time of a profile its calls are replaced by timed ones.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from grasp_planner import lifted_plans, synced_plans
from grasp_planner.lifted_plans import LiftedPlans
from grasp_planner.search import Search
from grasp_planner.synced_plans import SyncedPlans
from grasp_planner.whole_plan import WholePlans
from grasp_planner.world_model import CheckedModel

PHASES: tuple[tuple[Any, str, str], ...] = (
    (synced_plans, "initialise", "initialisation"),
    (CheckedModel, "__call__", "model forward"),
    (CheckedModel, "action_gradient", "model VJP"),
    (lifted_plans, "lifted_step_", "fused step"),
    (LiftedPlans, "extra_term", "extra cost term"),
    (synced_plans, "action_step_", "action step"),
    (lifted_plans, "action_step_", "state step"),
    (SyncedPlans, "sync", "sync"),
    (SyncedPlans, "judge", "sync"),
    (WholePlans, "iterate", "lifted iterations"),
    (WholePlans, "sync", "sync"),
)
"""Owner, attribute, phase. The outermost phase has the time: what a sync calls is the sync's."""

LOOP: tuple[tuple[Any, str, str], ...] = ((Search, "run", "loop"),)
REST = "Python and the rest"


class Stopwatch:
    """Wall time and calls per phase. Only the outermost phase runs at any time.

    `wait` is called at both ends of a phase: a GPU's `synchronize`, without which a phase would be
    over when its work is but launched.
    """

    def __init__(self, wait: Callable[[], object] | None = None) -> None:
        self.wait = wait or (lambda: None)
        self.seconds: dict[str, float] = {}
        self.calls: dict[str, int] = {}
        self.running: str | None = None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        if self.running is not None:
            yield
            return
        self.running = name
        self.wait()
        begin = time.perf_counter()
        try:
            with torch.profiler.record_function(f"grasp: {name}"):
                yield
        finally:
            self.wait()
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin
            self.calls[name] = self.calls.get(name, 0) + 1
            self.running = None


@contextmanager
def around(calls: tuple[tuple[Any, str, str], ...], enter: Callable[[str], Any]) -> Iterator[None]:
    """Runs every named call inside `enter(phase)`, a context manager; undone at the end."""
    originals = [(owner, name, getattr(owner, name)) for owner, name, _ in calls]

    def wrapped(original: Callable[..., Any], phase: str) -> Callable[..., Any]:
        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            with enter(phase):
                return original(*args, **kwargs)

        return call

    try:
        for (owner, name, phase), (_, _, original) in zip(calls, originals, strict=True):
            setattr(owner, name, wrapped(original, phase))
        yield
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)
