"""Noise is a pure function of its coordinates: the right words, the right normals, wherever they
are asked.
"""

from __future__ import annotations

import kernel_cases as cases
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import grasp_kernels
from grasp_kernels import gaussian_noise, reference
from grasp_kernels.testing import assert_close

# Random123, tests/kat_vectors, "philox4x32 10": counter, key, words.
KNOWN_ANSWERS = [
    ((0,) * 4, (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
LARGEST_ID, LARGEST_SEED = 2**63 - 1, 2**64 - 1


def op_words(
    ids: list[int], steps: int, features: int, seed: int, iteration: int, first: int = 0
) -> np.ndarray:
    signed = seed - 2**64 if seed >= 2**63 else seed
    drawn = torch.ops.grasp_kernels.philox_words(
        torch.tensor(ids, dtype=torch.int64), steps, features, signed, iteration, first
    )
    assert drawn.dtype == torch.int32
    return drawn.numpy().view(np.uint32).astype(np.uint64)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_known_answers_of_the_generator(counter, key, expected) -> None:
    words = reference.philox4x32(tuple(torch.tensor(c) for c in counter), key[0] | key[1] << 32)
    assert tuple(int(w) for w in words) == expected


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_known_answers_of_the_op(backend, counter, key, expected) -> None:
    row, iteration, low, high = counter
    plan_id = low | high << 32
    plan_id -= 2**64 if plan_id >= 2**63 else 0  # the words are those of the bits
    words = op_words([plan_id], 1, 4, key[0] | key[1] << 32, iteration, row)
    assert tuple(int(w) for w in words.flatten()) == expected


@pytest.mark.parametrize("features", [1, 2, 3, 4, 5, 7, 8, 17, 64, 129])
def test_words_are_those_of_the_coordinates(backend, features) -> None:
    ids = [0, 1, 2**31, 2**32 - 1, 2**32, LARGEST_ID]
    for seed, iteration, first in [(0, 0, 0), (LARGEST_SEED, 2**32 - 1, 1000), (2**63, 7, 3)]:
        found = op_words(ids, 5, features, seed, iteration, first)
        rows = list(range(first, first + 5))
        assert np.array_equal(found, cases.words(ids, rows, features, seed, iteration))


@pytest.mark.parametrize("kind", ["white", "bridge"])
@pytest.mark.parametrize("features", [1, 3, 4, 6, 33])
def test_normals_against_the_formula(dtype, kind, features) -> None:
    ids = [0, 5, 2**40 + 1, LARGEST_ID]
    xi = gaussian_noise(
        4,
        9,
        features,
        seed=LARGEST_SEED,
        iteration=11,
        plan_ids=torch.tensor(ids),
        noise=kind,
        modes=6,
        first_step=2,
        horizon=13,
        dtype=dtype,
    )
    assert xi.dtype == dtype
    expected = cases.noise(
        ids,
        list(range(2, 11)),
        features,
        seed=LARGEST_SEED,
        iteration=11,
        noise=kind,
        modes=6,
        horizon=13,
    )
    # A bridge is a sum of six normals of up to 5.77 / k, each with its own rounding.
    assert_close(xi, expected, "gaussian_noise", magnitude=1.0 if kind == "white" else 2.5)


def test_no_word_gives_an_infinite_or_wrong_normal() -> None:
    """The ends of the uniform, where ln u loses its digits, and turns where cos or sin is 0."""
    edge = [0, 1, 511, 512, 513, 2**30, 2**31 - 1, 2**31, 2**31 + 512, 3 * 2**30]
    edge += [2**32 - 1, 2**32 - 512, 2**32 - 513, 2**32 - 1024, 2**32 - 5000]
    pairs = torch.tensor([(a, b, b, a) for a in edge for b in edge])
    found = reference.normals_from_words(pairs)
    expected = torch.from_numpy(cases.normals(pairs.numpy().astype(np.uint64)))
    assert torch.isfinite(found).all()
    assert found.abs().max() < 5.78
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-14)


@settings(
    deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    ids=st.lists(st.integers(0, LARGEST_ID), min_size=1, max_size=4),
    features=st.integers(1, 19),
    steps=st.integers(1, 9),
    first=st.integers(0, 2**20),
    seed=st.integers(0, LARGEST_SEED),
    iteration=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(["white", "bridge"]),
    data=st.data(),
)
def test_a_piece_is_the_piece_of_the_whole(
    backend, ids, features, steps, first, seed, iteration, kind, data
) -> None:
    """Batch, order and slices in time do not matter, to the last bit."""
    names = torch.tensor(ids)
    horizon = first + steps + data.draw(st.integers(0, 50))

    def draw(which: torch.Tensor, start: int, count: int) -> torch.Tensor:
        return gaussian_noise(
            len(which),
            count,
            features,
            seed=seed,
            iteration=iteration,
            plan_ids=which,
            noise=kind,
            first_step=start,
            horizon=horizon,
        )

    whole = draw(names, first, steps)
    start = data.draw(st.integers(0, steps - 1))
    stop = data.draw(st.integers(start + 1, steps))
    order = torch.tensor(data.draw(st.permutations(range(len(ids)))))
    piece = draw(names[order], first + start, stop - start)
    assert cases.same_bits(piece, whole[order, start:stop])


def test_thread_count_does_not_matter(backend) -> None:
    before = torch.get_num_threads()
    try:
        drawn = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            drawn.append(gaussian_noise(7, 33, 65, seed=1, iteration=1))
    finally:
        torch.set_num_threads(before)
    assert cases.same_bits(*drawn)


def test_different_coordinates_give_different_noise(backend) -> None:
    def draw(**changes: int) -> torch.Tensor:
        settings = {"seed": 3, "iteration": 4, "first_step": 5, **changes}
        ids = torch.tensor([settings.pop("plan_id", 6)])
        return gaussian_noise(1, 4, 8, plan_ids=ids, **settings)

    kinds = [
        draw(),
        draw(seed=4),
        draw(seed=3 + 2**32),
        draw(iteration=5),
        draw(plan_id=7),
        draw(plan_id=6 + 2**32),
        draw(first_step=9),
    ]
    for i, one in enumerate(kinds):
        for other in kinds[:i]:
            assert not (one == other).any()


@pytest.mark.parametrize("kind", ["white", "bridge"])
def test_step_adds_the_noise_of_gaussian_noise(dtype, kind) -> None:
    """The row that moves is the row whose noise it gets: row r + 1 of the slice, not row r."""
    plans, steps, features, first, horizon = 3, 6, 5, 4, 12
    ids = torch.tensor([9, 2**33, 4])
    trajectory = torch.zeros(plans, steps + 1, features, dtype=dtype)
    grasp_kernels.lifted_step_(
        trajectory,
        torch.zeros(plans, steps, features, dtype=dtype),
        torch.zeros(plans, features, dtype=dtype),
        state_lr=0.0,
        goal_weight=0.0,
        noise_scale=1.0,
        seed=5,
        iteration=6,
        plan_ids=ids,
        noise=kind,
        first_step=first,
        horizon=horizon,
    )
    xi = gaussian_noise(
        plans,
        steps + 1,
        features,
        seed=5,
        iteration=6,
        plan_ids=ids,
        noise=kind,
        first_step=first,
        horizon=horizon,
        dtype=dtype,
    )
    assert not trajectory[:, 0].any()
    # The fused step may contract scale * xi + state; the noise itself is a rounding away at most.
    assert_close(trajectory[:, 1:], xi[:, 1:].double(), "gaussian_noise", magnitude=2.5)


@pytest.mark.parametrize("modes", [1, 3, 64])
def test_bridge_is_exactly_zero_at_both_ends(dtype, modes) -> None:
    for horizon in (1, 2, 7, 50):
        xi = gaussian_noise(
            2, horizon, 3, seed=0, iteration=1, noise="bridge", modes=modes, dtype=dtype
        )
        assert not xi[:, 0].any()
        if horizon > 2:
            assert xi[:, 1].any()
        end = gaussian_noise(
            2, 1, 3, seed=0, iteration=1, noise="bridge", modes=modes, dtype=dtype,
            first_step=horizon, horizon=2 * horizon,
        )  # fmt: skip
        assert torch.isfinite(end).all()


def test_the_last_row_of_a_bridge_can_be_asked_for(backend) -> None:
    """Rows 0 ... horizon are the rows of a trajectory; the last of them has bridge noise 0."""
    xi = gaussian_noise(2, 11, 3, seed=0, iteration=1, noise="bridge", horizon=10)
    assert not xi[:, 0].any()
    assert not xi[:, 10].any()
    assert xi[:, 9].all()
    white = gaussian_noise(2, 1, 3, seed=0, iteration=1, first_step=10, horizon=10)
    assert white.all()


def test_bridge_covariance_is_the_closed_form(backend) -> None:
    """E[xi_s xi_t] = sum_k sin(k pi s / T) sin(k pi t / T) / k^2."""
    horizon, modes, draws = 12, 5, 40_000
    xi = gaussian_noise(
        draws // 8, horizon, 8, seed=2, iteration=3, noise="bridge", modes=modes
    ).double()
    samples = xi.transpose(1, 2).reshape(draws, horizon)
    k = torch.arange(1, modes + 1, dtype=torch.float64)
    wave = torch.sin(torch.pi * torch.arange(horizon)[:, None] * k / horizon) / k
    expected = wave @ wave.T
    found = samples.T @ samples / draws
    variance = expected.diagonal()
    # Var of a product of joint normals: var_s var_t + cov^2. Five standard deviations.
    spread = ((variance[:, None] * variance + expected**2) / draws).sqrt()
    assert ((found - expected).abs() <= 5 * spread + 1e-12).all()


def test_none_is_zero_and_empty_sizes_are_empty(dtype) -> None:
    assert not gaussian_noise(2, 3, 4, seed=0, iteration=0, noise="none", dtype=dtype).any()
    for shape in [(0, 3, 4), (2, 0, 4), (2, 3, 0)]:
        for kind in ("white", "bridge", "none"):
            xi = gaussian_noise(*shape, seed=0, iteration=0, noise=kind, dtype=dtype)
            assert xi.shape == shape
            assert xi.dtype == dtype
