"""`grasp plan`, as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from grasp_planner import cli, tasks
from PIL import Image

SMALL = ["--problems", "3", "--iterations", "12", "--candidates", "2", "--horizon", "60"]


def test_writes_what_it_promises(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = cli.main(
        ["plan", "wall-single", *SMALL, "--out", str(tmp_path), "--min-success", "0", "--seed", "4"]
    )
    assert status == 0
    report = json.loads((tmp_path / "plan.json").read_text())
    task = tasks.load("wall-single")
    problems = task.sample_problems(3, horizon=60, seed=4)
    actions = torch.tensor(report["actions"])
    assert actions.shape == (3, 60, 2)
    assert bool((actions.abs() <= 1).all())
    # The fractions are those of the actions written, in the real environment and in the model.
    executed = task.execute(actions, problems)
    assert report["success_environment"] == pytest.approx(int(executed.sum()) / 3)
    imagined = task.reached(task.imagine(actions, problems), problems)
    assert report["success_model"] == pytest.approx(int(imagined.sum()) / 3)
    assert report["milliseconds_per_plan"] > 0
    assert report["iterations_per_second"] > 0
    assert report["backend"].split()[0] in ("native", "reference", "triton")
    with Image.open(tmp_path / "plan.png") as picture:
        assert min(picture.size) > 300
    with Image.open(tmp_path / "plan.gif") as film:
        assert film.n_frames > 60
    assert "success in the environment" in capsys.readouterr().out


def test_same_seed_same_plan(tmp_path: Path) -> None:
    reports = []
    for run in "ab":
        out = tmp_path / run
        arguments = [*SMALL, "--no-pictures", "--min-success", "0", "--out", str(out)]
        cli.main(["plan", "wall-single", *arguments])
        reports.append(json.loads((out / "plan.json").read_text())["actions"])
        assert not (out / "plan.png").exists()
    assert reports[0] == reports[1]


def test_too_few_successes_fail_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--iterations", "0", "--problems", "2", "--candidates", "1", "--no-pictures"]
    status = cli.main(
        [
            "plan",
            "wall-single",
            *arguments,
            "--horizon",
            "60",
            "--min-success",
            "1.01",
            "--out",
            str(tmp_path),
        ]
    )
    assert status == 1
    assert "--min-success" in capsys.readouterr().err
    assert (tmp_path / "plan.json").exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--horizon", "0"], "horizon"),
        (["--problems", "-1"], "count"),
        (["--candidates", "0"], "candidates"),
        (["--iterations", "-3"], "iterations"),
        (["--max-rows", "0"], "max_rows"),
        (["--weights", "/nowhere"], "nowhere"),
    ],
)
def test_bad_arguments_are_named(
    arguments: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["plan", "wall-single", "--horizon", "60", *arguments, "--out", str(tmp_path)]
    status = cli.main(command)
    assert status == 2
    assert named in capsys.readouterr().err


def test_unknown_task_lists_the_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["plan", "pong"])
    assert exit_info.value.code == 2
    assert "pointmaze-umaze" in capsys.readouterr().err


def test_help_names_every_subcommand(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    shown = capsys.readouterr().out
    assert "plan" in shown
    assert "train" in shown
