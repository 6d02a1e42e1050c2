"""Bad input: an error that names the argument, and every tensor of the caller's as it was."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import kernel_cases as cases
import pytest
import torch

from grasp_kernels import action_step_, gaussian_noise, lifted_loss, lifted_step_

PLANS, STEPS, FEATURES = 2, 3, 4
NAN = float("nan")


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A tensor on another device."""
    return torch.zeros(*shape, dtype=dtype, device="meta")


def snapshot(values: Any) -> list[Any]:
    def copy(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.layout == torch.strided:
            return value if value.device.type == "meta" else value.detach().clone()
        return {k: copy(v) for k, v in value.items()} if isinstance(value, dict) else value

    return [copy(value) for value in values]


def unchanged(values: list[Any], before: list[Any]) -> bool:
    def same(one: Any, other: Any) -> bool:
        if isinstance(one, torch.Tensor) and one.layout == torch.strided:
            return one.device.type == "meta" or torch.equal(
                one.detach().reshape(-1).view(torch.uint8),
                other.reshape(-1).view(torch.uint8),
            )
        if isinstance(one, dict):
            return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
        return one is other or one == other

    return all(same(a, b) for a, b in zip(values, before, strict=True))


def refused(call: Callable[..., Any], arguments: dict[str, Any], name: str) -> None:
    before = snapshot(arguments.values())
    with pytest.raises((TypeError, ValueError), match=rf"\b{re.escape(name)}\b"):
        call(**arguments)
    assert unchanged(list(arguments.values()), before)


def step_arguments() -> dict[str, Any]:
    trajectory, prediction, goal = cases.inputs(PLANS, STEPS, FEATURES, torch.float32)
    return {
        "trajectory": trajectory,
        "prediction": prediction,
        "goal": goal,
        "state_lr": 0.1,
        "goal_weight": 0.1,
        "noise_scale": 0.1,
        "seed": 0,
        "iteration": 1,
    }


STATES = [
    ("prediction", None),
    ("prediction", [[1.0]]),
    ("prediction", torch.zeros(PLANS, STEPS)),
    ("prediction", torch.zeros(PLANS, STEPS, FEATURES, dtype=torch.int64)),
    ("prediction", torch.zeros(PLANS, STEPS, FEATURES, dtype=torch.complex64)),
    ("trajectory", torch.zeros(PLANS, STEPS, FEATURES)),
    ("trajectory", torch.zeros(PLANS, STEPS + 1, FEATURES + 1)),
    ("trajectory", torch.zeros(PLANS + 1, STEPS + 1, FEATURES)),
    ("trajectory", torch.zeros(PLANS, STEPS + 1, FEATURES, dtype=torch.float64)),
    ("trajectory", meta(PLANS, STEPS + 1, FEATURES)),
    ("trajectory", torch.zeros(PLANS, STEPS + 1, FEATURES).to_sparse()),
    ("goal", torch.zeros(FEATURES)),
    ("goal", torch.zeros(PLANS, STEPS, FEATURES)),
    ("goal", torch.zeros(PLANS, FEATURES, dtype=torch.bfloat16)),
    ("goal", meta(PLANS, FEATURES)),
    ("goal", None),
    ("feature_weight", torch.zeros(FEATURES + 1)),
    ("feature_weight", torch.zeros(FEATURES, dtype=torch.int64)),
    ("feature_weight", meta(FEATURES)),
    ("feature_weight", [1.0] * FEATURES),
    ("time_weight", torch.zeros(STEPS + 1)),
    ("time_weight", torch.zeros(STEPS, 1)),
    ("time_weight", meta(STEPS)),
    ("goal_weight", torch.zeros(PLANS + 1)),
    ("goal_weight", torch.zeros(PLANS, 1)),
    ("goal_weight", torch.zeros(PLANS, dtype=torch.int64)),
    ("goal_weight", "0.1"),
    ("goal_weight", None),
    ("goal_weight", meta(PLANS)),
]
STEP_ONLY = [
    ("state_lr", torch.zeros(PLANS + 1)),
    ("state_lr", True),
    ("state_lr", meta(PLANS)),
    ("noise_scale", "loud"),
    ("noise_scale", meta(PLANS)),
    ("seed", -1),
    ("seed", 2**64),
    ("seed", 1.5),
    ("iteration", -1),
    ("iteration", 2**32),
    ("iteration", True),
    ("plan_ids", torch.zeros(PLANS + 1, dtype=torch.int64)),
    ("plan_ids", torch.zeros(PLANS, dtype=torch.int32)),
    ("plan_ids", torch.zeros(PLANS)),
    ("plan_ids", meta(PLANS, dtype=torch.int64)),
    ("plan_ids", [0, 1]),
    ("noise", "pink"),
    ("noise", None),
    ("modes", 0),
    ("modes", 65),
    ("terminal", "loose"),
    ("first_step", -1),
    ("first_step", 2**32),
    ("horizon", STEPS - 1),
    ("state_gradient", torch.zeros(PLANS, STEPS, FEATURES)),
    ("state_gradient", torch.zeros(PLANS, STEPS + 1, FEATURES, dtype=torch.float64)),
    ("state_gradient", meta(PLANS, STEPS + 1, FEATURES)),
    ("state_gradient", 1.0),
    ("trajectory", torch.zeros(1, STEPS + 1, FEATURES).expand(PLANS, STEPS + 1, FEATURES)),
    ("trajectory", torch.zeros(PLANS, STEPS + 1, 1).expand(PLANS, STEPS + 1, FEATURES)),
    ("trajectory", torch.zeros(99).as_strided((PLANS, STEPS + 1, FEATURES), (16, 3, 1))),
    (
        "trajectory",  # written in place, so autograd must not own it
        torch.zeros(PLANS, STEPS + 1, FEATURES, requires_grad=True) * 1.0,
    ),
]


@pytest.mark.parametrize(("name", "value"), STATES)
def test_lifted_loss(backend, name, value) -> None:
    arguments = step_arguments()
    for other in ("state_lr", "noise_scale", "seed", "iteration"):
        del arguments[other]
    refused(lifted_loss, {**arguments, name: value}, name)


@pytest.mark.parametrize(("name", "value"), STATES + STEP_ONLY)
def test_lifted_step(backend, name, value) -> None:
    arguments = {**step_arguments(), name: value}
    if name == "state_gradient":
        arguments["state_gradient_scale"] = 0.5
    refused(lifted_step_, arguments, name)


def test_lifted_step_without_the_state_gradient_it_scales(backend) -> None:
    refused(lifted_step_, {**step_arguments(), "state_gradient_scale": 0.5}, "state_gradient")


def test_weights_that_ask_for_a_gradient(backend) -> None:
    """They would get none; better said than silently zero."""
    arguments = step_arguments()
    for name, size in (("feature_weight", FEATURES), ("time_weight", STEPS)):
        with pytest.raises(ValueError, match=name):
            lifted_loss(
                *(arguments[n] for n in ("prediction", "trajectory", "goal")),
                goal_weight=0.1,
                **{name: torch.ones(size, requires_grad=True)},
            )


def action_arguments(**changes: Any) -> dict[str, Any]:
    return {
        "actions": torch.randn(PLANS, STEPS, FEATURES),
        "gradient": torch.randn(PLANS, STEPS, FEATURES),
        "state": {},
        "lr": 0.1,
        **changes,
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("actions", torch.zeros(PLANS, STEPS)),
        ("actions", torch.zeros(PLANS, STEPS, FEATURES, dtype=torch.int32)),
        ("actions", torch.zeros(PLANS, STEPS, 1).expand(PLANS, STEPS, FEATURES)),
        ("actions", None),
        ("gradient", torch.zeros(PLANS, STEPS, FEATURES + 1)),
        ("gradient", torch.zeros(PLANS, STEPS, FEATURES, dtype=torch.float64)),
        ("gradient", meta(PLANS, STEPS, FEATURES)),
        ("gradient", None),
        ("lr", torch.zeros(PLANS + 1)),
        ("lr", torch.zeros(PLANS, dtype=torch.int64)),
        ("lr", "fast"),
        ("lr", meta(PLANS)),
        ("low", torch.zeros(FEATURES + 1)),
        ("low", torch.zeros(PLANS, STEPS, FEATURES)),
        ("low", meta(FEATURES)),
        ("low", "left"),
        ("high", torch.zeros(FEATURES - 1)),
        ("high", meta(FEATURES)),
        ("optimizer", "momentum"),
        ("state", None),
        ("state", {"step": 1}),
    ],
)
def test_action_step(backend, name, value) -> None:
    refused(action_step_, action_arguments(**{name: value}), name)


