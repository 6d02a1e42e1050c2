"""What the launchers really ask Triton to compile; a stand-in driver takes the place of a GPU.

The launchers run as they would there, up to the launch itself. On aligned, contiguous tensors each
must ask for the very variant whose registers and instructions `grasp_kernels.aot` reports; on
anything else, for something that compiles.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch

pytest.importorskip("triton")
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from grasp_kernels import triton as kernels

pytestmark = pytest.mark.aot

TARGET = GPUTarget("cuda", 90, 32)
PLANS, STEPS, ACTIONS = 2, 8, 4
Call = Callable[[torch.dtype, int], Any]


class StandIn:
    """As much of a driver as a launch needs before it launches."""

    def get_current_target(self) -> GPUTarget:
        return TARGET

    def get_current_device(self) -> str:
        return "no device"

    def get_current_stream(self, device: str) -> int:
        return 0


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The kernels compiled for the launches of this test."""
    compiled: list[Any] = []

    def instead(kernel: Any, grid: tuple[int, ...]) -> Callable[..., None]:
        def run(*args: Any, **kwargs: Any) -> None:
            compiled.append(kernel.run(*args, grid=grid, warmup=True, **kwargs))

        return run

    monkeypatch.setattr(JITFunction, "__getitem__", instead)
    monkeypatch.setattr(triton.runtime.driver, "_active", StandIn())
    return compiled


def lifted(dtype: torch.dtype, features: int) -> list[torch.Tensor]:
    trajectory = torch.zeros(PLANS, STEPS + 1, features, dtype=dtype)
    return [trajectory, torch.zeros_like(trajectory[:, 1:]), torch.zeros_like(trajectory[:, 0])]


def step(noise: str, weighted: bool = False) -> Call:
    def call(dtype: torch.dtype, features: int) -> None:
        trajectory, prediction, goal = lifted(dtype, features)
        optional = [torch.ones(features), torch.ones(STEPS), torch.zeros_like(trajectory)]
        kernels.lifted_step_(
            trajectory,
            prediction,
            goal,
            torch.ones(PLANS, 3),
            torch.arange(PLANS),
            *(optional if weighted else [None] * 3),
            *(0.5, -1, 2**32 - 1, noise, 8, 0, STEPS, False),
        )

    return call


def loss(dtype: torch.dtype, features: int) -> None:
    trajectory, prediction, goal = lifted(dtype, features)
    kernels.lifted_loss(prediction, trajectory, goal, None, None)


def backward(dtype: torch.dtype, features: int) -> None:
    trajectory, prediction, goal = lifted(dtype, features)
    rows = torch.ones(PLANS, STEPS)
    kernels.lifted_loss_backward(rows, rows, prediction, trajectory, goal, None, None)


def noise(kind: str) -> Call:
    def call(dtype: torch.dtype, features: int) -> None:
        arguments = (torch.arange(PLANS), STEPS, features, 7, 1, kind, 8, 0, STEPS, dtype)
        kernels.gaussian_noise(*arguments)

    return call


def action_step(adam: bool) -> Call:
    def call(dtype: torch.dtype, features: int) -> None:
        actions = torch.zeros(PLANS, STEPS, ACTIONS, dtype=dtype)
        moments = [torch.zeros(actions.shape) if adam else None] * 2
        bounds = -torch.ones(ACTIONS, dtype=dtype), torch.ones(ACTIONS, dtype=dtype)
        rates = (0.9, 0.999, 1e-8, 0.1, 0.001)
        kernels.action_step_(actions, actions, *moments, torch.ones(PLANS), *bounds, *rates)

    return call


def words(dtype: torch.dtype, features: int) -> None:
    kernels.philox_words(torch.arange(PLANS), STEPS, features, 7, 1, 0)


