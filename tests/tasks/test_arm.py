"""What the arms promise beyond what every task does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from grasp_planner import tasks
from grasp_planner.tasks.arm import ArmTask
from grasp_planner.tasks.arm.environment import joints_of, limit, link_points, states_of


@pytest.fixture(scope="module", params=["arm-6", "arm-20"])
def arm(request: pytest.FixtureRequest) -> ArmTask:
    pytest.importorskip("mujoco")
    task = tasks.load(request.param)
    assert isinstance(task, ArmTask)
    return task


def test_states_are_those_of_the_joints() -> None:
    angles, velocities = np.random.default_rng(0).uniform(-1, 1, (2, 5, 6))
    back = joints_of(states_of(angles, velocities))
    assert np.allclose(back[0], angles)
    assert np.allclose(back[1], velocities)
    bent = states_of(np.array([np.pi / 2, -np.pi / 2]), np.array([1.0, 2.0]))
    assert np.allclose(bent, [np.pi / 2, 0, 1, 3, 0.5, 0.5])
    assert np.allclose(link_points(bent[:2]), [[0, 0], [0, 0.5], [0.5, 0.5]])


def test_mujoco_agrees_where_the_tip_is(arm: ArmTask) -> None:
    environment = arm.environment
    states = environment.random_states(np.random.default_rng(1), 3)
    for state in environment.simulate(states, np.zeros((3, 1, arm.joints)))[:, -1]:
        data = environment._data
        data.qpos[:] = joints_of(state)[0]
        environment._mujoco.mj_kinematics(environment._model, data)
        last = data.body(arm.joints)
        tip = last.xpos + last.xmat.reshape(3, 3)[:, 0] / arm.joints
        assert np.allclose(tip[:2], state[-2:], atol=1e-9)


def test_joints_keep_their_limits(arm: ArmTask) -> None:
    problems = arm.sample_problems(3, horizon=50, seed=0)
    states = arm.rollout(torch.ones(3, 50, arm.joints), problems).double().numpy()
    bend = joints_of(states)[0] / limit(arm.joints)
    assert np.abs(bend).max() < 1.05
    assert bend[:, -1].min() > 0.95  # and all of their range


def test_greedy_steering_fails_in_the_real_environment(arm: ArmTask) -> None:
    problems = arm.sample_problems(30, horizon=50, seed=3)
    states, goal = problems.environment_start.double().numpy(), problems.goal[:, -2:].numpy()
    for _ in range(50):
        points = link_points(states[:, : arm.joints])
        arms, gap = points[:, -1:] - points[:, :-1], goal[:, None] - points[:, -1:]
        gain = arms[..., 0] * gap[..., 1] - arms[..., 1] * gap[..., 0]
        close = np.minimum(1.0, 10 * np.hypot(gap[..., 0], gap[..., 1]))
        push = close * gain / np.abs(gain).max(-1, keepdims=True)
        states = arm.environment.simulate(states, push[:, None])[:, -1]
    arrived = arm.environment_reached(torch.from_numpy(states).float(), problems)
    assert arrived.float().mean() <= 0.2
