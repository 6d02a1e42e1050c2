"""The search for settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from grasp_bench import tune
from grasp_planner.presets import PLANNERS

# Fields that go together: one alone may not fit the others' defaults.
COUPLED = ("samples", "least_samples", "elites", "resamples", "candidates")


@pytest.mark.parametrize("planner", PLANNERS)
def test_spaces_hold_settings_that_planners_have(planner: str) -> None:
    drawn = list(tune.trials(planner, 12, 100))
    assert drawn[0] == {}
    assert len(drawn) == 12
    assert len({json.dumps(changes) for changes in drawn}) == 12
    assert all(tune.valid(planner, changes) for changes in drawn)
    # More trials begin with the same ones; another seed has others.
    assert list(tune.trials(planner, 20, 100))[:12] == drawn
    assert list(tune.trials(planner, 12, 101)) != drawn
    for name, values in tune.SPACES[planner].items():
        for value in values:
            assert tune.valid(planner, {name: value}) or name in COUPLED


def test_a_small_space_is_searched_whole() -> None:
    space = tune.SPACES["grasp-paper"]
    count = len(space["action_lr"]) * len(space["sync_lr"])
    assert len(list(tune.trials("grasp-paper", count + 50, 1))) == count + 1


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["tune.py", "--planner", "grasp-paper", *arguments])
    return tune.main()


SMALL = ["--tasks", "wall", "--horizons", "30", "--problems", "2"]


def test_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tune.jsonl"
    assert run(monkeypatch, *SMALL, "--trials", "2", "--out", str(out)) == 0
    before = out.read_text()
    first, second = map(json.loads, before.splitlines())
    assert first["changes"] == {}
    assert set(second["changes"]) == set(tune.SPACES["grasp-paper"])
    assert first["milliseconds_per_plan"] > 0
    assert 0 <= first["success_environment"] <= first["problems"] == 2
    out.write_text(before + '{"planner": "gra')  # a torn line
    assert run(monkeypatch, *SMALL, "--trials", "3", "--out", str(out)) == 0
    assert out.read_text().startswith(before)
    assert len(out.read_text().splitlines()) == 3
    shown = capsys.readouterr().out
    assert "its own settings" in shown
    assert "wall 30" in shown


def test_the_tables_problems_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, *SMALL, "--seed", "0")
    assert "0 is the table's" in capsys.readouterr().err


def test_best_is_first() -> None:
    def trial(reached: int, milliseconds: float) -> list[tune.Line]:
        return [{"success_environment": reached, "milliseconds_per_plan": milliseconds}]

    trials = [trial(3, 10.0), trial(5, 90.0), trial(5, 30.0)]
    assert sorted(trials, key=tune.rank) == [trials[2], trials[1], trials[0]]
