"""Gymnasium's vector environments, whose rows begin and end episodes each for itself.

However a vector environment resets itself (`AutoresetMode`), `Environments` shows the same: an
episode's last observation and info after its last step, and its successor's first ones after
`begin`. Symbols: N environments, A action features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from grasp_planner.tasks.requirements import require


class Environments:
    """N environments, all in their first episodes; the first of `seed`, the next of `seed` + 1, ...

    Attributes:
        count: N.
        seeded: whether `begin` can reset rows alone, and so by a seed.
        observation: N rows, as the environment returns them.
        infos: for each environment what it last said under each name in its episode.
        resetting: `(N,)` bool, whose next step is no step but a reset.
    """

    def __init__(self, env: Any, seed: int, action: Callable[[Tensor], Any] | None) -> None:
        gymnasium: Any = require("gymnasium", task="grasp_planner.evaluate")
        vector: Any = require("gymnasium.vector", task="grasp_planner.evaluate")
        if isinstance(env, gymnasium.Env):
            env = vector.SyncVectorEnv([lambda single=env: single])
            env.closed = True  # or it would close what it did not open when it is forgotten
        if not isinstance(env, vector.VectorEnv):
            raise TypeError(
                "env must be a gymnasium.vector.VectorEnv or a gymnasium.Env, "
                f"got {type(env).__name__}"
            )
        self.env, self.seed, self.action = env, seed, action
        self.space: Any = env.single_action_space
        box = isinstance(self.space, gymnasium.spaces.Box) and self.space.dtype.kind == "f"
        if action is None and not box:
            raise TypeError(
                f"actions are floating numbers, and env takes {self.space}: give action"
            )
        Mode = vector.AutoresetMode
        self.mode = Mode(env.metadata.get("autoreset_mode", Mode.NEXT_STEP)).name
        ours = (vector.SyncVectorEnv, vector.AsyncVectorEnv)
        self.seeded = self.mode == "DISABLED" or isinstance(env.unwrapped, ours)
        self.count: int = env.num_envs
        self.observation, infos = env.reset(seed=seed)
        self.infos = _by_row(infos, self.count)
        self.resetting = np.zeros(self.count, dtype=np.bool_)
        self._over = self.resetting.copy()  # episodes that have ended, and no other begun
        self._first = self.observation, self.infos  # of the episodes that began with the last step
        self._given: Any = None

    def step(
        self, actions: Tensor | None, active: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rewards, and who has terminated and been truncated: `(N,)` each.

        Rows that are not `active` are stepped too, for there is no other way, and mean nothing; if
        none is, there are no actions.
        """
        if self.mode == "DISABLED" and self._over.any():  # which must not be stepped
            self.env.reset(options={"reset_mask": self._over.copy()})
        if actions is not None:
            self._given = self._executable(actions, active)
        found, reward, terminated, truncated, given = self.env.step(self._given)
        said = _by_row(given, self.count)
        over = (terminated | truncated) & ~self.resetting
        self.observation = found
        for i, info in enumerate(said):
            if self.mode == "SAME_STEP" and over[i]:
                last, end = info.pop("final_obs"), info.pop("final_info", {})
                self.observation = _replaced(self.observation, i, last)
                self.infos[i] = {**self.infos[i], **end}
            else:
                self.infos[i] = info if self.resetting[i] else {**self.infos[i], **info}
        self._first = found, said
        self._over, self.resetting = over, np.zeros_like(over)
        return np.asarray(reward, dtype=np.float64), terminated, truncated

    def begin(self, rows: np.ndarray, episodes: np.ndarray) -> None:
        """The environments `rows (N,)` bool begin `episodes (N,)`."""
        if self.mode == "NEXT_STEP" and not self.seeded:
            self.resetting = rows.copy()
            return
        if self.seeded:
            seeds = [
                self.seed + int(k) if mine else None for k, mine in zip(episodes, rows, strict=True)
            ]
            found, infos = self.env.reset(seed=seeds, options={"reset_mask": rows.copy()})
            self._first = found, _by_row(infos, self.count)
        self.observation, first = self._first
        self.infos = [first[i] if rows[i] else self.infos[i] for i in range(self.count)]
        self._over &= ~rows

    def _executable(self, actions: Tensor, active: np.ndarray) -> Any:
        """What `env.step` takes."""
        if self.action is not None:
            return self.action(actions)
        space, width = self.space, math.prod(self.space.shape)
        if actions.shape[1] != width:
            raise ValueError(
                f"the planner's actions have {actions.shape[1]} features, and env takes "
                f"{space.shape}: give action"
            )
        wanted = actions.double().cpu().numpy().reshape(-1, *space.shape).astype(space.dtype)
        wanted[~active] = np.clip(0.0, space.low, space.high)
        inside = ((wanted >= space.low) & (wanted <= space.high)).reshape(-1, width).all(1)
        if not inside.all():
            raise ValueError(
                f"the planned action {wanted[~inside][0]} is outside of env's {space}: set the "
                "config's action_low and action_high, or give action"
            )
        return wanted


def _by_row(infos: Any, count: int) -> list[dict[str, Any]]:
    """The infos of each of `count` environments: of all it said, masked by names with a "_"."""
    if isinstance(infos, (list, tuple)):  # a wrapper has done it
        return [dict(info) for info in infos]
    return [_row(infos, i) for i in range(count)]


def _row(infos: Mapping[str, Any], i: int) -> dict[str, Any]:
    row = {}
    for name, value in infos.items():
        mask = infos.get(f"_{name}")
        if (name.startswith("_") and name[1:] in infos) or (mask is not None and not mask[i]):
            continue
        if isinstance(value, Mapping):
            value = _row(value, i)
        elif isinstance(value, (list, tuple)) or getattr(value, "ndim", 0) > 0:
            value = value[i]
        row[name] = value  # a single number or word is said to all of them
    return row


def _replaced(observation: Any, i: int, row: Any) -> Any:
    """Observations whose row i is another; the given ones stay as they are."""
    if isinstance(observation, Mapping):
        return {name: _replaced(value, i, row[name]) for name, value in observation.items()}
    if isinstance(observation, tuple) and isinstance(row, tuple):
        return tuple(_replaced(a, i, b) for a, b in zip(observation, row, strict=True))
    if isinstance(observation, tuple):  # of a space without batches
        return (*observation[:i], row, *observation[i + 1 :])
    changed = observation.copy()
    changed[i] = row
    return changed
