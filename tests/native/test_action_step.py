"""action_step_ on CPU: Adam and plain descent, the box to the last bit, NaN let through."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grasp_kernels import native

from .conftest import oracle, same_bits

ADAM = (0.9, 0.999, 1e-8, 1 - 0.9**3, 1 - 0.999**3)


def action_arguments(
    plans: int, steps: int, width: int, *, dtype: torch.dtype, adam: bool, bounded: bool = True
) -> list[Any]:
    shape = (plans, steps, width)
    low = -torch.rand(width).to(dtype) if bounded else None
    high = torch.rand(width).to(dtype) if bounded else None
    return [
        torch.randn(shape).to(dtype),
        torch.randn(shape).to(dtype),
        torch.randn(shape) if adam else None,
        torch.rand(shape) + 0.01 if adam else None,
        torch.rand(plans),
        low,
        high,
        *ADAM,
    ]


def run(arguments: list[Any]) -> list[Any]:
    copies = [a.clone() if isinstance(a, torch.Tensor) else a for a in arguments]
    native.action_step_(*copies)
    return copies


@settings(max_examples=80, deadline=None)
@given(
    plans=st.integers(0, 4),
    steps=st.integers(0, 80),
    width=st.sampled_from([0, 1, 2, 3, 7, 8, 20, 1500]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    adam=st.booleans(),
    bounded=st.booleans(),
)
def test_values(
    plans: int, steps: int, width: int, dtype: torch.dtype, adam: bool, bounded: bool
) -> None:
    arguments = action_arguments(plans, steps, width, dtype=dtype, adam=adam, bounded=bounded)
    after = run(arguments)
    _, truth = oracle("action_step_", *arguments)
    rtol = 2.0**-8 if dtype == torch.bfloat16 else 1e-6
    torch.testing.assert_close(after[0].double(), truth[0], rtol=rtol, atol=1e-5)
    if adam:
        for moment, expected in zip(after[2:4], truth[2:4], strict=True):
            torch.testing.assert_close(moment.double(), expected, rtol=1e-6, atol=2e-7)
    if bounded and after[0].numel():
        assert (after[0] >= arguments[5]).all()
        assert (after[0] <= arguments[6]).all()


@pytest.mark.parametrize("adam", [False, True])
def test_one_bound_is_enough(adam: bool) -> None:
    for keep in (5, 6):
        arguments = action_arguments(2, 9, 3, dtype=torch.float32, adam=adam)
        arguments[11 - keep] = None
        _, truth = oracle("action_step_", *arguments)
        torch.testing.assert_close(run(arguments)[0].double(), truth[0], rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("adam", [False, True])
def test_nan_comes_out_and_stays_in_its_place(adam: bool, dtype: torch.dtype) -> None:
    arguments = action_arguments(3, 5, 7, dtype=dtype, adam=adam)
    clean = run(arguments)[0]
    for index in (0, 1):
        spoiled = [a.clone() if isinstance(a, torch.Tensor) else a for a in arguments]
        spoiled[index][1, 2, 3] = math.nan
        actions = run(spoiled)[0]
        assert actions[1, 2, 3].isnan()
        actions[1, 2, 3] = clean[1, 2, 3]
        assert same_bits(actions, clean)


def test_learning_rate_may_be_expanded_or_wide() -> None:
    arguments = action_arguments(3, 5, 2, dtype=torch.float32, adam=True)
    arguments[4] = torch.tensor([0.1], dtype=torch.float64).expand(3)
    expanded = run(arguments)[0]
    arguments[4] = torch.full((3,), 0.1)
    assert same_bits(expanded, run(arguments)[0])


def test_threads_and_batch_do_not_change_bits() -> None:
    arguments = action_arguments(500, 50, 7, dtype=torch.float32, adam=True)
    torch.set_num_threads(1)
    whole = run(arguments)[0]
    torch.set_num_threads(8)
    assert same_bits(run(arguments)[0], whole)
    alone = [a[3:4] for a in arguments[:5]] + arguments[5:]
    assert same_bits(run(alone)[0], whole[3:4])
