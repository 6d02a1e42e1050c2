"""`grasp diagnose`, as a user calls and interrupts it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from grasp_planner import NonFiniteWarning, cli, tasks
from grasp_planner.diagnostics import figures, task_report
from grasp_planner.diagnostics.figures import pictures
from grasp_planner.diagnostics.numbers import shown
from grasp_planner.diagnostics.page import SECTIONS, page
from grasp_planner.diagnostics.task_report import PARTS, Asked, chosen_horizons, diagnose, plain
from grasp_planner.diagnostics.words import findings
from grasp_planner.tasks import MissingExtraError

SMALL = ["wall", "--horizon", "20", "--problems", "2", "--horizons", "3"]


def status_of(*arguments: str) -> int:
    """The exit status of `grasp diagnose ARGUMENTS`, also where argparse raises it."""
    try:
        return cli.main(["diagnose", *arguments])
    except SystemExit as stop:
        return int(stop.code or 0)


def strict(path: Path) -> Any:
    """JSON without the NaN and Infinity that JSON does not have."""

    def refuse(name: str) -> None:
        raise AssertionError(name)

    return json.loads(path.read_text(), parse_constant=refuse)


def asked(*parts: str) -> Asked:
    return Asked("gradient", 15, 2, 0, (2, 15), parts)


def test_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = torch.get_num_threads()
    assert status_of(*SMALL, "--planner", "gradient", "--out", str(tmp_path)) == 0
    assert torch.get_num_threads() == before
    report = strict(tmp_path / "diagnose.json")
    assert set(PARTS) <= set(report)
    assert report["not_made"] == {}
    assert report["precision"] == "float64"
    assert {row["horizon"] for row in report["conditioning"]} == {3}
    assert len(report["failures"]) == 2
    document = (tmp_path / "index.html").read_text()
    assert all(title in document for title, *_ in SECTIONS.values())
    assert document.count("data:image/png;base64,") == len(PARTS)
    assert "http" not in document.replace("http-equiv", "")  # it needs nothing else
    printed = capsys.readouterr()
    assert "written to" in printed.out
    assert "conditioning of shooting and of lifting" in printed.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["diagnose.json", "index.html"]


def test_some_parts_of_one_problem(tmp_path: Path) -> None:
    arguments = ["--problems", "1", "--horizon", "15", "--parts", "gradients,distance"]
    assert status_of("wall", *arguments, "--out", str(tmp_path)) == 0
    report = strict(tmp_path / "diagnose.json")
    assert not set(PARTS) - {"gradients", "distance"} & set(report)
    assert len(report["gradients"]["shooting_actions"]) == 3
    assert len(report["distance"]["environment"]["distances"]) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["wall", "--horizon", "10", "--horizons", "5,11"],
            "must be up to the horizon, 10, not 11",
        ),
        (["wall", "--parts", "luck"], "unknown part 'luck'; there are: conditioning, gradients"),
        (["wall", "--planner", "luck"], "unknown planner 'luck'"),
        (["wall", "--horizon", "0"], "must be a whole number of at least 1, not '0'"),
        (["nowhere"], "unknown task 'nowhere'"),
    ],
)
def test_wrong_arguments(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(*arguments, "--out", str(tmp_path / "out")) == 2
    assert words in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("when", ["measuring", "drawing"])
def test_interrupted(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    if when == "drawing":
        monkeypatch.setitem(figures.DRAW, "landscape", stop)
    else:
        monkeypatch.setattr(task_report, "adversarial_steps", stop)
    parts = ["--parts", "adversarial,landscape"]
    assert status_of(*SMALL, *parts, "--out", str(tmp_path / "out")) == 130
    assert "interrupted; nothing is written" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr("grasp_planner.cli.diagnose.importlib.import_module", none)
    assert status_of(*SMALL, "--out", str(tmp_path)) == 2
    message = capsys.readouterr().err
    assert "needs scipy" in message
    assert "pip install 'grasp-kernels[diagnose]'" in message


def test_without_an_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    task = tasks.load("wall")

    def missing(*args: object) -> None:
        raise MissingExtraError("the simulator is not there")

    monkeypatch.setattr(task, "rollout", missing)
    report = diagnose(task, asked("distance", "residuals", "failures"), lambda words: None)
    assert report["success_environment"] is None
    assert "the simulator is not there" in report["not_made"]["residuals"]
    assert report["distance"]["environment"] is None
    report["processor"] = "some"
    document = page(report, pictures(report))
    assert "They were not executed: the simulator is not there" in document
    assert "Not measured" in document


def test_a_part_that_fails_leaves_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(task_report, "landscape", fail)
    report = diagnose(tasks.load("wall"), asked("landscape", "gradients"), lambda words: None)
    assert report["not_made"] == {"landscape": "out of memory"}
    assert "gradients" in report
    report["processor"] = "some"
    assert "The landscape around a plan: out of memory" in page(report, pictures(report))


@pytest.mark.filterwarnings("ignore::grasp_planner.GeneralPathWarning")
def test_a_model_of_nan_is_reported() -> None:
    task = tasks.load("wall")
    with torch.no_grad():
        task.world_model.network[-1].bias.fill_(torch.nan)
    with pytest.warns(NonFiniteWarning):
        report = diagnose(task, asked(*PARTS), lambda words: None)
    assert {one["verdict"] for one in report["failures"]} == {"not finite"}
    assert "no plan has a finite rollout" in report["not_made"]["adversarial"]
    assert "must be finite" in report["not_made"]["conditioning"]
    assert all(slices["non_finite"] for slices in report["landscape"])
    said = findings(report)
    assert "is not finite" in said["gradients"]
    assert "values not finite" in said["landscape"]
    report["processor"] = "some"
    assert "Not measured" in page(report, pictures(report))


def test_the_horizons_of_conditioning() -> None:
    assert chosen_horizons(None, 50) == (5, 10, 20, 50)
    assert chosen_horizons(None, 15) == (5, 10, 15)
    assert chosen_horizons(None, 1) == (1,)
    assert chosen_horizons([20, 5, 5], 50) == (5, 20)


def test_what_json_has_no_word_for_is_null() -> None:
    values = {"a": (1.5, float("nan")), 2: torch.tensor([float("inf"), 1.0])}
    assert plain(values) == {"a": [1.5, None], "2": [None, 1.0]}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.0, "0"),
        (0.0123, "0.012"),
        (12345.6, "12,346"),
        (1.2e7, "1.2e7"),
        (3.4e-9, "3.4e-9"),
        (1e12, "1.0e12"),
        (float("inf"), "infinite"),
        (None, "not finite"),
    ],
)
def test_numbers_for_people(value: float | None, words: str) -> None:
    assert shown(value) == words
