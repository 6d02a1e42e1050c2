"""What the tasks with walls promise beyond what every task does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from grasp_planner import tasks
from grasp_planner.tasks.geometry import crosses
from grasp_planner.tasks.maze import MazeTask


@pytest.fixture
def maze(task: tasks.Task) -> MazeTask:
    if not isinstance(task, MazeTask):
        pytest.skip("no walls")
    return task


def test_problems_are_blocked_and_leave_room_for_the_body(maze: MazeTask) -> None:
    problems = maze.sample_problems(200, horizon=50, seed=0)
    ends = (problems.environment_start, problems.environment_goal)
    start, goal = (state.double().numpy() for state in ends)
    assert crosses(maze.walls, start[:, :2], goal[:, :2]).all()
    assert (maze.clearance(start) > 0).all()
    assert (maze.clearance(goal) > 0).all()
    assert (start[:, 2:] == 0).all()
    assert (goal[:, 2:] == 0).all()


def test_nobody_arrives_through_a_wall(maze: MazeTask) -> None:
    problems = maze.sample_problems(60, horizon=50, seed=7)
    goal = problems.environment_goal[:, :2].double().numpy()
    places = maze.random_positions(np.random.default_rng(0), 20_000, margin=0.0)
    for point in goal:
        near = places[np.hypot(*(places - point).T) <= maze.success_radius]
        way = maze.roadmap.distance(np.broadcast_to(point, near.shape), near)
        # Through a wall it would be near by air and far by road; round a corner it is not.
        assert (way <= 2.5 * maze.success_radius).all()


def test_walls_stop_the_body(maze: MazeTask) -> None:
    problems = maze.sample_problems(20, horizon=50, seed=4)
    generator = torch.Generator().manual_seed(0)
    push = torch.randn(20, 50, maze.action_features, generator=generator).sign()
    states = maze.rollout(push, problems).flatten(0, 1).double().numpy()
    assert maze.clearance(states).min() > -0.05  # MuJoCo's contacts give a little


def test_the_map_is_drawable(maze: MazeTask) -> None:
    for wall in maze.walls:
        assert wall.x_min < wall.x_max
        assert wall.y_min < wall.y_max
        assert maze.extent.x_min <= wall.x_min
        assert wall.x_max <= maze.extent.x_max


def test_the_map_is_the_environments() -> None:
    """Medium's walls are those that MuJoCo has."""
    pytest.importorskip("gymnasium_robotics")
    task = tasks.task_class("pointmaze-medium")
    cells = np.array(task.make_environment()._maze.maze.maze_map)
    points = np.array([(x + 0.5, y + 0.5) for y in range(3, -5, -1) for x in range(-4, 4)])
    free = task.clearance(points) > 0
    assert (free.reshape(8, 8) == (cells == 0)).all()
