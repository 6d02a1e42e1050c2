from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from grasp_planner import tasks


@pytest.fixture(scope="session", params=tasks.names())
def task(request: pytest.FixtureRequest) -> tasks.Task:
    """Each shipped task with its shipped weights, where its environment can be made."""
    task = tasks.load(request.param)
    try:
        task.environment  # noqa: B018
    except tasks.MissingExtraError as missing:
        pytest.skip(str(missing))
    return task


class Solved(NamedTuple):
    problems: tasks.Problems
    actions: torch.Tensor
    actual: torch.Tensor
    """The environment's states along the expert's actions."""


@pytest.fixture(scope="session")
def solved(task: tasks.Task) -> Solved:
    """Problems and what the expert does about them."""
    problems = task.sample_problems(40, horizon=task.horizons[0], seed=2)
    actions = task.expert_actions(problems)
    return Solved(problems, actions, task.rollout(actions, problems))
