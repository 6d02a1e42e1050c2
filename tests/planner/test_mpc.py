"""Receding horizon control: who replans when, from what, and within which time."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import planner_cases as cases
import pytest
import torch
from grasp_planner import (
    MPC,
    Alternatives,
    Ball,
    GradientConfig,
    GradientPlanner,
    Plan,
    Planner,
    PlannerConfig,
    Region,
    tasks,
)
from grasp_planner.presets import make_planner
from planner_cases import arithmetic
from torch import Tensor

T, A, D = 7, 2, 4
every_planner = pytest.mark.parametrize("kind", cases.KINDS)


class Scripted(Planner):
    """Plans whose actions tell where they come from: 100 call + 10 id (mod 2**20) + step."""

    config_type = PlannerConfig

    def __init__(self, model: Any = arithmetic) -> None:
        super().__init__(model, PlannerConfig(horizon=T, action_features=A))
        self.asked: list[dict[str, Any]] = []

    _samples = _iterations = _algorithm = None  # nothing is searched

    def plan(self, start: Tensor, goal: Tensor, **given: Any) -> Plan:
        self.asked.append({"start": start, "goal": goal, **given})
        ids = given["plan_ids"]
        first = 100.0 * len(self.asked) + 10.0 * (ids % 2**20)
        actions = (first[:, None, None] + torch.arange(float(T))[:, None]).expand(-1, -1, A)
        states = torch.zeros(len(start), T + 1, D) + start[:, None]
        cost = torch.zeros(len(start))
        return Plan(actions, states, cost, cost[:, None], cost[None, :, None], 1, T, cost == 0, "",
                    "", cost, out_of_time=len(self.asked) == 2)  # fmt: skip


def test_a_plan_is_executed_repeated_and_replaced() -> None:
    planner = Scripted()
    controller = MPC(planner, execute=2, repeat=3)
    state = torch.zeros(2, D)
    seen, replanned = [], []
    for _ in range(8):
        control = controller.act(state, state)
        seen.append(control.actions[:, 0].tolist())
        replanned.append(control.replanned.tolist())
        assert control.out_of_time.tolist() == [len(planner.asked) == 2] * 2
    first, second = [100.0, 110.0], [200.0, 210.0]
    later = [x + 1 for x in first]
    assert seen == [first] * 3 + [later] * 3 + [second] * 2
    assert replanned == [[i in (0, 6)] * 2 for i in range(8)]
    assert len(planner.asked) == 2


def test_some_replan_and_some_go_on() -> None:
    planner = Scripted()
    controller = MPC(planner, execute=4)
    state, goal = torch.zeros(3, D), torch.ones(3, D)
    controller.act(state, goal)
    controller.forget(torch.tensor([False, True, False]))
    assert controller.act(state, goal).replanned.tolist() == [False, True, False]
    assert planner.asked[-1]["actions"] is None  # an episode has no warm start
    goal[2] = 5.0
    control = controller.act(state, goal)
    assert control.replanned.tolist() == [False, False, True]
    assert planner.asked[-1]["goal"].tolist() == [[5.0] * D]
    assert planner.asked[-1]["actions"][0, :, 0].tolist() == [122, 123, 124, 125, 126, 126, 126]
    assert control.actions[:, 0].tolist() == [102, 211, 320]
    # Environment 0 comes to its end, then 1, and 2; each by itself.
    order = [controller.act(state, goal).replanned.nonzero()[:, 0].tolist() for _ in range(5)]
    assert order == [[], [0], [1], [2], []]


def test_every_plan_has_noise_of_its_own() -> None:
    planner = Scripted()
    controller = MPC(planner, environment_ids=[3, 8])
    for _ in range(3):
        controller.act(torch.zeros(2, D), torch.zeros(2, D))
    ids = [call["plan_ids"] for call in planner.asked]
    assert ids[0].tolist() == [3, 8]
    assert len(torch.cat(ids).unique()) == 6


def test_some_take_no_step() -> None:
    """They neither replan nor move on; what they missed is done at their next step."""
    planner = Scripted()
    controller = MPC(planner, execute=2)
    state, goal = torch.zeros(3, D), torch.ones(3, D)
    unseen = torch.tensor([[0.0] * D, [float("nan")] * D, [0.0] * D])
    first = torch.tensor([True, False, True])
    control = controller.act(unseen, goal, active=first)
    assert control.replanned.tolist() == [True, False, True]
    assert control.actions[first, 0].tolist() == [100, 120]
    goal[2] = 5.0
    control = controller.act(state, goal, active=torch.tensor([True, True, False]))
    assert control.replanned.tolist() == [False, True, False]
    assert control.actions[:2, 0].tolist() == [101, 210]
    control = controller.act(state, goal, active=torch.tensor([False, False, True]))
    assert control.replanned.tolist() == [False, False, True]  # its goal has changed meanwhile
    assert planner.asked[-1]["actions"][0, :2, 0].tolist() == [121, 122]
    assert controller.act(state, goal).replanned.tolist() == [True, False, False]
    with pytest.raises(ValueError, match=r"active must be \(3,\), got \(2,\)"):
        controller.act(state, goal, active=torch.ones(2, dtype=torch.bool))
    with pytest.raises(TypeError, match="active must be a bool Tensor"):
        controller.act(state, goal, active=torch.ones(3))


def test_an_episode_with_a_name_of_its_own() -> None:
    """Its noise is that of a controller that begins under this name."""
    planner = Scripted()
    controller, state = MPC(planner), torch.zeros(2, D)
    for _ in range(3):
        controller.act(state, state)
    controller.forget(torch.tensor([False, True]), environment_ids=[0, 7])
    controller.act(state, state)
    assert [call["plan_ids"].tolist() for call in planner.asked[-2:]] == [[7], [3 * 2**20]]
    with pytest.raises(ValueError, match="environment_ids must be all different"):
        controller.forget(torch.tensor([True, False]), environment_ids=[7, 0])
    with pytest.raises(ValueError, match=r"environment_ids must be \(2,\), got \(1,\)"):
        controller.forget(torch.tensor([True, False]), environment_ids=[7])
    controller.reset(environment_ids=[4, 2])
    with pytest.raises(ValueError, match="nothing is under way: give environment_ids to reset"):
        controller.forget(torch.tensor([True, False]), environment_ids=[7, 8])
    controller.act(state, state)
    assert planner.asked[-1]["plan_ids"].tolist() == [4, 2]


@pytest.mark.parametrize(
    ("tail", "filled"), [("hold", [106.0, 106.0]), ("zero", [0.0, 0.0]), ("policy", [-0.5, -0.25])]
)
def test_the_tail_of_a_warm_start(tail: str, filled: list[float]) -> None:
    """The policy `-s / 2` from the plan's last state 1, through `s + a`."""

    def model(state: Tensor, action: Tensor) -> Tensor:
        return state + action[:, :1]

    planner = Scripted(model)
    policy = lambda state: -0.5 * state[:, :A]  # noqa: E731
    controller = MPC(planner, execute=2, tail=policy if tail == "policy" else tail)
    state = torch.ones(1, D)
    for _ in range(3):
        controller.act(state, state)
    warm = planner.asked[-1]["actions"][0, :, 0].tolist()
    assert warm == [102.0, 103.0, 104.0, 105.0, 106.0, *filled]


