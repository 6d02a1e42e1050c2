"""The MLP tile, the rollout and its adjoint, in the interpreter (see test_interpreter.py).

float32 only: the interpreter computes bfloat16 wrongly; for that see test_mlp_aot.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from grasp_kernels import reference
from grasp_kernels.mlp import MLPDynamics, MLPLayer
from grasp_kernels.reference.mlp_dynamics import ACTIVATIONS
from grasp_kernels.triton import mlp_fits, mlp_rollout, mlp_rollout_backward


def world_model(
    state_features: int,
    action_features: int,
    widths: Sequence[int] = (12,),
    activations: Sequence[str] = ("silu", "identity"),
    norms: Sequence[bool] | None = None,
    residual: bool = True,
    group: int = 0,
) -> tuple[Tensor, Tensor, list[int]]:
    """A random model, packed, in which no constant is 0 or 1."""
    inputs, layers = state_features + action_features, []
    norms = [False] * len(activations) if norms is None else norms
    for width, activation, norm in zip((*widths, state_features), activations, norms, strict=True):
        weight = torch.randn(width, inputs) / inputs**0.5
        gain = (1 + 0.2 * torch.randn(width), 0.2 * torch.randn(width), 1e-5) if norm else None
        share = (group or width) if activation == "simnorm" else 0
        layers.append(MLPLayer(weight, 0.3 * torch.randn(width), gain, activation, share))
        inputs = width
    inputs = state_features + action_features
    mean, scale = 0.3 * torch.randn(inputs), 0.7 + torch.rand(inputs)
    gain, shift = 0.7 + 0.5 * torch.rand(state_features), 0.2 * torch.randn(state_features)
    model = MLPDynamics(tuple(layers), action_features, mean, scale, gain, shift, residual)
    return model.packed()


def copies(arguments: Sequence[Any], dtype: torch.dtype) -> list[Any]:
    """Tensors copied, those of floats to `dtype`; all else as it is."""
    return [
        a.to(dtype if a.is_floating_point() else a.dtype, copy=True) if isinstance(a, Tensor) else a
        for a in arguments
    ]


def assert_near(actual: Tensor, expected: Tensor, tolerance: float = 4e-6) -> None:
    """Equal to `tolerance` of the size of `expected`; NaN where it has NaN.

    A deep chain of float32 sums: 4e-6 is 32 roundings of its largest values.
    """
    assert actual.shape == expected.shape
    assert actual.dtype == torch.float32
    assert torch.equal(actual.isnan(), expected.isnan())
    size = expected.nan_to_num().abs().max().clamp_min(1e-3) if expected.numel() else 1.0
    error = (actual - expected).nan_to_num().abs()
    assert (error <= tolerance * size).all(), f"{float(error.max() / size):.2g} of {float(size)}"


def check(model: tuple[Tensor, Tensor, list[int]], plans: int, steps: int) -> None:
    """Rollout and adjoint against the float64 reference, on the same states."""
    state_features, action_features = model[2][:2]
    start, actions = torch.randn(plans, state_features), torch.randn(plans, steps, action_features)
    states = mlp_rollout(start, actions, *model)
    arguments = copies((start, actions, *model), torch.float64)
    assert_near(states, reference.mlp_rollout(*arguments))
    cotangent = torch.randn_like(states)
    found = mlp_rollout_backward(cotangent, states, actions, *model)
    arguments = copies((cotangent, states, actions, *model), torch.float64)
    for actual, expected in zip(found, reference.mlp_rollout_backward(*arguments), strict=True):
        assert_near(actual, expected)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_with_and_without_norm(activation: str, norm: bool) -> None:
    kinds = (activation, activation, "identity")
    check(world_model(3, 2, (12, 20), kinds, (norm, norm, False), group=4), 2, 2)


@pytest.mark.parametrize("activation", ["tanh", "simnorm"])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_a_last_layer_of_every_kind(activation: str, norm: bool, residual: bool) -> None:
    kinds, norms = ("relu", activation), (False, norm)
    check(world_model(5, 1, (12,), kinds, norms, residual), 2, 2)


@pytest.mark.parametrize(("width", "group"), [(18, 3), (20, 20), (12, 1), (130, 65), (66, 2)])
def test_simnorm_with_groups_of_any_size(width: int, group: int) -> None:
    kinds = ("simnorm", "identity")
    check(world_model(3, 1, (width,), kinds, (True, False), group=group), 2, 1)


@pytest.mark.parametrize(
    ("state_features", "action_features", "widths"),
    [(1, 1, (12,)), (5, 2, ()), (3, 1, (1,)), (67, 2, (65, 130)), (3, 70, (12,)), (130, 1, (64,))],
)
def test_odd_and_long_sizes(
    state_features: int, action_features: int, widths: tuple[int, ...]
) -> None:
    """Rows of one number, and rows of several chunks of 64; one layer, and no chunk whole."""
    kinds = (*("elu" for _ in widths), "identity")
    norms = (*(True for _ in widths), False)
    check(world_model(state_features, action_features, widths, kinds, norms), 2, 1)


def test_more_plans_than_rows_of_a_program() -> None:
    check(world_model(3, 2), plans=19, steps=2)


def test_no_plans() -> None:
    model = world_model(3, 2)
    states = mlp_rollout(torch.randn(0, 3), torch.randn(0, 4, 2), *model)
    assert states.shape == (0, 5, 3)
    gradients = mlp_rollout_backward(states, states, torch.randn(0, 4, 2), *model)
    assert [g.shape for g in gradients] == [(0, 3), (0, 4, 2)]


@pytest.mark.filterwarnings("ignore:.*encountered")  # inf - inf, and maxima of NaN, in numpy
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_number_that_is_not_finite_stays_in_its_plan(activation: str, value: float) -> None:
    model = world_model(3, 2, (12,), (activation, "identity"), group=4)
    start, actions = torch.randn(3, 3), torch.randn(3, 2, 2)
    clean = mlp_rollout(start, actions, *model)
    actions[1, 0, 0] = value
    states = mlp_rollout(start, actions, *model)
    assert torch.equal(states[[0, 2]], clean[[0, 2]])
    expected = reference.mlp_rollout(*copies((start, actions, *model), torch.float64))
    assert torch.equal(states.isfinite(), expected.isfinite())
    cotangent = torch.ones_like(states)
    gradients = mlp_rollout_backward(cotangent, states, actions, *model)
    assert all(gradient[[0, 2]].isfinite().all() for gradient in gradients)


def test_a_plan_is_the_same_in_any_batch() -> None:
    model = world_model(3, 2)
    start, actions = torch.randn(19, 3), torch.randn(19, 2, 2)
    together = mlp_rollout(start, actions, *model)
    assert torch.equal(mlp_rollout(start[17:], actions[17:], *model), together[17:])


def test_sizes_that_fit() -> None:
    model = world_model(3, 2)[2]
    assert mlp_fits(model)
    assert mlp_fits([64, 2, 1, 2, 512, 2, 0, 0, 64, 0, 0, 0])
    assert not mlp_fits([64, 2, 1, 2, 4096, 2, 0, 0, 64, 0, 0, 0])
    assert not mlp_fits([4000, 2, 1, 1, 4000, 0, 0, 0])
    assert not mlp_fits([4, 2, 1, 12, *[4, 2, 0, 0] * 12])
