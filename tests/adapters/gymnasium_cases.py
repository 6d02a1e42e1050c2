"""Small Gymnasium environments, and what an evaluation should find in them, by hand."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from grasp_planner import MPC, CEMConfig, CEMPlanner, Planner
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from torch import Tensor

STEPS, NEAR = 11, 0.25


def model(state: Tensor, action: Tensor) -> Tensor:
    """`Slide` without its wind, in sums and products alone: each row's bits are its own."""
    return state + 0.2 * action


def planner(**changes: Any) -> Planner:
    settings: dict[str, Any] = {"horizon": 6, "action_features": 2, "action_low": -1.0}
    settings |= {"action_high": 1.0, "samples": 32, "iterations": 3, "running_goal_weight": 1.0}
    return CEMPlanner(model, CEMConfig(**{**settings, **changes}))


class Slide(gymnasium.Env):
    """A point in the wind, to a goal: over when near, or after 11 steps."""

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 (Gymnasium's own)
    _box = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    observation_space = spaces.Dict(
        {"observation": _box, "achieved_goal": _box, "desired_goal": _box}
    )
    action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.at, self.goal = self.np_random.uniform(-1, 1, (2, 2)).astype(np.float32)
        self.steps = 0
        return self.seen(), {"target": self.goal.copy()}

    def seen(self) -> dict[str, Any]:
        return {"observation": self.at, "achieved_goal": self.at, "desired_goal": self.goal}

    def step(self, action: Any) -> Any:
        assert action in self.action_space
        assert self.steps is not None, "a step after the end"
        wind = 0.05 * self.np_random.standard_normal(2)
        self.at = (self.at + 0.2 * action + wind).astype(np.float32)
        self.steps += 1
        away = float(np.abs(self.at - self.goal).max())
        near, late = away < NEAR, self.steps >= STEPS
        info = {"is_success": near, "steps": self.steps}
        if near or late:
            self.steps = None
        return self.seen(), -away, near, late, info


class Plain(VectorEnv):
    """A vector environment that can only be reset as a whole, as many are that are not Gymnasium's.

    It has no vectors of flags for its infos either, which are of all environments at once.
    """

    def __init__(self, count: int, mode: AutoresetMode) -> None:
        self._inside = SyncVectorEnv([Slide] * count, autoreset_mode=mode)
        self.num_envs, self.metadata = count, {"autoreset_mode": mode}
        for name in ("single_action_space", "action_space", "single_observation_space"):
            setattr(self, name, getattr(self._inside, name))
        self.observation_space = self._inside.observation_space

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        assert options is None
        assert isinstance(seed, int)
        return self._inside.reset(seed=seed)

    def step(self, actions: Any) -> Any:
        return self._inside.step(actions)


def slides(count: int, mode: AutoresetMode | str = AutoresetMode.NEXT_STEP) -> SyncVectorEnv:
    return SyncVectorEnv([Slide] * count, autoreset_mode=mode)


def by_hand(
    plans: Planner, episodes: int, *, seed: int, streams: int | None = None, **settings: Any
) -> list[tuple[float, int, bool]]:
    """Returns, lengths and successes, one environment and one controller per episode.

    With `streams`, as many environments that were seeded once.
    """
    found, worlds = [], {}
    for k in range(episodes):
        if streams is None or k < streams:
            worlds[k if streams is None else k % streams] = world = Slide()
            seen, _ = world.reset(seed=seed + k)
        else:
            world = worlds[k % streams]
            seen, _ = world.reset()
        controller = MPC(plans, environment_ids=[k], **settings)
        total, over, good = 0.0, False, False
        length = 0
        while not over:
            state, goal = (torch.from_numpy(seen[n])[None] for n in ("observation", "desired_goal"))
            seen, reward, near, late, info = world.step(
                controller.act(state, goal).actions[0].numpy()
            )
            total, length, good = total + reward, length + 1, good or info["is_success"]
            over = near or late
        found.append((total, length, bool(good)))
    return found
