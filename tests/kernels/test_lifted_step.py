"""The fused state step against METHOD's formula: odd shapes, strides, slices, aliases, broken
plans.
"""

from __future__ import annotations

from typing import Any

import kernel_cases as cases
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grasp_kernels import lifted_step_
from grasp_kernels.testing import assert_close

SHAPES = [(1, 1, 1), (2, 1, 5), (1, 7, 1), (3, 5, 7), (4, 3, 64), (2, 2, 131), (1, 2, 1030)]
SETTINGS: dict[str, Any] = {
    "state_lr": 0.25,
    "goal_weight": 0.1,
    "noise_scale": 0.05,
    "seed": 2**63 + 5,
    "iteration": 3,
}


def step(trajectory, prediction, goal, **changes: Any):
    """(trajectory after, loss per step, cotangent), of copies."""
    moved = trajectory.clone()
    loss, cotangent = lifted_step_(
        moved, prediction, goal, **{**SETTINGS, "per_step": True, **changes}
    )
    return moved, loss, cotangent


def everything(result) -> list[torch.Tensor]:
    moved, loss, cotangent = result
    return [moved, *loss, cotangent]


def all_same_bits(one, other) -> bool:
    return all(
        cases.same_bits(a, b) for a, b in zip(everything(one), everything(other), strict=True)
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("terminal", "noise"), [("fixed", "white"), ("free", "bridge"), ("free", "none")]
)
def test_against_the_formula(dtype, shape, terminal, noise) -> None:
    plans, steps, features = shape
    trajectory, prediction, goal = cases.inputs(*shape, dtype)
    ids = torch.arange(plans) * (2**61 + 7) + 1
    changes = {"terminal": terminal, "noise": noise, "plan_ids": ids}
    moved, loss, cotangent = step(trajectory, prediction, goal, **changes)
    xi = cases.noise(
        ids.tolist(),
        list(range(1, steps + 1)),
        features,
        seed=SETTINGS["seed"],
        iteration=3,
        noise=noise,
        horizon=steps,
    )
    expected = cases.step(
        trajectory,
        prediction,
        goal,
        state_lr=0.25,
        goal_weight=0.1,
        noise_scale=0.05,
        xi=xi,
        free=terminal == "free",
    )
    assert_close(moved, expected["trajectory"], "lifted_step_", magnitude=1.0)
    assert_close(cotangent, expected["cotangent"], "lifted_step_", magnitude=1.0)
    for name in ("dynamics", "goal", "total"):
        assert_close(getattr(loss, name), expected[name], "lifted_loss")
    assert cotangent.dtype == dtype
    assert cotangent.shape == prediction.shape
    assert cases.same_bits(moved[:, 0], trajectory[:, 0])
    last_moved = not cases.same_bits(moved[:, -1], trajectory[:, -1])
    assert last_moved == (terminal == "free")


def test_weights_state_gradient_and_per_plan_numbers(dtype) -> None:
    plans, steps, features = 3, 5, 37
    trajectory, prediction, goal = cases.inputs(plans, steps, features, dtype)
    state_gradient = torch.randn(plans, steps + 1, features).to(dtype)
    state_gradient[:, 0] = torch.nan  # its row 0 is ignored
    w, v = torch.rand(features), torch.rand(steps)
    numbers = {
        "state_lr": torch.tensor([0.1, 0.2, 0.0]),
        "goal_weight": torch.tensor([0.0, 0.5, 1.0]),
        "noise_scale": torch.tensor([0.3, 0.0, 0.1]),
    }
    moved, loss, cotangent = step(
        trajectory,
        prediction,
        goal,
        feature_weight=w,
        time_weight=v,
        state_gradient=state_gradient,
        state_gradient_scale=0.3,
        **numbers,
    )
    xi = cases.noise(
        [0, 1, 2], list(range(1, steps + 1)), features, seed=SETTINGS["seed"], iteration=3
    )
    expected = cases.step(
        trajectory,
        prediction,
        goal,
        xi=xi,
        w=w,
        v=v,
        state_gradient=state_gradient,
        state_gradient_scale=0.3,
        **numbers,
    )
    assert_close(moved, expected["trajectory"], "lifted_step_", magnitude=1.0)
    assert_close(cotangent, expected["cotangent"], "lifted_step_", magnitude=1.0)
    assert_close(loss.total, expected["total"], "lifted_loss")


