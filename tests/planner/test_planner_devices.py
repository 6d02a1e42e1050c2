"""Planning on a device other than the CPU, with torch's meta device in its place.

A meta tensor has no values: whatever reads one raises, which is where a GPU would make the host
wait.
"""

from __future__ import annotations

import sys
from pathlib import Path

import planner_cases as cases
import pytest
import torch
from grasp_planner import GraspConfig, GraspPlanner, inputs
from grasp_planner.search import Search
from torch.overrides import TorchFunctionMode

import grasp_kernels

SOURCES = tuple(str(Path(p.__file__).parent) for p in (inputs, grasp_kernels))
VARIANTS = [
    {},
    {"noise": "white", "max_rows": 5, "terminal": "free"},
    {"state_gradient_scale": 0.5, "stop_cost": 0.1},
    {"state_optimizer": "adam", "noise": "white", "initialization": "rollout"},
    {"action_optimizer": "sgd", "sync_optimizer": "sgd", "initial_actions_scale": 0.2},
    {"state_scale": (1.0, 2.0, 0.5, 3.0), "feature_weight": (1.0, 0.5, 0.0, 2.0)},
]


class Copies(TorchFunctionMode):
    """Host-to-device copies, by name and line, that are made after the model's first call."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.model_calls = 0

    def watch(self, model):
        def watched(state, action):
            self.model_calls += 1
            return model(state, action)

        return watched

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if self.model_calls and isinstance(result, torch.Tensor) and result.device.type == "meta":
            host = any(isinstance(a, torch.Tensor) and a.device.type == "cpu" for a in args)
            made = name in ("tensor", "as_tensor") and not isinstance(args[0], torch.Tensor)
            if made or (host and name in ("to", "cuda", "copy_", "as_tensor", "tensor")):
                frame = sys._getframe(1)
                while frame.f_back and not frame.f_code.co_filename.startswith(SOURCES):
                    frame = frame.f_back
                self.seen.append(f"{name} {frame.f_code.co_filename}:{frame.f_lineno}")
        return result


def test_bounds_on_the_device() -> None:
    """One at a time: two are compared, once, and that does read."""
    for changes in ({"action_low": None}, {"action_low": (-1.0, -0.5), "action_high": None}):
        low, high = inputs._bounds(cases.config(**changes), 2, torch.empty(1, device="meta"))
        for bound in (low, high):
            assert bound is None or (bound.device.type == "meta" and bound.shape == (2,))


@pytest.fixture
def loop_alone(monkeypatch) -> None:
    """Entry and result do read, once, so their reads are left out."""

    def bounds(config, width, like):
        return like.new_full((width,), -1.0), like.new_full((width,), 1.0)

    monkeypatch.setattr(inputs, "_bounds", bounds)
    monkeypatch.setattr(inputs, "_check_finite", lambda name, value: None)
    monkeypatch.setattr(Search, "result", lambda search: search)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_the_loop_reads_and_copies_nothing(variant, dtype, loop_alone) -> None:
    start, goal = torch.empty(2, 2, 4, dtype=dtype, device="meta").unbind(0)
    copies = Copies()
    settings = cases.config(**variant)
    with copies:
        search = GraspPlanner(copies.watch(cases.arithmetic), settings).plan(
            start, goal, snapshots=(0, 4)
        )
    assert copies.model_calls > settings.iterations
    assert copies.seen == []
    for tensor in (
        search.algorithm.trajectory,
        search.best_actions,
        search.best_states,
        search.sound,
    ):
        assert tensor.device.type == "meta"


def test_the_watch_sees_a_copy_and_a_read(loop_alone) -> None:
    start, goal = torch.empty(2, 2, 4, device="meta").unbind(0)
    copies = Copies()
    scaled = lambda s, a: cases.arithmetic(s, a) * torch.tensor([1.0], device="meta")  # noqa: E731
    with copies:
        GraspPlanner(copies.watch(scaled), cases.config()).plan(start, goal)
    assert len(copies.seen) > 12
    reading = lambda s, a: cases.arithmetic(s, a) * float(s.sum())  # noqa: E731
    with pytest.raises(RuntimeError, match="meta"):
        GraspPlanner(reading, cases.config()).plan(start, goal)


def test_the_default_device_does_not_matter() -> None:
    """Tensors that are made on the way follow the ones that were given."""
    start, goal = cases.problems(2)
    for changes in ({}, {"state_optimizer": "adam", "max_rows": 5, "stop_cost": 0.5}):
        plain = GraspPlanner(cases.arithmetic, cases.config(**changes)).plan(start, goal)
        with torch.device("meta"):
            found = GraspPlanner(cases.arithmetic, cases.config(**changes)).plan(start, goal)
        assert cases.same_plans(found, plain)
    assert isinstance(GraspPlanner(cases.arithmetic).config, GraspConfig)
