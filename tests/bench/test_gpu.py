"""The GPU path with a stand-in for `torch.cuda`: the order of its calls and its arithmetic only."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from grasp_bench import gpu
from grasp_bench.cases import Case, Shape
from grasp_bench.gate import GREEN
from grasp_bench.runner import Settings


class Clock:
    """Events and graphs that share a time in ms; a captured call takes one, a replay what it
    captured."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []
        self.captured: list[int] = []


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.time = clock.now
            clock.log.append("record")

        def synchronize(self) -> None:
            clock.log.append("wait")

        def elapsed_time(self, other: Event) -> float:
            return other.time - self.time

    class Graph:
        def replay(self) -> None:
            clock.now += 2.0
            clock.log.append("replay")

    class Stream:
        def wait_stream(self, other: Any) -> None:
            clock.log.append("wait stream")

    @contextlib.contextmanager
    def within(name: str, *_: Any) -> Iterator[None]:
        clock.log.append(name)
        yield
        clock.log.append(f"end {name}")

    fakes = {
        "Event": Event,
        "CUDAGraph": Graph,
        "Stream": Stream,
        "current_stream": Stream,
        "stream": lambda stream: within("side stream"),
        "graph": lambda graph: within("capture"),
        "synchronize": lambda: clock.log.append("synchronize"),
        "get_device_properties": lambda device: SimpleNamespace(name="fake", L2_cache_size=2**10),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    return clock


def test_a_replay_is_spread_over_its_calls(clock: Clock) -> None:
    calls: list[int] = []
    graph = gpu.capture([lambda: calls.append(0), lambda: calls.append(1)])
    assert calls == [0, 1] * (gpu.WARM_UP + 1)
    order = [name for name in clock.log if name != "wait stream"]
    assert order == ["side stream", "end side stream", "synchronize", "capture", "end capture"]
    clock.log.clear()
    found = gpu.time_graph(graph, nodes=4, rounds=3)
    assert found.median == pytest.approx(2.0 / 1e3 / 4)  # 2 ms for four calls, in seconds
    assert clock.log == ["replay", "synchronize", *["record", "replay", "record", "wait"] * 3]


@pytest.mark.parametrize(("size", "count"), [(16, 64), (1024, 3), (10**6, 2)])
def test_copies_exceed_the_cache(size: int, count: int) -> None:
    operands = {"a": torch.zeros(size // 4), "state": {}, "noise_scale": 0.1}
    assert gpu.copies(1024, operands) == count


def test_a_case_becomes_rows(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "SIZES", (2**10, 2**12))
    monkeypatch.setattr(gpu, "SQUARE", 8)
    settings = Settings(rounds=3, compile=False)
    runner = gpu.GPURunner(settings, torch.device("cpu"))  # tensors on the CPU, events on the fake
    case = Case("lifted_step_", Shape(2, 4, 3), {"noise": "white"})
    rows = runner.rows(case)
    assert [row.gate for row in rows] == [GREEN, GREEN]
    for row in rows:
        assert row.median_ms == pytest.approx(2.0 / gpu.NODES)
        assert row.cold_median_ms is not None
        assert row.threads is None
        assert row.bandwidth_gb_per_s is not None
