"""The adapters beside the packages whose places they take: a pendulum swings up.

    python bench/pendulums.py                                        (make pendulums; minutes)

What docs/adapters.md says of pytorch_mppi and TorchRL. Costs and rewards, not times.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from grasp_planner.adapters.pytorch_mppi import Controller
from torch import Tensor

STARTS = 6


def pendulum(state: Tensor, action: Tensor) -> Tensor:
    """0.05 s of a pendulum: angle from upright, angular velocity; torque within 2."""
    angle, velocity = state[:, :1], state[:, 1:]
    push = 15.0 * angle.sin() + 3.0 * action.clamp(-2.0, 2.0)
    velocity = (velocity + 0.05 * push).clamp(-8.0, 8.0)
    return torch.cat((angle + 0.05 * velocity, velocity), 1)


def upright(state: Tensor, action: Tensor) -> Tensor:
    """The cost of a state: how far from upright it is, and how fast."""
    angle = (state[:, 0] + math.pi) % (2 * math.pi) - math.pi
    return angle.square() + 0.1 * state[:, 1].square()


def costs(make: Any, samples: int, seed: int) -> Tensor:
    """Of each of 100 steps under a controller."""
    torch.manual_seed(seed)
    state = (torch.tensor([math.pi, 1.0]) + 0.3 * torch.randn(2))[None]
    bounds = {"u_min": torch.tensor(-2.0), "u_max": torch.tensor(2.0)}
    driver = make(
        pendulum, upright, 2, torch.eye(1), num_samples=samples, horizon=15, lambda_=1.0, **bounds
    )
    spent = []
    for _ in range(100):
        action = driver.command(state[0])
        state = pendulum(state, action[None])
        spent.append(float(upright(state, action)))
    return torch.tensor(spent)


def beside_pytorch_mppi() -> None:
    from pytorch_mppi import MPPI

    drivers = {
        "pytorch_mppi, 300 samples": (MPPI, 300),
        "Controller, 100 in each": (Controller, 100),
    }
    print(
        f"| {STARTS} starts | cost of 100 steps | of the first 60 |",
        "| --- | --- | --- |",
        sep="\n",
    )
    for name, (make, samples) in drivers.items():
        found = torch.stack([costs(make, samples, seed) for seed in range(STARTS)])
        whole, early = (
            ", ".join(f"{cost:.0f}" for cost in found[:, :steps].sum(1)) for steps in (100, 60)
        )
        print(f"| {name} | {whole} | {early} |")


def reward(planner: Any, env: Any) -> float:
    """The mean of 40 steps from 6 starts."""
    env.set_seed(0)
    torch.manual_seed(0)
    begin = env.reset(env.gen_params(batch_size=[STARTS]), set_state=False)
    rollout = env.rollout(
        40, policy=planner, auto_reset=False, tensordict=begin, break_when_any_done=False
    )
    return float(rollout["next", "reward"].sum((1, 2)).mean())


def beside_torchrl() -> None:
    from grasp_planner.adapters.torchrl import MPCPlanner
    from torchrl.envs import PendulumEnv
    from torchrl.modules.planners import CEMPlanner

    env = PendulumEnv(seed=0)
    print("| horizon | MPCPlanner (iCEM) | TorchRL's CEMPlanner |", "| --: | --: | --: |", sep="\n")
    for horizon in (20, 15, 10):
        ours = MPCPlanner(env, horizon, samples=64, least_samples=64, iterations=3)
        theirs = CEMPlanner(env, horizon, 3, 64, 8)
        print(f"| {horizon} | {reward(ours, env):.1f} | {reward(theirs, env):.1f} |")


if __name__ == "__main__":
    torch.set_num_threads(1)
    beside_pytorch_mppi()
    print()
    beside_torchrl()
