"""Promise 2: the same seed and plan ids give the same plan, whatever stands around it."""

from __future__ import annotations

import planner_cases as cases
import pytest
import torch
from grasp_planner import GraspPlanner

VARIANTS = [
    {},
    {"noise": "white", "candidates": 1},
    {"noise": "none", "initial_actions_scale": 0.3},
    {"terminal": "free"},
    {"initialization": "rollout", "initial_actions_scale": 0.2},
    {"state_gradient_scale": 0.3},
    {"state_optimizer": "adam"},
    {"stop_cost": 0.5, "sync_blend": 0.5},
    {"state_scale": (1.0, 2.0, 0.5, 3.0), "feature_weight": (1.0, 0.5, 0.0, 2.0)},
]


def plan(start, goal, ids, **changes):
    changes = {"horizon": 4, "iterations": 6, "sync_every": 2, "final_sync_steps": 1, **changes}
    planner = GraspPlanner(cases.arithmetic, cases.config(**changes))
    plan_ids = None if ids is None else torch.tensor(ids)
    return planner.plan(start, goal, plan_ids=plan_ids, snapshots=(0, 3))


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_alone_in_a_batch_and_permuted(variant) -> None:
    start, goal = cases.problems(4)
    ids = [5, 0, 2**61, 77]
    together = plan(start, goal, ids, **variant)
    order = [2, 0, 3, 1]
    permuted = plan(start[order], goal[order], [ids[i] for i in order], **variant)
    for a, b in zip(cases.per_problem(permuted), cases.per_problem(together), strict=True):
        assert cases.same_bits(a, b[order])
    for n in range(4):
        alone = plan(start[n : n + 1], goal[n : n + 1], ids[n : n + 1], **variant)
        for a, b in zip(cases.per_problem(alone), cases.per_problem(together), strict=True):
            assert cases.same_bits(a[0], b[n])


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_chunks_of_any_size(variant) -> None:
    """From one row at a time to more rows than there are; 3 cuts time, 10 cuts plans."""
    start, goal = cases.problems(3)
    ids = [5, 0, 2**61]
    whole = plan(start, goal, ids, **variant)
    for max_rows in (1, 3, 10, 1000):
        assert cases.same_plans(plan(start, goal, ids, max_rows=max_rows, **variant), whole)


@pytest.mark.parametrize("horizon", [1, 2, 5])
def test_chunks_of_short_plans(horizon) -> None:
    start, goal = cases.problems(3)
    whole = plan(start, goal, [1, 2, 3], horizon=horizon)
    for max_rows in (1, 2, 4):
        found = plan(start, goal, [1, 2, 3], horizon=horizon, max_rows=max_rows)
        assert cases.same_plans(found, whole)


def test_any_thread_count() -> None:
    start, goal = cases.problems(16)
    calm = {"horizon": 40, "iterations": 6, "initial_noise_scale": 0.5, "noise_scale": 0.05}
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(plan(0.1 * start, 0.1 * goal, list(range(16)), **calm))
    finally:
        torch.set_num_threads(before)
    assert cases.same_plans(*results)


def test_a_wide_state_on_any_thread_count() -> None:
    """One plan of one wide state: where a sum over features is tempted to split over threads."""
    features = 40_001
    start, goal = torch.randn(2, 2, features).unbind(0)
    model = lambda state, action: state + 0.1 * action  # noqa: E731
    before = torch.get_num_threads()
    try:
        found = []
        for threads, some in ((1, slice(0, 2)), (1, slice(0, 1)), (2, slice(0, 1))):
            torch.set_num_threads(threads)
            settings = cases.config(
                horizon=1, iterations=2, candidates=1, action_features=features, final_sync_steps=0
            )
            result = GraspPlanner(model, settings).plan(start[some], goal[some])
            found.append((result.cost[0], result.loss_history[:, 0]))
    finally:
        torch.set_num_threads(before)
    for cost, history in found[1:]:
        assert cases.same_bits(cost, found[0][0])
        assert cases.same_bits(history, found[0][1])


def test_a_network_gives_the_same_plan_up_to_its_own_rounding() -> None:
    """A matrix product rounds differently with the number of rows; a few iterations amplify that
    little.
    """
    model = cases.MLP()
    whole = cases.solve(model, 3)
    start, goal = cases.problems(3)
    for max_rows in (1, 10):
        found = cases.solve(model, 3, max_rows=max_rows)
        torch.testing.assert_close(found.actions, whole.actions, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(found.cost, whole.cost, rtol=1e-3, atol=1e-3)
    planner = GraspPlanner(model, cases.config())
    alone = planner.plan(start[1:2], goal[1:2], plan_ids=torch.tensor([1]))
    torch.testing.assert_close(alone.actions[0], whole.actions[1], rtol=1e-3, atol=1e-3)


def test_the_seed_the_id_and_the_candidates_matter() -> None:
    """And that all of the above is not because nothing is random."""
    start, goal = cases.problems(1)
    base = plan(start, goal, [0])
    assert cases.same_plans(base, plan(start, goal, [0]))
    assert not torch.equal(base.loss_history, plan(start, goal, [1]).loss_history)
    assert not torch.equal(base.loss_history, plan(start, goal, [0], seed=4).loss_history)
    assert not torch.equal(base.loss_history[..., 0], base.loss_history[..., 1])
    assert cases.same_plans(base, plan(start, goal, None))  # ids count from 0


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("max_rows", [None, 1, 2, 3])
@pytest.mark.parametrize("horizon", [1, 4])
def test_a_model_that_keeps_its_state_input_for_the_way_back(count, max_rows, horizon) -> None:
    """The states move while the model's graph still needs them; state * action shows it."""

    def model(state, action):
        return state + state * (0.1 * action)

    def careful(state, action):
        return model(state.clone(), action)

    start, goal = torch.full((count, 2), 1.0), torch.full((count, 2), 1.5)
    settings = cases.config(horizon=horizon, max_rows=max_rows, candidates=1)
    found = GraspPlanner(model, settings).plan(start, goal)
    assert cases.same_plans(found, GraspPlanner(careful, settings).plan(start, goal))


def test_models_that_return_their_input_or_an_expanded_answer() -> None:
    """A view of the input, an answer with strides, an answer shared between rows."""
    start, goal = cases.problems(2)
    expected = cases.solve(lambda s, a: s + a.repeat(1, 2), 2)
    found = cases.solve(lambda s, a: (s.T + a.repeat(1, 2).T).T, 2)
    assert cases.same_plans(found, expected)
    still = cases.solve(lambda s, a: s + 0 * a.repeat(1, 2), 2)
    torch.testing.assert_close(still.states, start[:, None].expand_as(still.states))
    assert torch.isfinite(still.cost).all()
    assert goal.shape == start.shape
