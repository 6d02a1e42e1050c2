"""Whole episodes of a Gymnasium environment: CEM swings up four pendulums by a model of its own."""

# needs: gymnasium

import grasp_planner
import gymnasium
import torch
from grasp_planner import MPC, CEMConfig, CEMPlanner


def pendulum(state, action):
    """The state is what is observed: cos, sin and angular velocity. 0.05 s a step."""
    cos, sin, speed = state.unbind(-1)
    speed = (speed + 0.05 * (15.0 * sin + 3.0 * action[:, 0])).clamp(-8.0, 8.0)
    turn = 0.05 * speed
    moved = (cos * turn.cos() - sin * turn.sin(), sin * turn.cos() + cos * turn.sin(), speed)
    return torch.stack(moved, -1)


def against_reward(states, actions):
    """Minus the environment's reward, over states (N, T + 1, 3) and actions (N, T, 1)."""
    angle = torch.atan2(states[..., 1], states[..., 0])[:, :-1]
    reward = angle.square() + 0.1 * states[:, :-1, 2].square() + 0.001 * actions[..., 0].square()
    return reward.sum(1)


config = CEMConfig(
    horizon=15,
    action_features=1,
    action_low=-2.0,
    action_high=2.0,
    samples=64,
    iterations=4,
    cost=against_reward,
)
controller = MPC(CEMPlanner(pendulum, config), execute=2)
pendulums = gymnasium.make_vec("Pendulum-v1", num_envs=4)
result = grasp_planner.evaluate(
    pendulums,
    controller,
    episodes=4,
    max_steps=100,
    success=lambda observation, infos: observation[:, 0] > 0.95,  # upright, once
)
print(result)
for number, total, success in zip(result.episodes, result.returns, result.success, strict=True):
    print(f"episode {number}: return {total:.1f}, {'upright' if success else 'not upright'}")
pendulums.close()