@every_planner
def test_no_environment_at_all(kind: str) -> None:
    controller = MPC(cases.planner(kind, arithmetic))
    for _ in range(2):
        control = controller.act(torch.zeros(0, D), torch.zeros(0, D))
        assert control.actions.shape == (0, A)
        assert control.replanned.shape == control.cost.shape == (0,)


def test_after_an_error_the_step_can_be_asked_for_again() -> None:
    controller = MPC(cases.planner("cem", arithmetic))
    broken = torch.full((3, D), torch.nan)
    with pytest.raises(ValueError, match="start must be finite"):
        controller.act(broken, torch.zeros(3, D))
    state = torch.zeros(2, D)  # the first batch, as nothing was under way
    first = controller.act(state, state)
    with pytest.raises(ValueError, match="goal must be finite"):
        controller.act(state, broken[:2])
    assert controller.act(state, state).replanned.all()
    controller.reset()
    assert cases.same_bits(controller.act(state, state).actions, first.actions)


@every_planner
def test_an_environment_is_controlled_the_same_whatever_is_beside_it(kind: str) -> None:
    """Bits: alone, in a batch, while others begin episodes."""
    start, goal = cases.problems(3)

    def drive(which: list[int], forgets: dict[int, int]) -> Tensor:
        controller = MPC(cases.planner(kind, arithmetic), execute=2, environment_ids=which)
        state, actions = start[which], []
        for t in range(5):
            begins = torch.tensor([forgets.get(i) == t for i in which])
            controller.forget(begins)
            actions.append(controller.act(state, goal[which]).actions)
            state = arithmetic(state, actions[-1])
        return torch.stack(actions, 1)

    together = drive([0, 1, 2], {0: 1, 2: 3})
    assert cases.same_bits(together[1:2], drive([1], {}))
    assert cases.same_bits(together[0:1], drive([0], {0: 1}))


