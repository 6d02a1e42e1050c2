"""Rows of eval.json, and our planner beside the baselines."""

from __future__ import annotations

import csv
import io
import json

import pytest
from evaluation_cases import DESCRIPTION, SETTINGS, result, results
from grasp_planner.evaluation.statistics import wilson
from grasp_planner.evaluation.summary import (
    BASELINES,
    comparisons,
    curve,
    flat,
    summarise,
    time_to_success,
)
from grasp_planner.evaluation.units import Unit

ROWS = summarise(SETTINGS, results(), DESCRIPTION)
UNIT = Unit("wall", 50, "cem", 0)


def test_a_row_per_planner_with_what_it_promises() -> None:
    assert [row["planner"] for row in ROWS] == ["lifted-newton", "cem", "icem"]
    cem = ROWS[1]
    assert cem["task"] == "wall"
    assert cem["task_name"] == "wall-single"
    assert cem["horizon"] == 50
    assert cem["problems"] == 4
    assert cem["success_environment"] == 0.75
    assert cem["success_environment_interval"] == wilson(3, 4)
    assert cem["success_model"] == 1
    assert cem["milliseconds_per_plan"] == cem["milliseconds_median"] == 400
    assert cem["milliseconds_p90"] == 400
    # 400, 200 and 400 ms: of "+-+" the last success counts, of "++" the first.
    assert cem["milliseconds_to_success"] == 400
    assert cem["model_calls"] == 50 * (2 + 2 + 3 + 2) / 4
    assert cem["errors"] == 0
    assert cem["error"] is None
    assert (cem["seed"], cem["threads"], cem["torch"]) == (0, 1, "2.0")
    assert (cem["backend"], cem["path"], cem["unit"]) == ("native", "MLP kernels", "map units")
    json.dumps(ROWS, allow_nan=False)


def test_a_unit_that_failed_counts_as_a_plan_that_did() -> None:
    icem = ROWS[2]
    assert icem["errors"] == 1
    assert icem["error"] == "ValueError: <no> way"
    assert icem["success_environment"] == icem["success_model"] == 0.75
    assert icem["milliseconds_per_plan"] == 900


@pytest.mark.parametrize(
    ("way", "expected"), [("-+", 400), ("++", 200), ("+-+-", None), ("-+--++", 2000 / 6)]
)
def test_time_to_success_is_to_the_success_that_lasts(way: str, expected: float | None) -> None:
    assert time_to_success(result(UNIT, 400, way)) == expected


def test_curves_are_shares_of_problems_at_a_time() -> None:
    ways = [result(UNIT, 400, "-+"), result(UNIT, 100, "+"), result(UNIT, 300, "+--")]
    assert curve(ways) == [
        *((100, 2 / 3), (100, 2 / 3), (200, 1 / 3), (200, 1 / 3), (300, 1 / 3), (400, 2 / 3)),
    ]


def test_our_planner_beside_the_best_baseline() -> None:
    (found,) = comparisons(ROWS)
    # Of two that succeed as often, the faster.
    assert found["best"]["planner"] == "cem"
    assert found["ratio"] == 0.25
    assert found["at_least"]
    assert found["met"]


@pytest.mark.parametrize(
    ("ours", "milliseconds", "at_least", "within", "fast"),
    [("++--", 100, False, True, True), ("----", 100, False, False, True),
     ("+++-", 134, True, True, False)],
)  # fmt: skip
def test_what_is_asked_can_be_missed(
    ours: str, milliseconds: float, at_least: bool, within: bool, fast: bool
) -> None:
    found = results()
    for k, way in enumerate(ours):
        unit = Unit("wall", 50, "lifted-newton", k)
        found[unit] = result(unit, milliseconds, way)
        other = Unit("wall", 50, "cem", k)
        found[other] = result(other, 400, "+" if k < 3 or ours == "----" else "-")
    (one,) = comparisons(summarise(SETTINGS, found, DESCRIPTION))
    assert (one["at_least"], one["within"], one["fast"]) == (at_least, within, fast)
    assert one["met"] == (within and fast)


def test_no_comparison_without_both() -> None:
    assert comparisons(ROWS[:1]) == comparisons(ROWS[1:]) == []
    assert "grasp" not in BASELINES


def test_the_csv_has_every_number_of_the_rows() -> None:
    lines = list(csv.DictReader(io.StringIO(flat(ROWS))))
    assert [line["planner"] for line in lines] == [row["planner"] for row in ROWS]
    for line, row in zip(lines, ROWS, strict=True):
        assert float(line["success_environment"]) == row["success_environment"]
        low, high = row["success_environment_interval"]
        assert float(line["success_environment_low"]) == low
        assert float(line["success_environment_high"]) == high
        assert float(line["milliseconds_per_plan"]) == row["milliseconds_per_plan"]
        assert line["error"] == (row["error"] or "")