def test_per_plan_tensors_equal_separate_calls_with_numbers(dtype) -> None:
    trajectory, prediction, goal = cases.inputs(3, 4, 13, dtype)
    numbers = {
        "state_lr": [0.1, 0.25, 0.0],
        "goal_weight": [0.0, 0.5, 1.0],
        "noise_scale": [0.3, 0.0, 0.1],
    }
    together = step(
        trajectory,
        prediction,
        goal,
        **{name: torch.tensor(v, dtype=torch.float64) for name, v in numbers.items()},
    )
    for n in range(3):
        alone = step(
            trajectory[n : n + 1],
            prediction[n : n + 1],
            goal[n : n + 1],
            plan_ids=torch.tensor([n]),
            **{name: v[n] for name, v in numbers.items()},
        )
        for a, b in zip(everything(alone), everything(together), strict=True):
            assert cases.same_bits(a[0], b[n])


def test_numbers_may_be_scalar_tensors_and_expanded_tensors(dtype) -> None:
    trajectory, prediction, goal = cases.inputs(3, 4, 5, dtype)
    names = ("state_lr", "goal_weight", "noise_scale")
    plain = step(trajectory, prediction, goal, **dict.fromkeys(names, 0.5))
    scalar = step(trajectory, prediction, goal, **{n: torch.tensor(0.5) for n in names})
    expanded = step(
        trajectory, prediction, goal, **{n: torch.tensor([0.5]).expand(3) for n in names}
    )
    wide = step(trajectory, prediction, goal, **{n: torch.full((3,), 0.5).double() for n in names})
    assert all_same_bits(plain, scalar)
    assert all_same_bits(plain, expanded)
    assert all_same_bits(plain, wide)


def test_without_noise_the_states_are_bit_exactly_unnoised(dtype) -> None:
    trajectory, prediction, goal = cases.inputs(2, 4, 9, dtype)
    still = step(trajectory, prediction, goal, noise="none", noise_scale=3.0)
    for kind in ("white", "bridge"):
        assert all_same_bits(step(trajectory, prediction, goal, noise=kind, noise_scale=0.0), still)


def test_row_zero_and_the_fixed_row_keep_their_bits(dtype) -> None:
    """Also where their bits are NaN, -0.0 or infinite."""
    trajectory, prediction, goal = cases.inputs(1, 3, 4, dtype)
    special = torch.tensor([torch.nan, -0.0, torch.inf, -torch.inf], dtype=dtype)
    trajectory[0, 0] = trajectory[0, -1] = special
    before = trajectory.clone()
    moved, _, _ = step(trajectory, prediction, goal)
    assert cases.same_bits(moved[:, [0, -1]], before[:, [0, -1]])
    assert not cases.same_bits(moved[:, 1], before[:, 1])


@pytest.mark.parametrize("noise", ["white", "bridge"])
def test_slices_are_the_whole_to_the_last_bit(dtype, noise) -> None:
    """Any cut in plans and time, last rows first as a planner would go, in place on the whole."""
    plans, steps, features = 4, 9, 21
    trajectory, prediction, goal = cases.inputs(plans, steps, features, dtype)
    state_gradient = torch.randn(plans, steps + 1, features).to(dtype)
    ids = torch.tensor([3, 2**62, 0, 17])
    v = torch.rand(steps)
    for terminal in ("fixed", "free"):
        settings = {
            "noise": noise,
            "terminal": terminal,
            "plan_ids": ids,
            "time_weight": v,
            "state_gradient": state_gradient,
            "state_gradient_scale": 0.5,
        }
        whole = step(trajectory, prediction, goal, **settings)
        for cut, batch in ((1, 4), (2, 1), (4, 3), (9, 2)):
            moved = trajectory.clone()
            rows = torch.empty(3, plans, steps, dtype=whole[1].total.dtype)
            cotangent = torch.empty_like(prediction)
            for n in range(0, plans, batch):
                for last in range(steps, 0, -cut):
                    first, some = max(last - cut, 0), slice(n, n + batch)
                    loss, part = lifted_step_(
                        moved[some, first : last + 1],
                        prediction[some, first:last],
                        goal[some],
                        **{
                            **SETTINGS,
                            **settings,
                            "plan_ids": ids[some],
                            "time_weight": v[first:last],
                            "state_gradient": state_gradient[some, first : last + 1],
                        },
                        first_step=first,
                        horizon=steps,
                        per_step=True,
                    )
                    for i in range(3):
                        rows[i, some, first:last] = loss[i]
                    cotangent[some, first:last] = part
            assert cases.same_bits(moved, whole[0])
            assert cases.same_bits(cotangent, whole[2])
            for i in range(3):
                assert cases.same_bits(rows[i], whole[1][i])


@settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    plans=st.integers(1, 5),
    steps=st.integers(1, 6),
    features=st.integers(1, 40),
    storage=st.sampled_from(cases.FUSED_DTYPES),
    data=st.data(),
)
def test_permuting_plans_permutes_results(backend, plans, steps, features, storage, data) -> None:
    trajectory, prediction, goal = cases.inputs(plans, steps, features, storage, seed=features)
    ids = torch.randint(2**63 - 1, (plans,))
    order = torch.tensor(data.draw(st.permutations(range(plans))))
    some = order[: data.draw(st.integers(1, plans))]
    whole = step(trajectory, prediction, goal, plan_ids=ids)
    part = step(trajectory[some], prediction[some], goal[some], plan_ids=ids[some])
    for a, b in zip(everything(part), everything(whole), strict=True):
        assert cases.same_bits(a, b[some])


@pytest.mark.parametrize("shape", [(5, 13, 67), (1, 1, 70_001), (2, 2, 40_000)])
def test_thread_count_does_not_matter(backend, shape) -> None:
    before = torch.get_num_threads()
    inputs = cases.inputs(*shape, torch.float32)
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(step(*inputs))
    finally:
        torch.set_num_threads(before)
    assert all_same_bits(results[0], results[1])


def test_one_wide_row_alone_is_the_row_of_the_batch(backend) -> None:
    """One plan of one step is where a reduction is tempted to split the row over threads."""
    inputs = cases.inputs(2, 2, 70_001, torch.float32)
    whole = step(*inputs, terminal="free")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        alone = step(
            inputs[0][:1, :2], inputs[1][:1, :1], inputs[2][:1], horizon=2, terminal="free"
        )
    finally:
        torch.set_num_threads(before)
    assert all(
        cases.same_bits(a[0, 0], b[0, 0])
        for a, b in zip(everything(alone), everything(whole), strict=True)
    )


# --------------------------------------------------------------------------- memory: strides, views


def test_any_strides(dtype) -> None:
    plans, steps, features = 3, 4, 10
    trajectory, prediction, goal = cases.inputs(plans, steps, features, dtype)
    state_gradient = torch.randn(plans, steps + 1, features).to(dtype)
    w, v = torch.rand(features), torch.rand(steps)
    ids = torch.tensor([5, 2**40, 1])
    settings = {"state_gradient_scale": 0.5, "terminal": "free"}
    expected = step(
        trajectory,
        prediction,
        goal,
        state_gradient=state_gradient,
        feature_weight=w,
        time_weight=v,
        plan_ids=ids,
        **settings,
    )

    def spread(tensor: torch.Tensor) -> torch.Tensor:
        """The same values, two apart along every axis of a larger, NaN-filled block."""
        filler = torch.nan if tensor.is_floating_point() else -1
        block = tensor.new_full([2 * n + 1 for n in tensor.shape], filler)
        view = block[tuple(slice(1, None, 2) for _ in tensor.shape)]
        view.copy_(tensor)
        return view

    def turned(tensor: torch.Tensor) -> torch.Tensor:
        order = list(reversed(range(tensor.dim())))
        return tensor.permute(order).contiguous().permute(order)

    for change in (spread, turned):
        view = change(trajectory)
        loss, cotangent = lifted_step_(
            view,
            change(prediction),
            change(goal),
            state_gradient=change(state_gradient),
            feature_weight=change(w),
            time_weight=change(v),
            plan_ids=change(ids),
            per_step=True,
            **SETTINGS,
            **settings,
        )
        assert all_same_bits((view, loss, cotangent), expected)


def test_only_its_own_memory_is_written(dtype) -> None:
    """A slice in plans, time and features of a larger block; all around it stays as it was."""
    block = torch.randn(6, 12, 20).to(dtype)
    view = block[1:4, 3:9, 5:18]
    _, prediction, goal = cases.inputs(3, 5, 13, dtype)
    expected = step(view, prediction, goal, terminal="free")
    before = block.clone()
    lifted_step_(view, prediction, goal, terminal="free", **SETTINGS)
    assert cases.same_bits(view, expected[0])
    before[1:4, 3:9, 5:18] = expected[0]
    assert cases.same_bits(block, before)


def test_prediction_may_be_a_view_of_the_trajectory(dtype) -> None:
    """The identity model: its prediction is its input, which the step overwrites."""
    trajectory, _, goal = cases.inputs(2, 5, 7, dtype)
    expected = step(trajectory, trajectory[:, :-1].clone(), goal)
    moved = trajectory.clone()
    loss, cotangent = lifted_step_(moved, moved[:, :-1], goal, per_step=True, **SETTINGS)
    assert all_same_bits((moved, loss, cotangent), expected)


@pytest.mark.parametrize("terminal", ["fixed", "free"])
def test_goal_may_be_a_view_of_the_trajectory(dtype, terminal) -> None:
    trajectory, prediction, _ = cases.inputs(2, 5, 7, dtype)
    expected = step(trajectory, prediction, trajectory[:, -1].clone(), terminal=terminal)
    moved = trajectory.clone()
    loss, cotangent = lifted_step_(
        moved, prediction, moved[:, -1], terminal=terminal, per_step=True, **SETTINGS
    )
    assert all_same_bits((moved, loss, cotangent), expected)


