"""Gradient norms by time step, against derivatives that are known."""

from __future__ import annotations

import pytest
import torch
from diagnosed_models import GROWTH, Bent, linear, setting_of
from grasp_planner.diagnostics import gradient_norms
from torch import Tensor


def test_a_linear_system_by_hand() -> None:
    steps = 6
    found = gradient_norms(setting_of(linear, 2), torch.zeros(1, steps, 2))
    after = torch.tensor([[g ** (steps - 1 - t) for g in GROWTH] for t in range(steps)])
    expected = 2 * after.double().norm(dim=1)  # the error is (1, 1): the idle rollout stays at 0
    torch.testing.assert_close(found.shooting_actions[0], expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(found.shooting_states[0], expected, rtol=1e-6, atol=0)
    # On the straight line each step's defect is g s_t - s_{t+1}, and the action's Jacobian is 1.
    line = torch.linspace(0, 1, steps + 1).double()
    defects = torch.stack([g * line[:-1] - line[1:] for g in GROWTH], dim=1)
    torch.testing.assert_close(found.lifted_actions[0], 2 * defects.norm(dim=1))


@pytest.mark.parametrize("steps", [1, 5])
def test_against_autograd(steps: int) -> None:
    setting = setting_of(
        Bent(), 3, start=torch.randn(4, 3), goal=torch.randn(4, 3), goal_feature_weight=(1, 0, 2)
    )
    actions = torch.randn(4, steps, 2)

    def cost(controls: Tensor) -> Tensor:
        error = setting.rollout(controls)[:, -1] - setting.goal.double()
        return (setting.weight * error.square()).sum()

    jacobian = torch.autograd.functional.jacobian(cost, actions.double())
    found = gradient_norms(setting, actions)
    torch.testing.assert_close(found.shooting_actions, jacobian.norm(dim=2))
    assert found.shooting_states.shape == found.lifted_actions.shape == (4, steps)


def test_on_its_own_rollout_only_the_last_step_has_a_defect() -> None:
    setting, actions = setting_of(linear, 2), torch.randn(1, 5, 2)
    states = setting.rollout(actions)
    found = gradient_norms(setting, actions, states)
    assert float(found.lifted_actions[0, :-1].max()) < 1e-12
    expected = 2 * (states[0, -1] - 1).norm()
    torch.testing.assert_close(found.lifted_actions[0, -1], expected)


def test_nan_shows_in_its_own_problem_only() -> None:
    def broken(state: Tensor, action: Tensor) -> Tensor:
        return (state + action) / (state < 50)  # 1 / False is infinite

    start = torch.tensor([[0.0, 0.0], [99.0, 0.0]])
    found = gradient_norms(setting_of(broken, 2, start=start, goal=start + 1), torch.ones(2, 3, 2))
    assert bool(found.shooting_actions[0].isfinite().all())
    assert not bool(found.shooting_actions[1].isfinite().any())


def test_wrong_states() -> None:
    with pytest.raises(ValueError, match=r"states must be \(1, 4, 2\), got \(1, 3, 2\)"):
        gradient_norms(setting_of(linear, 2), torch.zeros(1, 3, 2), torch.zeros(3, 2))
    with pytest.raises(
        ValueError, match=r"actions must be \(N, T, A\) with N = 1, got \(2, 3, 2\)"
    ):
        gradient_norms(setting_of(linear, 2), torch.zeros(2, 3, 2))
