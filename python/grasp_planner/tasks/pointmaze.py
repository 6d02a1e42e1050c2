"""PointMaze of Gymnasium-Robotics, driven as a deterministic function of start and actions.

A ball of radius 0.1 m and 4.2 kg is pushed by two 100 N motors through corridors of one metre. One
action acts for 0.05 s: frame skip 5 of MuJoCo's 0.01 s. The environment clips velocities to +-5 m/s
at the start of each step, so a recorded velocity may exceed 5 by one push.
"""

from __future__ import annotations

import contextlib
import io
import os
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from grasp_planner.tasks.data import Array, DataEnvironment
from grasp_planner.tasks.geometry import Rectangle, inside
from grasp_planner.tasks.maze import MazeTask
from grasp_planner.tasks.requirements import require

FRAME_SKIP = 5
STEP_SECONDS = 0.05
BALL_RADIUS = 0.1
SPEED_LIMIT = 5.0


@dataclass(frozen=True)
class Map:
    """A maze of one-metre cells, centred on the origin."""

    environment_id: str
    task: str
    walls: tuple[Rectangle, ...]
    half_width: float
    """Of the square that holds the corridors."""
    bends: tuple[tuple[float, float], ...]
    """Corners of walls that shortest paths bend at."""

    @property
    def extent(self) -> Rectangle:
        """The corridors and the frame of walls around them."""
        half = self.half_width + 1
        return Rectangle(-half, half, -half, half)

    def random_positions(self, generator: np.random.Generator, count: int, margin: float) -> Array:
        """(count, 2), uniform over where the ball's rim keeps `margin` or more from every wall."""
        walls = tuple(wall.inflated(BALL_RADIUS + margin) for wall in self.walls)
        found = np.empty((0, 2))
        while len(found) < count:  # corridors are half of the square or more: a few rounds
            points = generator.uniform(-self.half_width, self.half_width, (2 * count, 2))
            found = np.concatenate((found, points[~inside(walls, points)]))
        return found[:count]

    def near_bends(self, points: Array) -> Array:
        """(B, 2) -> (B,) bool."""
        offset = points[:, None] - np.array(self.bends)
        return np.asarray(np.hypot(offset[..., 0], offset[..., 1]).min(1) < 0.35)


class PointMaze:
    """State (x, y, vx, vy) in m and m/s; action (2,) in [-1, 1], the motors' share of force."""

    state_features = 4
    action_features = 2

    def __init__(self, maze: Map) -> None:
        gymnasium: Any = require("gymnasium", task=maze.task)
        require("mujoco", task=maze.task)
        with contextlib.redirect_stderr(io.StringIO()):  # a notice about hand environments
            robotics: Any = require("gymnasium_robotics", task=maze.task)
        gymnasium.register_envs(robotics)
        # Neither the episode's end nor its moving target may interfere with an executed plan.
        self._maze: Any = gymnasium.make(
            maze.environment_id, continuing_task=True, reset_target=False
        ).unwrapped
        self._point: Any = self._maze.point_env
        self._point.frame_skip = FRAME_SKIP
        if not np.isclose(self._point.dt, STEP_SECONDS):
            raise RuntimeError(
                f"{maze.environment_id} steps {self._point.dt} s, expected {STEP_SECONDS} s: "
                "this version of gymnasium-robotics differs from the one the model was trained on"
            )
        if os.path.exists(self._maze.tmp_xml_file_path):  # left behind by the maze's constructor
            os.unlink(self._maze.tmp_xml_file_path)
        self._maze.reset(seed=0)
        self._map = maze

    def random_states(self, generator: np.random.Generator, count: int) -> Array:
        """(count, 4): anywhere the ball fits, every third time near a bend; mostly slow.

        Shortest paths bend at corners, where a centimetre decides whether the ball catches on the
        wall; and random pushes alone leave it fast nearly everywhere.
        """
        position = self._map.random_positions(generator, count, margin=0.0)
        near = np.empty((0, 2))
        while len(near) < count:
            points = self._map.random_positions(generator, 2 * count, margin=0.0)
            near = np.concatenate((near, points[self._map.near_bends(points)]))
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


class PointMazeTask(MazeTask):
    """State (x, y, vx, vy) in m and m/s, action (2,) in [-1, 1], 0.05 s a step.

    The success radius is Gymnasium-Robotics' own, 0.45 m. It looks large beside corridors of 1 m,
    but for the ball's centre two corridors are 1.2 m apart, and goals near the few places where
    they are not are refused, so nobody succeeds through a wall; and unlike the environment's flag
    it is asked of the final state only. `goal_distance` gives the metres.
    """

    map: ClassVar[Map]
    environment_features = 4
    state_names = ("x", "y", "vx", "vy")
    feature_groups: ClassVar = {"position": (0, 1), "velocity": (2, 3)}
    unit = "m"
    units: ClassVar = {"velocity": "m/s"}
    step_seconds = STEP_SECONDS
    body_radius = BALL_RADIUS
    success_radius = 0.45
    near_wall = 0.1
    _stride = 2.5 * STEP_SECONDS  # half of the speed limit: corners cost a stop
    _clearance = 0.05

    @classmethod
    def make_environment(cls) -> DataEnvironment:
        return PointMaze(cls.map)

    @classmethod
    def random_positions(cls, generator: np.random.Generator, count: int, margin: float) -> Array:
        return cls.map.random_positions(generator, count, margin)

    @staticmethod
    def push(offset: Array, states: Array) -> Array:
        return (5 * offset - states[:, 2:]) * 0.8
