"""Second-order steps: exact where the model is linear, the same optimum where it is not, Jacobians
or none.
"""

from __future__ import annotations

from typing import Any

import planner_cases as cases
import pytest
import torch
from grasp_planner.matrix_free import matrix_free_newton_step_
from grasp_planner.models import KernelModel, roll_out
from grasp_planner.newton import NewtonSteps, refine_by_rollout, refine_lifted, terminal_cost
from grasp_planner.world_model import CheckedModel
from hypothesis import given, settings
from hypothesis import strategies as st
from planner_cases import arithmetic
from torch import Tensor

from grasp_kernels import MLPDynamics, MLPLayer

DOUBLE = torch.float64
OPEN = {"max_action_step": torch.inf, "max_state_step": torch.inf, "damping": 0.0}


def steps(width: int = 2, box: float = torch.inf, features: int = 4, **changes: Any) -> NewtonSteps:
    high = torch.full((width,), box, dtype=DOUBLE)
    weight = torch.ones(features, dtype=DOUBLE)
    given = {"goal_weight": weight, "hold": 1, "low": -high, "high": high}
    return NewtonSteps(**{**given, **OPEN, **changes})


def rolled(model: CheckedModel, start: Tensor, actions: Tensor) -> Tensor:
    with torch.no_grad():
        return model.rollout(start, actions)


def linear_model(features: int = 4, width: int = 2) -> CheckedModel:
    a = 0.3 * torch.randn(features, features, dtype=DOUBLE) + torch.eye(features, dtype=DOUBLE)
    b = torch.randn(width, features, dtype=DOUBLE)
    return CheckedModel(lambda s, u: s @ a + u @ b)


def problems(count: int = 3, reach: float = 0.5) -> tuple[Tensor, Tensor, Tensor]:
    """Starts, goals that actions of at most `reach` arrive at, held by 2, and other actions."""
    start, _ = cases.problems(count, DOUBLE)
    solution = (2 * torch.rand(count, 4, 2, dtype=DOUBLE) - 1) * reach
    solution = solution.repeat_interleave(2, 1)[:, :7]
    goal = cases.roll_out(arithmetic, start, solution)[:, -1]
    return start, goal, torch.zeros_like(solution)


# ----------------------------------------------------------------------------------- a linear model


@pytest.mark.parametrize("hold", [1, 2, 3])
@pytest.mark.parametrize("products", ["jacobians", "matrix-free"])
@pytest.mark.parametrize("defects", [False, True])
def test_one_step_arrives_where_the_model_is_linear(
    hold: int, products: str, defects: bool
) -> None:
    """From a rollout, and from any virtual states: defects close with the same step."""
    model, how = linear_model(), steps(hold=hold, products=products)
    start, goal = cases.problems(3, DOUBLE)
    actions = torch.zeros(3, 7, 2, dtype=DOUBLE)
    trajectory = rolled(model, start, actions)
    if defects:
        trajectory[:, 1:] += torch.randn_like(trajectory[:, 1:])
    with torch.no_grad():
        how.step_(model, trajectory, actions, goal, torch.zeros(3, dtype=DOUBLE))
    torch.testing.assert_close(trajectory, rolled(model, start, actions), rtol=1e-9, atol=1e-9)
    # But for a damping of 1e-6 that is always there.
    torch.testing.assert_close(trajectory[:, -1], goal, rtol=0, atol=5e-3)


# ---------------------------------------------------------------------------------- one that is not


@pytest.mark.parametrize("products", ["jacobians", "matrix-free"])
def test_both_ways_to_refine_converge_to_the_goal(products: str) -> None:
    start, goal, actions = problems()
    model = CheckedModel(arithmetic)
    states = rolled(model, start, actions)
    how = steps(hold=2, box=1.0, damping=1e-3, products=products, max_action_step=0.5)
    with torch.no_grad():
        lifted = refine_lifted(model, how, 6, states, actions, goal)
        by_rollout, found, cost = refine_by_rollout(model, how, 6, states, actions, goal)
    for refined in (lifted, by_rollout):
        assert (terminal_cost(rolled(model, start, refined), goal, how.goal_weight) < 1e-8).all()
        assert (refined.abs() <= 1).all()
        assert torch.equal(refined[:, 0:6:2], refined[:, 1:7:2])  # still held
    torch.testing.assert_close(found, rolled(model, start, by_rollout))
    torch.testing.assert_close(cost, terminal_cost(found, goal, how.goal_weight))
    assert not actions.any()  # what was given is only read


