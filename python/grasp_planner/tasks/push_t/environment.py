"""gym-pusht, driven as a deterministic function of start and actions, and a hand that pushes.

A disc, the agent, pushes a T-shaped block over a square table of about 500 px. The agent is pulled
to a target by a PD controller and feels nothing; the block moves only while it is pushed (velocity
is damped away at once) and slides along the agent and the walls without friction. y points down.

One action acts for two steps of gym-pusht, 0.2 s: it sets the target, once, to the agent's position
plus `REACH` times the action, clamped to the table. So the agent obeys linear arithmetic,
`agent_dynamics`, and full throttle is about 20 px a step.
"""

from __future__ import annotations

import cmath
import contextlib
import io
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from grasp_planner.tasks.data import Array
from grasp_planner.tasks.requirements import require

ENVIRONMENT_ID = "gym_pusht/PushT-v0"
STEPS_PER_ACTION = 2
STEP_SECONDS = 0.2
_SUBSTEPS, _SUBSTEP_SECONDS = 20, 0.01
_STIFFNESS, _DAMPING = 100.0, 20.0

REACH = 30.0
"""px between the agent and the farthest target, along each axis."""
TARGET_LOW, TARGET_HIGH = 20.0, 491.0
"""Targets are clamped to where the agent's rim is about at the walls."""
WALL_LOW, WALL_HIGH = 7.0, 504.0
"""Faces of the walls, px."""
TABLE_CENTRE = 255.5
"""Of both coordinates."""
AGENT_RADIUS = 15.0
BLOCK_CENTRE = (0.0, 45.0)
"""Centre of gravity in the block's own coordinates, whose origin is the middle of the T's top."""
BAR = (-60.0, 60.0, -45.0, -15.0)
STEM = (-15.0, 15.0, -15.0, 75.0)
"""(x_min, x_max, y_min, y_max) of the T's two rectangles about the centre of gravity."""
BLOCK_ARM = 75.0
"""px from the centre of gravity to the T's corners (to the stem's, 1.5 px more)."""

STATE_NAMES = ("x", "y", "vx", "vy", "block x", "block y", "block cos", "block sin")


def agent_dynamics(substeps: int = _SUBSTEPS) -> Array:
    """(2, 2): what holding a target does to (position - target, velocity) along one axis."""
    h = _SUBSTEP_SECONDS
    # Velocity first, then position with the new velocity, as gym-pusht and pymunk do it.
    push = np.array([[1.0, 0.0], [-_STIFFNESS * h, 1.0 - _DAMPING * h]])
    drift = np.array([[1.0, h], [0.0, 1.0]])
    return np.asarray(np.linalg.matrix_power(drift @ push, substeps))


def block_angle(states: Array) -> Array:
    """(..., 8) -> (...): radians in (-pi, pi]."""
    return np.arctan2(states[..., 7], states[..., 6])


def turned(vectors: Array, angle: Array | float) -> Array:
    """(..., 2) turned by `angle` (...)."""
    cos, sin = np.cos(angle), np.sin(angle)
    x, y = vectors[..., 0], vectors[..., 1]
    return np.stack((cos * x - sin * y, sin * x + cos * y), axis=-1)


