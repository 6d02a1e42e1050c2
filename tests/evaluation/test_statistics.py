"""Intervals and quantiles."""

from __future__ import annotations

import numpy as np
import pytest
from grasp_planner.evaluation.statistics import quantile, wilson
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("successes", "count", "expected"),
    [
        (9, 10, (0.59585, 0.98212)),
        (0, 10, (0.0, 0.27754)),
        (24, 24, (0.86202, 1.0)),
        (50, 100, (0.40383, 0.59617)),
    ],
)
def test_known_intervals(successes: int, count: int, expected: tuple[float, float]) -> None:
    assert wilson(successes, count) == pytest.approx(expected, abs=1e-5)


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_ends_are_where_a_normal_test_would_just_reject(trial: tuple[int, int]) -> None:
    successes, count = trial
    share = successes / count
    for end in wilson(successes, count):
        variance = end * (1 - end) / count
        assert (share - end) ** 2 == pytest.approx(1.96**2 * variance, abs=1e-12)


@pytest.mark.parametrize(("successes", "count"), [(0, 0), (3, 2), (-1, 4)])
def test_impossible_counts_are_refused(successes: int, count: int) -> None:
    with pytest.raises(ValueError, match="successes must be"):
        wilson(successes, count)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30), st.floats(0, 1))
def test_quantiles_are_numpys(values: list[float], share: float) -> None:
    assert quantile(values, share) == pytest.approx(float(np.quantile(values, share)), abs=1e-6)


def test_no_quantile_of_nothing() -> None:
    assert quantile([], 0.5) is None
