"""The ops for MLP world models: the reference against loops in float64, and both phases' rules.

The loops (mlp_cases.py) call the torch module, autograd and the ops for one iteration.
"""

from __future__ import annotations

from typing import Any

import mlp_cases as cases
import pytest
import torch

from grasp_kernels import MLPDynamics, mlp_lifted_plan_, mlp_rollout, mlp_sync_
from grasp_kernels.reference import mlp_rollout_backward

PLANS, STEPS, FEATURES, ACTIONS = 3, 5, 6, 2
SIZES = (PLANS, STEPS, FEATURES, ACTIONS)
DOUBLE = torch.float64


@pytest.fixture(params=cases.BACKENDS, ids=lambda p: f"{p[0]}-{str(p[1]).removeprefix('torch.')}")
def dtype(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    """Every (backend, compute dtype), as the dtype; the backend is set up behind it."""
    backend, dtype = request.param
    cases.use_backend(monkeypatch, backend)
    return dtype


def world(
    activation: str = "mish", norm: bool = True, residual: bool = True
) -> tuple[MLPDynamics, Any]:
    """A float64 model as the ops take it, and as a torch module."""
    built = cases.network(
        FEATURES, ACTIONS, (8, 12), activation=activation, norm=norm, dtype=DOUBLE
    ).requires_grad_(False)
    numbers = cases.scales(FEATURES, ACTIONS, DOUBLE, residual)
    dynamics = MLPDynamics.from_sequential(built, action_features=ACTIONS, **numbers)
    return dynamics, cases.module_of(built, numbers)


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-11) -> None:
    """float64 on both sides, over a few dozen steps: what differs is the order of sums."""
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


# ---------------------------------------------------------------------------------------- rollout


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("activation", cases.ACTIVATIONS)
def test_rollout_and_its_gradient(activation: str, norm: bool, residual: bool) -> None:
    dynamics, call = world(activation, norm, residual)
    trajectory, actions, _ = cases.plan_tensors(*SIZES, DOUBLE)
    start = trajectory[:, 0].clone().requires_grad_()
    actions.requires_grad_()
    expected = cases.rollout_loop(call, start, actions)
    found = mlp_rollout(dynamics, start, actions)
    close(found, expected)
    cotangent = torch.randn_like(expected)
    truth = torch.autograd.grad(expected, (start, actions), cotangent)
    public = torch.autograd.grad(found, (start, actions), cotangent)
    with torch.no_grad():
        plain = mlp_rollout_backward(cotangent, found, actions, *dynamics.packed())
    for results in (public, plain):
        for one, other in zip(results, truth, strict=True):
            close(one, other)


@pytest.mark.parametrize("activation", cases.SMOOTH)
def test_gradcheck(activation: str) -> None:
    """Finite differences through the public call: nothing of autograd's on the other side."""
    dynamics, _ = world(activation)
    start = torch.randn(2, FEATURES, dtype=DOUBLE, requires_grad=True)
    actions = torch.randn(2, 3, ACTIONS, dtype=DOUBLE, requires_grad=True)
    torch.autograd.gradcheck(
        lambda s, a: mlp_rollout(dynamics, s, a), (start, actions), fast_mode=True
    )


def test_the_gradient_of_one_input_alone(dtype: torch.dtype) -> None:
    dynamics = cases.model(FEATURES, ACTIONS, dtype=dtype)
    trajectory, actions, _ = cases.plan_tensors(*SIZES, dtype)
    start = trajectory[:, 0].clone().requires_grad_()
    actions.requires_grad_()
    both = torch.autograd.grad(mlp_rollout(dynamics, start, actions).sum(), (start, actions))
    for n, leaf in enumerate((start, actions)):
        arguments = [start.detach(), actions.detach()]
        arguments[n] = leaf
        (alone,) = torch.autograd.grad(mlp_rollout(dynamics, *arguments).sum(), leaf)
        assert cases.same(alone, both[n])
    assert not mlp_rollout(dynamics, start.detach(), actions.detach()).requires_grad


def test_no_steps_at_all(dtype: torch.dtype) -> None:
    """T = 0: the start, and its gradient in memory of its own."""
    dynamics = cases.model(FEATURES, ACTIONS, dtype=dtype)
    start = torch.randn(PLANS, FEATURES, dtype=dtype, requires_grad=True)
    actions = torch.zeros(PLANS, 0, ACTIONS, dtype=dtype, requires_grad=True)
    states = mlp_rollout(dynamics, start, actions)
    assert torch.equal(states, start[:, None])
    cotangent = torch.randn_like(states)
    gradients = torch.autograd.grad(states, (start, actions), cotangent)
    assert torch.equal(gradients[0], cotangent[:, 0])
    assert gradients[1].shape == actions.shape
    assert gradients[0].data_ptr() != cotangent.data_ptr()


