"""The comparison of what may flow back through the state input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from grasp_bench import state_gradients
from grasp_planner.presets import planner_config

MODES = ("stop", "exact")


def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *arguments: str) -> str:
    """The page of a small run."""
    monkeypatch.setattr(
        state_gradients,
        "planner_config",
        lambda *words, **settings: planner_config(
            *words, **settings, iterations=4, candidates=2, sync_every=0, final_sync_steps=2
        ),
    )
    files = ("--out", str(tmp_path / "plans.jsonl"), "--page", str(tmp_path / "page.md"))
    words = ("--tasks", "wall", "--horizon", "30", "--seeds", "1,2", *files, *arguments)
    monkeypatch.setattr("sys.argv", ["state_gradients.py", *words])
    assert state_gradients.main() == 0
    return (tmp_path / "page.md").read_text()


def test_writes_a_page_and_goes_on_from_its_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = ("--modes", ",".join(MODES))
    page = run(monkeypatch, tmp_path, *wanted, "--problems", "1")
    assert page in capsys.readouterr().out
    assert "1 problem per task from each of 2 seeds, T = 30" in page
    assert [line.split(" | ")[0] for line in page.splitlines() if line.startswith("| ")] == [
        "| mode", "| ---", *(f"| {mode}" for mode in MODES)
    ]  # fmt: skip
    lines = (tmp_path / "plans.jsonl").read_text()
    assert len(lines.splitlines()) == 4
    more = run(monkeypatch, tmp_path, *wanted, "--problems", "2")
    assert (tmp_path / "plans.jsonl").read_text().startswith(lines)
    assert len((tmp_path / "plans.jsonl").read_text().splitlines()) == 8
    assert "2 problems per task" in more


def test_says_only_what_the_intervals_allow() -> None:
    def plans(successes: int) -> list[dict[str, Any]]:
        return [{"success_environment": index < successes} for index in range(40)]

    sentence = state_gradients._sentence
    apart = sentence({"stop": plans(38), "scaled 0.3": plans(33), "exact": plans(9)})
    assert "Most plans succeed with *stop*" in apart
    assert "apart from that of *exact*, and" in apart
    assert "overlap" in sentence({"stop": plans(38), "exact": plans(36)})


def test_unknown_modes_are_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["state_gradients.py", "--modes", "some"])
    with pytest.raises(SystemExit):
        state_gradients.main()
    assert "unknown mode 'some'; there are: stop, scaled 0.1" in capsys.readouterr().err
