"""Gradients of plans, against plans that were made again with something changed a little."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import planner_cases as cases
import pytest
import torch
from grasp_planner import (
    Ball,
    Constraint,
    DerivativeWarning,
    DifferentiablePlan,
    GradientConfig,
    GradientPlanner,
    LatentModel,
    LiftedNewtonConfig,
    NonFiniteWarning,
    Region,
    Schedule,
    Subset,
    Waypoints,
    WorldModelError,
    differentiable_plan,
)
from grasp_planner.stationary import least_solution
from grasp_planner.world_model import frozen
from torch import Tensor, nn

from grasp_kernels import MLPDynamics

DOUBLE = torch.float64
SMALL: dict[str, Any] = {
    "horizon": 7,
    "hold": 1,
    "action_features": cases.ACTION,
    "rounds": 1,
    "samples": 24,
    "candidates": 3,
    "refine_steps": 3,
    "score_rollouts": 2,
}
EXACT = {"tolerance": 1e-13, "polish_steps": 80}


class Effort(nn.Module):
    """What actions cost by feature, and what speed costs: all to be learned."""

    def __init__(self) -> None:
        super().__init__()
        self.log_weight = nn.Parameter(torch.tensor([-2.0, -3.0], dtype=DOUBLE))
        self.speed = nn.Parameter(torch.tensor(0.02, dtype=DOUBLE))

    def forward(self, states: Tensor, actions: Tensor, *context: Tensor) -> Tensor:
        dear = (self.log_weight.exp() * actions.square()).sum(-1).mean(1)
        dear = dear * (1 + context[0].square().sum(-1)) if context else dear
        return dear + self.speed * states[:, :, 2:].square().mean((1, 2))


def model() -> cases.MLP:
    torch.manual_seed(4)
    return cases.MLP(dtype=DOUBLE)


def near(world_model: Any, count: int = 2, steps: int = 7) -> tuple[Tensor, Tensor]:
    """Starts, and goals that moderate actions lead close to."""
    start, _ = cases.problems(count, DOUBLE)
    actions = 0.6 * torch.randn(count, steps, cases.ACTION, dtype=DOUBLE)
    goal = cases.roll_out(world_model, start, actions)[:, -1]
    return start, goal + 0.05 * torch.randn_like(goal)


def loss(plan: DifferentiablePlan) -> Tensor:
    """Something of everything that has a gradient, the same numbers for the same shapes."""
    total = plan.cost.sum()
    for part in (plan.actions, plan.states):
        weight = torch.arange(part.numel(), dtype=DOUBLE).mul(1.7).cos().view_as(part)
        total = total + (weight * part).sum()
    return total


def compare(
    make: Callable[..., DifferentiablePlan], inputs: list[Tensor], step: float = 1e-3
) -> DifferentiablePlan:
    """Holds `loss`'s gradients against differences, of fourth order, in a direction of each."""
    plan = make()
    assert bool(plan.converged.all())
    gradients = torch.autograd.grad(loss(plan), inputs)
    again = {"actions": plan.actions.detach(), "search": False}
    for tensor, gradient in zip(inputs, gradients, strict=True):
        direction = torch.randn_like(tensor) / tensor.numel() ** 0.5
        ends = []
        for share in (2, 1, -1, -2):
            with torch.no_grad():
                before = tensor.clone()
                tensor += share * step * direction
                ends.append(loss(make(**again)))
                tensor.copy_(before)
        numeric = (8 * (ends[1] - ends[2]) - (ends[0] - ends[3])) / (12 * step)
        torch.testing.assert_close((gradient * direction).sum(), numeric, rtol=1e-6, atol=1e-7)
        assert bool(gradient.abs().max() > 1e-4)  # else the comparison would be of nothing
    return plan


# --------------------------------------------------------------------------- finite differences


