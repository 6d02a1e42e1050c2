"""Each verdict, of a case that was made for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diagnosed_models import setting_of, step
from grasp_planner import CEMConfig, CEMPlanner, GradientConfig, GradientPlanner
from grasp_planner.diagnostics import VERDICTS, Attempts, Executed, Setting, explain_plans
from torch import Tensor

STEPS = 5
BOX = {"action_low": -1.0, "action_high": 1.0}


def cem(model: Any, horizon: int = STEPS, **bounds: float) -> CEMPlanner:
    """A search that finds what there is in so small a problem."""
    config = CEMConfig(horizon=horizon, hold=1, samples=200, iterations=20, action_features=1,
                       **{**BOX, **bounds})  # fmt: skip
    return CEMPlanner(model, config)


def gradient(model: Any) -> GradientPlanner:
    """Descent from where it starts: it stays in the valley it is in."""
    config = GradientConfig(horizon=1, hold=1, restarts=1, iterations=60, lr=0.05,
                            action_features=1, action_low=-3.0, action_high=3.0)  # fmt: skip
    return GradientPlanner(model, config)


def one(goal: float, model: Any = step, **changes: Any) -> Setting:
    given = {"goal": torch.tensor([goal]), "success_radius": 0.05, **BOX, **changes}
    return setting_of(model, 1, **given)


def verdict_of(setting: Setting, actions: Tensor, *rest: Any) -> Any:
    (found,) = explain_plans(setting, actions, *rest)
    assert found.verdict in VERDICTS
    assert found.because.endswith(".")
    return found


def test_arrived() -> None:
    found = verdict_of(one(0.3), torch.full((3, 1), 1.0))
    assert found.verdict == "arrived"
    assert "not known" in found.because
    assert found.evidence.distance_model == pytest.approx(0, abs=1e-6)


def test_arrived_in_truth() -> None:
    setting, actions = one(0.3), torch.full((1, 3, 1), 1.0)
    real = torch.tensor([0.0, 0.1, 0.2, 0.28])[None, :, None]
    found = verdict_of(setting, actions, None, Executed.of_states(setting, actions, real))
    assert found.verdict == "arrived"
    assert found.evidence.distance_real == pytest.approx(0.02, abs=1e-6)


def test_model_error() -> None:
    setting, actions = one(0.3), torch.full((1, 3, 1), 1.0)
    real = torch.tensor([0.0, 0.1, 0.12, 0.13])[None, :, None]
    found = verdict_of(setting, actions, None, Executed.of_states(setting, actions, real))
    assert found.verdict == "model error"
    assert found.evidence.model_error_step == 2
    assert found.evidence.model_error == pytest.approx(0.17, abs=1e-6)
    assert "From step 2 on" in found.because


def test_model_error_that_stays_small() -> None:
    setting, actions = one(0.3), torch.full((1, 3, 1), 0.9)
    real = torch.tensor([0.0, 0.08, 0.16, 0.24])[None, :, None]
    found = verdict_of(setting, actions, None, Executed.of_states(setting, actions, real))
    assert found.verdict == "model error"
    assert found.evidence.model_error_step is None


def test_bound_limited() -> None:
    plan = torch.full((STEPS, 1), 1.0)
    attempts = Attempts(
        stronger={"cem": cem(step)},
        wider={"twice the box": cem(step, action_low=-2.0, action_high=2.0)},
        longer={2 * STEPS: cem(step, 2 * STEPS)},
    )
    found = verdict_of(one(0.8), plan, attempts)
    assert found.verdict == "bound-limited"
    assert found.evidence.outward == found.evidence.at_bounds == 1.0
    assert found.evidence.free_gradient == 0.0
    assert found.evidence.stronger["cem"] == pytest.approx(0.3, abs=0.01)
    assert "More time would do too: T = 10" in found.because


def hump(state: Tensor, action: Tensor) -> Tensor:
    """`s' = s + a^3 - 3 a`: from 0 the way down ends at a = 1, the way to -10 begins at a < -2."""
    return state + action**3 - 3 * action


def test_local_minimum() -> None:
    setting = one(-9.8, hump, action_low=-3.0, action_high=3.0)
    stuck = gradient(hump).plan(setting.start, setting.goal).actions
    assert float(stuck) == pytest.approx(1.0, abs=0.01)
    attempts = Attempts(stronger={"cem": cem(hump, 1, action_low=-3.0, action_high=3.0)})
    found = verdict_of(setting, stuck, attempts)
    assert found.verdict == "local minimum"
    assert found.evidence.refined_gain < 0.01
    assert found.evidence.outward == 0
    assert found.evidence.stronger["cem"] < 0.05


def saturating(state: Tensor, action: Tensor) -> Tensor:
    return state + 0.1 * torch.tanh(3 * action)


def test_unreachable_within_the_horizon() -> None:
    plan = torch.full((STEPS, 1), 0.9)
    attempts = Attempts(
        stronger={"cem": cem(saturating)},
        wider={"twice the box": cem(saturating, action_low=-2.0, action_high=2.0)},
        longer={2 * STEPS: cem(saturating, 2 * STEPS)},
    )
    found = verdict_of(one(0.8, saturating), plan, attempts)
    assert found.verdict == "unreachable within T"
    assert "T = 10 reaches" in found.because


def test_unreachable_though_it_comes_closer_with_time() -> None:
    longer = {steps: cem(saturating, steps) for steps in (8, 10)}
    attempts = Attempts(stronger={"cem": cem(saturating)}, longer=longer)
    found = verdict_of(one(5.0, saturating), torch.full((STEPS, 1), 0.9), attempts)
    assert found.verdict == "undecided"  # 3 % closer with every step is no 10 %
    attempts = Attempts(
        stronger=attempts.stronger, longer={k: cem(saturating, k) for k in (15, 30)}
    )
    found = verdict_of(one(5.0, saturating), torch.full((STEPS, 1), 0.9), attempts)
    assert found.verdict == "unreachable within T"
    assert "falls steadily" in found.because


def test_out_of_iterations() -> None:
    found = verdict_of(one(0.3), torch.zeros(STEPS, 1))
    assert found.verdict == "search ran out of iterations"
    assert found.evidence.refined_distance < 0.05


def test_out_of_iterations_though_descent_alone_does_not_arrive() -> None:
    far = one(0.8, lambda s, a: s + 0.1 * a.clamp(max=0.2) ** 3 + 0.1 * a, action_high=20.0)
    found = verdict_of(far, torch.zeros(STEPS, 1))
    assert found.verdict == "search ran out of iterations"
    assert found.evidence.refined_gain > 0.1


def test_undecided() -> None:
    never = one(2.0, lambda s, a: 0 * s + torch.tanh(a))
    attempts = Attempts(
        stronger={"cem": cem(never.world_model)},
        wider={"twice the box": cem(never.world_model, action_low=-2.0, action_high=2.0)},
        longer={2 * STEPS: cem(never.world_model, 2 * STEPS)},
    )
    found = verdict_of(never, torch.ones(STEPS, 1), attempts)
    assert found.verdict == "undecided"
    assert "neither wider bounds nor more time" in found.because
    assert verdict_of(never, torch.ones(STEPS, 1)).verdict == "undecided"


def test_not_finite() -> None:
    def broken(state: Tensor, action: Tensor) -> Tensor:
        return (state + 0.1 * action) / (state < 0.15)

    found = verdict_of(one(0.3, broken), torch.ones(STEPS, 1))
    assert found.verdict == "not finite"
    assert found.evidence.non_finite_step == 3


def test_a_batch_names_each_its_own() -> None:
    goals = {"start": torch.zeros(3, 1), "goal": torch.tensor([[0.5], [0.8], [-0.4]])}
    setting = setting_of(step, 1, success_radius=0.05, **BOX, **goals)
    plans = torch.stack([torch.ones(STEPS, 1), torch.ones(STEPS, 1), torch.zeros(STEPS, 1)])
    said: list[str] = []
    attempts = Attempts(longer={2 * STEPS: cem(step, 2 * STEPS)})
    found = explain_plans(setting, plans, attempts, progress=said.append)
    assert [one.verdict for one in found] == [
        "arrived",
        "unreachable within T",
        "search ran out of iterations",
    ]
    assert found[0].evidence.longer == {}  # what arrives is not tried again
    assert said == ["gradient descent from where the plans ended", "longer: 10"]


def test_wrong_execution() -> None:
    with pytest.raises(ValueError, match=r"executed.error must be a tensor of shape \(1, 6\)"):
        explain_plans(
            one(0.3), torch.zeros(STEPS, 1), None, Executed(torch.zeros(1), torch.zeros(1, 5))
        )
    own = one(0.3, distance=lambda s, i: s[:, 0])
    with pytest.raises(ValueError, match="measures distance in its own way"):
        Executed.of_states(own, torch.zeros(STEPS, 1), torch.zeros(STEPS + 1, 1))