@every_planner
def test_out_of_time_the_best_until_then_is_returned(kind: str) -> None:
    start, goal = cases.problems(2)

    def slow(state: Tensor, action: Tensor) -> Tensor:
        time.sleep(1e-3)
        return arithmetic(state, action)

    rounds = {"rounds": 50} if kind.startswith("lifted") else {"iterations": 500}
    whole = cases.planner(kind, slow, **rounds)
    begun = time.perf_counter()
    plan = whole.plan(start, goal, time_budget_ms=30.0)
    assert time.perf_counter() - begun < 3.0
    assert plan.out_of_time
    ran = plan.iterations
    assert 1 <= ran < next(iter(rounds.values()))
    assert len(plan.loss_history) == ran
    rolled = cases.roll_out(arithmetic, start, plan.actions)
    torch.testing.assert_close(plan.states, rolled, rtol=1e-5, atol=1e-5)
    relaxed = cases.planner(kind, arithmetic).plan(start, goal, time_budget_ms=1e6)
    assert not relaxed.out_of_time
    assert cases.same_plans(relaxed, cases.planner(kind, arithmetic).plan(start, goal))


def test_a_budget_is_for_the_whole_step() -> None:
    planner = Scripted()
    controller = MPC(planner, execute=1, time_budget_ms=1000.0)
    state = torch.zeros(2, D)
    controller.act(state, state)
    controller.forget(torch.tensor([True, False]))
    controller.act(state, state)
    first, fresh, warm = (call["time_budget_ms"] for call in planner.asked)
    assert 0 < warm < fresh <= 1000
    assert 0 < first <= 1000


def test_feedback_arrives_where_open_loop_does_not() -> None:
    """The environment's actions do less than the model thinks."""
    start, goal = cases.problems(4)

    def moves(gain: float) -> Any:
        return lambda state, action: state + gain * torch.cat((action, action), 1)

    start[:, A:], goal[:, A:] = start[:, :A], goal[:, :A]
    planner = cases.planner("lifted-newton", moves(0.5), hold=1)
    blind = cases.roll_out(moves(0.3), start, planner.plan(start, goal).actions)[:, -1]
    controller, state = MPC(planner, execute=T), start
    for _ in range(4 * T):
        state = moves(0.3)(state, controller.act(state, goal).actions)
    assert ((state - goal).norm(dim=1) < 0.3 * (blind - goal).norm(dim=1)).all()


