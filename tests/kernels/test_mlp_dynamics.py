"""`MLPDynamics` against torch modules in float64: the map, its gradient, and what is refused."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import Any

import mlp_cases as cases
import pytest
import torch
from torch import nn

from grasp_kernels import MLPDynamics, UnsupportedModel, mlp_rollout
from grasp_kernels.mlp import MLPLayer
from grasp_kernels.reference import mlp_dynamics as reference

FEATURES, ACTIONS = 6, 2
DOUBLE = torch.float64


def rows(dtype: torch.dtype = DOUBLE) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(5, FEATURES, dtype=dtype), torch.randn(5, ACTIONS, dtype=dtype)


# --------------------------------------------------------------------------------------- the map


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("activation", cases.ACTIVATIONS)
def test_it_is_the_module(activation: str, norm: bool, bias: bool, residual: bool) -> None:
    """Value and both gradients, to float64: the same sums, perhaps in another order."""
    built = cases.network(
        FEATURES, ACTIONS, (8, 12), activation=activation, norm=norm, bias=bias, dtype=DOUBLE
    )
    numbers = cases.scales(FEATURES, ACTIONS, DOUBLE, residual)
    dynamics = MLPDynamics.from_sequential(built, action_features=ACTIONS, **numbers)
    leaves = [t.requires_grad_() for t in rows()]
    expected, found = cases.module_of(built, numbers)(*leaves), dynamics(*leaves)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)

    cotangent = torch.randn_like(expected)
    truth = torch.autograd.grad(expected, leaves, cotangent)
    by_torch = torch.autograd.grad(found, leaves, cotangent)
    with torch.no_grad():
        unpacked = reference.unpack(*dynamics.packed())
        _, saved = reference.forward(unpacked, *leaves)
        by_hand = reference.backward(unpacked, saved, cotangent)
    for pair in (by_torch, by_hand):
        for one, other in zip(pair, truth, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


def test_each_normalisation_alone() -> None:
    built = cases.network(FEATURES, ACTIONS, (8,), dtype=DOUBLE)
    state, action = rows()
    plain = MLPDynamics.from_sequential(built, action_features=ACTIONS)(state, action)
    for name, value in cases.scales(FEATURES, ACTIONS, DOUBLE, True).items():
        dynamics = MLPDynamics.from_sequential(built, action_features=ACTIONS, **{name: value})
        found = dynamics(state, action)
        expected = cases.module_of(built, {name: value})(state, action)
        torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)
        assert not torch.allclose(found, plain)


@pytest.mark.parametrize("last", ["tanh", "simnorm"])
def test_an_activation_at_the_end(last: str) -> None:
    """TD-MPC2's latents are simplicial: the last layer is activated too."""
    built = cases.network(FEATURES, ACTIONS, (8,), last=last, dtype=DOUBLE)
    dynamics = MLPDynamics.from_sequential(built, action_features=ACTIONS)
    state, action = rows()
    expected = cases.module_of(built)(state, action)
    torch.testing.assert_close(dynamics(state, action), expected, rtol=1e-13, atol=1e-13)


def test_a_norm_without_its_parameters_and_one_without_its_shift() -> None:
    for options in ({"elementwise_affine": False}, {"bias": False}):
        built = nn.Sequential(
            nn.Linear(8, 16), nn.LayerNorm(16, **options), nn.Tanh(), nn.Linear(16, 6)
        ).double()
        dynamics = MLPDynamics.from_sequential(built, action_features=ACTIONS)
        state, action = rows()
        expected = cases.module_of(built)(state, action)
        torch.testing.assert_close(dynamics(state, action), expected, rtol=1e-13, atol=1e-13)


def test_any_leading_shape_and_any_dtype_of_the_caller() -> None:
    dynamics = cases.model(FEATURES, ACTIONS, residual=True)
    state, action = torch.randn(3, 4, FEATURES), torch.randn(3, 4, ACTIONS)
    found = dynamics(state, action)
    assert found.shape == state.shape
    assert torch.equal(found[1], dynamics(state[1], action[1]))
    wide = dynamics(state.double(), action.double())
    assert wide.dtype == DOUBLE
    assert torch.equal(wide.float(), found)


