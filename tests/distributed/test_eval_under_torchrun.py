"""`grasp eval` under `torchrun`: ranks that die and come back change nothing but time."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from grasp_planner import cli
from grasp_planner.distributed.launch import Ranks
from grasp_planner.evaluation.units import Store, StoreError, Unit, unit_of
from launching import LAUNCHERS, torchrun, until

COMMAND = ["eval", "--tasks", "wall", "--horizons", "30", "--planners", "grasp-paper,gradient",
           "--problems", "8", "--seed", "5", "--no-pictures"]  # fmt: skip
UNITS = 16
DESCRIPTION = {"threads": 1}

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="looks for processes in /proc"
)


@pytest.fixture
def here(here: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As there, in a world of one."""
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)


def lines(out: Path) -> dict[str, list[bytes]]:
    """The whole lines of each rank's file."""
    return {
        path.name: [line for line in path.read_bytes().splitlines(True) if line.endswith(b"\n")]
        for path in out.glob("units*.jsonl")
    }


def count(out: Path) -> int:
    return sum(map(len, lines(out).values()))


def check_each_unit_once(out: Path) -> None:
    found = Counter(unit_of(json.loads(line)) for file in lines(out).values() for line in file)
    assert set(found.values()) == {1}
    assert len(found) == UNITS


def results(out: Path) -> dict[Unit, dict[str, Any]]:
    """What all plans gave, without what depends on the clock."""
    found = {}
    for file in lines(out).values():
        for result in map(json.loads, file):
            timeless = {k: v for k, v in result.items() if k not in ("milliseconds", "moments")}
            found[unit_of(result)] = timeless
    return found


@pytest.mark.usefixtures("here")
def test_a_killed_rank_is_named_and_the_restart_goes_on(tmp_path: Path) -> None:
    torn, whole = tmp_path / "torn", tmp_path / "whole"
    with torchrun(2, *COMMAND, "--out", str(torn), restarts=1) as run:
        until(lambda: len(lines(torn).get("units-1.jsonl", [])) >= 1)
        victim = run.rank(1)
        os.kill(victim, signal.SIGKILL)
        kept = lines(torn)
        status, out, error = run.end()
        assert status == 0, error
        until(lambda: not run.living(), 20)
    assert sum(map(len, kept.values())) < UNITS, "too fast for this test: nothing was interrupted"
    host = socket.gethostname()
    assert f"rank 1 of 2 (host {host}, pid {victim}) is dead" in error
    assert f"rank 1 of 2 (host {host}, pid {victim}) died; starting again" in error
    assert error.count("died; starting again") == 1  # rank 0 was told to end
    assert f"{torn} keeps every finished plan" in error
    assert "Traceback" not in error
    assert "of 16 plans are there; going on" in out
    assert out.count("8 problems each") == 1  # one table, of rank 0
    check_each_unit_once(torn)
    for name, before in kept.items():
        assert lines(torn)[name][: len(before)] == before
        assert len(lines(torn)[name]) > len(before)  # both ranks came back and went on

    assert cli.main([*COMMAND, "--out", str(whole)]) == 0
    assert results(torn) == results(whole)
    assert {path.name for path in torn.iterdir()} == {
        *("settings.json", "units.jsonl", "units-1.jsonl", "eval.json", "eval.csv", "eval.html"),
    }


@pytest.mark.usefixtures("here")
def test_after_ctrl_c_a_world_of_another_size_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with torchrun(2, *COMMAND, "--out", str(tmp_path)) as run:
        until(lambda: len(lines(tmp_path)) == 2 and count(tmp_path) >= 1)
        os.kill(run.process.pid, signal.SIGINT)
        status, _, error = run.end()
        until(lambda: not run.living(), 20)
    assert status != 0
    assert "goes on from there" in error
    assert "is dead" not in error
    kept = lines(tmp_path)
    assert count(tmp_path) < UNITS, "too fast for this test: nothing was interrupted"
    assert not (tmp_path / "eval.json").exists()
    assert cli.main([*COMMAND, "--out", str(tmp_path)]) == 0
    assert "plans are there; going on" in capsys.readouterr().out
    check_each_unit_once(tmp_path)
    assert {name: lines(tmp_path)[name][: len(file)] for name, file in kept.items()} == kept


def rank(number: int, size: int = 2) -> Ranks:
    """A rank that meets nobody."""
    return Ranks(number, size, number, size, torch.device("cpu"), 1.0)


def result(problem: int) -> dict[str, Any]:
    return {**Unit("wall", 50, "cem", problem)._asdict(), "error": None}


def test_each_rank_has_its_file_and_reads_all(tmp_path: Path) -> None:
    for number in (1, 0):  # the files are there already when rank 0 looks for that of rank 1
        (tmp_path / f"units-{number}.jsonl").touch()
    with (
        Store(tmp_path, DESCRIPTION, rank(0)) as first,
        Store(tmp_path, DESCRIPTION, rank(1)) as second,
    ):
        first.add(result(0))
        second.add(result(1))
        first.gather()
        assert set(first.results) == {unit_of(result(0)), unit_of(result(1))}
        with pytest.raises(StoreError, match="another evaluation is writing here"):
            Store(tmp_path, DESCRIPTION, rank(1))
    torn = tmp_path / "units-1.jsonl"
    torn.write_bytes(torn.read_bytes() + b'{"task": "wa')
    before = torn.read_bytes()
    with Store(tmp_path, DESCRIPTION) as alone:  # a world of one goes on
        assert set(alone.results) == {unit_of(result(0)), unit_of(result(1))}
        assert torn.read_bytes() == before  # another's file is left as it is
    with Store(tmp_path, DESCRIPTION, rank(1)) as second:
        second.add(result(2))
    assert [json.loads(line) for line in torn.read_bytes().splitlines()] == [result(1), result(2)]


def test_a_folder_that_ranks_do_not_share_is_refused(tmp_path: Path) -> None:
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    with pytest.raises(StoreError, match=r"rank 0 of 2 .* does not see units-1.jsonl of rank 1"):
        Store(mine, DESCRIPTION, rank(0))
    with pytest.raises(StoreError, match=r"all ranks share, and rank 1 .* does not see settings"):
        Store(theirs, DESCRIPTION, rank(1))
