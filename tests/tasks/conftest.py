from __future__ import annotations

import pytest
from grasp_planner import tasks


@pytest.fixture(scope="session", params=tasks.names())
def task(request: pytest.FixtureRequest) -> tasks.Task:
    """Each shipped task with its shipped weights."""
    if request.param == "pointmaze-umaze":
        pytest.importorskip("mujoco")
        pytest.importorskip("gymnasium_robotics")
    return tasks.load(request.param)