def test_bfloat16_weights_round_what_they_are_multiplied_with() -> None:
    """Both factors of a product, and nothing else: not the sums, not the activations."""
    built = cases.network(FEATURES, ACTIONS, (8,), activation="silu", dtype=DOUBLE)
    dynamics = MLPDynamics.from_sequential(built.float(), action_features=ACTIONS)
    first, last = built[0], built[2]
    narrow = dynamics.to(torch.bfloat16)
    assert narrow.dtype == torch.bfloat16
    assert narrow.compute_dtype == torch.float32
    state, action = rows(torch.float32)

    def rounded(x: torch.Tensor) -> torch.Tensor:
        return x.bfloat16().double()

    u = rounded(torch.cat((state, action), -1))
    z = u @ rounded(first.weight).T + first.bias.double()
    expected = rounded(z * z.sigmoid()) @ rounded(last.weight).T + last.bias.double()
    torch.testing.assert_close(narrow(state, action).double(), expected, rtol=2e-6, atol=2e-6)
    assert (dynamics(state, action) - expected).abs().max() > 1e-3


def test_in_units() -> None:
    built = cases.network(FEATURES, ACTIONS, (8,), dtype=DOUBLE)
    scale = torch.rand(FEATURES, dtype=DOUBLE) + 0.5
    state, action = rows()
    for residual in (False, True):
        for numbers in (cases.scales(FEATURES, ACTIONS, DOUBLE, residual), {"residual": residual}):
            dynamics = MLPDynamics.from_sequential(built, action_features=ACTIONS, **numbers)
            found = dynamics.in_units(scale)(state / scale, action) * scale
            torch.testing.assert_close(found, dynamics(state, action), rtol=1e-13, atol=1e-13)
            assert dynamics.in_units(None) is dynamics


def test_packed() -> None:
    """The layout every backend reads, number by number."""
    weight = torch.arange(15.0).reshape(3, 5)
    last = torch.arange(100.0, 106.0).reshape(2, 3)
    bias, gain, shift = torch.arange(9.0).add(20).split(3)
    dynamics = MLPDynamics(
        (MLPLayer(weight, bias, (gain, shift, 0.5), "simnorm", 3), MLPLayer(last)),
        action_features=3,
        input_mean=torch.arange(5.0),
        input_scale=torch.full((5,), 4.0),
        output_shift=torch.tensor([8.0, 9.0]),
        residual=True,
    )
    weights, constants, structure = dynamics.packed()
    assert weights.tolist() == [*range(15), *range(100, 106)]
    head = [*range(5), *[0.25] * 5, 1, 1, 8, 9]
    assert constants.tolist() == [*head, *range(20, 29), 0.5, 0, 0]
    assert structure == dynamics.structure == [2, 3, 1, 2, 3, 7, 1, 3, 2, 0, 0, 0]
    assert constants.dtype == weights.dtype == torch.float32
    assert not weights.requires_grad
    assert dynamics.to(torch.bfloat16).packed()[1].dtype == torch.float32
    assert dynamics.to(DOUBLE).packed()[1].dtype == DOUBLE


# ---------------------------------------------------------------------------------- from_sequential


def test_modules_that_do_nothing_in_evaluation_are_passed_over() -> None:
    inner = nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 16), nn.Identity())
    built = nn.Sequential(nn.Identity(), inner, nn.SiLU(), nn.Dropout(0.9), nn.Linear(16, 6))
    assert built.training
    dynamics = MLPDynamics.from_sequential(built.double(), action_features=ACTIONS)
    assert [layer.activation for layer in dynamics.layers] == ["silu", "identity"]
    state, action = rows()
    expected = cases.module_of(built.eval())(state, action)
    torch.testing.assert_close(dynamics(state, action), expected, rtol=1e-13, atol=1e-13)


def test_the_module_is_left_as_it_was() -> None:
    built = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.5), nn.Linear(16, 6))
    built[1].eval()  # flags that differ come back one by one
    before = [parameter.clone() for parameter in built.parameters()]
    generator = torch.get_rng_state()
    dynamics = MLPDynamics.from_sequential(built, action_features=ACTIONS)
    assert [part.training for part in built.modules()] == [True, True, False, True]
    with pytest.raises(ValueError, match="differs from the model"):
        MLPDynamics.from_sequential(Doubled(*built), action_features=ACTIONS)
    assert [part.training for part in built.modules()] == [True, True, False, True]
    assert all(map(torch.equal, built.parameters(), before))
    assert all(p.requires_grad and p.grad is None for p in built.parameters())
    assert torch.equal(torch.get_rng_state(), generator)
    assert dynamics.layers[0].weight is built[0].weight


