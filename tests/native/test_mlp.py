"""The MLP ops on CPU: values against the float64 reference, see mlp_results.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernels import mlp_cases as cases

from grasp_kernels import MLPDynamics

from .conftest import same_bits
from .mlp_results import (
    ACTIONS,
    FEATURES,
    LIFTED,
    NARROW,
    PLANS,
    ROLLOUT,
    ROUNDINGS,
    STEPS,
    SYNC,
    WIDTHS,
    assert_best_is_true,
    assert_near,
    both,
    distance,
    lifted_results,
    rollout_results,
    sync_results,
)

# plans, steps, D, A, widths: every size of each list at least twice, in odd company.
SHAPES = [
    (1, 1, 1, 1, (1,)),
    (3, 5, 3, 1, (3,)),
    (29, 1, 4, 2, (17,)),
    (57, 50, 5, 3, (20, 32)),
    (1, 130, 67, 2, (128,)),
    (3, 60, 64, 3, (33, 128)),
    (29, 50, 67, 1, (32, 33, 17)),
    (57, 5, 1, 2, (128, 1)),
    (1, 50, 64, 1, (20,)),
    (3, 130, 4, 3, (17, 33, 20)),
    (57, 60, 3, 2, (32,)),
    (29, 130, 5, 1, (1, 20)),
    (3, 50, 64, 2, ()),
    (57, 1, 67, 3, ()),
    (1, 5, 5, 2, (3,)),
    (3, 1, 64, 1, (128, 128, 128)),
]

# ------------------------------------------------------------------------------------------ values


# A norm over one or three features divides by what may be nearly zero: not a test of sums.
NORMED = [shape for shape in SHAPES if min(shape[-1], default=0) > 3]


@pytest.mark.parametrize(
    ("shape", "norm"),
    [(shape, False) for shape in SHAPES] + [(shape, True) for shape in NORMED],
    ids=str,
)
def test_values_at_odd_shapes(shape: tuple[Any, ...], norm: bool) -> None:
    """Smooth activations: with a kink, one sum in 10**7 lands on its other side in float64."""
    plans, steps, features, actions, widths = shape
    number = SHAPES.index(shape)
    activation = ("mish", "silu", "gelu", "tanh", "elu")[number % 5]
    residual = number % 2 == 0
    dynamics = cases.model(
        features, actions, widths, activation=activation, norm=norm, residual=residual
    )
    arguments = cases.plan_tensors(plans, steps, features, actions)
    options = {"free": number % 3 == 0, "weighted": number % 4 < 2}
    assert_near(ROLLOUT, *both(rollout_results, dynamics, arguments))
    noise = ("white", "bridge", "none")[number % 3]
    boxed = number % 5 == 0
    found = both(lifted_results, dynamics, arguments, noise=noise, boxed=boxed, **options)
    assert_near(LIFTED, *found)
    found = both(sync_results, dynamics, arguments, **options)
    assert_near(SYNC, *found)
    assert_best_is_true(dynamics, arguments, found[0])


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("activation", cases.ACTIVATIONS)
def test_every_activation(activation: str, norm: bool, last: bool) -> None:
    """Few numbers, so that relu's kink is not met: see above."""
    dynamics = cases.model(
        FEATURES,
        ACTIONS,
        WIDTHS,
        activation=activation,
        norm=norm,
        last=activation if last else "identity",
        bias=not norm,
    )
    arguments = cases.plan_tensors(PLANS, STEPS, FEATURES, ACTIONS)
    assert_near(ROLLOUT, *both(rollout_results, dynamics, arguments))
    assert_near(LIFTED, *both(lifted_results, dynamics, arguments))
    assert_near(SYNC, *both(sync_results, dynamics, arguments))


@pytest.mark.parametrize("group", [1, 2, 3, 8, 24])
def test_simnorm_groups(group: int) -> None:
    built = torch.nn.Sequential(
        torch.nn.Linear(14, 24), cases.SimNorm(group), torch.nn.Linear(24, FEATURES)
    ).requires_grad_(False)
    dynamics = MLPDynamics.from_sequential(built, action_features=ACTIONS)
    arguments = cases.plan_tensors(PLANS, STEPS, FEATURES, ACTIONS)
    assert_near(ROLLOUT, *both(rollout_results, dynamics, arguments))
    assert_near(LIFTED, *both(lifted_results, dynamics, arguments))


@pytest.mark.parametrize("noise", ["white", "bridge", "none"])
@pytest.mark.parametrize("steps", [1, 56, 57, 130])
def test_noise_of_long_plans(noise: str, steps: int) -> None:
    """Longer than a tile, a plan is worked on in stretches: the coordinates are the plan's own."""
    dynamics = cases.model(FEATURES, ACTIONS, WIDTHS)
    arguments = cases.plan_tensors(2, steps, FEATURES, ACTIONS)
    for free in (False, True):
        results = both(lifted_results, dynamics, arguments, noise=noise, free=free, iterations=5)
        assert_near(LIFTED, *results)


