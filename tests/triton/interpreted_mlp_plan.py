"""The lifted iterations of an MLP world model, in the interpreter (see test_interpreter.py)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from interpreted_mlp import assert_near, copies, world_model
from torch import Tensor

from grasp_kernels import reference
from grasp_kernels.triton import mlp_lifted_plan_

PLAN_IDS = torch.tensor([3, 2**63 - 1, 2**32])
NAMES = ("trajectory", "actions", "first_moment", "second_moment", "sound")


def problem(
    plans: int = 2,
    steps: int = 3,
    state_features: int = 3,
    action_features: int = 2,
    iterations: int = 2,
    noise: str = "white",
    adam: bool = True,
    bounds: bool = False,
    weighted: bool = False,
    free: bool = False,
    first_step: int = 1,
    **kind: Any,
) -> dict[str, Any]:
    """The arguments of a call by name, in order."""
    shape = (plans, steps, action_features)
    limit = 0.4 + torch.rand(action_features)
    weights, constants, structure = world_model(state_features, action_features, **kind)
    return {
        "trajectory": torch.randn(plans, steps + 1, state_features),
        "actions": 0.5 * torch.randn(shape),
        "first_moment": 0.1 * torch.randn(shape) if adam else None,
        "second_moment": 0.1 * torch.rand(shape) if adam else None,
        "sound": torch.ones(plans, dtype=torch.bool),
        "goal": torch.randn(plans, state_features),
        "schedule": torch.rand(iterations, 2),
        "rates": 0.1 * torch.rand(plans, 3),
        "plan_ids": PLAN_IDS[:plans].clone(),
        "feature_weight": torch.rand(state_features) if weighted else None,
        "low": -limit if bounds else None,
        "high": limit if bounds else None,
        "weights": weights,
        "constants": constants,
        "structure": structure,
        "seed": 2**63 - 5,
        "first_iteration": 4,
        "noise": noise,
        "modes": 3,
        "free_terminal": free,
        "beta1": 0.9,
        "beta2": 0.999,
        "epsilon": 1e-8,
        "first_step": first_step,
    }


def run(p: dict[str, Any], step: Any, dtype: torch.dtype) -> tuple[dict[str, Tensor], Tensor]:
    """What a call makes of copies of the arguments: those it writes, and the history."""
    arguments = dict(zip(p, copies(list(p.values()), dtype), strict=True))
    history = step(*arguments.values())
    return {name: arguments[name] for name in NAMES}, history


def check(p: dict[str, Any]) -> dict[str, Tensor]:
    """Against the float64 reference; returns what was written."""
    found, history = run(p, mlp_lifted_plan_, torch.float32)
    expected, expected_history = run(p, reference.mlp_lifted_plan_, torch.float64)
    assert_near(history, expected_history, 1e-5)
    for name in NAMES[:-1]:
        if found[name] is not None:
            # Adam divides by a root of the second moment, which makes more of a rounding.
            assert_near(found[name], expected[name], 1e-5)
    assert torch.equal(found["sound"], expected["sound"])
    return found


@pytest.mark.parametrize("noise", ["none", "white", "bridge"])
@pytest.mark.parametrize("adam", [False, True])
def test_iterations_equal_the_float64_reference(noise: str, adam: bool) -> None:
    check(problem(noise=noise, adam=adam, bounds=adam, weighted=not adam, free=adam))


@pytest.mark.parametrize(("state_features", "action_features"), [(1, 1), (5, 2), (67, 1), (4, 70)])
def test_odd_sizes(state_features: int, action_features: int) -> None:
    check(problem(2, 2, state_features, action_features, weighted=True, bounds=True))


@pytest.mark.parametrize("noise", ["white", "bridge"])
@pytest.mark.parametrize("steps", [1, 32, 33, 70])
def test_horizons_of_one_step_and_of_several_tiles(steps: int, noise: str) -> None:
    """Tiles go backwards in time: the other way, a tile would start from states already moved."""
    check(problem(1, steps, noise=noise, activations=("relu", "tanh")))


def test_norms_and_simnorm() -> None:
    kinds = ("mish", "simnorm", "simnorm")
    check(problem(widths=(12, 20), activations=kinds, norms=(True, True, False), residual=False))


def test_later_steps_of_adam_and_many_iterations() -> None:
    check(problem(1, 2, iterations=8, first_step=1000))


def test_bounds_are_kept_to_the_last_bit() -> None:
    p = problem(bounds=True, adam=False)
    p["rates"][:, 2] = 1e5
    actions = check(p)["actions"]
    assert ((actions == p["low"]) | (actions == p["high"])).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("where", ["trajectory", "actions", "goal"])
@pytest.mark.filterwarnings("ignore:.*encountered")  # inf - inf, in numpy
def test_a_number_that_is_not_finite_stays_in_its_plan(where: str, bad: float) -> None:
    p = problem(3, 2, iterations=1)
    clean, history = run(p, mlp_lifted_plan_, torch.float32)
    p[where][1, 0] = bad
    found, spoiled = run(p, mlp_lifted_plan_, torch.float32)
    assert found["sound"].tolist() == [True, False, True]
    assert not spoiled[:, 1].isfinite().any()
    assert torch.equal(spoiled[:, [0, 2]], history[:, [0, 2]])
    for name in NAMES:
        assert torch.equal(found[name][[0, 2]], clean[name][[0, 2]])


def test_what_is_not_sound_stays_so() -> None:
    p = problem()
    p["sound"][0] = False
    assert check(p)["sound"].tolist() == [False, True]


def test_a_plan_is_the_same_in_any_batch_and_in_pieces() -> None:
    p = problem(3, 3, iterations=4)
    together, history = run(p, mlp_lifted_plan_, torch.float32)
    per_plan = (*NAMES, "goal", "rates", "plan_ids")
    alone, own = run({**p, **{n: p[n][2:] for n in per_plan}}, mlp_lifted_plan_, torch.float32)
    assert torch.equal(own[:, 0], history[:, 2])
    first, _ = run({**p, "schedule": p["schedule"][:3]}, mlp_lifted_plan_, torch.float32)
    rest = {**p, **first, "schedule": p["schedule"][3:], "first_iteration": 7, "first_step": 4}
    pieces, _ = run(rest, mlp_lifted_plan_, torch.float32)
    for name in NAMES:
        assert torch.equal(alone[name][0], together[name][2])
        assert_near(pieces[name].float(), together[name].double(), 1e-6)


def test_no_plans_and_no_iterations() -> None:
    p = problem()
    nothing = {**p, "schedule": p["schedule"][:0]}
    found, history = run(nothing, mlp_lifted_plan_, torch.float32)
    assert history.shape == (0, 2)
    assert torch.equal(found["trajectory"], p["trajectory"])
    _, history = run(problem(plans=0), mlp_lifted_plan_, torch.float32)
    assert history.shape == (2, 0)
