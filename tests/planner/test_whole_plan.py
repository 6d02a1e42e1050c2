"""Plans through whole-plan kernels: the same plans as call by call, with the same promises."""

from __future__ import annotations

import warnings
from typing import Any

import planner_cases as cases
import pytest
import torch
from grasp_planner import (
    GeneralPathWarning,
    GraspConfig,
    GraspPlanner,
    NonFiniteWarning,
    Plan,
    Schedule,
    models,
    tasks,
    whole_plan,
)
from grasp_planner.cli.plan import task_config
from grasp_planner.tasks.mlp import ResidualMLP
from grasp_planner.whole_plan import WholePlans
from torch import nn

from grasp_kernels import MLPDynamics, MLPLayer, UnsupportedModel, native

pytestmark = [
    pytest.mark.native,
    pytest.mark.skipif(not native.status().available, reason=str(native.status().reason)),
]


def model(hidden: int = 20, layers: int = 2) -> ResidualMLP:
    torch.manual_seed(7)
    found = ResidualMLP(cases.STATE, cases.ACTION, hidden=hidden, layers=layers)
    found.change_scale.fill_(0.3)
    found.state_mean.copy_(torch.tensor([0.1, -0.2, 0.0, 0.3]))
    found.action_scale.fill_(0.7)
    return found


def both(world_model: ResidualMLP, count: int = 3, **changes: Any) -> tuple[Plan, Plan]:
    """The same problems by whole-plan kernels, and call by call."""
    config = cases.config(**changes)
    start, goal = cases.problems(count)
    whole = GraspPlanner(world_model, config).plan(start, goal)
    general = GraspPlanner(lambda s, a: world_model(s, a), config).plan(start, goal)
    assert whole.path == whole_plan.WHOLE_PLAN
    assert general.path.startswith("general path: the world model is no MLPDynamics")
    return whole, general


VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "white": {"noise": "white", "action_optimizer": "sgd", "action_lr": 0.05},
    "no noise, free": {"noise": "none", "terminal": "free", "goal_weight": 0.1},
    "schedules": {
        "goal_weight": Schedule(0.2, 0.0, "cosine"),
        "noise_scale": Schedule(0.3, 0.1, "linear"),
    },
    "weights": {
        "feature_weight": (1.0, 0.5, 0.0, 2.0),
        "goal_feature_weight": (1.0, 1.0, 0.0, 0.0),
    },
    "scaled": {"state_scale": (0.5, 2.0, 1.0, 3.0)},
    "rolled out first": {"initialization": "rollout", "initial_actions_scale": 0.3},
    "blend": {"sync_blend": 0.4, "sync_optimizer": "sgd"},
    "gauss-newton": {"sync_optimizer": "gauss-newton", "stop_cost": 0.1},
    "never synced": {"sync_every": 0},
    "stops": {"stop_cost": 0.5},
    "unbounded": {"action_low": None, "action_high": None},
    "one step": {"horizon": 1, "sync_every": 3},
    "long": {"horizon": 130, "iterations": 6},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_both_paths_give_the_same_plans(name: str) -> None:
    whole, general = both(model(), **VARIANTS[name])
    torch.testing.assert_close(whole.loss_history, general.loss_history, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(whole.cost, general.cost, rtol=2e-3, atol=1e-5)
    torch.testing.assert_close(whole.actions, general.actions, rtol=0, atol=5e-3)
    torch.testing.assert_close(whole.states, general.states, rtol=0, atol=5e-3)
    assert torch.equal(whole.finite, general.finite)


def test_the_papers_algorithm() -> None:
    changes = {"horizon": 9, "iterations": 40, "sync_every": 10, "action_features": cases.ACTION}
    config = GraspConfig.paper(**changes)
    start, goal = cases.problems(2)
    world_model = model()
    whole = GraspPlanner(world_model, config).plan(start, goal)
    general = GraspPlanner(lambda s, a: world_model(s, a), config).plan(start, goal)
    assert whole.path == whole_plan.WHOLE_PLAN
    torch.testing.assert_close(whole.loss_history, general.loss_history, rtol=1e-4, atol=1e-6)


def test_warm_starts() -> None:
    world_model, config = model(), cases.config()
    start, goal = cases.problems(2)
    first = GraspPlanner(world_model, config).plan(start, goal)
    again = GraspPlanner(world_model, config).plan(start, goal, actions=first.actions)
    assert (again.cost <= first.cost).all()


@pytest.mark.parametrize(
    ("name", "apart"),
    [("pointmaze-umaze", 0), pytest.param("wall-single", 1, marks=pytest.mark.slow)],
)
def test_shipped_tasks_have_the_same_success(name: str, apart: int) -> None:
    """With the settings of `grasp plan`: losses after 20 iterations, and who arrives.

    At the wall's corners the last bit decides over hundreds of iterations: one plan may differ.
    """
    pytest.importorskip("gymnasium_robotics")
    task = tasks.load(name)
    horizon = 50
    problems = task.sample_problems(6, horizon=horizon, seed=5)
    config = task_config(task, horizon=horizon, seed=5)
    whole = GraspPlanner(task.world_model, config).plan(problems.start, problems.goal)
    world_model = task.world_model
    general = GraspPlanner(lambda s, a: world_model(s, a), config).plan(
        problems.start, problems.goal
    )
    assert whole.path == whole_plan.WHOLE_PLAN
    torch.testing.assert_close(
        whole.loss_history[19], general.loss_history[19], rtol=1e-4, atol=1e-6
    )
    arrived = [task.reached(plan.states, problems) for plan in (whole, general)]
    assert int((arrived[0] != arrived[1]).sum()) <= apart
    assert arrived[0].any()


# ----------------------------------------------------------------------------------- which path


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"state_optimizer": "adam"}, "state_optimizer is 'adam'"),
        ({"state_gradient_scale": 0.5}, "state_gradient_scale is 0.5"),
        ({"hold": 3}, "actions are held for 3 steps"),
    ],
)
def test_settings_that_whole_plans_do_not_know(changes: dict[str, Any], reason: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is no fault of the model's
        plan = GraspPlanner(model(), cases.config(**changes)).plan(*cases.problems(1))
    assert plan.path == f"MLP kernels call by call: {reason}"
    called = cases.config(**changes, action_features=cases.ACTION)
    inner = model()
    general = GraspPlanner(lambda s, a: inner(s, a), called).plan(*cases.problems(1))
    torch.testing.assert_close(plan.cost, general.cost, rtol=1e-3, atol=1e-4)


def test_float64_states_take_the_general_path() -> None:
    plan = GraspPlanner(model().double(), cases.config()).plan(*cases.problems(1, torch.float64))
    assert plan.path == "general path: there are no fused kernels here"


def test_without_the_extension_there_is_nothing_to_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "choose", lambda device, dtype: "reference")
    plan = GraspPlanner(model(), cases.config()).plan(*cases.problems(1))
    assert plan.path == "general path: there are no fused kernels here"