def test_gymnasium_vector_environments_end_to_end() -> None:
    """Wall-Single with actions that slip: episodes end at the goal and begin anew elsewhere."""
    gymnasium = pytest.importorskip("gymnasium")
    from gymnasium.vector import AutoresetMode, SyncVectorEnv

    task = tasks.load("wall-single")
    problems = task.sample_problems(20, horizon=40, seed=3)

    class Room(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-1, 1, (4,))  # position, goal
        action_space = gymnasium.spaces.Box(-1, 1, (2,))

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            super().reset(seed=seed)
            n = int(self.np_random.integers(len(problems)))
            self.at, self.goal = (x[n].double().numpy() for x in (problems.start, problems.goal))
            return self.seen(), {}

        def seen(self) -> Any:
            return np.concatenate((self.at, self.goal)).astype(np.float32)

        def step(self, action: Any) -> Any:
            slip = 0.1 * self.np_random.standard_normal(2)
            moved = task.environment.simulate(self.at[None], (action + slip)[None, None])
            self.at = moved[0, -1]
            there = bool(np.hypot(*(self.at - self.goal)) < task.success_radius)
            return self.seen(), float(there), there, False, {}

    rooms = SyncVectorEnv([Room] * 3, autoreset_mode=AutoresetMode.SAME_STEP)
    controller = MPC(make_planner("lifted-newton", task, horizon=60), execute=60)
    arrived = torch.zeros(3)
    seen, _ = rooms.reset(seed=5)
    for _ in range(300):
        state, goal = torch.from_numpy(seen).split(2, 1)
        control = controller.act(state, goal)
        seen, _, there, _, _ = rooms.step(control.actions.numpy())
        controller.forget(torch.from_numpy(there))
        arrived += torch.from_numpy(there)
    assert (arrived >= 2).all()


def test_clear_errors() -> None:
    planner, state = Scripted(), torch.zeros(2, D)
    wrong: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"execute": 0}, ValueError, "execute must be from 1 to the horizon, 7, got 0"),
        ({"execute": 8}, ValueError, "execute must be from 1 to the horizon, 7, got 8"),
        ({"execute": 1.5}, TypeError, "execute must be an int, got float"),
        ({"repeat": 0}, ValueError, "repeat must be at least 1, got 0"),
        ({"tail": "best"}, ValueError, "tail must be 'hold', 'zero' or a policy, got 'best'"),
        ({"time_budget_ms": -5.0}, ValueError, "time_budget_ms must be a number above 0, got -5"),
        ({"environment_ids": [1, 1]}, ValueError, "environment_ids must be all different"),
        ({"environment_ids": [-1]}, ValueError, "environment_ids must be from 0"),
        ({"environment_ids": [0.5]}, TypeError, "environment_ids must be"),
    ]
    for given, error, words in wrong:
        with pytest.raises(error, match=words.replace("(", "\\(")):
            MPC(planner, **given)
    with pytest.raises(TypeError, match="planner must be a Planner, got int"):
        MPC(3)  # type: ignore[arg-type]
    controller = MPC(planner)
    with pytest.raises(TypeError, match="state must be a Tensor, got list"):
        controller.act([0.0], state)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"goal must have the shape of state, \(2, 4\)"):
        controller.act(state, state[:1])
    controller.act(state, state)
    with pytest.raises(ValueError, match=r"state must be \(2, 4\) as before, got \(1, 4\)"):
        controller.act(state[:1], state[:1])
    with pytest.raises(TypeError, match="begins must be a bool Tensor"):
        controller.forget(torch.zeros(2))
    with pytest.raises(ValueError, match=r"begins must be \(2,\), got \(3,\)"):
        controller.forget(torch.zeros(3, dtype=torch.bool))
    controller.reset()
    controller.act(state[:1], state[:1])
    with pytest.raises(ValueError, match="a row for each of 2 environment_ids, got 3"):
        MPC(planner, environment_ids=[0, 1]).act(torch.zeros(3, D), torch.zeros(3, D))
    short = MPC(planner, tail=lambda state: state)
    short.act(state, state)
    with pytest.raises(ValueError, match=r"tail policy must return \(b, A\) = \(2, 2\)"):
        short.act(state, state)


@pytest.mark.parametrize("budget", [0, -1.0, True, "soon", float("nan")])
def test_a_budget_is_a_time(budget: Any) -> None:
    start, goal = cases.problems(1)
    for kind in ("cem", "grasp"):
        with pytest.raises(ValueError, match="time_budget_ms must be a number above 0, got"):
            cases.planner(kind, arithmetic).plan(start, goal, time_budget_ms=budget)


# --------------------------------------------------------------- costs, goals and latents in a loop


