"""A small agent and world model with the signatures, shapes and dtypes of TD-MPC2's.

Written to `TDMPC2`, `WorldModel`, `layers.py` and `math.py` as published in nicklashansen/tdmpc2;
which commits: docs/adapters.md. Not the real model, and no trained one. `Ensemble` is a list, and
`info` a dict, where TD-MPC2 has tensordict's.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

OBSERVATION, LATENT, ACTION = 5, 16, 3


class SimNorm(nn.Module):
    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self.dim = cfg.simnorm_dim

    def forward(self, x: Tensor) -> Tensor:
        return F.softmax(x.view(*x.shape[:-1], -1, self.dim), dim=-1).view(*x.shape)


class NormedLinear(nn.Linear):
    def __init__(self, *args: Any, dropout: float = 0.0, act: Any = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ln = nn.LayerNorm(self.out_features)
        self.act = nn.Mish() if act is None else act
        self.dropout = nn.Dropout(dropout) if dropout else None

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        if self.dropout:
            x = self.dropout(x)
        return self.act(self.ln(x))


def mlp(in_dim: int, dims: list[int], out_dim: int, act: Any = None, dropout: float = 0.0) -> Any:
    sizes = [in_dim, *dims]
    layers: list[nn.Module] = [
        NormedLinear(a, b, dropout=dropout * (i == 0))
        for i, (a, b) in enumerate(zip(sizes, dims, strict=False))
    ]
    last = NormedLinear(sizes[-1], out_dim, act=act) if act else nn.Linear(sizes[-1], out_dim)
    return nn.Sequential(*layers, last)


def two_hot_inv(x: Tensor, cfg: Any) -> Tensor:
    if cfg.num_bins == 0:
        return x
    if cfg.num_bins > 1:
        bins = torch.linspace(cfg.vmin, cfg.vmax, cfg.num_bins, dtype=x.dtype)
        x = torch.sum(F.softmax(x, dim=-1) * bins, dim=-1, keepdim=True)
    return torch.sign(x) * (torch.exp(torch.abs(x)) - 1)


class WorldModel(nn.Module):
    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self.cfg = cfg
        if cfg.multitask:
            self._task_emb = nn.Embedding(len(cfg.tasks), cfg.task_dim, max_norm=1)
            self.register_buffer("_action_masks", torch.zeros(len(cfg.tasks), cfg.action_dim))
            for i in range(len(cfg.tasks)):
                self._action_masks[i, : cfg.action_dims[i]] = 1.0
        hidden, given = 2 * [cfg.mlp_dim], cfg.latent_dim + cfg.action_dim + cfg.task_dim
        encoder = mlp(OBSERVATION + cfg.task_dim, [32], cfg.latent_dim, act=SimNorm(cfg))
        self._encoder = nn.ModuleDict({"state": encoder})
        self._dynamics = mlp(given, hidden, cfg.latent_dim, act=SimNorm(cfg))
        self._reward = mlp(given, hidden, max(cfg.num_bins, 1))
        self._pi = mlp(cfg.latent_dim + cfg.task_dim, hidden, 2 * cfg.action_dim)
        self._Qs = nn.ModuleList(
            mlp(given, hidden, max(cfg.num_bins, 1), dropout=0.01) for _ in range(cfg.num_q)
        )
        for parameter in self.parameters():  # as if it were trained: nothing is 0, or all alike
            parameter.data += 0.1 * torch.randn_like(parameter)
        self.register_buffer("log_std_min", torch.tensor(cfg.log_std_min))
        self.register_buffer("log_std_dif", torch.tensor(cfg.log_std_max) - self.log_std_min)

    def task_emb(self, x: Tensor, task: Tensor) -> Tensor:
        emb = self._task_emb(task.long())
        if x.ndim == 3:
            emb = emb.unsqueeze(0).repeat(x.shape[0], 1, 1)
        elif emb.shape[0] == 1:
            emb = emb.repeat(x.shape[0], 1)
        return torch.cat([x, emb], dim=-1)

    def encode(self, obs: Tensor, task: Tensor | None) -> Tensor:
        if self.cfg.multitask:
            obs = self.task_emb(obs, task)
        return self._encoder["state"](obs)

    def next(self, z: Tensor, a: Tensor, task: Tensor | None) -> Tensor:
        return self._dynamics(self._joined(z, a, task))

    def reward(self, z: Tensor, a: Tensor, task: Tensor | None) -> Tensor:
        return self._reward(self._joined(z, a, task))

    def pi(self, z: Tensor, task: Tensor | None) -> Any:
        if self.cfg.multitask:
            z = self.task_emb(z, task)
        mean, log_std = self._pi(z).chunk(2, dim=-1)
        log_std = self.log_std_min + 0.5 * self.log_std_dif * (torch.tanh(log_std) + 1)
        eps = torch.randn_like(mean)
        if self.cfg.multitask:
            mask = self._action_masks[task]
            mean, log_std, eps = mean * mask, log_std * mask, eps * mask
        action = torch.tanh(mean + eps * log_std.exp())
        mean = torch.tanh(mean)
        if self.cfg.old_pi:
            return mean, action, None, log_std
        return action, {"mean": mean, "log_std": log_std}

    def Q(
        self,
        z: Tensor,
        a: Tensor,
        task: Tensor | None,
        return_type: str = "min",
        target: bool = False,
        detach: bool = False,
    ) -> Tensor:
        given = self._joined(z, a, task)
        out = torch.stack([q(given) for q in self._Qs])
        if return_type == "all":
            return out
        two = two_hot_inv(out[torch.randperm(self.cfg.num_q)[:2]], self.cfg)
        return two.min(0).values if return_type == "min" else two.sum(0) / 2

    def _joined(self, z: Tensor, a: Tensor, task: Tensor | None) -> Tensor:
        if self.cfg.multitask:
            z = self.task_emb(z, task)
        return torch.cat([z, a], dim=-1)


class TDMPC2(nn.Module):
    """The part of the agent that says what a plan is worth."""

    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self.cfg = cfg
        self.device = torch.device("cpu")
        self.model = WorldModel(cfg).eval()
        self.discount = torch.tensor([0.95, 0.97, 0.99]) if cfg.multitask else 0.97
        self.calls = 0
        self.model._encoder["state"].register_forward_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.calls += 1

    @torch.no_grad()
    def _estimate_value(self, z: Tensor, actions: Tensor, task: Tensor | None) -> Tensor:
        """Of `actions (T, N, A)`, as published, with one head for all tasks' discounts."""
        total: Any = 0
        discount: Any = 1
        for t in range(self.cfg.horizon):
            total = total + discount * two_hot_inv(self.model.reward(z, actions[t], task), self.cfg)
            z = self.model.next(z, actions[t], task)
            rate = self.discount[task] if self.cfg.multitask else self.discount
            discount = discount * rate
        action = self.model.pi(z, task)[1 if self.cfg.old_pi else 0]
        return total + discount * self.model.Q(z, action, task, return_type="avg")


def agent(**changes: Any) -> TDMPC2:
    """With two Q functions, "avg" is of all; with so little noise, a sample is the mean."""
    torch.manual_seed(0)
    cfg = {
        "multitask": False,
        "tasks": ["a", "b", "c"],
        "action_dims": [2, 1, 3],
        "task_dim": 0,
        "latent_dim": LATENT,
        "action_dim": ACTION,
        "mlp_dim": 32,
        "simnorm_dim": 8,
        "num_bins": 21,
        "vmin": -3.0,
        "vmax": 3.0,
        "num_q": 2,
        "log_std_min": -20.0,
        "log_std_max": -19.0,
        "horizon": 3,
        "old_pi": False,
        **changes,
    }
    return TDMPC2(SimpleNamespace(**cfg))


def observation(seed: int) -> Tensor:
    return torch.randn(OBSERVATION, generator=torch.Generator().manual_seed(seed))
