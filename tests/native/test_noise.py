"""Philox words to the bit, normals to 1e-6, and noise as a pure function of its coordinates."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grasp_kernels import native
from grasp_kernels.ops import REFERENCE
from grasp_kernels.reference.gaussian_noise import normals_from_words

from .conftest import FEATURES, same_bits

WORDS = 2**32


def exact(words: torch.Tensor) -> torch.Tensor:
    return normals_from_words(words.to(torch.int64) & (WORDS - 1))


def error(normals: torch.Tensor, words: torch.Tensor) -> float:
    """The largest error, absolute where the normal is below 1 and relative above."""
    truth = exact(words)
    return float(((normals - truth).abs() / truth.abs().clamp(min=1)).max())


@settings(max_examples=60, deadline=None)
@given(
    ids=st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=3),
    steps=st.integers(1, 9),
    features=st.sampled_from(FEATURES[:-2]),
    seed=st.integers(-(2**63), 2**63 - 1),
    iteration=st.integers(0, 2**32 - 1),
    first_step=st.integers(0, 10**6),
)
def test_words_are_those_of_the_reference(
    ids: list[int], steps: int, features: int, seed: int, iteration: int, first_step: int
) -> None:
    arguments = (torch.tensor(ids), steps, features, seed, iteration, first_step)
    words = native.philox_words(*arguments)
    assert torch.equal(words, REFERENCE["philox_words"](*arguments))


def test_words_match_the_published_vector() -> None:
    """Random123's known answer for counter and key of all ones, reached through row 2**32 - 1."""
    words = native.philox_words(torch.tensor([-1]), 1, 4, -1, 2**32 - 1, 2**32 - 1)
    assert [w % WORDS for w in words.flatten().tolist()] == [
        0x408F276D,
        0x41C83B0E,
        0xA20BC7C6,
        0x6D5451FD,
    ]


def test_every_radius_and_every_angle() -> None:
    """Box-Muller sees 2**23 radii and 2**23 angles: all of them, in shuffled company."""
    order = torch.randperm(2**23)
    words = torch.stack([torch.arange(2**23) << 9, order << 9], dim=-1).flatten()
    normals = native.normals_from_words(words.to(torch.int32))
    assert normals.abs().max() <= math.sqrt(2 * math.log(2**24)) * (1 + 1e-6)
    assert error(normals, words) < 1e-6


@pytest.mark.parametrize("radius_at", [0, 1, 2**22, 2**23 - 2, 2**23 - 1])
def test_every_angle_at_the_extreme_radii(radius_at: int) -> None:
    """u next to 0 makes the largest normals, u next to 1 the smallest."""
    angles = torch.arange(2**23)[:: 7 if radius_at else 1]
    words = torch.stack([torch.full_like(angles, radius_at << 9), angles << 9], dim=-1).flatten()
    words = words[: len(words) // 4 * 4]
    assert error(native.normals_from_words(words.to(torch.int32)), words) < 1e-6


@pytest.mark.parametrize("features", FEATURES)
def test_white_noise_is_made_of_the_words(features: int) -> None:
    ids = torch.tensor([0, 7, 2**63 - 1])
    words = native.philox_words(ids, 5, features, 3, 2, 11)
    noise = native.gaussian_noise(ids, 5, features, 3, 2, "white", 0, 11, 99, torch.float32)
    expected = native.normals_from_words(words.flatten()).view(words.shape)[..., :features]
    assert same_bits(noise, expected)
    narrow = native.gaussian_noise(ids, 5, features, 3, 2, "white", 0, 11, 99, torch.bfloat16)
    assert same_bits(narrow, noise.to(torch.bfloat16))


@pytest.mark.parametrize("modes", [1, 8, 70])
@pytest.mark.parametrize("features", [1, 6, 64, 5000])
def test_bridge_noise(features: int, modes: int) -> None:
    ids = torch.tensor([5, 2**40])
    arguments = (ids, 31, features, -9, 1, "bridge", modes, 0, 30)
    noise = native.gaussian_noise(*arguments, torch.float32)
    truth = REFERENCE["gaussian_noise"](*arguments, torch.float64)
    assert torch.allclose(noise.double(), truth, rtol=1e-6, atol=3e-6)
    assert torch.equal(noise[:, [0, -1]], torch.zeros(2, 2, features))


def test_moments_and_tails() -> None:
    noise = native.gaussian_noise(
        torch.arange(10), 1000, 1001, 1, 1, "white", 0, 0, 1, torch.float32
    )
    count, z = noise.numel(), noise.double()
    assert abs(z.mean()) < 5 / math.sqrt(count)
    assert abs(z.var() - 1) < 5 * math.sqrt(2 / count)
    assert abs((z**3).mean()) < 5 * math.sqrt(15 / count)
    assert abs((z**4).mean() - 3) < 5 * math.sqrt(96 / count)
    for bound in (1.0, 2.0, 3.0, 4.0):
        tail = math.erfc(bound / math.sqrt(2))
        assert abs((z.abs() > bound).double().mean() - tail) < 5 * math.sqrt(tail / count)


def test_none_is_zero_and_empty_is_empty() -> None:
    ids = torch.arange(2)
    none = native.gaussian_noise(ids, 3, 70, 1, 1, "none", 0, 0, 3, torch.float32)
    assert torch.equal(none, torch.zeros(2, 3, 70))
    for plans, steps, features in ((0, 3, 4), (2, 0, 4), (2, 3, 0)):
        shape = (plans, steps, features)
        arguments = (torch.arange(plans), steps, features, 1, 1)
        noise = native.gaussian_noise(*arguments, "white", 0, 0, 3, torch.float32)
        assert noise.shape == shape
        assert native.philox_words(*arguments, 0).shape == (plans, steps, features)
