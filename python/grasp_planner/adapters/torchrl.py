"""TorchRL: any planner where its `CEMPlanner` and `MPPIPlanner` are, with the environment's model.

    from grasp_planner.adapters.torchrl import MPCPlanner

    planner = MPCPlanner(model_env, planning_horizon=15)
    rollout = env.rollout(200, policy=planner)

A plan's cost is minus the sum of the rewards that the model environment gives on the way, up to the
first done: the same as TorchRL's planners maximise. The environment is asked once per step, for the
next state, reward and done together, so the last two travel in the planner's states beside the
entries of the tensordict.

Symbols: B environments (any batch size, flattened), T steps, A action features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase, unravel_key
from torch import Tensor
from torchrl.envs.common import EnvBase
from torchrl.modules.planners import MPCPlannerBase

from grasp_planner.base import Planner
from grasp_planner.baselines import ICEMPlanner
from grasp_planner.goals import Anywhere
from grasp_planner.latents import LatentModel
from grasp_planner.mpc import MPC
from grasp_planner.options import check_settings
from grasp_planner.plan import Plan
from grasp_planner.world_model import Wrapper

Key = str | tuple[str, ...]
REWARD, DONE = "next.reward", "done before"  # beside the environment's own entries


class MPCPlanner(MPCPlannerBase):
    """A module that reads a state from a tensordict and writes the action of a plan from there.

    Args:
        env: the model to plan through, such as a `ModelBasedEnvBase`: any environment that is not
            locked to a batch size. Differentiable where the planner goes by gradients. Of what it
            draws at random nothing is known here: its samples differ between candidates.
        planning_horizon: T. >= 1.
        planner: the class of any planner. `ICEMPlanner`. LatCo and GRASP look for states, rewards
            among them, before they follow from actions; they are the weaker ones here.
        state_keys: the entries of a tensordict that the model needs beside the action. None is all
            of the environment's state spec, or, where it has none, of its observation spec. Those
            that a step does not return stay as they are.
        execute: None plans every call from nothing, as TorchRL's planners do: what is written
            depends on the tensordict alone. Else an `MPC` goes on from its last plan, and replans
            after so many of its actions; the tensordict needs an entry "is_init" (TorchRL's
            `InitTracker`), which says whose episode begins. 1 to T.
        reward_key, action_key: as of TorchRL's planners; the action spec is read under the latter.
        settings: of the planner's config, such as `iterations=5`; bounds are those of the action
            spec where nothing else is said.

    Attributes:
        last_plan: the `Plan` of the last call without `execute`; None before.

    Raises:
        TypeError, ValueError: an argument is wrong; it is named.
        KeyError: the tensordict lacks an entry.
    """

    def __init__(
        self,
        env: EnvBase,
        planning_horizon: int,
        planner: type[Planner] = ICEMPlanner,
        *,
        state_keys: Sequence[Key] | None = None,
        execute: int | None = None,
        reward_key: Key = ("next", "reward"),
        action_key: Key = "action",
        **settings: Any,
    ) -> None:
        if not (isinstance(planner, type) and issubclass(planner, Planner)):
            raise TypeError(f"planner must be a class of Planner, got {planner!r}")
        if not isinstance(env, EnvBase):
            raise TypeError(f"env must be an EnvBase, got {type(env).__name__}")
        check_settings(settings, planner.config_type, ("horizon", "action_features", "cost"))
        if action_key not in env.action_keys:
            raise KeyError(f"action_key must be one of {env.action_keys}, got {action_key!r}")
        super().__init__(env, action_key=action_key)
        spec = env.full_action_spec[action_key]
        if not spec.dtype.is_floating_point:
            raise TypeError(f"env must have actions that are numbers, got {spec}")
        self._action_shape = spec.shape[len(env.batch_size) :]
        keys = _state_keys(env) if state_keys is None else [unravel_key(k) for k in state_keys]
        self.in_keys = [*keys, *(["is_init"] if execute is not None else [])]
        model = _EnvModel(env, keys, reward_key, action_key, self._action_shape)
        low, high = _bounds(spec, len(env.batch_size))
        asked: dict[str, Any] = {
            "horizon": planning_horizon,
            "action_low": low,
            "action_high": high,
        }
        asked |= {"action_features": self._action_shape.numel(), "cost": _minus_rewards(model)}
        latents = LatentModel(model, latents=model.shapes, action_features=asked["action_features"])
        found = planner(latents, planner.config_type(**{**asked, **settings}))
        self._model, self._planner = model, found
        self._mpc = None if execute is None else MPC(found, execute=execute)
        self._count: int | None = None  # B, of the plans that `execute` goes on from
        self.last_plan: Plan | None = None

    def planning(self, td: TensorDictBase) -> Tensor:
        """The actions of the tensordict's states, `(*batch, *action)`."""
        batch = td.batch_size
        state = self._model.start(td)
        if self._mpc is None:
            self.last_plan = self._planner.plan(state, Anywhere())
            actions = self.last_plan.actions[:, 0]
        else:
            begins = td.get("is_init", None)
            if begins is None:
                raise KeyError("the tensordict has no 'is_init', which execute needs: InitTracker")
            if self._count not in (None, batch.numel()):
                raise ValueError(
                    f"the tensordict must have {self._count} states as before, got "
                    f"{batch.numel()}; call reset() for other environments"
                )
            self._count = batch.numel()
            self._mpc.forget(begins.reshape(-1))
            actions = self._mpc.act(state, Anywhere()).actions
        return actions.reshape(*batch, *self._action_shape)

    def reset(self) -> None:
        """With `execute`: forgets all plans; the next tensordict may be of another batch size."""
        self._count = None
        if self._mpc is not None:
            self._mpc.reset()


