"""One plan at a time: planned alone and timed, then executed in the environment and judged."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
import warnings
from contextlib import suppress
from functools import cache
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

from grasp_planner import tasks
from grasp_planner.base import Planner
from grasp_planner.evaluation.units import Settings, Unit
from grasp_planner.presets import make_planner
from grasp_planner.running import Moment
from grasp_planner.tasks import Problems, Task

MOMENTS = 12  # of a plan's way there that are executed, at most


class Tracer:
    """Copies the best actions as they come, with the time since `begin`, less its own."""

    def __init__(self) -> None:
        self.moments: list[tuple[float, int, Tensor]] = []
        """(milliseconds, model calls, actions (T, A)), of each set of actions the first."""
        self.own = 0.0
        self.begin = time.perf_counter()

    def __call__(self, moment: Moment) -> None:
        now = time.perf_counter()
        self.add(now, moment.model_calls, moment.actions[0])
        self.own += time.perf_counter() - now

    def add(self, now: float, model_calls: int, actions: Tensor) -> None:
        if not self.moments or not torch.equal(self.moments[-1][2], actions):
            self.moments.append((self.milliseconds(now), model_calls, actions.clone()))

    def milliseconds(self, now: float) -> float:
        return 1e3 * (now - self.begin - self.own)


def plan_unit(planner: Planner, task: Task, problem: Problems, index: int) -> dict[str, Any]:
    """Plans a batch of one problem, whose id is `index`; everything measured, ready for JSON."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tracer = Tracer()
        plan = planner.plan(
            problem.start, problem.goal, plan_ids=torch.tensor([index]), callback=tracer
        )
        end = time.perf_counter()
    milliseconds = tracer.milliseconds(end)
    tracer.add(end, plan.model_calls, plan.actions[0])
    executed = task.rollout(plan.actions, problem)
    return {
        "success_model": bool(task.reached(plan.states, problem)),
        "success_environment": bool(task.environment_reached(executed, problem)),
        "goal_distance_model": finite(task.goal_distance(plan.states, problem)),
        "goal_distance_environment": finite(task.environment_distance(executed, problem)),
        "milliseconds": milliseconds,
        "model_calls": plan.model_calls,
        "cost": finite(plan.cost),
        "backend": plan.backend,
        "path": plan.path,
        "warnings": [str(warning.message) for warning in caught],
        "moments": judged(task, problem, thinned(tracer.moments)),
        # Nine digits are all of a float32.
        "actions": [[float(f"{a:.9g}") for a in step] for step in plan.actions[0].tolist()],
    }


def judged(
    task: Task, problem: Problems, moments: list[tuple[float, int, Tensor]]
) -> list[dict[str, Any]]:
    """What the best plan was worth at each moment, under the model and executed."""
    times, calls, actions = zip(*moments, strict=True)
    batch, same = torch.stack(actions), problem[[0] * len(moments)]
    in_model = task.reached(task.imagine(batch, same), same).tolist()
    in_environment = task.execute(batch, same).tolist()
    names = ("milliseconds", "model_calls", "success_model", "success_environment")
    rows = zip(times, calls, in_model, in_environment, strict=True)
    return [dict(zip(names, row, strict=True)) for row in rows]


def thinned(moments: list[Any]) -> list[Any]:
    """At most `MOMENTS` of them, evenly, the first and the last among them."""
    if len(moments) <= MOMENTS:
        return moments
    step = (len(moments) - 1) / (MOMENTS - 1)
    return [moments[round(k * step)] for k in range(MOMENTS)]


def finite(value: Tensor) -> float | None:
    """A number for JSON, which has no NaN."""
    number = float(value)
    return number if math.isfinite(number) else None


class Workshop:
    """Tasks, problems and planners, each made once; a planner's first plan here is not counted."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.task = cache(tasks.load)
        self.problems = cache(self._problems)
        self.planner = cache(self._planner)

    def _problems(self, task: str, horizon: int) -> Problems:
        settings = self.settings
        found = self.task(task).sample_problems(
            settings.problems, horizon=horizon, seed=settings.seed
        )
        return found

    def _planner(self, task: str, horizon: int, name: str) -> Planner:
        planner = make_planner(name, self.task(task), horizon=horizon, seed=self.settings.seed)
        first = self.problems(task, horizon)[[0]]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            planner.plan(first.start, first.goal)  # builds, allocates, fills caches
        return planner

    def result(self, unit: Unit) -> dict[str, Any]:
        """What a unit gave; an exception is a result, too."""
        try:
            planner = self.planner(unit.task, unit.horizon, unit.planner)
            problem = self.problems(unit.task, unit.horizon)[[unit.problem]]
            found = plan_unit(planner, self.task(unit.task), problem, unit.problem)
        except Exception as error:
            return failure(unit, f"{type(error).__name__}: {error}")
        return {**unit._asdict(), "error": None, **found}


def failure(unit: Unit, error: str) -> dict[str, Any]:
    """The result of a unit that gave none."""
    return {**unit._asdict(), "error": error, "success_model": False, "success_environment": False}


def serve(connection: Connection, settings: Settings) -> None:
    """The life of a worker process: units in, results out, until it is killed or its parent is."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    threading.Thread(target=_die_with_parent, daemon=True).start()
    torch.set_num_threads(settings.threads)
    workshop = Workshop(settings)
    with suppress(EOFError, BrokenPipeError):  # the parent is gone
        connection.send(None)  # ready
        while True:
            connection.send(workshop.result(connection.recv()))


def _die_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
