"""`grasp train-surrogate`, as a user calls it, and the surrogates that are shipped."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from grasp_planner import cli, tasks
from grasp_planner.cli import train_surrogate as command
from grasp_planner.interruptible import Report
from grasp_planner.tasks.surrogates import (
    CARD_FILE,
    SURROGATE_FILE,
    default_recipe,
    fingerprint,
    measure_surrogate,
    save_surrogate,
)

SHIPPED = ("wall-single", "wall-pixels", "pointmaze-umaze")


def status_of(*arguments: str) -> int:
    """The exit status of `grasp train-surrogate ARGUMENTS`, also where argparse raises it."""
    try:
        return cli.main(["train-surrogate", *arguments])
    except SystemExit as stop:
        return int(stop.code or 0)


def test_writes_weights_and_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("wall", "--out", str(tmp_path), "--steps", "60")
    assert status_of(*words, "--seed", "2") == 0
    card = (tmp_path / CARD_FILE).read_text()
    assert "60 steps of AdamW" in card
    assert "seed 2" in card
    assert card in capsys.readouterr().out
    task = tasks.load("wall-single")
    surrogate = task.surrogate(tmp_path)
    (first, *_) = measure_surrogate(task, surrogate, seed=2)
    assert f"| 0 | {first['error']:.3f} | {first['median']:.3f} |" in card
    assert not surrogate.training
    # Another recipe is not mixed into the folder.
    assert status_of(*words, "--seed", "3") == 2
    assert "seed was 2, now 3" in capsys.readouterr().err


def test_ctrl_c_keeps_the_work_and_the_same_command_carries_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("wall-single", "--steps", "120", "--out")
    assert status_of(*words, str(tmp_path / "plain")) == 0

    @contextmanager
    def press_ctrl_c_once() -> Iterator[Report]:
        yield (
            lambda phase, done, *rest: (
                signal.raise_signal(signal.SIGINT) if (phase, done) == ("train", 50) else None
            )
        )

    with monkeypatch.context() as patched:
        patched.setattr(command, "progress", press_ctrl_c_once)
        assert status_of(*words, str(tmp_path / "cut")) == 130
    assert "stopped after 50 of 120 steps; the same command" in capsys.readouterr().err
    assert status_of(*words, str(tmp_path / "cut")) == 0
    read = [(tmp_path / name / SURROGATE_FILE).read_bytes() for name in ("plain", "cut")]
    assert read[0] == read[1]


def test_bad_values_are_refused_by_the_name_of_their_flag(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for words, message in (
        (("wall", "--steps", "0"), "--steps"),
        (("wall", "--seed", "-1"), "--seed"),
        (("nowhere",), "unknown task 'nowhere'"),
    ):
        assert status_of(*words) == 2
        assert message in capsys.readouterr().err


def test_another_world_model_and_another_task_are_refused(tmp_path: Path) -> None:
    task = tasks.load("wall-single")
    with pytest.raises(FileNotFoundError, match=r"no surrogate at .*grasp train-surrogate wall-s"):
        task.surrogate(tmp_path)
    save_surrogate(task.surrogate(), tmp_path, task=task)
    for name, value in task.surrogate(tmp_path).state_dict().items():
        assert torch.equal(value, task.surrogate().state_dict()[name])
    with pytest.raises(ValueError, match="a surrogate of 'wall-single', not of 'pointmaze-umaze'"):
        tasks.load("pointmaze-umaze").surrogate(tmp_path)
    before = fingerprint(task.world_model)
    with torch.no_grad():
        task.world_model.network[0].bias[0] += 1e-6
    assert fingerprint(task.world_model) != before
    with pytest.raises(ValueError, match="belongs to another world model of wall-single"):
        task.surrogate(tmp_path)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_surrogates_are_what_their_cards_say(name: str) -> None:
    task = tasks.load(name)
    try:
        task.environment  # noqa: B018
    except tasks.MissingExtraError as missing:
        pytest.skip(str(missing))
    surrogate = task.surrogate()
    card = (task.folder / CARD_FILE).read_text()
    assert (task.folder / SURROGATE_FILE).stat().st_size < 500_000
    assert f"{default_recipe(name).steps:,} steps" in card
    assert fingerprint(task.world_model) in card
    rows = re.findall(r"^\| ([\d.]+) \| (.*) \|$", card, re.MULTILINE)
    measured = measure_surrogate(task, surrogate)
    assert len(rows) == len(measured) == 5
    for (noise, numbers), found in zip(rows, measured, strict=True):
        assert float(noise) == found["noise"]
        named = [value for key, value in found.items() if key != "noise"]
        written = [float(number) for number in numbers.split(" | ")]
        # Other processors and thread counts round otherwise; a broken one would be far off.
        assert written == pytest.approx(named, abs=2e-3, rel=2e-2)
    clean, *_, far = measured
    assert clean["error"] < clean["identity"]
    assert clean["cosine"] > 0.9
    assert far["from_data"] < far["exact_from_data"]
    assert far["gain"] < far["exact_gain"]