class Doubled(nn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


class Recentred(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x - 1)


def test_behaviour_that_the_modules_do_not_show() -> None:
    hooked = cases.network(FEATURES, ACTIONS, (8,))
    hooked[0].register_forward_hook(lambda module, inputs, output: output + 0.1)
    for built in (
        Doubled(*cases.network(FEATURES, ACTIONS, (8,))),
        nn.Sequential(Recentred(8, 16), nn.Tanh(), nn.Linear(16, 6)),
        hooked,
    ):
        with pytest.raises(ValueError, match="differs from the model"):
            MLPDynamics.from_sequential(built, action_features=ACTIONS)


def test_check_against_sees_another_map_and_another_shape() -> None:
    dynamics = cases.model(FEATURES, ACTIONS, residual=True)
    dynamics.check_against(dynamics)
    dynamics.to(torch.bfloat16).check_against(dynamics)  # another precision is not another map
    with pytest.raises(ValueError, match="differs from the model"):
        dynamics.check_against(lambda state, action: 1.01 * dynamics(state, action))
    with pytest.raises(ValueError, match="differs from the model by nan"):
        dynamics.check_against(lambda state, action: dynamics(state, action) * torch.nan)
    with pytest.raises(ValueError, match=r"\(32, 5\)"):
        dynamics.check_against(lambda state, action: dynamics(state, action)[:, 1:])


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ([nn.Linear(8, 6), nn.Softplus()], "Softplus is not supported"),
        ([nn.Linear(8, 6), nn.Conv1d(6, 6, 1)], "Conv1d is not supported"),
        ([nn.Conv1d(8, 6, 1)], "Conv1d before the first Linear"),
        ([nn.ReLU(), nn.Linear(8, 6)], "ReLU before the first Linear"),
        ([nn.LayerNorm(8), nn.Linear(8, 6)], "LayerNorm before the first Linear"),
        ([nn.Linear(8, 6), nn.GELU(approximate="tanh")], "only the exact GELU"),
        ([nn.Linear(8, 6), nn.ELU(alpha=2.0)], "only alpha = 1"),
        ([nn.Linear(8, 6), nn.ReLU(), nn.Tanh()], "Tanh after relu"),
        ([nn.Linear(8, 6), nn.ReLU(), nn.LayerNorm(6)], "LayerNorm after relu"),
        ([nn.Linear(8, 6), nn.LayerNorm(3)], "after a layer of 6"),
        ([nn.Linear(8, 6), nn.LayerNorm(6), nn.LayerNorm(6)], "after a layer of 6"),
        ([nn.Linear(8, 6), nn.LeakyReLU()], "LeakyReLU is not supported"),
        ([nn.Linear(8, 6), nn.BatchNorm1d(6)], "BatchNorm1d is not supported"),
        ([nn.Linear(8, 6, dtype=torch.float16)], "float16"),
        ([], "layers must be 1 to 16, got 0"),
        ([nn.Linear(8, 8)] * 17, "layers must be 1 to 16, got 17"),
        ([nn.Linear(8, 8193), nn.Linear(8193, 6)], "wider than 8192"),
    ],
)
def test_modules_that_cannot_be_described(modules: list[nn.Module], message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        MLPDynamics.from_sequential(nn.Sequential(*modules), action_features=ACTIONS)


def test_a_weight_that_is_computed_from_others_is_refused() -> None:
    """It would be read once, and an optimiser step on what it is made of would go unseen."""
    for decorate in (
        torch.nn.utils.parametrizations.weight_norm,
        torch.nn.utils.parametrizations.spectral_norm,
    ):
        built = nn.Sequential(decorate(nn.Linear(8, 16)), nn.Tanh(), nn.Linear(16, 6))
        with pytest.raises(UnsupportedModel, match="weight"):
            MLPDynamics.from_sequential(built, action_features=ACTIONS)


@pytest.mark.parametrize(
    ("modules", "actions", "message"),
    [
        (
            [nn.Linear(8, 16), nn.ReLU(), nn.Linear(17, 6)],
            2,
            "17 inputs, the layer before it is 16",
        ),
        ([nn.Linear(8, 6)], 3, r"D \+ A = 6 \+ 3 inputs, got 8"),
        ([nn.Linear(8, 6), cases.SimNorm(4)], 2, "group must divide its width 6"),
        ([nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 6).double()], 2, r"layers\[1\].weight must be"),
        ([nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 6, device="meta")], 2, r"layers\[1\].weight"),
    ],
)
def test_modules_that_do_not_fit(modules: list[nn.Module], actions: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MLPDynamics.from_sequential(nn.Sequential(*modules), action_features=actions)


def test_named_modules_are_read_in_order() -> None:
    built = nn.Sequential(OrderedDict(z=nn.Linear(8, 4), a=nn.Mish(), m=nn.Linear(4, 6))).double()
    dynamics = MLPDynamics.from_sequential(built, action_features=ACTIONS)
    assert [layer.weight.shape[0] for layer in dynamics.layers] == [4, 6]


# -------------------------------------------------------------------------------------- by hand


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": torch.zeros(6)}, r"layers\[0\].weight must be a tensor"),
        ({"weight": torch.zeros(0, 8)}, r"layers\[0\].weight must be a tensor"),
        ({"weight": torch.zeros(6, 8, dtype=torch.int64)}, r"layers\[0\].weight must be one of"),
        ({"bias": torch.zeros(5)}, r"layers\[0\].bias must be a tensor \(6,\)"),
        ({"bias": torch.zeros(6, device="meta")}, r"layers\[0\].bias must be on cpu"),
        ({"bias": 1.0}, r"layers\[0\].bias"),
        ({"norm": (torch.ones(5), torch.zeros(6), 1e-5)}, r"layers\[0\].norm gain"),
        ({"norm": (torch.ones(6), torch.zeros(5), 1e-5)}, r"layers\[0\].norm shift"),
        ({"norm": (torch.ones(6), torch.zeros(6), 0.0)}, r"layers\[0\].norm epsilon"),
        ({"norm": (torch.ones(6), torch.zeros(6), float("nan"))}, r"layers\[0\].norm epsilon"),
        ({"activation": "softplus"}, r"layers\[0\].activation 'softplus'"),
        ({"activation": "simnorm"}, r"layers\[0\].group"),
        ({"activation": "simnorm", "group": 4}, r"layers\[0\].group"),
        ({"activation": "tanh", "group": 2}, r"layers\[0\].group"),
        ({"group": -1}, r"layers\[0\].group"),
    ],
)
def test_layers_that_are_refused(changes: dict[str, Any], message: str) -> None:
    layer = MLPLayer(torch.zeros(6, 8), torch.zeros(6))
    with pytest.raises((TypeError, ValueError), match=message):
        MLPDynamics((replace(layer, **changes),), action_features=2)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("action_features", 0),
        ("action_features", 2.0),
        ("action_features", None),
        ("input_mean", torch.zeros(6)),
        ("input_scale", torch.ones(9)),
        ("input_scale", 2.0),
        ("output_scale", torch.ones(8)),
        ("output_shift", torch.ones(1)),
        ("output_shift", torch.ones(6, device="meta")),
    ],
)
def test_numbers_that_are_refused(name: str, value: Any) -> None:
    arguments = {"action_features": 2, name: value}
    with pytest.raises((TypeError, ValueError), match=name):
        MLPDynamics((MLPLayer(torch.zeros(6, 8)),), **arguments)


def test_an_optimiser_step_in_between_is_seen() -> None:
    """Weights, bias and norm are read anew at every call."""
    built = cases.network(FEATURES, ACTIONS, (8,), norm=True)
    dynamics = MLPDynamics.from_sequential(built, action_features=ACTIONS)
    start, actions = torch.randn(3, FEATURES), torch.randn(3, 4, ACTIONS)
    before = mlp_rollout(dynamics, start, actions)
    for parameter in built.parameters():
        parameter.grad = torch.randn_like(parameter)
        torch.optim.SGD([parameter], lr=0.1).step()
        after = mlp_rollout(dynamics, start, actions)
        assert (after - before).abs().max() > 1e-3
        with torch.no_grad():
            expected = cases.rollout_loop(cases.module_of(built), start, actions)
        torch.testing.assert_close(after, expected, rtol=1e-5, atol=1e-5)
        before = after
