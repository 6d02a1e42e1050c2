"""Exponents, the end of the cache, and one sweep in small."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from grasp_bench import memory, scaling
from grasp_bench.gate import GREEN


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_the_exponent_of_a_power_law(power: float) -> None:
    values = [1, 3, 10, 32, 100]
    assert scaling.exponent(values, [7e-3 * v**power for v in values]) == pytest.approx(power)


def test_the_exponent_is_least_squares_in_logarithms() -> None:
    # Three points, one off the line by a factor e: the slope of (0,0), (1,1+1), (2,2) is 1.
    e = 2.718281828459045
    assert scaling.exponent([1, e, e**2], [1, e**2, e**2]) == pytest.approx(1.0)
    assert scaling.exponent([1, e, e**2], [1, e, e**3]) == pytest.approx(1.5)


def test_no_exponent_of_one_size() -> None:
    assert scaling.exponent([], []) is None
    assert scaling.exponent([4], [1.0]) is None
    assert scaling.exponent([4, 4], [1.0, 2.0]) is None


@pytest.mark.parametrize(
    ("per_element", "place"),
    [
        ([9.0, 2.0, 1.0, 1.1, 1.2, 3.0, 3.1], 5),  # overhead, plateau, memory
        ([9.0, 2.0, 1.0, 1.1, 1.2], None),  # never leaves
        ([9.0, 1.0, 1.3, 1.0, 1.3], 4),  # comes back once: a hiccup is no exit
        ([1.0], None),
        ([], None),
        ([1.0, 1.25], None),  # exactly the factor is inside
    ],
)
def test_where_the_cache_ends(per_element: list[float], place: int | None) -> None:
    assert scaling.cache_exit(per_element) == place


def test_which_cache_it_is() -> None:
    caches = {"L1": 2**15, "L2": 2**20, "L3": 2**25}
    assert scaling.beyond(2**14, caches) == "within L1"
    assert scaling.beyond(2**16, caches) == "beyond L1"
    assert scaling.beyond(2**22, caches) == "beyond L2"
    assert scaling.beyond(2**30, caches) == "beyond L3"
    assert scaling.beyond(2**30, {}) == "caches unknown"


def test_every_sweep_spans_three_decades_of_its_own_axis() -> None:
    names = [sweep.name for sweep in scaling.SWEEPS]
    assert len(set(names)) == len(names)
    for sweep in scaling.SWEEPS:
        assert sweep.values[-1] >= 1000 * sweep.values[0]
        shape = sweep.case(77).shape
        sizes = {"N": shape.plans, "T": shape.steps, "D": shape.features}
        assert sizes[sweep.axis] == 77


def test_a_small_sweep() -> None:
    sweep = next(s for s in scaling.SWEEPS if s.name == "lifted_step_ none over N")
    curve = scaling.measured(replace(sweep, values=(1, 2, 20)), seconds=0.0).as_json()
    assert [p["value"] for p in curve["points"]] == [1, 2, 20]
    assert [p["gate"] == GREEN for p in curve["points"]] == [True, True, False]
    assert all(p["median_ms"] > 0 for p in curve["points"])
    assert curve["exponent"] is not None
    # The cotangent, the losses and their sums: as many times as there are plans, and a little.
    peaks = [p["peak_bytes"] for p in curve["points"]]
    assert peaks[0] >= 4 * 50 * 64
    assert 15 <= peaks[2] / peaks[0] <= 21


def test_peak_memory_counts_what_lives_at_once() -> None:
    kept = torch.zeros(1000)

    def one_after_the_other() -> None:
        for _ in range(5):
            kept.add_((kept + 1).sum())

    both = memory.peak_bytes(lambda: (kept + 1, kept + 2), [kept])
    assert both == 8000
    assert 4000 <= memory.peak_bytes(one_after_the_other, [kept]) < 8000