@pytest.mark.parametrize(
    ("low", "high"),
    [
        (1.0, -1.0),
        (torch.tensor(1.0), torch.tensor(-1.0)),
        (torch.tensor([0.0, 1.0, 0.0, 0.0]), torch.full((FEATURES,), 0.5)),
        (0.5, torch.full((FEATURES,), 0.25)),
    ],
)
def test_bounds_that_cross(backend, low, high) -> None:
    refused(action_step_, action_arguments(low=low, high=high), "low")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("betas", (1.0, 0.999)),
        ("betas", (0.9, 1.0)),
        ("betas", (-0.1, 0.9)),
        ("betas", (0.9, NAN)),
        ("betas", (0.9,)),
        ("betas", 0.9),
        ("epsilon", 0.0),
        ("epsilon", -1.0),
        ("epsilon", NAN),
        ("epsilon", float("inf")),
        ("epsilon", "small"),
    ],
)
def test_numbers_outside_adams_ranges(backend, name, value) -> None:
    """They would divide by zero, or by what is not a number, some steps later."""
    refused(action_step_, action_arguments(**{name: value}), name)


@pytest.mark.parametrize("step", [None, 1.0, "1", torch.tensor(1)])
def test_a_memory_without_its_step(backend, step) -> None:
    moments = dict.fromkeys(("first_moment", "second_moment"), torch.zeros(PLANS, STEPS, FEATURES))
    refused(action_step_, action_arguments(state={**moments, "step": step}), "step")
    refused(action_step_, action_arguments(state=moments), "step")


