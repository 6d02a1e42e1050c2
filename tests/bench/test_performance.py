"""docs/performance.md is made from a report: its numbers are the report's, none is missing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from grasp_bench import performance
from grasp_bench.cases import CASES
from grasp_planner.cli import main


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bench")
    arguments = ["--quick", "--no-compile", "--threads", "1", "--rounds", "2", "--cold-rounds", "1"]
    assert main(["bench", *arguments, "--case", "action_step_ adam N=1 ", "--out", str(out)]) == 0
    return out / "bench.json"


def test_every_op_is_explained() -> None:
    assert {case.op for case in CASES} == set(performance.WHY)


def test_the_numbers_are_the_reports(
    report: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "performance.md"
    monkeypatch.setattr(sys, "argv", ["performance", str(report), str(page)])
    assert performance.main() == 0
    text, found = page.read_text(), json.loads(report.read_text())
    assert found["environment"]["processor"] in text
    assert found["rows"]
    for row in found["rows"]:
        assert f"| {row['backend']}" in text
        if row["median_ms"] is not None:
            assert f"| {performance.number(row['median_ms'])} |" in text
    for ceiling in found["ceilings"]:
        assert f"{ceiling['product_gflop_per_s']:.3g} GFLOP/s" in text
    assert "### `action_step_`" in text
    assert "### `mlp_sync_`" not in text  # nothing was measured


def test_a_red_gate_has_no_number(report: Path) -> None:
    found = json.loads(report.read_text())
    row = {**found["rows"][0], "gate": "failed: too far off", "fraction_of_ceiling": None}
    text = performance.document({**found, "rows": [row]})
    assert "failed: too far off" in text
    assert f"| {performance.number(row['median_ms'])} |" not in text
