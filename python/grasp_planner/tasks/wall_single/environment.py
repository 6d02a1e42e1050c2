"""Wall-Single: a point in a square room, a wall across it, one door.

The room is [-1, 1]². The wall stands on x = 0, 0.1 thick, with a door at y in [0.35, 0.75] that
never moves, so the state is the position alone. An action in [-1, 1]² moves the point by up to 0.04
along each axis, in 4 equal substeps, x before y; a substep that would enter the wall or leave the
room stops at the surface, and the other axis slides on. Nothing is random.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from grasp_planner.tasks.geometry import Rectangle, inside

Array = NDArray[np.float64]

STEP = 0.04
SUBSTEPS = 4
DOOR = (0.35, 0.75)
HALF_THICKNESS = 0.05
EXTENT = Rectangle(-1.0, 1.0, -1.0, 1.0)
# Beyond the room, so that nobody who slides along its border passes under the wall or over it.
WALLS = (
    Rectangle(-HALF_THICKNESS, HALF_THICKNESS, -1.5, DOOR[0]),
    Rectangle(-HALF_THICKNESS, HALF_THICKNESS, DOOR[1], 1.5),
)


def random_positions(generator: np.random.Generator, count: int, margin: float) -> Array:
    """(count, 2), uniform over the places `margin` or more from the walls and the border."""
    walls = tuple(wall.inflated(margin) for wall in WALLS)
    found = np.empty((0, 2))
    while len(found) < count:
        points = generator.uniform(-1 + margin, 1 - margin, (2 * count, 2))
        found = np.concatenate((found, points[~inside(walls, points)]))
    return found[:count]


def _move(position: Array, step: Array, axis: int) -> Array:
    """One substep along one axis, stopped at the first surface. (B, 2), (B,) -> (B, 2)."""
    moved = position.copy()
    moved[:, axis] = np.clip(position[:, axis] + step, -1.0, 1.0)
    for wall in WALLS:  # a substep (0.01) is shorter than any wall is thick: none is jumped over
        entered = wall.contains(moved)
        low, high = (wall.x_min, wall.x_max) if axis == 0 else (wall.y_min, wall.y_max)
        surface = np.where(step > 0, low, high)
        moved[:, axis] = np.where(entered, surface, moved[:, axis])
    return moved


class WallSingle:
    """State (x, y) in map units; action (2,) in [-1, 1]; a batch is simulated at once."""

    state_features = 2
    action_features = 2

    def random_states(self, generator: np.random.Generator, count: int) -> Array:
        """(count, 2): half anywhere, half within reach of the wall and the door."""
        anywhere = random_positions(generator, count, margin=0.0)
        near = np.empty((0, 2))
        while len(near) < count:
            points = random_positions(generator, 4 * count, margin=0.0)
            near = np.concatenate((near, points[np.abs(points[:, 0]) < 0.3]))
        return np.where(generator.uniform(size=(count, 1)) < 0.5, anywhere, near[:count])

    def simulate(self, start: Array, actions: Array) -> Array:
        """(B, 2), (B, T, 2) -> (B, T+1, 2), float64."""
        states = np.empty((len(start), actions.shape[1] + 1, 2))
        states[:, 0] = position = np.array(start, dtype=np.float64)
        substeps = np.clip(actions, -1.0, 1.0) * (STEP / SUBSTEPS)
        for t in range(actions.shape[1]):
            for _ in range(SUBSTEPS):
                position = _move(position, substeps[:, t, 0], axis=0)
                position = _move(position, substeps[:, t, 1], axis=1)
            states[:, t + 1] = position
        return states