@pytest.mark.parametrize(
    ("count", "changes"),
    [
        (2, {}),
        (2, {"hold": 3}),
        (1, {"horizon": 1}),
        (3, {"action_low": -0.2, "action_high": (0.15, 0.25)}),
        (2, {"action_change_weight": 0.02, "running_goal_weight": 0.1, "state_scale": (2.0,) * 4}),
        (
            2,
            {
                "action_weight": Schedule(1.0, 0.01, "linear"),
                "goal_feature_weight": (1.0, 0.5, 0.0, 2.0),
            },
        ),
    ],
    ids=["plain", "held", "one step", "bounds", "weights", "schedule"],
)
def test_gradients_are_those_of_planning_again(count: int, changes: dict[str, Any]) -> None:
    """For start, goal, every weight of the world model, and those of a cost."""
    world_model, effort = model(), Effort()
    start, goal = (x.requires_grad_() for x in near(world_model, count))
    config = LiftedNewtonConfig(**{**SMALL, "cost": effort, **changes})

    def make(**given: Any) -> DifferentiablePlan:
        return differentiable_plan(world_model, start, goal, config=config, **EXACT, **given)

    weights = [world_model.inner.weight, effort.log_weight]
    if not changes:
        weights = [*world_model.parameters(), *effort.parameters()]
    step = 1e-4 if "action_low" in changes else 1e-3  # none comes to its bound, or leaves it
    plan = compare(make, [start, goal, *weights], step)
    if "action_low" in changes:
        held = plan.at_bound
        assert bool(held.any())
        assert not bool(held.all())
        low, high = (torch.tensor(x, dtype=DOUBLE) for x in ([-0.2, -0.2], [0.15, 0.25]))
        assert bool(((plan.actions == low) | (plan.actions == high))[held].all())
        again = make(actions=plan.actions.detach(), search=False)
        (gradient,) = torch.autograd.grad(again.actions[held].sum(), start)
        assert not bool(gradient.any())
    else:
        assert not bool(plan.at_bound.any())


def test_without_an_action_cost_actions_move_as_little_as_they_can() -> None:
    """14 actions for 4 numbers: H is singular; the nearest plans that arrive are by least squares.

    Gauss-Newton's steps, each the least that arrives, from the plan to a goal that has moved.
    """
    start, goal = near(cases.arithmetic, 1)
    goal.requires_grad_()
    plan = differentiable_plan(
        cases.arithmetic, start, goal, config=LiftedNewtonConfig(**SMALL), tolerance=1e-13
    )
    weight = torch.arange(14, dtype=DOUBLE).cos().view(1, 7, 2)
    (gradient,) = torch.autograd.grad((weight * plan.actions).sum(), goal)

    def end(actions: Tensor) -> Tensor:
        state = start
        for t in range(7):
            state = cases.arithmetic(state, actions.view(1, 7, 2)[:, t])
        return state[0]

    direction, ends = torch.randn_like(goal), []
    for share in (1, -1):
        moved = (goal + share * 1e-5 * direction).detach()[0]
        actions = plan.actions.detach().flatten()
        for _ in range(6):
            sensitivity = torch.autograd.functional.jacobian(end, actions)
            actions = actions - torch.linalg.pinv(sensitivity) @ (end(actions) - moved)
        ends.append((weight.flatten() * actions).sum())
    numeric = (ends[0] - ends[1]) / 2e-5
    torch.testing.assert_close((gradient * direction).sum(), numeric, rtol=1e-6, atol=1e-8)


def test_damping_is_a_spring_to_what_was_found() -> None:
    world_model, mu = model(), 0.3
    start, goal = (x.requires_grad_() for x in near(world_model))
    settings = {**SMALL, "action_low": -2.0, "action_high": 2.0, "action_weight": 0.05}
    config = LiftedNewtonConfig(**settings)
    plan = differentiable_plan(world_model, start, goal, config=config, damping=mu, **EXACT)
    (gradient,) = torch.autograd.grad(plan.actions.sin().sum(), goal)
    found = plan.actions.detach()

    def spring(states: Tensor, actions: Tensor, found: Tensor) -> Tensor:
        return mu / 2 * ((actions - found) / 2).square().sum((1, 2))  # half the box is 2

    tied = LiftedNewtonConfig(**settings, cost=spring)
    ends, direction = [], torch.randn_like(goal)
    for sign in (1, -1):
        moved = (goal + sign * 1e-5 * direction).detach()
        again = differentiable_plan(
            world_model,
            start.detach(),
            moved,
            config=tied,
            actions=found,
            context=found,
            search=False,
            **EXACT,
        )
        ends.append(again.actions.sin().sum())
    numeric = (ends[0] - ends[1]) / 2e-5
    torch.testing.assert_close((gradient * direction).sum(), numeric, rtol=1e-6, atol=1e-8)


