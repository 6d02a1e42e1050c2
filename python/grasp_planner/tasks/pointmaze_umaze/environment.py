"""PointMaze-UMaze: a U of corridors around a bar; see `tasks/pointmaze.py`."""

from __future__ import annotations

from grasp_planner.tasks.geometry import Rectangle
from grasp_planner.tasks.pointmaze import Map

# 5 x 5 cells: a frame of walls and a bar from the left.
UMAZE = Map(
    environment_id="PointMaze_UMaze-v3",
    task="pointmaze-umaze",
    walls=(
        Rectangle(-2.5, 2.5, 1.5, 2.5),
        Rectangle(-2.5, 2.5, -2.5, -1.5),
        Rectangle(-2.5, -1.5, -1.5, 1.5),
        Rectangle(1.5, 2.5, -1.5, 1.5),
        Rectangle(-1.5, 0.5, -0.5, 0.5),
    ),
    half_width=1.5,
    bends=((0.5, 0.5), (0.5, -0.5)),
)