class Hand:
    """Pushes the block about: circles it to some side, drives through it, chooses another side.

    Call it with a state (8,) for the next action (2,). It draws from its generator when it is made
    and when it changes its mind. Points are complex numbers: to turn is to multiply.
    """

    _ORBIT = 112.0  # px from the block's centre: 20 more than what touches
    _FAR = 60.0  # px from the table's middle: a block farther out is not pushed outwards

    def __init__(self, generator: np.random.Generator) -> None:
        self._generator = generator
        self._speed = generator.uniform(0.3, 1.0)
        self._side, self._offset, self._left = 1 + 0j, 0.0, 0

    def __call__(self, state: Array) -> Array:
        x, y, _, _, block_x, block_y, cos, sin = state.tolist()
        heading = complex(cos, sin)
        outward = complex(block_x - TABLE_CENTRE, block_y - TABLE_CENTRE)
        agent = complex(x - block_x, y - block_y) / heading
        if self._left <= 0:
            self._choose(agent, outward / heading)
        ahead = agent / self._side  # on the real axis, the side to push from
        beside = ahead - 1j * self._offset
        if ahead.real > 0 and abs(beside.imag) < 0.35 * beside.real:
            self._left -= 1
            goal = complex(ahead.real - 60.0, self._offset)
        else:
            turn = cmath.phase(ahead) - math.asin(self._offset / self._ORBIT)
            goal = self._ORBIT * ahead / abs(ahead) * cmath.exp(-1j * max(-0.5, min(0.5, turn)))
        move = (goal - ahead) * self._side * heading / REACH
        move *= self._speed / max(1.0, abs(move.real), abs(move.imag))
        return np.array((move.real, move.imag), np.float32).astype(np.float64)

    def _choose(self, agent: complex, outward: complex) -> None:
        """Draws another push, rather from near the agent and rather towards the table's middle."""
        bearing = cmath.phase(agent) + self._generator.normal(0, 1.0)
        self._side = cmath.exp(1j * bearing)
        if abs(outward) > self._FAR and (self._side * outward.conjugate()).real < 0:
            self._side = -self._side
        self._offset = self._generator.uniform(-60, 60)
        self._left = int(self._generator.integers(4, 16))


def _replay(actions: Array) -> Callable[[Array], Array]:
    """(T, 2), one after the other, whatever the state."""
    rows = iter(actions)
    return lambda state: next(rows)


