"""A planar arm in MuJoCo: a chain of hinges, pushed by velocity servos, without gravity.

The links are `1 / joints` long, weigh 0.05 kg together and pass through each other. All hinges have
the same limit to either side; bent fully one way, they turn the arm once around. Servos drive the
joints towards the commanded velocities, with a lag of 0.0125 s of their own, and a bit more where
they carry each other. Near its limit a servo holds against it: it takes `bend * (angle / bend)**7`
off the commanded velocity, nothing in mid-range and all of the fastest at the limit, so that the
hard stop is hardly ever met; a joint left alone leaves the margin again. One action acts for
0.05 s: frame skip 5 of 0.01 s.

The state describes links, not joints: the direction of each link in the plane, how fast it turns,
and where the tip is. A link's share in the tip's motion then depends on that link alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from grasp_planner.tasks.data import Array
from grasp_planner.tasks.requirements import require

TIMESTEP = 0.01
FRAME_SKIP = 5
STEP_SECONDS = 0.05
_MASS = 0.05  # of all links, kg
_ARMATURE = 0.25  # of a joint's gears, kg m2
_GAIN = 20.0  # of a joint's servo, N m s / rad
_STOP = 7  # an odd power: how late and how hard a servo holds against the joint's limit


def limit(joints: int) -> float:
    """How far each joint turns to either side, rad; its fastest speed, rad/s, is the same."""
    return float(2 * np.pi / joints)


def push_back(angles: Array) -> Array:
    """The velocities, rad/s, that servos take off the commanded ones: all of it at a limit."""
    bend = limit(angles.shape[-1])
    return np.asarray(bend * (angles / bend) ** _STOP)


def link_points(directions: Array) -> Array:
    """Link directions (..., n) -> (..., n+1, 2): the hinges from the base at 0, then the tip."""
    links = np.stack((np.cos(directions), np.sin(directions)), axis=-1) / directions.shape[-1]
    return np.concatenate((np.zeros_like(links[..., :1, :]), np.cumsum(links, axis=-2)), axis=-2)


def states_of(angles: Array, velocities: Array) -> Array:
    """Of the joints, both (..., n) -> (..., 2n+2)."""
    directions, rates = np.cumsum(angles, axis=-1), np.cumsum(velocities, axis=-1)
    return np.concatenate((directions, rates, link_points(directions)[..., -1, :]), axis=-1)


def joints_of(states: Array) -> tuple[Array, Array]:
    """(..., 2n+2) -> angles and velocities of the joints, both (..., n)."""
    links = states.shape[-1] // 2 - 1
    directions, rates = states[..., :links], states[..., links : 2 * links]
    return np.diff(directions, axis=-1, prepend=0), np.diff(rates, axis=-1, prepend=0)


def resembling(generator: np.random.Generator, values: Array) -> Array:
    """(B, ..., n) -> the same: each joint's value resembles its neighbour's, more in some rows.

    Independent joints cancel out: an arm of many hardly moves, and never coils.
    """
    memory = generator.uniform(size=(len(values), *[1] * (values.ndim - 2)))
    mixed = np.array(values)
    for joint in range(1, values.shape[-1]):
        mixed[..., joint] *= np.sqrt(1 - memory**2)
        mixed[..., joint] += memory * mixed[..., joint - 1]
    return mixed


def random_angles(generator: np.random.Generator, count: int, joints: int) -> Array:
    """(count, n), about uniform within the limits, from zigzags to coils."""
    bend = resembling(generator, generator.standard_normal((count, joints)))
    return limit(joints) * np.tanh(1.3 * bend)


def _xml(joints: int) -> str:
    length, mass, bend = 1 / joints, _MASS / joints, limit(joints)
    bodies, servos = "", ""
    for joint in reversed(range(joints)):
        bodies = (
            f'<body pos="{length if joint else 0} 0 0"><joint name="j{joint}" axis="0 0 1" '
            f'limited="true" range="{-bend} {bend}" armature="{_ARMATURE}"/>'
            f'<geom type="capsule" fromto="0 0 0 {length} 0 0" size="0.01" mass="{mass}"/>'
            f"{bodies}</body>"
        )
        servos = f'<velocity joint="j{joint}" kv="{_GAIN}"/>{servos}'
    return (
        f'<mujoco><compiler angle="radian"/>'
        f'<option timestep="{TIMESTEP}" gravity="0 0 0" integrator="implicitfast">'
        f'<flag contact="disable"/></option>'
        f"<worldbody>{bodies}</worldbody><actuator>{servos}</actuator></mujoco>"
    )


class Arm:
    """State (directions, rates, tip), 2n+2 numbers in rad, rad/s and arm lengths.

    Action (n,) in [-1, 1]: the commanded velocities of the joints, as shares of the fastest.
    """

    def __init__(self, joints: int) -> None:
        self._mujoco: Any = require("mujoco", task=f"arm-{joints}")
        self._model: Any = self._mujoco.MjModel.from_xml_string(_xml(joints))
        self._data: Any = self._mujoco.MjData(self._model)
        self.state_features = 2 * joints + 2
        self.action_features = joints

    def random_states(self, generator: np.random.Generator, count: int) -> Array:
        """(count, 2n+2): any posture, mostly slow."""
        joints = self.action_features
        speed = limit(joints) * generator.uniform(size=(count, 1)) ** 2
        velocities = resembling(generator, generator.uniform(-1, 1, (count, joints)))
        return states_of(random_angles(generator, count, joints), speed * velocities)

    def simulate(self, start: Array, actions: Array) -> Array:
        """(B, 2n+2), (B, T, n) -> (B, T+1, 2n+2), float64; the same inputs give the same bits."""
        (batch, steps, joints), data = actions.shape, self._data
        angles, velocities = np.empty((2, batch, steps + 1, joints))
        angles[:, 0], velocities[:, 0] = joints_of(start)
        commands = limit(joints) * np.clip(actions, -1, 1)
        for b in range(batch):
            self._mujoco.mj_resetData(self._model, data)  # its warm start would couple the plans
            data.qpos[:], data.qvel[:] = angles[b, 0], velocities[b, 0]
            for t in range(steps):
                data.ctrl[:] = commands[b, t] - push_back(angles[b, t])
                self._mujoco.mj_step(self._model, data, FRAME_SKIP)
                angles[b, t + 1], velocities[b, t + 1] = data.qpos, data.qvel
        return states_of(angles, velocities)