def test_adam() -> None:
    """Adam divides by the size of the gradient, and a small one has a large relative error.

    The moments are sums of gradients and are held to the usual. A step from rest is lr g / |g|: it
    is right to the relative error of g, so it is held where g is at least a tenth of the usual.
    """
    dynamics = cases.model(FEATURES, ACTIONS, WIDTHS)
    arguments = cases.plan_tensors(PLANS, STEPS, FEATURES, ACTIONS)
    results = both(lifted_results, dynamics, arguments, adam=True, iterations=1)
    assert_near(f"{LIFTED} first_moment second_moment", *results)
    results = both(lifted_results, dynamics, arguments, adam=True, boxed=True, iterations=5)
    found, truth, _ = results
    size = truth[4].sqrt()
    usual = size > 0.1 * size.mean()
    assert usual.float().mean() > 0.8
    # Five steps of at most 0.2, each right to the 8e-7 of a gradient, ten times that where it is
    # small; and as much again for the gradients of actions that differ already.
    assert (found[2] - truth[2])[usual].abs().max() <= 2 * 5 * 0.2 * 10 * ROUNDINGS
    for index in (0, 1, 3, 4):
        assert distance(found[index], truth[index]) <= 10 * ROUNDINGS
    found, truth, _ = both(sync_results, dynamics, arguments, adam=True, steps=5)
    assert distance(found[1], truth[1]) <= 2 * 5 * 0.2 * 10 * ROUNDINGS
    assert distance(found[2], truth[2]) <= 2 * 5 * 0.2 * 10 * ROUNDINGS


def test_stop_cost() -> None:
    dynamics = cases.model(FEATURES, ACTIONS, WIDTHS)
    arguments = cases.plan_tensors(PLANS, STEPS, FEATURES, ACTIONS)
    costs = both(sync_results, dynamics, arguments, steps=0)[1][2]
    stop_cost = float(costs.median()) + 1e-3
    results = both(sync_results, dynamics, arguments, stop_cost=stop_cost)
    assert_near(SYNC, *results)
    found = results[0]
    stopped = costs <= stop_cost
    assert stopped.any()
    assert not stopped.all()
    assert same_bits(found[1][stopped], arguments[1][stopped])
    assert (found[1][~stopped] != arguments[1][~stopped]).any()


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("activation", ["mish", "relu", "simnorm"])
def test_bfloat16_weights(activation: str, norm: bool) -> None:
    """Products of bfloat16 numbers, summed in float32: not float32 ones, and not rounded sums.

    A sum that is off by 1e-7 falls to the other side of a rounding to bfloat16 once in some 2**-9 /
    1e-7 = 20,000 numbers, and that number is then off by up to 2**-8. So single numbers cannot be
    held to less than 2**-8, but as a vector the results can: to far less than what forgetting the
    rounding would change.
    """
    dynamics = cases.model(
        FEATURES, ACTIONS, WIDTHS, activation=activation, norm=norm, dtype=NARROW
    )
    unrounded = dynamics.to(torch.float32)
    arguments = cases.plan_tensors(PLANS, STEPS, FEATURES, ACTIONS)
    for names, results in ((ROLLOUT, rollout_results), (LIFTED, lifted_results)):
        found, truth, _ = both(results, dynamics, arguments)
        other = both(results, unrounded, arguments)[1]
        for name, one, right, wrong in zip(names.split(), found, truth, other, strict=True):
            forgotten = distance(wrong, right)
            assert distance(one, right) <= 1e-3, name
            assert distance(one, right) <= forgotten / 4, name
            scale = right.abs().mean()
            assert ((one - right).abs() <= 2.0**-6 * (right.abs() + scale)).all(), name


@pytest.mark.parametrize("shape", SHAPES[1:12:2], ids=str)
def test_bfloat16_weights_at_odd_shapes(shape: tuple[Any, ...]) -> None:
    """A rounding that fell the other way (see above) is carried on by the rollout: 2**-8 of it."""
    plans, steps, features, actions, widths = shape
    dynamics = cases.model(features, actions, widths, dtype=NARROW)
    arguments = cases.plan_tensors(plans, steps, features, actions)
    for results, allowed in ((rollout_results, 2.0**-8), (lifted_results, 1e-3)):
        found, truth, _ = both(results, dynamics, arguments)
        for one, other in zip(found, truth, strict=True):
            assert distance(one, other) <= allowed
