"""PointMaze-Medium: through a maze with many ways, in MuJoCo."""

from __future__ import annotations

from pathlib import Path

from grasp_planner.tasks.pointmaze import PointMazeTask
from grasp_planner.tasks.pointmaze_medium.environment import MEDIUM
from grasp_planner.tasks.training import Recipe


class PointMazeMediumTask(PointMazeTask):
    """Several turns between start and goal; see `PointMazeTask`."""

    name = "pointmaze-medium"
    folder = Path(__file__).parent
    recipe = Recipe(
        transitions=600_000,
        hidden=192,
        input_gain=4.0,
        stages=((1, 8_000), (3, 6_000), (8, 18_000)),
    )
    map = MEDIUM
    walls = MEDIUM.walls
    extent = MEDIUM.extent
