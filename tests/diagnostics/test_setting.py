"""What is diagnosed: units, precision, and every argument that is refused."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from diagnosed_models import Bent, setting_of, step
from grasp_planner.diagnostics import Setting
from torch import Tensor, nn

from grasp_kernels import MLPDynamics


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"start": [0.0]}, r"start must be a tensor \(B, D\), got list"),
        ({"start": torch.zeros(2, dtype=torch.int64)}, "start must be floating, got torch.int64"),
        ({"start": torch.tensor([0.0, torch.nan])}, "start must be finite, got NaN or infinity"),
        ({"start": torch.zeros(0, 2)}, r"start must be \(B, D\), none of them 0, got \(0, 2\)"),
        ({"goal": torch.ones(3)}, r"goal must have the shape of start, \(1, 2\), got \(1, 3\)"),
        ({"state_scale": (1.0, 0.0)}, r"state_scale must be above 0, got \[1.0, 0.0\]"),
        ({"state_scale": (1.0,)}, "state_scale must be D = 2 finite numbers"),
        ({"goal_feature_weight": (0, 0)}, "goal_feature_weight must be >= 0 and not all 0"),
        ({"success_radius": -1.0}, "success_radius must be finite and above 0, got -1.0"),
    ],
)
def test_wrong_arguments(changes: dict[str, Any], words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        setting_of(step, 2, **changes)


def test_wrong_bounds() -> None:
    with pytest.raises(ValueError, match="action_low must be a number or A = 2 numbers"):
        setting_of(step, 2, action_low=(0, 0, 0)).bounds(2)
    with pytest.raises(ValueError, match="action_low must not be above action_high, got 1 and 0"):
        setting_of(step, 2, action_low=1, action_high=0).bounds(2)


def test_no_model() -> None:
    with pytest.raises(TypeError, match="world_model must be callable, got int"):
        Setting(3, torch.zeros(2), torch.ones(2))  # type: ignore[arg-type]


def modules() -> list[Any]:
    bent = Bent()
    network = nn.Sequential(nn.Linear(5, 8), nn.SiLU(), nn.Linear(8, 3))
    dynamics = MLPDynamics.from_sequential(network, action_features=2, residual=True)
    return [bent, bent.forward, functools.partial(bent), dynamics, lambda s, a: s + a.sum()]


@pytest.mark.parametrize("kind", range(5))
def test_double_precision(kind: int) -> None:
    model = modules()[kind]
    setting = setting_of(model, 3)
    _, dtype, reason = setting.precise(2)
    assert (dtype, reason) == (torch.float64, "")
    actions = torch.randn(1, 6, 2)
    states = setting.rollout(actions)
    assert states.dtype == torch.float64
    if kind < 3:  # the same map, as double and single precision agree
        single = Bent().eval()
        state = torch.zeros(1, 3)
        for t in range(6):
            state = single(state, actions[:, t])
        torch.testing.assert_close(states[:, -1].float(), state, rtol=1e-4, atol=1e-5)
    if kind == 3:  # an MLPDynamics answers float64 inputs in float64 and computes in float32
        coarse = model(torch.zeros(1, 3).double(), actions[:, 0].double())
        assert 0 < (coarse - states[:, 1]).abs().max() < 1e-5


def test_who_cannot_be_doubled_stays_as_it_is() -> None:
    weight = torch.eye(2)
    closed = setting_of(lambda s, a: s @ weight + a, 2)
    _, dtype, reason = closed.precise(2)
    assert dtype == torch.float32
    assert reason.startswith("the world model failed on float64 inputs:")
    rounded = setting_of(lambda s, a: (s + a).float(), 2)
    assert rounded.precise(2)[2] == (
        "the world model, a function, answers float64 inputs in torch.float32"
    )


def test_who_cannot_be_copied_is_refused() -> None:
    class Unique(nn.Module):
        def __deepcopy__(self, memo: object) -> Any:
            raise RuntimeError("there is but one of me")

    with pytest.raises(TypeError, match=r"world_model must be copyable .* there is but one of me"):
        setting_of(Unique(), 2).precise(2)


def test_the_world_model_is_left_alone() -> None:
    model = Bent().train()
    setting = setting_of(model, 3)
    first, second = (setting.rollout(torch.ones(1, 4, 2)) for _ in range(2))
    assert torch.equal(first, second)  # the copy's dropout is off
    assert model.training
    assert model.dropout.training
    assert all(p.dtype == torch.float32 and p.requires_grad for p in model.parameters())


def test_distance() -> None:
    setting = setting_of(step, 2, state_scale=(2.0, 1.0), goal_feature_weight=(4.0, 1.0))
    index = torch.zeros(1, dtype=torch.int64)
    assert float(setting.distances(torch.zeros(1, 2), index)) == pytest.approx(2**0.5)
    with pytest.raises(ValueError, match="success_radius is not known, and needed here"):
        setting.radius()

    def first(states: Tensor, problems: Tensor) -> Tensor:
        return states[:, 0]

    own = setting_of(step, 2, state_scale=(2.0, 1.0), distance=first, success_radius=1.0)
    assert float(own.distances(torch.full((1, 2), 3.0), index)) == 6.0  # of unscaled states
    assert own.arrived(torch.tensor([[0.4, 9.0], [torch.nan, 0.0]]), index.expand(2)).tolist() == [
        True,
        False,
    ]
    wrong = setting_of(step, 2, distance=lambda s, i: s)
    with pytest.raises(ValueError, match=r"distance must return a tensor of shape \(1,\)"):
        wrong.distances(torch.zeros(1, 2), index)


def test_wrong_actions_and_problems() -> None:
    from grasp_planner.diagnostics import conditioning

    with pytest.raises(ValueError, match="problem must be from 0 to 0, got 1"):
        conditioning(setting_of(step, 2), torch.zeros(3, 2), problem=1)
    with pytest.raises(ValueError, match=r"actions must be \(N, T, A\), none of them 0, got"):
        conditioning(setting_of(step, 2), torch.zeros(0, 2))