def test_goals_of_many_states_and_context() -> None:
    world_model, effort = model(), Effort()
    start, goal = near(world_model)
    context = torch.rand(2, 3, dtype=DOUBLE, requires_grad=True)
    radius = torch.tensor([0.1, 0.2], dtype=DOUBLE, requires_grad=True)
    goal.requires_grad_()
    config = LiftedNewtonConfig(**SMALL, cost=effort)
    infinite = torch.full_like(goal, torch.inf)
    goals = {
        "subset": lambda: Subset(goal, [0, 3]),
        "ball": lambda: Ball(goal, radius),
        "region": lambda: Region(goal + 0.1, infinite),
        "waypoints": lambda: Waypoints(torch.stack((goal - 0.1, goal), 1), steps=[3]),
    }
    for name, target in goals.items():

        def make(target: Any = target, **given: Any) -> DifferentiablePlan:
            asked = {"context": context, "config": config, **EXACT, **given}
            return differentiable_plan(world_model, start, target(), **asked)

        inputs = [goal, context, radius] if name == "ball" else [goal, context]
        compare(make, inputs)


def test_dict_latents_with_history() -> None:
    weight = torch.tensor([[0.3, 0.1], [-0.2, 0.4]], dtype=DOUBLE, requires_grad=True)

    def step(state: dict[str, Tensor], action: Tensor) -> tuple[dict[str, Tensor], str]:
        here, before = state["place"][:, -1], state["place"][:, -2]
        moved = here + 0.5 * (here - before) + (action[:, -1] @ weight).tanh()
        return {"place": moved, "heat": 0.9 * state["heat"][:, -1] + moved[:, :1].square()}, "extra"

    latents = LatentModel(step, latents={"place": (2,), "heat": (1,)}, history=2)
    start = {
        "place": torch.randn(2, 2, 2, dtype=DOUBLE, requires_grad=True),
        "heat": torch.rand(2, 2, 1, dtype=DOUBLE, requires_grad=True),
    }
    goal = {"place": torch.randn(2, 2, dtype=DOUBLE, requires_grad=True)}
    past = torch.zeros(2, 1, 2, dtype=DOUBLE)
    config = LiftedNewtonConfig(**{**SMALL, "horizon": 4, "action_weight": 0.1})

    def make(**given: Any) -> DifferentiablePlan:
        asked = {"config": config, "past_actions": past, **EXACT, **given}
        return differentiable_plan(latents, start, goal, **asked)

    compare(make, [start["place"], start["heat"], goal["place"], weight])


def test_weights_that_a_plain_function_hides_are_found() -> None:
    """A closure over something that was itself computed from a leaf."""
    raw = torch.tensor(0.2, dtype=DOUBLE, requires_grad=True)
    unused = torch.tensor(1.0, dtype=DOUBLE, requires_grad=True)
    start, goal = near(cases.arithmetic)
    config = LiftedNewtonConfig(**SMALL, action_weight=0.1)

    def make(**given: Any) -> DifferentiablePlan:
        thrust = 1 + raw.exp()

        def world_model(state: Tensor, action: Tensor) -> Tensor:
            return cases.arithmetic(state, thrust * action)

        return differentiable_plan(world_model, start, goal, config=config, **EXACT, **given)

    plan = compare(make, [raw])
    plan = make()
    assert torch.autograd.grad(loss(plan), unused, allow_unused=True) == (None,)


# ------------------------------------------------------------------------------------- unrolling


