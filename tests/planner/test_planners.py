"""The one call that all planners share: what it returns, keeps, counts and tells."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import planner_cases as cases
import pytest
import torch
from grasp_planner import Moment
from grasp_planner.tasks.mlp import ResidualMLP
from planner_cases import arithmetic
from torch import Tensor

from grasp_kernels import native

every_planner = pytest.mark.parametrize("kind", cases.KINDS)
KEEPS_THE_CHEAPEST = [kind for kind in cases.KINDS if not kind.startswith("lifted")]


def cost_of(states: Tensor, goal: Tensor) -> Tensor:
    return (states[:, -1] - goal).square().sum(-1)


def assert_rolled_out(plan: Any, start: Tensor, goal: Tensor, model: Any = arithmetic) -> None:
    """Shapes, and that states and cost are those of the actions."""
    plans, steps, _ = plan.actions.shape
    assert plan.states.shape == (plans, steps + 1, start.shape[-1])
    assert plan.cost.shape == plan.finite.shape == (plans,)
    assert plan.actions.dtype == plan.states.dtype == start.dtype
    assert plan.finite.all()
    expected = cases.roll_out(model, start, plan.actions)
    torch.testing.assert_close(plan.states, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(plan.cost, cost_of(expected, goal), rtol=1e-4, atol=1e-6)


# ---------------------------------------------------------------------------------- what it returns


@every_planner
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_plan_is_the_rollout_of_its_actions(kind: str, dtype: torch.dtype) -> None:
    start, goal = cases.problems(3, dtype)
    planner = cases.planner(kind, arithmetic)
    plan = planner.plan(start, goal)
    assert plan.actions.shape == (3, 7, 2)
    assert_rolled_out(plan, start, goal)
    assert (plan.actions.abs() <= 1).all()
    rounds = getattr(planner.config, "iterations", getattr(planner.config, "rounds", 0))
    candidates = planner.config.candidates if kind.startswith("grasp") else 1
    assert plan.iterations == rounds
    assert plan.loss_history.shape == (rounds, 3, candidates)
    assert plan.candidate_cost.shape == (3, candidates)
    assert torch.equal(plan.cost, plan.candidate_cost.min(1).values)
    assert plan.backend.startswith(("reference", "native", "triton"))
    assert plan.path.startswith("general path: ")
    idle = cost_of(cases.roll_out(arithmetic, start, torch.zeros_like(plan.actions)), goal)
    assert (plan.cost < 0.9 * idle).all()


@every_planner
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_is_planned_in(kind: str, dtype: torch.dtype) -> None:
    """States, actions and steps as the model has them; whatever a planner solves or compares."""
    start, goal = cases.problems(3, dtype)
    plan = cases.planner(kind, arithmetic, action_low=-0.7, action_high=0.7).plan(start, goal)
    assert plan.actions.dtype == plan.states.dtype == dtype
    assert plan.finite.all()
    assert (plan.actions.abs() <= torch.tensor(0.7, dtype=dtype)).all()
    rolled = cases.roll_out(arithmetic, start, plan.actions)
    torch.testing.assert_close(plan.states, rolled, rtol=0.05, atol=0.05)
    exact = cost_of(cases.roll_out(arithmetic, start.double(), plan.actions.double()), goal)
    idle = cost_of(cases.roll_out(arithmetic, start.double(), 0 * plan.actions.double()), goal)
    assert (exact < 0.95 * idle).all()


@every_planner
def test_one_unbatched_problem(kind: str) -> None:
    start, goal = cases.problems(1)
    planner = cases.planner(kind, arithmetic)
    assert cases.same_plans(planner.plan(start[0], goal[0]), planner.plan(start, goal))


@every_planner
def test_no_problems(kind: str) -> None:
    plan = cases.planner(kind, arithmetic).plan(torch.zeros(0, 4), torch.zeros(0, 4))
    assert plan.actions.shape == (0, 7, 2)
    assert plan.states.shape == (0, 8, 4)
    assert plan.cost.shape == plan.finite.shape == (0,)


def decay(state: Tensor, action: Tensor) -> Tensor:
    """A thrust along a line of three leaky buckets: D = 3, A = 1."""
    flow = torch.cat([action, 0.5 * state[:, :2]], -1)
    return 0.9 * state + 0.3 * flow


@every_planner
@pytest.mark.parametrize("horizon", [1, 6])
def test_other_widths_and_a_single_step(kind: str, horizon: int) -> None:
    start = torch.tensor([[0.5, -0.2, 0.1], [0.0, 0.3, 0.2]])
    goal = cases.roll_out(decay, start, torch.full((2, horizon, 1), 0.4))[:, -1]
    planner = cases.planner(kind, decay, horizon=horizon, action_features=1)
    plan = planner.plan(start, goal)
    assert plan.actions.shape == (2, horizon, 1)
    assert_rolled_out(plan, start, goal, decay)
    idle = cost_of(cases.roll_out(decay, start, torch.zeros_like(plan.actions)), goal)
    assert (plan.cost < 0.5 * idle).all()


@every_planner
def test_feature_weights_and_scales(kind: str) -> None:
    start, goal = cases.problems(2)
    changes = {"goal_feature_weight": (1.0, 0.5, 0.0, 0.0), "state_scale": (2.0, 1.0, 0.5, 1.0)}
    plan = cases.planner(kind, arithmetic, **changes).plan(start, goal)
    weight, scale = (torch.tensor(values) for values in changes.values())
    expected = (weight * ((plan.states[:, -1] - goal) / scale).square()).sum(-1)
    torch.testing.assert_close(plan.cost, expected, rtol=1e-4, atol=1e-6)
    assert torch.equal(plan.states[:, 0], start)
    states = cases.roll_out(arithmetic, start, plan.actions)
    torch.testing.assert_close(plan.states, states, rtol=1e-5, atol=1e-5)


BOXES = {
    "number": (-0.3, 0.2),
    "per feature": ((-1 / 3, -0.1), (0.1, 0.7)),
    "above": (None, 0.1),
    "below": (-0.1, None),
    "far from 0": (2.0, 3.0),
    "one-sided, far from 0": ((2.0, -torch.inf), None),
    "a point": (0.25, 0.25),
    "half a point": ((-0.5, 0.25), (0.5, 0.25)),
    "none": (None, None),
}


@every_planner
@pytest.mark.parametrize("box", BOXES)
def test_bounds_hold_to_the_last_bit(kind: str, box: str) -> None:
    low, high = BOXES[box]
    start, goal = cases.problems(2)
    planner = cases.planner(kind, arithmetic, action_low=low, action_high=high)
    plan = planner.plan(start, goal, actions=torch.full((2, 7, 2), 9.0))
    assert_rolled_out(plan, start, goal)
    actions = plan.actions.double()
    if low is not None:
        assert (actions >= torch.tensor(low).double()).all()
    if high is not None:
        assert (actions <= torch.tensor(high, dtype=torch.float64)).all()
    if box in ("none", "above", "below"):
        # The box is used, not only respected: its open side is left alone by no planner.
        assert (plan.actions.abs() > 0.1).any()


@every_planner
def test_exploration_is_about_the_box(kind: str) -> None:
    """Planned in a box far from 0 as in one around it, where the model is told of the shift."""
    start, goal = cases.problems(2)
    here = cases.planner(kind, arithmetic).plan(start, goal, actions=torch.zeros(2, 7, 2))
    shifted = cases.planner(
        kind, lambda s, a: arithmetic(s, a - 5.0), action_low=4.0, action_high=6.0
    )
    there = shifted.plan(start, goal, actions=torch.full((2, 7, 2), 5.0))
    torch.testing.assert_close(there.cost, here.cost, rtol=0.2, atol=0.05)


# ------------------------------------------------------------------------------------- held actions


@every_planner
@pytest.mark.parametrize("hold", [1, 3, 7, 10**9])
def test_actions_are_held(kind: str, hold: int) -> None:
    start, goal = cases.problems(2)
    planner = cases.planner(kind, arithmetic, hold=hold)
    plan = planner.plan(start, goal, actions=torch.linspace(-1, 1, 28).view(2, 7, 2))
    assert_rolled_out(plan, start, goal)
    changes = (plan.actions[:, 1:] != plan.actions[:, :-1]).any(2)
    inside = torch.arange(1, 7) % hold != 0
    assert not changes[:, inside].any()
    assert changes[:, ~inside].any() or hold >= 7


@pytest.mark.parametrize("kind", ["grasp held", "cem"])
def test_a_warm_start_is_averaged_over_blocks(kind: str) -> None:
    start, goal = cases.problems(1)
    warm = torch.rand(1, 7, 2)
    changes = {"final_sync_steps": 0, "candidates": 1} if "grasp" in kind else {}
    planner = cases.planner(kind, arithmetic, hold=3, iterations=0, **changes)
    plan = planner.plan(start, goal, actions=warm)
    expected = torch.cat(
        [part.mean(1, keepdim=True).expand_as(part) for part in warm.split(3, 1)], 1
    )
    torch.testing.assert_close(plan.actions, expected)


# -------------------------------------------------------------------------------------- warm starts


def reachable(count: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Problems with a plan, held by 2, that ends at the goal to the bit; start, goal, actions."""
    start, _ = cases.problems(count)
    actions = (torch.rand(count, 4, 2) * 1.6 - 0.8).repeat_interleave(2, 1)[:, :7]
    return start, cases.roll_out(arithmetic, start, actions)[:, -1], actions


