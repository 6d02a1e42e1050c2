"""The projected optimiser step against torch.optim, and bounds that hold to the last bit."""

from __future__ import annotations

from typing import Any

import kernel_cases as cases
import pytest
import torch

from grasp_kernels import action_step_
from grasp_kernels.testing import assert_close

SHAPES = [(1, 1, 1), (3, 5, 2), (2, 1, 17), (4, 33, 3)]


def actions_and_gradients(shape, dtype, count: int = 12):
    actions = torch.randn(shape, dtype=torch.float64).to(dtype)
    return actions, [torch.randn(shape, dtype=torch.float64).to(dtype) for _ in range(count)]


@pytest.mark.parametrize("shape", SHAPES)
def test_adam_is_torchs_adam(dtype, shape) -> None:
    actions, gradients = actions_and_gradients(shape, dtype)
    expected = actions.double().clone().requires_grad_()
    adam = torch.optim.Adam([expected], lr=0.05, betas=(0.8, 0.95), eps=1e-6)
    state: dict[str, Any] = {}
    for gradient in gradients:
        if dtype.itemsize < 4:  # one rounding of the actions at a time
            with torch.no_grad():
                expected.copy_(actions)
        action_step_(actions, gradient, state, lr=0.05, betas=(0.8, 0.95), epsilon=1e-6)
        expected.grad = gradient.double()
        adam.step()
        if dtype == torch.float64:
            torch.testing.assert_close(actions, expected.detach(), rtol=1e-12, atol=1e-12)
        else:
            assert_close(
                actions, expected, "action_step_", magnitude=1.0, scale=len(gradients)
                if dtype == torch.float32 else 1.0,
            )  # fmt: skip
    assert state["step"] == len(gradients)
    moments = adam.state[expected]
    for name, other in (("first_moment", "exp_avg"), ("second_moment", "exp_avg_sq")):
        assert state[name].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert_close(state[name], moments[other], "action_step_", scale=4.0)


@pytest.mark.parametrize("shape", SHAPES)
def test_sgd_is_torchs_sgd(dtype, shape) -> None:
    actions, gradients = actions_and_gradients(shape, dtype, count=1)
    expected = actions.double().clone().requires_grad_()
    expected.grad = gradients[0].double()
    torch.optim.SGD([expected], lr=0.3).step()
    action_step_(actions, gradients[0], lr=0.3, optimizer="sgd")
    if dtype == torch.float64:
        torch.testing.assert_close(actions, expected.detach(), rtol=1e-12, atol=1e-12)
    else:
        assert_close(actions, expected, "action_step_", magnitude=1.0)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize(
    ("low", "high"),
    [(-0.1, 0.3), (-1 / 3, 1 / 3), (1e-3 / 7, 0.7), (-0.123456789012345, -0.1), (None, 0.1)],
)
def test_bounds_hold_to_the_last_bit(dtype, optimizer, low, high) -> None:
    """In float64, where the bound means what the user wrote: no action is outside by a rounding."""
    actions, gradients = actions_and_gradients((3, 7, 5), dtype)
    state: dict[str, Any] = {}
    for gradient in gradients:
        action_step_(actions, gradient, state, lr=1.0, low=low, high=high, optimizer=optimizer)
        exact = actions.double()
        assert low is None or float(exact.min()) >= low
        assert float(exact.max()) <= high
    spacing = {torch.bfloat16: 0.01, torch.float16: 1e-3}.get(dtype, 1e-6)
    assert float(exact.max()) >= high - spacing  # and the box is not made smaller than it must be


def test_bounds_per_action_as_tensors(dtype) -> None:
    actions, gradients = actions_and_gradients((2, 9, 3), dtype)
    low, high = torch.tensor([-0.1, 0.2, -3.0]).double(), torch.tensor([0.1, 0.7, -2.3]).double()
    for like in (torch.float64, dtype):
        given_low, given_high = low.to(like), high.to(like)
        for gradient in gradients:
            action_step_(actions, gradient, lr=1.0, low=given_low, high=given_high, optimizer="sgd")
        assert (actions.double() >= given_low.double()).all()
        assert (actions.double() <= given_high.double()).all()


