"""What `plan` returns and refuses: the best true rollout, inside the box, whatever the input's
form.
"""

from __future__ import annotations

import numpy as np
import planner_cases as cases
import pytest
import torch
from grasp_planner import GraspConfig, GraspPlanner, Schedule

VARIANTS = [
    {},
    {"noise": "white", "candidates": 3},
    {"terminal": "free"},
    {"terminal": "free", "state_optimizer": "adam"},
    {"terminal": "free", "state_gradient_scale": 0.4},
    {"state_gradient_scale": 1.0, "goal_weight": 0.0, "noise": "none"},
    {"state_optimizer": "adam", "action_optimizer": "sgd", "sync_optimizer": "sgd"},
    {"noise_scale": Schedule(0.3, 0.0, "cosine"), "goal_weight": Schedule(0.0, 0.1, "linear")},
    {"sync_every": 0, "final_sync_steps": 0},
    {"iterations": 0},
    {"iterations": 0, "final_sync_steps": 0},
    {"horizon": 1, "candidates": 1},
    {"initialization": "rollout", "initial_actions_scale": 0.5, "sync_blend": 0.0},
]


def cost_of(states, goal, weight=1.0):
    return ((states[:, -1] - goal) ** 2 * weight).sum(-1)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_plan_is_the_rollout_of_its_actions(variant, dtype) -> None:
    start, goal = cases.problems(3, dtype)
    settings = cases.config(**variant)
    plan = GraspPlanner(cases.arithmetic, settings).plan(start, goal)
    horizon = settings.horizon
    assert plan.actions.shape == (3, horizon, 2)
    assert plan.states.shape == (3, horizon + 1, 4)
    assert plan.candidate_cost.shape == (3, settings.candidates)
    assert plan.loss_history.shape == (settings.iterations, 3, settings.candidates)
    assert plan.iterations == settings.iterations
    assert plan.finite.tolist() == [True] * 3
    assert plan.actions.dtype == plan.states.dtype == dtype
    assert isinstance(plan.backend, str)
    assert plan.backend.startswith(("reference", "native", "triton"))
    expected = cases.roll_out(cases.arithmetic, start, plan.actions)
    torch.testing.assert_close(plan.states, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(plan.cost, cost_of(expected, goal), rtol=1e-5, atol=1e-5)
    assert torch.equal(plan.cost, plan.candidate_cost.min(-1).values)
    idle = cases.roll_out(cases.arithmetic, start, torch.zeros_like(plan.actions))
    if "initial_actions_scale" not in variant:
        assert (plan.cost <= cost_of(idle, goal) + 1e-6).all()
    assert (plan.actions.double().abs() <= 1.0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_bounds_hold_to_the_last_bit(dtype) -> None:
    """Numbers the dtype cannot hold; compared in float64 with what the user wrote."""
    low, high = (-1 / 3, -0.123456789), (0.1, 0.7)
    start, goal = cases.problems(2, dtype)
    settings = cases.config(action_low=low, action_high=high, action_lr=0.5, action_features=None)
    plan = GraspPlanner(cases.arithmetic, settings).plan(start, goal)
    actions = plan.actions.double()
    for i in range(2):
        assert float(actions[..., i].min()) >= low[i]
        assert float(actions[..., i].max()) <= high[i]
    assert plan.actions.dtype == dtype


def test_bounds_of_one_point_and_no_point() -> None:
    start, goal = cases.problems(1)
    plan = GraspPlanner(cases.arithmetic, cases.config(action_low=0.25, action_high=0.25)).plan(
        start, goal
    )
    assert (plan.actions == 0.25).all()
    with pytest.raises(ValueError, match=r"action_low and action_high"):
        GraspPlanner(cases.arithmetic, cases.config(action_low=0.1, action_high=0.1)).plan(
            start, goal
        )


@pytest.mark.parametrize(
    "variant", [{}, {"initial_actions_scale": 0.5}, {"sync_lr": 50.0}], ids=str
)
def test_never_worse_than_the_warm_start(variant) -> None:
    start, goal = cases.problems(4)
    good = GraspPlanner(cases.arithmetic, cases.config(iterations=40)).plan(start, goal)
    wild = cases.config(action_lr=5.0, iterations=3, **variant)
    plan = GraspPlanner(cases.arithmetic, wild).plan(start, goal, actions=good.actions)
    assert (plan.cost <= good.cost).all()


def test_a_warm_start_outside_the_box_is_brought_in() -> None:
    start, goal = cases.problems(1)
    settings = cases.config(iterations=0, final_sync_steps=0)
    plan = GraspPlanner(cases.arithmetic, settings).plan(
        start, goal, actions=torch.full((1, 7, 2), 9.0)
    )
    assert (plan.actions == 1.0).all()


def test_unbatched_input_is_one_problem() -> None:
    start, goal = cases.problems(1)
    planner = GraspPlanner(cases.arithmetic, cases.config())
    assert cases.same_plans(planner.plan(start[0], goal[0]), planner.plan(start, goal))


def test_no_problems_give_an_empty_plan() -> None:
    """A batch of 0 problems works; nothing is planned."""
    plan = cases.solve(cases.arithmetic, 0)
    assert plan.actions.shape == (0, 7, 2)
    assert plan.states.shape == (0, 8, 4)
    assert plan.cost.shape == (0,)
    assert plan.loss_history.shape == (12, 0, 2)


def test_inputs_of_any_strides() -> None:
    start, goal = cases.problems(3)
    planner = GraspPlanner(cases.arithmetic, cases.config())
    expected = planner.plan(start, goal)
    turned = planner.plan(start.T.contiguous().T, goal.repeat_interleave(2, 0)[::2])
    assert cases.same_plans(turned, expected)
    shared = planner.plan(start[:1].expand(3, 4), goal, plan_ids=torch.arange(3))
    assert cases.same_plans(shared, planner.plan(start[:1].repeat(3, 1), goal))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_called_without_gradients(mode) -> None:
    """A user's evaluation loop: the planner differentiates all the same, and its tensors are
    ordinary.
    """
    expected = cases.solve(cases.MLP(), 2)
    torch.manual_seed(0)
    model = cases.MLP()
    again = cases.solve(model, 2)
    with mode():
        start, goal = cases.problems(2)
        found = GraspPlanner(model, cases.config()).plan(
            start, goal, actions=None, plan_ids=torch.arange(2)
        )
    assert cases.same_plans(found, again)
    assert not found.actions.is_inference()
    found.actions.requires_grad_()
    assert expected.cost.shape == again.cost.shape


def test_state_scale_is_planning_with_a_scaled_model() -> None:
    scale = torch.tensor([2.0, 0.5, 4.0, 1.0], dtype=torch.float64)
    start, goal = cases.problems(2, torch.float64)

    def scaled_model(state, action):
        return cases.arithmetic(state * scale, action) / scale

    found = GraspPlanner(cases.arithmetic, cases.config(state_scale=tuple(scale.tolist()))).plan(
        start, goal, snapshots=(0, 5)
    )
    expected = GraspPlanner(scaled_model, cases.config()).plan(
        start / scale, goal / scale, snapshots=(0, 5)
    )
    assert torch.equal(found.actions, expected.actions)
    assert torch.equal(found.cost, expected.cost)
    torch.testing.assert_close(found.states, expected.states * scale, rtol=1e-14, atol=1e-14)
    for k in (0, 5):
        torch.testing.assert_close(
            found.snapshots[k], expected.snapshots[k] * scale, rtol=1e-14, atol=1e-14
        )


def test_feature_weights_decide_what_is_reached() -> None:
    start, goal = cases.problems(2)
    weight = (1.0, 1.0, 0.0, 0.25)
    plan = cases.solve(cases.arithmetic, 2, goal_feature_weight=weight)
    expected = cost_of(plan.states, goal, torch.tensor(weight))
    torch.testing.assert_close(plan.cost, expected, rtol=1e-5, atol=1e-6)
    by_default = cases.solve(cases.arithmetic, 2, feature_weight=weight)
    expected = cost_of(by_default.states, goal, torch.tensor(weight))
    torch.testing.assert_close(by_default.cost, expected, rtol=1e-5, atol=1e-6)
    assert start.shape == goal.shape


def test_stop_cost_ends_the_search_of_a_plan_that_is_good_enough() -> None:
    """Once a rollout finds it good, it is no longer searched; others move on as if alone."""
    start, goal = cases.problems(2)
    goal[0] = cases.roll_out(cases.arithmetic, start[:1], torch.zeros(1, 7, 2))[0, -1]
    settings = {"stop_cost": 1e-8, "noise": "white", "candidates": 1, "sync_every": 4}
    planner = GraspPlanner(cases.arithmetic, cases.config(**settings))
    plan = planner.plan(start, goal, snapshots=range(13))
    assert torch.isfinite(plan.snapshots[0]).all()  # the initial rollout finds it
    for k in range(12):
        assert plan.snapshots[k + 1][0].isnan().all()
        assert not torch.equal(plan.snapshots[k][1], plan.snapshots[k + 1][1])
    assert plan.loss_history[:, 0].isnan().all()
    assert torch.isfinite(plan.loss_history[:, 1]).all()
    assert plan.actions[0].abs().max() == 0
    assert plan.cost[0] <= 1e-8
    free = GraspPlanner(cases.arithmetic, cases.config(**{**settings, "stop_cost": None}))
    alone = free.plan(start[1:], goal[1:], plan_ids=torch.tensor([1]))
    assert cases.same_bits(alone.actions[0], plan.actions[1])


def test_snapshots() -> None:
    start, goal = cases.problems(2)
    plan = GraspPlanner(cases.arithmetic, cases.config(initial_noise_scale=0.0)).plan(
        start, goal, snapshots=[0, 5, 12]
    )
    assert sorted(plan.snapshots) == [0, 5, 12]
    first = plan.snapshots[0]
    assert first.shape == (2, 2, 8, 4)
    line = torch.linspace(0, 1, 8)[:, None]
    for r in range(2):
        expected = start[:, None] + (goal - start)[:, None] * line
        torch.testing.assert_close(first[:, r], expected)
    for states in plan.snapshots.values():  # both ends are fixed
        assert torch.equal(states[:, 0, 0], start)
        assert torch.equal(states[:, 1, -1], goal)
    free = cases.config(terminal="free")
    moved = GraspPlanner(cases.arithmetic, free).plan(start, goal, snapshots=[12]).snapshots[12]
    assert not torch.equal(moved[:, 0, -1], goal)


def test_a_double_integrator_reaches_its_goal() -> None:
    """The default settings on the simplest problem there is, a straight line in the open."""

    def model(state, action):
        velocity = state[:, 2:] + 0.1 * action
        return torch.cat([state[:, :2] + 0.1 * velocity, velocity], -1)

    start = torch.tensor([[0.0, 0.0, 0.0, 0.0], [1.0, -1.0, 0.0, 0.0]])
    goal = torch.tensor([[1.0, 0.5, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    settings = GraspConfig(horizon=30, action_features=2, action_low=-2.0, action_high=2.0)
    plan = GraspPlanner(model, settings).plan(start, goal)
    assert (plan.cost < 1e-3).all()
    assert (plan.actions.abs() <= 2.0).all()
    literal = GraspConfig.paper(horizon=30, action_features=2, iterations=50, sync_every=25)
    assert (
        GraspPlanner(model, literal).plan(start, goal).cost < cost_of(start[:, None], goal)
    ).all()


# ------------------------------------------------------------------------------------- wrong models

WRONG_MODELS = {
    "shape": (lambda s, a: s[:, :3] + a.sum(), ValueError, "world_model must return"),
    "fewer rows": (lambda s, a: (s + a.sum())[:1], ValueError, "world_model must return"),
    "detached": (lambda s, a: s + a.detach().repeat(1, 2), ValueError, "detached"),
    "numpy": (lambda s, a: s.detach().numpy(), TypeError, "world_model must return a tensor"),
    "through numpy": (
        lambda s, a: torch.from_numpy(
            np.tanh(s.detach().numpy()) + a.detach().numpy().repeat(2, 1)
        ),
        ValueError,
        "detached",
    ),
    "ignores": (lambda s, a: s * 2, ValueError, "action"),
    "nothing": (lambda s, a: None, TypeError, "world_model must return a tensor.*NoneType"),
    "tuple": (lambda s, a: (a, s), ValueError, "world_model must return next states of shape"),
    "empty tuple": (lambda s, a: (), TypeError, "world_model must return a tensor.*tuple"),
    "integers": (lambda s, a: (s + a.sum()).long(), (TypeError, ValueError), "world_model"),
}


@pytest.mark.parametrize("kind", WRONG_MODELS)
@pytest.mark.parametrize("scale", [0.0, 0.5])
def test_a_wrong_model_is_named(kind, scale) -> None:
    model, error, message = WRONG_MODELS[kind]
    with pytest.raises(error, match=message):
        cases.solve(model, 2, state_gradient_scale=scale)


def test_a_model_whose_weights_need_gradients_but_whose_action_does_not_matter() -> None:
    """The prediction requires a gradient, only not through the action."""

    class Deaf(cases.MLP):
        def forward(self, state, action):
            return super().forward(state, action.detach())

    with pytest.raises(ValueError, match="action"):
        cases.solve(Deaf(), 2)
    deaf = Deaf()
    with pytest.raises(ValueError, match="action"):
        cases.solve(lambda s, a: deaf(s, a), 2)
    with pytest.raises(ValueError, match="action"):
        cases.solve(lambda s, a: deaf(s, a), 2, state_gradient_scale=0.5)


def test_a_model_that_is_not_callable() -> None:
    with pytest.raises(TypeError, match="world_model must be callable, got str"):
        GraspPlanner("model")


# -------------------------------------------------------------------------------------- wrong input


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("start", [[0.0] * 4] * 2),
        ("start", torch.zeros(2, 4, dtype=torch.int64)),
        ("start", torch.zeros(2, 3, 4)),
        ("start", torch.zeros(2, 0)),
        ("goal", torch.zeros(3, 4)),
        ("goal", torch.zeros(2, 5)),
        ("goal", torch.zeros(2, 4, dtype=torch.float64)),
        ("goal", None),
        ("actions", torch.zeros(2, 6, 2)),
        ("actions", torch.zeros(2, 7, 3)),
        ("actions", torch.zeros(7, 2)),
        ("actions", torch.zeros(2, 7, 2, dtype=torch.float64)),
        ("actions", torch.zeros(2, 7, 2, device="meta")),
        ("actions", [[0.0]]),
        ("plan_ids", torch.zeros(3, dtype=torch.int64)),
        ("plan_ids", torch.zeros(2)),
        ("plan_ids", torch.tensor([-1, 0])),
        ("plan_ids", torch.tensor([0, 2**62])),
        ("plan_ids", [0, 1]),
    ],
)
def test_wrong_input_is_named(name, value) -> None:
    start, goal = cases.problems(2)
    with pytest.raises((TypeError, ValueError), match=rf"\b{name}\b"):
        GraspPlanner(cases.arithmetic, cases.config()).plan(
            **{"start": start, "goal": goal, name: value}
        )


def test_settings_that_do_not_fit_the_problem_are_named() -> None:
    for changes, name in (
        ({"action_features": None}, "action_features"),
        ({"action_low": (0.0, 0.0, 0.0)}, "action_features"),
        ({"state_scale": (1.0, 1.0)}, "state_scale"),
        ({"feature_weight": (1.0,)}, "feature_weight"),
        ({"goal_feature_weight": (1.0,) * 5}, "goal_feature_weight"),
    ):
        settings = cases.config(**{"action_low": None, "action_high": None, **changes})
        with pytest.raises(ValueError, match=name):
            GraspPlanner(cases.arithmetic, settings).plan(*cases.problems(2))


def test_the_width_of_actions_may_come_from_anywhere() -> None:
    start, goal = cases.problems(1)
    plain = {"action_features": None, "action_low": None, "action_high": None}
    assert cases.solve(cases.MLP(), 1, **plain).actions.shape == (1, 7, 2)
    warm = torch.zeros(1, 7, 2)
    plan = GraspPlanner(cases.arithmetic, cases.config(**plain)).plan(start, goal, actions=warm)
    assert plan.actions.shape == (1, 7, 2)
    bounds = {**plain, "action_low": (-1.0, -1.0)}
    assert cases.solve(cases.arithmetic, 1, **bounds).actions.shape == (1, 7, 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_storage_plans(dtype) -> None:
    start, goal = cases.problems(2, dtype)
    plan = GraspPlanner(cases.arithmetic, cases.config()).plan(start, goal)
    assert plan.actions.dtype == plan.states.dtype == dtype
    assert plan.cost.dtype == torch.float32
    assert torch.isfinite(plan.cost).all()
    expected = cases.roll_out(cases.arithmetic, start, plan.actions)
    torch.testing.assert_close(plan.states, expected, rtol=0.02, atol=0.02)
    idle = cases.roll_out(cases.arithmetic, start, torch.zeros_like(plan.actions))
    assert (plan.cost <= cost_of(idle.float(), goal.float())).all()