def slope(start: Tensor, actions: Tensor, goal: Tensor) -> Tensor:
    """The cost's gradient for two actions that are held for 4 and 3 steps, `(N, 2, A)`."""
    actions = actions.clone().requires_grad_()
    states = CheckedModel(arithmetic).rollout(start, actions)
    (gradient,) = torch.autograd.grad((states[:, -1] - goal).square().sum(), actions)
    return torch.stack([part.sum(1) for part in gradient.split(4, 1)], 1)


def test_where_the_goal_is_out_of_reach_both_find_the_same_optimum() -> None:
    """Two numbers for a goal of four features: no way to arrive, and nothing left to descend."""
    start, goal, actions = problems()
    model, how = CheckedModel(arithmetic), steps(hold=7, damping=1e-3, max_action_step=0.5)
    states = rolled(model, start, actions)
    with torch.no_grad():
        lifted = refine_lifted(model, how, 40, states, actions, goal)
        by_rollout, _, cost = refine_by_rollout(model, how, 40, states, actions, goal)
    assert (cost > 1e-3).all()
    torch.testing.assert_close(lifted, by_rollout, rtol=1e-4, atol=1e-4)
    for found in (lifted, by_rollout):
        assert (slope(start, found, goal).sum(1).abs() < 1e-3).all()


def test_in_a_box_too_small_the_rollout_finds_a_constrained_optimum() -> None:
    """Inside the box no slope is left, and at a bound it points outward."""
    start, goal, actions = problems(reach=1.0)
    model, how = CheckedModel(arithmetic), steps(hold=4, box=0.3, damping=1e-3)
    states = rolled(model, start, actions)
    with torch.no_grad():
        found, _, cost = refine_by_rollout(model, how, 60, states, actions, goal)
    left = slope(start, found, goal)
    held = found[:, [0, 4]]
    left = torch.where((held >= 0.3) & (left < 0) | (held <= -0.3) & (left > 0), 0.0, left)
    assert (held.abs() == 0.3).any()
    assert (left.abs() < 1e-3).all()
    assert (cost > 1e-3).all()


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    box=st.sampled_from([0.05, 1.0, torch.inf]),
    hold=st.integers(1, 8),
    damping=st.sampled_from([0.0, 1e-3, 10.0]),
    stretch=st.floats(0.1, 30.0),
    count=st.integers(0, 4),
)
def test_refining_by_rollout_never_makes_it_worse(
    seed: int, box: float, hold: int, damping: float, stretch: float, count: int
) -> None:
    """On a model wild enough for steps to fail; the cost is that of the states, to the bit."""
    generator = torch.Generator().manual_seed(seed)
    start, goal, noise = torch.randn(3, 4, 4, dtype=DOUBLE, generator=generator).unbind(0)
    model = CheckedModel(lambda s, a: s + 0.2 * torch.sin(stretch * s + a.repeat(1, 2)))
    actions = noise[:, :1, None].expand(4, 6, 2).clamp(-box, box).contiguous()
    how = steps(hold=hold, box=box, damping=damping, max_action_step=0.5)
    states = rolled(model, start, actions)
    before = terminal_cost(states, goal, how.goal_weight)
    with torch.no_grad():
        refined, after, cost = refine_by_rollout(model, how, count, states, actions, goal)
    assert (cost <= before).all()
    assert (refined.abs() <= box).all()
    assert torch.equal(cost, terminal_cost(after, goal, how.goal_weight))
    torch.testing.assert_close(after, rolled(model, start, refined), rtol=1e-9, atol=1e-9)


