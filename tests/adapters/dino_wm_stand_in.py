"""A small model and preprocessor with the signatures, shapes and dtypes of dino_wm's.

Written to `VWorldModel`, `Preprocessor` and `create_objective_fn` as published in
gaoyuezhou/dino_wm; which commits: docs/adapters.md. Not the real model, and no trained one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from patch_encoder import CHANNELS, PatchEncoder
from torch import Tensor, nn

SIDE, PATCHES, PROPRIO, ACTION = 8, 4, 3, 2


class Encoder(PatchEncoder):
    name, emb_dim = "stand-in", CHANNELS


class Predictor(nn.Module):
    """Attention over all tokens of the frames so far, whose positions count from the first frame:
    a frame that is not there is not the same as one that is repeated."""

    def __init__(self, width: int, tokens: int, frames: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.positions = nn.Parameter(0.5 * torch.randn(1, tokens * frames, width))
        self.mix = nn.MultiheadAttention(width, 1, batch_first=True)
        self.feed = nn.Sequential(nn.Linear(width, 32), nn.GELU(), nn.Linear(32, width))
        self.drop = nn.Dropout(0.1)
        self.lengths: list[int] = []

    def forward(self, z: Tensor) -> Tensor:
        count = z.shape[1]
        self.lengths.append(count // self.tokens)
        frame = torch.arange(count, device=z.device) // self.tokens
        x = z + self.positions[:, :count]
        mixed, _ = self.mix(x, x, x, attn_mask=frame[:, None] < frame, need_weights=False)
        return z + 0.5 * self.drop(self.feed(x + mixed))


class VWorldModel(nn.Module):
    def __init__(self, num_hist: int = 3, concat_dim: int = 1) -> None:
        super().__init__()
        self.num_hist, self.num_pred, self.concat_dim = num_hist, 1, concat_dim
        own = CHANNELS if concat_dim == 0 else 4  # an added token is as wide as a patch
        self.num_action_repeat = 1 if concat_dim == 0 else 2
        self.num_proprio_repeat = 1 if concat_dim == 0 else 3
        self.proprio_dim = own * self.num_proprio_repeat
        self.action_dim = own * self.num_action_repeat
        width = CHANNELS + (self.proprio_dim + self.action_dim) * concat_dim
        self.encoder = Encoder()
        self.proprio_encoder = nn.Linear(PROPRIO, own)
        self.action_encoder = nn.Linear(ACTION, own)
        self.predictor = Predictor(width, PATCHES + 2 * (1 - concat_dim), num_hist)

    def encode(self, obs: dict[str, Tensor], act: Tensor) -> Tensor:
        latent, action = self.encode_obs(obs), self.encode_act(act)
        visual, proprio = latent["visual"], latent["proprio"]
        if self.concat_dim == 0:
            return torch.cat([visual, proprio.unsqueeze(2), action.unsqueeze(2)], dim=2)
        tiled = proprio.unsqueeze(2).repeat(1, 1, PATCHES, self.num_proprio_repeat)
        acted = action.unsqueeze(2).repeat(1, 1, PATCHES, self.num_action_repeat)
        return torch.cat([visual, tiled, acted], dim=3)

    def encode_act(self, act: Tensor) -> Tensor:
        return self.action_encoder(act)

    def encode_proprio(self, proprio: Tensor) -> Tensor:
        return self.proprio_encoder(proprio)

    def encode_obs(self, obs: dict[str, Tensor]) -> dict[str, Tensor]:
        images = obs["visual"]
        tokens = self.encoder(images.flatten(0, 1)).unflatten(0, images.shape[:2])
        return {"visual": tokens, "proprio": self.encode_proprio(obs["proprio"])}

    def predict(self, z: Tensor) -> Tensor:
        return self.predictor(z.flatten(1, 2)).unflatten(1, z.shape[1:3])

    def separate_emb(self, z: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        if self.concat_dim == 0:
            visual, proprio, action = z[:, :, :-2], z[:, :, -2], z[:, :, -1]
            return {"visual": visual, "proprio": proprio}, action
        sizes = [CHANNELS, self.proprio_dim, self.action_dim]
        visual, proprio, action = z.split(sizes, -1)
        own = self.proprio_dim // self.num_proprio_repeat
        acted = self.action_dim // self.num_action_repeat
        return {"visual": visual, "proprio": proprio[:, :, 0, :own]}, action[:, :, 0, :acted]

    def replace_actions_from_z(self, z: Tensor, act: Tensor) -> Tensor:
        action = self.encode_act(act)
        if self.concat_dim == 0:
            z[:, :, -1, :] = action
        else:
            tiled = action.unsqueeze(2).repeat(1, 1, z.shape[2], self.num_action_repeat)
            z[..., -self.action_dim :] = tiled
        return z

    def rollout(self, obs_0: dict[str, Tensor], act: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        first = obs_0["visual"].shape[1]
        z = self.encode(obs_0, act[:, :first])
        for t in range(first, act.shape[1]):
            new = self.predict(z[:, -self.num_hist :])[:, -1:]
            z = torch.cat([z, self.replace_actions_from_z(new, act[:, t : t + 1])], dim=1)
        z = torch.cat([z, self.predict(z[:, -self.num_hist :])[:, -1:]], dim=1)
        return self.separate_emb(z)[0], z


class Preprocessor:
    action_mean, action_std = torch.tensor([0.1, -0.2]), torch.tensor([0.5, 2.0])
    proprio_mean, proprio_std = torch.tensor([1.0, 0.0, 2.0]), torch.tensor([2.0, 1.0, 0.5])

    def transform_obs(self, obs: dict[str, np.ndarray]) -> dict[str, Tensor]:
        visual = torch.tensor(obs["visual"]).permute(0, 1, 4, 2, 3) / 255.0
        proprio = (torch.tensor(obs["proprio"]) - self.proprio_mean) / self.proprio_std
        return {"visual": visual, "proprio": proprio}


def create_objective_fn(alpha: float, base: float, mode: str = "last") -> Any:
    metric = nn.MSELoss(reduction="none")

    def apart(pred: dict[str, Tensor], target: dict[str, Tensor], name: str, kept: int) -> Tensor:
        target_all = target[name].expand_as(pred[name])
        return metric(pred[name], target_all).mean(dim=tuple(range(kept, pred[name].ndim)))

    def last(pred: dict[str, Tensor], target: dict[str, Tensor]) -> Tensor:
        end = {name: value[:, -1:] for name, value in pred.items()}
        return apart(end, target, "visual", 1) + alpha * apart(end, target, "proprio", 1)

    def every(pred: dict[str, Tensor], target: dict[str, Tensor]) -> Tensor:
        weights = torch.tensor([base**i for i in range(pred["visual"].shape[1])])
        weights = weights / weights.sum()
        visual = (apart(pred, target, "visual", 2) * weights).mean(dim=1)
        return visual + alpha * (apart(pred, target, "proprio", 2) * weights).mean(dim=1)

    return last if mode == "last" else every


class WandbRun:
    """As dino_wm's `DummyWandbRun`, but it remembers."""

    def __init__(self) -> None:
        self.logged: list[dict[str, float]] = []

    def log(self, logs: dict[str, float]) -> None:
        self.logged.append(logs)


def observation(problems: int, seed: int) -> dict[str, np.ndarray]:
    """Raw, as an environment gives it: uint8 images `(b, 1, 8, 8, 3)`, float32 proprio."""
    generator = np.random.default_rng(seed)
    return {
        "visual": generator.integers(0, 256, (problems, 1, SIDE, SIDE, 3), dtype=np.uint8),
        "proprio": generator.standard_normal((problems, 1, PROPRIO), dtype=np.float32),
    }
