"""An MLP's Jacobians at many rows, in the interpreter (see test_interpreter.py)."""

from __future__ import annotations

import importlib

import pytest
import torch
from interpreted_mlp import assert_near, copies, world_model
from torch import Tensor

from grasp_kernels import reference
from grasp_kernels.reference.mlp_dynamics import ACTIVATIONS
from grasp_kernels.triton import mlp_jacobians, mlp_rollout

Model = tuple[Tensor, Tensor, list[int]]
LAUNCHER = importlib.import_module("grasp_kernels.triton.mlp_jacobians")


@pytest.fixture(autouse=True)
def one_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter runs one after the other anyway."""
    monkeypatch.setattr(LAUNCHER, "programs_for", lambda *_: 1)


def inputs(model: Model, rows: int) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, model[2][0]), torch.randn(rows, model[2][1])


def check(model: Model, rows: int = 2) -> None:
    """Against the float64 reference."""
    arguments = (*inputs(model, rows), *model)
    expected = reference.mlp_jacobians(*copies(arguments, torch.float64))
    for actual, right in zip(mlp_jacobians(*arguments), expected, strict=True):
        assert_near(actual, right)


@pytest.mark.parametrize(
    ("activation", "norm"), [*((a, False) for a in ACTIVATIONS), ("silu", True), ("simnorm", True)]
)
def test_every_activation_and_norms(activation: str, norm: bool) -> None:
    kinds = (activation, activation, "identity")
    check(world_model(3, 2, (12, 20), kinds, (norm, norm, False), group=4))


@pytest.mark.parametrize("activation", ["identity", "tanh", "simnorm"])
@pytest.mark.parametrize("norm", [False, True])
def test_a_last_layer_of_every_kind(activation: str, norm: bool) -> None:
    check(world_model(3, 1, (12,), ("relu", activation), (False, norm), residual=not norm))


@pytest.mark.parametrize("activation", ["identity", "elu"])
def test_a_model_of_one_layer(activation: str) -> None:
    check(world_model(5, 2, (), (activation,)))


@pytest.mark.parametrize(
    ("state_features", "action_features", "widths"),
    [(1, 1, (12,)), (3, 1, (1,)), (2, 1, (65, 130)), (2, 70, (12,))],
)
def test_odd_and_long_sizes(
    state_features: int, action_features: int, widths: tuple[int, ...]
) -> None:
    """Rows of one number, and rows of several chunks of 64, none of them whole."""
    kinds = (*("elu" for _ in widths), "identity")
    check(world_model(state_features, action_features, widths, kinds), rows=1)


@pytest.mark.parametrize("programs", [2, 4, 7])
def test_programs_share_tiles_or_take_several_in_turn(
    programs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """33 rows are two tiles, of three features each. The bits are those of a single program."""
    model = world_model(3, 2, (12, 8), ("silu", "tanh", "identity"))
    arguments = (*inputs(model, 33), *model)
    expected = mlp_jacobians(*arguments)
    monkeypatch.setattr(LAUNCHER, "programs_for", lambda *_: programs)
    for actual, right in zip(mlp_jacobians(*arguments), expected, strict=True):
        assert torch.equal(actual, right)


def test_the_prediction_is_that_of_a_rollout_and_rows_are_the_same_in_any_batch() -> None:
    model = world_model(3, 2)
    states, actions = inputs(model, 35)
    together = mlp_jacobians(states, actions, *model)
    rollout = mlp_rollout(states, actions[:, None], *model)
    assert_near(together[0], rollout[:, 1].double(), 1e-6)
    alone = mlp_jacobians(states[33:], actions[33:], *model)
    assert all(torch.equal(a, b[33:]) for a, b in zip(alone, together, strict=True))


def test_no_rows() -> None:
    found = mlp_jacobians(torch.randn(0, 3), torch.randn(0, 2), *world_model(3, 2))
    assert [tensor.shape for tensor in found] == [(0, 3), (0, 3, 3), (0, 3, 2)]


@pytest.mark.filterwarnings("ignore:.*encountered")  # inf - inf, and maxima of NaN, in numpy
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("activation", ["relu", "gelu", "simnorm"])
def test_a_number_that_is_not_finite_stays_in_its_row(activation: str, value: float) -> None:
    model = world_model(3, 2, (12,), (activation, "identity"), group=4)
    states, actions = inputs(model, 3)
    clean = mlp_jacobians(states, actions, *model)
    actions[1, 0] = value
    found = mlp_jacobians(states, actions, *model)
    assert not found[0][1].isfinite().all()
    for actual, right in zip(found, clean, strict=True):
        assert torch.equal(actual[[0, 2]], right[[0, 2]])
