"""Training resumes to the same weights, and the command writes what it promises."""

from __future__ import annotations

import argparse
import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from grasp_planner import tasks
from grasp_planner.cli import train as command
from grasp_planner.interruptible import CheckpointMismatchError, Report, TrainingInterrupted
from grasp_planner.tasks.data import random_actions
from grasp_planner.tasks.training import Recipe, train
from grasp_planner.tasks.wall_single import WallSingleTask

TINY = Recipe(
    transitions=12_000,
    episode_steps=12,
    hidden=8,
    batch=16,
    stages=((1, 60), (2, 60), (3, 60)),
    seed=3,
)


class Killed(BaseException):
    """As rude as SIGKILL: nothing in the training may catch it."""


def weights(folder: Path, **options) -> dict[str, torch.Tensor]:
    return train(WallSingleTask, TINY, folder, **options).state_dict()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    return weights(tmp_path_factory.mktemp("whole"))


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_a_stopped_run_ends_in_the_same_weights(tmp_path, uninterrupted) -> None:
    asked = []

    def stop_in_stage_two() -> bool:
        asked.append(None)
        return len(asked) > 75

    with pytest.raises(TrainingInterrupted):
        weights(tmp_path, should_stop=stop_in_stage_two)
    assert_same(weights(tmp_path), uninterrupted)


@pytest.mark.parametrize(("phase", "at"), [("collect", 4_800), ("train", 50), ("train", 150)])
def test_a_killed_run_ends_in_the_same_weights(tmp_path, uninterrupted, phase, at) -> None:
    def die(where: str, done: int, total: int, loss: float | None) -> None:
        if where == phase and done >= at:
            raise Killed

    with pytest.raises(Killed):
        weights(tmp_path, report=die, checkpoint_seconds=0.02)
    assert_same(weights(tmp_path), uninterrupted)


def test_a_finished_run_is_not_trained_further(tmp_path, uninterrupted) -> None:
    weights(tmp_path)
    seen = []
    again = weights(tmp_path, report=lambda phase, *rest: seen.append(phase))
    assert "train" not in seen
    assert_same(again, uninterrupted)


def test_the_caller_is_not_disturbed_and_does_not_disturb(tmp_path, uninterrupted) -> None:
    threads = torch.get_num_threads()
    torch.manual_seed(99)
    expected = torch.rand(3)
    torch.manual_seed(99)
    np.random.default_rng(0).random()
    assert_same(weights(tmp_path), uninterrupted)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads


def test_another_recipe_is_refused_by_name(tmp_path) -> None:
    weights(tmp_path)
    other = Recipe(**{**TINY.__dict__, "seed": 4})
    with pytest.raises(CheckpointMismatchError, match="seed was 3, now 4"):
        train(WallSingleTask, other, tmp_path)


def test_recipes_scale_and_are_checked() -> None:
    recipe = Recipe(stages=((1, 8), (3, 4), (8, 4)))
    assert recipe.with_steps(160).stages == ((1, 80), (3, 40), (8, 40))
    assert recipe.with_steps(7).steps == 7
    assert [recipe.unroll(step) for step in (0, 7, 8, 11, 12, 15)] == [1, 1, 3, 3, 8, 8]
    with pytest.raises(ValueError, match="must unroll"):
        Recipe(episode_steps=4, stages=((8, 1),))
    with pytest.raises(ValueError, match="less than one episode"):
        Recipe(transitions=3)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        recipe.with_steps(0)


def test_exploration_stays_in_bounds_and_moves() -> None:
    actions, behaviour = random_actions(np.random.default_rng(0), 400, 30, 2)
    assert set(behaviour) == {0, 1, 2, 3}
    assert np.abs(actions).max() <= 1
    assert 0.3 < actions.std() < 0.9
    held = (actions[:, 1:] == actions[:, :-1]).all(-1).mean()
    assert 0.2 < held < 0.7


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    return parser.parse_args(["train", *words])


def test_the_command_writes_weights_card_and_metrics(tmp_path, capsys) -> None:
    words = ["wall-single", "--out", str(tmp_path), "--transitions", "2500", "--steps", "30"]
    words += ["--evaluation-episodes", "20", "--expert-problems", "3"]
    args = parse(*words, "--seed", "2")
    assert args.run(args) == 0
    task = tasks.load("wall-single", weights=tmp_path)
    assert task.world_model.hidden == 128
    card = (tmp_path / "MODEL_CARD.md").read_text()
    content = json.loads((tmp_path / "metrics.json").read_text())
    median = content["errors"]["open_loop"]["position"]["50"]["median"]
    assert f"{median:.4f}" in card
    assert "2,500 transitions" in card
    assert "seed 2" in card
    assert card in capsys.readouterr().out
    other = parse(*words, "--seed", "3")
    assert other.run(other) == 2
    assert "seed was 2, now 3" in capsys.readouterr().err


def test_ctrl_c_keeps_the_work_and_the_same_command_carries_on(
    tmp_path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["wall-single", "--transitions", "2500", "--steps", "150"]
    words += ["--evaluation-episodes", "9", "--expert-problems", "3"]
    plain, cut = (parse(*words, "--out", str(tmp_path / name)) for name in ("plain", "cut"))
    assert plain.run(plain) == 0

    @contextmanager
    def press_ctrl_c_once() -> Iterator[Report]:
        yield (
            lambda phase, done, *rest: (
                signal.raise_signal(signal.SIGINT) if (phase, done) == ("train", 50) else None
            )
        )

    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patched:
        patched.setattr(command, "progress", press_ctrl_c_once)
        assert cut.run(cut) == 130
    assert "stopped after 50 of 150 steps" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is handler
    assert cut.run(cut) == 0
    read = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("plain", "cut")]
    assert read[0] == read[1]
