"""What is asked for, and the folder that survives."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from evaluation_cases import SETTINGS, results
from grasp_planner import tasks
from grasp_planner.evaluation.units import Settings, Store, StoreError, Unit, described

WALL = {"wall": tasks.load("wall")}
DESCRIPTION = described(SETTINGS, WALL, "an abacus")
FIRST, SECOND, *_ = results().values()


def test_all_planners_take_turns_on_a_problem() -> None:
    units = list(SETTINGS.units())
    assert len(units) == len(set(units)) == 12
    assert [unit.planner for unit in units[:6]] == [
        *("lifted-newton", "cem", "icem"),
        *("cem", "icem", "lifted-newton"),
    ]
    assert [unit.problem for unit in units[:6]] == [0, 0, 0, 1, 1, 1]


def test_results_are_there_after_reopening(tmp_path: Path) -> None:
    with Store(tmp_path / "new", DESCRIPTION) as store:
        assert store.results == {}
        store.add(FIRST)
        # In the file now, not when it is closed.
        assert json.loads((tmp_path / "new" / "units.jsonl").read_text()) == FIRST
        store.add(SECOND)
    with Store(tmp_path / "new", DESCRIPTION) as store:
        assert list(store.results.values()) == [FIRST, SECOND]
        assert next(iter(store.results)) == Unit("wall", 50, "lifted-newton", 0)


@pytest.mark.parametrize("left", [1, 40, -1])
def test_a_torn_last_line_is_dropped(tmp_path: Path, left: int) -> None:
    with Store(tmp_path, DESCRIPTION) as store:
        store.add(FIRST)
        store.add(SECOND)
    path = tmp_path / "units.jsonl"
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + second[:left])
    with Store(tmp_path, DESCRIPTION) as store:
        assert list(store.results.values()) == [FIRST]
        store.add(SECOND)
    assert path.read_bytes() == first + second


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    with Store(tmp_path, DESCRIPTION) as store:
        store.add(FIRST)
    path = tmp_path / "units.jsonl"
    path.write_bytes(b'{"task": "wall"}\n' + path.read_bytes())
    with pytest.raises(StoreError, match=r"line 1, is damaged: KeyError\('horizon'\)"):
        Store(tmp_path, DESCRIPTION)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"problems": 5}, "problems was 4, is 5"),
        ({"seed": 7}, "seed was 0, is 7; planner_settings, lifted-newton, wall T=50, seed was 0"),
        (
            {"planners": ("lifted-newton", "cem")},
            r'planners was \["lifted-newton", "cem", "icem"\]',
        ),
        ({"threads": 2}, "threads was 1, is 2"),
    ],
)
def test_other_settings_are_refused_by_name(
    tmp_path: Path, changes: dict[str, object], named: str
) -> None:
    Store(tmp_path, DESCRIPTION).__exit__(None, None, None)
    other: Settings = replace(SETTINGS, **changes)
    with pytest.raises(StoreError, match=named):
        Store(tmp_path, described(other, WALL, "an abacus"))


def test_another_processor_or_other_weights_are_refused(tmp_path: Path) -> None:
    Store(tmp_path, DESCRIPTION).__exit__(None, None, None)
    with pytest.raises(StoreError, match='processor was "an abacus", is "a slide rule"'):
        Store(tmp_path, described(SETTINGS, WALL, "a slide rule"))
    other = tasks.load("wall")
    next(iter(other.world_model.parameters())).data[0, 0] += 1
    with pytest.raises(StoreError, match="weights, wall was"):
        Store(tmp_path, described(SETTINGS, {"wall": other}, "an abacus"))


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with Store(tmp_path, DESCRIPTION), pytest.raises(StoreError, match="another evaluation"):
        Store(tmp_path, DESCRIPTION)
    Store(tmp_path, DESCRIPTION).__exit__(None, None, None)


def test_results_without_settings_are_refused(tmp_path: Path) -> None:
    (tmp_path / "units.jsonl").write_text(json.dumps(FIRST) + "\n")
    with pytest.raises(StoreError, match=r"no settings\.json"):
        Store(tmp_path, DESCRIPTION)
