"""What a plan costs: weights, schedules, users' own costs, constraints; goals of many states."""

from __future__ import annotations

from typing import Any

import planner_cases as cases
import pytest
import torch
from grasp_planner import Constraint, GraspPlanner, NonFiniteWarning, Plan, Schedule
from grasp_planner.goals import Alternatives, Anywhere, Ball, Goal, Region, Subset, Waypoints
from planner_cases import arithmetic
from torch import Tensor

every_planner = pytest.mark.parametrize("kind", cases.KINDS)
WEIGHTS = {"running_goal_weight": 0.3, "action_weight": 0.2, "action_change_weight": 0.1}


def parts(plan: Plan, goal: Tensor) -> dict[str, Tensor]:
    """The cost's parts, written out."""
    apart = (plan.states[:, 1:] - goal[:, None]).square().sum(-1)
    actions = plan.actions
    return {
        "goal": apart[:, -1],
        "running_goal_weight": apart[:, :-1].mean(1),
        "action_weight": actions.square().sum(-1).mean(1),
        "action_change_weight": (actions[:, 1:] - actions[:, :-1]).square().sum(-1).mean(1),
    }


@every_planner
def test_the_cost_is_the_sum_of_its_parts(kind: str) -> None:
    start, goal = cases.problems(3)

    def own(states: Tensor, actions: Tensor) -> Tensor:
        return states[:, 3, 0].square() + actions[:, :, 1].abs().sum(1)

    changes = {**WEIGHTS, "cost": own, "cost_weight": 0.5}
    plan = cases.planner(kind, arithmetic, **changes).plan(start, goal)
    found = parts(plan, goal)
    expected = found["goal"] + sum(w * found[name] for name, w in WEIGHTS.items())
    expected = expected + 0.5 * own(plan.states, plan.actions)
    torch.testing.assert_close(plan.cost, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(plan.violation, torch.zeros(3))


@every_planner
@pytest.mark.parametrize("name", WEIGHTS)
def test_a_weight_is_planned_for(kind: str, name: str) -> None:
    """What is planned with it costs less by it than what is planned without it."""
    start, goal = cases.problems(4)
    more = {"samples": 64, "iterations": 8} if kind in ("cem", "icem", "mppi") else {}
    more |= {"final_sync_steps": 20} if kind == "grasp gauss-newton" else {}
    free = parts(cases.planner(kind, arithmetic, **more).plan(start, goal), goal)
    planner = cases.planner(kind, arithmetic, **more, **{name: 30.0})
    bound = parts(planner.plan(start, goal), goal)
    cost = [(found["goal"] + 30.0 * found[name]).mean() for found in (bound, free)]
    assert cost[0] < cost[1]


@every_planner
def test_states_are_the_users_in_their_own_units(kind: str) -> None:
    """Whatever units the planner has: a cost sees the world model's own states."""
    start, goal = cases.problems(2)
    seen: list[Tensor] = []

    def own(states: Tensor, actions: Tensor) -> Tensor:
        seen.append(states.detach())
        return states[:, :, 0].square().mean(1)

    scale = (2.0, 0.5, 1.0, 4.0)
    changes = {"cost": own, "state_scale": scale, "goal_feature_weight": (1.0, 1.0, 0.0, 0.0)}
    plan = cases.planner(kind, arithmetic, **changes).plan(start, goal)
    for states in seen:
        torch.testing.assert_close(states[0, 0], start[0], rtol=1e-5, atol=1e-6)
    apart = ((plan.states[:, -1] - goal) / torch.tensor(scale))[:, :2].square().sum(1)
    expected = apart + plan.states[:, :, 0].square().mean(1)
    torch.testing.assert_close(plan.cost, expected, rtol=1e-4, atol=1e-5)


@every_planner
def test_a_context_goes_with_its_problem(kind: str) -> None:
    """Alone, in a batch, permuted, and when the others have left: each sees its own."""
    start, goal = cases.problems(3)
    context = {"spot": torch.randn(3, 2), "weight": torch.tensor([1.0, 3.0, 0.0])}

    def own(states: Tensor, actions: Tensor, given: dict[str, Tensor]) -> Tensor:
        apart = (states[:, 3, :2] - given["spot"]).square().sum(-1)
        return given["weight"] * apart

    ids = torch.tensor([7, 1, 9])
    planner = cases.planner(kind, arithmetic, cost=own)
    plan = planner.plan(start, goal, plan_ids=ids, context=context)
    order = [2, 0, 1]
    turned = planner.plan(
        start[order],
        goal[order],
        plan_ids=ids[order],
        context={name: value[order] for name, value in context.items()},
    )
    assert cases.same_bits(turned.actions, plan.actions[order])
    assert cases.same_bits(turned.cost, plan.cost[order])
    expected = (plan.states[:, -1] - goal).square().sum(1)
    expected = expected + own(plan.states, plan.actions, context)
    torch.testing.assert_close(plan.cost, expected, rtol=1e-4, atol=1e-5)


@every_planner
def test_schedules_steer_the_search_and_the_last_value_judges(kind: str) -> None:
    start, goal = cases.problems(3)
    falling = Schedule(50.0, 0.1, "linear")
    plan = cases.planner(kind, arithmetic, action_weight=falling).plan(start, goal)
    found = parts(plan, goal)
    expected = found["goal"] + 0.1 * found["action_weight"]
    torch.testing.assert_close(plan.cost, expected, rtol=1e-4, atol=1e-5)
    constant = cases.planner(kind, arithmetic, action_weight=0.1).plan(start, goal)
    assert not torch.equal(plan.actions, constant.actions)


@every_planner
def test_chunks_threads_and_early_leaving_change_nothing(kind: str) -> None:
    start, goal = cases.problems(3)
    changes: dict[str, Any] = {
        **WEIGHTS,
        "constraints": Constraint(lambda s, a: s[:, 1:, 0] - 0.5),
        "penalty_weight": 3.0,
    }
    whole = cases.planner(kind, arithmetic, **changes).plan(start, goal)
    few = cases.planner(kind, arithmetic, **changes, max_rows=5).plan(start, goal)
    assert cases.same_plans(few, whole)
    for n in range(3):
        ids = torch.tensor([n])
        alone = cases.planner(kind, arithmetic, **changes).plan(
            start[n : n + 1], goal[n : n + 1], plan_ids=ids
        )
        assert cases.same_bits(alone.actions[0], whole.actions[n])
        assert cases.same_bits(alone.violation[0], whole.violation[n])


# ------------------------------------------------------------------------------------ constraints


def slide(state: Tensor, action: Tensor) -> Tensor:
    return state + 0.2 * action


def keep_out(states: Tensor, actions: Tensor) -> Tensor:
    """Outside a disc in the middle of the way, at every step: `r^2 - |s_t|^2 <= 0`."""
    return 0.25 - (states[:, 1:] - torch.tensor([0.0, 0.1])).square().sum(-1)


KEEP_OUT = torch.tensor([[-1.0, 0.0], [-1.0, 0.05]]), torch.tensor([[1.0, 0.0], [1.0, -0.1]])
GRADIENTS: dict[str, dict[str, Any]] = {
    "gradient": {"restarts": 8, "iterations": 200, "hold": 1},
    "latco": {"restarts": 8, "iterations": 400, "hold": 1},
    "lifted-newton": {"rounds": 4, "samples": 64, "resamples": 32, "hold": 2, "cost_steps": 40},
    "grasp": {"candidates": 8, "iterations": 150, "sync_every": 15, "sync_steps": 10},
    "cem": {"samples": 200, "iterations": 40, "elites": 10, "hold": 2},
}


@pytest.mark.parametrize("kind", GRADIENTS)
def test_an_augmented_lagrangian_keeps_out_where_a_penalty_does_not(kind: str) -> None:
    """The goal is behind a disc, and a light penalty trades the disc against the goal.

    So its best plans violate it, and what it finds on the way that does not is no good plan; the
    multipliers make the same weight enough.
    """
    start, goal = KEEP_OUT
    found = {}
    for method in ("penalty", "augmented-lagrangian"):
        settings = {
            **GRADIENTS[kind],
            "horizon": 20,
            "action_weight": 0.5,
            "constraints": Constraint(keep_out),
            "constraint_method": method,
            "penalty_weight": 0.1,
            "constraint_tolerance": 2e-3,
        }
        found[method] = cases.planner(kind, slide, **settings).plan(start, goal)
    ours, light = found["augmented-lagrangian"], found["penalty"]
    assert (ours.violation <= 2e-3).all()
    expected = keep_out(ours.states, ours.actions).clamp_min(0).amax(1)
    torch.testing.assert_close(ours.violation, expected)
    assert (ours.cost < 0.98 * light.cost).all() or (light.violation > 2e-3).all()
    if kind != "latco":
        assert ((ours.states[:, -1] - goal).square().sum(1) < 0.05).all()


def test_a_penalty_alone_ends_inside() -> None:
    """Where no constraint is tolerated, the last iterate of the penalty is in the disc."""
    start, goal = KEEP_OUT
    inside = {}
    for method in ("penalty", "augmented-lagrangian"):
        last: list[Tensor] = []

        def watch(moment: Any, last: list[Tensor] = last) -> None:
            last[:] = [moment.variables["moving"].clone()]

        settings = {
            **GRADIENTS["gradient"],
            "horizon": 20,
            "action_weight": 0.5,
            "constraints": Constraint(keep_out),
            "constraint_method": method,
            "penalty_weight": 0.1,
        }
        planner = cases.planner("gradient", slide, **settings)
        planner.plan(start, goal, callback=watch, callback_at=200)
        states = cases.roll_out(slide, start.repeat_interleave(8, 0), last[0])
        inside[method] = keep_out(states, last[0]).clamp_min(0).amax(1)
    assert inside["penalty"].median() > 0.02
    assert inside["augmented-lagrangian"].mean() < 0.3 * inside["penalty"].mean()


@every_planner
@pytest.mark.parametrize("method", ["penalty", "augmented-lagrangian"])
def test_equalities_and_actions(kind: str, method: str) -> None:
    """The two actions are to be the same; without it they are not."""
    start, goal = cases.problems(3)
    same = Constraint(lambda s, a: (a[:, :, 0] - a[:, :, 1]).mean(1), kind="equality")
    free = cases.planner(kind, arithmetic).plan(start, goal)
    planner = cases.planner(
        kind, arithmetic, constraints=(same,), constraint_method=method, penalty_weight=20.0
    )
    plan = planner.plan(start, goal)
    apart = {
        name: (p.actions[:, :, 0] - p.actions[:, :, 1]).mean(1).abs()
        for name, p in (("free", free), ("held", plan))
    }
    torch.testing.assert_close(plan.violation, apart["held"])
    assert apart["held"].mean() < 0.5 * apart["free"].mean()


@every_planner
def test_a_plan_that_keeps_the_constraints_is_better_whatever_it_costs(kind: str) -> None:
    """The warm start keeps them, and nothing that does not can take its place."""
    start, goal = cases.problems(3)
    still = Constraint(lambda s, a: a.abs().flatten(1).amax(1) - 1e-3)
    planner = cases.planner(
        kind, arithmetic, constraints=still, constraint_method="penalty", penalty_weight=1e-6
    )
    plan = planner.plan(start, goal, actions=torch.zeros(3, 7, 2))
    assert (plan.violation <= 1e-3).all()


def test_good_enough_is_within_the_constraints() -> None:
    start, goal = cases.problems(2)
    planner = cases.planner("cem", arithmetic, stop_cost=1e9, iterations=3)
    assert planner.plan(start, goal).iterations == 1
    never = Constraint(lambda s, a: s[:, 0, 0] * 0 + 1.0)
    planner = cases.planner("cem", arithmetic, stop_cost=1e9, iterations=3, constraints=never)
    plan = planner.plan(start, goal)
    assert plan.iterations == 3
    assert torch.equal(plan.violation, torch.ones(2))


# ------------------------------------------------------------------------------------------ goals


def far_from(goal: Any, plan: Plan) -> Tensor:
    """Squared distance of a plan's end to a goal, written out."""
    last = plan.states[:, -1]
    if isinstance(goal, Subset):
        columns = list(goal.features)
        return (last - goal.state)[:, columns].square().sum(1)
    if isinstance(goal, Region):
        return (last - last.clamp(goal.low, goal.high)).square().sum(1)
    if isinstance(goal, Ball):
        return ((last - goal.centre).norm(dim=1) - goal.radius).clamp_min(0).square()
    if isinstance(goal, Alternatives):
        return (last[:, None] - goal.states).square().sum(-1).amin(1)
    assert isinstance(goal, Waypoints)
    return (last - goal.states[..., -1, :]).square().sum(1)


def reachable(count: int, steps: int = 7) -> tuple[Tensor, Tensor]:
    start, _ = cases.problems(count)
    turns = torch.tensor([[0.8, -0.6], [-0.7, 0.9], [0.9, 0.6]])[:count]
    actions = turns[:, None].repeat(1, steps, 1)
    return start, cases.roll_out(arithmetic, start, actions)


def some_goals() -> dict[str, tuple[Tensor, Goal]]:
    start, states = reachable(3)
    end, away = states[:, -1], torch.full((3, 4), 50.0)
    infinite = torch.full((4,), torch.inf)
    low, high = end - 0.1, end + 0.1
    low[:, 2:], high[:, 2:] = -infinite[2:], infinite[2:]
    return {
        "subset": (start, Subset(end, features=(0, 1))),
        "region": (start, Region(low, high)),
        "ball": (start, Ball(end, 0.2)),
        "alternatives": (start, Alternatives(torch.stack((away, end, -away), 1))),
        "waypoints": (start, Waypoints(states[:, [3, 7]], weight=0.1)),
        "waypoints in time": (start, Waypoints(states[:, [2, 7]], steps=(2,), weight=0.1)),
    }


@every_planner
@pytest.mark.parametrize("name", some_goals())
def test_goals_of_many_states(kind: str, name: str) -> None:
    start, goal = some_goals()[name]
    plan = cases.planner(kind, arithmetic).plan(start, goal)
    idle = cases.roll_out(arithmetic, start, torch.zeros(3, 7, 2))[:, -1]
    distance = far_from(goal, plan)
    lazy = Plan(**{**vars(plan), "states": idle[:, None].expand(-1, 8, -1)})
    assert distance.mean() < 0.5 * far_from(goal, lazy).mean()
    if "waypoints" not in name:
        torch.testing.assert_close(plan.cost, distance, rtol=1e-4, atol=1e-5)
    for n in range(3):  # and it is the same alone
        row = torch.tensor([n])
        alone = cases.planner(kind, arithmetic).plan(start[row], goal.take(row), plan_ids=row)
        assert cases.same_bits(alone.actions[0], plan.actions[n])


@pytest.mark.parametrize("kind", ["gradient", "lifted-newton", "grasp", "latco"])
def test_one_state_by_any_other_name(kind: str) -> None:
    """A region of one state, a ball of none, one alternative, one waypoint: all are that state."""
    start, states = reachable(2)
    end = states[:, -1]
    expected = cases.planner(kind, arithmetic).plan(start, end)
    goals = [Alternatives(end[:, None]), Waypoints(end[:, None])]
    if kind != "grasp":  # whose last virtual state a region cannot be
        goals += [Region(end, end), Ball(end, 0.0), Subset(end, range(4))]
    for goal in goals:
        plan = cases.planner(kind, arithmetic).plan(start, goal)
        torch.testing.assert_close(plan.cost, expected.cost, rtol=0.3, atol=2e-2)
        if isinstance(goal, Subset):
            assert cases.same_bits(plan.actions, expected.actions)


@every_planner
def test_no_goal_but_a_cost(kind: str) -> None:
    """What is below zero, such as minus a reward, is planned for as well; nothing else counts."""
    start, _ = cases.problems(3)

    def own(states: Tensor, actions: Tensor) -> Tensor:
        return states[:, -1, 0] - 2.0

    planner = cases.planner(kind, arithmetic, cost=own, running_goal_weight=1.0)
    plan = planner.plan(start, Anywhere())
    torch.testing.assert_close(plan.cost, own(plan.states, plan.actions))
    idle = cases.roll_out(arithmetic, start, torch.zeros(3, 7, 2))
    reached = idle[:, -1, 0] - plan.states[:, -1, 0]
    assert (reached > 0.1).all()


def test_waypoints_are_passed_in_order_when_it_suits() -> None:
    """By dynamic programming: the least over all orders of times, found by trying them all."""
    from itertools import combinations

    from grasp_planner.goals import Path

    torch.manual_seed(0)
    states, waypoints = torch.randn(2, 3, 8, 4), torch.randn(2, 3, 4)
    weight = torch.rand(4)
    found = Path(torch.zeros(2, 4), waypoints, None, 2.0).on_the_way(states, weight)
    apart = (weight * (states[:, :, 1:-1, None] - waypoints[:, None, None]).square()).sum(-1)
    tried = torch.stack(
        [sum(apart[:, :, t, k] for k, t in enumerate(times)) for times in combinations(range(6), 3)]
    )
    torch.testing.assert_close(found, 2.0 * tried.amin(0))
    timed = Path(torch.zeros(2, 4), waypoints, (1, 3, 6), 2.0).on_the_way(states, weight)
    expected = 2.0 * (apart[:, :, 0, 0] + apart[:, :, 2, 1] + apart[:, :, 5, 2])
    torch.testing.assert_close(timed, expected)


def test_a_shared_goal_is_every_problems_own() -> None:
    start, states = reachable(3)
    shared = Region(states[0, -1] - 0.1, states[0, -1] + 0.1)
    rows = torch.tensor([2, 0])
    taken = shared.take(rows)
    assert torch.equal(taken.low, shared.low)
    planner = cases.planner("cem", arithmetic)
    plan, some = planner.plan(start, shared), planner.plan(start[rows], taken, plan_ids=rows)
    assert cases.same_bits(some.actions, plan.actions[rows])


def test_candidates_go_to_all_alternatives() -> None:
    start, states = reachable(1)
    goal = Alternatives(torch.stack((states[0, -1], states[0, -1] + 5.0)))
    planner = GraspPlanner(arithmetic, cases.config(candidates=4, initial_noise_scale=0.0))
    plan = planner.plan(start, goal, snapshots=(0,))
    ends = plan.snapshots[0][0, :, -1]
    torch.testing.assert_close(ends[0], ends[2])
    torch.testing.assert_close((ends[0] - ends[1]).abs(), torch.full((4,), 5.0))


BAD_GOALS = [
    (lambda: Subset(torch.zeros(4), (0, 4)), r"goal.features must be from 0 to 3, got 4"),
    (lambda: Subset(torch.zeros(4), ()), r"goal.features must name a feature"),
    (lambda: Subset(torch.zeros(5), (0,)), r"goal.state must be \(B, D\) or \(D,\), D = 4"),
    (lambda: Region(torch.ones(4), torch.zeros(4)), r"goal.low must not be above goal.high"),
    (lambda: Region(torch.full((4,), torch.nan), torch.zeros(4)), r"goal.low must not be NaN"),
    (lambda: Ball(torch.zeros(3, 4), 1.0), r"goal.centre must have a row for each of 2"),
    (lambda: Ball(torch.zeros(4), -1.0), r"goal.radius must be at least 0"),
    (lambda: Ball([0.0], 1.0), r"goal.centre must be a tensor, got list"),
    (lambda: Alternatives(torch.zeros(4)), r"goal.states must be \(B, K, D\)"),
    (lambda: Alternatives(torch.zeros(2, 4).double()), r"goal.states must have the dtype of start"),
    (lambda: Waypoints(torch.zeros(3, 4), steps=(1,)), r"goal.steps must be 2"),
    (lambda: Waypoints(torch.zeros(3, 4), steps=(3, 2)), r"goal.steps must be rising from 1"),
    (lambda: Waypoints(torch.zeros(2, 4), steps=(9,)), r"goal.steps must be below the horizon, 7"),
    (lambda: Waypoints(torch.zeros(9, 4)), r"goal.states are 9, which takes as many steps"),
    (lambda: Waypoints(torch.zeros(2, 4), weight=-1.0), r"goal.weight must be at least 0"),
    (lambda: Alternatives(torch.full((2, 4), torch.inf)), r"goal.states must be finite"),
]


@pytest.mark.parametrize(("make", "message"), BAD_GOALS)
def test_bad_goals_are_named(make: Any, message: str) -> None:
    start, _ = cases.problems(2)
    with pytest.raises((TypeError, ValueError), match=message):
        cases.planner("cem", arithmetic).plan(start, make())


BAD_COSTS = [
    ({"cost": lambda s, a: s[:, 0]}, r"config.cost must return \(N,\)"),
    ({"cost": lambda s, a: 1.0}, "config.cost must return a tensor, got float"),
    (
        {"constraints": Constraint(lambda s, a: s[:1, 0])},
        r"config.constraints\[0\] must return \(N,\) or \(N, C\), N = 2",
    ),
]


@pytest.mark.parametrize(("changes", "message"), BAD_COSTS)
def test_bad_answers_of_costs_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        cases.planner("cem", arithmetic, **changes).plan(*cases.problems(2))


BAD_CONTEXTS = [
    (3, "context must be a tensor"),
    (torch.zeros(3, 2), "context must have a row for each of 2 problems"),
    ({"a": 3}, "context must hold tensors"),
]


@pytest.mark.parametrize(("context", "message"), BAD_CONTEXTS)
def test_bad_contexts_are_named(context: Any, message: str) -> None:
    planner = cases.planner("cem", arithmetic, cost=lambda s, a, c: s[:, 0, 0])
    with pytest.raises((TypeError, ValueError), match=message):
        planner.plan(*cases.problems(2), context=context)


@every_planner
def test_a_cost_that_is_nan_for_some_plans_leaves_the_others(kind: str) -> None:
    start, goal = cases.problems(3)
    start[1, 3] = 40.0

    def own(states: Tensor, actions: Tensor) -> Tensor:
        odd = states[:, 0, 3] > 30
        return torch.where(odd, torch.nan, 0.1 * actions.square().flatten(1).sum(1))

    sound = [0, 2]
    planner = cases.planner(kind, arithmetic, cost=own)
    with pytest.warns(NonFiniteWarning, match="plan_id 1 "):
        plan = planner.plan(start, goal)
    alone = planner.plan(start[sound], goal[sound], plan_ids=torch.tensor(sound))
    assert cases.same_bits(plan.actions[sound], alone.actions)
    assert plan.finite.tolist() == [True, False, True]


def test_whole_plan_kernels_say_why_not() -> None:
    from grasp_planner.tasks.mlp import ResidualMLP

    model = ResidualMLP(4, 2, hidden=8, layers=1)
    start, goal = cases.problems(2)
    plan = GraspPlanner(model, cases.config(action_weight=0.1)).plan(start, goal)
    assert plan.path.endswith("the config adds to the goal's cost")
    plan = GraspPlanner(model, cases.config()).plan(start, Ball(goal, 0.1))
    assert plan.path.endswith("the goal is more than one state")
