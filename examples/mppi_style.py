"""A pendulum swings up by `command(state)`, as users of pytorch_mppi write it."""

import math

import torch
from grasp_planner import ICEMPlanner, MPPIPlanner
from grasp_planner.adapters.pytorch_mppi import Controller


def dynamics(state, action):
    """0.05 s: angle from upright and angular velocity (K, 2), torque (K, 1)."""
    angle, speed = state[:, 0], state[:, 1]
    speed = (speed + 0.05 * (15.0 * torch.sin(angle) + 3.0 * action[:, 0])).clamp(-8.0, 8.0)
    return torch.stack((angle + 0.05 * speed, speed), dim=1)


def running_cost(state, action):
    angle = (state[:, 0] + math.pi) % (2 * math.pi) - math.pi
    return angle**2 + 0.1 * state[:, 1] ** 2


for planner in (MPPIPlanner, ICEMPlanner):
    controller = Controller(
        dynamics,
        running_cost,
        nx=2,
        noise_sigma=torch.eye(1),
        num_samples=100,
        horizon=15,
        u_max=2.0,
        planner=planner,
        iterations=3,
    )
    state, total = torch.tensor([math.pi, 1.0]), 0.0
    for _ in range(100):
        action = controller.command(state)
        state = dynamics(state[None], action[None])[0]
        total += float(running_cost(state[None], action[None]))
    print(f"{planner.__name__}: cost {total:.0f}, at the end cos(angle) = {math.cos(state[0]):.3f}")
