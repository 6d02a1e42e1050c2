"""Plans for the tests of `lifted_newton_step_`, and the step written out without its scans.

The oracle differentiates the linearised rollout by autograd and solves one dense system: nothing of
it is shared with the reference but the formula.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from grasp_kernels.reference.lifted_newton_step import JITTER

TENSORS = (
    "trajectory",
    "actions",
    "prediction",
    "state_jacobian",
    "action_jacobian",
    "goal",
)
NAMES = (
    *TENSORS,
    "damping",
    "goal_weight",
    "low",
    "high",
    "hold",
    "max_action_step",
    "max_state_step",
    "solves",
)


def arguments(
    plans: int,
    steps: int,
    features: int,
    actions: int,
    *,
    hold: int = 1,
    damping: float = 0.05,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **changes: Any,
) -> dict[str, Any]:
    """By name, for the op: a model near the identity, actions of which some are at their bounds."""
    generator = torch.Generator().manual_seed(seed + plans * 1000 + steps * 10 + features)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    trajectory = draw(plans, steps + 1, features)
    blocks = draw(plans, -(-steps // hold), actions).clamp(-0.7, 0.7)
    around = torch.eye(features) + 0.1 / features**0.5 * draw(plans, steps, features, features)
    given = {
        "trajectory": trajectory,
        "actions": held(blocks, hold, steps),
        "prediction": trajectory[:, 1:] + 0.1 * draw(plans, steps, features),
        "state_jacobian": around,
        "action_jacobian": 0.3 * draw(plans, steps, features, actions),
        "goal": draw(plans, features),
        "damping": torch.full((plans,), damping),
        "goal_weight": None,
        "low": torch.full((actions,), -0.7),
        "high": torch.full((actions,), 0.7),
        "hold": hold,
        "max_action_step": 0.5,
        "max_state_step": 0.5,
        "solves": 2,
        **changes,
    }
    return {name: cast(value, dtype) for name, value in given.items()}


def held(blocks: Tensor, hold: int, steps: int) -> Tensor:
    """`(N, K, A)` -> `(N, T, A)`, every block for `hold` steps."""
    return blocks.repeat_interleave(hold, 1)[:, :steps].contiguous()


def cast(value: Any, dtype: torch.dtype) -> Any:
    """Floating tensors in `dtype`, their own memory; anything else as it is."""
    return value.to(dtype, copy=True) if isinstance(value, Tensor) else value


def positional(given: dict[str, Any], **changes: Any) -> tuple[Any, ...]:
    """As the op takes them; tensors are copies."""
    chosen = {**given, **changes}
    return tuple(v.clone() if isinstance(v := chosen[name], Tensor) else v for name in NAMES)


def public(given: dict[str, Any]) -> tuple[list[Tensor], dict[str, Any]]:
    """As `lifted_newton_step_` takes them: positional tensors, and the rest by name."""
    rest = {name: value for name, value in given.items() if name not in TENSORS}
    return [given[name] for name in TENSORS], rest


def oracle(given: dict[str, Any], plan: int) -> tuple[Tensor, ...]:
    """trajectory, actions, goal error, defect and largest step of one plan, in float64."""
    x, a, p, jacobian, influence, goal = (
        cast(given[name][plan], torch.float64) for name in TENSORS
    )
    steps, width = a.shape
    hold = given["hold"]
    w = torch.ones_like(goal) if given["goal_weight"] is None else given["goal_weight"].double()
    low, high = (
        torch.full((width,), limit).double() if given[name] is None else given[name].double()
        for name, limit in (("low", -torch.inf), ("high", torch.inf))
    )
    defects = p - x[1:]

    def end(blocks: Tensor) -> Tensor:
        """The error at the end of the linearised rollout, as the blocks change."""
        change = torch.zeros_like(goal)
        for t in range(steps):
            change = jacobian[t] @ change + influence[t] @ blocks[t // hold] + defects[t]
        return (w.sqrt() * (x[-1] + change - goal))[w > 0]

    blocks = a[::hold]
    unmoved = torch.zeros_like(blocks)
    error = end(unmoved)
    slope = torch.autograd.functional.jacobian(end, unmoved).flatten(1)
    mu = (float(given["damping"][plan]) + JITTER) * slope.square().sum() / max(len(error), 1)
    free = torch.ones_like(blocks, dtype=torch.bool)
    delta = unmoved
    for _ in range(given["solves"]):
        free &= ~(((blocks <= low) & (delta < 0)) | ((blocks >= high) & (delta > 0)))
        kept = slope * free.flatten()
        # Damped least squares as what it minimises, |kept delta + error|^2 + mu |delta|^2.
        damped = torch.cat((kept, mu.sqrt() * torch.eye(kept.shape[1]).double()))
        aim = torch.cat((-error, torch.zeros(kept.shape[1]).double()))
        delta = torch.linalg.lstsq(damped, aim[:, None]).solution.view_as(blocks)
    most, most_state = given["max_action_step"], given["max_state_step"]
    moved = (blocks + delta.clamp(-most, most)).clamp(low, high).repeat_interleave(hold, 0)[:steps]
    step = moved - a
    change = torch.zeros_like(goal)
    for t in range(steps):
        change = jacobian[t] @ change + influence[t] @ step[t] + defects[t]
        change = change.clamp(-most_state, most_state)
        x[t + 1] += change
    return x, moved, error.square().sum(), defects.square().sum(), step.abs().max()
