"""What planners that sample share: smooth random plans, and choosing among many."""

from __future__ import annotations

import torch
from torch import Tensor

from grasp_planner.search import Search


def fresh_actions(
    search: Search,
    count: int,
    stream: int,
    *,
    spread: float = 1.3,
    wander: float = 0.4,
    keep: tuple[float, float] = (0.4, 0.8),
) -> Tensor:
    """Random blocks of actions `(B, count, K, A)` from -1 to 1, smooth in time.

    Each action goes on from the last one by a step of `wander`, or jumps to a place in
    `(-spread, spread)`, clipped. It goes on with a probability from `keep[0]` to `keep[1]`, each
    sample with its own. Noise of iterations `stream ... stream + 2`.
    """
    blocks, width = search.config.blocks, search.problem.action_features
    jump = spread * uniform(search.normals(count, blocks, width, stream), -1.0, 1.0)
    walk = wander * search.normals(count, blocks, width, stream + 1)
    coins = uniform(search.normals(count, blocks, 1, stream + 2))
    least, most = keep
    going_on = least + (most - least) * coins[:, :, 0]  # the first block has no other use for it
    values = [jump[:, :, 0].clamp(-1, 1)]
    for k in range(1, blocks):
        u = torch.where(coins[:, :, k] < going_on, values[-1] + walk[:, :, k], jump[:, :, k])
        values.append(u.clamp(-1, 1))
    return torch.stack(values, 2)


def smallest(cost: Tensor, count: int) -> Tensor:
    """The columns `(B, count)` of the smallest of `(B, R)`, in order; ties by column."""
    return cost.sort(dim=1, stable=True).indices[:, :count]


def take(values: Tensor, columns: Tensor) -> Tensor:
    """`values (B, R, ...)` at `columns (B, C)`."""
    rows = torch.arange(len(values), device=values.device)[:, None]
    return values[rows, columns]


def pick(values: Tensor, coins: Tensor) -> Tensor:
    """`values (B, R, ...)`, one for every coin `(B, C)` in (0, 1)."""
    count = values.shape[1]
    return take(values, (coins * count).long().clamp_max(count - 1))


def uniform(normal: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Normals as uniform numbers."""
    return low + (high - low) * torch.special.ndtr(normal)