def mlp(op: str) -> Call:
    """On the smallest of the models that `grasp_kernels.aot` reports."""

    def call(dtype: torch.dtype, features: int) -> None:
        from grasp_kernels.triton.mlp_variants import MODELS, STEPS

        structure = MODELS["128x3"]
        features, width = structure[:2]
        states = torch.zeros(PLANS, STEPS + 1, features)
        actions = torch.zeros(PLANS, STEPS, width)
        sizes = [features + width, *structure[4::4]]
        weights = torch.zeros(sum(a * b for a, b in pairwise(sizes)), dtype=dtype)
        constants = torch.zeros(2 * sizes[0] + 2 * features + sum(sizes[1:]))
        model = weights, constants, structure
        bounds = -torch.ones(width), torch.ones(width)
        sound, each = torch.ones(PLANS, dtype=torch.bool), torch.ones(PLANS)
        goal = torch.zeros(PLANS, features)
        adam = 0.9, 0.999, 1e-8
        if op == "jacobians":
            kernels.mlp_jacobians(goal, actions[:, 0].contiguous(), *model)
        elif op == "rollout":
            kernels.mlp_rollout(goal, actions, *model)
        elif op == "rollout_backward":
            kernels.mlp_rollout_backward(states, states, actions, *model)
        elif op == "lifted_plan":
            written = (states, actions, actions.clone(), actions.clone(), sound)
            given = (goal, torch.ones(3, 2), torch.ones(PLANS, 3), torch.arange(PLANS), None)
            rest = (-1, 1, "white", 8, False, *adam, 1)
            kernels.mlp_lifted_plan_(*written, *given, *bounds, *model, *rest)
        else:
            written = (states, actions, each, actions.clone(), states.clone(), sound)
            rest = (3, True, *adam, 0.0, 0.5, False)
            kernels.mlp_sync_(*written, goal, goal, each.clone(), None, *bounds, *model, *rest)

    return call


def newton_step(dtype: torch.dtype, features: int) -> None:
    from grasp_kernels.triton.variants import NEWTON

    features, width = NEWTON["4x2"]
    trajectory, prediction, goal = lifted(dtype, features)
    actions, bounds = torch.zeros(PLANS, STEPS, width), [-torch.ones(width), torch.ones(width)]
    jacobians = [torch.zeros(PLANS, STEPS, features, n) for n in (features, width)]
    kernels.lifted_newton_step_(
        trajectory, actions, prediction, *jacobians, goal, torch.ones(PLANS), None, *bounds,
        *(5, 0.5, 0.5, 2),
    )  # fmt: skip


CALLS: dict[str, Call] = {
    "lifted_step_none": step("none"),
    "lifted_step_white": step("white"),
    "lifted_step_bridge": step("bridge"),
    "lifted_step_white_weighted": step("white", weighted=True),
    "lifted_loss": loss,
    "lifted_loss_backward": backward,
    "gaussian_noise_white": noise("white"),
    "gaussian_noise_bridge": noise("bridge"),
    "action_step_sgd": action_step(adam=False),
    "action_step_adam": action_step(adam=True),
    "philox_words": words,
    "mlp_rollout_128x3": mlp("rollout"),
    "mlp_rollout_backward_128x3": mlp("rollout_backward"),
    "mlp_lifted_plan_128x3": mlp("lifted_plan"),
    "mlp_sync_128x3": mlp("sync"),
    "mlp_jacobians_128x3": mlp("jacobians"),
    "lifted_newton_step_4x2": newton_step,
}


@pytest.mark.parametrize("name", CALLS)
def test_launchers_ask_for_the_variants_that_aot_reports(name: str, launched: list[Any]) -> None:
    from grasp_kernels.triton.variants import variants

    dtype = "int32" if name == "philox_words" else "float32"
    CALLS[name](torch.float32, 1024)
    variant = next(v for v in variants() if (v.name, v.dtype) == (name, dtype))
    source, asked = variant.source(), launched[0].src
    assert asked.signature == source.signature
    assert asked.constants == source.constants
    assert {
        index: attribute for index, attribute in asked.attrs.items() if attribute
    } == source.attrs
    compiled = triton.compile(source, target=TARGET, options=variant.options())
    assert launched[0].asm["ptx"] == compiled.asm["ptx"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("features", [3, 1500])
def test_masked_and_unaligned_kernels_compile(
    features: int, dtype: torch.dtype, launched: list[Any]
) -> None:
    step("white", weighted=True)(dtype, features)
    expected = ["lifted_step_kernel", "sum_feature_tiles_kernel"][: 1 + (features > 1024)]
    assert [kernel.name for kernel in launched] == expected