def test_gradients_of_gradients_are_refused() -> None:
    dynamics, _ = world()
    start = torch.randn(2, FEATURES, dtype=DOUBLE, requires_grad=True)
    states = mlp_rollout(dynamics, start, torch.randn(2, 3, ACTIONS, dtype=DOUBLE))
    (gradient,) = torch.autograd.grad(states.square().sum(), start, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


# ------------------------------------------------------------------------------------ lifted plan


OPTIONS: list[dict[str, Any]] = [
    {},
    {"optimizer": "sgd"},
    {"optimizer": "sgd", "low": -0.3, "high": 0.4},
    {"low": torch.tensor([-0.2, -0.6], dtype=DOUBLE), "high": 0.1},
    {"noise": "bridge", "modes": 3},
    {"noise": "none", "feature_weight": torch.rand(FEATURES, dtype=DOUBLE)},
    {"terminal": "free", "feature_weight": torch.rand(FEATURES, dtype=DOUBLE)},
    {"terminal": "free", "noise": "bridge", "optimizer": "sgd", "high": 0.2},
    {
        "state_lr": torch.tensor([0.1, 0.0, 0.3], dtype=DOUBLE),
        "action_lr": torch.tensor([0.0, 0.1, 0.2], dtype=DOUBLE),
        "noise_factor": torch.tensor([1.0, 0.5, 0.0], dtype=DOUBLE),
    },
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o)) or "defaults")
@pytest.mark.parametrize("steps", [1, STEPS])
def test_lifted_plan_is_the_loop_of_single_steps(steps: int, options: dict[str, Any]) -> None:
    dynamics, call = world()
    arguments = cases.lifted_options(5, DOUBLE, **options)
    results = []
    for run in (mlp_lifted_plan_, cases.lifted_loop_):
        trajectory, actions, goal = cases.plan_tensors(PLANS, steps, FEATURES, ACTIONS, DOUBLE)
        state: dict[str, Any] = {}
        model = dynamics if run is mlp_lifted_plan_ else call
        history = run(model, trajectory, actions, goal, state, **arguments)
        results.append([history, trajectory, actions, *state.values()])
    for found, expected in zip(*results, strict=True):
        if isinstance(found, int):
            assert found == expected == 5
        else:
            close(found, expected)
    history, trajectory, _ = results[0][:3]
    before = cases.plan_tensors(PLANS, steps, FEATURES, ACTIONS, DOUBLE)[0]
    assert history.shape == (5, PLANS)
    assert cases.same(trajectory[:, 0], before[:, 0])
    fixed = options.get("terminal") != "free"
    assert cases.same(trajectory[:, -1], before[:, -1]) == fixed


@pytest.mark.parametrize("options", OPTIONS[:-1], ids=lambda o: "-".join(map(str, o)) or "defaults")
def test_two_calls_are_one(dtype: torch.dtype, options: dict[str, Any]) -> None:
    """The split of iterations into launches is not seen in the result, to the bit."""
    dynamics = cases.model(FEATURES, ACTIONS, (8, 12), norm=True, residual=True, dtype=dtype)
    results = []
    for split in ((5,), (3, 2), (1, 1, 3)):
        trajectory, actions, goal = cases.plan_tensors(*SIZES, dtype)
        state: dict[str, Any] = {}
        history, done = [], 0
        for size in split:
            arguments = cases.lifted_options(5, dtype, **options)
            arguments["schedule"] = arguments["schedule"][done : done + size]
            arguments["first_iteration"] = 1 + done
            history.append(
                mlp_lifted_plan_(dynamics, trajectory, actions, goal, state, **arguments)
            )
            done += size
        results.append([torch.cat(history), trajectory, actions, state])
    for other in results[1:]:
        assert all(map(cases.same, other[:3], results[0][:3]))
        assert other[3].keys() == results[0][3].keys()
        if options.get("optimizer") != "sgd":
            assert other[3]["step"] == 5
            assert cases.same(other[3]["first_moment"], results[0][3]["first_moment"])
            assert cases.same(other[3]["second_moment"], results[0][3]["second_moment"])


def test_betas_and_epsilon_are_adams(dtype: torch.dtype) -> None:
    """One step from rest moves by `lr g / (|g| + epsilon)` whatever the betas; ten do not."""
    dynamics = cases.model(FEATURES, ACTIONS, dtype=dtype)
    moved = []
    for numbers in ({}, {"betas": (0.5, 0.9)}, {"epsilon": 0.1}):
        trajectory, actions, goal = cases.plan_tensors(*SIZES, dtype)
        arguments = cases.lifted_options(1, dtype, noise="none", **numbers)
        mlp_lifted_plan_(dynamics, trajectory, actions, goal, state := {}, **arguments)
        assert state["step"] == 1
        moved.append(actions)
    torch.testing.assert_close(moved[0], moved[1], rtol=1e-5, atol=1e-6)
    assert (moved[0] - moved[2]).abs().max() > 1e-3


