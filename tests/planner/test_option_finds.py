"""What no option does alone, and combinations of them have found; each was wrong once."""

from __future__ import annotations

from pathlib import Path

import planner_cases as cases
import pytest
import torch
from grasp_planner import Ball, Constraint, Moment, Schedule
from reference_cost import cost_and_violation


def test_a_checkpoint_of_a_goal_of_one_number(tmp_path: Path) -> None:
    """Whose stride in memory says nothing."""
    start, goal = cases.problems(1)
    planner = cases.planner("cem", cases.arithmetic)
    ball = Ball(goal, 0.1)
    plan = planner.plan(start, ball, checkpoint=str(tmp_path / "search.pt"))
    assert cases.same_plans(plan, planner.plan(start, ball))


@pytest.mark.parametrize("iterations", [0, 1, 2])
def test_plans_are_compared_by_the_end_of_a_schedule(iterations: int) -> None:
    """However few iterations there are to get there."""
    start, goal = cases.problems(2)
    falling = Schedule(2.0, 0.1, "linear")
    planner = cases.planner("cem", cases.arithmetic, iterations=iterations, action_weight=falling)
    plan = planner.plan(start, goal, actions=torch.full((2, 7, 2), 0.4))
    cost, _ = cost_and_violation(planner.config, goal, plan.states.double(), plan.actions.double())
    torch.testing.assert_close(plan.cost.double(), torch.from_numpy(cost), rtol=1e-5, atol=1e-5)


def test_multipliers_of_collocation_are_of_the_states_that_move() -> None:
    """Not of a rollout before: one of its problems has left, and it says nothing new."""
    start, goal = cases.problems(3)
    start[:, 0] = torch.tensor([0.0, 2.0, -2.0])
    near = Constraint(lambda s, a: s[:, 0, 0].abs() - 0.5)  # which only problem 0 can keep
    planner = cases.planner("latco", cases.arithmetic, stop_cost=1e9, constraints=near)
    live: list[list[int]] = []
    plan = planner.plan(start, goal, callback=lambda moment: live.append(moment.live.tolist()))
    assert plan.finite.all()
    assert live[0] == [0, 1, 2]
    assert live[-1] == [1, 2]


def test_collocation_tells_of_its_first_rollouts() -> None:
    start, goal = cases.problems(2)
    seen: list[Moment] = []
    planner = cases.planner("latco", cases.arithmetic, stop_cost=1e9)
    plan = planner.plan(start, goal, callback=seen.append)
    assert [moment.iteration for moment in seen] == [0]
    assert torch.equal(seen[0].actions, plan.actions)