class _EnvModel(Wrapper):
    """A step of an environment, of rows: entries by name, then the reward and who was done before.

    `world_model` is the environment, a module, which is left as it was found.
    """

    def __init__(
        self,
        env: EnvBase,
        keys: Sequence[Key],
        reward_key: Key,
        action_key: Key,
        action_shape: torch.Size,
    ) -> None:
        self.world_model: Any = env
        self.reward_key, self.action_key, self.action_shape = reward_key, action_key, action_shape
        self.keys = {_name(key): key for key in keys}
        specs = {**dict(_leaves(env.observation_spec)), **dict(_leaves(env.state_spec))}
        ahead = len(env.batch_size)
        self.shapes: dict[str, tuple[int, ...]] = {}
        for name, key in self.keys.items():
            if key not in specs:
                raise KeyError(f"state_keys has {key!r}, which is in no spec of env: {list(specs)}")
            if not specs[key].dtype.is_floating_point:
                raise TypeError(
                    f"{key!r} is {specs[key].dtype}, and states are floating: give state_keys "
                    "without it"
                )
            self.shapes[name] = tuple(specs[key].shape[ahead:])
        self.shapes |= {REWARD: (), DONE: ()}
        self.done_keys = [key for key in env.done_keys if _name(key).split(".")[-1] == "done"]

    def start(self, td: TensorDictBase) -> dict[str, Tensor]:
        """Entries `(B, ...)` of a tensordict of any batch size."""
        count, ahead = td.batch_size.numel(), len(td.batch_size)
        entries = {}
        for name, key in self.keys.items():
            value = td.get(key, None)
            if value is None:
                raise KeyError(f"the tensordict has no {key!r}, which the planner needs")
            entries[name] = value.reshape(count, *value.shape[ahead:])
        like = next(iter(entries.values()))
        return {**entries, REWARD: like.new_zeros(count), DONE: like.new_zeros(count)}

    def __call__(self, state: dict[str, Tensor], action: Tensor) -> dict[str, Tensor]:
        rows = len(action)
        td = TensorDict({}, batch_size=[rows], device=action.device)
        for name, key in self.keys.items():
            td.set(key, state[name])
        td.set(self.action_key, action.reshape(rows, *self.action_shape))
        td = self.world_model.step(td)
        after = {n: td["next"].get(key, state[n]) for n, key in self.keys.items()}
        done = state[DONE]
        for key in self.done_keys:
            done = torch.maximum(done, _of_rows(td["next"].get(key)).any(1).to(done.dtype))
        reward = td.get(self.reward_key, None)
        if reward is None:
            raise KeyError(f"reward_key is {self.reward_key!r}, which a step of env does not give")
        return {**after, REWARD: _of_rows(reward).sum(1).to(done.dtype), DONE: done}


def _of_rows(value: Tensor) -> Tensor:
    """`(rows, ...)` as `(rows, n)`."""
    return value.reshape(len(value), math.prod(value.shape[1:]))


def _minus_rewards(model: _EnvModel) -> Any:
    """Minus the sum of rewards up to the first done, of packed states `(N, T + 1, D)`."""

    def cost(states: Tensor, actions: Tensor) -> Tensor:
        rewards, done = states[:, 1:, -2], states[:, :-1, -1]
        return -(rewards * (1.0 - done)).sum(1)

    assert list(model.shapes)[-2:] == [REWARD, DONE]
    return cost


def _state_keys(env: EnvBase) -> list[Key]:
    keys = [key for key, _ in _leaves(env.state_spec)]
    return keys or [key for key, _ in _leaves(env.observation_spec)]


def _leaves(spec: Any) -> list[tuple[Key, Any]]:
    return [] if spec is None else list(spec.items(True, True))


def _name(key: Key) -> str:
    return key if isinstance(key, str) else ".".join(key)


def _bounds(spec: Any, ahead: int) -> tuple[Any, Any]:
    """The action spec's box as settings take it; None where it is open."""
    space = getattr(spec, "space", None)
    if space is None or not hasattr(space, "low"):
        return None, None
    low, high = (bound.double()[(0,) * ahead].flatten() for bound in (space.low, space.high))
    least, most = torch.finfo(spec.dtype).min, torch.finfo(spec.dtype).max
    if bool((low <= least).all()) and bool((high >= most).all()):
        return None, None  # an unbounded spec has the type's own limits
    return tuple(low.tolist()), tuple(high.tolist())
