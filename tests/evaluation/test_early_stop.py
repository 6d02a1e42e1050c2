"""`bench/early_stop.py`: goes on from its file, and its page says what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from grasp_bench import early_stop


def test_writes_a_page_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(early_stop, "BASELINES", ("cem",))
    out, page = tmp_path / "stops.jsonl", tmp_path / "docs" / "stops.md"
    given = ["--tasks", "wall", "--horizon", "40", "--problems", "2"]
    command = [*given, "--out", str(out), "--page", str(page)]
    assert early_stop.main(command) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(lines) == 2 * 3
    assert {(line["planner"], line["stops"]) for line in lines} == {
        ("lifted-newton", True),
        ("cem", False),
        ("cem", True),
    }
    rows = [row for row in page.read_text().splitlines() if row.startswith("| cem")]
    assert [row.split(" | ")[1] for row in rows] == ["none", "stop_cost"]
    assert early_stop.main(command) == 0
    assert len(out.read_text().splitlines()) == 6