def test_what_is_not_finite_is_never_better() -> None:
    states = torch.zeros(4, 3, 2)
    states[1, 1, 0] = torch.nan  # on the way only
    states[2, 2, 1] = torch.inf
    states[3, 2] = 3e38  # overflows when squared
    cost = terminal_cost(states, torch.ones(4, 2), torch.tensor([1.0, 0.5]))
    assert cost.tolist() == [1.5, torch.inf, torch.inf, torch.inf]


@pytest.mark.parametrize("products", ["jacobians", "matrix-free"])
def test_a_bound_that_holds_one_action_leaves_its_work_to_the_others(products: str) -> None:
    """Two thrusts add up; one is at its bound already, and the step is not cut in half."""
    model = CheckedModel(lambda s, a: s + a.sum(1, keepdim=True))
    how = steps(features=1, products=products)
    how = NewtonSteps(
        **{**vars(how), "high": torch.tensor([0.0, 9.0], dtype=DOUBLE), "low": how.low}
    )
    start, goal = torch.zeros(1, 1, dtype=DOUBLE), torch.full((1, 1), 4.0, dtype=DOUBLE)
    actions = torch.zeros(1, 2, 2, dtype=DOUBLE)
    trajectory = rolled(model, start, actions)
    with torch.no_grad():
        how.step_(model, trajectory, actions, goal, torch.zeros(1, dtype=DOUBLE))
    expected = torch.tensor([[[0.0, 2.0], [0.0, 2.0]]], dtype=DOUBLE)
    torch.testing.assert_close(actions, expected, rtol=0, atol=1e-4)


def test_steps_are_no_longer_than_allowed() -> None:
    start, goal, actions = problems()
    model = CheckedModel(arithmetic)
    for products in ("jacobians", "matrix-free"):
        how = steps(products=products, max_action_step=0.01, max_state_step=0.02)
        trajectory, moved = rolled(model, start, actions), actions.clone()
        before = trajectory.clone()
        with torch.no_grad():
            how.step_(model, trajectory, moved, goal, torch.zeros(3, dtype=DOUBLE))
        assert 0.0099 < (moved - actions).abs().max() <= 0.01 + 1e-12
        assert 0 < (trajectory - before).abs().max() <= 0.02 + 1e-12


# -------------------------------------------------------------------------------- without Jacobians


@pytest.mark.parametrize("hold", [1, 3])
@pytest.mark.parametrize("weight", [(1.0, 1.0, 1.0, 1.0), (1.0, 0.5, 0.0, 0.0)])
def test_exact_conjugate_gradients_are_the_step_by_jacobians(
    hold: int, weight: tuple[float, ...]
) -> None:
    start, goal, actions = problems()
    model = CheckedModel(arithmetic)
    given = {"goal_weight": torch.tensor(weight, dtype=DOUBLE), "hold": hold}
    found = []
    for products in ("jacobians", "matrix-free"):
        trajectory, moved = rolled(model, start, actions), actions.clone()
        trajectory[:, 1:] += 0.1
        how = steps(products=products, **given, max_action_step=0.5)
        with torch.no_grad():
            how.step_(model, trajectory, moved, goal, torch.zeros(3, dtype=DOUBLE))
        found.append((trajectory, moved))
    (states, by_jacobians), (other_states, matrix_free) = found
    torch.testing.assert_close(matrix_free, by_jacobians, rtol=0, atol=2e-3)
    torch.testing.assert_close(other_states, states, rtol=0, atol=2e-3)
    assert (by_jacobians != 0).any()