# ------------------------------------------------------------------------------------------- sync


SYNC_OPTIONS: list[dict[str, Any]] = [
    {"steps": 0},
    {"steps": 0, "blend": 1.0},
    {"steps": 4},
    {"steps": 4, "optimizer": "sgd", "blend": 0.3},
    {"steps": 4, "low": -0.3, "high": 0.4, "blend": 0.7, "terminal": "free"},
    {"steps": 4, "cost_weight": torch.tensor([0.5, 0, 1, 2, 1, 3], dtype=DOUBLE)},
    {"steps": 4, "lr": torch.tensor([0.3, 0.0, 0.1], dtype=DOUBLE), "blend": 1.0},
    {"steps": 6, "stop_cost": 6.0, "lr": 0.3},
    {"steps": 3, "betas": (0.5, 0.9), "epsilon": 0.1},
]


@pytest.mark.parametrize("judged", [False, True])
@pytest.mark.parametrize("options", SYNC_OPTIONS, ids=lambda o: "-".join(map(str, o)))
def test_sync_is_the_loop_of_rollouts_and_steps(options: dict[str, Any], judged: bool) -> None:
    dynamics, call = world()
    options = {"lr": 0.2, **options}
    results = []
    for run in (mlp_sync_, cases.sync_loop_):
        trajectory, actions, goal = cases.plan_tensors(*SIZES, DOUBLE)
        start = trajectory[:, 0].clone()
        best = cases.bests(*SIZES, DOUBLE)
        if judged:  # plan 1 has seen better
            best[0][1] = 1e-3
        if run is mlp_sync_:
            mlp_sync_(dynamics, trajectory, actions, *best, start, goal, **options)
        else:
            cases.sync_loop_(call, trajectory, actions, best, start, goal, **options)
        results.append([trajectory, actions, *best])
    for found, expected in zip(*results, strict=True):
        close(found, expected)
    if judged:
        assert (results[0][4][1] == 8.0).all()
    else:
        assert results[0][2].isfinite().all()


def test_plans_that_arrived_do_not_move(dtype: torch.dtype) -> None:
    """`stop_cost` freezes a plan from the moment its best cost is at most that."""
    dynamics = cases.model(FEATURES, ACTIONS, dtype=dtype)
    trajectory, actions, goal = cases.plan_tensors(*SIZES, dtype)
    start, before = trajectory[:, 0].clone(), actions.clone()
    best = cases.bests(*SIZES, dtype)
    judge = {"steps": 0, "lr": 0.1}
    mlp_sync_(dynamics, trajectory, actions, *best, start, goal, **judge)
    assert cases.same(actions, before)
    costs = best[0].clone()
    order = costs.argsort()
    stop_cost = float(costs[order[1]])  # at most: the middle one stops too
    mlp_sync_(
        dynamics, trajectory, actions, *best, start, goal, steps=3, lr=0.1, stop_cost=stop_cost
    )
    assert cases.same(actions[order[:2]], before[order[:2]])
    assert (actions[order[2]] != before[order[2]]).all()
    assert cases.same(best[0][order[:2]], costs[order[:2]])


def test_the_best_is_kept_when_steps_make_it_worse(dtype: torch.dtype) -> None:
    """With a step far too long only the first rollout, or a lucky one, is worth keeping."""
    dynamics = cases.model(FEATURES, ACTIONS, dtype=dtype)
    trajectory, actions, goal = cases.plan_tensors(*SIZES, dtype)
    start, best = trajectory[:, 0].clone(), cases.bests(*SIZES, dtype)
    seen = []
    for steps in range(6):
        moved, tried = actions.clone(), cases.bests(*SIZES, dtype)
        mlp_sync_(
            dynamics, trajectory, moved, *tried, start, goal, steps=steps, lr=5.0, optimizer="sgd"
        )
        judged = cases.bests(*SIZES, dtype)
        mlp_sync_(dynamics, trajectory, moved, *judged, start, goal, steps=0, lr=0.0)
        seen.append(judged[0])
    options = {"steps": 5, "lr": 5.0, "optimizer": "sgd"}
    mlp_sync_(dynamics, trajectory, actions, *best, start, goal, **options)
    assert cases.same(best[0], torch.stack(seen).min(0).values)
    assert (seen[-1] > best[0]).any()
    assert cases.same(best[2], mlp_rollout(dynamics, start, best[1]))
