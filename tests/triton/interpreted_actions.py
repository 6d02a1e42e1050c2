"""The action step, in the interpreter (see test_interpreter.py)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from grasp_kernels.ops import REFERENCE
from grasp_kernels.testing import assert_close
from grasp_kernels.triton import action_step_

ADAM = (0.9, 0.999, 1e-8, 1 - 0.9**3, 1 - 0.999**3)


def inputs(plans: int, steps: int, width: int, adam: bool) -> list[Tensor | None]:
    shape = (plans, steps, width)
    moments = [torch.randn(shape), torch.rand(shape)] if adam else [None, None]
    return [torch.randn(shape), torch.randn(shape), *moments, torch.rand(plans)]


def copies(tensors: list[Tensor | None], dtype: torch.dtype) -> list[Tensor | None]:
    return [None if t is None else t.to(dtype, copy=True) for t in tensors]


@pytest.mark.parametrize("adam", [True, False])
@pytest.mark.parametrize("shape", [(2, 5, 1), (2, 5, 2), (1, 7, 3), (1, 300, 4)])
def test_action_step_equals_the_float64_reference(shape: tuple[int, int, int], adam: bool) -> None:
    tensors = inputs(*shape, adam)
    low, high = -torch.rand(shape[2]), torch.rand(shape[2])
    for bounds in ([None, None], [low, high], [low, None], [None, high]):
        actual, expected = copies(tensors, torch.float32), copies(tensors, torch.float64)
        action_step_(*actual, *bounds, *ADAM)
        REFERENCE["action_step_"](*expected, *copies(bounds, torch.float64), *ADAM)
        for got, want in zip(actual[:4], expected[:4], strict=True):
            if got is not None and want is not None:
                assert_close(got, want, "action_step_")


def test_bounds_are_kept_to_the_last_bit() -> None:
    actions, gradient, _, _, _ = inputs(2, 6, 3, adam=False)
    low, high = torch.tensor([-0.1, -0.7, 0.3]), torch.tensor([0.1, 0.7, 0.3])
    action_step_(actions, gradient, None, None, torch.full((2,), 50.0), low, high, *ADAM)
    assert ((actions == low) | (actions == high)).all()


def test_nan_is_not_turned_into_a_bound() -> None:
    actions, gradient, _, _, lr = inputs(2, 4, 2, adam=False)
    gradient[0, 1, 1] = torch.nan
    bound = torch.ones(2)
    action_step_(actions, gradient, None, None, lr, -bound, bound, *ADAM)
    assert actions.isnan().nonzero().tolist() == [[0, 1, 1]]


def test_one_learning_rate_expanded_in_float64() -> None:
    tensors = inputs(3, 4, 2, adam=False)
    lr = torch.tensor(0.25, dtype=torch.float64).expand(3)
    expected = tensors[0] - 0.25 * tensors[1]
    action_step_(*tensors[:4], lr, None, None, *ADAM)
    assert_close(tensors[0], expected, "action_step_")


def test_no_actions() -> None:
    tensors = inputs(0, 4, 2, adam=True)
    action_step_(*tensors, None, None, *ADAM)
