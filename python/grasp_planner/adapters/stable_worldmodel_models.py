"""What a planner sees of a world model of stable-worldmodel: its dynamics, or its cost alone.

For `grasp_planner.adapters.stable_worldmodel`, which says what both are, and the symbols.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grasp_planner.world_model import Wrapper

ACTIONS = ("action", "action_history")

# ---------------------------------------------------------------------------- the dynamics


class Dynamics(Wrapper):
    """A step of latents: `{"emb": (rows, H, *shape)}`, `(rows, H, A)` to `{"emb": (rows, *shape)}`.

    Without a history there is no H. `padded`: windows may begin with frames that were never seen,
    which are all 0: the model is not shown them, as in its own rollout from few frames.
    """

    def __init__(self, world_model: Any, history: int, padded: bool) -> None:
        self.world_model: Any = world_model
        self.history, self.padded = history, padded

    def __call__(self, state: dict[str, Tensor], action: Tensor) -> dict[str, Tensor]:
        window = state["emb"]
        if self.history == 1:
            window, action = window[:, None], action[:, None]
        if not self.padded:
            return {"emb": self._next(window, action)}
        seen = (window != 0).flatten(2).any(2).sum(1).clamp_min(1)
        parts, order = [], []
        for frames in seen.unique().tolist():
            rows = (seen == frames).nonzero()[:, 0]
            parts.append(self._next(window[rows, -frames:], action[rows, -frames:]))
            order.append(rows)
        return {"emb": torch.cat(parts)[torch.cat(order).argsort()]}

    def _next(self, window: Tensor, action: Tensor) -> Tensor:
        model = self.world_model
        if hasattr(model, "predict") and hasattr(model, "action_encoder"):
            return model.predict(window, model.action_encoder(action))[:, -1]
        # A rollout of one step from frames that are encoded: `pixels` tell how many there are.
        info = {"emb": window[:, None], "pixels": window[:, None]}
        info["action_history"] = action[:, None, :-1]
        return model.rollout(info, action[:, None, -1:])["predicted_emb"][:, 0, -1]


class Terms:
    """All of an objective that is not a distance to the goal, as a config's `cost`."""

    def __init__(self, terms: list[tuple[float, Any]], shape: tuple[int, ...]) -> None:
        self.terms, self.shape = terms, shape

    def __call__(self, states: Tensor, actions: Tensor, context: Mapping[str, Tensor]) -> Tensor:
        info = {
            "predicted_emb": states.unflatten(2, self.shape)[:, None],  # (N, S = 1, 1 + T, ...)
            "goal_emb": context["goal_emb"],
            "action_candidates": actions[:, None],
        }
        values = [weight * term(dict(info)) for weight, term in self.terms]
        return torch.stack(values).sum(0)[:, 0]


def dynamics_of(model: Any) -> Any:
    """What encodes and predicts: a cost evaluator's model, or the model itself."""
    return model.model if hasattr(model, "objective") else model


def offers_dynamics(model: Any) -> bool:
    dynamics = dynamics_of(model)
    if not callable(getattr(dynamics, "encode", None)):
        return False
    if hasattr(dynamics, "predict") and hasattr(dynamics, "action_encoder"):
        return True
    # PreJEPA's latents have the action inside; its rollout encodes, whatever it is given.
    inside = hasattr(dynamics, "replace_action_in_embedding")
    return dynamics is not model and callable(getattr(dynamics, "rollout", None)) and not inside


def history_of(model: Any) -> int:
    """Frames that the model looks back at, as its own rollout has it."""
    predictor = getattr(dynamics_of(model), "predictor", None)
    return 1 if predictor is None else int(getattr(predictor, "num_frames", 3))


