"""The ends of what may be asked: empty batches, the largest id, odd types, and no noise."""

from __future__ import annotations

import pickle

import numpy as np
import planner_cases as cases
import pytest
import torch
from grasp_planner import GraspConfig, GraspPlanner, Schedule
from planner_cases import arithmetic


def line(state, action):
    return state + 0.3 * action


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("problems", [0, 1])
@pytest.mark.parametrize("initialization", ["linear", "rollout"])
def test_one_feature_and_no_problems(problems, initialization, optimizer) -> None:
    """Strides of an empty or one-wide tensor may be anything; they overlap with nothing."""
    settings = cases.config(
        terminal="free",
        state_optimizer=optimizer,
        action_features=1,
        initialization=initialization,
    )
    start = torch.zeros(problems, 1)
    plan = GraspPlanner(line, settings).plan(start, start + 1.0)
    assert plan.states.shape == (problems, 8, 1)
    assert plan.candidate_cost.shape == (problems, 2)


def test_the_largest_id_with_one_candidate() -> None:
    start, goal = cases.problems(2)
    planner = GraspPlanner(arithmetic, cases.config(candidates=1))
    last = planner.plan(start, goal, plan_ids=torch.tensor([0, 2**63 - 1]))
    alone = planner.plan(start[1:], goal[1:], plan_ids=torch.tensor([2**63 - 1]))
    assert cases.same_bits(alone.actions[0], last.actions[1])
    two = GraspPlanner(arithmetic, cases.config(candidates=2))
    two.plan(start, goal, plan_ids=torch.tensor([0, 2**62 - 1]))
    with pytest.raises(ValueError, match=f"plan_ids must be from 0 to {2**62 - 1}"):
        two.plan(start, goal, plan_ids=torch.tensor([0, 2**62]))


def test_candidates_differ_in_their_actions_without_state_noise() -> None:
    settings = {"noise": "none", "iterations": 0, "final_sync_steps": 0, "candidates": 3}
    same = cases.solve(arithmetic, 2, **settings).candidate_cost
    assert (same == same[:, :1]).all()
    cost = cases.solve(arithmetic, 2, initial_actions_scale=0.5, **settings).candidate_cost
    assert torch.equal(cost[:, 0], same[:, 0])  # the first keeps the actions as given
    assert all(len(set(row)) == 3 for row in cost.tolist())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_scaling_and_back_leaves_the_start_as_given(dtype) -> None:
    start, goal = cases.problems(64, dtype)
    settings = cases.config(state_scale=(0.7, 1.3, 3.0, 0.1), iterations=1, final_sync_steps=0)
    plan = GraspPlanner(arithmetic, settings).plan(start, goal)
    assert cases.same_bits(plan.states[:, 0], start)


def test_plans_compare_and_keep() -> None:
    plan, other = cases.solve(arithmetic, 1), cases.solve(arithmetic, 1)
    assert plan == plan
    assert plan != other  # by identity: tensors have no one truth
    assert len({plan, other}) == 2
    assert cases.same_plans(pickle.loads(pickle.dumps(plan)), plan)


def test_numbers_of_numpy_are_numbers() -> None:
    settings = GraspConfig(
        horizon=np.int64(5),
        seed=np.uint64(2**64 - 1),
        max_rows=np.int32(7),
        state_lr=np.float32(0.5),
        stop_cost=np.float64(0.25),
        goal_weight=np.float32(0.125),
        action_low=np.float32(-1.0),
        action_high=np.array([1.0, 2.0], dtype=np.float32),
        state_scale=np.ones(4, dtype=np.float32),
    )
    assert settings == GraspConfig(
        horizon=5,
        seed=2**64 - 1,
        max_rows=7,
        state_lr=0.5,
        stop_cost=0.25,
        goal_weight=0.125,
        action_low=-1.0,
        action_high=(1.0, 2.0),
        state_scale=(1.0,) * 4,
    )
    for name in ("horizon", "seed", "max_rows"):
        assert type(getattr(settings, name)) is int
    for name in ("state_lr", "stop_cost", "action_low"):
        assert type(getattr(settings, name)) is float
    assert settings.goal_weight == Schedule(0.125)
    for name, value in (("horizon", np.float64(5.0)), ("state_lr", np.bool_(True))):
        with pytest.raises(TypeError, match=name):
            GraspConfig(**{name: value})


def test_the_width_of_actions_from_a_method_and_from_one_bound() -> None:
    plain = {"action_features": None, "action_low": None, "action_high": None}
    assert cases.solve(cases.MLP().forward, 1, **plain).actions.shape == (1, 7, 2)
    settings = cases.config(**{**plain, "action_low": (-1.0,)})
    start = torch.zeros(1, 3)
    plan = GraspPlanner(line, settings).plan(start, start + 1.0)
    assert plan.actions.shape == (1, 7, 1)
    assert plan.actions.min() >= -1.0
    with pytest.raises(ValueError, match="action_features must agree"):
        cases.solve(cases.MLP(), 1, action_low=(-1.0,))


@pytest.mark.parametrize("config", [{"horizon": 5}, GraspConfig, 5, "paper"], ids=str)
def test_a_config_of_another_type(config) -> None:
    with pytest.raises(TypeError, match="config must be a GraspConfig"):
        GraspPlanner(arithmetic, config)


@pytest.mark.parametrize("snapshots", [5, (13,), (-1,), (0, 1.5), ("a",), None, (0, 500)], ids=str)
def test_snapshots_that_cannot_be_taken(snapshots) -> None:
    with pytest.raises((TypeError, ValueError), match="snapshots must be"):
        GraspPlanner(arithmetic, cases.config()).plan(*cases.problems(1), snapshots=snapshots)


def test_snapshots_by_numpy_numbers() -> None:
    planner = GraspPlanner(arithmetic, cases.config())
    plan = planner.plan(*cases.problems(1), snapshots=np.arange(0, 13, 6))
    assert list(plan.snapshots) == [0, 6, 12]
    assert all(type(k) is int for k in plan.snapshots)
