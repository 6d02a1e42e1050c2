"""PointMaze-UMaze of Gymnasium-Robotics, driven as a deterministic function of start and actions.

A ball of radius 0.1 m and 4.2 kg is pushed by two 100 N motors through a U of one-metre corridors.
One action acts for 0.05 s: frame skip 5 of MuJoCo's 0.01 s. The environment clips velocities to
+-5 m/s at the start of each step, so a recorded velocity may exceed 5 by one push.
"""

from __future__ import annotations

import contextlib
import io
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grasp_planner.tasks.geometry import Rectangle, inside
from grasp_planner.tasks.requirements import require

Array = NDArray[np.float64]

ENVIRONMENT_ID = "PointMaze_UMaze-v3"
FRAME_SKIP = 5
STEP_SECONDS = 0.05
BALL_RADIUS = 0.1
SPEED_LIMIT = 5.0

# The map is 5 x 5 cells of 1 m centred on the origin: a frame of walls and a bar from the left.
EXTENT = Rectangle(-2.5, 2.5, -2.5, 2.5)
WALLS = (
    Rectangle(-2.5, 2.5, 1.5, 2.5),
    Rectangle(-2.5, 2.5, -2.5, -1.5),
    Rectangle(-2.5, -1.5, -1.5, 1.5),
    Rectangle(1.5, 2.5, -1.5, 1.5),
    Rectangle(-1.5, 0.5, -0.5, 0.5),
)


def random_positions(generator: np.random.Generator, count: int, margin: float) -> Array:
    """(count, 2), uniform over where the ball's rim keeps `margin` or more from every wall."""
    walls = tuple(wall.inflated(BALL_RADIUS + margin) for wall in WALLS)
    found = np.empty((0, 2))
    while len(found) < count:  # the corridors are 2/3 of the square: a few rounds
        points = generator.uniform(-1.5, 1.5, (2 * count, 2))
        found = np.concatenate((found, points[~inside(walls, points)]))
    return found[:count]


class PointMazeUMaze:
    """State (x, y, vx, vy) in m and m/s; action (2,) in [-1, 1], the motors' share of force."""

    state_features = 4
    action_features = 2

    def __init__(self) -> None:
        gymnasium: Any = require("gymnasium", task="pointmaze-umaze")
        require("mujoco", task="pointmaze-umaze")
        with contextlib.redirect_stderr(io.StringIO()):  # a notice about hand environments
            robotics: Any = require("gymnasium_robotics", task="pointmaze-umaze")
        gymnasium.register_envs(robotics)
        # Neither the episode's end nor its moving target may interfere with an executed plan.
        self._maze: Any = gymnasium.make(
            ENVIRONMENT_ID, continuing_task=True, reset_target=False
        ).unwrapped
        self._point: Any = self._maze.point_env
        self._point.frame_skip = FRAME_SKIP
        if not np.isclose(self._point.dt, STEP_SECONDS):
            raise RuntimeError(
                f"{ENVIRONMENT_ID} steps {self._point.dt} s, expected {STEP_SECONDS} s: "
                "this version of gymnasium-robotics differs from the one the model was trained on"
            )
        if os.path.exists(self._maze.tmp_xml_file_path):  # left behind by the maze's constructor
            os.unlink(self._maze.tmp_xml_file_path)
        self._maze.reset(seed=0)

    def random_states(self, generator: np.random.Generator, count: int) -> Array:
        """(count, 4): anywhere the ball fits, every third time near the bar's end; mostly slow.

        Shortest paths bend at the two corners of the bar's end, where a centimetre decides whether
        the ball catches on the wall; and random pushes alone leave it fast nearly everywhere.
        """
        position = random_positions(generator, count, margin=0.0)
        near = np.empty((0, 2))
        while len(near) < count:
            points = random_positions(generator, 2 * count, margin=0.0)
            bend = np.hypot(points[:, 0] - 0.5, np.abs(points[:, 1]) - 0.5) < 0.35
            near = np.concatenate((near, points[bend]))
        chosen = generator.uniform(size=(count, 1)) < 1 / 3
        position = np.where(chosen, near[:count], position)
        speed = SPEED_LIMIT * generator.uniform(size=(count, 1)) ** 2
        velocity = speed * generator.uniform(-1, 1, (count, 2))
        return np.concatenate((position, velocity), axis=1)

    def simulate(self, start: Array, actions: Array) -> Array:
        """(B, 4), (B, T, 2) -> (B, T+1, 4), float64; the same inputs give the same bits."""
        batch, steps = actions.shape[:2]
        states = np.empty((batch, steps + 1, 4))
        for b in range(batch):
            self._point.reset()  # clears MuJoCo's warm start, which would couple the plans
            self._point.set_state(start[b, :2], start[b, 2:])
            states[b, 0] = start[b]
            for t in range(steps):
                states[b, t + 1] = self._point.step(actions[b, t])[0]
        return states
