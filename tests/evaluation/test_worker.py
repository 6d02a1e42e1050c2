"""One plan, and the processes that make them."""

from __future__ import annotations

import json
import multiprocessing
import time
import warnings
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from grasp_planner import tasks
from grasp_planner.evaluation import worker
from grasp_planner.evaluation.pool import WorkerError, plan_all
from grasp_planner.evaluation.units import Settings, Unit
from grasp_planner.evaluation.worker import MOMENTS, Tracer, Workshop, plan_unit, thinned
from grasp_planner.plan import Plan
from grasp_planner.running import Moment
from torch import Tensor

WALL = tasks.load("wall-single")
PROBLEM = WALL.sample_problems(1, horizon=50, seed=1)
GOOD = WALL.expert_actions(PROBLEM)
BAD = torch.zeros_like(GOOD)


class Scripted:
    """A planner that finds these actions one after the other, and returns the last."""

    def __init__(self, script: Sequence[Tensor], pause: float = 0.0) -> None:
        self.script, self.pause = script, pause

    def plan(self, start: Tensor, goal: Tensor, *, plan_ids: Tensor, callback: Any) -> Plan:
        self.plan_ids = plan_ids
        cost = torch.ones(1)
        for k, actions in enumerate(self.script, 1):
            time.sleep(self.pause)
            scratch = actions.clone()
            callback(Moment(k, 50 * k, scratch, cost, torch.arange(len(cost))))
            scratch.fill_(torch.nan)  # a moment is valid during the call only
        warnings.warn("beware", stacklevel=1)
        states = WALL.imagine(actions, PROBLEM)
        return Plan(actions, states, cost, cost[:, None], cost[None, :, None], k, 50 * k,
                    torch.ones(1, dtype=torch.bool), "native", "MLP kernels", cost)  # fmt: skip


def test_a_plan_is_judged_where_it_counts() -> None:
    planner = Scripted([BAD, BAD, GOOD, BAD, GOOD], pause=0.01)
    found = plan_unit(planner, WALL, PROBLEM, 7)
    assert planner.plan_ids.tolist() == [7]
    assert [moment["success_environment"] for moment in found["moments"]] == [0, 1, 0, 1]
    assert [moment["model_calls"] for moment in found["moments"]] == [50, 150, 200, 250]
    times = [moment["milliseconds"] for moment in found["moments"]]
    assert times == sorted(times)
    assert times[0] >= 10
    assert times[-1] <= found["milliseconds"]
    assert found["success_environment"]
    assert found["goal_distance_environment"] <= WALL.success_radius
    assert torch.equal(torch.tensor(found["actions"])[None], GOOD)
    assert found["warnings"] == ["beware"]
    json.dumps(found, allow_nan=False)
    assert not plan_unit(Scripted([GOOD, BAD]), WALL, PROBLEM, 0)["success_environment"]


def test_what_is_not_finite_is_no_number_and_no_success() -> None:
    class Broken(Scripted):
        def plan(self, *args: Any, **kwargs: Any) -> Plan:
            plan = super().plan(*args, **kwargs)
            plan.states.fill_(torch.nan)
            plan.cost.fill_(torch.inf)
            return plan

    found = plan_unit(Broken([BAD]), WALL, PROBLEM, 0)
    assert found["cost"] is None
    assert found["goal_distance_model"] is None
    assert not found["success_model"]


def test_the_time_of_watching_is_taken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    def slow(self: Tracer, *args: Any) -> None:
        add(self, *args)
        sleep(60.0)

    add = Tracer.add
    monkeypatch.setattr(Tracer, "add", slow)
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    monkeypatch.setattr(time, "sleep", sleep)
    found = plan_unit(Scripted([BAD, GOOD, BAD, GOOD], pause=0.25), WALL, PROBLEM, 0)
    assert found["milliseconds"] == pytest.approx(1000)
    times = [moment["milliseconds"] for moment in found["moments"]]
    assert times == pytest.approx([250, 500, 750, 1000])


def test_moments_are_thinned_evenly() -> None:
    assert thinned([1, 2, 3]) == [1, 2, 3]
    kept = thinned(list(range(100)))
    assert len(kept) == MOMENTS
    assert (kept[0], kept[-1]) == (0, 99)
    assert max(b - a for a, b in pairwise(kept)) == 9


SETTINGS = Settings(("wall",), (30,), ("grasp-paper",), problems=3, seed=0, threads=1)


def test_a_unit_that_raises_is_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ArithmeticError("no way")

    workshop = Workshop(SETTINGS)
    monkeypatch.setattr(worker, "plan_unit", refuse)
    found = workshop.result(Unit("wall", 30, "grasp-paper", 1))
    assert found["error"] == "ArithmeticError: no way"
    assert not found["success_environment"]
    assert found["problem"] == 1
    unknown = workshop.result(Unit("wall", 30, "oracle", 1))
    assert unknown["error"].startswith("ValueError: unknown planner 'oracle'")


@pytest.fixture
def no_children() -> Iterator[None]:
    yield
    assert multiprocessing.active_children() == []


@pytest.mark.usefixtures("no_children")
def test_the_work_outlives_a_worker() -> None:
    found: list[dict[str, Any]] = []

    def report(result: dict[str, Any]) -> None:
        found.append(result)
        if len(found) == 1:
            (child,) = multiprocessing.active_children()
            child.kill()
            child.join()

    plan_all(SETTINGS, list(SETTINGS.units()), 1, report)
    assert sorted(result["problem"] for result in found) == [0, 1, 2]
    assert [result["error"] for result in found].count(None) >= 2
    # The plan in the making, if there was one, is the only one lost, and says why.
    assert {result["error"] for result in found} <= {
        None,
        "the worker process ended with exit code -9",
    }


def refuse_to_serve(*_: Any) -> None:
    raise SystemExit(3)


@pytest.mark.usefixtures("no_children")
def test_workers_that_cannot_begin_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grasp_planner.evaluation.pool.serve", refuse_to_serve)
    with pytest.raises(WorkerError, match="exit code 3 before its first plan"):
        plan_all(SETTINGS, list(SETTINGS.units()), 1, print)