@every_planner
def test_a_perfect_warm_start_is_not_lost(kind: str) -> None:
    start, goal, warm = reachable()
    changes = {"score_rollouts": 0, "hold": 2} if kind.startswith("lifted") else {}
    plan = cases.planner(kind, arithmetic, **changes).plan(start, goal, actions=warm)
    # Planners in units of the box round it once on the way there and once on the way back.
    assert (plan.cost <= 1e-11).all()
    torch.testing.assert_close(plan.actions, warm, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("refinement", ["lifted", "rollout"])
def test_a_warm_start_is_a_candidate_as_it_is(refinement: str) -> None:
    """Every refinement is thrown off by noise that only refined plans would meet."""
    start, goal, warm = reachable()
    spoiled = {"max_action_step": 1e-9, "samples": 3, "resamples": 3, "rounds": 1}
    planner = cases.planner(
        "lifted-newton", arithmetic, refinement=refinement, score_rollouts=0, **spoiled
    )
    plan = planner.plan(start, goal, actions=warm)
    assert cases.same_bits(plan.actions, warm)


def test_what_lifted_newton_compares_is_its_robust_cost() -> None:
    """A cliff beside the perfect plan: without noise it is kept, with noise it is left."""

    def beside_a_cliff(state: Tensor, action: Tensor) -> Tensor:
        moved = state + 0.2 * action
        return torch.where(moved[:, :1] > 0.2001, moved + 5.0, moved)

    start = torch.zeros(1, 2)
    goal = torch.tensor([[0.2, 0.0]])
    warm = torch.zeros(1, 1, 2)
    warm[..., 0] = 1.0
    settings = {"horizon": 1, "hold": 1, "samples": 64, "resamples": 32, "candidates": 32}
    settings |= {"refine_steps": 0, "score_action_noise": 0.1, "score_state_noise": 0.0}
    found = {}
    for rollouts in (0, 16):
        planner = cases.planner(
            "lifted-newton", beside_a_cliff, score_rollouts=rollouts, action_high=2.0, **settings
        )
        found[rollouts] = planner.plan(start, goal, actions=warm)
    assert found[0].cost < 1e-10
    assert 1e-4 < found[16].cost < 0.05


@pytest.mark.parametrize("kind", cases.ITERATED)
@pytest.mark.parametrize("warm", [False, True])
def test_no_iterations(kind: str, warm: bool) -> None:
    start, goal = cases.problems(2)
    changes = {"final_sync_steps": 0, "candidates": 1} if "grasp" in kind else {}
    if kind in ("gradient", "latco"):
        changes = {"restarts": 1}
    actions = torch.rand(2, 4, 2).repeat_interleave(2, 1)[:, :7] if warm else torch.zeros(2, 7, 2)
    plan = cases.planner(kind, arithmetic, iterations=0, **changes).plan(
        start, goal, actions=actions if warm else None
    )
    assert plan.iterations == 0
    assert len(plan.loss_history) == 0
    assert_rolled_out(plan, start, goal)
    torch.testing.assert_close(plan.actions, actions)


# ---------------------------------------------------------------------------- what it tells, counts


@every_planner
def test_progress_and_callback(kind: str) -> None:
    start, goal = cases.problems(2)
    heard: list[int] = []
    seen: list[tuple[Moment, Tensor, Tensor]] = []

    def watch(moment: Moment) -> None:
        seen.append((moment, moment.actions.clone(), moment.cost.clone()))

    planner = cases.planner(kind, arithmetic)
    plan = planner.plan(start, goal, progress=heard.append, callback=watch)
    assert heard == list(range(1, plan.iterations + 1))
    told = [moment.iteration for moment, _, _ in seen]
    if "grasp" in kind:
        assert told == [0, 5, 10, 12]  # after the first rollout and every sync
    else:
        before = [0] if kind == "latco" else []  # which has rolled its first actions out by then
        assert sorted(set(told)) == before + heard
        assert told == sorted(told)
    calls = [moment.model_calls for moment, _, _ in seen]
    assert all(a < b for a, b in pairwise(calls))
    assert calls[-1] == plan.model_calls
    for (_, _, before), (_, _, after) in pairwise(seen):
        assert (after <= before).all() or kind not in KEEPS_THE_CHEAPEST
    for moment, actions, cost in seen:
        assert moment.actions.shape == (2, 7, 2)
        states = cases.roll_out(arithmetic, start, actions)
        torch.testing.assert_close(cost, cost_of(states, goal), rtol=1e-4, atol=1e-6)
    assert cases.same_bits(seen[-1][1], plan.actions)
    assert cases.same_bits(seen[-1][2], plan.cost)
    assert cases.same_plans(planner.plan(start, goal), plan)  # watching changes nothing


class Counting:
    """Dependent evaluations: calls of the model, and of its gradient."""

    def __init__(self) -> None:
        self.forward = self.backward = 0

    def __call__(self, state: Tensor, action: Tensor) -> Tensor:
        self.forward += 1
        moved = arithmetic(state, action)
        if moved.requires_grad:
            moved.register_hook(self.back)
        return moved

    def back(self, gradient: Tensor) -> None:
        self.backward += 1


@every_planner
def test_model_calls_are_counted(kind: str) -> None:
    start, goal = cases.problems(2)
    model = Counting()
    plan = cases.planner(kind, model).plan(start, goal)
    if kind.endswith("matrix-free"):
        # A VJP's own evaluation waits for nothing, so it counts once; so does a JVP (two VJPs).
        assert plan.model_calls == model.forward
    else:
        assert plan.model_calls == model.forward + model.backward


def test_model_calls_by_formula() -> None:
    """T = 7 steps a rollout, as `Plan.model_calls` says."""
    calls = {
        kind: cases.planner(kind, arithmetic).plan(*cases.problems(1)).model_calls
        for kind in cases.KINDS
    }
    assert calls["cem"] == calls["mppi"] == (4 + 1) * 7
    assert calls["icem"] == 4 * 7
    assert calls["gradient"] == 6 * 2 * 7 + 7
    assert calls["latco"] == 7 + 7 + 12 * 2 + 2 * 7
    assert calls["lifted-newton"] == 2 * (7 + 3 * 2 + 7)
    assert calls["lifted-newton rollout"] == 2 * (7 + 3 * (2 + 7) + 7)
    # 4 held numbers, hence 4 iterations of conjugate gradients, twice
    assert calls["lifted-newton matrix-free"] == 2 * (7 + 1 + 7 * (3 + 2 * 2 * 4) + 7)
    syncs = (2 + 2 + 3) * 2 * 7 + 3 * 7
    assert calls["grasp"] == calls["grasp held"] == 7 + 12 * 2 + syncs
    assert calls["grasp gauss-newton"] == 7 + 12 * 2 + 3 * 7 + (2 + 2 + 3) * (2 + 7) + 3 * 7


# --------------------------------------------------------------------------------- which way to run


@pytest.mark.native
@pytest.mark.skipif(not native.status().available, reason=str(native.status().reason))
@every_planner
def test_kernels_and_calls_give_the_same_plans(kind: str) -> None:
    torch.manual_seed(5)
    model = ResidualMLP(cases.STATE, cases.ACTION, hidden=16, layers=2)
    start, goal = cases.problems(3)
    plans = []
    for given in (model, lambda s, a: model(s, a)):
        plans.append(cases.planner(kind, given).plan(start, goal))
    fast, general = plans
    assert general.path.startswith("general path: ")
    if kind == "grasp held":
        assert fast.path == "MLP kernels call by call: actions are held for 2 steps"
    else:
        assert fast.path.endswith("MLP kernels")
    torch.testing.assert_close(fast.cost, general.cost, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(fast.actions, general.actions, rtol=0, atol=5e-3)
    assert fast.model_calls == general.model_calls


# ------------------------------------------------------------------------------ grasp's new options


def test_gauss_newton_syncs_arrive_where_gradients_do_not() -> None:
    start, goal, _ = reachable()
    cost = {}
    for optimizer in ("adam", "sgd", "gauss-newton"):
        planner = cases.planner(
            "grasp", arithmetic, sync_optimizer=optimizer, iterations=4, final_sync_steps=8
        )
        cost[optimizer] = planner.plan(start, goal).cost
    assert (cost["gauss-newton"] < 1e-9).all()
    assert (cost["gauss-newton"] < 1e-3 * cost["adam"].minimum(cost["sgd"])).all()


def test_gauss_newton_leaves_a_plan_that_is_good_enough() -> None:
    start, goal, warm = reachable()
    goal[1:] += 0.3
    settings = {"stop_cost": 1e-8, "candidates": 1, "iterations": 1, "noise": "none"}
    planner = cases.planner("grasp gauss-newton", arithmetic, **settings)
    plan = planner.plan(start, goal, actions=warm)
    assert cases.same_bits(plan.actions[0], warm[0])
    assert not torch.equal(plan.actions[1:], warm[1:])
