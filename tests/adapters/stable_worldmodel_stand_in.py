"""Stand-ins with the published signatures of stable-worldmodel: models, evaluator, objectives.

Of 0.1.1: `LeWM` (`encode`, `predict`, `rollout`, `get_cost`) and a model with `get_cost` alone. Of
the newer API, which is not on the package index: `Evaluator` (its `ShootingCostEvaluator`), with
`encode` and `rollout` of its model, `GoalMSE`, `ControlPenalty` and `WeightedSum`.

All of them are a point in the plane: an observation's `pixels` `(2, 1, 1)` are its place, an action
block moves it by the sum of its actions, and, from two frames on, it goes on as it went.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Info = dict[str, Any]


@dataclass(frozen=True)
class PlanConfig:
    horizon: int
    receding_horizon: int = 1
    history_len: int = 1
    action_block: int = 1
    warm_start: bool = True


class Predictor(nn.Module):
    """Next latents `(rows, T, D)`; at index t from those up to t."""

    def __init__(self, num_frames: int, drift: float) -> None:
        super().__init__()
        self.num_frames, self.drift = num_frames, drift
        self.late = nn.Parameter(torch.linspace(0, 0.1, num_frames)[:, None])

    def forward(self, emb: Tensor, act_emb: Tensor) -> Tensor:
        assert emb.shape[:2] == act_emb.shape[:2]
        assert emb.shape[1] <= self.num_frames, "more frames than there are positions"
        gone = torch.diff(emb, dim=1, prepend=emb[:, :1])
        return emb + act_emb + self.drift * gone + self.late[: emb.shape[1]]


class ActionEncoder(nn.Module):
    def __init__(self, block: int) -> None:
        super().__init__()
        self.block = block

    def forward(self, action: Tensor) -> Tensor:
        assert action.shape[-1] == 2 * self.block, "an action without its block"
        return action.unflatten(-1, (self.block, 2)).sum(-2)


class Dynamics(nn.Module):
    """`encode` and `rollout`, as the newer API has them; it goes on from an `emb` that is given."""

    def __init__(self, block: int = 1, num_frames: int = 1, drift: float = 0.3) -> None:
        super().__init__()
        self.frames_encoded = 0
        self.seen: list[tuple[int, ...]] = []  # shapes of all candidates
        self._encoder = nn.Linear(2, 2, bias=False)
        nn.init.eye_(self._encoder.weight)
        self.predictor = Predictor(num_frames, drift)
        self._action_encoder = ActionEncoder(block)

    def encode(self, info: Info) -> Info:
        pixels = info["pixels"]
        assert pixels.dim() == 5, "(B, T, C, h, w)"
        self.frames_encoded += pixels.shape[0] * pixels.shape[1]
        info["emb"] = self._encoder(pixels.flatten(2))
        if "action" in info:
            info["act_emb"] = self._action_encoder(info["action"])
        return info

    def rollout(self, info: Info, action_sequence: Tensor) -> Info:
        frames, (count, samples, steps) = info["pixels"].size(2), action_sequence.shape[:3]
        past = info.get("action_history")
        if past is None:
            past = action_sequence.new_zeros(count, samples, 0, action_sequence.size(-1))
        assert past.size(2) == frames - 1
        actions = torch.cat((past, action_sequence), 2)
        self._unroll(info, actions, frames, steps)
        return info

    def _unroll(self, info: Info, actions: Tensor, frames: int, steps: int) -> None:
        """`predicted_emb (B, S, frames + steps, D)` under `actions (B, S, frames - 1 + steps, A)`.

        `emb` stays in `info`, with the candidates' axis.
        """
        self.seen.append(tuple(actions.shape))
        count, samples = actions.shape[:2]
        if "emb" not in info:
            first = {n: v[:, 0] for n, v in info.items() if isinstance(v, Tensor)}
            first.pop("action", None)
            emb = self.encode(first)["emb"].detach()
            info["emb"] = emb[:, None].expand(count, samples, -1, -1)
        emb = list(info["emb"].flatten(0, 1).unbind(1))
        act = self._action_encoder(actions.flatten(0, 1))
        for t in range(steps):
            low = max(0, frames + t - self.predictor.num_frames)
            window = torch.stack(emb[low:], 1)
            emb.append(self.predictor(window, act[:, low : frames + t])[:, -1])
        info["predicted_emb"] = torch.stack(emb, 1).unflatten(0, (count, samples))


class LeWM(Dynamics):
    """As 0.1.1 has it: with `get_cost` of its own, `predict` and `action_encoder`."""

    def __init__(self, block: int = 1, num_frames: int = 1, drift: float = 0.3) -> None:
        super().__init__(block, num_frames, drift)
        self.action_encoder = self._action_encoder

    def predict(self, emb: Tensor, act_emb: Tensor) -> Tensor:
        return self.predictor(emb, act_emb)

    def rollout(self, info: Info, action_sequence: Tensor, history_size: int | None = None) -> Info:
        """The first actions are those of the frames that are known."""
        frames, steps = info["pixels"].size(2), action_sequence.shape[2]
        self._unroll(info, action_sequence, frames, steps - frames + 1)
        return info

    def criterion(self, info_dict: Info) -> Tensor:
        assert len(info_dict["goal_emb"]) == 1, "0.1.1 is right for one environment alone"
        last, goal = info_dict["predicted_emb"][:, :, -1], info_dict["goal_emb"][:, -1]
        return (last - goal).square().sum(-1)

    def get_cost(self, info_dict: Info, action_candidates: Tensor) -> Tensor:
        if "goal_emb" not in info_dict:
            info_dict["goal_emb"] = default_goal_encode(self, info_dict)
        return self.criterion(self.rollout(info_dict, action_candidates))


class CostAlone:
    """`get_cost` and nothing else; it remembers what it was given, and its last candidates' count,
    as models do that keep what they have encoded."""

    def __init__(self, block: int = 1, differentiable: bool = True) -> None:
        self.block, self.differentiable = block, differentiable
        self.candidates: list[tuple[int, ...]] = []
        self.infos: list[dict[str, Any]] = []

    def get_cost(self, info_dict: Info, action_candidates: Tensor) -> Tensor:
        self.candidates.append(tuple(action_candidates.shape))
        self.infos.append({n: getattr(v, "shape", v) for n, v in info_dict.items()})
        assert {shape[1] for shape in self.candidates} == {action_candidates.shape[1]}
        start, goal = (info_dict[n][:, :, -1].flatten(2) for n in ("pixels", "goal"))
        moves = action_candidates.unflatten(-1, (self.block, 2)).sum((2, 3))
        cost = (start + moves - goal).square().sum(-1)
        return cost if self.differentiable else cost.detach()


# -------------------------------------------------------------------------------- of the newer API


def default_goal_encode(model: Any, info_dict: Info) -> Tensor:
    goal = {n: v[:, 0] for n, v in info_dict.items() if isinstance(v, Tensor)}
    goal["pixels"] = goal["goal"]
    goal |= {n.removeprefix("goal_"): goal.pop(n) for n in list(goal) if n.startswith("goal_")}
    goal.pop("action")
    goal.pop("action_history", None)
    return model.encode(goal)["emb"]


class GoalMSE:
    def __init__(
        self,
        pred_key: str = "predicted_emb",
        goal_key: str = "goal_emb",
        reduction: str = "sum",
    ) -> None:
        self.pred_key, self.goal_key, self.reduction = pred_key, goal_key, reduction

    def __call__(self, info_dict: Info) -> Tensor:
        goal = info_dict[self.goal_key][:, None, -1]
        squares = (info_dict[self.pred_key][:, :, -1] - goal).square()
        return squares.sum(-1) if self.reduction == "sum" else squares.mean(-1)


class ControlPenalty:
    def __call__(self, info_dict: Info) -> Tensor:
        return info_dict["action_candidates"].square().sum((2, 3))


class WeightedSum:
    def __init__(self, terms: list[tuple[float, Any]]) -> None:
        self.terms = terms

    def __call__(self, info_dict: Info) -> Tensor:
        return torch.stack([weight * term(info_dict) for weight, term in self.terms]).sum(0)


class Evaluator(nn.Module):
    def __init__(
        self,
        model: Any,
        objective: Any,
        constraints: list[Any] | None = None,
        encode_goal: Callable[[Any, Info], Tensor] | None = default_goal_encode,
    ) -> None:
        super().__init__()
        self.model, self.objective, self.encode_goal = model, objective, encode_goal
        self.constraints = constraints

    def get_cost(self, info_dict: Info, action_candidates: Tensor) -> Tensor:
        if self.encode_goal is not None and "goal_emb" not in info_dict:
            info_dict["goal_emb"] = self.encode_goal(self.model, info_dict)
        info_dict = self.model.rollout(info_dict, action_candidates)
        info_dict["action_candidates"] = action_candidates
        return self.objective(info_dict)
