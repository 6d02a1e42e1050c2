"""lifted_loss and lifted_loss_backward on CPU: the step's inner loop, asked for other things."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from grasp_kernels import native

from .conftest import FEATURES, oracle, same_bits, step_arguments


def loss_arguments(step: list[Any]) -> list[Any]:
    return [step[1], step[0], step[2], step[5], step[6]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("features", FEATURES)
def test_loss_and_backward(features: int, weighted: bool, dtype: torch.dtype) -> None:
    arguments = loss_arguments(step_arguments(3, 6, features, weighted=weighted, dtype=dtype))
    losses = native.lifted_loss(*arguments)
    for loss, truth in zip(losses, oracle("lifted_loss", *arguments)[0], strict=True):
        torch.testing.assert_close(loss.double(), truth, rtol=2e-6, atol=1e-6)

    cotangents = [torch.randn(3, 6), torch.randn(6, 3).t()]
    gradients = native.lifted_loss_backward(*cotangents, *arguments)
    truths, _ = oracle("lifted_loss_backward", *cotangents, *arguments)
    for gradient, truth in zip(gradients, truths, strict=True):
        assert gradient.dtype == dtype
        rtol = 2.0**-8 if dtype == torch.bfloat16 else 2e-6
        torch.testing.assert_close(gradient.double(), truth, rtol=rtol, atol=1e-5)


@pytest.mark.parametrize("features", [4, 67, 5000])
def test_the_three_ops_agree_to_the_bit(features: int) -> None:
    step = step_arguments(3, 6, features)
    arguments = loss_arguments(step)
    dynamics, goal_error, cotangent = native.lifted_step_(step[0].clone(), *step[1:])
    assert all(map(same_bits, native.lifted_loss(*arguments), (dynamics, goal_error)))
    goal_weight = step[3][:, 1:2].expand(3, 6)
    gradient, _ = native.lifted_loss_backward(torch.ones(3, 6), goal_weight, *arguments)
    assert same_bits(gradient, cotangent)


@pytest.mark.parametrize("shape", [(0, 4, 8), (3, 0, 8), (3, 4, 0)])
def test_nothing_to_do(shape: tuple[int, int, int]) -> None:
    arguments = loss_arguments(step_arguments(*shape))
    for loss in native.lifted_loss(*arguments):
        assert torch.equal(loss, torch.zeros(shape[:2]))
    zeros = torch.zeros(shape[:2])
    prediction, trajectory = native.lifted_loss_backward(zeros, zeros, *arguments)
    assert torch.equal(prediction, torch.zeros(shape))
    assert torch.equal(trajectory, torch.zeros(shape[0], shape[1] + 1, shape[2]))


def test_strides_threads_and_batch_do_not_change_bits() -> None:
    arguments = loss_arguments(step_arguments(5, 20, 5000))
    cotangents = [torch.randn(5, 20), torch.randn(5, 20)]
    torch.set_num_threads(1)
    whole = native.lifted_loss(*arguments) + native.lifted_loss_backward(*cotangents, *arguments)
    torch.set_num_threads(8)
    arguments[1] = arguments[1].transpose(0, 1).contiguous().transpose(0, 1)
    again = native.lifted_loss(*arguments) + native.lifted_loss_backward(*cotangents, *arguments)
    assert all(map(same_bits, again, whole))
    alone = [a[2:3] for a in arguments[:3]] + arguments[3:]
    one = native.lifted_loss(*alone)
    one += native.lifted_loss_backward(*(c[2:3] for c in cotangents), *alone)
    assert all(same_bits(a, b[2:3]) for a, b in zip(one, whole, strict=True))
