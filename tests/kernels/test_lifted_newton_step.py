"""`lifted_newton_step_`: one damped Gauss-Newton step of states and held actions together."""

from __future__ import annotations

from typing import Any

import mlp_cases
import newton_cases as cases
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from grasp_kernels import lifted_newton_step_
from grasp_kernels.testing import assert_close

OP = "lifted_newton_step_"


@pytest.fixture(params=mlp_cases.BACKENDS, ids=str)
def dtype(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    backend, dtype = request.param
    mlp_cases.use_backend(monkeypatch, backend)
    return dtype


def step(arguments: dict[str, Any]) -> tuple[Tensor, ...]:
    """trajectory and actions afterwards, and the three numbers per plan."""
    tensors, rest = cases.public(arguments)
    found = lifted_newton_step_(*tensors, **rest)
    return arguments["trajectory"], arguments["actions"], *found


def linear(
    plans: int, steps: int, features: int, actions: int, dtype: torch.dtype, hold: int = 1
) -> dict[str, Any]:
    """A plan of an affine model, far from its goal, with defects; nothing limits the step."""
    free = {"low": None, "high": None, "max_action_step": torch.inf, "max_state_step": torch.inf}
    return cases.arguments(
        plans, steps, features, actions, hold=hold, damping=0.0, dtype=dtype, **free
    )


def advanced(arguments: dict[str, Any], before: dict[str, Any]) -> Tensor:
    """What the affine model predicts after the step, from what it predicted `before`."""
    moved = arguments["trajectory"] - before["trajectory"]
    acted = arguments["actions"] - before["actions"]
    change = arguments["state_jacobian"] @ moved[:, :-1, :, None]
    change = change + arguments["action_jacobian"] @ acted[..., None]
    return before["prediction"] + change[..., 0]


# ------------------------------------------------------------------------------------------ values


SHAPES = [
    # N, T, D, A, hold
    (3, 1, 1, 1, 1),
    (2, 9, 4, 2, 1),
    (3, 12, 4, 2, 5),  # the last block is shorter
    (2, 6, 3, 1, 3),
    (2, 4, 1, 3, 9),  # one block
    (1, 17, 19, 18, 4),
]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_formula(dtype: torch.dtype, shape: tuple[int, ...], weighted: bool) -> None:
    *sizes, hold = shape
    features = sizes[2]
    weight = (torch.arange(features) + 1) % 3 * 0.7 if weighted else None
    arguments = cases.arguments(*sizes, hold=hold, dtype=dtype, goal_weight=weight)
    expected = [cases.oracle(arguments, plan) for plan in range(sizes[0])]
    for found, one in zip(step(arguments), zip(*expected, strict=True), strict=True):
        assert_close(found, torch.stack(one), OP)


@pytest.mark.parametrize("solves", [1, 2, 5])
def test_solves_and_damping(dtype: torch.dtype, solves: int) -> None:
    """Plans of several dampings, most of whose actions stand at a bound."""
    arguments = cases.arguments(4, 8, 3, 2, dtype=dtype, solves=solves)
    arguments["actions"] = (3 * arguments["actions"]).clamp(-0.7, 0.7)
    arguments["low"], arguments["high"] = arguments["low"] * 0 - 0.7, arguments["high"] * 0 + 0.7
    arguments["damping"] = torch.tensor([0.01, 0.1, 1.0, 10.0], dtype=dtype)
    expected = [cases.oracle(arguments, plan) for plan in range(4)]
    for found, one in zip(step(arguments), zip(*expected, strict=True), strict=True):
        assert_close(found, torch.stack(one), OP)


def test_what_is_free_takes_over_from_what_is_at_a_bound(dtype: torch.dtype) -> None:
    """x_T = x_0 + a_1 + a_2, the first at its bound and pushed outward: the second does it all."""

    def one(solves: int) -> Tensor:
        plan = {
            "trajectory": torch.tensor([[[0.0], [1.0]]], dtype=dtype),
            "actions": torch.tensor([[[1.0, 0.0]]], dtype=dtype),
            "prediction": torch.tensor([[[1.0]]], dtype=dtype),
            "state_jacobian": torch.ones(1, 1, 1, 1, dtype=dtype),
            "action_jacobian": torch.ones(1, 1, 1, 2, dtype=dtype),
            "goal": torch.tensor([[1.5]], dtype=dtype),
            "damping": 0.0,
            "high": 1.0,
            "solves": solves,
        }
        return step(plan)[1][0, 0]

    close = {"rtol": 0.0, "atol": 1e-5}
    torch.testing.assert_close(one(1), torch.tensor([1.0, 0.25], dtype=dtype), **close)
    torch.testing.assert_close(one(2), torch.tensor([1.0, 0.5], dtype=dtype), **close)


# -------------------------------------------------------------------------------------- properties


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_a_linear_model_is_solved_in_one_step(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without damping and limits: the goal is reached and no defect is left."""
    mlp_cases.use_backend(monkeypatch, backend)
    dtype = torch.float64 if backend == "reference" else torch.float32

    @settings(max_examples=30, deadline=None)
    @given(
        sizes=st.tuples(st.integers(1, 3), st.integers(1, 12), st.integers(1, 5)),
        spare=st.integers(0, 2),
        hold=st.integers(1, 4),
    )
    def check(sizes: tuple[int, int, int], spare: int, hold: int) -> None:
        plans, steps, features = sizes
        arguments = linear(plans, steps, features, features + spare, dtype, hold)
        # The last actions reach every state by themselves, so the problem is well posed.
        strong = torch.eye(features, features + spare, dtype=dtype)
        arguments["action_jacobian"] = 0.1 * arguments["action_jacobian"] + strong
        before = {name: cases.cast(value, dtype) for name, value in arguments.items()}
        trajectory, actions, goal_error, _, largest = step(arguments)
        scale = 1.0 + float(before["trajectory"].abs().max() + largest.max())
        prediction = advanced(arguments, before)
        tolerance = {"rtol": 0.0, "atol": scale * (1e-10 if dtype == torch.float64 else 1e-5)}
        torch.testing.assert_close(trajectory[:, 1:], prediction, **tolerance)
        left = (trajectory[:, -1] - arguments["goal"]).square().sum(-1)
        assert (left <= 1e-6 * goal_error + 1e-9).all()
        assert torch.equal(trajectory[:, 0], before["trajectory"][:, 0])
        assert torch.equal(actions, cases.held(actions[:, ::hold], hold, steps))

    check()


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_no_limit_is_ever_passed(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mlp_cases.use_backend(monkeypatch, backend)
    limit = st.floats(0.0, 2.0, width=32)

    @settings(max_examples=30, deadline=None)
    @given(
        sizes=st.tuples(*(st.integers(1, n) for n in (3, 9, 5, 3))),
        hold=st.integers(1, 5),
        box=st.tuples(st.floats(-0.75, 0.25, width=32), limit),
        most=limit,
        most_state=limit,
        solves=st.integers(1, 3),
    )
    def check(sizes: Any, hold: int, box: Any, most: float, most_state: float, solves: int) -> None:
        low, high = box[0], box[0] + box[1]
        arguments = cases.arguments(*sizes, hold=hold, solves=solves, damping=0.0)
        arguments |= {"low": low, "high": high}
        arguments |= {"max_action_step": most, "max_state_step": most_state}
        arguments["actions"].clamp_(torch.tensor(low), torch.tensor(high))
        trajectory, actions = arguments["trajectory"].clone(), arguments["actions"].clone()
        _, _, _, _, largest = step(arguments)
        moved = arguments["actions"]
        assert (moved.double() >= low).all()
        assert (moved.double() <= high).all()
        assert ((moved - actions).abs().flatten(1).amax(1) == largest).all()
        slack = 1 + 1e-5
        assert float(largest.max()) <= most * slack + 1e-6
        assert (
            float((arguments["trajectory"] - trajectory).abs().max()) <= most_state * slack + 1e-6
        )

    check()


def test_a_plan_that_has_arrived_stays(dtype: torch.dtype) -> None:
    arguments = cases.arguments(3, 7, 4, 2, hold=2, dtype=dtype)
    arguments["prediction"] = arguments["trajectory"][:, 1:].clone()
    arguments["goal"] = arguments["trajectory"][:, -1].clone()
    before = arguments["trajectory"].clone(), arguments["actions"].clone()
    found = step(arguments)
    assert torch.equal(found[0], before[0])
    assert torch.equal(found[1], before[1])
    assert not torch.cat(found[2:]).any()


def test_actions_without_influence_stay_and_defects_close(dtype: torch.dtype) -> None:
    """S = 0, with and without damping: no NaN."""
    for damping in (0.0, 0.1):
        arguments = linear(2, 5, 3, 2, dtype)
        arguments["action_jacobian"].zero_()
        arguments["damping"] = damping
        before = {name: cases.cast(value, dtype) for name, value in arguments.items()}
        trajectory, actions, goal_error, defect, largest = step(arguments)
        assert torch.equal(actions, before["actions"])
        assert not largest.any()
        torch.testing.assert_close(trajectory[:, 1:], advanced(arguments, before))
        assert (goal_error > 0).all()
        assert (defect > 0).all()


def test_fewer_actions_than_goals_come_as_near_as_they_can(dtype: torch.dtype) -> None:
    """One number for five features and no damping: the least squares step."""
    arguments = linear(2, 1, 5, 1, dtype)
    slope = arguments["action_jacobian"][:, 0, :, 0].double()
    error = (arguments["prediction"][:, 0] - arguments["goal"]).double()
    best = -(slope * error).sum(-1) / slope.square().sum(-1)
    before = cases.cast(arguments["actions"], torch.float64)
    _, actions, *_ = step(arguments)
    moved = (actions.double() - before).flatten()
    torch.testing.assert_close(moved, best, rtol=1e-4, atol=1e-5)


def test_a_feature_without_weight_has_no_goal(dtype: torch.dtype) -> None:
    results = []
    for goal in (0.0, 1e6):
        arguments = cases.arguments(2, 6, 4, 2, dtype=dtype)
        arguments["goal_weight"] = torch.tensor([1.0, 0.0, 2.0, 0.0], dtype=dtype)
        arguments["goal"][:, 1::2] = goal
        results.append(step(arguments))
    assert all(map(torch.equal, *results))
    arguments["goal_weight"].zero_()  # none at all: the states follow the model, nothing else
    held = arguments["actions"].clone()
    _, actions, goal_error, _, largest = step(arguments)
    assert torch.equal(actions, held)
    assert not torch.cat((goal_error, largest)).any()


# --------------------------------------------------------------------------- memory, empty, broken


def test_no_plans(dtype: torch.dtype) -> None:
    found = step(cases.arguments(0, 4, 3, 2, dtype=dtype))
    assert [tuple(part.shape) for part in found] == [(0, 5, 3), (0, 4, 2), (0,), (0,), (0,)]


def test_strides_and_views_of_what_is_written(dtype: torch.dtype) -> None:
    """Written through strides; a goal that is the last state is read before it moves."""
    plain = cases.arguments(3, 6, 4, 2, hold=2, dtype=dtype)
    plain["goal"] = plain["trajectory"][:, -1].clone()
    strided = {name: cases.cast(value, dtype) for name, value in plain.items()}
    for name in cases.TENSORS:
        wide = torch.full((*plain[name].shape, 2), torch.nan, dtype=dtype)
        wide[..., 1] = plain[name]
        strided[name] = wide[..., 1]
    strided["goal"] = strided["trajectory"][:, -1]
    version = strided["trajectory"]._version, strided["actions"]._version
    expected, found = step(plain), step(strided)
    assert all(map(mlp_cases.same, found, expected))
    assert (strided["trajectory"]._version, strided["actions"]._version) > version


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", [*cases.TENSORS, "damping"])
def test_a_broken_plan_is_alone(dtype: torch.dtype, name: str, bad: float) -> None:
    arguments = cases.arguments(5, 6, 4, 2, hold=2, dtype=dtype)
    spoiled = {key: cases.cast(value, dtype) for key, value in arguments.items()}
    spoiled[name][2].view(-1)[-1] = bad
    others = [0, 1, 3, 4]
    clean, found = step(arguments), step(spoiled)
    assert all(
        mlp_cases.same(one[others], two[others]) for one, two in zip(found, clean, strict=True)
    )
    assert all(part[others].isfinite().all() for part in found)
    if name in ("trajectory", "prediction", "goal"):
        assert not (found[2][2] + found[3][2]).isfinite()  # it is told


def test_nothing_is_recorded_for_autograd() -> None:
    arguments = cases.arguments(1, 2, 2, 1)
    arguments["prediction"].requires_grad_()
    assert not any(part.requires_grad for part in step(arguments))