def encoded(model: Any, info: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Latents `(b, H, *shape)` of the frames and `(b, H', *shape)` of the goal, each encoded once.

    Without actions, which `encode` would embed too, and which are not yet known.
    """
    dynamics, tensors = dynamics_of(model), {n: v for n, v in info.items() if isinstance(v, Tensor)}
    start = dynamics.encode({n: v for n, v in tensors.items() if n not in ACTIONS})["emb"]
    if dynamics is not model:
        if model.encode_goal is None:
            return start, info["goal_emb"]
        return start, model.encode_goal(dynamics, {n: v[:, None] for n, v in tensors.items()})
    if "goal" not in tensors:
        raise ValueError(f"info_dict must have an entry 'goal', got {list(info)}")
    goal = {n: v for n, v in tensors.items() if not n.startswith("goal")}
    goal |= {n.removeprefix("goal_"): v for n, v in tensors.items() if n.startswith("goal_")}
    goal = {n: v for n, v in goal.items() if n not in ACTIONS}
    return start, dynamics.encode({**goal, "pixels": tensors["goal"]})["emb"]


def past_actions_of(info: dict[str, Any], frames: int, past: int, like: Tensor) -> Tensor:
    """`(b, past, A)`: what was done between the frames; nothing before them."""
    made = like.new_zeros(len(like), past, like.shape[2])
    if frames == 1:
        return made
    given = info.get("action_history")
    wanted = (len(like), frames - 1, like.shape[2])
    if not isinstance(given, Tensor) or tuple(given.shape) != wanted:
        found = tuple(given.shape) if isinstance(given, Tensor) else given
        raise ValueError(
            f"info_dict['action_history'] must be (B, H - 1, A) = {wanted} for {frames} frames, "
            f"got {found}"
        )
    return torch.cat((made, given.to(made)), 1)[:, -past:]


def split_objective(objective: Any, size: int) -> tuple[float, list[tuple[float, Any]]]:
    """An objective as `weight |s_T - g|^2` and the other terms.

    Planners know the distance to the goal, their `GoalMSE`, and make more of it than of a cost.
    """
    if objective is None:  # a model of 0.1.1: `criterion` is that distance
        return 1.0, []
    weight, rest = 0.0, []
    for factor, term in getattr(objective, "terms", [(1.0, objective)]):
        keys = getattr(term, "pred_key", None), getattr(term, "goal_key", None)
        if keys == ("predicted_emb", "goal_emb"):
            mean = getattr(term, "reduction", "sum") == "mean"
            weight += factor / size if mean else factor
        else:
            rest.append((factor, term))
    return weight, rest


# -------------------------------------------------------------------------------- the cost


class Still(Wrapper):
    """The planner's world where all that is known is what whole plans cost: nothing happens."""

    def __init__(self, world_model: Any) -> None:
        self.world_model = world_model  # left as it was found, like every world model

    def __call__(self, state: Tensor, action: Tensor) -> Tensor:
        return state + 0.0 * action.sum(1, keepdim=True)  # planners see to it that actions count


class PlanCost:
    """`get_cost` as a config's `cost`, which is given the rows of `info` that plans belong to.

    Every call has the S candidates of the first one, the last of them repeated: models keep what
    they have encoded, in `info` or in themselves, with the candidates' axis.
    """

    def __init__(self, model: Any, info: dict[str, Any]) -> None:
        self.model, self.info = model, info
        self.samples = 0
        self._expanded: dict[tuple[int, ...], dict[str, Any]] = {}

    def __call__(self, states: Tensor, actions: Tensor, rows: Tensor) -> Tensor:
        owners, counts = rows.unique_consecutive(return_counts=True)
        count, samples = len(owners), int(counts[0])
        candidates = actions.unflatten(0, (count, samples))
        self.samples = self.samples or samples
        more = max(self.samples - samples, 0)
        filled = torch.cat((candidates, candidates[:, -1:].expand(-1, more, -1, -1)), 1)
        cost = self.model.get_cost(self._info(owners.tolist(), filled.shape[1]), filled)
        wanted = (count, filled.shape[1])
        if not isinstance(cost, Tensor) or tuple(cost.shape) != wanted:
            found = tuple(cost.shape) if isinstance(cost, Tensor) else type(cost).__name__
            raise ValueError(f"get_cost must return (B, S) = {wanted}, got {found}")
        if actions.requires_grad and not cost.requires_grad:
            raise ValueError("get_cost must be differentiable here, got a cost without a gradient")
        return cost[:, :samples].flatten()

    def _info(self, rows: list[int], samples: int) -> dict[str, Any]:
        """Entries `(b, S, ...)`; a model's own additions to them stay."""
        key = (samples, *rows)
        if key not in self._expanded:
            made: dict[str, Any] = {}
            for name, value in self.info.items():
                if isinstance(value, Tensor):
                    row = value[rows].unsqueeze(1)
                    made[name] = row.expand(-1, samples, *row.shape[2:])
                elif isinstance(value, np.ndarray):
                    made[name] = np.repeat(value[rows][:, None], samples, axis=1)
                elif isinstance(value, list):
                    made[name] = [value[row] for row in rows]
                else:
                    made[name] = value
            self._expanded[key] = made
        return self._expanded[key]
