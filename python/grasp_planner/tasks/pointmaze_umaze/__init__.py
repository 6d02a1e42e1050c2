"""PointMaze-UMaze: round the bar of a U, in MuJoCo."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np

from grasp_planner.tasks.data import Array, DataEnvironment
from grasp_planner.tasks.pointmaze_umaze import environment
from grasp_planner.tasks.task import Task
from grasp_planner.tasks.training import Recipe


class PointMazeUMazeTask(Task):
    """State (x, y, vx, vy) in m and m/s, action (2,) in [-1, 1], 0.05 s a step.

    The success radius is Gymnasium-Robotics' own, 0.45 m. It looks large beside corridors of 1 m,
    but for the ball's centre two corridors are 1.2 m apart, so nobody succeeds through a wall; and
    unlike the environment's flag it is asked of the final state only. `goal_distance` gives the
    metres.
    """

    name = "pointmaze-umaze"
    folder = Path(__file__).parent
    recipe = Recipe(stages=((1, 6_000), (3, 5_000), (8, 10_000)))
    state_names = ("x", "y", "vx", "vy")
    feature_groups: ClassVar = {"position": (0, 1), "velocity": (2, 3)}
    step_seconds = environment.STEP_SECONDS
    unit = "m"
    walls = environment.WALLS
    extent = environment.EXTENT
    body_radius = environment.BALL_RADIUS
    success_radius = 0.45
    near_wall = 0.1
    _stride = 2.5 * environment.STEP_SECONDS  # half of the speed limit: corners cost a stop
    _clearance = 0.05

    @staticmethod
    def make_environment() -> DataEnvironment:
        return environment.PointMazeUMaze()

    @classmethod
    def random_positions(cls, generator: np.random.Generator, count: int, margin: float) -> Array:
        return environment.random_positions(generator, count, margin)
