"""Eigenvalues against dense Hessians, and against a linear system that is solved by hand."""

from __future__ import annotations

import math

import pytest
import torch
from diagnosed_models import GROWTH, Bent, linear, setting_of, step
from grasp_planner.diagnostics import Conditioning, conditioning
from grasp_planner.diagnostics.objectives import LeastSquares, Objectives
from grasp_planner.diagnostics.spectrum import ends, least_definite
from torch import Tensor


def of(rows: list[Conditioning], objective: str, point: str = "solution") -> list[Conditioning]:
    return [row for row in rows if (row.objective, row.point) == (objective, point)]


def dense_problem(steps: int) -> tuple[Objectives, Tensor, Tensor]:
    """A bent problem, its joint variables, and its actions."""
    setting = setting_of(Bent(), 3, state_scale=(0.5, 1.0, 2.0), goal_feature_weight=(1, 0, 3))
    torch.manual_seed(1)
    states = torch.randn((steps - 1) * 3, dtype=torch.float64)
    actions = torch.randn(steps * 2, dtype=torch.float64)
    return Objectives(setting, 0, 2), torch.cat([states, actions]), actions


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("objective", ["shooting", "lifted"])
def test_products_are_those_of_the_dense_matrices(objective: str, steps: int) -> None:
    objectives, joint, actions = dense_problem(steps)
    lifted = objective == "lifted"
    residual = objectives.flat_lifted(steps) if lifted else objectives.flat_shooting(steps)
    x = joint if lifted else actions
    at = LeastSquares(residual, x)
    hessian = torch.autograd.functional.hessian(lambda v: residual(v).square().sum(), x)
    jacobian = torch.autograd.functional.jacobian(residual, x)
    v, u = torch.randn(len(x)).double(), torch.randn(len(at.residual)).double()
    torch.testing.assert_close(at.hessian(v), hessian @ v, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(at.jacobian(), jacobian, rtol=1e-9, atol=1e-9)
    expected = 2 * jacobian @ (jacobian.T @ u)
    torch.testing.assert_close(at.gramian(u), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("steps", [2, 20])  # assembled, and by Lanczos
def test_ends_of_the_hessian(steps: int) -> None:
    objectives, joint, _ = dense_problem(steps)
    residual = objectives.flat_lifted(steps)
    hessian = torch.autograd.functional.hessian(lambda v: residual(v).square().sum(), joint)
    values = torch.linalg.eigvalsh(hessian)
    found = ends(LeastSquares(residual, joint).hessian, joint)
    assert found.method == ("dense" if steps == 2 else "Lanczos")
    assert found.largest == pytest.approx(float(values[-1]), rel=1e-3)
    assert found.least == pytest.approx(float(values[0]), abs=1e-3 * float(values[-1]))
    assert found.least < 0  # away from a solution it curves downwards somewhere


def test_least_of_a_positive_matrix() -> None:
    values = torch.linspace(0.01, 5, 200, dtype=torch.float64)
    least, products = least_definite(lambda v: values * v, values)
    assert least == pytest.approx(0.01, rel=1e-3)
    assert products >= 128


def test_what_does_not_converge_is_nan() -> None:
    values = torch.logspace(-14, 0, 2000, dtype=torch.float64)
    least, _ = least_definite(lambda v: values * v, values)
    assert math.isnan(least)


@pytest.mark.parametrize("horizon", [1, 2, 10, 30])
def test_a_linear_system_by_hand(horizon: int) -> None:
    rows = conditioning(setting_of(linear, 2), torch.zeros(30, 2), [horizon])
    # Each feature is its own system: 2 J J^T = 2 sum_k growth^(2k) for shooting ...
    shooting = [2 * sum(g ** (2 * k) for k in range(horizon)) for g in GROWTH]
    for row in of(rows, "shooting") + of(rows, "shooting", "search start"):
        assert row.condition == pytest.approx(max(shooting) / min(shooting))
        assert row.hessian_largest == pytest.approx(max(shooting), rel=1e-3)
        assert row.free_directions == 2 * horizon - 2
    # ... and for lifting a tridiagonal matrix: 1 + g^2 + 1 on the diagonal, without the g^2 of the
    # fixed first state and the 1 of the fixed last one, and -g beside it.
    lifted = []
    for g in GROWTH:
        diagonal = torch.full((horizon,), 2 + g * g, dtype=torch.float64)
        diagonal[0] -= g * g
        diagonal[-1] -= 1
        beside = torch.full((horizon - 1,), -g, dtype=torch.float64)
        matrix = torch.diag(diagonal) + torch.diag(beside, 1) + torch.diag(beside, -1)
        lifted.append(2 * torch.linalg.eigvalsh(matrix))
    everything = torch.cat(lifted)
    (row,) = of(rows, "lifted")
    assert row.largest == pytest.approx(float(everything.max()))
    assert row.smallest == pytest.approx(float(everything.min()))
    assert row.free_directions == 2 * horizon - 2


def test_shooting_explodes_and_lifting_does_not() -> None:
    rows = conditioning(setting_of(linear, 2), torch.zeros(40, 2), [10, 20, 40])
    shooting = [row.condition for row in of(rows, "shooting")]
    assert shooting[2] > 30 * shooting[1] > 900 * shooting[0] / 10
    assert all(row.condition < 6.5 for row in of(rows, "lifted"))


def test_one_step_is_the_same_for_both() -> None:
    rows = conditioning(setting_of(Bent(), 3), torch.randn(1, 2))
    for point in ("solution", "search start"):
        (shooting,), (lifted,) = of(rows, "shooting", point), of(rows, "lifted", point)
        assert lifted.condition == pytest.approx(shooting.condition)
        assert lifted.variables == shooting.variables == 2


def test_features_without_weight_leave_no_residual() -> None:
    setting = setting_of(linear, 2, goal_feature_weight=(1.0, 0.0))
    (row,) = of(conditioning(setting, torch.zeros(5, 2)), "shooting")
    assert row.condition == pytest.approx(1.0)
    assert row.free_directions == 10 - 1


def test_a_feature_that_no_action_moves_is_counted_and_left_out() -> None:
    def stubborn(state: Tensor, action: Tensor) -> Tensor:
        return state + torch.cat([action, 0 * action], dim=1)

    rows = conditioning(setting_of(stubborn, 2), torch.zeros(6, 1))
    shooting, lifted = of(rows, "shooting")[0], of(rows, "lifted")[0]
    assert shooting.free_directions == 6 - 1
    assert lifted.free_directions == shooting.free_directions
    assert shooting.condition == pytest.approx(1.0)
    assert math.isfinite(lifted.condition)


def test_an_action_that_does_nothing_yet() -> None:
    def deaf(state: Tensor, action: Tensor) -> Tensor:
        return state + 0 * action

    rows = conditioning(setting_of(deaf, 2), torch.zeros(3, 2))
    assert of(rows, "shooting")[0].condition == math.inf


def test_large_ones_are_left_to_lanczos(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = conditioning(setting_of(linear, 2), torch.zeros(80, 2))
    monkeypatch.setattr("grasp_planner.diagnostics.curvature.ASSEMBLED", 10)
    found = conditioning(setting_of(linear, 2), torch.zeros(80, 2))
    assert [row.method for row in of(found, "lifted")] == ["Lanczos"]
    for new, old in zip(of(found, "lifted"), of(expected, "lifted"), strict=True):
        assert new.condition == pytest.approx(old.condition, rel=1e-2)


def test_in_single_precision_where_there_is_no_other() -> None:
    growth = torch.tensor(GROWTH)
    single = setting_of(lambda s, a: s.float() * growth + a.float(), 2)
    assert single.precise(2)[1] == torch.float32
    expected = conditioning(setting_of(linear, 2), torch.zeros(10, 2))
    for new, old in zip(conditioning(single, torch.zeros(10, 2)), expected, strict=True):
        assert new.condition == pytest.approx(old.condition, rel=1e-4)
        assert new.free_directions == old.free_directions


def test_wrong_horizon_is_refused() -> None:
    with pytest.raises(ValueError, match="horizons must be from 1 to T = 4, got 5"):
        conditioning(setting_of(step, 2), torch.zeros(4, 2), [5])


def test_nan_is_refused() -> None:
    def broken(state: Tensor, action: Tensor) -> Tensor:
        return state + action * torch.nan

    with pytest.raises(ValueError, match="must be finite, got NaN"):
        conditioning(setting_of(broken, 2), torch.zeros(4, 2))


def test_what_cannot_be_differentiated_twice_is_said() -> None:
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):  # type: ignore[no-untyped-def]
            return x.clone()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, gradient):  # type: ignore[no-untyped-def]
            return gradient.clone()

    setting = setting_of(lambda s, a: s + Once.apply(a).square(), 2)
    with pytest.raises(ValueError, match="must be twice differentiable by autograd"):
        conditioning(setting, torch.ones(4, 2))
