"""State steps that fake success: found where they are, and not where they are not."""

from __future__ import annotations

import pytest
import torch
from diagnosed_models import setting_of, step
from grasp_planner.diagnostics import adversarial_steps
from torch import Tensor

BRITTLE = 50.0


def brittle(state: Tensor, action: Tensor) -> Tensor:
    """`s' = s + 0.1 a`, but the last feature, which stays 0 by itself, throws the others about."""
    push = BRITTLE * torch.cat([state[:, 2:], state[:, 2:], 0 * state[:, 2:]], dim=1)
    still = torch.tensor([1.0, 1.0, 0.0], dtype=state.dtype)
    return state * still + 0.1 * torch.nn.functional.pad(action, (0, 1)) + push


def path(features: int, steps: int = 8) -> tuple[Tensor, Tensor]:
    """Along the diagonal, a tenth of the way a step; goal at ones."""
    actions = torch.ones(steps, 2)
    states = torch.arange(steps + 1)[:, None] * 0.1 * torch.ones(1, features)
    if features == 3:
        states[:, 2] = 0
    return states, actions


def test_an_honest_model_needs_the_honest_step() -> None:
    states, actions = path(2)
    setting = setting_of(step, 2, action_low=-1, action_high=1, success_radius=0.05)
    found = adversarial_steps(setting, states, actions)
    assert found.steps.tolist() == [0, 1, 2, 3, 4, 5]
    gap = 2**0.5 * (0.9 - 0.1 * found.steps)
    torch.testing.assert_close(found.gap, gap.double(), rtol=1e-5, atol=0)
    torch.testing.assert_close(found.one_step, torch.full((6,), 0.02**0.5).double())
    torch.testing.assert_close(found.honest_step, found.gap - 0.05)
    assert bool((found.state_step >= 0.999 * found.honest_step).all())  # none can be smaller
    assert bool((found.state_step <= 1.02 * found.honest_step).all())
    assert not bool(found.action_arrives.any())
    # a change of a share k of the gap leaves 1 - k of it
    expected = (1 - found.shares).clamp(min=0)
    assert bool(((found.state_left - expected) > -1e-6).all())
    assert bool(((found.state_left - expected)[:, found.shares < 0.9] < 0.01).all())


def test_a_brittle_direction_is_found() -> None:
    states, actions = path(3)
    setting = setting_of(
        brittle, 3, goal=torch.tensor([1.0, 1.0, 0.0]), goal_feature_weight=(1, 1, 0),
        action_low=-1, action_high=1, success_radius=0.05,
    )  # fmt: skip
    found = adversarial_steps(setting, states, actions)
    assert bool((found.state_step < 0.03 * found.gap).all())
    assert bool((found.state_step > (found.gap - 0.05) / (2**0.5 * BRITTLE) * 0.99).all())
    assert not bool(found.action_arrives.any())  # actions do not reach that direction
    assert bool((found.action_left > 0.8).all())


def test_there_already() -> None:
    setting = setting_of(step, 2, success_radius=0.5)
    found = adversarial_steps(setting, torch.full((3, 2), 0.9), torch.ones(2, 2))
    assert bool(found.honest.all())
    assert bool(found.state_step.isnan().all())
    assert bool(found.action_arrives.all())


def test_the_same_numbers_every_time() -> None:
    states, actions = path(2)
    setting = setting_of(step, 2, success_radius=0.05)
    first, second = (adversarial_steps(setting, states, actions, seed=7) for _ in range(2))
    assert torch.equal(first.state_step, second.state_step)
    assert torch.equal(first.action_left, second.action_left)


def test_one_step_of_one_problem_of_several() -> None:
    starts = torch.zeros(2, 2)
    setting = setting_of(
        step, 2, start=starts, goal=torch.tensor([[1.0, 1.0], [0.0, 0.05]]), success_radius=0.02
    )
    found = adversarial_steps(setting, starts, torch.zeros(1, 2), problem=1)
    assert found.gap.tolist() == pytest.approx([0.05])


def test_a_model_of_nan_fakes_nothing() -> None:
    states, actions = path(2)
    setting = setting_of(lambda s, a: s + a * torch.nan, 2, success_radius=0.05)
    found = adversarial_steps(setting, states, actions)
    assert bool(found.state_step.isinf().all())
    assert not bool(found.action_arrives.any())
    assert bool(found.gap.isnan().all())


def test_wrong_arguments() -> None:
    states, actions = path(2)
    setting = setting_of(step, 2, success_radius=0.05)
    with pytest.raises(ValueError, match="steps must be from 0 to 7, got"):
        adversarial_steps(setting, states, actions, torch.tensor([8]))
    with pytest.raises(ValueError, match=r"states must be \(T \+ 1, D\) with T = 8, got"):
        adversarial_steps(setting, states[:4], actions)
    with pytest.raises(ValueError, match="success_radius is not known"):
        adversarial_steps(setting_of(step, 2), states, actions)
