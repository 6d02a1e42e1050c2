"""Arguments that overlap the memory being written, however they came to share it."""

from __future__ import annotations

import kernel_cases as cases
import numpy as np
import pytest
import torch

from grasp_kernels import action_step_, lifted_step_

NUMBERS = {"state_lr": 0.1, "goal_weight": 0.3, "noise_scale": 1.0, "seed": 0, "iteration": 1}


def as_numpy(values: torch.Tensor) -> np.ndarray:
    """The bits of a copy, since numpy has no bfloat16."""
    return cases.bits(values.clone()).numpy()


def as_torch(memory: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """The same memory; every call makes a storage of its own."""
    return torch.from_numpy(memory).view(dtype)


@pytest.mark.parametrize(
    ("name", "take"),
    [
        ("goal", lambda x: x[:, 2]),
        ("goal", lambda x: x[:, -1]),
        ("prediction", lambda x: x[:, :-1]),
        ("prediction", lambda x: x[:, 1:]),
        ("state_gradient", lambda x: x),
        ("feature_weight", lambda x: x[0, 1]),
    ],
)
def test_lifted_step(dtype, name, take) -> None:
    values, prediction, goal = cases.inputs(2, 5, 4, dtype)
    given = {"prediction": prediction, "goal": goal, "terminal": "free"}
    if name == "state_gradient":
        given["state_gradient_scale"] = 0.5
    results = []
    for shared in (False, True):
        memory = as_numpy(values)
        trajectory, argument = as_torch(memory, dtype), as_torch(take(memory), dtype)
        assert trajectory.untyped_storage()._cdata != argument.untyped_storage()._cdata
        argument = argument if shared else argument.clone()
        loss, cotangent = lifted_step_(trajectory, **{**given, name: argument}, **NUMBERS)
        results.append([trajectory, *loss, cotangent])
    assert all(cases.same_bits(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("shift", [0, 1])
def test_action_step(dtype, shift) -> None:
    values = torch.randn(1, 7, 3).to(dtype)
    results = []
    for shared in (False, True):
        memory = as_numpy(values)
        actions = as_torch(memory[:, 1:], dtype)
        gradient = as_torch(memory[:, 1 - shift : 7 - shift], dtype)
        gradient = gradient if shared else gradient.clone()
        action_step_(actions, gradient, lr=0.1, low=-0.5, high=0.5, optimizer="sgd")
        results.append(actions)
    assert cases.same_bits(*results)