def test_unrolled_gradients_come_to_the_implicit_ones() -> None:
    world_model = model()
    start, goal = (x.requires_grad_() for x in near(world_model))
    config = LiftedNewtonConfig(**SMALL, action_weight=0.5, action_low=-0.3, action_high=0.3)
    inputs = [start, goal, *world_model.parameters()]

    def gradient(**given: Any) -> Tensor:
        plan = differentiable_plan(world_model, start, goal, config=config, **EXACT, **given)
        found = torch.autograd.grad(plan.actions.sin().sum(), inputs)
        return torch.cat([part.flatten() for part in found])

    exact = gradient()
    error = [
        float((gradient(method="unroll", unroll=count) - exact).norm() / exact.norm())
        for count in (1, 4, 16, 64)
    ]
    assert error[0] > 0.02
    assert error[1] < 0.9 * error[0]
    assert error[2] < 0.5 * error[1]
    assert error[3] < 1e-3 * error[2]


def test_an_unrolled_plan_can_be_differentiated_twice_and_an_implicit_one_says_not() -> None:
    start, goal = near(cases.arithmetic, 1)
    goal.requires_grad_()
    config = LiftedNewtonConfig(**SMALL, action_weight=0.1)

    def first(method: str) -> Tensor:
        plan = differentiable_plan(
            cases.arithmetic, start, goal, config=config, method=method, unroll=3
        )
        return torch.autograd.grad(plan.actions.square().sum(), goal, create_graph=True)[0]

    (second,) = torch.autograd.grad(first("unroll").sum(), goal)
    assert bool(second.any())
    with pytest.raises(RuntimeError, match="implicit gradient has no derivative itself"):
        first("implicit")


# ----------------------------------------------------------------------------------- conditions


def kept(make: Callable[[], DifferentiablePlan]) -> tuple[int, int]:
    """Bytes that a plan holds for its way back, but for the search's own report; and the peak."""
    with cases.LiveBytes() as live:
        plan = make()
        report = plan.searched.loss_history.untyped_storage().nbytes() if plan.searched else 0
        held = live.now - report
        loss(plan).backward()
        return held, live.peak


def test_memory_does_not_grow_with_iterations() -> None:
    """Of the search, of the polish, of the solve; with unrolled steps it does."""
    world_model = model()
    start, goal = (x.requires_grad_() for x in near(world_model))
    settings = {"horizon": 4, "hold": 1, "action_features": 2, "restarts": 2, "action_weight": 0.1}

    def planned(iterations: int, **given: Any) -> tuple[int, int]:
        planner = GradientPlanner(world_model, GradientConfig(**settings, iterations=iterations))
        return kept(lambda: differentiable_plan(world_model, start, goal, planner=planner, **given))

    planned(1)  # what is made once, and kept
    few, peak = planned(3, **EXACT)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DerivativeWarning)
        hasty = planned(3, polish_steps=0, cg_iterations=1)
    many = planned(20, **EXACT)
    assert many[0] == few == hasty[0]
    assert many[1] <= 1.02 * peak + 20 * 2 * 2 * 8
    unrolled = [planned(3, method="unroll", unroll=count, **EXACT)[0] for count in (2, 8)]
    assert unrolled[1] - unrolled[0] > 2 * few


