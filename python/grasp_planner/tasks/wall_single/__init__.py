"""Wall-Single: through the door of a wall, in the plane."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np

from grasp_planner.tasks.data import Array, DataEnvironment
from grasp_planner.tasks.maze import MazeTask
from grasp_planner.tasks.training import Recipe
from grasp_planner.tasks.wall_single import environment


class WallSingleTask(MazeTask):
    """State (x, y) in a room of [-1, 1]², action (2,) in [-1, 1] moves up to 0.04 along each axis.

    The success radius is half of the wall's thickness: no goal is reached through the wall.
    """

    name = "wall-single"
    folder = Path(__file__).parent
    recipe = Recipe(stages=((1, 20_000), (3, 12_000), (5, 16_000)))
    environment_features = 2
    state_names: ClassVar[tuple[str, ...]] = ("x", "y")
    feature_groups: ClassVar = {"position": (0, 1)}
    step_seconds = None
    unit = "map units"
    walls = environment.WALLS
    extent = environment.EXTENT
    body_radius = 0.0
    success_radius = environment.HALF_THICKNESS
    near_wall = environment.STEP
    _norm = "chebyshev"
    _stride = 0.75 * environment.STEP  # a quarter of the time is left for detours and mistakes
    _clearance = 0.05

    @classmethod
    def make_environment(cls) -> DataEnvironment:
        return environment.WallSingle()

    @classmethod
    def random_positions(cls, generator: np.random.Generator, count: int, margin: float) -> Array:
        return environment.random_positions(generator, count, margin)

    @staticmethod
    def push(offset: Array, states: Array) -> Array:
        return offset / environment.STEP
