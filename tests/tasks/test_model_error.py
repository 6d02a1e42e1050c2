"""The shipped weights are as good as their model card says, on episodes nobody has seen."""

from __future__ import annotations

import json

import pytest
from grasp_planner import tasks
from grasp_planner.tasks.card import render
from grasp_planner.tasks.evaluation import evaluate

#: Median 50-step open-loop error of the quantity that goals are about, over all behaviours.
PROMISED = {
    "wall-single": ("position", 0.002),
    "pointmaze-umaze": ("position", 0.04),
    "pointmaze-medium": ("position", 0.11),
    "arm-6": ("tip", 0.01),
    "arm-20": ("tip", 0.012),
    "push-t": ("block position", 0.5),
}


@pytest.fixture(scope="session")
def fresh(task: tasks.Task) -> dict:
    return evaluate(task, episodes=200, seed=4242)


def test_errors_on_fresh_episodes_match_the_card(task: tasks.Task, fresh: dict) -> None:
    stated = json.loads((task.folder / "metrics.json").read_text())["errors"]
    for kind in {"one_step", "one_step_hard"} & stated.keys():
        for group, summary in stated[kind].items():
            assert fresh[kind][group]["mean"] < 1.3 * summary["mean"], (kind, group)
    # In half of Push-T's episodes hardly anything is touched: their median is nearly 0.
    typical = "p90" if task.name == "push-t" else "median"
    for group, horizons in stated["open_loop"].items():
        for horizon, summary in horizons.items():  # 200 episodes: medians are noisy
            measured = fresh["open_loop"][group][horizon][typical]
            assert measured < 2 * summary[typical], (group, horizon)
            assert measured > summary[typical] / 2, (group, horizon)


def test_the_card_is_the_metrics_and_keeps_the_promise(task: tasks.Task) -> None:
    content = json.loads((task.folder / "metrics.json").read_text())
    assert (task.folder / "MODEL_CARD.md").read_text() == render(type(task), content)
    assert content["sizes"] == task.world_model.sizes
    if task.name in PROMISED:
        group, bound = PROMISED[task.name]
        assert content["errors"]["open_loop"][group]["50"]["median"] <= bound
    for shares in content["expert"]["horizons"].values():
        assert shares["environment"] >= 0.95
        assert shares["model"] >= 0.9
