"""The fused step and the losses, in the interpreter (see test_interpreter.py)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from grasp_kernels.ops import REFERENCE
from grasp_kernels.testing import assert_close
from grasp_kernels.triton import configs, lifted_loss, lifted_loss_backward, lifted_step_

PLAN_IDS = torch.tensor([3, 2**63 - 1, 2**32])
HORIZON = 9


def problem(plans: int, steps: int, features: int, optional: bool = True) -> dict[str, Any]:
    """The tensors of a step, all with values; without `optional`, weights and gradient are None."""
    return {
        "trajectory": torch.randn(plans, steps + 1, features),
        "prediction": torch.randn(plans, steps, features),
        "goal": torch.randn(plans, features),
        "coefficients": torch.rand(plans, 3),
        "plan_ids": PLAN_IDS[:plans].clone(),
        "feature_weight": torch.rand(features) if optional else None,
        "time_weight": torch.rand(steps) if optional else None,
        "state_gradient": torch.randn(plans, steps + 1, features) if optional else None,
    }


def step(
    p: dict[str, Any],
    noise: str = "white",
    first_step: int = 0,
    free: bool = False,
    run: Any = lifted_step_,
) -> tuple[Tensor, ...]:
    """The moved trajectory (a copy with the strides of the original) and the three results."""
    moved = p["trajectory"].clone(memory_format=torch.preserve_format)
    rest = (0.3, 12345, 4, noise, 3, first_step, HORIZON, free)
    return moved, *run(moved, *list(p.values())[1:], *rest)


def double(p: dict[str, Any]) -> dict[str, Any]:
    return {k: v.double() if v is not None and v.is_floating_point() else v for k, v in p.items()}


def check_step(p: dict[str, Any], **how: Any) -> None:
    moved, dynamics, goal_error, cotangent = step(p, **how)
    expected = step(double(p), run=REFERENCE["lifted_step_"], **how)
    assert_close(moved, expected[0], "lifted_step_")
    assert_close(dynamics, expected[1], "lifted_loss")
    assert_close(goal_error, expected[2], "lifted_loss")
    assert_close(cotangent, expected[3], "lifted_step_")


@pytest.mark.parametrize("features", [1, 3, 5, 67, 130])
def test_step_equals_the_float64_reference(features: int) -> None:
    check_step(problem(2, 3, features))


@pytest.mark.parametrize("noise", ["none", "bridge"])
def test_other_kinds_of_noise(noise: str) -> None:
    check_step(problem(2, 5, 6), noise=noise)


@pytest.mark.parametrize("features", [4, 1032, 1536])
def test_aligned_rows_of_one_or_several_tiles(features: int) -> None:
    check_step(problem(1, 2, features))
    check_step(problem(1, 1, features, optional=False), noise="none")


def test_one_time_step() -> None:
    check_step(problem(1, 1, 6), first_step=HORIZON - 2)


@pytest.mark.parametrize("free", [False, True])
def test_first_and_terminal_rows(free: bool) -> None:
    p = problem(2, 4, 5)
    moved = step(p, first_step=HORIZON - 4, free=free)[0]
    assert torch.equal(moved[:, 0], p["trajectory"][:, 0])
    assert torch.equal(moved[:, -1], p["trajectory"][:, -1]) is not free
    assert (moved[:, 1:-1] != p["trajectory"][:, 1:-1]).all()
    check_step(p, first_step=HORIZON - 4, free=free)


def test_bridge_leaves_a_free_terminal_row_unnoised() -> None:
    p = problem(1, HORIZON, 5)
    noisy, quiet = (step(p, noise=noise, free=True)[0] for noise in ("bridge", "none"))
    assert torch.equal(noisy[:, -1], quiet[:, -1])
    assert (noisy[:, 1:-1] != quiet[:, 1:-1]).all()


def test_zero_noise_scale_is_no_noise() -> None:
    p = problem(2, 4, 5)
    p["coefficients"][0, 2] = 0.0
    noisy, quiet = step(p, noise="white")[0], step(p, noise="none")[0]
    assert torch.equal(noisy[0], quiet[0])
    assert not torch.equal(noisy[1], quiet[1])


def test_expanded_float64_coefficients() -> None:
    p = problem(2, 3, 5)
    p["coefficients"] = torch.tensor([0.1, 0.5, 0.2], dtype=torch.float64).expand(2, 3)
    check_step(p)


@pytest.mark.parametrize("features", [5, 8])
def test_a_slice_is_a_view_into_a_larger_trajectory(features: int) -> None:
    """Strided in plans, time and features; nothing outside the slice is touched."""
    p = problem(2, 3, features)
    larger = torch.full((4, 8, 2 * features), torch.nan)
    view = larger[1::2, 2:6, features:]
    view.copy_(p["trajectory"])
    rest = (0.3, 12345, 4, "white", 3, 1, HORIZON, False)
    results = lifted_step_(view, *list(p.values())[1:], *rest)
    expected = step(p, first_step=1)
    assert torch.equal(view, expected[0])
    for result, same in zip(results, expected[1:], strict=True):
        torch.testing.assert_close(result, same, rtol=1e-6, atol=0)
    assert larger.isnan().sum() == larger.numel() - view.numel()


@pytest.mark.parametrize(("features", "noise"), [(5, "bridge"), (8, "white"), (1032, "none")])
def test_slices_have_the_bits_of_the_whole(features: int, noise: str) -> None:
    p = problem(3, 5, features)
    whole = step(p, noise=noise)
    for plans, start, stop in [(slice(1, 2), 0, 5), (slice(1, 3), 2, 4)]:
        part = {
            "trajectory": p["trajectory"][plans, start : stop + 1],
            "prediction": p["prediction"][plans, start:stop].contiguous(),
            "goal": p["goal"][plans],
            "coefficients": p["coefficients"][plans],
            "plan_ids": p["plan_ids"][plans],
            "feature_weight": p["feature_weight"],
            "time_weight": p["time_weight"][start:stop].contiguous(),
            "state_gradient": p["state_gradient"][plans, start : stop + 1],
        }
        moved, *results = step(part, noise=noise, first_step=start)
        assert torch.equal(moved[:, 1:], whole[0][plans, start + 1 : stop + 1])
        for result, same in zip(results, whole[1:], strict=True):
            assert torch.equal(result, same[plans, start:stop])


def test_states_do_not_depend_on_the_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    p = problem(1, 5, 24)
    moved, dynamics, goal_error, cotangent = step(p)
    for tile in (configs.Tile(1, 32, 1), configs.Tile(4, 8, 2), configs.Tile(2, 16, 1)):
        monkeypatch.setattr(configs, "tile_for", lambda *_, tile=tile: tile)
        other = step(p)
        assert torch.equal(other[0], moved)
        assert torch.equal(other[3], cotangent)
        assert_close(other[1], dynamics, "lifted_loss")
        assert_close(other[2], goal_error, "lifted_loss")


@pytest.mark.filterwarnings("ignore:invalid value")  # numpy's, inside the interpreter
@pytest.mark.parametrize("where", ["trajectory", "prediction", "goal", "coefficients"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_sick_plan_stays_alone(where: str, value: float) -> None:
    p = problem(3, 3, 6)
    healthy = step(p)
    p[where][1] = value
    for sick, well in zip(step(p), healthy, strict=True):
        assert torch.equal(sick[[0, 2]], well[[0, 2]])
    assert not torch.isfinite(step(p)[0][1, 1:]).all() or where == "goal"


@pytest.mark.parametrize(("plans", "steps", "features"), [(0, 3, 4), (2, 0, 4), (2, 3, 0)])
def test_nothing_to_do(plans: int, steps: int, features: int) -> None:
    p = problem(plans, steps, features)
    moved, dynamics, goal_error, cotangent = step(p)
    assert torch.equal(moved, p["trajectory"])
    assert cotangent.shape == (plans, steps, features)
    gradients = lifted_loss_backward(dynamics, goal_error, *loss_arguments(p))
    assert [g.shape for g in gradients] == [p["prediction"].shape, p["trajectory"].shape]
    for loss in (dynamics, goal_error, *lifted_loss(*loss_arguments(p))):
        assert torch.equal(loss, torch.zeros(plans, steps))


def loss_arguments(p: dict[str, Any]) -> list[Tensor]:
    names = ("prediction", "trajectory", "goal", "feature_weight", "time_weight")
    return [p[name] for name in names]


@pytest.mark.parametrize("optional", [True, False])
@pytest.mark.parametrize("features", [3, 130, 1536])
def test_losses_and_their_gradient(features: int, optional: bool) -> None:
    p = problem(2, 3, features, optional)
    losses = lifted_loss(*loss_arguments(p))
    expected = REFERENCE["lifted_loss"](*loss_arguments(double(p)))
    for loss, same in zip(losses, expected, strict=True):
        assert_close(loss, same, "lifted_loss")
    cotangents = [torch.randn(2, 3), torch.randn(2, 3)]
    gradients = lifted_loss_backward(*cotangents, *loss_arguments(p))
    expected = REFERENCE["lifted_loss_backward"](
        *(c.double() for c in cotangents), *loss_arguments(double(p))
    )
    for gradient, same in zip(gradients, expected, strict=True):
        assert_close(gradient, same, "lifted_loss_backward")
    assert (gradients[1][:, 0] == 0).all()


def test_losses_of_a_slice_have_the_bits_of_the_whole() -> None:
    p = problem(3, 6, 1536)
    whole = lifted_loss(*loss_arguments(p))
    p["trajectory"], p["prediction"] = p["trajectory"][1:2, 2:5], p["prediction"][1:2, 2:4]
    p["goal"], p["time_weight"] = p["goal"][1:2], p["time_weight"][2:4].clone()
    p["prediction"] = p["prediction"].contiguous()
    for part, loss in zip(lifted_loss(*loss_arguments(p)), whole, strict=True):
        assert torch.equal(part, loss[1:2, 2:4])