@pytest.mark.parametrize("name", ["first_moment", "second_moment"])
def test_moments_of_another_plan(backend, name) -> None:
    """Wrong in shape, device or dtype: each would be read as if it were right."""
    for wrong in (
        torch.zeros(PLANS, STEPS, FEATURES + 1),
        torch.zeros(PLANS, STEPS, FEATURES, dtype=torch.float64),
        torch.zeros(PLANS, STEPS, FEATURES, dtype=torch.bfloat16),
        meta(PLANS, STEPS, FEATURES),
        None,
    ):
        state: dict[str, Any] = {"step": 1}
        for moment in ("first_moment", "second_moment"):
            state[moment] = torch.zeros(PLANS, STEPS, FEATURES)
        state[name] = wrong
        refused(action_step_, action_arguments(state=state), name)


def test_moments_may_have_any_strides(backend) -> None:
    """A user may have sliced them out of a larger batch: right or refused, never silently wrong."""
    arguments = action_arguments()
    actions, gradient = arguments["actions"], arguments["gradient"]
    expected, state = actions.clone(), {}
    for _ in range(3):
        action_step_(expected, gradient, state, lr=0.1)
    block = torch.zeros(2, PLANS, 2 * STEPS, FEATURES)
    strided = {"step": 0, "first_moment": block[0][:, ::2], "second_moment": block[1][:, ::2]}
    for _ in range(3):
        action_step_(actions, gradient, strided, lr=0.1)
    assert cases.same_bits(actions, expected)
    assert not block[:, :, 1::2].any()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("plans", -1),
        ("plans", 2.0),
        ("steps", -1),
        ("features", -1),
        ("seed", -1),
        ("seed", 2**64),
        ("iteration", 2**32),
        ("plan_ids", torch.zeros(3, dtype=torch.int64)),
        ("plan_ids", torch.zeros(2, dtype=torch.int32)),
        ("plan_ids", [0, 1]),
        ("noise", "brown"),
        ("modes", 0),
        ("modes", 100),
        ("horizon", 1),
        ("first_step", -2),
        ("dtype", torch.int32),
        ("dtype", torch.complex64),
    ],
)
def test_gaussian_noise(backend, name, value) -> None:
    arguments = {"plans": 2, "steps": 3, "features": 4, "seed": 0, "iteration": 1}
    refused(gaussian_noise, {**arguments, name: value}, name)


def test_more_rows_than_the_counter_can_name() -> None:
    with pytest.raises(ValueError, match="steps x features"):
        gaussian_noise(1, 1, 8, seed=0, iteration=0, first_step=2**31)
    xi = gaussian_noise(1, 1, 8, seed=0, iteration=0, first_step=2**31 - 4)
    expected = cases.noise([0], [2**31 - 4], 8, seed=0, iteration=0)
    torch.testing.assert_close(xi.double(), expected, rtol=1e-6, atol=1e-6)
