"""A small model, agent and objectives with the signatures, shapes and dtypes of jepa-wms'.

Written to `VideoWM`, `EncPredWM`, `GC_Agent` and the objectives as published in
facebookresearch/jepa-wms; which commit: docs/adapters.md. Not the real model, and no trained one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from patch_encoder import CHANNELS, PatchEncoder
from torch import Tensor, nn

GRID, TOKENS, PROPRIO, ACTION = 2, 1, 4, 3


class TensorDict(dict[str, Tensor]):
    """tensordict's is a `MutableMapping`, too; its arithmetic is not needed."""


class PlanningResult(NamedTuple):
    actions: Tensor
    losses: Any = None
    prev_elite_losses_mean: Any = None
    prev_elite_losses_std: Any = None
    info: Any = None
    plan_metrics: Any = None
    pred_frames_over_iterations: Any = None
    predicted_best_encs_over_iterations: Any = None


class VideoWM(nn.Module):
    """Frames mix causally, by position from the window's first on; all see their own action."""

    def __init__(self, use_proprio: bool = True) -> None:
        super().__init__()
        self.use_proprio = use_proprio
        self.action_dim, self.proprio_dim, self.grid_size = ACTION, PROPRIO, GRID
        width = GRID * GRID * CHANNELS + PROPRIO * use_proprio
        self.encoder = PatchEncoder()
        self.action_encoder = nn.Linear(ACTION, 5)
        self.proprio_encoder = nn.Linear(PROPRIO, PROPRIO)
        self.predictor = nn.GRU(width + 5, 24, batch_first=True)
        self.out = nn.Linear(24, width)
        self.drop = nn.Dropout(0.1)
        self.lengths: list[int] = []

    def encode_act(self, a: Tensor) -> Tensor:
        return self.action_encoder(a.reshape(len(a), -1, self.action_dim))[:, :, None]

    def encode_proprio(self, proprio: Tensor) -> Tensor:
        return self.proprio_encoder(proprio.reshape(len(proprio), -1, self.proprio_dim))[:, :, None]

    def forward_pred(
        self,
        video_features: Tensor,
        action_features: Tensor,
        proprio_features: Tensor | None,
        ctxt_window: int | None = None,
        debug: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        self.lengths.append(video_features.shape[1])
        parts = [video_features.flatten(2)]
        if proprio_features is not None:
            parts.append(proprio_features.flatten(2))
        frames = torch.cat(parts, -1)
        hidden, _ = self.predictor(torch.cat([frames, action_features.flatten(2)], -1))
        frames = frames + self.out(self.drop(hidden))
        sizes = [part.shape[-1] for part in parts]
        moved = frames.split(sizes, -1)
        video = moved[0].view_as(video_features)
        proprio = None if proprio_features is None else moved[1].view_as(proprio_features)
        return video, action_features, proprio


class EncPredWM(nn.Module):
    def __init__(self, model: VideoWM, ctxt_window: int = 2) -> None:
        super().__init__()
        self.model = model
        self.action_dim, self.ctxt_window = model.action_dim, ctxt_window
        self.proprio_mode = "predict_proprio"

    def unroll(self, z_ctxt: Any, act_suffix: Tensor, debug: bool = False) -> Any:
        steps, batch, _ = act_suffix.shape
        dicts = isinstance(z_ctxt, TensorDict)
        video = z_ctxt["visual"] if dicts else z_ctxt
        video = video.expand(batch, *video.shape[1:])
        proprio = z_ctxt["proprio"].expand(batch, -1, -1, -1) if dicts else None
        actions = self.model.encode_act(act_suffix.transpose(0, 1))
        for h in range(steps):
            window = slice(max(h + 1 - self.ctxt_window, 0), h + 1)
            given = None if proprio is None else proprio[:, -self.ctxt_window :]
            new, _, moved = self.model.forward_pred(
                video[:, -self.ctxt_window :], actions[:, window], given, debug=debug
            )
            video = torch.cat([video, new[:, -1:]], 1)
            if proprio is not None and moved is not None:
                proprio = torch.cat([proprio, moved[:, -1:]], 1)
        if proprio is None:
            return video.transpose(0, 1)
        return TensorDict(visual=video.transpose(0, 1), proprio=proprio.transpose(0, 1))

    @torch.no_grad()
    def encode(self, obs: Any, act: bool = True) -> Any:
        images = obs["visual"] if isinstance(obs, Mapping) else obs
        patches = self.model.encoder(images.flatten(0, 1) / 255.0)
        visual = patches.view(*images.shape[:2], 1, GRID, GRID, CHANNELS)
        if not isinstance(obs, Mapping):
            return visual
        return TensorDict(visual=visual, proprio=self.model.encode_proprio(obs["proprio"]))

    def decode_unroll(self, predicted_encs: Any, batch: bool = False) -> Any:
        visual = predicted_encs["visual"] if isinstance(predicted_encs, Mapping) else predicted_encs
        return visual[:, 0].mean((1, 4)).mul(255).to(torch.uint8).numpy()


class RepresentationDistance:
    """`repr_dist` and `repr_l1` of jepa-wms; `of` is the distance of two numbers."""

    def __init__(
        self,
        target_enc: Any,
        alpha: float = 0.1,
        sum_all_diffs: bool = False,
        of: Callable[[Tensor], Tensor] = torch.square,
    ) -> None:
        self.target_enc, self.alpha = target_enc, alpha
        self.sum_all_diffs, self.of = sum_all_diffs, of

    def __call__(self, encodings: Any, actions: Tensor, keepdims: bool = False) -> Tensor:
        if isinstance(encodings, TensorDict) and isinstance(self.target_enc, TensorDict):
            parts = {k: self._apart(self.target_enc[k], v) for k, v in encodings.items()}
            diff = parts["visual"] + self.alpha * parts["proprio"]
        elif isinstance(encodings, Tensor) and isinstance(self.target_enc, Tensor):
            diff = self._apart(self.target_enc, encodings)
        else:
            raise ValueError("Input type mismatch")
        if keepdims:
            return diff.cumsum(0).flip(0) if self.sum_all_diffs else diff
        return diff.sum(0) if self.sum_all_diffs else diff[-1]

    def _apart(self, target: Tensor, value: Tensor) -> Tensor:
        return self.of(target - value).mean(dim=tuple(range(2, value.ndim)))


class RepresentationCosine(RepresentationDistance):
    """`repr_sim` of jepa-wms."""

    def _apart(self, target: Tensor, value: Tensor) -> Tensor:
        flat = value.flatten(2)
        return -nn.functional.cosine_similarity(target.reshape(1, 1, -1), flat, dim=-1)


class GCAgent:
    """The part of `GC_Agent` that a planner sees."""

    def __init__(self, model: EncPredWM) -> None:
        self.model = model.eval()
        self.planner: Any = None

    def set_goal(
        self,
        goal_state: Any,
        kind: type[RepresentationDistance] = RepresentationDistance,
        **objective: Any,
    ) -> None:
        self.goal_state_enc = self.model.encode(_unsqueezed(goal_state), act=False)
        self.objective = kind(self.goal_state_enc, **objective)
        self.planner.set_objective(self.objective)

    def act(self, obs: Any, steps_left: int | None = None) -> Tensor:
        result = self.planner.plan(
            self.model.encode(_unsqueezed(obs), act=True), steps_left=steps_left
        )
        self._prev_losses = result.losses
        self._prev_elite_losses_mean = result.prev_elite_losses_mean
        self._prev_elite_losses_std = result.prev_elite_losses_std
        self._prev_pred_frames_over_iterations = result.pred_frames_over_iterations
        self._predicted_best_encs_over_iterations = result.predicted_best_encs_over_iterations
        return result.actions.cpu()


def _unsqueezed(obs: Any) -> Any:
    if isinstance(obs, Tensor):
        return obs[None]
    return TensorDict({name: value[None] for name, value in obs.items()})


def observation(seed: int, proprio: bool = True) -> Any:
    """uint8 images `(1, 3, 8, 8)` and float32 proprio `(1, 4)`, as a `TensorDict`, or images."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (1, 3, 8, 8), generator=generator, dtype=torch.uint8)
    if not proprio:
        return image
    return TensorDict(visual=image, proprio=torch.randn(1, PROPRIO, generator=generator))
