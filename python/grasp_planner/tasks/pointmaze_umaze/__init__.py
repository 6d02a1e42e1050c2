"""PointMaze-UMaze: round the bar of a U, in MuJoCo."""

from __future__ import annotations

from pathlib import Path

from grasp_planner.tasks.pointmaze import PointMazeTask
from grasp_planner.tasks.pointmaze_umaze.environment import UMAZE
from grasp_planner.tasks.training import Recipe


class PointMazeUMazeTask(PointMazeTask):
    """A bar between start and goal; see `PointMazeTask`."""

    name = "pointmaze-umaze"
    folder = Path(__file__).parent
    recipe = Recipe(stages=((1, 6_000), (3, 5_000), (8, 10_000)))
    map = UMAZE
    walls = UMAZE.walls
    extent = UMAZE.extent
