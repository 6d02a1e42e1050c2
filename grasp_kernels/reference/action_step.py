"""One projected gradient step on the actions: plain (SGD) or Adam, then the box."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from grasp_kernels.reference.lifted_loss import compute_dtype, per_plan


def action_update_(
    actions: Tensor,
    gradient: Tensor,
    first_moment: Tensor | None,
    second_moment: Tensor | None,
    lr: float | Tensor,
    low: float | Tensor | None,
    high: float | Tensor | None,
    betas: tuple[float, float],
    epsilon: float,
    corrections: tuple[float, float],
) -> None:
    """One step's arithmetic; plain descent without moments. `corrections` are `1 - beta^k`."""
    dtype = compute_dtype(actions.dtype)
    move = gradient.to(dtype)
    if first_moment is not None and second_moment is not None:
        first_moment.mul_(betas[0]).add_(move, alpha=1 - betas[0])
        second_moment.mul_(betas[1]).addcmul_(move, move, value=1 - betas[1])
        spread = (second_moment / corrections[1]).sqrt() + epsilon
        move = first_moment / corrections[0] / spread
    stepped = (actions.to(dtype) - per_plan(lr, move) * move).to(actions.dtype)
    # maximum and minimum, like clamp, let a NaN through: it must be seen, not turned into a bound.
    if low is not None:
        stepped = stepped.maximum(torch.as_tensor(low, dtype=stepped.dtype, device=stepped.device))
    if high is not None:
        stepped = stepped.minimum(torch.as_tensor(high, dtype=stepped.dtype, device=stepped.device))
    actions.copy_(stepped)


def action_step_(
    actions: Tensor,
    gradient: Tensor,
    state: dict[str, Any] | None,
    *,
    lr: float | Tensor,
    low: float | Tensor | None = None,
    high: float | Tensor | None = None,
    optimizer: str = "adam",
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
) -> None:
    """`actions (N, T, A)` move in place, then are clamped to `[low, high]`, numbers or `(A,)`.

    Adam: Kingma & Ba, arXiv 1412.6980, algorithm 1. An empty `state` starts afresh; it then holds
    `step`, `first_moment` and `second_moment` (in the compute dtype) between calls.
    """
    if optimizer == "sgd":
        action_update_(actions, gradient, None, None, lr, low, high, betas, epsilon, (1.0, 1.0))
        return
    assert state is not None
    moments = next_moments(actions, state)
    corrections = (1 - betas[0] ** state["step"], 1 - betas[1] ** state["step"])
    action_update_(actions, gradient, *moments, lr, low, high, betas, epsilon, corrections)


def next_moments(actions: Tensor, state: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Adam's moments for the coming step, made at zero on first use; counts the step."""
    if not state:
        dtype = compute_dtype(actions.dtype)
        state["step"] = 0
        state["first_moment"] = torch.zeros(actions.shape, dtype=dtype, device=actions.device)
        state["second_moment"] = torch.zeros(actions.shape, dtype=dtype, device=actions.device)
    state["step"] += 1
    return state["first_moment"], state["second_moment"]
