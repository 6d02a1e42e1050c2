"""What an evaluation's planner sees: states and goals in the world model's terms, each made once.

Symbols: N environments, n of them, D state features, A action features, H states that the world
model looks at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grasp_planner.adapters.gymnasium_vector import Environments
from grasp_planner.goals import Anywhere, Goal
from grasp_planner.latents import LatentModel
from grasp_planner.mpc import MPC, State, goal_differs
from grasp_planner.world_model import frozen, module_of

NO_GOAL = (
    'there is no goal: observation has no "desired_goal", goal is None, and the config has no cost'
)


class View:
    """Observations become states, windows of states, and goals; see `evaluate` for arguments."""

    def __init__(
        self,
        controller: MPC,
        count: int,
        observe: Callable[[Any], Any] | None,
        goal: Any,
        encode: Callable[[Any], Any] | None,
    ) -> None:
        if not (goal is None or callable(goal) or isinstance(goal, (str, Goal, Tensor, Mapping))):
            raise TypeError(
                "goal must be a name, a function, a Goal, a Tensor or a dict of them, "
                f"got {type(goal).__name__}"
            )
        self.count = count  # N
        self.observe, self.encode, self.goal = observe, encode, goal
        model: Any = controller.planner.world_model
        self.apart = controller.repeat  # environment steps from one state of a window to the next
        self.history = model.history if isinstance(model, LatentModel) else 1
        self.has_cost = controller.planner.config.cost is not None
        module = module_of(model)
        weights = (
            [] if module is None else [p for p in module.parameters() if p.is_floating_point()]
        )
        self.like = weights[0].detach() if weights else torch.empty(0)
        self._states: Any = None  # (N, (H - 1) apart + 1, ...), the newest last
        self._actions: Tensor | None = None  # (N, (H - 1) apart, A), that led to them
        self._raw_goal: Any = None
        self._goal: Any = None

    def look(
        self, environments: Environments, active: np.ndarray, begins: np.ndarray
    ) -> tuple[Any, Any, dict[str, Tensor]]:
        """State, goal and past actions for `MPC.act`.

        Of `active (N,)` bool environments alone an observation is encoded; the windows of those
        where `begins (N,)` hold the first state H times.
        """
        seen = self._tensors("observe", self._observed(environments.observation))
        fresh, where = torch.from_numpy(begins), torch.from_numpy(active)
        states = self._encoded(seen, where, into=_each(lambda s: s[:, -1], self._states))
        length = (self.history - 1) * self.apart + 1

        def window(new: Tensor, old: Tensor | None) -> Tensor:
            still = new[:, None].expand(-1, length, *new.shape[1:])
            if old is None:
                return still.clone()
            moved = torch.cat((old[:, 1:], new[:, None]), 1)
            return torch.where(_beside(fresh, moved), still, moved)

        self._states = _each(window, states, self._states)
        if self._actions is not None:
            self._actions = torch.where(_beside(fresh, self._actions), 0.0, self._actions)
        goal = self._goals(environments, where, states)
        if self.history == 1:
            return states, goal, {}
        given = {}
        if self._actions is not None:
            given["past_actions"] = self._actions[:, :: self.apart]
        return _each(lambda s: s[:, :: self.apart], self._states), goal, given

    def remember(self, actions: Tensor) -> None:
        """Actions `(N, A)` are executed."""
        length = (self.history - 1) * self.apart
        if length:
            old = self._actions
            if old is None:
                old = actions.new_zeros(len(actions), length, actions.shape[1])
            self._actions = torch.cat((old[:, 1:], actions[:, None]), 1)

    def _observed(self, observation: Any) -> Any:
        if self.observe is not None:
            return self.observe(observation)
        if not isinstance(observation, Mapping):
            return observation
        if "observation" in observation:
            return observation["observation"]
        raise TypeError(f"observation has the entries {list(observation)}: give observe")

    def _goals(self, environments: Environments, active: Tensor, states: State) -> State | Goal:
        observation, infos, given = environments.observation, environments.infos, self.goal
        entries = observation if isinstance(observation, Mapping) else {}
        if callable(given):
            given = given(observation, infos)
        elif isinstance(given, str) and given in entries:
            given = entries[given]
        elif isinstance(given, str):
            missing = [i for i, info in enumerate(infos) if given not in info]
            if missing:
                known = [*entries, *sorted(infos[missing[0]])]
                raise ValueError(f"goal is {given!r}, which is in none of {known}")
            given = np.stack([info[given] for info in infos])
        elif given is None and "desired_goal" in entries:
            given = entries["desired_goal"]
        count = len(active)
        if given is None:
            if not self.has_cost:
                raise ValueError(NO_GOAL)
            return Anywhere()
        if isinstance(given, Goal):
            return given
        if _is_tensors(given):  # the world model's own
            return _each(lambda g: g.expand(count, -1) if g.dim() == 1 else g, given)
        raw = self._tensors("goal", given)
        changed = active & goal_differs(raw, self._raw_goal, active).cpu()
        if changed.any():
            self._goal = self._encoded(raw, changed, into=self._goal)
        self._raw_goal = raw
        if isinstance(self._goal, Tensor) and isinstance(states, Tensor):
            wanted, width = states.shape[1], self._goal.shape[1]
            if width != wanted:
                raise ValueError(
                    f"goal must have D = {wanted} features as a state, got {width}: give a "
                    "function that makes a state or a Goal of it, such as a Subset"
                )
        return self._goal

    def _tensors(self, name: str, value: Any) -> Any:
        """N rows as tensors, floating ones of the world model's type, on its device."""

        def tensor(array: Any) -> Tensor:
            # A copy, for arrays may be read-only, or go backwards.
            made = array if isinstance(array, Tensor) else torch.from_numpy(np.array(array))
            if made.dim() == 0 or len(made) != self.count:
                raise ValueError(
                    f"{name} must give a row for each of {self.count} environments, "
                    f"got {tuple(made.shape)}"
                )
            if made.is_floating_point() or self.encode is None:
                return made.to(self.like.device, self.like.dtype)
            return made.to(self.like.device)

        try:
            return _each(tensor, value)
        except TypeError as error:
            raise TypeError(f"{name} must give arrays (N, ...), got {type(value)}") from error

    def _encoded(self, raw: Any, rows: Tensor, into: Any) -> Any:
        """States of the observations in `rows (N,)` bool, among others' before."""
        count, which = len(rows), rows.nonzero()[:, 0]
        some = _each(lambda value: value[which.to(value.device)], raw)
        if self.encode is not None:
            with frozen(self.encode):
                some = self.encode(some)
            if not _is_tensors(some):
                raise TypeError(f"encode must return a tensor or a dict of them, got {type(some)}")
        elif isinstance(some, Tensor):
            some = some.flatten(1) if some.dim() > 1 else some[:, None]

        def put(value: Tensor, before: Tensor | None) -> Tensor:
            if value.dim() == 0 or len(value) != len(which):
                raise ValueError(f"encode must return {len(which)} rows, got {tuple(value.shape)}")
            whole = value.new_zeros(count, *value.shape[1:]) if before is None else before.clone()
            whole[which.to(value.device)] = value
            return whole

        return _each(put, some, into)


def _is_tensors(value: Any) -> bool:
    if isinstance(value, Mapping):
        return bool(value) and all(isinstance(v, Tensor) for v in value.values())
    return isinstance(value, Tensor)


def _each(function: Callable[..., Any], *values: Any) -> Any:
    """A function of tensors, or of those of each name in dicts; None stands for Nones."""
    first = values[0]
    if not isinstance(first, Mapping):
        return None if first is None else function(*values)
    others = [dict.fromkeys(first) if v is None else v for v in values[1:]]
    return {name: function(first[name], *(v[name] for v in others)) for name in first}


def _beside(rows: Tensor, like: Tensor) -> Tensor:
    """`(N,)` to be broadcast with `like (N, ...)`."""
    return rows.to(like.device).view(-1, *(1,) * (like.dim() - 1))
