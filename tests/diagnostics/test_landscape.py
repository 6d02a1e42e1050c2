"""Slices through both objectives, against objectives that are known."""

from __future__ import annotations

import pytest
import torch
from diagnosed_models import Bent, linear, setting_of, step
from grasp_planner.diagnostics import landscape
from torch import Tensor


@pytest.mark.parametrize("steps", [1, 6])
def test_the_middle_is_the_plan(steps: int) -> None:
    setting, actions = setting_of(Bent(), 3), torch.randn(steps, 2)
    cost = (setting.rollout(actions[None])[0, -1] - 1).square().sum()
    shooting, lifted = landscape(setting, actions, points=11, plane_points=5, lines=3)
    for slices in (shooting, lifted):  # at its own rollout a plan has no defects
        torch.testing.assert_close(slices.lines[:, 5], cost.expand(3))
        torch.testing.assert_close(slices.plane[2, 2], cost)
        assert slices.gradient_line is not None
        torch.testing.assert_close(slices.gradient_line[5], cost)
        assert slices.gradient_line[6] > slices.gradient_line[4]  # uphill to the right
        assert slices.non_finite == 0
        assert slices.offsets[0] == -slices.offsets[-1] == -0.3


def test_one_variable_by_hand() -> None:
    # s' = s + 0.1 a from 0 to 1, one step, a = 3 in a box of half width 4: cost (0.1 a - 1)^2.
    setting = setting_of(step, 1, action_low=-4, action_high=4)
    shooting, lifted = landscape(setting, torch.full((1, 1), 3.0), points=5, lines=1)
    sign = shooting.lines[0, -1] > shooting.lines[0, 0]
    offsets = shooting.offsets if sign else -shooting.offsets
    expected = (0.1 * (3 - 4 * offsets) - 1).square()
    torch.testing.assert_close(shooting.lines[0], expected)
    assert shooting.gradient_norm == pytest.approx(2 * 0.7 * 0.4)
    assert lifted.gradient_line is not None  # one step is the same for both objectives
    torch.testing.assert_close(lifted.gradient_line, shooting.gradient_line)


def test_minima_are_counted() -> None:
    wavy = setting_of(lambda s, a: s + torch.sin(40 * a), 1)
    smooth = setting_of(linear, 2)
    assert int(landscape(wavy, torch.zeros(1, 1), lines=1)[0].minima) > 2
    for slices in landscape(smooth, torch.zeros(4, 2)):
        assert int(slices.minima.max()) <= 1


def test_at_a_flat_place_there_is_no_gradient_line() -> None:
    shooting, _ = landscape(setting_of(lambda s, a: s + 0 * a, 2), torch.zeros(3, 2))
    assert shooting.gradient_line is None
    assert shooting.gradient_norm == 0


def test_nan_is_counted() -> None:
    def broken(state: Tensor, action: Tensor) -> Tensor:
        return state + action.sqrt()

    shooting, _ = landscape(setting_of(broken, 2), torch.full((3, 2), 0.01))
    assert shooting.non_finite > 0
    assert bool(shooting.lines.isnan().any())


def test_the_same_numbers_every_time() -> None:
    setting, actions = setting_of(Bent(), 3), torch.randn(4, 2)
    first, second = (landscape(setting, actions, seed=5)[1] for _ in range(2))
    assert torch.equal(first.plane, second.plane)
    assert not torch.equal(first.plane, landscape(setting, actions, seed=6)[1].plane)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"reach": 0.0}, "reach must be finite and above 0, got 0.0"),
        ({"lines": 0}, "lines must be at least 1, got 0"),
        ({"points": 10}, "points must be an odd number of at least 3, got 10"),
        ({"plane_points": 1}, "plane_points must be an odd number of at least 3, got 1"),
    ],
)
def test_wrong_arguments(changes: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        landscape(setting_of(step, 2), torch.zeros(3, 2), **changes)  # type: ignore[arg-type]
