"""What every backend of the MLP ops keeps: strides, aliases, empty input, broken plans, graphs."""

from __future__ import annotations

from typing import Any

import mlp_cases as cases
import pytest
import torch

from grasp_kernels import MLPDynamics, mlp_lifted_plan_, mlp_rollout, mlp_sync_
from grasp_kernels.mlp import MLPLayer

PLANS, STEPS, FEATURES, ACTIONS = 3, 5, 6, 2
SIZES = (PLANS, STEPS, FEATURES, ACTIONS)
DOUBLE = torch.float64


@pytest.fixture(params=cases.BACKENDS, ids=lambda p: f"{p[0]}-{str(p[1]).removeprefix('torch.')}")
def dtype(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    """Every (backend, compute dtype), as the dtype; the backend is set up behind it."""
    backend, dtype = request.param
    cases.use_backend(monkeypatch, backend)
    return dtype


# ----------------------------------------------------------------------------- memory and shapes


@pytest.mark.parametrize(("plans", "steps", "iterations"), [(0, 5, 3), (3, 5, 0), (3, 1, 2)])
def test_empty_and_shortest(dtype: torch.dtype, plans: int, steps: int, iterations: int) -> None:
    dynamics = cases.model(FEATURES, ACTIONS, dtype=dtype)
    trajectory, actions, goal = cases.plan_tensors(plans, steps, FEATURES, ACTIONS, dtype)
    before = [trajectory.clone(), actions.clone()]
    sound = torch.ones(plans, dtype=torch.bool)
    state: dict[str, Any] = {}
    arguments = cases.lifted_options(iterations, dtype, plan_ids=None, sound=sound)
    history = mlp_lifted_plan_(dynamics, trajectory, actions, goal, state, **arguments)
    assert history.shape == (iterations, plans)
    assert history.dtype == dtype
    assert history.isfinite().all()
    assert sound.all()
    assert state["step"] == iterations
    assert cases.same(trajectory, before[0]) == (plans == 0 or iterations == 0 or steps == 1)
    assert cases.same(actions, before[1]) == (plans == 0 or iterations == 0)
    best = cases.bests(plans, steps, FEATURES, ACTIONS, dtype)
    start = trajectory[:, 0].clone()
    mlp_sync_(dynamics, trajectory, actions, *best, start, goal, steps=2, lr=0.1, blend=1.0)
    assert best[0].isfinite().all()
    assert mlp_rollout(dynamics, start, actions).shape == (plans, steps + 1, FEATURES)


def roomy(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same numbers as every other plan of a slice in time of something larger."""
    n, t, *rest = tensor.shape
    block = torch.randn(2 * n, t + 3, *rest, dtype=tensor.dtype)
    view = block[1::2, 2:-1]
    return block, view.copy_(tensor)


def test_strided_tensors_are_written_through(dtype: torch.dtype) -> None:
    dynamics = cases.model(FEATURES, ACTIONS, norm=True, dtype=dtype)
    one_goal = torch.randn(FEATURES, dtype=dtype)

    def run(strided: bool) -> list[torch.Tensor]:
        trajectory, actions, _ = cases.plan_tensors(*SIZES, dtype)
        best = cases.bests(*SIZES, dtype)
        goal = one_goal.expand(PLANS, FEATURES)
        numbers, sound = cases.schedule(3, dtype), torch.ones(PLANS, dtype=torch.bool)
        plan_ids, start = cases.ids(PLANS), trajectory[:, 0].clone()
        rate = torch.tensor([0.1, 0.2, 0.3], dtype=dtype)
        blocks: list[torch.Tensor] = []
        if strided:
            block, trajectory = roomy(trajectory)
            blocks.append(block)
            actions = actions.transpose(0, 1).contiguous().transpose(0, 1)  # time-major
            best = [best[0], *(roomy(b)[1] for b in best[1:])]
            best[0] = torch.zeros(PLANS, 2, dtype=dtype)[:, 1].copy_(best[0])
            numbers = numbers.T.contiguous().T
            sound = torch.zeros(PLANS, 2, dtype=torch.bool)[:, 0].fill_(True)
            plan_ids = torch.stack((plan_ids, plan_ids), 1)[:, 1]
            start = start.T.contiguous().T
            rate = torch.stack((rate, rate), 1)[:, 0]
        else:
            goal = goal.clone()
        before = [block[::2].clone() for block in blocks]
        state: dict[str, Any] = {}
        history = mlp_lifted_plan_(
            dynamics,
            trajectory,
            actions,
            goal,
            state,
            **cases.lifted_options(
                3, dtype, schedule=numbers, sound=sound, plan_ids=plan_ids, state_lr=rate
            ),
        )
        mlp_sync_(
            dynamics, trajectory, actions, *best, start, goal, steps=2, lr=rate, blend=0.5,
            sound=sound,
        )  # fmt: skip
        states = mlp_rollout(dynamics, start, actions)
        assert all(map(cases.same, before, (block[::2] for block in blocks)))
        return [history, trajectory, actions, *best, sound, states, state["first_moment"]]

    assert all(map(cases.same, run(strided=True), run(strided=False)))


def test_moments_that_are_slices(dtype: torch.dtype) -> None:
    dynamics = cases.model(FEATURES, ACTIONS, dtype=dtype)
    results = []
    for sliced in (False, True):
        trajectory, actions, goal = cases.plan_tensors(*SIZES, dtype)
        block = torch.zeros(2, PLANS, 2 * STEPS, ACTIONS, dtype=dtype)
        moments = block[:, :, ::2] if sliced else torch.zeros(2, *actions.shape, dtype=dtype)
        state = {"step": 0, "first_moment": moments[0], "second_moment": moments[1]}
        arguments = cases.lifted_options(3, dtype)
        mlp_lifted_plan_(dynamics, trajectory, actions, goal, state, **arguments)
        assert moments.any()
        assert not block[:, :, 1::2].any()
        results.append([trajectory, actions, *moments])
    assert all(map(cases.same, *results))


@pytest.mark.parametrize("plans", [1, PLANS])
def test_a_goal_that_is_a_view_of_the_trajectory(dtype: torch.dtype, plans: int) -> None:
    """With a free end its memory is written; the goal is what it was when the call began."""
    dynamics = cases.model(FEATURES, ACTIONS, dtype=dtype)
    results = []
    for view in (False, True):
        trajectory, actions, _ = cases.plan_tensors(plans, STEPS, FEATURES, ACTIONS, dtype)
        goal = trajectory[:, -1] if view else trajectory[:, -1].clone()
        arguments = cases.lifted_options(4, dtype, plan_ids=None, terminal="free")
        history = mlp_lifted_plan_(dynamics, trajectory, actions, goal, {}, **arguments)
        results.append([history, trajectory, actions])
    assert all(map(cases.same, *results))


def test_autograd_learns_of_writes(dtype: torch.dtype) -> None:
    """A graph that saved the old values must not be differentiated with the new ones."""
    dynamics = cases.model(FEATURES, ACTIONS, dtype=dtype)
    trajectory, actions, goal = cases.plan_tensors(*SIZES, dtype)
    best, start = cases.bests(*SIZES, dtype), trajectory[:, 0].clone()
    written = [trajectory, actions, *best]
    versions = [tensor._version for tensor in written]
    mlp_lifted_plan_(dynamics, trajectory, actions, goal, {}, **cases.lifted_options(1, dtype))
    assert [trajectory._version > versions[0], actions._version > versions[1]] == [True, True]
    versions = [tensor._version for tensor in written]
    mlp_sync_(dynamics, trajectory, actions, *best, start, goal, steps=1, lr=0.1, blend=0.5)
    assert all(t._version > v for t, v in zip(written, versions, strict=True))


# -------------------------------------------------------------------------------- broken numbers


BAD = [float("nan"), float("inf"), -float("inf")]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("place", ["start", "state", "last state", "action", "goal"])
def test_a_broken_plan_is_alone(dtype: torch.dtype, place: str, bad: float) -> None:
    """One number of plan 1, in the middle of a tile: the others keep their bits, it is reported."""
    dynamics = cases.model(FEATURES, ACTIONS, (8, 17), norm=True, residual=True, dtype=dtype)
    plans = 4
    others = [0, 2, 3]

    def run(spoil: bool) -> list[torch.Tensor]:
        trajectory, actions, goal = cases.plan_tensors(plans, STEPS, FEATURES, ACTIONS, dtype)
        start = trajectory[:, 0].clone()
        if spoil:
            target = {
                "start": start[1],
                "state": trajectory[1, 2],
                "last state": trajectory[1, -1],
                "action": actions[1, 3],
                "goal": goal[1],
            }[place]
            target[1] = bad
        if place == "start":
            trajectory[:, 0] = start
        sound, sync_sound = torch.ones(2, plans, dtype=torch.bool).unbind(0)
        states = mlp_rollout(dynamics, start, actions)
        leaf = actions.clone().requires_grad_()
        mlp_rollout(dynamics, start, leaf).sum().backward()
        best, moved = cases.bests(plans, STEPS, FEATURES, ACTIONS, dtype), actions.clone()
        before, path = [tensor.clone() for tensor in best], trajectory.clone()
        mlp_sync_(
            dynamics, path, moved, *best, start, goal, steps=3, lr=0.1, blend=1.0, sound=sync_sound
        )
        if spoil:
            assert sync_sound.tolist() == [True, "state" in place, True, True]
            for kept, old in zip(best, before, strict=True):
                assert cases.same(kept[1], old[1]) != ("state" in place)
            assert (path[1, 1:-1] != trajectory[1, 1:-1]).all() == ("state" in place)
        state: dict[str, Any] = {}
        arguments = cases.lifted_options(3, dtype, plan_ids=cases.ids(plans), sound=sound)
        history = mlp_lifted_plan_(dynamics, trajectory, actions, goal, state, **arguments)
        assert sound.tolist() == [True, not spoil, True, True]
        if spoil:
            assert not history[:, 1].isfinite().any()
        memory = [state["first_moment"], state["second_moment"]]
        return [trajectory, actions, history.T, *memory, states, leaf.grad, moved, path, *best]

    for one, other in zip(run(spoil=True), run(spoil=False), strict=True):
        assert cases.same(one[others], other[others])
        assert other.isfinite().all()


def test_sync_replaces_a_broken_state_by_the_rollout(dtype: torch.dtype) -> None:
    """`blend=1` is the rollout, whatever stood there before."""
    dynamics = cases.model(FEATURES, ACTIONS, dtype=dtype)
    trajectory, actions, goal = cases.plan_tensors(*SIZES, dtype)
    start = trajectory[:, 0].clone()
    trajectory[1, 2] = torch.nan
    best = cases.bests(*SIZES, dtype)
    mlp_sync_(dynamics, trajectory, actions, *best, start, goal, steps=0, lr=0.1, blend=1.0)
    assert cases.same(trajectory[:, 1:-1], mlp_rollout(dynamics, start, actions)[:, 1:-1])


def test_what_was_unsound_stays_so(dtype: torch.dtype) -> None:
    dynamics = cases.model(FEATURES, ACTIONS, dtype=dtype)
    trajectory, actions, goal = cases.plan_tensors(*SIZES, dtype)
    sound = torch.tensor([True, False, True])
    arguments = cases.lifted_options(2, dtype, sound=sound)
    mlp_lifted_plan_(dynamics, trajectory, actions, goal, {}, **arguments)
    best, start = cases.bests(*SIZES, dtype), trajectory[:, 0].clone()
    mlp_sync_(dynamics, trajectory, actions, *best, start, goal, steps=1, lr=0.1, sound=sound)
    assert sound.tolist() == [True, False, True]


def test_overflow_is_reported(dtype: torch.dtype) -> None:
    """Weights so large that finite states leave the range of the dtype."""
    dynamics = cases.model(FEATURES, ACTIONS, (8,), activation="relu", scaled=False, dtype=dtype)
    huge = 1e200 if dtype == DOUBLE else 1e25
    with torch.no_grad():
        for layer in dynamics.layers:
            layer.weight.mul_(huge)
    trajectory, actions, goal = cases.plan_tensors(*SIZES, dtype)
    before = [trajectory.clone(), cases.bests(*SIZES, dtype)]
    start, best = trajectory[:, 0].clone(), cases.bests(*SIZES, dtype)
    sound = torch.ones(PLANS, dtype=torch.bool)
    options: dict[str, Any] = {"steps": 2, "lr": 0.1, "blend": 1.0, "sound": sound}
    mlp_sync_(dynamics, trajectory, actions.clone(), *best, start, goal, **options)
    assert not sound.any()
    assert cases.same(trajectory, before[0])
    assert all(map(cases.same, best, before[1]))
    sound.fill_(True)
    arguments = cases.lifted_options(2, dtype, sound=sound)
    mlp_lifted_plan_(dynamics, trajectory, actions, goal, {}, **arguments)
    assert not sound.any()


def test_a_gradient_that_overflows_is_reported(dtype: torch.dtype) -> None:
    """Loss and states are finite: only the way back, times the actions' weights, is not."""
    weight = torch.eye(FEATURES, FEATURES + ACTIONS, dtype=dtype)
    weight[0, FEATURES] = 1e180 if dtype == DOUBLE else 1e30
    dynamics = MLPDynamics((MLPLayer(weight),), ACTIONS)
    far = 1e140 if dtype == DOUBLE else 1e12
    trajectory, _, goal = cases.plan_tensors(*SIZES, dtype)
    actions = torch.zeros(PLANS, STEPS, ACTIONS, dtype=dtype)
    goal[1, 0] = far
    start, best = trajectory[:, 0].clone(), cases.bests(*SIZES, dtype)
    arguments = {"steps": 1, "lr": 0.0, "optimizer": "sgd"}
    for steps in (0, 1):
        sound = torch.ones(PLANS, dtype=torch.bool)
        arguments |= {"steps": steps, "sound": sound}
        mlp_sync_(dynamics, trajectory, actions.clone(), *best, start, goal, **arguments)
        assert sound.tolist() == [True, steps == 0, True]
    assert best[0].isfinite().all()
    sound = torch.ones(PLANS, dtype=torch.bool)
    options = {"optimizer": "sgd", "action_lr": 0.0, "sound": sound}
    arguments = cases.lifted_options(1, dtype, **options)
    history = mlp_lifted_plan_(dynamics, trajectory, actions, goal, **arguments)
    assert history.isfinite().all()
    assert sound.tolist() == [True, False, True]


# ---------------------------------------------------------------------------------------- compiled


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own compiler
def test_compiled(dtype: torch.dtype) -> None:
    """The ops are one opaque node each of a full graph, forward and backward."""
    torch._dynamo.reset()
    dynamics = cases.model(FEATURES, ACTIONS, dtype=dtype)
    weights, constants, structure = dynamics.packed()
    ops = torch.ops.grasp_kernels

    def call(start, actions, cotangent):  # type: ignore[no-untyped-def]
        states = ops.mlp_rollout(2 * start, actions, weights, constants, structure)
        gradients = ops.mlp_rollout_backward(
            cotangent, states, actions, weights, constants, structure
        )
        return states, *gradients

    trajectory, actions, _ = cases.plan_tensors(*SIZES, dtype)
    arguments = trajectory[:, 0].contiguous(), actions, torch.randn_like(trajectory)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    assert all(map(cases.same, compiled(*arguments), call(*arguments)))
