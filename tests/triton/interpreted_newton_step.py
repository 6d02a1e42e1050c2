"""The lifted Gauss-Newton step, in the interpreter (see test_interpreter.py)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from interpreted_mlp import assert_near, copies
from torch import Tensor

from grasp_kernels import reference
from grasp_kernels.triton import lifted_newton_step_, newton_fits

NAMES = ("trajectory", "actions", "goal_error", "defect", "step")
PER_PLAN = (
    "trajectory", "actions", "prediction", "state_jacobian", "action_jacobian", "goal", "damping",
)  # fmt: skip


def problem(
    plans: int = 2,
    steps: int = 3,
    features: int = 3,
    width: int = 2,
    hold: int = 2,
    damping: float = 0.1,
    weighted: bool = False,
    bounds: float | None = None,
    max_action_step: float = torch.inf,
    max_state_step: float = torch.inf,
    solves: int = 2,
) -> dict[str, Any]:
    """The arguments of a call by name, in order. `bounds` is how far from 0; actions keep to it."""
    actions = 0.7 * torch.randn(plans, -(-steps // hold), width)
    if bounds is not None:
        actions = actions.clamp(-bounds, bounds)
    jacobian = torch.eye(features) + 0.3 * torch.randn(plans, steps, features, features)
    weight = torch.rand(features)
    weight[features // 2 :: 3] = 0.0
    return {
        "trajectory": torch.randn(plans, steps + 1, features),
        "actions": actions.repeat_interleave(hold, 1)[:, :steps].contiguous(),
        "prediction": torch.randn(plans, steps, features),
        "state_jacobian": 0.8 * jacobian / max(1.0, 0.3 * features**0.5),
        "action_jacobian": torch.randn(plans, steps, features, width) / width**0.5,
        "goal": torch.randn(plans, features),
        "damping": damping * (0.5 + torch.rand(plans)),
        "goal_weight": weight if weighted else None,
        "low": None if bounds is None else torch.full((width,), -bounds),
        "high": None if bounds is None else torch.full((width,), bounds),
        "hold": hold,
        "max_action_step": max_action_step,
        "max_state_step": max_state_step,
        "solves": solves,
    }


def run(p: dict[str, Any], step: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    """What a call makes of copies of the arguments."""
    arguments = dict(zip(p, copies(list(p.values()), dtype), strict=True))
    met = step(*arguments.values())
    return dict(zip(NAMES, (arguments["trajectory"], arguments["actions"], *met), strict=True))


def check(p: dict[str, Any], tolerance: float = 1e-5) -> dict[str, Tensor]:
    """Against the float64 reference; returns what was found."""
    found = run(p, lifted_newton_step_, torch.float32)
    expected = run(p, reference.lifted_newton_step_, torch.float64)
    for name in NAMES:
        assert_near(found[name], expected[name], tolerance)
    return found


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("bounds", [None, 0.5])
def test_a_step_equals_the_float64_reference(weighted: bool, bounds: float | None) -> None:
    check(problem(weighted=weighted, bounds=bounds))


@pytest.mark.parametrize(("steps", "hold"), [(1, 1), (1, 5), (3, 1), (4, 4), (4, 9), (5, 2)])
def test_blocks_of_any_length(steps: int, hold: int) -> None:
    check(problem(steps=steps, hold=hold))


@pytest.mark.parametrize(("features", "width"), [(1, 1), (16, 16), (17, 1), (5, 17), (40, 33)])
def test_odd_and_large_sizes(features: int, width: int) -> None:
    check(problem(1, 2, features, width, weighted=features > 1, bounds=0.6))


@pytest.mark.parametrize("damping", [0.0, 1e-4, 10.0])
def test_little_and_much_damping(damping: float) -> None:
    """With none, `S S^T` has a condition near the inverse of the jitter: float32 would be lost."""
    check(problem(1, 8, damping=damping), 1e-4 if damping < 1e-3 else 1e-5)


@pytest.mark.parametrize("solves", [1, 2, 3])
def test_actions_at_a_bound_are_left_out_and_the_rest_solved_again(solves: int) -> None:
    p = problem(steps=4, bounds=0.3, solves=solves, max_action_step=0.2)
    found = check(p)
    assert (found["actions"].abs() <= 0.3).all()
    assert not torch.equal(found["actions"], p["actions"])
    if solves > 1:
        once = run({**p, "solves": 1}, lifted_newton_step_, torch.float32)
        assert not torch.equal(found["actions"], once["actions"])


def test_steps_are_limited() -> None:
    p = problem(damping=0.0, max_action_step=0.05, max_state_step=0.1)
    found = check(p)
    moved = (found["trajectory"] - p["trajectory"]).abs()
    assert 0.0999 < float(moved.max()) < 0.1001
    assert 0.0499 < float(found["step"].max()) < 0.0501
    assert torch.equal(found["trajectory"][:, 0], p["trajectory"][:, 0])


def test_actions_without_influence_do_not_move() -> None:
    p = problem(damping=0.0)
    p["action_jacobian"][0] = 0.0
    found = check(p)
    assert torch.equal(found["actions"][0], p["actions"][0])
    assert not torch.equal(found["actions"][1], p["actions"][1])
    nothing_weighed = check({**p, "goal_weight": torch.zeros(3)})
    assert torch.equal(nothing_weighed["actions"], p["actions"])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.filterwarnings("ignore:.*encountered")  # inf - inf, in numpy
def test_a_number_that_is_not_finite_stays_in_its_plan(bad: float) -> None:
    """Each plan but the last has one, every one in another argument."""
    p = problem(len(PER_PLAN) + 1, steps=2, hold=1, bounds=0.5)
    for plan, name in enumerate(PER_PLAN):
        p[name][plan].view(-1)[-1] = bad
    found = run(p, lifted_newton_step_, torch.float32)
    last = {**p, **{name: p[name][-1:] for name in PER_PLAN}}
    alone = run(last, lifted_newton_step_, torch.float32)
    for name in NAMES:
        assert torch.equal(found[name][-1:], alone[name])
        assert found[name][-1].isfinite().all()
    for plan, name in enumerate(PER_PLAN):
        sound = all(found[n][plan].isfinite().all() for n in NAMES)
        assert not sound or name == "damping", name  # much of it only stops the actions


def test_a_plan_is_the_same_in_any_batch() -> None:
    p = problem(3, 2, weighted=True, bounds=0.5)
    together = run(p, lifted_newton_step_, torch.float32)
    alone = run({**p, **{n: p[n][2:] for n in PER_PLAN}}, lifted_newton_step_, torch.float32)
    for name in NAMES:
        assert torch.equal(alone[name][0], together[name][2])


def test_no_plans() -> None:
    found = run(problem(0), lifted_newton_step_, torch.float32)
    assert [found[name].shape for name in NAMES[2:]] == [(0,)] * 3


def test_sizes_that_fit() -> None:
    assert newton_fits(64, 64)
    assert not newton_fits(65, 1)
    assert not newton_fits(1, 65)