@pytest.mark.parametrize("search", [True, False])
def test_a_broken_problem_reaches_no_other(search: bool) -> None:
    """Neither by its rows nor by the weights that all share; whoever finds that it is broken."""

    class Reef(cases.MLP):
        def forward(self, state: Tensor, action: Tensor) -> Tensor:
            return super().forward(state, action) / (state[:, :1] < 50)

    torch.manual_seed(4)
    world_model = Reef(dtype=DOUBLE)
    start, goal = near(world_model, 3)
    config = LiftedNewtonConfig(**SMALL, action_weight=0.1)
    start[1, 0] = 100.0

    def gradients(rows: list[int]) -> tuple[DifferentiablePlan, list[Tensor]]:
        given = [x[rows].clone().requires_grad_() for x in (start, goal)]
        asked = {"plan_ids": torch.tensor(rows), "search": search, **EXACT}
        if not search:
            asked["actions"] = torch.zeros(len(rows), 7, 2, dtype=DOUBLE)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NonFiniteWarning)
            plan = differentiable_plan(world_model, *given, config=config, **asked)
        safe = plan.converged
        total = plan.actions[safe].sin().sum() + plan.states[safe].square().sum()
        return plan, list(torch.autograd.grad(total, [*given, *world_model.parameters()]))

    plan, found = gradients([0, 1, 2])
    assert plan.converged.tolist() == [True, False, True]
    assert plan.gradient_norm[1] == plan.cost[1] == torch.inf
    assert bool(plan.states[1, 1:].isnan().all())
    torch.testing.assert_close(plan.states[1, 0], start[1])
    _, alone = gradients([0, 2])
    for part, other in zip(found[:2], alone[:2], strict=True):
        torch.testing.assert_close(part[[0, 2]], other, rtol=1e-8, atol=1e-10)
        assert not bool(part[1].any())
    for part, other in zip(found[2:], alone[2:], strict=True):
        torch.testing.assert_close(part, other, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("method", ["implicit", "unroll"])
def test_no_problems_at_all(method: str) -> None:
    world_model = model()
    nothing = torch.zeros(0, cases.STATE, dtype=DOUBLE, requires_grad=True)
    config = LiftedNewtonConfig(**SMALL)
    plan = differentiable_plan(world_model, nothing, nothing, config=config, method=method)
    assert plan.actions.shape == (0, 7, 2)
    assert plan.states.shape == (0, 8, 4)
    loss(plan).backward()
    assert nothing.grad is not None
    assert nothing.grad.shape == nothing.shape


def test_the_world_model_is_left_as_it_was() -> None:
    class Careful(cases.MLP):
        """Dropout would make plans a matter of luck; a counter counts; a weight is frozen."""

        def __init__(self) -> None:
            super().__init__(dtype=DOUBLE)
            self.drop = nn.Dropout(0.5)
            self.register_buffer("calls", torch.zeros((), dtype=torch.long))
            self.inner.bias.requires_grad_(False)

        def forward(self, state: Tensor, action: Tensor) -> Tensor:
            self.calls += 1
            return self.drop(super().forward(state, action))

    world_model = Careful()
    world_model.outer.eval()
    world_model.inner.weight.grad = torch.ones_like(world_model.inner.weight)
    before = {name: value.clone() for name, value in world_model.state_dict().items()}
    flags = [part.training for part in world_model.modules()]
    start, goal = near(model())
    config = LiftedNewtonConfig(**SMALL, action_weight=0.1)
    weight = world_model.outer.weight
    found = []
    for _ in range(2):
        plan = differentiable_plan(world_model, start, goal, config=config)
        assert world_model.calls == 0
        assert bool((world_model.inner.weight.grad == 1).all())
        found.append(torch.autograd.grad(loss(plan), weight)[0])
    assert torch.equal(*found)
    assert [part.training for part in world_model.modules()] == flags
    assert [p.requires_grad for p in world_model.parameters()] == [True, False, True, True]
    for name, value in world_model.state_dict().items():
        assert torch.equal(value, before[name])


def test_without_gradients_it_is_a_plan() -> None:
    world_model = model()
    start, goal = near(world_model)
    config = LiftedNewtonConfig(**SMALL, action_weight=0.1)
    for off in (torch.no_grad(), torch.inference_mode()):
        with off:
            plan = differentiable_plan(world_model, start, goal, config=config, **EXACT)
        assert not any(x.requires_grad for x in (plan.actions, plan.states, plan.cost))
        assert bool(plan.converged.all())
    assert plan.searched is not None
    assert bool((plan.cost <= plan.searched.cost).all())
    rolled = cases.roll_out(world_model, start, plan.actions)
    torch.testing.assert_close(plan.states, rolled, rtol=1e-12, atol=1e-12)
    constant = differentiable_plan(cases.arithmetic, start, goal, config=config)
    assert not constant.actions.requires_grad  # nothing here to differentiate for


def test_attention_is_differentiated_twice() -> None:
    """Torch's fused kernels cannot be; the formula can."""

    class Attentive(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(2, 2, dtype=DOUBLE)

        def forward(self, state: Tensor, action: Tensor) -> Tensor:
            tokens = torch.cat((state, action), -1).unflatten(-1, (1, 3, 2))
            seen = nn.functional.scaled_dot_product_attention(self.mix(tokens), tokens, tokens)
            return state + 0.3 * seen[:, 0, :2].flatten(1) + 0.1 * action.repeat(1, 2)

    world_model = Attentive()
    start, goal = cases.problems(1, DOUBLE)
    start.requires_grad_()
    config = LiftedNewtonConfig(**{**SMALL, "horizon": 3}, action_weight=0.1)

    def make(**given: Any) -> DifferentiablePlan:
        return differentiable_plan(world_model, start, goal, config=config, **EXACT, **given)

    compare(make, [start, world_model.mix.weight])


def test_kernels_search_and_plain_torch_is_differentiated() -> None:
    network = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
    world_model = MLPDynamics.from_sequential(network, action_features=2, residual=True)
    start, goal = (x.float().requires_grad_() for x in cases.problems(2))
    config = LiftedNewtonConfig(**SMALL, action_weight=0.1)
    plan = differentiable_plan(world_model, start, goal, config=config)
    assert plan.searched is not None
    assert "MLP kernels" in plan.searched.path
    again = differentiable_plan(
        lambda s, a: s + network(torch.cat((s, a), -1)),
        start,
        goal,
        config=config,
        actions=plan.actions.detach(),
        search=False,
    )
    assert bool(plan.converged.all() & again.converged.all())
    found, expected = (torch.autograd.grad(p.actions.sum(), start)[0] for p in (plan, again))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


# ---------------------------------------------------------------------------------------- warnings


def test_what_is_not_stationary_is_named() -> None:
    start, goal = near(cases.arithmetic)
    start.requires_grad_()
    config = LiftedNewtonConfig(**SMALL, action_weight=0.1)
    ids = torch.tensor([5, 9])
    with pytest.warns(DerivativeWarning, match=r"2 plans have a gradient above .*plan_id 5, 9"):
        plan = differentiable_plan(
            cases.arithmetic, start, goal, config=config, plan_ids=ids, polish_steps=0
        )
    assert plan.converged.tolist() == [False, False]
    assert bool((plan.gradient_norm > 1e-8).all())


def test_a_solve_that_does_not_end_is_named() -> None:
    world_model = model()
    start, goal = near(world_model)
    start.requires_grad_()
    config = LiftedNewtonConfig(**SMALL, action_weight=0.1)
    rough = {"polish_steps": 300, "cg_iterations": 1}
    plan = differentiable_plan(world_model, start, goal, config=config, **rough)
    with pytest.warns(DerivativeWarning, match="raise cg_iterations"):
        plan.actions.sum().backward()


def test_a_world_model_that_has_no_second_derivative_says_so() -> None:
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, value: Tensor) -> Tensor:
            ctx.save_for_backward(value)
            return value.sin()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, upstream: Tensor) -> Tensor:
            return upstream * ctx.saved_tensors[0].cos()

    def world_model(state: Tensor, action: Tensor) -> Tensor:
        return state + Once.apply(action).repeat(1, 2)

    start, goal = cases.problems(1, DOUBLE)
    config = LiftedNewtonConfig(**SMALL, action_weight=0.1)
    with pytest.raises(WorldModelError, match="cannot be differentiated twice"):
        differentiable_plan(world_model, start, goal, config=config)


