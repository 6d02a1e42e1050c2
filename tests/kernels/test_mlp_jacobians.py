"""`mlp_jacobians`: an MLP world model and its derivatives, at many rows."""

from __future__ import annotations

import mlp_cases as cases
import pytest
import torch
from torch import Tensor

from grasp_kernels import MLPDynamics, mlp_jacobians, mlp_rollout
from grasp_kernels.testing import assert_close

OP = "mlp_jacobians"


@pytest.fixture(params=cases.BACKENDS, ids=str)
def dtype(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    backend, dtype = request.param
    cases.use_backend(monkeypatch, backend)
    return dtype


def rows(count: int, dynamics: MLPDynamics) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count)
    state = torch.randn(count, dynamics.state_features, generator=generator)
    action = torch.randn(count, dynamics.action_features, generator=generator)
    return state.to(dynamics.compute_dtype), action.to(dynamics.compute_dtype)


def by_autograd(dynamics: MLPDynamics, state: Tensor, action: Tensor) -> list[Tensor]:
    """The model as a module in float64, and torch's own Jacobians of it."""
    wide = dynamics.to(torch.float64)
    given = [
        None if value is None else value.double()
        for value in (wide.input_mean, wide.input_scale, wide.output_scale, wide.output_shift)
    ]
    wide = MLPDynamics(wide.layers, wide.action_features, *given, residual=wide.residual)
    state, action = state.double(), action.double()
    jacobians = torch.func.vmap(torch.func.jacrev(wide, argnums=(0, 1)))(state, action)
    return [wide(state, action), *jacobians]


def assert_right(dynamics: MLPDynamics, count: int) -> None:
    state, action = rows(count, dynamics)
    found = mlp_jacobians(dynamics, state, action)
    for part, expected in zip(found, by_autograd(dynamics, state, action), strict=True):
        assert part.is_contiguous()
        assert_close(part, expected, OP)


SHAPES = [(1, 1, (3,)), (4, 2, (20, 33, 8)), (5, 3, ()), (19, 17, (40,)), (33, 1, (9, 12))]


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_shape(dtype: torch.dtype, shape: tuple, norm: bool, residual: bool) -> None:
    features, actions, widths = shape
    dynamics = cases.model(features, actions, widths, norm=norm, residual=residual, dtype=dtype)
    for count in (1, 7, 40):
        assert_right(dynamics, count)


@pytest.mark.parametrize("last", ["identity", "tanh", "simnorm"])
@pytest.mark.parametrize("activation", cases.SMOOTH)
def test_every_activation(dtype: torch.dtype, activation: str, last: str) -> None:
    assert_right(cases.model(6, 2, (16,), activation=activation, last=last, dtype=dtype), 9)


def test_a_norm_in_the_last_layer(dtype: torch.dtype) -> None:
    """Its unit cotangents are no rows of the weights any more."""
    inner = cases.model(6, 2, (16,), dtype=dtype)
    gain, shift = torch.rand(6, dtype=dtype) + 0.5, torch.rand(6, dtype=dtype)
    *layers, last = inner.layers
    last = type(last)(last.weight, last.bias, (gain, shift, 1e-3), "silu")
    assert_right(MLPDynamics((*layers, last), 2, residual=True), 9)


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", ["reference", "native"])
def test_rows_are_the_adjoint_of_a_rollout_of_one_step(
    backend: str, weights: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounding to bfloat16 included: what one step of `mlp_rollout` sends back for a unit."""
    cases.use_backend(monkeypatch, backend)
    dynamics = cases.model(5, 3, (24, 17), residual=True, dtype=weights)
    state, action = rows(8, dynamics)
    found = mlp_jacobians(dynamics, state, action)
    for i in range(5):
        leaves = state.clone().requires_grad_(), action[:, None].clone().requires_grad_()
        states = mlp_rollout(dynamics, *leaves)
        into_state, into_action = torch.autograd.grad(states[:, 1, i].sum(), leaves)
        close = {"rtol": 1e-5, "atol": 1e-6}
        torch.testing.assert_close(found.prediction, states[:, 1].detach(), **close)
        torch.testing.assert_close(found.state_jacobian[:, i], into_state, **close)
        torch.testing.assert_close(found.action_jacobian[:, i], into_action[:, 0], **close)


def test_any_leading_shape_and_any_strides(dtype: torch.dtype) -> None:
    dynamics = cases.model(4, 2, (9,), dtype=dtype)
    state, action = rows(30, dynamics)
    flat = mlp_jacobians(dynamics, state, action)
    for leading in ((5, 6), (2, 3, 5), (30,)):
        shaped = mlp_jacobians(
            dynamics,
            state.view(*leading, 4),
            torch.stack((action, action), -1)[..., 1].view(*leading, 2),
        )
        for one, part in zip(shaped, flat, strict=True):
            assert cases.same(one, part.view(*leading, *part.shape[1:]))
    single = mlp_jacobians(dynamics, state[3], action[3])
    assert [tuple(part.shape) for part in single] == [(4,), (4, 4), (4, 2)]
    for one, part in zip(single, flat, strict=True):
        torch.testing.assert_close(one, part[3])


def test_no_rows(dtype: torch.dtype) -> None:
    dynamics = cases.model(4, 2, (9,), dtype=dtype)
    state, action = rows(0, dynamics)
    found = mlp_jacobians(dynamics, state.view(3, 0, 4), action.view(3, 0, 2))
    assert [tuple(part.shape) for part in found] == [(3, 0, 4), (3, 0, 4, 4), (3, 0, 4, 2)]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("activation", ["silu", "simnorm"])
def test_a_broken_row_is_alone(dtype: torch.dtype, activation: str, bad: float) -> None:
    dynamics = cases.model(4, 2, (9, 20), norm=True, activation=activation, dtype=dtype)
    state, action = rows(40, dynamics)
    clean = mlp_jacobians(dynamics, state, action)
    state[17, 1] = bad
    found = mlp_jacobians(dynamics, state, action)
    others = torch.arange(40) != 17
    for one, part in zip(found, clean, strict=True):
        assert cases.same(one[others], part[others])
    assert not found.prediction[17].isfinite().all()


def test_nothing_is_recorded_for_autograd() -> None:
    dynamics = cases.model(3, 1, (4,))
    state, action = rows(2, dynamics)
    assert not any(p.requires_grad for p in mlp_jacobians(dynamics, state.requires_grad_(), action))
