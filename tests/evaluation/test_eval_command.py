"""`grasp eval`, as a user calls, interrupts and kills it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from grasp_planner import cli

ARGUMENTS = ["--tasks", "wall", "--horizons", "30", "--planners", "grasp-paper,gradient",
             "--problems", "10", "--seed", "5", "--no-pictures"]  # fmt: skip
UNITS = 20


def started(out: Path, workers: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "grasp_planner.cli", "eval", *ARGUMENTS, "--out", str(out)]
    return subprocess.Popen(
        [*command, "--workers", str(workers)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that Ctrl-C below reaches it and its workers alone
        # A shell makes what it starts in the background deaf to Ctrl-C, and its children with it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def status_of(*arguments: str) -> int:
    """The exit status of `grasp eval ARGUMENTS`, also where argparse raises it."""
    try:
        return cli.main(["eval", *arguments])
    except SystemExit as stop:
        return int(stop.code or 0)


def lines(out: Path) -> list[str]:
    path = out / "units.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def until(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def group(leader: int) -> list[int]:
    """The living processes of a session that was started here."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def rows(out: Path) -> list[dict[str, object]]:
    """eval.json without what depends on the clock."""
    return [
        {name: value for name, value in row.items() if not name.startswith("milliseconds")}
        for row in json.loads((out / "eval.json").read_text())
    ]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.usefixtures("here")
def test_interruptions_change_nothing_but_time(tmp_path: Path) -> None:
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    killed = started(torn, workers=2)
    until(lambda: len(lines(torn)) >= 1)
    killed.kill()
    killed.communicate(timeout=20)  # its workers have the other end of the pipe, and die, too
    until(lambda: not group(killed.pid), 20)
    kept = lines(torn)
    assert not (torn / "eval.json").exists()

    stopped = started(torn, workers=1)
    until(lambda: len(lines(torn)) > len(kept))
    os.killpg(stopped.pid, signal.SIGINT)  # as a terminal does
    _, error = stopped.communicate(timeout=60)
    assert stopped.returncode == 130, error
    assert "goes on from there" in error
    assert "Traceback" not in error
    until(lambda: not group(stopped.pid), 20)
    assert len(lines(torn)) < UNITS, "too fast for this test: nothing was interrupted"

    assert status_of(*ARGUMENTS, "--out", str(torn)) == 0
    assert lines(torn)[: len(kept)] == kept  # nothing is planned twice
    assert len(lines(torn)) == UNITS
    assert status_of(*ARGUMENTS, "--out", str(whole)) == 0
    assert rows(torn) == rows(whole)
    first = rows(whole)[0]
    assert (first["task"], first["horizon"], first["planner"]) == ("wall", 30, "grasp-paper")
    assert first["errors"] == 0
    assert first["threads"] == 1
    assert {path.name for path in whole.iterdir()} == {
        *("settings.json", "units.jsonl", "eval.json", "eval.csv", "eval.html"),
    }


@pytest.mark.usefixtures("here")
def test_failed_plans_are_shown_and_fail_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise ArithmeticError("<no> way")

    monkeypatch.setattr("grasp_planner.evaluation.worker.plan_unit", refuse)
    assert status_of(*ARGUMENTS, "--out", str(tmp_path)) == 1
    shown = capsys.readouterr()
    assert f"{UNITS}/{UNITS} plans, wall T=30, {UNITS} failed" in shown.err
    assert f"{UNITS} plans could not be made" in shown.err
    assert all(row["errors"] == UNITS / 2 for row in rows(tmp_path))
    assert "ArithmeticError: &lt;no&gt; way" in (tmp_path / "eval.html").read_text()
    # They are results: the same command has nothing left to do, and says the same.
    assert status_of(*ARGUMENTS, "--out", str(tmp_path)) == 1


def test_other_settings_in_the_same_folder_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("grasp_planner.cli.eval.plan_all", interrupted)
    assert status_of(*ARGUMENTS, "--out", str(tmp_path)) == 130
    assert status_of(*ARGUMENTS, "--problems", "11", "--out", str(tmp_path)) == 2
    assert "problems was 10, is 11" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--tasks", "wall,wool"], "unknown task 'wool'"),
        (["--tasks", "wall,wall-single"], "--tasks names wall-single twice"),
        (["--planners", "cem,oracle"], "unknown planner 'oracle'; there are: lifted-newton, cem"),
        (["--horizons", "50,0"], "argument --horizons: must be"),
        (["--horizons", "1"], "longer horizon"),
        (["--problems", "0"], "argument --problems: must be"),
        (["--workers", "none"], "argument --workers: must be"),
        (["--threads", "0"], "argument --threads: must be"),
        (["--seed", "-1"], "argument --seed: must be"),
    ],
)
def test_bad_arguments_are_named(
    arguments: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert status_of(*ARGUMENTS, "--out", str(out), *arguments) == 2
    shown = capsys.readouterr().err
    assert named in shown
    assert "Traceback" not in shown
    assert not out.exists()


def test_a_folder_that_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    file.touch()
    assert status_of(*ARGUMENTS, "--out", str(file)) == 2
    assert "file" in capsys.readouterr().err


def test_help_names_tasks_and_planners(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("--help") == 0
    shown = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "pointmaze-umaze" in shown
    assert "grasp-paper" in shown
    assert "the same command goes on where it stopped" in shown
