"""`mlp_jacobians` and `lifted_newton_step_` on CPU: values, bits, broken numbers, instructions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from kernels import mlp_cases
from kernels import newton_cases as cases

from grasp_kernels import MLPDynamics, mlp_jacobians, native, reference
from grasp_kernels.testing import assert_close

from .conftest import in_float64, same_bits
from .mlp_results import NARROW, exact
from .test_build import python

JACOBIANS, STEP = "mlp_jacobians", "lifted_newton_step_"

# M, D, A, widths: tiles of rows and of unit cotangents that are full, short, and one more.
MODELS = [
    (1, 1, 1, (1,)),
    (57, 3, 1, (17,)),
    (56, 4, 2, (128, 33)),
    (200, 5, 3, ()),
    (9, 67, 5, (20, 32)),
    (30, 12, 20, (33,)),
]
# N, T, D, A, hold
PLANS = [
    (1, 1, 1, 1, 1),
    (5, 7, 4, 2, 3),
    (3, 80, 4, 2, 5),
    (2, 9, 17, 33, 2),
    (2, 13, 22, 20, 20),
    (1, 130, 3, 1, 1),
    (2, 5, 33, 1, 2),
]


def rows(count: int, dynamics: MLPDynamics) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(count)
    sizes = dynamics.state_features, dynamics.action_features
    state, action = (torch.randn(count, size, generator=generator) for size in sizes)
    return state, action


def jacobians(count: int, dynamics: MLPDynamics) -> Any:
    """The results of poisoned outputs, and the float64 reference."""
    state, action = rows(count, dynamics)
    packed = dynamics.packed()
    truth = reference.mlp_jacobians(state.double(), action.double(), *exact(packed))
    found = [torch.full(part.shape, torch.nan) for part in truth]
    native._ops().mlp_jacobians(state, action, *packed, *found)
    return found, truth


def step(given: dict[str, Any], run: Any = native.lifted_newton_step_) -> list[torch.Tensor]:
    """What is returned and what is written; `given` stays."""
    arguments = cases.positional(given)
    return [*run(*arguments), *arguments[:2]]


def step_in_float64(given: dict[str, Any]) -> list[torch.Tensor]:
    wide = {name: in_float64(value) for name, value in given.items()}
    return step(wide, reference.lifted_newton_step_)


# ------------------------------------------------------------------------------------------ values


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("shape", MODELS, ids=str)
def test_jacobians_at_odd_shapes(shape: tuple[Any, ...], norm: bool) -> None:
    count, features, actions, widths = shape
    dynamics = mlp_cases.model(features, actions, widths, norm=norm, residual=True)
    for part, truth in zip(*jacobians(count, dynamics), strict=True):
        assert_close(part, truth, JACOBIANS)


@pytest.mark.parametrize("activation", mlp_cases.ACTIVATIONS)
def test_jacobians_through_bfloat16_products(activation: str) -> None:
    """Where both round the same way: a sum may land on the other side, seldom and by one ulp."""
    dynamics = mlp_cases.model(6, 2, (24, 16), activation=activation, dtype=NARROW)
    state, action = rows(40, dynamics)
    packed = dynamics.packed()
    found = native.mlp_jacobians(state, action, *packed)
    plain = reference.mlp_jacobians(state, action, *packed)
    for part, other in zip(found, plain, strict=True):
        error = (part - other).abs() / other.square().mean().sqrt()
        assert float(error.max()) <= 2.0**-7
        assert float(error.mean()) <= 2.0**-13


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", PLANS, ids=str)
def test_steps_at_odd_shapes(shape: tuple[int, ...], weighted: bool) -> None:
    *sizes, hold = shape
    weight = (torch.arange(sizes[2]) + 1) % 3 * 0.4 if weighted else None
    given = cases.arguments(*sizes, hold=hold, goal_weight=weight)
    for part, truth in zip(step(given), step_in_float64(given), strict=True):
        assert_close(part, truth, STEP)


def test_a_step_writes_all_that_it_returns() -> None:
    given = cases.arguments(3, 6, 4, 2)
    poisoned = [torch.full((3,), torch.nan) for _ in range(3)]
    native._ops().lifted_newton_step_(*cases.positional(given), *poisoned)
    assert all(map(same_bits, poisoned, step(given)))


# -------------------------------------------------------------------------------------------- bits


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, NARROW])
@pytest.mark.parametrize("features", [1, 4, 13, 67])
def test_a_row_alone_has_the_bits_of_the_batch(
    features: int, dtype: torch.dtype, norm: bool
) -> None:
    dynamics = mlp_cases.model(features, 2, (33, 20), norm=norm, dtype=dtype)
    state, action = rows(130, dynamics)
    torch.set_num_threads(1)
    whole = mlp_jacobians(dynamics, state, action)
    for threads in (2, 3):
        torch.set_num_threads(threads)
        assert all(map(same_bits, mlp_jacobians(dynamics, state, action), whole))
    for some in ([0], [77], [129], list(range(3)), list(range(11, 90)), [59, 7, 31]):
        part = mlp_jacobians(dynamics, state[some], action[some])
        assert all(same_bits(one, all_of[some]) for one, all_of in zip(part, whole, strict=True))


@pytest.mark.parametrize("shape", [(40, 7, 4, 2, 3), (9, 30, 19, 5, 4)], ids=str)
def test_a_plan_alone_has_the_bits_of_the_batch(shape: tuple[int, ...]) -> None:
    *sizes, hold = shape
    given = cases.arguments(*sizes, hold=hold)
    torch.set_num_threads(1)
    whole = step(given)
    torch.set_num_threads(3)
    assert all(map(same_bits, step(given), whole))
    for some in ([0], [sizes[0] - 1], [3, 5, 1]):
        chosen = {
            name: value[some] if name in (*cases.TENSORS, "damping") else value
            for name, value in given.items()
        }
        for one, all_of in zip(step(chosen), whole, strict=True):
            assert same_bits(one, all_of[some])


# ---------------------------------------------------------------------------------- broken numbers


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(("features", "widths"), [(3, (8,)), (12, (33, 20)), (67, ())])
@pytest.mark.parametrize("activation", ["mish", "simnorm", "relu"])
def test_a_broken_row_is_alone(
    activation: str, features: int, widths: tuple[int, ...], bad: float
) -> None:
    """Among rows of several tiles, whose unit cotangents share a product."""
    for norm in (False, True):
        dynamics = mlp_cases.model(features, 2, widths, activation=activation, norm=norm)
        state, action = rows(130, dynamics)
        clean = mlp_jacobians(dynamics, state, action)
        state[57, 0] = bad
        others = torch.arange(130) != 57
        for one, part in zip(mlp_jacobians(dynamics, state, action), clean, strict=True):
            assert part.isfinite().all()
            assert same_bits(one[others], part[others])


@pytest.mark.parametrize("bad", [float("nan"), float("-inf"), 3e38])
@pytest.mark.parametrize("name", [*cases.TENSORS, "damping"])
def test_a_broken_plan_is_alone(name: str, bad: float) -> None:
    """Overflows on the way too. One thread: scratch is that of the plan before."""
    torch.set_num_threads(1)
    given = cases.arguments(5, 9, 6, 3, hold=2)
    clean = step(given)
    given[name][2] = bad
    others = [0, 1, 3, 4]
    for one, part in zip(step(given), clean, strict=True):
        assert part.isfinite().all()
        assert same_bits(one[others], part[others])


# --------------------------------------------------------------------------------- what is refused


def test_tensors_that_do_not_fit_are_refused() -> None:
    """Memory safety: no kernel reads or writes outside of what it is given."""
    given = cases.positional(cases.arguments(2, 3, 4, 2, goal_weight=torch.ones(4)))
    outputs = tuple(torch.zeros(2) for _ in range(3))
    run = native._ops().lifted_newton_step_
    run(*given, *outputs)
    whole = (*given, *outputs)
    for place, value in enumerate(whole):
        wrong = (
            [value[..., :-1].contiguous(), value.double(), value.repeat_interleave(2, 0)[::2]]
            if isinstance(value, torch.Tensor)
            else [0] if isinstance(value, int) else []
        )  # fmt: skip
        for other in wrong:
            with pytest.raises(RuntimeError):
                run(*whole[:place], other, *whole[place + 1 :])

    dynamics = mlp_cases.model(4, 2, (8,))
    packed = dynamics.packed()
    state, action = rows(3, dynamics)
    found = native.mlp_jacobians(state, action, *packed)
    tensors = (state, action, *found)
    for place, value in enumerate(tensors):
        for other in (value[:-1], value[..., :-1].contiguous(), value.double()):
            changed = [*tensors[:place], other, *tensors[place + 1 :]]
            with pytest.raises(RuntimeError):
                native._ops().mlp_jacobians(*changed[:2], *packed, *changed[2:])


# ------------------------------------------------------------------------------- instruction sets


def answers() -> list[Any]:
    """Values at every shape, and one plan and one row alone."""
    results: list[Any] = []
    for count, features, actions, widths in MODELS:
        for norm in (False, True):
            dynamics = mlp_cases.model(features, actions, widths, norm=norm, residual=True)
            results.append(native.mlp_jacobians(*rows(count, dynamics), *dynamics.packed()))
            state, action = rows(count, dynamics)
            results.append(native.mlp_jacobians(state[-1:], action[-1:], *dynamics.packed()))
    return [*results, *(step(cases.arguments(*shape[:4], hold=shape[4])) for shape in PLANS)]


ANSWER = """
import sys, torch
sys.path.insert(0, "tests")
from grasp_kernels import native
from native.test_newton import answers
torch.save((native.simd(), answers()), sys.argv[1])
"""


@pytest.mark.parametrize("simd", ["avx512", "avx2", "baseline"])
def test_every_instruction_set(simd: str, tmp_path: Path) -> None:
    """Each keeps the promises by itself: against the reference, and to the bit alone."""
    done = python(ANSWER, str(tmp_path / "forced"), GRASP_KERNELS_SIMD=simd)
    if "is not available here" in done.stderr:
        pytest.skip(f"this machine has no {simd}")
    assert done.returncode == 0, done.stderr
    used, forced = torch.load(tmp_path / "forced")
    assert used == simd
    remaining = iter(forced)
    for count, features, actions, widths in MODELS:
        for norm in (False, True):
            dynamics = mlp_cases.model(features, actions, widths, norm=norm, residual=True)
            batch, alone = next(remaining), next(remaining)
            for part, one, truth in zip(batch, alone, jacobians(count, dynamics)[1], strict=True):
                assert_close(part, truth, JACOBIANS)
                assert same_bits(one, part[-1:])
    for shape in PLANS:
        truth = step_in_float64(cases.arguments(*shape[:4], hold=shape[4]))
        for part, expected in zip(next(remaining), truth, strict=True):
            assert_close(part, expected, STEP)
