"""Planning from frame to frame: what adapters of video world models share.

Such a model encodes an observation as a dict of latents once, and predicts the next frame's from
the last 1 ... H frames and their actions: at its first step it has seen one frame, then two, and
from step H on it always looks at H. `LatentModel` knows windows of exactly H, so a window that is
not full yet is filled up with its oldest frame, and says so by its actions.

Symbols: B problems, N plans, T steps, H frames in a full window, A action features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from grasp_planner.base import Planner
from grasp_planner.latents import LatentModel
from grasp_planner.mpc import STRIDE
from grasp_planner.options import check_settings
from grasp_planner.plan import Plan
from grasp_planner.presets import PLANNERS
from grasp_planner.running import Callback
from grasp_planner.world_model import Wrapper

TAKEN = ("horizon", "action_features", "goal_feature_weight", "cost")  # settings: the adapters'
Frames = dict[str, Tensor]
#: `(frames (rows, n, *shape) by name, actions (rows, n, A)) -> the next frames (rows, *shape)`.
Step = Callable[[Frames, Tensor], Frames]
#: `(frames (N, T + 1, *shape), actions (N, T, A), goals (N, 1, *shape)) -> (N,)`, less is better.
Objective = Callable[[Frames, Tensor, Frames], Tensor]


class GrowingWindow(Wrapper):
    """A model of 1 ... H frames as a `LatentModel` of H calls it.

    Frames that are only filled in are known by their action, `no_frame`, and the model never gets
    them. In a rollout all windows are equally full; in a lifted pass the first H - 1 steps are not,
    and rows are called by how many frames they have. To see that takes one look from the host.

    Args:
        owner: the module behind `step`, which planners leave as they found it.
        step: see `Step`.
        history: H.
    """

    def __init__(self, owner: nn.Module, step: Step, history: int) -> None:
        self.world_model = owner
        self.step = step
        self.history = history

    def __call__(self, frames: Frames, actions: Tensor) -> Frames:
        """Next frames `(rows, *shape)` of windows `(rows, H, ...)`; of `(rows, ...)` if H is 1."""
        if self.history == 1:
            return self.step({k: v[:, None] for k, v in frames.items()}, actions[:, None])
        known = (actions[:, :, 0] != no_frame(actions.dtype)).sum(1)
        lengths = known.unique().tolist()
        if len(lengths) == 1:
            return self._of_last(lengths[0], frames, actions)
        order, parts = [], []
        for length in lengths:
            rows = (known == length).nonzero()[:, 0]
            order.append(rows)
            window = {name: value[rows] for name, value in frames.items()}
            parts.append(self._of_last(length, window, actions[rows]))
        back = torch.cat(order).argsort()
        return {name: torch.cat([part[name] for part in parts])[back] for name in parts[0]}

    def _of_last(self, length: int, frames: Frames, actions: Tensor) -> Frames:
        return self.step({k: v[:, -length:] for k, v in frames.items()}, actions[:, -length:])


def no_frame(dtype: torch.dtype) -> float:
    """The first number of an action that was never taken, because there was no frame before."""
    return torch.finfo(dtype).min


def first_window(
    frames: Frames, history: int, action_features: int, actions: Tensor | None = None
) -> tuple[Frames, Tensor | None]:
    """The last H of the frames `(B, n, *shape)`, as a `LatentModel` of H takes its start, and the
    actions between them: filled up as `GrowingWindow` has it where there are not so many.

    `actions (B, n - 1, A)`: what was done between the n; None where n is 1.
    """
    if history == 1:
        return {name: value[:, -1] for name, value in frames.items()}, None
    like = next(iter(frames.values()))
    past = like.new_full((len(like), history - 1, action_features), no_frame(like.dtype))
    if actions is not None:
        past = torch.cat((past, actions.to(past)), 1)[:, 1 - history :]
    begin = {
        name: torch.cat((value[:, :1].expand(-1, history, *value.shape[2:]), value), 1)
        for name, value in frames.items()
    }
    return {name: value[:, -history:] for name, value in begin.items()}, past


class FramePlanner:
    """Any planner of this package over one model of frames.

    Args:
        owner, step, history: of the model; see `GrowingWindow`.
        action_features: A.
        planner: a name in `grasp_planner.presets.PLANNERS`.
        settings: of its config; horizon, goal weights and cost are set here.

    Raises:
        ValueError, TypeError: an argument is wrong; it is named.
    """

    def __init__(
        self,
        owner: nn.Module,
        step: Step,
        *,
        history: int,
        action_features: int,
        planner: str,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.kind, self.settings = check_planner(planner, settings)
        self.model: LatentModel  # of frames as they were in the last call
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._window = GrowingWindow(owner, step, history)
        self._action_features = action_features
        self._planners: dict[Any, Planner] = {}
        self._weights: dict[str, float] | None = None  # as they were measured first
        self._calls = 0

    def plan(
        self,
        start: Frames,
        goal: Frames,
        objective: Objective,
        *,
        horizon: int,
        actions: Tensor | None = None,
        callback: Callback | None = None,
    ) -> Plan:
        """The best plan from each frame `start (B, *shape)` to `goal (B, *shape)`.

        Where `objective` turns out to be a weighted squared distance of the last frame to the goal,
        planners get its weights, which all of them know best; else they get it as their cost.
        `callback` is called after every iteration.
        """
        self._fit(start)
        goals = {name: value[:, None] for name, value in goal.items()}
        one = {name: value[:1] for name, value in goals.items()}
        weights = squared_distance_weights(objective, one, self._action_features)
        if weights is not None and _are_close(weights, self._weights):
            weights = self._weights  # another goal rounds otherwise, and is for the same planner
        self._weights = weights
        key = (horizon, objective if weights is None else tuple(weights.items()))
        if key not in self._planners:
            self._planners = {key: self._made(horizon, objective, weights)}
        first = next(iter(start.values()))
        ids = torch.arange(len(first), device=first.device) + STRIDE * self._calls
        self._calls += 1
        now = {name: value[:, None] for name, value in start.items()}
        begin, past = first_window(now, self.model.history, self._action_features)
        return self._planners[key].plan(
            begin,
            goal,
            actions=actions,
            plan_ids=ids,
            context=None if weights is not None else goals,
            past_actions=past,
            callback=callback,
            callback_at=None if callback is None else 1,
        )

    def _fit(self, frames: Frames) -> None:
        """The world model is one of such frames; planners of others are forgotten."""
        shapes = {name: tuple(value.shape[1:]) for name, value in frames.items()}
        if shapes == self._shapes:
            return
        self.model = LatentModel(
            self._window,
            latents=shapes,
            history=self._window.history,
            action_features=self._action_features,
        )
        self._shapes, self._planners = shapes, {}

    def _made(
        self, horizon: int, objective: Objective, weights: Mapping[str, float] | None
    ) -> Planner:
        def cost(states: Tensor, actions: Tensor, goals: Any) -> Tensor:
            return objective(self.model.unpack(states), actions, goals)

        settings = {**self.settings, "horizon": horizon}
        if weights is None:
            assert self.model.latents is not None
            settings["cost"] = cost
            weights = dict.fromkeys(self.model.latents, 0.0)
        planner, config = PLANNERS[self.kind]
        return planner(self.model, config(**settings, goal_feature_weight=weights))


def _are_close(weights: dict[str, float], before: dict[str, float] | None) -> bool:
    """Whether they are the same but for rounding, by the same names."""
    if before is None or before.keys() != weights.keys():
        return False
    return all(math.isclose(weights[name], before[name], rel_tol=1e-5) for name in weights)


def check_planner(
    name: str, settings: Mapping[str, Any] | None, taken: Collection[str] = ()
) -> tuple[str, dict[str, Any]]:
    """The name and the settings of a planner, if there are such, and none is the adapter's own."""
    if name not in PLANNERS:
        raise ValueError(f"planner must be one of {', '.join(PLANNERS)}, got {name!r}")
    if settings is not None and not isinstance(settings, Mapping):
        raise TypeError(f"settings must be a mapping, got {type(settings).__name__}")
    given = {str(key): value for key, value in (settings or {}).items()}
    check_settings(given, PLANNERS[name][0].config_type, (*TAKEN, *taken))
    return name, given


