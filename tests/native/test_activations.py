"""Activations of the native backend, value and derivative, against their formulas in float64.

They are reached through a model of one layer whose weights are the identity: a rollout of one step
is the activation, and its adjoint of ones is the derivative.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from kernels import mlp_cases as cases
from torch import Tensor

from grasp_kernels import native

FEATURES = 24  # more than a vector, and not a whole number of packs
# In units of what `assert_accurate` says: 3 roundings of 2**-24. Of elu, exp(x) - 1 near 0 is cut
# out of a polynomial that is good to 1.1e-7 of exp(x), which is 7e-7 of x at -0.1.
ERROR, ELU_ERROR = 2e-7, 8e-7


def grid() -> Tensor:
    """`(rows, FEATURES)`: dense from -30 to 30, denser round 0, and far out."""
    dense = torch.linspace(-30, 30, 24001)
    near = torch.logspace(-30, 1.5, 2000)
    joints = torch.tensor([0.34, 0.625, 1.0, 2**0.5, 20.0, 87.0, 88.0, 89.0, 100.0, 1e4, 1e10])
    around = torch.cat([joints * (1 + step * 2.0**-22) for step in range(-2, 3)])
    values = torch.cat((dense, near, -near, around, -around, torch.zeros(1), -torch.zeros(1)))
    rows = -(-len(values) // FEATURES)
    padding = torch.zeros(rows * FEATURES - len(values))
    return torch.cat((values, padding)).view(rows, FEATURES)


def evaluate(activation: str, x: Tensor, group: int = 0) -> tuple[Tensor, Tensor]:
    packed = cases.selecting(activation, x.shape[1], group=group).packed()
    actions = torch.zeros(len(x), 1, 1)
    states = native.mlp_rollout(x, actions, *packed)
    cotangent = torch.zeros_like(states)
    cotangent[:, 1] = 1
    slope, _ = native.mlp_rollout_backward(cotangent, states, actions, *packed)
    return states[:, 1], slope


def by_torch(activation: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """The activation in float64, and its derivative by autograd."""
    leaf = x.double().requires_grad_()
    modules: dict[str, Callable[[Tensor], Tensor]] = {
        name: make() for name, make in cases.MODULES.items()
    }
    value = modules[activation](leaf)
    (slope,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), slope


def assert_accurate(activation: str, x: Tensor, value: Tensor, slope: Tensor) -> None:
    """All of them are x times a factor from -1 to 1, or nearly, that is right to a few 2**-24.

    So the error is a few 2**-24 |x|, near 0 too, where an absolute bound would let anything pass.
    tanh and elu level off, and their errors with them. A derivative is of size 1, and that of
    silu, gelu and mish has a term x (1 - factor), which adds |x| 2**-24 until the factor is 1.
    """
    right, right_slope = by_torch(activation, x)
    size = x.double().abs()
    levels_off = (activation == "tanh") | ((x < 0) & (activation == "elu"))
    error = ELU_ERROR if activation == "elu" else ERROR
    allowed = error * torch.where(levels_off, size.clamp(max=1.0), size)
    wrong = (value - right).abs() > allowed
    assert not wrong.any(), (activation, x[wrong][:5], value[wrong][:5], right[wrong][:5])
    allowed = ERROR * size.clamp(1.0, 20.0)
    if activation in ("relu", "elu"):
        allowed = torch.full_like(allowed, ERROR)
    wrong = (slope - right_slope).abs() > allowed
    assert not wrong.any(), (activation, x[wrong][:5], slope[wrong][:5], right_slope[wrong][:5])


@pytest.mark.parametrize("activation", sorted(cases.MODULES))
def test_accuracy(activation: str) -> None:
    x = grid()
    assert_accurate(activation, x, *evaluate(activation, x))


@pytest.mark.parametrize("activation", sorted(cases.MODULES))
def test_far_out(activation: str) -> None:
    """Where a state has left all bounds but is a number: its slope is a limit too."""
    x = torch.tensor([1e12, 1e14, 1e17, 1e20, 1e30])
    x = torch.cat((x, -x)).repeat_interleave(FEATURES).view(-1, FEATURES)
    assert_accurate(activation, x, *evaluate(activation, x))


@pytest.mark.parametrize("activation", sorted(cases.MODULES))
def test_one_number_alone(activation: str) -> None:
    """In the slim layout: the same bits."""
    x = grid()[::7]
    for one, other in zip(
        evaluate(activation, x.reshape(-1, 1)), evaluate(activation, x), strict=True
    ):
        assert torch.equal(one.view(x.shape), other)


def test_identity_is_exact() -> None:
    x = grid()
    value, slope = evaluate("identity", x)
    assert torch.equal(value, x)
    assert (slope == 1).all()


def test_relu_is_exact() -> None:
    x = grid()
    value, slope = evaluate("relu", x)
    assert torch.equal(value, x.clamp(min=0))
    assert torch.equal(slope, (x > 0).float())


@pytest.mark.parametrize("group", [1, 2, 3, 8, 24])
def test_simnorm(group: int) -> None:
    """A softmax: right to a few 2**-24 of itself, whatever is added to all of a group."""
    x = torch.cat((grid()[:500], 30 * torch.randn(200, FEATURES), grid()[:20] + 1e4))
    value, slope = evaluate("simnorm", x, group)
    leaf = x.double().requires_grad_()
    right = cases.SimNorm(group)(leaf)
    shown = right > 1e-30  # below, the exponential is clamped
    # exp of a difference d: d is rounded to 2**-24 d, and then so is its exponential, relatively;
    # the exponential and the sum of the group add a dozen roundings of their own.
    error = (value - right).abs() / right / (12 - right.log())
    assert error[shown].max() <= 2.0**-24
    assert (value[~shown] <= 1e-29).all()
    (right_slope,) = torch.autograd.grad(right.sum(), leaf)
    assert (slope - right_slope).abs().max() <= 2e-6
    cotangent = torch.randn_like(x)
    packed = cases.selecting("simnorm", FEATURES, group=group).packed()
    actions = torch.zeros(len(x), 1, 1)
    states = native.mlp_rollout(x, actions, *packed)
    both = torch.stack((torch.zeros_like(cotangent), cotangent), 1)
    found, _ = native.mlp_rollout_backward(both, states, actions, *packed)
    right = cases.SimNorm(group)(leaf)
    (expected,) = torch.autograd.grad(right, leaf, cotangent.double())
    assert (found - expected).abs().max() <= 4e-6


@pytest.mark.parametrize("activation", [a for a in cases.ACTIVATIONS if a != "identity"])
@pytest.mark.parametrize("features", [1, 3, 24])
def test_nan_in_nan_out(activation: str, features: int) -> None:
    """Not turned into a number by a clamp or a comparison; the rows beside it do not change."""
    group = features if activation == "simnorm" else 0
    x = torch.linspace(-3, 3, 9 * features).view(9, features)
    clean, clean_slope = evaluate(activation, x, group)
    for bad in (torch.nan, -torch.nan, torch.inf, -torch.inf):
        spoiled = x.clone()
        spoiled[4, features // 2] = bad
        value, slope = evaluate(activation, spoiled, group)
        if bad != bad:
            assert value[4].isnan().all()  # a product with the identity spreads it over the row
        others = torch.arange(9) != 4
        assert torch.equal(value[others], clean[others])
        assert torch.equal(slope[others], clean_slope[others])


@pytest.mark.parametrize("activation", sorted(cases.MODULES))
def test_infinity_alone(activation: str) -> None:
    """A limit where there is one; infinity or NaN (0 times infinity) is as good: both are found."""
    value, _ = evaluate(activation, torch.tensor([[torch.inf], [-torch.inf]]))
    top, bottom = (float(v) for v in value)
    if activation == "tanh":
        assert (top, bottom) == (1.0, -1.0)
    else:
        assert not math.isfinite(top)
        limit = -1.0 if activation == "elu" else 0.0
        assert abs(bottom - limit) <= 1e-7 or not math.isfinite(bottom)
