"""What is told and what is kept when numbers overflow: every warning is due, none is missing."""

from __future__ import annotations

import warnings

import planner_cases as cases
import pytest
import torch
from grasp_planner import GraspPlanner, NonFiniteWarning
from planner_cases import arithmetic


def cliff(state, action):
    """Sound while actions are next to nothing."""
    far = action.detach().abs().sum(-1, keepdim=True) > 0.01
    return arithmetic(state, action) + torch.where(far, torch.inf, 0.0)


@pytest.mark.parametrize("variant", [{}, {"initialization": "rollout"}, {"candidates": 1}], ids=str)
def test_without_any_finite_rollout_no_states_are_made_up(variant) -> None:
    """The straight line to the goal would look like success."""
    start, goal = cases.problems(2)
    hot = start[0, 0]

    def model(state, action):
        return arithmetic(state, action) + torch.where(state[:, :1] == hot, torch.nan, 0.0)

    with pytest.warns(NonFiniteWarning, match=r"plan_id 0 "):
        plan = GraspPlanner(model, cases.config(**variant)).plan(start, goal)
    assert plan.finite.tolist() == [False, True]
    assert plan.cost[0] == torch.inf
    assert torch.equal(plan.states[:, 0], start)
    assert plan.states[0, 1:].isnan().all()
    assert not ((plan.states[0, -1] - goal[0]).norm() < 1e6)  # not "reached"
    assert torch.isfinite(plan.states[1]).all()


@pytest.mark.parametrize("changes", [{"final_sync_steps": 1}, {"final_sync_steps": 3}], ids=str)
def test_overflow_in_the_last_sync_is_told(changes) -> None:
    start, goal = cases.problems(2)
    ids = torch.tensor([8, 2**40])
    with pytest.warns(NonFiniteWarning, match=rf"plan_id 8 .*plan_id {2**40} "):
        plan = GraspPlanner(cliff, cases.config(iterations=0, **changes)).plan(
            start, goal, plan_ids=ids
        )
    assert plan.finite.all()  # the idle plan
    assert torch.isfinite(plan.states).all()


@pytest.mark.parametrize(
    ("count", "told"), [(10, "plan_id 9 candidate 0. "), (12, "plan_id 9 candidate 0 and 2 more. ")]
)
def test_of_many_the_first_ten_are_named(count, told) -> None:
    start, goal = cases.problems(count)
    settings = cases.config(iterations=0, candidates=1, final_sync_steps=1)
    with pytest.warns(NonFiniteWarning, match=f"{count} of {count} candidates: .*{told}"):
        GraspPlanner(cliff, settings).plan(start, goal)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_an_overflow_that_the_bounds_hide_is_told(optimizer) -> None:
    """A float16 gradient is inf, the action that it gives is the bound, which is finite."""
    settings = cases.config(
        horizon=1,
        iterations=4,
        candidates=1,
        noise="none",
        state_lr=1e-9,
        action_lr=1e-3,
        feature_weight=(1e4,) * 4,
        action_optimizer=optimizer,
        sync_every=0,
        final_sync_steps=0,
    )
    start = torch.zeros(1, 4, dtype=torch.float16)
    with pytest.warns(NonFiniteWarning, match=r"plan_id 77 "):
        GraspPlanner(arithmetic, settings).plan(start, start + 60.0, plan_ids=torch.tensor([77]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_no_false_alarm(dtype, optimizer) -> None:
    start, goal = cases.problems(3, dtype)
    settings = cases.config(action_optimizer=optimizer, sync_optimizer=optimizer, stop_cost=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan = GraspPlanner(arithmetic, settings).plan(start, goal)
    assert plan.finite.all()


class SickSync:
    """`arithmetic`, but the first sync's rollout of problem 0 is not finite.

    A rollout has one row per plan, a pass over the lifted states one per plan and step; with no
    sync steps the first rollout is the initial judgement, and the second the first sync's.
    """

    def __init__(self, horizon: int, recovers: bool) -> None:
        self.horizon, self.recovers, self.calls = horizon, recovers, 0

    def __call__(self, state, action):
        moved = arithmetic(torch.nan_to_num(state) if self.recovers else state, action)
        if len(state) == 2:
            self.calls += 1
            if self.calls == self.horizon + 3:
                moved = moved + torch.tensor([[torch.inf], [0.0]])
        return moved


@pytest.mark.parametrize("variant", [{}, {"terminal": "free"}], ids=str)
def test_a_rollout_that_is_not_finite_does_not_take_the_states_with_it(variant) -> None:
    def states(model, **changes):
        settings = cases.config(candidates=1, sync_steps=0, **variant, **changes)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NonFiniteWarning)
            plan = GraspPlanner(model, settings).plan(*cases.problems(2), snapshots=(5, 12))
        return plan.snapshots

    alone = states(arithmetic, sync_every=0)
    sick = states(SickSync(7, recovers=False), sync_every=5)
    assert cases.same_bits(sick[5][0], alone[5][0])  # the sick plan keeps what it had,
    assert not torch.equal(sick[5][1], alone[5][1])  # the other follows its rollout,
    assert torch.isfinite(sick[12]).all()  # and both go on
    # With a blend of 0, states keep their bits whatever the rollout went through on its way.
    still = states(SickSync(7, recovers=True), sync_every=5, sync_blend=0.0)
    assert cases.same_bits(still[5], alone[5])
