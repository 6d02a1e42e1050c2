"""The MLP ops by several implementations, and how near they must be.

The reference gets the same float32 numbers as float64, at the op. With bfloat16 weights it rounds
the same products.
"""

from __future__ import annotations

from typing import Any

import torch
from kernels import mlp_cases as cases

from grasp_kernels import MLPDynamics, native, reference

from .conftest import in_float64, same_bits

NARROW = torch.bfloat16

PLANS, STEPS, FEATURES, ACTIONS, WIDTHS = 5, 7, 12, 2, (33, 20)

# A result may be off by as much as plain torch in float32, whose sums are ordered otherwise, times
# SPREAD; and where that is lucky, by ROUNDINGS. One number of a layer is a chain of at most 200
# multiply-adds, whose roundings of 2**-24 pile up like a random walk: sqrt(200) * 2**-24 = 8e-7.
SPREAD, ROUNDINGS = 4.0, 8e-7
# Torch itself is asked for this, so that the model says something: a rollout multiplies an error by
# what its Jacobians multiply it by, in up to 130 steps and back.
WELL_POSED = 2e-5


def distance(found: torch.Tensor, truth: torch.Tensor) -> float:
    """|found - truth| / |truth|, as one vector; of what is 0 throughout, |found|."""
    norm = float(truth.double().norm())
    return float((found.double() - truth.double()).norm()) / (norm or 1.0)


def assert_near(names: str, found: Any, truth: Any, plain: Any) -> None:
    """`found` is as near to `truth` (float64) as `plain` (float32) is, give or take."""
    for index, name in enumerate(names.split()):
        assert found[index].dtype == torch.float32, name
        assert found[index].shape == truth[index].shape, name
        torch_is_off = distance(plain[index], truth[index])
        assert torch_is_off <= WELL_POSED, (name, torch_is_off)
        away, allowed = distance(found[index], truth[index]), ROUNDINGS + SPREAD * torch_is_off
        assert away <= allowed, f"{name} is off by {away:.2g}, allowed {allowed:.2g}"


def exact(packed: Any) -> Any:
    """A packed model for the float64 reference: bfloat16 weights say how products are rounded."""
    weights, constants, structure = packed
    return weights if weights.dtype == NARROW else weights.double(), constants.double(), structure


# ---- each op, as a function of (implementation, model, arguments) that changes none of them


def rollout_results(run: Any, packed: Any, arguments: Any) -> tuple[Any, ...]:
    trajectory, actions, _ = arguments
    start = trajectory[:, 0].contiguous()
    states = run.mlp_rollout(start, actions, *packed)
    # Random, but no larger at the end than anywhere: cotangent and states from the arguments.
    gradients = run.mlp_rollout_backward(trajectory, states, actions, *packed)
    return states, *gradients


def lifted_results(
    run: Any,
    packed: Any,
    arguments: Any,
    *,
    adam: bool = False,
    noise: str = "white",
    free: bool = False,
    weighted: bool = False,
    boxed: bool = False,
    iterations: int = 3,
) -> tuple[Any, ...]:
    """history, trajectory, actions, and both moments with Adam; `sound` must stay."""
    trajectory, actions, goal = (tensor.clone() for tensor in arguments)
    plans, like = len(trajectory), trajectory
    generator = torch.Generator().manual_seed(plans)
    rates = torch.rand(plans, 3, generator=generator) * torch.tensor([0.3, 1.0, 0.2])
    w = torch.rand(trajectory.shape[-1], generator=generator).to(like) if weighted else None
    box = torch.full(actions.shape[-1:], 0.6).to(like) if boxed else None
    moments = [torch.zeros_like(actions) if adam else None for _ in range(2)]
    sound = torch.ones(plans, dtype=torch.bool)
    history = run.mlp_lifted_plan_(
        trajectory,
        actions,
        *moments,
        sound,
        goal,
        cases.schedule(iterations).to(like),
        rates.to(like),
        cases.ids(plans),
        w,
        None if box is None else -box,
        box,
        *packed,
        -5,
        4,
        noise,
        3,
        free,
        0.9,
        0.999,
        1e-8,
        1,
    )
    assert sound.all()
    return history, trajectory, actions, *(m for m in moments if m is not None)


def sync_results(
    run: Any,
    packed: Any,
    arguments: Any,
    *,
    adam: bool = False,
    free: bool = False,
    weighted: bool = False,
    steps: int = 3,
    stop_cost: float = -torch.inf,
) -> tuple[Any, ...]:
    """trajectory, actions, best cost, best actions, best states; `sound` must stay."""
    trajectory, actions, goal = (tensor.clone() for tensor in arguments)
    plans, horizon, width = actions.shape
    features = goal.shape[1]
    best = cases.bests(plans, horizon, features, width, trajectory.dtype)
    generator = torch.Generator().manual_seed(plans)
    lr = (0.05 * torch.rand(plans, generator=generator)).to(trajectory)
    w = torch.rand(features, generator=generator).to(trajectory) if weighted else None
    sound = torch.ones(plans, dtype=torch.bool)
    run.mlp_sync_(
        trajectory,
        actions,
        *best,
        sound,
        trajectory[:, 0].clone(),
        goal,
        lr,
        w,
        None,
        None,
        *packed,
        steps,
        adam,
        0.9,
        0.999,
        1e-8,
        stop_cost,
        0.7,
        free,
    )
    assert sound.all()
    return trajectory, actions, *best


LIFTED, SYNC, ROLLOUT = (
    "history trajectory actions",
    "trajectory actions best_cost",  # two rollouts may cost the same: `assert_best_is_true`
    "states start_gradient action_gradient",
)


def both(results: Any, dynamics: MLPDynamics, arguments: Any, **options: Any) -> list[Any]:
    """By the native backend, by the float64 reference, and by the reference in float32."""
    packed = dynamics.packed()
    wide = [in_float64(argument) for argument in arguments]
    return [
        results(native, packed, arguments, **options),
        results(reference, exact(packed), wide, **options),
        results(reference, packed, arguments, **options),
    ]


def assert_best_is_true(dynamics: MLPDynamics, arguments: Any, found: Any) -> None:
    """What is kept as the best is a rollout, of those actions, to the bit."""
    start = arguments[0][:, 0].contiguous()
    states = native.mlp_rollout(start, found[3], *dynamics.packed())
    assert same_bits(states, found[4])
