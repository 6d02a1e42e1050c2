"""The sync phase of an MLP world model, in the interpreter (see test_interpreter.py)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from interpreted_mlp import assert_near, copies, world_model
from torch import Tensor

from grasp_kernels import reference
from grasp_kernels.triton import mlp_rollout, mlp_sync_

NAMES = ("trajectory", "actions", "best_cost", "best_actions", "best_states", "sound")


def problem(
    plans: int = 2,
    horizon: int = 3,
    state_features: int = 3,
    action_features: int = 2,
    steps: int = 2,
    adam: bool = True,
    bounds: bool = False,
    weighted: bool = False,
    free: bool = False,
    blend: float = 0.3,
    stop_cost: float = 0.0,
    **kind: Any,
) -> dict[str, Any]:
    """The arguments of a call by name, in order; no plan has a best yet."""
    actions = 0.5 * torch.randn(plans, horizon, action_features)
    trajectory = torch.randn(plans, horizon + 1, state_features)
    limit = 0.4 + torch.rand(action_features)
    weights, constants, structure = world_model(state_features, action_features, **kind)
    return {
        "trajectory": trajectory,
        "actions": actions,
        "best_cost": torch.full((plans,), torch.inf),
        "best_actions": torch.zeros_like(actions),
        "best_states": torch.zeros_like(trajectory),
        "sound": torch.ones(plans, dtype=torch.bool),
        "start": torch.randn(plans, state_features),
        "goal": torch.randn(plans, state_features),
        "lr": 0.03 * torch.rand(plans),
        "cost_weight": torch.rand(state_features) if weighted else None,
        "low": -limit if bounds else None,
        "high": limit if bounds else None,
        "weights": weights,
        "constants": constants,
        "structure": structure,
        "steps": steps,
        "adam": adam,
        "beta1": 0.9,
        "beta2": 0.999,
        "epsilon": 1e-8,
        "stop_cost": stop_cost,
        "blend": blend,
        "free_terminal": free,
    }


def run(p: dict[str, Any], sync: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    """What a call makes of copies of the arguments."""
    arguments = dict(zip(p, copies(list(p.values()), dtype), strict=True))
    sync(*arguments.values())
    return {name: arguments[name] for name in NAMES}


def check(p: dict[str, Any]) -> dict[str, Tensor]:
    """Against the float64 reference; returns what was written."""
    found = run(p, mlp_sync_, torch.float32)
    expected = run(p, reference.mlp_sync_, torch.float64)
    for name in NAMES[:-1]:
        assert_near(found[name], expected[name], 2e-5)
    assert torch.equal(found["sound"], expected["sound"])
    return found


@pytest.mark.parametrize("adam", [False, True])
@pytest.mark.parametrize("free", [False, True])
def test_steps_equal_the_float64_reference(adam: bool, free: bool) -> None:
    check(problem(adam=adam, free=free, bounds=adam, weighted=free))


@pytest.mark.parametrize(("state_features", "action_features"), [(1, 1), (5, 2), (67, 1)])
def test_odd_sizes_and_one_step(state_features: int, action_features: int) -> None:
    check(problem(2, 1, state_features, action_features, weighted=True, bounds=True))


def test_norms_and_simnorm() -> None:
    kinds = ("mish", "simnorm", "tanh")
    check(problem(widths=(12, 20), activations=kinds, norms=(True, True, False), residual=False))


def test_more_plans_than_rows_of_a_program() -> None:
    check(problem(plans=18, activations=("tanh", "tanh")))


@pytest.mark.parametrize("blend", [0.0, 0.7, 1.0])
def test_the_trajectory_moves_towards_the_rollout(blend: float) -> None:
    p = problem(blend=blend, steps=0, free=True)
    if blend == 1:
        p["trajectory"][0, 2] = torch.nan
    trajectory = check(p)["trajectory"]
    assert torch.equal(trajectory[:, 0], p["trajectory"][:, 0])
    if blend == 0:
        assert torch.equal(trajectory, p["trajectory"])
    if blend == 1:
        model = p["weights"], p["constants"], p["structure"]
        rollout = mlp_rollout(p["start"], p["actions"], *model)
        assert torch.equal(trajectory[:, 1:], rollout[:, 1:])


def test_only_what_is_cheaper_is_kept_and_what_is_done_does_not_move() -> None:
    p = problem()
    costs = check({**p, "steps": 0})["best_cost"]
    p["best_cost"] = costs * torch.tensor([0.01, 10.0])
    found = check({**p, "lr": torch.full((2,), 1e-4)})
    assert found["best_cost"][0] == p["best_cost"][0]
    assert (found["best_states"][0] == 0).all()
    assert found["best_cost"][1] <= costs[1]
    done = check({**p, "stop_cost": float(p["best_cost"][0])})
    assert torch.equal(done["actions"][0], p["actions"][0])
    assert not torch.equal(done["actions"][1], p["actions"][1])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("where", ["actions", "start", "goal"])
@pytest.mark.filterwarnings("ignore:.*encountered")  # inf - inf, in numpy
def test_a_number_that_is_not_finite_stays_in_its_plan(where: str, bad: float) -> None:
    p = problem(3, horizon=2, steps=1)
    clean = run(p, mlp_sync_, torch.float32)
    p[where][1, 0] = bad
    found = run(p, mlp_sync_, torch.float32)
    assert found["sound"].tolist() == [True, False, True]
    for name in NAMES:
        assert torch.equal(found[name][[0, 2]], clean[name][[0, 2]])
    for name in ("trajectory", "best_cost", "best_actions", "best_states"):
        assert torch.equal(found[name][1], p[name][1])


def test_a_plan_is_the_same_in_any_batch() -> None:
    p = problem(3)
    together = run(p, mlp_sync_, torch.float32)
    alone = run({**p, **{n: p[n][2:] for n in (*NAMES, "start", "goal", "lr")}}, mlp_sync_,
                torch.float32)  # fmt: skip
    for name in NAMES:
        assert torch.equal(alone[name][0], together[name][2])


def test_no_plans() -> None:
    run(problem(plans=0), mlp_sync_, torch.float32)