def test_weights_numbers_and_state_gradient_may_be_views_of_the_trajectory(backend) -> None:
    trajectory, prediction, goal = cases.inputs(5, 5, 5, torch.float32)
    given = {
        "feature_weight": lambda x: x[0, 1],
        "time_weight": lambda x: x[0, 1],
        "state_lr": lambda x: x[:, 1, 0],
        "state_gradient": lambda x: x,
    }
    for name, take in given.items():
        extra = {"state_gradient_scale": 0.5} if name == "state_gradient" else {}
        expected = step(trajectory, prediction, goal, **{name: take(trajectory.clone())}, **extra)
        moved = trajectory.clone()
        settings = {**SETTINGS, **extra, name: take(moved)}
        loss, cotangent = lifted_step_(moved, prediction, goal, per_step=True, **settings)
        assert all_same_bits((moved, loss, cotangent), expected), name


def test_inputs_other_than_the_trajectory_are_only_read(dtype) -> None:
    trajectory, prediction, goal = cases.inputs(2, 3, 5, dtype)
    state_gradient = torch.randn(2, 4, 5).to(dtype)
    given = [prediction, goal, state_gradient]
    before = [t.clone() for t in given]
    step(trajectory, prediction, goal, state_gradient=state_gradient, state_gradient_scale=1.0)
    assert all(cases.same_bits(a, b) for a, b in zip(given, before, strict=True))


def test_writing_is_seen_by_autograd(dtype) -> None:
    """A graph that saved the old states must fail, not silently use the new ones."""
    trajectory, _, goal = cases.inputs(1, 3, 4, dtype)
    action = torch.ones(1, 3, 4, dtype=dtype, requires_grad=True)
    states = trajectory[:, :-1]
    prediction = states * action  # saves `states` for the way back
    version = trajectory._version
    lifted_step_(trajectory, prediction.detach(), goal, **SETTINGS)
    assert trajectory._version > version
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        prediction.sum().backward()


# --------------------------------------------------------------------------- broken plans, no plans


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", ["trajectory", "prediction", "goal", "noise_scale"])
def test_a_broken_plan_breaks_no_other(dtype, bad, where) -> None:
    trajectory, prediction, goal = cases.inputs(4, 3, 19, dtype)
    scale = torch.full((4,), 0.05)
    sound = step(trajectory, prediction, goal, noise_scale=scale)
    broken = {"trajectory": trajectory, "prediction": prediction, "goal": goal}
    broken = {name: t.clone() for name, t in broken.items()}
    if where == "noise_scale":
        scale = scale.clone()
        scale[2] = bad
    else:
        broken[where][2].view(-1)[25 if where == "trajectory" else 3] = bad  # not in row 0
    found = step(**broken, noise_scale=scale)
    others = torch.tensor([0, 1, 3])
    for a, b in zip(everything(found), everything(sound), strict=True):
        assert cases.same_bits(a[others], b[others])
    if where == "noise_scale":
        assert not torch.isfinite(found[0][2, 1:-1]).any()
    else:
        assert not torch.isfinite(found[1].total[2]).all()
        assert not torch.isfinite(found[2][2]).all()


def test_non_finite_numbers_go_where_the_formula_sends_them(dtype) -> None:
    """Nothing is assumed finite: infinities and NaNs stand where IEEE arithmetic has them."""
    trajectory, prediction, goal = cases.inputs(2, 4, 9, dtype)
    prediction[0, 1, 2], trajectory[0, 2, 3], goal[1, 4] = torch.inf, torch.nan, -torch.inf
    moved, loss, cotangent = step(trajectory, prediction, goal, noise="none")
    expected = cases.step(trajectory, prediction, goal, state_lr=0.25, goal_weight=0.1)
    assert_close(moved, expected["trajectory"], "lifted_step_", magnitude=1.0)
    assert_close(cotangent, expected["cotangent"], "lifted_step_", magnitude=1.0)
    assert_close(loss.dynamics, expected["dynamics"], "lifted_loss")
    assert_close(loss.goal, expected["goal"], "lifted_loss")


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0)])
@pytest.mark.parametrize("noise", ["white", "bridge", "none"])
def test_empty_sizes(dtype, shape, noise) -> None:
    trajectory, prediction, goal = cases.inputs(*shape, dtype)
    before = trajectory.clone()
    loss, cotangent = lifted_step_(trajectory, prediction, goal, noise=noise, **SETTINGS)
    assert cases.same_bits(trajectory, before)
    assert cotangent.shape == shape
    assert loss.total.shape == shape[:1]
    assert not loss.total.any()
    assert not loss.dynamics.any()