def test_clamping_lets_nan_through(dtype) -> None:
    """A NaN must be seen; a bound in its place would look like a plan."""
    actions, (gradient,) = actions_and_gradients((2, 3, 4), dtype, count=1)
    gradient[1, 2, 3] = torch.nan
    gradient[0, 0, 0], gradient[0, 0, 1] = torch.inf, -torch.inf
    action_step_(actions, gradient, lr=0.1, low=-1.0, high=1.0, optimizer="sgd")
    assert actions[1, 2, 3].isnan()
    assert actions.isnan().sum() == 1
    assert actions[0, 0, 0] == -1.0
    assert actions[0, 0, 1] == 1.0


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_broken_plan_breaks_no_other(dtype, optimizer, bad) -> None:
    actions, gradients = actions_and_gradients((3, 11, 5), dtype, count=3)
    sound, broken = actions.clone(), actions.clone()
    memory: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for gradient in gradients:
        action_step_(sound, gradient, memory[0], lr=0.1, low=-2.0, high=2.0, optimizer=optimizer)
        gradient[1, 4, 2] = bad
        action_step_(broken, gradient, memory[1], lr=0.1, low=-2.0, high=2.0, optimizer=optimizer)
    keep = torch.ones_like(actions, dtype=torch.bool)
    keep[1, 4, 2] = False
    assert cases.same_bits(sound[keep], broken[keep])


def test_per_plan_step_sizes_equal_separate_calls(dtype) -> None:
    actions, gradients = actions_and_gradients((3, 5, 3), dtype)
    sizes = [0.1, 0.0, 0.7]
    together, state = actions.clone(), {}
    for gradient in gradients:
        action_step_(together, gradient, state, lr=torch.tensor(sizes, dtype=torch.float64))
    for n, size in enumerate(sizes):
        alone, memory = actions[n : n + 1].clone(), {}
        for gradient in gradients:
            action_step_(alone, gradient[n : n + 1], memory, lr=size)
        assert cases.same_bits(alone[0], together[n])
    assert cases.same_bits(together[1], actions[1])  # a step of zero freezes a plan


def test_strides_and_aliases(dtype) -> None:
    actions, (gradient,) = actions_and_gradients((3, 5, 4), dtype, count=1)
    low, high = torch.full((4,), -0.5, dtype=dtype), torch.full((4,), 0.5, dtype=dtype)
    expected = actions.clone()
    action_step_(expected, gradient, {}, lr=0.1, low=low, high=high)
    block = torch.full((6, 10, 9), torch.nan, dtype=dtype)
    view = block[::2, ::2, 1::2]
    view.copy_(actions)
    action_step_(
        view,
        gradient.permute(2, 1, 0).contiguous().permute(2, 1, 0),
        {},
        lr=torch.tensor([0.1], dtype=torch.float64).expand(3),
        low=low.repeat_interleave(2)[::2],
        high=high[:1].expand(4),
    )
    assert cases.same_bits(view, expected)
    assert int(block.isnan().sum()) == block.numel() - view.numel()  # nothing around it is written

    itself = actions.clone()
    expected = actions.clone()
    action_step_(expected, actions, lr=0.1, optimizer="sgd")
    action_step_(itself, itself, lr=0.1, optimizer="sgd")
    assert cases.same_bits(itself, expected)


def test_thread_count_and_batch_do_not_matter(backend) -> None:
    actions, gradients = actions_and_gradients((64, 100, 7), torch.float32, count=3)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            moved, state = actions.clone(), {}
            for gradient in gradients:
                action_step_(moved, gradient, state, lr=0.1)
            results.append(moved)
    finally:
        torch.set_num_threads(before)
    assert cases.same_bits(*results)
    alone, state = actions[5:6].clone(), {}
    for gradient in gradients:
        action_step_(alone, gradient[5:6], state, lr=0.1)
    assert cases.same_bits(alone[0], results[0][5])


def test_writing_is_seen_by_autograd(dtype) -> None:
    actions, (gradient,) = actions_and_gradients((1, 2, 3), dtype, count=1)
    weight = torch.ones(1, 2, 3, dtype=dtype, requires_grad=True)
    product = actions * weight
    action_step_(actions, gradient, {}, lr=0.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0)])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_empty_sizes(dtype, shape, optimizer) -> None:
    actions = torch.zeros(shape, dtype=dtype)
    state: dict[str, Any] = {}
    action_step_(actions, actions.clone(), state, lr=0.1, low=-1.0, high=1.0, optimizer=optimizer)
    assert actions.shape == shape


def test_sgd_needs_and_keeps_no_memory(backend) -> None:
    actions, (gradient,) = actions_and_gradients((1, 2, 3), torch.float32, count=1)
    state: dict[str, Any] = {}
    action_step_(actions, gradient, state, lr=0.1, optimizer="sgd")
    assert state == {}