def test_a_weight_changed_before_the_way_back_is_an_error() -> None:
    world_model = model()
    start, goal = near(world_model)
    config = LiftedNewtonConfig(**SMALL, action_weight=0.1)
    plan = differentiable_plan(world_model, start, goal, config=config)
    with torch.no_grad():
        world_model.inner.weight.add_(0.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        plan.actions.sum().backward()


def test_a_weight_frozen_before_the_way_back_gets_no_gradient() -> None:
    """As in torch; all others get theirs."""
    world_model = model()
    start, goal = near(world_model)
    config = LiftedNewtonConfig(**SMALL, action_weight=0.1)
    plan = differentiable_plan(world_model, start, goal, config=config)
    plan.actions.sum().backward(retain_graph=True)
    expected = world_model.outer.weight.grad
    world_model.zero_grad()
    world_model.inner.requires_grad_(False)
    plan.actions.sum().backward()
    assert world_model.inner.weight.grad is None
    torch.testing.assert_close(world_model.outer.weight.grad, expected)


def test_weights_get_gradients_while_somebody_else_plans() -> None:
    """Another thread's plan freezes the weights for its own sake."""
    world_model = model()
    start, goal = near(world_model)
    config = LiftedNewtonConfig(**SMALL, action_weight=0.1)
    with frozen(world_model):  # as a plan in another thread does
        plan = differentiable_plan(world_model, start, goal, config=config)
    expected = torch.autograd.grad(plan.actions.sum(), world_model.inner.weight, retain_graph=True)
    with frozen(world_model):
        plan.actions.sum().backward()
    torch.testing.assert_close(world_model.inner.weight.grad, *expected)


def test_a_method_is_a_world_model() -> None:
    world_model = model()
    start, goal = near(world_model)
    config = GradientConfig(horizon=7, action_features=2, iterations=20, action_weight=0.1)
    planner = GradientPlanner(world_model.forward, config)
    plan = differentiable_plan(world_model.forward, start, goal, planner=planner)
    assert bool(plan.converged.all())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "explicit"}, "method must be 'implicit' or 'unroll', got 'explicit'"),
        ({"unroll": 0}, "unroll must be at least 1, got 0"),
        ({"polish_steps": -1}, "polish_steps must be at least 0, got -1"),
        ({"cg_iterations": 1.5}, "cg_iterations must be an int, got float"),
        ({"tolerance": -1.0}, "tolerance must be at least 0 and finite, got -1.0"),
        ({"damping": "much"}, "damping must be a number, got str"),
        ({"damping": torch.inf}, "damping must be at least 0 and finite, got inf"),
        ({"search": False}, "actions must be given where search is False, got None"),
        ({"planner": "cem"}, "planner must be a Planner, got str"),
    ],
)
def test_bad_arguments_are_named(given: dict[str, Any], message: str) -> None:
    start, goal = cases.problems(1, DOUBLE)
    config = None if "planner" in given else LiftedNewtonConfig(**SMALL)
    with pytest.raises((TypeError, ValueError), match=message):
        differentiable_plan(cases.arithmetic, start, goal, config=config, **given)