def test_a_running_cost_arrives_however_little_is_executed() -> None:
    """Every plan is for T steps from now; what counts is to be there early."""

    def slide(state: Tensor, action: Tensor) -> Tensor:
        return state + 0.1 * action

    start, goal = torch.tensor([[0.0, 0.0], [0.5, -0.5]]), torch.tensor([[1.0, 0.6], [-0.5, 0.2]])
    config = GradientConfig(
        horizon=30,
        action_low=-1.0,
        action_high=1.0,
        action_features=2,
        iterations=30,
        restarts=2,
        running_goal_weight=1.0,
    )
    controller = MPC(GradientPlanner(slide, config), execute=1)
    state = start
    for _ in range(25):
        state = slide(state, controller.act(state, goal).actions)
    assert ((state - goal).norm(dim=1) < 0.1).all()


def test_goals_of_many_states_in_a_loop() -> None:
    planner = Scripted()
    controller = MPC(planner, execute=3)
    start = torch.zeros(2, D)
    low, high = torch.zeros(2, D), torch.ones(2, D)
    assert controller.act(start, Region(low, high)).replanned.all()
    assert not controller.act(start, Region(low.clone(), high)).replanned.any()
    other = high.clone()
    other[1] += 1
    assert controller.act(start, Region(low, other)).replanned.tolist() == [False, True]
    assert torch.equal(planner.asked[-1]["goal"].high, other[1:])
    assert controller.act(start, torch.zeros(2, D)).replanned.all()


def test_goals_with_one_number_for_each_environment() -> None:
    """A radius, and an entry of a latent that has no shape."""
    controller = MPC(Scripted(), execute=3)
    start, radius = torch.zeros(2, D), torch.ones(2)
    assert controller.act(start, Ball(start, radius)).replanned.all()
    assert controller.act(start, Ball(start, radius.cumsum(0))).replanned.tolist() == [False, True]
    assert controller.act(start, {"fuel": radius}).replanned.all()
    assert not controller.act(start, {"fuel": radius.clone()}).replanned.any()
    found = controller.act(start, {"fuel": radius.cumsum(0)})
    assert found.replanned.tolist() == [False, True]


def test_dicts_windows_and_contexts_in_a_loop() -> None:
    planner = Scripted()
    controller = MPC(planner, execute=2)
    state = {"place": torch.zeros(2, 3, 2), "speed": torch.ones(2, 3, 2)}
    goal = {"place": torch.zeros(2, 2)}
    given = {"past_actions": torch.zeros(2, 2, A), "context": {"spot": torch.arange(2)}}
    planner.plan = lambda start, goal, **given: Scripted.plan(
        planner, torch.zeros(len(start["place"]), D), goal, window=start, **given
    )
    assert controller.act(state, goal, **given).replanned.all()
    controller.forget(torch.tensor([False, True]))
    assert controller.act(state, goal, **given).replanned.tolist() == [False, True]
    asked = planner.asked[-1]
    assert asked["window"]["speed"].shape == (1, 3, 2)
    assert asked["context"]["spot"].tolist() == [1]
    assert asked["past_actions"].shape == (1, 2, A)
    with pytest.raises(TypeError, match=r"act takes past_actions and context beside, got \['pas"):
        controller.act(state, goal, past=given["past_actions"])
    with pytest.raises(ValueError, match=r"state must be .*'place': \(2, 3, 2\).* as before"):
        controller.act({"place": torch.zeros(3, 3, 2), "speed": torch.ones(3, 3, 2)}, goal)


def test_a_goal_that_all_environments_share() -> None:
    """As many features, or alternatives, as environments: still nobody's own."""
    planner = Scripted()
    controller = MPC(planner, execute=5)
    start = torch.zeros(D, D)
    shared = Region(torch.zeros(D), torch.arange(1.0, D + 1))
    assert controller.act(start, shared).replanned.all()
    controller.forget(torch.arange(D) == 1)
    assert controller.act(start, shared).replanned.tolist() == [False, True, False, False]
    assert torch.equal(planner.asked[-1]["goal"].high, shared.high)
    either = torch.eye(D)
    assert controller.act(start, Alternatives(either)).replanned.all()
    changed = either.clone()
    changed[2] += 1
    assert controller.act(start, Alternatives(changed)).replanned.all()
    assert torch.equal(planner.asked[-1]["goal"].states, changed)
    assert not controller.act(start, Alternatives(changed)).replanned.any()
