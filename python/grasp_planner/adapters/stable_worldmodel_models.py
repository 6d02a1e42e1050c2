"""What a planner sees of a world model of stable-worldmodel: its dynamics, or its cost alone.

For `grasp_planner.adapters.stable_worldmodel`, which says what both are, and the symbols.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grasp_planner.adapters.frames import Frames, Step
from grasp_planner.plan import Plan
from grasp_planner.world_model import Wrapper

ACTIONS = ("action", "action_history")

# --------------------------------------------------------------------- what a solver is given


def rows_in(info: Any) -> int:
    """B, the rows of the first entry that has some."""
    if not isinstance(info, Mapping):
        raise TypeError(f"info_dict must be a dict of (B, H, ...), got {type(info).__name__}")
    arrays = (v for v in info.values() if isinstance(v, (Tensor, np.ndarray)) and v.ndim)
    first = next(arrays, None)
    if first is None:
        raise ValueError(f"info_dict must have tensors (B, H, ...), got {dict(info)}")
    return len(first)


def known_actions(init_action: Any, shape: tuple[int, int, int]) -> Tensor:
    """`(B, T, A)` on the CPU: a warm start and no action after it, nor where it is NaN."""
    count, horizon, width = shape
    actions = torch.zeros(shape)
    if init_action is None:
        return actions
    if not isinstance(init_action, Tensor):
        raise TypeError(f"init_action must be a Tensor, got {type(init_action).__name__}")
    given = tuple(init_action.shape)
    if len(given) != 3 or given[0] != count or given[1] > horizon or given[2] != width:
        wanted = f"(B, t, A) = ({count}, at most {horizon}, {width})"
        raise ValueError(f"init_action must be {wanted}, got {given}")
    return torch.cat((init_action.detach().cpu().nan_to_num(0.0), actions[:, given[1] :]), 1)


def of_rows(value: Any, rows: list[int]) -> Any:
    """What belongs to the environments `rows` in an entry; all of one that has no rows."""
    if isinstance(value, (Tensor, np.ndarray)):
        return value[rows]
    return [value[row] for row in rows] if isinstance(value, list) else value


# ---------------------------------------------------------------------------- the dynamics


def dynamics_of(model: Any) -> Any:
    """What encodes and predicts: a cost evaluator's model, or the model itself."""
    return model.model if hasattr(model, "objective") else model


def offers_dynamics(model: Any) -> bool:
    dynamics = dynamics_of(model)
    if not callable(getattr(dynamics, "encode", None)):
        return False
    if _predicts(dynamics):
        return True
    # PreJEPA's latents have the action inside; its rollout encodes, whatever it is given.
    inside = hasattr(dynamics, "replace_action_in_embedding")
    return dynamics is not model and callable(getattr(dynamics, "rollout", None)) and not inside


def history_of(model: Any) -> int:
    """Frames that the model looks back at, as its own rollout has it."""
    predictor = getattr(dynamics_of(model), "predictor", None)
    return 1 if predictor is None else int(getattr(predictor, "num_frames", 3))


def step_of(model: Any) -> Step:
    """A step of latents, `{"emb": (rows, n, *shape)}`, `(rows, n, A)` to `(rows, *shape)`."""
    dynamics = dynamics_of(model)

    def predicted(frames: Frames, actions: Tensor) -> Frames:
        return {"emb": dynamics.predict(frames["emb"], dynamics.action_encoder(actions))[:, -1]}

    def rolled_out(frames: Frames, actions: Tensor) -> Frames:
        window = frames["emb"][:, None]  # what is encoded; `pixels` tell how many frames there are
        info = {"emb": window, "pixels": window, "action_history": actions[:, None, :-1]}
        return {"emb": dynamics.rollout(info, actions[:, None, -1:])["predicted_emb"][:, 0, -1]}

    return predicted if _predicts(dynamics) else rolled_out


def _predicts(dynamics: Any) -> bool:
    return hasattr(dynamics, "predict") and hasattr(dynamics, "action_encoder")


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
        total = states.new_zeros(len(states), 1)
        for weight, term in self.terms:
            total = total + weight * term(dict(info))
        return total[:, 0]


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
    if not any(name.startswith("goal") for name in tensors):
        raise ValueError(f"info_dict must have entries 'goal' or 'goal_...', got {list(info)}")
    goal = {n: v for n, v in tensors.items() if n != "pixels" and not n.startswith("goal")}
    goal |= {n.removeprefix("goal_"): v for n, v in tensors.items() if n.startswith("goal_")}
    if "goal" in tensors:  # an image
        goal["pixels"] = tensors["goal"]
    return start, dynamics.encode({n: v for n, v in goal.items() if n not in ACTIONS})["emb"]


def done_between(frames: int, given: Any, like: Tensor) -> Tensor | None:
    """The entry `action_history (b, H - 1, A)` of H frames, A of `like (b, T, A)`; None of one."""
    if frames == 1:
        return None
    wanted = (len(like), frames - 1, like.shape[2])
    if not isinstance(given, Tensor) or tuple(given.shape) != wanted:
        found = tuple(given.shape) if isinstance(given, Tensor) else given
        raise ValueError(
            f"info_dict['action_history'] must be (B, H - 1, A) = {wanted} for {frames} frames, "
            f"got {found}"
        )
    return given


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


def check_cost(
    model: Any,
    info: dict[str, Any],
    start: Tensor,
    goals: Tensor,
    plan: Plan,
    weight: float,
    terms: Terms,
) -> None:
    """An error unless `get_cost` agrees on what the first of the plans costs.

    A model may have overridden it, and would be planned for something else. What is encoded,
    `start (b, 1, *shape)` and `goals (b, H', *shape)`, is handed over.
    """
    entries = {n: v[:1, None] for n, v in info.items() if isinstance(v, (Tensor, np.ndarray))}
    entries |= {"emb": start[:1, None], "goal_emb": goals[:1]}
    said = model.get_cost(entries, plan.actions[:1, None]).flatten()
    goal = goals[:1, -1].flatten(1)
    begin, end = ((plan.states[:1, t] - goal).square().sum(1) for t in (0, -1))
    found = weight * end + terms(plan.states[:1], plan.actions[:1], {"goal_emb": goals[:1]})
    rounding = 100 * torch.finfo(plan.states.dtype).eps
    tolerance = max(1e-3, rounding) * (said.abs() + found.abs()) + rounding * weight * begin
    if said.shape != found.shape or not bool(((said - found).abs() <= tolerance).all()):
        raise ValueError(
            f"way must be 'cost': model.get_cost says {said.tolist()} of a plan that costs "
            f"{found.tolist()} by the model's latents and objective"
        )


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
                row = of_rows(value, rows)
                if isinstance(row, Tensor):
                    row = row[:, None].expand(-1, samples, *row.shape[1:])
                elif isinstance(row, np.ndarray):
                    row = np.repeat(row[:, None], samples, axis=1)
                made[name] = row
            self._expanded[key] = made
        return self._expanded[key]
