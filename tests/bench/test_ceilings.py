"""Timing and ceilings: quartiles, interpolation, the floor, cold caches."""

from __future__ import annotations

import math

import pytest
import torch
from grasp_bench import ceilings, timing
from grasp_bench.ceilings import Ceilings

FOUND = Ceilings(
    "cpu", 1, copy={100: 8.0, 10_000: 2.0}, triad={100: 4.0, 10_000: 3.0}, product=50.0, latency=0.5
)


def test_quartiles() -> None:
    found = timing.Timing.of([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (found.low, found.median, found.high) == (2.0, 3.0, 4.0)
    assert found.per(2) == timing.Timing(1.5, 1.0, 2.0)
    assert timing.Timing.of([7.0]) == timing.Timing(7.0, 7.0, 7.0)


def test_bandwidth_is_read_off_between_sizes() -> None:
    assert FOUND.bandwidth("copy", 1) == 8.0
    assert FOUND.bandwidth("copy", 1_000) == pytest.approx(4.0)  # half way, in logarithms
    assert FOUND.bandwidth("copy", math.inf) == 2.0


@pytest.mark.parametrize(
    ("size", "moved", "operations", "floor", "bound"),
    [
        (1, 1, 1, 0.5, "latency"),
        (100, 80, 100, 10.0, "memory"),  # the better of copy and triad, in cache
        (math.inf, 80, 100, 80 / 3, "memory"),
        (100, 80, 1000, 20.0, "arithmetic"),
    ],
)
def test_the_floor(size: float, moved: float, operations: float, floor: float, bound: str) -> None:
    seconds, found = FOUND.floor(size, moved, operations)
    assert seconds == pytest.approx(floor)
    assert found == bound


def test_measured_ceilings_are_rates() -> None:
    found = ceilings.on_cpu(1, 3, sizes=(2**12, 2**14))
    assert list(found.copy) == list(found.triad) == [2**12, 2**14]
    assert all(rate > 1e6 for rate in [*found.copy.values(), *found.triad.values()])
    assert found.product > 1e8
    assert 0 < found.latency < 0.1
    shown = found.as_json()
    assert shown["copy_gb_per_s"]["4096"] == pytest.approx(found.copy[2**12] / 1e9)


def test_a_copy_moves_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = ceilings.functions(torch.device("cpu"), [1200], square=4)
    assert list(runs) == ["copy 1200", "triad 1200", "product", "latency"]
    assert runs["copy 1200"]().nbytes * 2 == 1200  # type: ignore[attr-defined]
    assert runs["triad 1200"]().nbytes * 3 == 1200  # type: ignore[attr-defined]


def test_every_cold_call_follows_a_flush() -> None:
    events: list[str] = []
    times = timing.measure_cold(
        {"a": lambda: events.append("a"), "b": lambda: events.append("b")},
        3,
        lambda: events.append("flush"),
    )
    assert events == ["flush", "a", "flush", "b"] * 3
    assert times.keys() == {"a", "b"}


def test_turns_are_interleaved_and_threads_set() -> None:
    before = torch.get_num_threads()
    seen: list[tuple[str, int]] = []

    def note(name: str) -> None:
        torch.randn(300_000)  # long enough that one call fills a turn
        seen.append((name, torch.get_num_threads()))

    timing.measure({"a": lambda: note("a"), "b": lambda: note("b")}, 2, {"a": 1, "b": 2}, warm_up=0)
    assert set(seen) == {("a", 1), ("b", 2)}
    names = [name for name, _ in seen]
    assert "ab" in "".join(names)
    assert "ba" in "".join(names)
    assert torch.get_num_threads() == before


def test_the_flush_is_larger_than_the_last_cache() -> None:
    last = max(timing.cache_sizes().values(), default=0)
    assert timing.Flush.size() >= min(last, 512 * 2**20)
    flush = timing.Flush(2**12)
    flush()
    assert bool((flush.buffer == 1).all())
