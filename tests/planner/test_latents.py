"""Dict latents, windows of history, stochastic models, extras, and the precision of the model."""

from __future__ import annotations

from typing import Any

import planner_cases as cases
import pytest
import torch
from grasp_planner import GraspPlanner, LatentModel, WorldModelError
from planner_cases import arithmetic
from torch import Tensor, nn

every_planner = pytest.mark.parametrize("kind", cases.KINDS)
SHAPES = {"place": (2, 1), "speed": (2,)}


def by_name(state: dict[str, Tensor], action: Tensor) -> dict[str, Tensor]:
    """`arithmetic`, with its state in a dict."""
    flat = arithmetic(torch.cat([state["place"][..., 0], state["speed"]], -1), action)
    return {"speed": flat[:, 2:], "place": flat[:, :2, None]}


def as_dict(state: Tensor) -> dict[str, Tensor]:
    return {"place": state[..., :2, None], "speed": state[..., 2:]}


# ------------------------------------------------------------------------------------ dict latents


@every_planner
def test_a_dict_is_planned_as_its_numbers(kind: str) -> None:
    start, goal = cases.problems(3)
    expected = cases.planner(kind, arithmetic).plan(start, goal)
    model = LatentModel(by_name, latents=SHAPES)
    plan = cases.planner(kind, model).plan(as_dict(start), as_dict(goal))
    assert cases.same_plans(plan, expected)
    entries = model.unpack(plan.states)
    assert entries["place"].shape == (3, 8, 2, 1)
    assert entries["speed"].shape == (3, 8, 2)
    for entry in entries.values():
        assert entry.untyped_storage().data_ptr() == plan.states.untyped_storage().data_ptr()
    assert torch.equal(model.pack(entries), plan.states)


@every_planner
def test_weights_by_name_and_goals_of_some_entries(kind: str) -> None:
    start, goal = cases.problems(2)
    model = LatentModel(by_name, latents=SHAPES)
    numbers = {"goal_feature_weight": (0.5, 0.5, 2.0, 2.0), "state_scale": (1.0, 1.0, 3.0, 3.0)}
    names = {
        "goal_feature_weight": {"place": 0.5, "speed": 2.0},
        "state_scale": {"speed": 3.0, "place": 1.0},
    }
    plan = cases.planner(kind, model, **names).plan(as_dict(start), as_dict(goal))
    expected = cases.planner(kind, arithmetic, **numbers).plan(start, goal)
    assert cases.same_plans(plan, expected)
    place = {"place": goal[:, :2, None]}
    plan = cases.planner(kind, model).plan(as_dict(start), place)
    apart = (plan.states[:, -1, :2] - goal[:, :2]).square().sum(1)
    torch.testing.assert_close(plan.cost, apart, rtol=1e-4, atol=1e-5)


def test_the_model_gets_views_of_one_buffer() -> None:
    """In rollouts and in lifted passes: no entry of what the model is given is a copy."""
    shared: list[bool] = []

    def watched(state: dict[str, Tensor], action: Tensor) -> dict[str, Tensor]:
        places = {entry.untyped_storage().data_ptr() for entry in state.values()}
        shared.append(len(places) == 1)
        return by_name(state, action)

    model = LatentModel(watched, latents=SHAPES)
    start, goal = cases.problems(2)
    GraspPlanner(model, cases.config()).plan(as_dict(start), as_dict(goal))
    assert shared
    assert all(shared)


def test_a_module_inside_is_cared_for() -> None:
    class Inner(nn.Module):
        action_features = 2

        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(6, 4)
            self.drop = nn.Dropout(0.5)

        def forward(self, state: dict[str, Tensor], action: Tensor) -> dict[str, Tensor]:
            flat = torch.cat([state["place"][..., 0], state["speed"]], -1)
            moved = flat + 0.1 * self.drop(self.net(torch.cat([flat, action], -1)))
            return as_dict(moved)

    inner = Inner().train()
    model = LatentModel(inner, latents=SHAPES)
    assert model.action_features == 2
    start, goal = cases.problems(2)
    planner = GraspPlanner(model, cases.config(action_features=None))
    first = planner.plan(as_dict(start), as_dict(goal))
    assert cases.same_plans(first, planner.plan(as_dict(start), as_dict(goal)))  # no dropout
    assert inner.training
    assert inner.drop.training
    assert all(p.requires_grad and p.grad is None for p in inner.parameters())


# ----------------------------------------------------------------------------- history and extras


def with_delay(states: Tensor, actions: Tensor) -> Tensor:
    """The action of two steps ago acts, and the place depends on the last two: H = 3."""
    moved = arithmetic(states[:, -1], actions[:, 0])
    return moved + 0.1 * (states[:, -1] - states[:, -2])


