"""PointMaze-Medium: through a maze with many ways, in MuJoCo."""

from __future__ import annotations

from pathlib import Path

from grasp_planner.tasks.pointmaze import STEP_SECONDS, PointMazeTask
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
        learning_rate=6e-3,
        stages=((1, 8_000), (3, 6_000), (8, 14_000)),
    )
    map = MEDIUM
    walls = MEDIUM.walls
    extent = MEDIUM.extent
    _stride = 2.2 * STEP_SECONDS  # it has more corners than UMaze
    _berth = 0.2  # half-way from the wall to the middle of the corridor
