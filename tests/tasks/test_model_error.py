"""The shipped weights are as good as their model card says, on episodes nobody has seen."""

from __future__ import annotations

import json

import pytest
from grasp_planner import tasks
from grasp_planner.tasks.card import render
from grasp_planner.tasks.evaluation import evaluate

#: Median 50-step open-loop position error over all behaviours; map units.
PROMISED = {"pointmaze-umaze": 0.04, "wall-single": 0.002}


@pytest.fixture(scope="session")
def fresh(task: tasks.Task) -> dict:
    return evaluate(
        task.world_model,
        task.environment,
        groups=task.feature_groups,
        clearance=task.clearance,
        near_wall=task.near_wall,
        episodes=200,
        seed=4242,
    )


def test_errors_on_fresh_episodes_match_the_card(task: tasks.Task, fresh: dict) -> None:
    stated = json.loads((task.folder / "metrics.json").read_text())["errors"]
    for kind in ("one_step", "one_step_near_wall"):
        for group, summary in stated[kind].items():
            assert fresh[kind][group]["mean"] < 1.3 * summary["mean"], (kind, group)
    for group, horizons in stated["open_loop"].items():
        for horizon, summary in horizons.items():  # 200 episodes: medians are noisy
            measured = fresh["open_loop"][group][horizon]["median"]
            assert measured < 1.5 * summary["median"], (group, horizon)
            assert measured > summary["median"] / 1.5, (group, horizon)
    assert fresh["open_loop"]["position"]["50"]["median"] < 1.2 * PROMISED[task.name]


def test_the_card_is_the_metrics(task: tasks.Task) -> None:
    content = json.loads((task.folder / "metrics.json").read_text())
    assert (task.folder / "MODEL_CARD.md").read_text() == render(type(task), content)
    assert content["errors"]["open_loop"]["position"]["50"]["median"] <= PROMISED[task.name]