def stacked(states: Tensor, actions: Tensor) -> Tensor:
    """The same as a model of single states: 3 states and 2 actions in one, (rows, 16)."""
    window = states[:, :12].unflatten(1, (3, 4))
    past = states[:, 12:].unflatten(1, (2, 2))
    every = torch.cat([past, actions[:, None]], 1)
    moved = with_delay(window, every)
    return torch.cat([window[:, 1:].flatten(1), moved, every[:, 1:].flatten(1)], 1)


def windows(count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Last states, past actions, goal; and the start of `stacked`."""
    generator = torch.Generator().manual_seed(5)
    states = torch.randn(count, 3, 4, generator=generator, dtype=torch.float64)
    past = torch.randn(count, 2, 2, generator=generator, dtype=torch.float64)
    goal = torch.randn(count, 4, generator=generator, dtype=torch.float64)
    return states, past, goal, torch.cat([states.flatten(1), past.flatten(1)], 1)


def roll_out_windows(states: Tensor, past: Tensor, actions: Tensor, model: Any) -> Tensor:
    every, known = torch.cat([past, actions], 1), list(states.unbind(1))
    for t in range(actions.shape[1]):
        known.append(model(torch.stack(known[-3:], 1), every[:, t : t + 3]))
    return torch.stack(known[2:], 1)


@every_planner
def test_a_model_that_looks_back(kind: str) -> None:
    if kind == "grasp gauss-newton":
        pytest.skip("refused, see below")
    states, past, goal, _ = windows(3)
    model = LatentModel(with_delay, history=3)
    planner = cases.planner(kind, model)
    plan = planner.plan(states, goal, past_actions=past)
    expected = roll_out_windows(states, past, plan.actions, with_delay)
    torch.testing.assert_close(plan.states, expected)
    torch.testing.assert_close(plan.cost, (expected[:, -1] - goal).square().sum(1))
    still = roll_out_windows(states, past, torch.zeros_like(plan.actions), with_delay)
    assert plan.cost.mean() < 0.95 * (still[:, -1] - goal).square().sum(1).mean()
    for changes in ({"max_rows": 5}, {"max_rows": 1}):
        few = cases.planner(kind, model, **changes).plan(states, goal, past_actions=past)
        torch.testing.assert_close(few.actions, plan.actions, rtol=1e-6, atol=1e-8)
    for n in range(3):
        row = torch.tensor([n])
        alone = planner.plan(states[row], goal[row], past_actions=past[row], plan_ids=row)
        torch.testing.assert_close(alone.actions[0], plan.actions[n], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", ["cem", "icem", "mppi", "gradient"])
def test_windows_are_the_stacked_state(kind: str) -> None:
    """What rolls out does the same with windows as with a state that holds them all."""
    states, past, goal, start = windows(2)
    plan = cases.planner(kind, LatentModel(with_delay, history=3)).plan(
        states, goal, past_actions=past
    )
    wide = torch.zeros(2, 16, dtype=torch.float64)
    wide[:, 8:12] = goal
    weight = (0.0,) * 8 + (1.0,) * 4 + (0.0,) * 4
    expected = cases.planner(kind, stacked, goal_feature_weight=weight).plan(start, wide)
    torch.testing.assert_close(plan.actions, expected.actions, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(plan.cost, expected.cost)


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_lifted_gradients_of_windows(scale: float) -> None:
    """One iteration against autograd of the lifted loss, written out."""
    states, past, goal, _ = windows(2)
    settings = cases.config(
        candidates=1,
        iterations=1,
        noise="none",
        initial_noise_scale=0.0,
        state_gradient_scale=scale,
        action_optimizer="sgd",
        action_lr=0.1,
        state_lr=0.2,
        sync_every=0,
        final_sync_steps=0,
        action_low=None,
        action_high=None,
    )
    seen: dict[str, Tensor] = {}

    def watch(moment: Any) -> None:
        seen.update({n: v.clone() for n, v in moment.variables.items()})

    planner = GraspPlanner(LatentModel(with_delay, history=3), settings)
    planner.plan(states, goal, past_actions=past, callback=watch, callback_at=1)
    line = torch.linspace(0, 1, 8, dtype=torch.float64)[:, None]
    trajectory = torch.lerp(states[:, -1:], goal[:, None], line).requires_grad_()
    actions = torch.zeros(2, 7, 2, dtype=torch.float64, requires_grad=True)
    known = torch.cat([states[:, :-1], trajectory], 1)
    known = scale * known + (1 - scale) * known.detach()
    every = torch.cat([past, actions], 1)
    loss = torch.zeros((), dtype=torch.float64)
    for t in range(7):
        prediction = with_delay(known[:, t : t + 3], every[:, t : t + 3])
        loss = loss + (prediction - trajectory[:, t + 1]).square().sum()
    by_state, by_action = torch.autograd.grad(loss, (trajectory, actions))
    moved = trajectory.detach().clone()
    moved[:, 1:7] -= 0.2 * by_state[:, 1:7]
    torch.testing.assert_close(seen["trajectory"], moved)
    torch.testing.assert_close(seen["actions"], -0.1 * by_action)


def test_dicts_look_back_too_and_extras_are_left_alone() -> None:
    def model(state: dict[str, Tensor], action: Tensor) -> tuple[dict[str, Tensor], str]:
        assert state["place"].shape[1:] == (3, 2, 1)
        assert action.shape[1:] == (3, 2)
        flat = torch.cat([state["place"][..., 0], state["speed"]], -1)
        return as_dict(with_delay(flat, action)), "a reward, say"

    states, past, goal, _ = windows(2)
    plan = cases.planner("cem", LatentModel(model, latents=SHAPES, history=3)).plan(
        as_dict(states), as_dict(goal), past_actions=past
    )
    expected = cases.planner("cem", LatentModel(with_delay, history=3)).plan(
        states, goal, past_actions=past
    )
    assert cases.same_plans(plan, expected)


@every_planner
def test_a_tuple_of_next_state_and_extras(kind: str) -> None:
    start, goal = cases.problems(2)
    plan = cases.planner(kind, lambda s, a: (arithmetic(s, a), a, None)).plan(start, goal)
    assert cases.same_plans(plan, cases.planner(kind, arithmetic).plan(start, goal))


def test_no_past_is_no_action_and_history_is_not_copied() -> None:
    states, past, goal, _ = windows(2)
    planner = cases.planner("cem", LatentModel(with_delay, history=3))
    still = planner.plan(states, goal, past_actions=torch.zeros_like(past))
    assert cases.same_plans(planner.plan(states, goal), still)
    places: set[int] = set()

    def watched(window: Tensor, action: Tensor) -> Tensor:
        places.add(window.untyped_storage().data_ptr())
        return with_delay(window, action)

    cases.planner("cem", LatentModel(watched, history=3), iterations=1).plan(states, goal)
    assert len(places) == 2  # one buffer for each of two rollouts, not one for every step


# -------------------------------------------------------------------------------------- stochastic


def drifting(state: Tensor, action: Tensor, noise: Tensor) -> Tensor:
    return arithmetic(state, action) + 0.1 * torch.cat([noise, noise], -1)


@every_planner
def test_a_stochastic_model_has_one_fate_per_plan(kind: str) -> None:
    if kind == "grasp gauss-newton":
        pytest.skip("refused, see below")
    start, goal = cases.problems(3)
    fates: list[Tensor] = []

    def watched(state: Tensor, action: Tensor, noise: Tensor) -> Tensor:
        fates.append(noise.clone())
        return drifting(state, action, noise)

    ids = torch.tensor([5, 2, 9])
    model = LatentModel(watched, noise_features=2)
    plan = cases.planner(kind, model).plan(start, goal, plan_ids=ids)
    every = torch.cat(fates).unique(dim=0)
    assert len(every) == 3 * 7  # one for each plan and step, in all iterations
    assert abs(float(every.mean())) < 0.5
    assert 0.6 < float(every.std()) < 1.4
    turned = cases.planner(kind, model).plan(start[[2, 0]], goal[[2, 0]], plan_ids=ids[[2, 0]])
    assert cases.same_bits(turned.actions, plan.actions[[2, 0]])
    other = cases.planner(kind, model, seed=8).plan(start, goal, plan_ids=ids)
    assert not torch.equal(other.states, plan.states)
    few = cases.planner(kind, model, max_rows=5).plan(start, goal, plan_ids=ids)
    assert cases.same_plans(few, plan)


# --------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@every_planner
def test_precision_is_the_models_alone(kind: str, precision: str) -> None:
    torch.manual_seed(0)
    seen: set[torch.dtype] = set()

    class Watched(cases.MLP):
        def forward(self, state: Tensor, action: Tensor) -> Tensor:
            hidden = self.inner(torch.cat([state, action], -1))
            seen.add(hidden.dtype)
            return state + 0.3 * self.outer(torch.tanh(hidden))

    start, goal = cases.problems(3)
    model = Watched()
    full = cases.planner(kind, model).plan(start, goal)
    assert seen == {torch.float32}
    seen.clear()
    plan = cases.planner(kind, model, precision=precision).plan(start, goal)
    assert seen == {getattr(torch, precision)}
    assert plan.states.dtype == plan.actions.dtype == torch.float32
    torch.testing.assert_close(plan.cost, full.cost, rtol=0.2, atol=0.1)


def test_kernels_in_bfloat16() -> None:
    from grasp_planner.tasks.mlp import ResidualMLP

    torch.manual_seed(0)
    model = ResidualMLP(4, 2, hidden=16, layers=2)
    start, goal = cases.problems(2)
    for kind in ("grasp", "cem"):
        full = cases.planner(kind, model).plan(start, goal)
        plan = cases.planner(kind, model, precision="bfloat16").plan(start, goal)
        if "kernels" in full.path:
            assert plan.path == full.path
        assert not torch.equal(plan.states, full.states)
        torch.testing.assert_close(plan.cost, full.cost, rtol=0.2, atol=0.1)
        half = cases.planner(kind, model, precision="float16").plan(start, goal)
        assert "general path" in half.path


# ------------------------------------------------------------------------------------------ errors

MODEL = LatentModel(by_name, latents=SHAPES)
LOOKING = LatentModel(with_delay, history=3)
BAD = [
    (lambda: LatentModel(3), TypeError, "world_model must be callable, got int"),
    (lambda: LatentModel(by_name, latents={}), TypeError, "latents must be names and shapes"),
    (lambda: LatentModel(by_name, latents={"a": (0,)}), ValueError, r"latents\['a'\] must be at"),
    (lambda: LatentModel(by_name, history=0), ValueError, "history must be at least 1, got 0"),
    (lambda: LatentModel(by_name, noise_features=-1), ValueError, "noise_features must be at"),
    (lambda: MODEL.pack({"place": torch.zeros(2, 2, 1)}), ValueError, "must have the entries"),
    (
        lambda: MODEL.pack({"place": torch.zeros(2, 2), "speed": torch.zeros(2, 2)}),
        ValueError,
        r"entries\['place'\] must be \(..., 2, 1\), got \(2, 2\)",
    ),
    (
        lambda: MODEL.pack({"place": torch.zeros(2, 2, 1), "speed": torch.zeros(3, 2)}),
        ValueError,
        r"entries\['speed'\] must be of \(2,\) like",
    ),
    (lambda: plan(arithmetic, as_dict(torch.zeros(2, 4))), TypeError, "start is a dict, so the"),
    (lambda: plan(MODEL, {"place": torch.zeros(2, 2, 1)}), ValueError, "start must have the ent"),
    (
        lambda: plan(MODEL, as_dict(torch.zeros(2, 4)), {"plaice": torch.zeros(2, 2, 1)}),
        ValueError,
        "goal must have the entries",
    ),
    (lambda: plan(LOOKING, torch.zeros(2, 4)), ValueError, r"start must be the last 3 states"),
    (
        lambda: plan(LOOKING, torch.zeros(2, 3, 4), past_actions=torch.zeros(2, 3, 2)),
        ValueError,
        r"past_actions must be \(B, H - 1, A\) = \(2, 2, 2\), got \(2, 3, 2\)",
    ),
    (
        lambda: plan(LOOKING, torch.zeros(2, 3, 4), past_actions=torch.full((2, 2, 2), torch.nan)),
        ValueError,
        "past_actions must be finite",
    ),
    (
        lambda: plan(arithmetic, torch.zeros(2, 4), past_actions=torch.zeros(2, 0, 2)),
        ValueError,
        "past_actions is for a LatentModel",
    ),
    (
        lambda: plan(MODEL, as_dict(torch.zeros(2, 4)), goal_feature_weight={"place": 1.0}),
        ValueError,
        "config.goal_feature_weight must have a number for each entry",
    ),
    (
        lambda: plan(arithmetic, torch.zeros(2, 4), state_scale={"place": 1.0}),
        TypeError,
        "config.state_scale is by name",
    ),
    (
        lambda: cases.planner("cem", arithmetic, state_scale={"place": 0.0}),
        ValueError,
        "state_scale must be above 0",
    ),
    (
        lambda: plan(LatentModel(lambda s, a: {"speed": s["speed"]}, latents=SHAPES),
                     as_dict(torch.zeros(2, 4))),
        WorldModelError,
        "the world model's next state must have the entries",
    ),
    (
        lambda: plan(LOOKING, torch.zeros(2, 3, 4), kind="grasp gauss-newton"),
        ValueError,
        "config.sync_optimizer 'gauss-newton' needs a world model of single states",
    ),
]  # fmt: skip


def plan(model: Any, start: Any, goal: Any = None, kind: str = "cem", **given: Any) -> Any:
    past = {"past_actions": given.pop("past_actions")} if "past_actions" in given else {}
    if goal is None:
        goal = as_dict(torch.zeros(2, 4)) if isinstance(start, dict) else torch.zeros(2, 4)
    return cases.planner(kind, model, **given).plan(start, goal, **past)


@pytest.mark.parametrize(("make", "error", "message"), BAD)
def test_what_is_wrong_is_named(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