def test_a_description_is_a_world_model_itself() -> None:
    described = model().mlp_dynamics()
    plan = GraspPlanner(described, cases.config()).plan(*cases.problems(2))
    assert plan.path == whole_plan.WHOLE_PLAN
    assert cases.same_plans(plan, GraspPlanner(model(), cases.config()).plan(*cases.problems(2)))


def test_bfloat16_weights() -> None:
    narrow = model().mlp_dynamics().to(torch.bfloat16)
    config, (start, goal) = cases.config(), cases.problems(2)
    whole = GraspPlanner(narrow, config).plan(start, goal)
    general = GraspPlanner(lambda s, a: narrow(s, a), config).plan(start, goal)
    assert whole.path == whole_plan.WHOLE_PLAN
    # A rounding that falls the other way moves a gradient by 2^-8; losses follow.
    torch.testing.assert_close(whole.loss_history, general.loss_history, rtol=2e-2, atol=1e-3)


class Wavy(ResidualMLP):
    """An MLP in name only."""

    def forward(self, state: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        return super().forward(state, action) + 0.1 * state.sin()


class Soft(ResidualMLP):
    def mlp_dynamics(self) -> MLPDynamics:
        raise UnsupportedModel("Softplus is not supported")


@pytest.mark.parametrize(
    ("kind", "reason"), [(Wavy, "differs from the model"), (Soft, "Softplus is not supported")]
)
def test_a_model_that_is_not_what_it_says_is_planned_call_by_call(
    kind: type[ResidualMLP], reason: str
) -> None:
    world_model = kind(cases.STATE, cases.ACTION, hidden=8, layers=1)
    planner = GraspPlanner(world_model, cases.config())
    with pytest.warns(GeneralPathWarning, match=reason) as told:
        plan = planner.plan(*cases.problems(1))
    assert told[0].filename == __file__
    assert reason in plan.path
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        planner.plan(*cases.problems(1))  # once is enough
    general = GraspPlanner(lambda s, a: world_model(s, a), cases.config()).plan(*cases.problems(1))
    assert cases.same_plans(plan, general)


# ------------------------------------------------------------------------------------ the promises


def test_weights_that_change_between_plans_are_seen() -> None:
    world_model = model()
    planner, problems = GraspPlanner(world_model, cases.config()), cases.problems(2)
    before = planner.plan(*problems)
    with torch.no_grad():
        world_model.network[0].weight.mul_(1.5)
        world_model.change_scale.mul_(0.5)
    after = planner.plan(*problems)
    fresh = GraspPlanner(world_model, cases.config()).plan(*problems)
    assert after.path == whole_plan.WHOLE_PLAN
    assert not torch.equal(before.loss_history, after.loss_history)
    assert cases.same_plans(after, fresh)
    world_model.network[2] = nn.Linear(20, 20)
    replaced = planner.plan(*problems)
    assert not torch.equal(replaced.loss_history, after.loss_history)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_plan_is_the_same_alone_and_in_a_batch(threads: int) -> None:
    world_model, config = model(hidden=40, layers=3), cases.config(horizon=11)
    start, goal = cases.problems(40)
    ids = 3 * torch.arange(40) + 2**40
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    batch = GraspPlanner(world_model, config).plan(start, goal, plan_ids=ids)
    torch.set_num_threads(threads)
    try:
        for part in (slice(0, 40), slice(7, 8), slice(12, 31)):
            plan = GraspPlanner(world_model, config).plan(
                start[part], goal[part], plan_ids=ids[part]
            )
            for alone, together in zip(
                cases.per_problem(plan), cases.per_problem(batch), strict=True
            ):
                assert cases.same_bits(alone, together[part])
    finally:
        torch.set_num_threads(before)


def test_snapshots_and_progress_change_nothing() -> None:
    world_model, config = model(), cases.config(iterations=13)
    problems = cases.problems(2)
    heard: list[int] = []
    plain = GraspPlanner(world_model, config).plan(*problems)
    seen = GraspPlanner(world_model, config).plan(
        *problems, snapshots=(0, 4, 13), progress=heard.append
    )
    assert heard == list(range(1, 14))
    assert sorted(seen.snapshots) == [0, 4, 13]
    assert cases.same_bits(seen.loss_history, plain.loss_history)
    assert cases.same_bits(seen.actions, plain.actions)
    general = GraspPlanner(lambda s, a: world_model(s, a), config).plan(
        *problems, snapshots=(0, 4, 13)
    )
    for k, states in seen.snapshots.items():
        torch.testing.assert_close(states, general.snapshots[k], rtol=0, atol=5e-3)


def test_launches_cover_every_iteration_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[tuple[int, int]] = []
    iterate = WholePlans.iterate

    def noted(plans: WholePlans, k: int) -> int:
        last = iterate(plans, k)
        found.append((k, last))
        return last

    monkeypatch.setattr(WholePlans, "iterate", noted)
    config = cases.config(iterations=350, sync_every=120)
    seen: list[int] = []
    GraspPlanner(model(), config).plan(
        *cases.problems(2),
        snapshots=(7, 240),
        callback=lambda moment: seen.append(moment.iteration),
        callback_at=(50, 51),
    )
    assert [k for first, last in found for k in range(first, last + 1)] == list(range(1, 351))
    assert {7, 50, 51, 120, 240} <= {last for _, last in found}
    assert max(last - first + 1 for first, last in found) <= whole_plan.LAUNCH
    assert seen == [50, 51]


def test_the_loop_never_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = cases.HostReads()
    for name in ("iterate", "sync"):
        launch = getattr(WholePlans, name)

        def counted(*args: Any, _launch: Any = launch, **kwargs: Any) -> Any:
            reads.model_calls += 1
            return _launch(*args, **kwargs)

        monkeypatch.setattr(WholePlans, name, counted)
    cases.a_device_that_is_slow(monkeypatch)
    planner = GraspPlanner(model(), cases.config(stop_cost=0.1, iterations=12))
    with reads:
        planner.plan(*cases.problems(2), snapshots=(3,))
    assert reads.model_calls == 1 + 4 + 2 + 1  # judge; to 3, 5, 10, 12; after 5 and 10; the last
    assert reads.during_the_loop() == []


def test_the_model_is_as_it_was() -> None:
    world_model = model().train()
    before = {name: value.clone() for name, value in world_model.state_dict().items()}
    GraspPlanner(world_model, cases.config()).plan(*cases.problems(2))
    assert world_model.training
    assert all(part.training for part in world_model.modules())
    assert all(p.requires_grad and p.grad is None for p in world_model.parameters())
    for name, value in world_model.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_plan_that_overflows_breaks_no_other() -> None:
    weight = torch.zeros(4, 6)
    weight[:, :4] = 30 * torch.eye(4)
    world_model = MLPDynamics((MLPLayer(weight),), action_features=2, residual=True)
    start, goal = cases.problems(3)
    healthy = GraspPlanner(world_model, cases.config(horizon=9)).plan(start[:2], goal[:2])
    start[2] = 1e30
    with pytest.warns(NonFiniteWarning, match="plan_id 2 candidate 0"):
        plan = GraspPlanner(world_model, cases.config(horizon=9)).plan(start, goal)
    assert plan.finite.tolist() == [True, True, False]
    assert plan.cost[2] == torch.inf
    for sick, well in zip(cases.per_problem(plan), cases.per_problem(healthy), strict=True):
        assert cases.same_bits(sick[:2], well)


def test_no_problems() -> None:
    plan = GraspPlanner(model(), cases.config()).plan(torch.zeros(0, 4), torch.zeros(0, 4))
    assert plan.path == whole_plan.WHOLE_PLAN
    assert plan.actions.shape == (0, 7, 2)
