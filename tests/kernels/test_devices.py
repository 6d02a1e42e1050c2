"""The device of the arguments is the device of everything: meta tensors stand for a GPU's."""

from __future__ import annotations

import kernel_cases as cases
import pytest
import torch
from torch.overrides import TorchFunctionMode

from grasp_kernels import action_step_, gaussian_noise, lifted_loss, lifted_step_, reference


class NoCopies(TorchFunctionMode):
    """A tensor built on the device from Python numbers, or sent there, makes the host wait."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if isinstance(result, torch.Tensor) and result.device.type == "meta":
            made = name in ("tensor", "as_tensor") and not isinstance(args[0], torch.Tensor)
            sent = name in ("to", "cuda") and args[0].device.type == "cpu"
            assert not made, name
            assert not sent, name
        return result


def meta_step(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    like = {"dtype": dtype, "device": "meta"}
    shapes = {"trajectory": (2, 5, 4), "prediction": (2, 4, 4), "goal": (2, 4)}
    shapes |= dict.fromkeys(("state_lr", "goal_weight", "noise_scale"), (2,))
    tensors = {name: torch.empty(shape, **like) for name, shape in shapes.items()}
    return {**tensors, "plan_ids": torch.empty(2, dtype=torch.int64, device="meta")}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
@pytest.mark.parametrize("noise", ["white", "bridge", "none"])
def test_the_reference_copies_nothing_to_the_device(noise, dtype) -> None:
    """float64 and float16 on a GPU run the reference, in the planner's loop."""
    given = meta_step(dtype)
    ids = given["plan_ids"]
    with NoCopies():
        loss, cotangent = reference.lifted_step_(**given, seed=1, iteration=1, noise=noise)
        words = reference.philox_words(ids, 4, 4, seed=1, iteration=1)
        actions, state = torch.zeros_like(cotangent), {}
        bounds = {"low": given["goal"][0], "high": given["goal"][0]}
        reference.action_step_(actions, cotangent, state, lr=given["state_lr"], **bounds)
    assert {t.device.type for t in (*loss, cotangent, words)} == {"meta"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_numbers_are_filled_in_on_the_device(dtype) -> None:
    """Plain numbers as step sizes and bounds: launched, not copied."""
    given = meta_step(dtype)
    x, p, g = given["trajectory"], given["prediction"], given["goal"]
    numbers = {"state_lr": 0.1, "goal_weight": 0.1, "noise_scale": 0.1}
    with NoCopies():
        lifted_step_(x, p, g, **numbers, seed=1, iteration=1)
        lifted_loss(p, x, g, goal_weight=0.1)
        action_step_(p, p.clone(), {}, lr=0.1, low=-1.0, high=1.0)


def test_the_default_device_does_not_matter(dtype) -> None:
    trajectory, prediction, goal = cases.inputs(2, 3, 5, dtype)
    numbers = {"state_lr": 0.1, "goal_weight": 0.1, "noise_scale": 0.1}

    def everything():
        x = trajectory.clone()
        loss, cotangent = lifted_step_(x, prediction, goal, **numbers, seed=0, iteration=1)
        p = prediction.clone().requires_grad_()
        total = lifted_loss(p, trajectory, goal, goal_weight=0.1).total.sum()
        (gradient,) = torch.autograd.grad(total, p)
        a = prediction.clone()
        action_step_(a, prediction, {}, lr=0.1, low=-0.5, high=0.5)
        xi = gaussian_noise(2, 3, 5, seed=0, iteration=1, noise="bridge", dtype=dtype)
        return [x, *loss, cotangent, gradient, a, xi]

    plain = everything()
    with torch.device("meta"):
        found = everything()
    assert all(cases.same_bits(a, b) for a, b in zip(found, plain, strict=True))