class PushT:
    """State `STATE_NAMES` in px, px/s and the cosine and sine of the block's angle.

    The block's position is that of its centre of gravity. Action (2,) in [-1, 1].
    """

    state_features = 8
    action_features = 2

    def __init__(self) -> None:
        gymnasium: Any = require("gymnasium", task="push-t")
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pygame greets, and looks for an old package
            require("gym_pusht", task="push-t")
        self._world: Any = gymnasium.make(ENVIRONMENT_ID, disable_env_checker=True).unwrapped
        world, substeps = self._world, STEPS_PER_ACTION / (self._world.dt * self._world.control_hz)
        found = (world.k_p, world.k_v, world.dt, round(substeps))
        if found != (_STIFFNESS, _DAMPING, _SUBSTEP_SECONDS, _SUBSTEPS):
            raise RuntimeError(
                f"{ENVIRONMENT_ID} has other physics, {found}, than the one the model was trained "
                f"on, {(_STIFFNESS, _DAMPING, _SUBSTEP_SECONDS, _SUBSTEPS)} (stiffness, damping, "
                "seconds a substep, substeps an action)"
            )

    def random_states(
        self, generator: np.random.Generator, count: int, *, beside: float = 0.9
    ) -> Array:
        """(count, 8): the block anywhere on the table, the agent mostly beside it and moving.

        Beside it is where things happen: a share `beside` start within 30 px of touching, so that
        actions which know nothing of the block push it often enough.
        """
        angle = generator.uniform(-np.pi, np.pi, count)
        states = np.empty((count, 8))
        low, high = WALL_LOW + BLOCK_ARM, WALL_HIGH - BLOCK_ARM
        states[:, 4:6] = generator.uniform(low, high, (count, 2))
        states[:, 6], states[:, 7] = np.cos(angle), np.sin(angle)
        states[:, 2:4] = generator.uniform(-1, 1, (count, 2)) * generator.uniform(0, 90, (count, 1))
        reach = np.where(generator.uniform(size=count) < beside, 30.0, 1000.0)
        missing = np.arange(count)
        while len(missing):
            block = states[missing, 4:6]
            around = reach[missing, None] + 90.0
            agent = generator.uniform(
                np.maximum(block - around, TARGET_LOW), np.minimum(block + around, TARGET_HIGH)
            )
            gap = block_distance(turned(agent - block, -angle[missing])) - AGENT_RADIUS
            states[missing, :2] = agent
            missing = missing[(gap <= 0) | (gap > reach[missing])]
        return states

    def simulate(self, start: Array, actions: Array) -> Array:
        """(B, 8), (B, T, 2) -> (B, T+1, 8), float64; the same inputs give the same bits."""
        batch, steps = actions.shape[:2]
        states = np.empty((batch, steps + 1, 8))
        for b in range(batch):
            states[b], _ = self.episode(start[b], steps, _replay(actions[b]))
        return states

    def episode(
        self, start: Array, steps: int, act: Callable[[Array], Array]
    ) -> tuple[Array, Array]:
        """States (T+1, 8) and actions (T, 2) of a closed loop: `act` answers each state (8,)."""
        states, actions = np.empty((steps + 1, 8)), np.empty((steps, 2))
        self._place(start)
        states[0] = start
        for t in range(steps):
            actions[t] = act(states[t])
            self._advance(states[t, :2], actions[t])
            states[t + 1] = self._state()
        return states, actions

    def _place(self, state: Array) -> None:
        world = self._world
        world._setup()  # a new space: pymunk remembers contacts, which would couple the episodes
        angle = float(block_angle(state))
        corner = state[4:6] - turned(np.array(BLOCK_CENTRE), angle)
        # Setting an angle turns the block about its centre, setting a position moves its origin:
        # in this order both stay. gym-pusht's own reset has them the other way round.
        world.block.angle = angle
        world.block.position = (float(corner[0]), float(corner[1]))
        world.agent.position = (float(state[0]), float(state[1]))
        world.agent.velocity = (float(state[2]), float(state[3]))
        world.space.reindex_shapes_for_body(world.block)

    def _advance(self, position: Array, action: Array) -> None:
        """`STEPS_PER_ACTION` times the environment's `step`, without its costly reward."""
        target = np.clip(position + REACH * np.clip(action, -1, 1), TARGET_LOW, TARGET_HIGH)
        target_x, target_y = float(target[0]), float(target[1])
        agent, space, h = self._world.agent, self._world.space, _SUBSTEP_SECONDS
        for _ in range(_SUBSTEPS):
            (x, y), (vx, vy) = agent.position, agent.velocity
            vx += h * (_STIFFNESS * (target_x - x) - _DAMPING * vx)
            vy += h * (_STIFFNESS * (target_y - y) - _DAMPING * vy)
            agent.velocity = (vx, vy)
            space.step(h)

    def _state(self) -> Array:
        agent, block = self._world.agent, self._world.block
        centre = block.local_to_world(BLOCK_CENTRE)
        angle = block.angle
        return np.array([*agent.position, *agent.velocity, *centre, np.cos(angle), np.sin(angle)])


def outline(states: Array) -> Array:
    """(..., 8) -> (..., 8, 2): the corners of the T on the table, in order."""
    (left, right, top, shoulder), (stem_left, stem_right, _, bottom) = BAR, STEM
    corners = np.array([
        (left, top), (right, top), (right, shoulder), (stem_right, shoulder),
        (stem_right, bottom), (stem_left, bottom), (stem_left, shoulder), (left, shoulder),
    ])  # fmt: skip
    angle = block_angle(states)[..., None]
    return np.asarray(states[..., None, 4:6] + turned(corners, angle))


def off_walls(states: Array) -> bool:
    """(..., 8): the block keeps a pixel from every wall, in all of the states."""
    corners = outline(states)
    return bool(corners.min() >= WALL_LOW + 1.0 and corners.max() <= WALL_HIGH - 1.0)


def block_distance(points: Array) -> Array:
    """(..., 2) in the block's frame -> (...): px to the T, negative inside."""
    return np.minimum(_rectangle_distance(points, BAR), _rectangle_distance(points, STEM))


def _rectangle_distance(points: Array, sides: tuple[float, float, float, float]) -> Array:
    x = np.maximum(sides[0] - points[..., 0], points[..., 0] - sides[1])
    y = np.maximum(sides[2] - points[..., 1], points[..., 1] - sides[3])
    outside = np.hypot(np.maximum(x, 0), np.maximum(y, 0))
    return np.asarray(outside + np.minimum(np.maximum(x, y), 0))