def test_twenty_thousand_state_features() -> None:
    """D^2 would be 1.6 GB in float32; nothing is more than a few trajectories."""
    features, horizon, width = 20_000, 5, 3
    gain = torch.randn(width, features)
    mask = torch.rand(features)

    def field(state: Tensor, action: Tensor) -> Tensor:
        """A field on a ring that flows to its neighbours, bends, and is pushed in three shapes."""
        flow = 0.1 * (torch.roll(state, 1, -1) - state)
        return state + flow + 0.05 * torch.sin(state) * mask + 0.2 * torch.tanh(action) @ gain

    start = torch.randn(1, features)
    solution = torch.rand(1, horizon, width) - 0.5
    model = CheckedModel(field)
    goal = rolled(model, start, solution)[:, -1]
    actions = torch.zeros(1, horizon, width)
    how = NewtonSteps(
        goal_weight=torch.ones(features),
        hold=1,
        low=torch.full((width,), -1.0),
        high=torch.full((width,), 1.0),
    )
    assert not how.by_jacobians(features)
    states = rolled(model, start, actions)
    before = terminal_cost(states, goal, how.goal_weight)
    with torch.no_grad(), cases.LiveBytes() as live:
        _, _, cost = refine_by_rollout(model, how, 3, states, actions, goal)
    assert (cost < 1e-4 * before).all()
    assert live.peak < 0.01 * 4 * features**2


def test_a_plan_that_has_arrived_stays_and_one_without_influence_too() -> None:
    start, _, actions = problems(2)
    goal = rolled(CheckedModel(arithmetic), start, actions)[:, -1]
    still = CheckedModel(lambda s, a: s + 0.0 * a.repeat(1, 2))
    for model, target in ((CheckedModel(arithmetic), goal), (still, goal + 1.0)):
        for products in ("jacobians", "matrix-free"):
            trajectory, moved = rolled(model, start, actions), actions.clone()
            with torch.no_grad():
                steps(products=products).step_(
                    model, trajectory, moved, target, torch.zeros(2, dtype=DOUBLE)
                )
            torch.testing.assert_close(moved, actions, rtol=0, atol=1e-12)
            assert torch.isfinite(trajectory).all()


def test_a_broken_plan_breaks_no_other() -> None:
    start, goal, actions = problems()
    model = CheckedModel(lambda s, a: arithmetic(s, a) * torch.where(s[:, :1] > 50, torch.nan, 1.0))
    for products in ("jacobians", "matrix-free"):
        how = steps(hold=2, box=1.0, damping=1e-3, products=products)
        found = []
        for bad in (False, True):
            given = start.clone()
            given[1, 0] = 100.0 if bad else given[1, 0]
            states = rolled(model, given, actions)
            with torch.no_grad():
                found.append(refine_by_rollout(model, how, 3, states, actions, goal))
        for sound, broken in zip(*found, strict=True):
            assert cases.same_bits(sound[[0, 2]], broken[[0, 2]])
        assert found[1][2][1] == torch.inf


# ---------------------------------------------------------------------------------------- Jacobians


def mlp() -> MLPDynamics:
    def layer(rows: int, columns: int) -> MLPLayer:
        return MLPLayer(
            0.4 * torch.randn(rows, columns), 0.1 * torch.randn(rows), activation="tanh"
        )

    last = MLPLayer(0.4 * torch.randn(4, 8), 0.1 * torch.randn(4))
    return MLPDynamics((layer(8, 6), last), action_features=2, residual=True)


