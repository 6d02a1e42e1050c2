"""Ten million draws are standard normal and uncorrelated, as far as ten million draws can tell.

The draws are one fixed sample, so these tests cannot flake; the bounds are |z| < 5, which a sound
generator
exceeds once in 1.7 million statistics.
"""

from __future__ import annotations

import math

import kernel_cases as cases
import numpy as np
import pytest
import torch

from grasp_kernels import gaussian_noise

PLANS, STEPS, FEATURES = 50, 200, 1000
COUNT = PLANS * STEPS * FEATURES
Z = 5.0


@pytest.fixture(scope="module", params=["reference", "native"])
def draws(request: pytest.FixtureRequest):
    """(backend, float32 sample (PLANS, STEPS, FEATURES)), drawn plan by plan to spare memory."""
    with pytest.MonkeyPatch.context() as patch:
        cases.use_backend(patch, request.param)
        parts = [
            gaussian_noise(
                10, STEPS, FEATURES, seed=12345, iteration=1, plan_ids=torch.arange(n, n + 10)
            )
            for n in range(0, PLANS, 10)
        ]
        sample = torch.cat(parts)
    assert sample.dtype == torch.float32
    assert sample.numel() == COUNT == 10**7
    return sample


def test_moments(draws) -> None:
    z = draws.flatten().double()
    powers = z.square()
    mean, variance = float(z.mean()), float(powers.mean())
    skew, kurtosis = float((powers * z).mean()), float(powers.square().mean())
    # Variances of one term: 1, 2, 15, 96.
    assert abs(mean) < Z * math.sqrt(1 / COUNT)
    assert abs(variance - 1) < Z * math.sqrt(2 / COUNT)
    assert abs(skew) < Z * math.sqrt(15 / COUNT)
    assert abs(kurtosis - 3) < Z * math.sqrt(96 / COUNT)


@pytest.mark.parametrize("sigma", [1, 2, 3, 4, 5])
def test_tails(draws, sigma) -> None:
    """Counts beyond sigma on each side, in units of their binomial spread."""
    tail = math.erfc(sigma / math.sqrt(2)) / 2
    spread = math.sqrt(COUNT * tail * (1 - tail))
    for count in (int((draws > sigma).sum()), int((draws < -sigma).sum())):
        assert abs(count - COUNT * tail) < Z * spread + 1


def test_the_largest_is_within_the_construction(draws) -> None:
    assert float(draws.abs().max()) <= math.sqrt(-2 * math.log(2.0**-24)) + 1e-5
    assert not (draws == 0).all(-1).any()


@pytest.mark.parametrize("axis", [0, 1, 2], ids=["plans", "steps", "features"])
@pytest.mark.parametrize("lag", [1, 2, 3, 4])
def test_neighbours_are_uncorrelated(draws, axis, lag) -> None:
    """Across plans, steps and features; and of squares, which Box-Muller pairs would betray."""
    size = draws.shape[axis] - lag
    one, other = draws.narrow(axis, 0, size), draws.narrow(axis, lag, size)
    count = one.numel()
    assert abs(float((one * other).sum(dtype=torch.float64))) / count < Z / math.sqrt(count)
    squares = ((one.square() - 1) * (other.square() - 1)).sum(dtype=torch.float64)
    assert abs(float(squares)) / count < Z * 2 / math.sqrt(count)


def test_iterations_and_seeds_are_uncorrelated(backend) -> None:
    shape = (10, 100, 256)
    base = gaussian_noise(*shape, seed=1, iteration=1).double()
    for changes in ({"iteration": 2}, {"seed": 2}, {"seed": 1 + 2**32}):
        other = gaussian_noise(*shape, **{"seed": 1, "iteration": 1, **changes}).double()
        assert abs(float((base * other).mean())) < Z / math.sqrt(base.numel())


def test_every_normal_is_within_1e_6_of_the_float64_formula(draws) -> None:
    """Absolute or relative, over all draws: that covers ln u beside u = 1 and the far tail."""
    worst = 0.0
    for plan in range(0, PLANS, 10):
        expected = cases.noise(
            list(range(plan, plan + 10)), list(range(STEPS)), FEATURES, seed=12345, iteration=1
        )
        error = (draws[plan : plan + 10].double() - expected).abs()
        worst = max(worst, float((error / expected.abs().clamp_min(1.0)).max()))
    assert worst <= 1e-6
    assert np.isfinite(worst)