@torch.no_grad()
def squared_distance_weights(
    objective: Objective, goal: Frames, action_features: int
) -> dict[str, float] | None:
    """The weight of each entry, if `objective` is `sum_k w_k |last_k - goal_k|^2`; else None.

    It is measured: one entry of the last frame at a time is moved away from `goal (1, 1, *shape)`,
    and what comes out is tried on random frames and actions, of which all but the last frame must
    not matter.

    Raises:
        TypeError, ValueError: `objective` returns something else than a number per plan.
    """
    generator = torch.Generator().manual_seed(0)
    like = next(iter(goal.values()))

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(like)

    def cost(frames: Frames, plans: int) -> Tensor:
        steps = next(iter(frames.values())).shape[1] - 1
        goals = {name: value.expand(plans, *value.shape[1:]) for name, value in goal.items()}
        found = objective(frames, random(plans, steps, action_features), goals)
        if not isinstance(found, Tensor):
            raise TypeError(f"the objective must return a Tensor, got {type(found).__name__}")
        if tuple(found.shape) != (plans,):
            raise ValueError(
                f"the objective must return a number per plan, ({plans},), got {tuple(found.shape)}"
            )
        return found

    weights = {}
    for name, value in goal.items():
        away = random(*value.shape)
        still = {k: v.expand(-1, 2, *v.shape[2:]) for k, v in goal.items()}
        still[name] = torch.cat((value, value + away), 1)
        weights[name] = float(cost(still, 1)) / float(away.square().sum())
    apart = {name: random(4, 3, *value.shape[2:]) for name, value in goal.items()}
    found = cost({name: value + apart[name] for name, value in goal.items()}, 4)
    squares = [w * apart[k][:, -1].flatten(1).square().sum(1) for k, w in weights.items()]
    expected = torch.stack(squares).sum(0)
    known = min(weights.values()) >= 0 and torch.allclose(found, expected, rtol=1e-3, atol=1e-12)
    return weights if known else None
