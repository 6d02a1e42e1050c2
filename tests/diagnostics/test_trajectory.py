"""Residuals and distances along trajectories."""

from __future__ import annotations

import pytest
import torch
from diagnosed_models import Bent, setting_of, step
from grasp_planner.diagnostics import distance_profile, residuals
from torch import Tensor


def test_residuals_by_hand() -> None:
    # The real system goes twice as far as the model believes.
    actions = torch.ones(1, 4, 2)
    states = 0.2 * torch.arange(5.0)[None, :, None] * torch.ones(2)
    found = residuals(step, states, actions, state_scale=torch.tensor([1.0, 2.0]))
    per_step = (0.1**2 + 0.05**2) ** 0.5
    torch.testing.assert_close(found.one_step, torch.full((1, 4), per_step))
    torch.testing.assert_close(found.open_loop, per_step * torch.arange(5.0)[None])
    torch.testing.assert_close(found.predictions, states[:, 1:] - 0.1)
    torch.testing.assert_close(found.rollout, states / 2)


@pytest.mark.parametrize("steps", [1, 5])
def test_a_models_own_rollout_leaves_none(steps: int) -> None:
    model, actions = Bent().train(), torch.randn(steps, 2)
    states = [torch.zeros(1, 3)]
    model.eval()
    with torch.no_grad():
        for action in actions:
            states.append(model(states[-1], action[None]))
    model.train()
    found = residuals(model, torch.cat(states), actions)
    assert model.training
    assert float(found.one_step.max()) < 1e-6
    assert float(found.open_loop.max()) < 1e-5


def test_nan_models_give_nan() -> None:
    found = residuals(lambda s, a: s + a * torch.nan, torch.zeros(4, 2), torch.zeros(3, 2))
    assert bool(found.one_step.isnan().all())
    assert float(found.open_loop[0, 0]) == 0


def test_wrong_lengths() -> None:
    with pytest.raises(ValueError, match=r"actions must be \(B, T, A\) = \(1, 3, A\) for states"):
        residuals(step, torch.zeros(4, 2), torch.zeros(4, 2))


def test_distances_and_the_detour() -> None:
    def first(states: Tensor, problems: Tensor) -> Tensor:
        return states[:, 0].abs()

    setting = setting_of(step, 1, start=torch.zeros(2, 1), goal=torch.ones(2, 1), distance=first)
    ways = torch.tensor([[4.0, 2.0, 3.0, 5.0, 1.0], [4.0, 3.0, 2.0, 1.0, 0.0]])
    found = distance_profile(setting, ways[..., None])
    torch.testing.assert_close(found.distances, ways.double())
    assert found.detour.tolist() == [0.75, 0.0]
    assert (int(found.detour_from[0]), int(found.detour_to[0])) == (1, 3)


def test_wrong_states() -> None:
    with pytest.raises(
        ValueError, match=r"states must be \(B, T \+ 1, D\) with B = 1, got \(4, 1\)"
    ):
        distance_profile(setting_of(step, 1), torch.zeros(4, 1))
