"""lifted_step_ on CPU: values, strides, and the promise that bits depend on coordinates alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from grasp_kernels import native

from .conftest import FEATURES, in_float64, oracle, same_bits, step_arguments

BITS = ("dynamics", "goal_error", "cotangent", "trajectory")


def run(arguments: list[Any]) -> tuple[torch.Tensor, ...]:
    """Losses, cotangent and the moved trajectory; the arguments stay as they are."""
    trajectory = arguments[0].clone()
    return *native.lifted_step_(trajectory, *arguments[1:]), trajectory


def assert_close_to_reference(arguments: list[Any], tolerance: float = 2e-6) -> None:
    (dynamics, goal_error, cotangent), after = oracle("lifted_step_", *arguments)
    results = run(arguments)
    assert [r.dtype for r in results[:2]] == [torch.float32, torch.float32]
    for name, result, truth in zip(
        BITS, results, (dynamics, goal_error, cotangent, after[0]), strict=True
    ):
        # bfloat16 storage rounds a float32 result once: half of 2**-8, relative.
        rtol = 2.0**-8 if result.dtype == torch.bfloat16 else tolerance
        torch.testing.assert_close(
            result.double(),
            truth,
            rtol=rtol,
            atol=10 * tolerance,
            msg=lambda m, n=name: f"{n}: {m}",
        )
    assert same_bits(results[3][:, 0], arguments[0][:, 0])


@pytest.mark.parametrize("noise", ["white", "bridge", "none"])
@pytest.mark.parametrize("features", FEATURES)
def test_values(features: int, noise: str) -> None:
    assert_close_to_reference(step_arguments(3, 6, features, noise=noise))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("free_terminal", [False, True])
@pytest.mark.parametrize("pull", [0.0, 0.5])
@pytest.mark.parametrize("weighted", [False, True])
def test_options(weighted: bool, pull: float, free_terminal: bool, dtype: torch.dtype) -> None:
    for steps, features in ((1, 5), (70, 12), (5, 300)):
        assert_close_to_reference(
            step_arguments(
                2,
                steps,
                features,
                weighted=weighted,
                pull=pull,
                free_terminal=free_terminal,
                dtype=dtype,
            )
        )


@pytest.mark.parametrize("first_step", [0, 3, 8])
def test_terminal_row_keeps_its_bits(first_step: int) -> None:
    arguments = step_arguments(2, 4, 9, first_step=first_step, horizon=8)
    assert_close_to_reference(arguments)
    trajectory = run(arguments)[3]
    for row in range(1, 5):
        moved = not same_bits(trajectory[:, row], arguments[0][:, row])
        assert moved == (first_step + row < 8)


@pytest.mark.parametrize("shape", [(0, 4, 8), (3, 0, 8), (3, 4, 0)])
def test_nothing_to_do(shape: tuple[int, int, int]) -> None:
    arguments = step_arguments(*shape)
    dynamics, goal_error, cotangent, trajectory = run(arguments)
    assert torch.equal(dynamics, torch.zeros(shape[:2]))
    assert torch.equal(goal_error, torch.zeros(shape[:2]))
    assert cotangent.shape == shape
    assert same_bits(trajectory, arguments[0])


@pytest.mark.parametrize("features", [4, 7, 300])
@pytest.mark.parametrize("noise", ["white", "bridge"])
def test_bfloat16_is_float32_rounded_once(noise: str, features: int) -> None:
    narrow = step_arguments(2, 9, features, noise=noise, pull=0.5, dtype=torch.bfloat16)
    wide = [
        a.float() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in narrow
    ]
    for result, full in zip(run(narrow), run(wide), strict=True):
        assert same_bits(result, full.to(result.dtype))


@pytest.mark.parametrize("features", [3, 4, 64, 1000])
@pytest.mark.parametrize("noise", ["white", "bridge"])
def test_strided_trajectories(noise: str, features: int) -> None:
    """Slices in plans, time and features of a larger array, and time-major storage."""
    arguments = step_arguments(4, 6, features, noise=noise, pull=0.3)
    whole = run(arguments)
    n, rows, d = arguments[0].shape
    roomy = torch.randn(2 * n, rows + 3, d + 5)
    time_major = torch.randn(rows, n, d)
    for view in (roomy[1::2, 2:-1, 3 : 3 + d], time_major.transpose(0, 1)):
        for index in (0, 7):  # trajectory, state_gradient
            strided = [a.clone() if isinstance(a, torch.Tensor) else a for a in arguments]
            strided[index] = view.copy_(arguments[index])
            outside = roomy[::2].clone()
            assert all(map(same_bits, (*native.lifted_step_(*strided), strided[0]), whole))
            assert same_bits(roomy[::2], outside)


@pytest.mark.parametrize("noise", ["white", "bridge"])
@pytest.mark.parametrize("features", [3, 4, 64, 67, 5000])
def test_slices_in_plans_and_time_have_the_bits_of_the_whole(features: int, noise: str) -> None:
    plans, steps = 4, 11
    arguments = step_arguments(plans, steps, features, noise=noise, pull=0.3)
    whole = run(arguments)
    trajectory = arguments[0].clone()
    for plan in (slice(0, 1), slice(1, 4)):
        for begin, end in (
            (7, 11),
            (0, 3),
            (3, 7),
        ):  # a row is read before it is moved, or not at all
            piece = list(arguments)
            piece[0] = arguments[0][plan, begin : end + 1].clone()
            piece[1] = arguments[1][plan, begin:end].contiguous()
            piece[2:5] = (a[plan] for a in arguments[2:5])
            piece[6] = arguments[6][begin:end].contiguous()
            piece[7] = arguments[7][plan, begin : end + 1]
            piece[13] = begin
            losses_and_cotangent = native.lifted_step_(*piece)
            for result, full in zip(losses_and_cotangent, whole, strict=False):
                assert same_bits(result, full[plan, begin:end])
            trajectory[plan, begin + 1 : end + 1] = piece[0][:, 1:]
    assert same_bits(trajectory, whole[3])


@pytest.mark.parametrize(
    ("plans", "steps", "features"),
    [(1, 3, 75264), (1, 1, 75264), (64, 50, 64), (300, 50, 4), (3, 70, 5000)],
)
@pytest.mark.parametrize("noise", ["white", "bridge"])
def test_threads_do_not_change_bits(plans: int, steps: int, features: int, noise: str) -> None:
    arguments = step_arguments(plans, steps, features, noise=noise)
    torch.set_num_threads(1)
    alone = run(arguments)
    for threads in (2, 3, 8):
        torch.set_num_threads(threads)
        assert all(map(same_bits, run(arguments), alone))


def test_noise_scale_zero_is_no_noise() -> None:
    arguments = step_arguments(3, 5, 64)
    arguments[3][1, 2] = 0
    noisy = run(arguments)
    quiet = run([*arguments[:11], "none", *arguments[12:]])
    assert same_bits(noisy[3][1], quiet[3][1])
    assert not same_bits(noisy[3][0], quiet[3][0])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("features", [3, 64, 300])
def test_non_finite_numbers_stay_in_their_plan(features: int, bad: float) -> None:
    arguments = step_arguments(4, 5, features, pull=0.5)
    clean = run(arguments)
    for index in (0, 1, 2, 3, 7):
        spoiled = [a.clone() if isinstance(a, torch.Tensor) else a for a in arguments]
        spoiled[index][1] = bad
        results = run(spoiled)
        for result, expected in zip(results, clean, strict=True):
            assert same_bits(result[[0, 2, 3]], expected[[0, 2, 3]])
        if index in (1, 2):
            assert not results[1][1].isfinite().any()


def test_coefficients_may_be_expanded_and_wide() -> None:
    arguments = step_arguments(3, 5, 8)
    arguments[3] = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64).expand(3, 3)
    assert_close_to_reference(arguments)
    by_column = list(arguments)
    by_column[3] = arguments[3].t().contiguous().t()
    assert all(map(same_bits, run(by_column), run(arguments)))


def test_wide_sums_are_accurate() -> None:
    """75,264 squares summed in float32 one after the other would lose three digits."""
    arguments = step_arguments(1, 2, 75264, noise="none")
    (dynamics, goal_error, _), _ = oracle("lifted_step_", *map(in_float64, arguments))
    result = run(arguments)
    torch.testing.assert_close(result[0].double(), dynamics, rtol=3e-7, atol=0)
    torch.testing.assert_close(result[1].double(), goal_error, rtol=3e-7, atol=0)


def test_unsafe_tensors_are_refused() -> None:
    arguments = step_arguments(2, 3, 8)
    for index, wrong, message in (
        (0, torch.zeros(2, 4, 9), "trajectory has the wrong shape"),
        (0, torch.zeros(2, 4, 16)[..., ::2], "trajectory must have adjacent features"),
        (1, torch.zeros(2, 3, 16)[..., ::2], "prediction must be contiguous"),
        (2, torch.zeros(2, 8, dtype=torch.bfloat16), "goal has the wrong dtype"),
        (4, torch.zeros(3, dtype=torch.int64), "plan_ids has the wrong shape"),
        (11, "pink", "noise must be"),
    ):
        spoiled = list(arguments)
        spoiled[index] = wrong
        with pytest.raises(RuntimeError, match=message):
            native.lifted_step_(*spoiled)