def test_planners_that_do_not_fit_are_refused() -> None:
    start, goal = cases.problems(1, DOUBLE)
    config = LiftedNewtonConfig(**SMALL)
    planner = GradientPlanner(cases.arithmetic, GradientConfig(action_features=2))
    with pytest.raises(ValueError, match="must not both be given"):
        differentiable_plan(cases.arithmetic, start, goal, config=config, planner=planner)
    with pytest.raises(ValueError, match="must be over world_model"):
        differentiable_plan(model(), start, goal, planner=planner)
    wall = LiftedNewtonConfig(**SMALL, constraints=Constraint(lambda s, a: a.sum((1, 2))))
    with pytest.raises(ValueError, match=r"config.constraints must be empty.*got 1"):
        differentiable_plan(cases.arithmetic, start, goal, config=wall)


# --------------------------------------------------------------------------------- the linear solve


@pytest.mark.parametrize("rank", [0, 3, 12])
def test_the_least_solution_is_the_pseudo_inverses(rank: int) -> None:
    turn = torch.linalg.qr(torch.randn(4, 12, 12, dtype=DOUBLE))[0]
    values = torch.zeros(12, dtype=DOUBLE)
    values[:rank] = torch.logspace(-2, 0, rank, dtype=DOUBLE)
    matrix = (turn * values) @ turn.mT
    right = torch.randn(4, 12, dtype=DOUBLE)
    right[2] = 0.0
    right[3] = torch.nan
    found, solved = least_solution(lambda v: (matrix @ v[..., None])[..., 0], right, 100)
    expected = (torch.linalg.pinv(matrix[:3], rtol=1e-10) @ right[:3, :, None])[..., 0]
    torch.testing.assert_close(found[:3], expected, rtol=1e-7, atol=1e-9)
    assert solved.tolist() == [True, True, True, False]


def test_negative_curvature_is_no_solution() -> None:
    matrix = torch.diag(torch.tensor([1.0, -2.0, 3.0], dtype=DOUBLE))
    right = torch.ones(1, 3, dtype=DOUBLE)
    _, solved = least_solution(lambda v: v @ matrix, right, 100)
    assert solved.tolist() == [False]
