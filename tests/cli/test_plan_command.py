"""`grasp plan`, as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from grasp_planner import GraspConfig, cli, tasks
from PIL import Image

# The paper's last sync is short, which is most of the time of a small run.
SMALL = ["--paper", "--problems", "3", "--iterations", "12", "--candidates", "2", "--horizon", "30"]


def status_of(*arguments: str) -> int:
    """The exit status of `grasp ARGUMENTS`, also where argparse raises it."""
    try:
        return cli.main(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)


def test_default_settings_reach_their_goals_in_mujoco(tmp_path: Path) -> None:
    pytest.importorskip("mujoco")
    pytest.importorskip("gymnasium_robotics")
    command = ["plan", "pointmaze-umaze", "--problems", "6", "--seed", "3", "--no-pictures"]
    assert status_of(*command, "--out", str(tmp_path)) == 0
    report = json.loads((tmp_path / "plan.json").read_text())
    assert report["success_environment"] >= 0.6
    assert report["success_model"] >= 0.6
    assert len(report["actions"]) == 6
    assert len(report["actions"][0]) == report["horizon"] == 50


def test_writes_what_it_promises(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*SMALL, "--out", str(tmp_path), "--min-success", "0", "--seed", "4"]
    assert status_of("plan", "wall-single", *arguments) == 0
    report = json.loads((tmp_path / "plan.json").read_text())
    task = tasks.load("wall-single")
    problems = task.sample_problems(3, horizon=30, seed=4)
    actions = torch.tensor(report["actions"])
    assert actions.shape == (3, 30, 2)
    assert bool((actions.abs() <= 1).all())
    # The fractions are those of the actions written, in the real environment and in the model.
    executed = task.execute(actions, problems)
    assert report["success_environment"] == pytest.approx(int(executed.sum()) / 3)
    imagined = task.reached(task.imagine(actions, problems), problems)
    assert report["success_model"] == pytest.approx(int(imagined.sum()) / 3)
    assert report["milliseconds_per_plan"] > 0
    assert report["iterations_per_second"] > 0
    assert report["backend"].split()[0] in ("native", "reference", "triton")
    assert report["device"] == "cpu"
    with Image.open(tmp_path / "plan.png") as picture:
        assert min(picture.size) > 300
    with Image.open(tmp_path / "plan.gif") as film:
        assert film.n_frames > 10  # Pillow merges equal ones
    assert "success in the environment" in capsys.readouterr().out


def test_an_arm_is_planned_and_drawn(tmp_path: Path) -> None:
    pytest.importorskip("mujoco")
    out = ["--out", str(tmp_path), "--min-success", "0"]
    assert status_of("plan", "arm-6", *SMALL, *out) == 0
    report = json.loads((tmp_path / "plan.json").read_text())
    assert len(report["environment_goal"][0]) == 14
    with Image.open(tmp_path / "plan.png") as picture:
        assert min(picture.size) > 300
    assert (tmp_path / "plan.gif").exists()


def test_an_alias_plans_the_task_at_its_own_horizon(tmp_path: Path) -> None:
    arguments = ["--paper", "--problems", "1", "--iterations", "0", "--no-pictures"]
    assert status_of("plan", "wall", *arguments, "--min-success", "0", "--out", str(tmp_path)) == 0
    report = json.loads((tmp_path / "plan.json").read_text())
    assert report["task"] == "wall-single"
    assert report["horizon"] == tasks.task_class("wall").horizons[0]


def test_same_seed_same_plan(tmp_path: Path) -> None:
    reports = []
    for run in "ab":
        out = tmp_path / run
        arguments = [*SMALL, "--no-pictures", "--min-success", "0", "--out", str(out)]
        assert status_of("plan", "wall-single", *arguments) == 0
        reports.append(json.loads((out / "plan.json").read_text())["actions"])
        assert not (out / "plan.png").exists()
    assert reports[0] == reports[1]


def test_too_few_successes_fail_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*SMALL, "--iterations", "0", "--no-pictures", "--min-success", "1"]
    assert status_of("plan", "wall-single", *arguments, "--out", str(tmp_path)) == 1
    assert "--min-success" in capsys.readouterr().err
    assert (tmp_path / "plan.json").exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        *(
            ([flag, value], f"argument {flag}: must be")
            for flag, values in {
                "--horizon": ("0", "ten"),
                "--problems": ("0", "-1", "1.5"),
                "--seed": ("-1", str(2**64)),
                "--candidates": ("0",),
                "--iterations": ("-3",),
                "--max-rows": ("0",),
                "--threads": ("0", "-2"),
                "--min-success": ("nan", "-0.1", "1.01", "inf", "most"),
            }.items()
            for value in values
        ),
        (["--device", "abacus"], "argument --device: 'abacus'"),
        (["--device", "meta"], "argument --device: 'meta'"),
        (["--weights", "/nowhere"], "nowhere"),
        (["--horizon", "1"], "longer horizon"),
    ],
)
def test_bad_arguments_are_named(
    arguments: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["plan", "wall-single", "--horizon", "60", "--no-pictures", "--out", str(out)]
    assert status_of(*command, *arguments) == 2
    shown = capsys.readouterr().err
    assert named in shown
    assert "Traceback" not in shown
    assert not out.exists()


def test_an_output_folder_that_is_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.write_text("kept")
    assert status_of("plan", "wall-single", *SMALL, "--no-pictures", "--out", str(file)) == 2
    assert str(file) in capsys.readouterr().err
    assert file.read_text() == "kept"


@pytest.mark.parametrize("flag", ["--transitions", "--steps", "--evaluation-episodes"])
def test_training_of_nothing_is_refused(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("train", "wall-single", flag, "0") == 2
    assert f"argument {flag}: must be" in capsys.readouterr().err


def test_unknown_task_lists_the_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("plan", "pong") == 2
    assert "pointmaze-umaze" in capsys.readouterr().err


def test_help_names_every_subcommand(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("--help") == 0
    shown = capsys.readouterr().out
    assert "plan" in shown
    assert "train" in shown


def test_help_shows_defaults(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    assert status_of("plan", "--help") == 0
    shown = capsys.readouterr().out
    default, paper = GraspConfig(), GraspConfig.paper()
    assert f"lifted iterations ({default.iterations}; with --paper {paper.iterations})" in shown
    assert "(out/plan)" in shown
    assert status_of("train", "--help") == 0
    shown = capsys.readouterr().out
    assert f"{tasks.task_class('pointmaze-umaze').recipe.steps:,}" in shown
    assert "(out/train-TASK)" in shown


def test_version_is_that_of_the_distribution(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("--version") == 0
    assert capsys.readouterr().out.strip() == f"grasp-kernels {cli.version()}"


def test_version_of_a_bare_source_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "DISTRIBUTION", "no-such-distribution")
    assert cli.version() == "not installed"