@pytest.mark.parametrize("scale", [None, (0.5, 2.0, 1.0, 4.0)])
@pytest.mark.parametrize("max_rows", [None, 1, 4])
def test_jacobians_by_autograd_by_kernel_and_one_by_one(
    scale: tuple[float, ...] | None, max_rows: int | None
) -> None:
    dynamics = mlp()
    units = None if scale is None else torch.tensor(scale)
    general = CheckedModel(lambda s, a: dynamics(s, a), units)
    states, actions = torch.randn(2, 3, 4), torch.randn(2, 3, 2)
    found = general.jacobians(states, actions, max_rows)
    kernel = KernelModel(dynamics.in_units(units)).jacobians(states, actions)
    assert [tuple(part.shape) for part in found] == [(2, 3, 4), (2, 3, 4, 4), (2, 3, 4, 2)]
    for a, b in zip(found, kernel, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    one = lambda s, a: general(s[None], a[None])[0]  # noqa: E731
    for n in range(2):
        for t in range(3):
            by_state, by_action = torch.autograd.functional.jacobian(
                one, (states[n, t], actions[n, t])
            )
            torch.testing.assert_close(found[1][n, t], by_state)
            torch.testing.assert_close(found[2][n, t], by_action)
    plain = general.plain(states.flatten(0, 1), actions.flatten(0, 1))
    torch.testing.assert_close(plain, found[0].flatten(0, 1))
    as_told = KernelModel(dynamics.in_units(units)).plain(states, actions)
    torch.testing.assert_close(as_told, found[0], rtol=1e-4, atol=1e-5)


def test_jacobians_of_a_model_that_forgets_its_state() -> None:
    prediction, by_state, by_action = CheckedModel(lambda s, a: a.repeat(1, 2)).jacobians(
        torch.randn(2, 3, 4), torch.randn(2, 3, 2)
    )
    assert prediction.shape == (2, 3, 4)
    assert not by_state.any()
    assert torch.equal(by_action[1, 2], torch.eye(2).repeat(2, 1))


def test_rollouts_in_blocks_of_plans() -> None:
    rows: set[int] = set()

    def model(state: Tensor, action: Tensor) -> Tensor:
        rows.add(len(state))
        return arithmetic(state, action)

    start, _, actions = problems(5)
    checked = CheckedModel(model)
    whole = roll_out(checked, start, actions, None)
    assert rows == {5}
    assert cases.same_bits(roll_out(checked, start, actions, 2), whole)
    assert rows == {5, 2, 1}
    assert roll_out(checked, start[:0], actions[:0], 2).shape == (0, 8, 4)


def test_the_matrix_free_step_in_rows_is_the_same_step() -> None:
    start, goal, actions = problems()
    found = []
    for max_rows in (None, 3):
        trajectory, moved = rolled(CheckedModel(arithmetic), start, actions), actions.clone()
        how = {
            k: v
            for k, v in vars(steps()).items()
            if k not in ("products", "damping", "jacobians_every")
        }
        matrix_free_newton_step_(
            arithmetic, trajectory, moved, goal, damping=0.1, **{**how, "max_rows": max_rows}
        )
        found.append((trajectory, moved))
    for a, b in zip(*found, strict=True):
        assert cases.same_bits(a, b)


# --------------------------------------------------------------------------- who takes part in what


def test_who_has_arrived_takes_no_part_in_later_rounds() -> None:
    """Rows of the model are counted: the one that arrives at once costs one round, no more."""
    start = torch.zeros(2, 4)
    goal = torch.zeros(2, 4)
    goal[1] = 50.0  # out of reach
    rows: list[int] = []

    def counted(state: Tensor, action: Tensor) -> Tensor:
        rows.append(len(state))
        return cases.arithmetic(state, action)

    changes = {"rounds": 4, "score_rollouts": 0, "enough": 0.1}
    plans, work = [], []
    for chosen in (slice(0, 1), slice(1, 2), slice(0, 2)):
        rows.clear()
        planner = cases.planner("lifted-newton rollout", counted, **changes)
        ids = torch.arange(2)[chosen]
        plans.append(planner.plan(start[chosen], goal[chosen], plan_ids=ids))
        work.append(sum(rows))
    near, far, both = plans
    assert (near.iterations, far.iterations, both.iterations) == (1, 4, 4)
    assert 3 * work[0] < work[1]
    assert work[2] == work[0] + work[1]
    assert near.cost < 1e-3
    assert torch.equal(both.actions, torch.cat((near.actions, far.actions)))
    assert torch.equal(both.states, torch.cat((near.states, far.states)))
    assert torch.equal(both.loss_history[:1, 0], near.loss_history[:, 0])
    assert both.loss_history[1:, 0].isnan().all()
    assert torch.equal(both.loss_history[:, 1], far.loss_history[:, 0])


def test_without_a_goal_every_plan_arrives() -> None:
    """No feature has weight: costs are 0, and so is the scale that they are compared by."""
    start, goal = cases.problems(2)
    planner = cases.planner("lifted-newton", arithmetic, goal_feature_weight=(0.0,) * 4)
    plan = planner.plan(start, goal)
    assert plan.finite.all()
    assert (plan.cost == 0).all()
    assert torch.isfinite(plan.states).all()
