"""Words, normals and noise, in the interpreter (see test_interpreter.py)."""

from __future__ import annotations

import math

import pytest
import torch
import triton
import triton.language as tl

from grasp_kernels.ops import REFERENCE
from grasp_kernels.triton import configs, gaussian_noise, philox_words, rng

PLAN_IDS = torch.tensor([0, 5, 2**32 + 7, 2**63 - 1])
SEEDS = (0, 2**63 - 1, -1)  # -1 is the bit pattern of 2**64 - 1


@pytest.mark.parametrize("features", [1, 3, 5, 67, 130])
def test_words_are_bit_identical_to_the_reference(features: int) -> None:
    for seed in SEEDS:
        arguments = (PLAN_IDS, 3, features, seed, 11, 2)
        expected = REFERENCE["philox_words"](*arguments)
        assert torch.equal(philox_words(*arguments), expected)


def test_words_at_the_ends_of_the_coordinates() -> None:
    arguments = (PLAN_IDS[-1:], 2, 6, SEEDS[1], 2**32 - 1, 2**31 - 4)
    assert torch.equal(philox_words(*arguments), REFERENCE["philox_words"](*arguments))


@triton.jit
def normals_of_words(words_0, words_1, z_0, z_1, SIZE: tl.constexpr):
    index = tl.arange(0, SIZE)
    word_0 = tl.load(words_0 + index).to(tl.uint32, bitcast=True)
    word_1 = tl.load(words_1 + index).to(tl.uint32, bitcast=True)
    normal_0, normal_1 = rng.box_muller(word_0, word_1)
    tl.store(z_0 + index, normal_0)
    tl.store(z_1 + index, normal_1)


def check_normals(word_0: torch.Tensor, word_1: torch.Tensor) -> None:
    z = torch.empty(2, len(word_0))

    def signed(word: torch.Tensor) -> torch.Tensor:
        return torch.where(word >= 2**31, word - 2**32, word).to(torch.int32)

    normals_of_words[(1,)](signed(word_0), signed(word_1), z[0], z[1], SIZE=len(word_0))
    u_0, u_1 = (((w >> 9).double() + 0.5) * 2.0**-23 for w in (word_0, word_1))
    radius, angle = (-2 * u_0.log()).sqrt(), 2 * math.pi * u_1
    expected = torch.stack([radius * angle.cos(), radius * angle.sin()])
    error = (z - expected).abs() / expected.abs().clamp_min(1.0)
    # The promise is 1e-6; the rest is for the square root of a GPU, which is wrong by up to 2 ulp.
    assert error.max() < 5e-7


def test_normals_of_random_words() -> None:
    words = torch.randint(0, 2**32, (2, 2**19))
    check_normals(words[0], words[1])


def test_normals_where_the_logarithm_vanishes_and_where_it_is_largest() -> None:
    """u next to 1 needs relative accuracy; u next to 0 magnifies the errors of sine and cosine."""
    near_one, near_zero = 2**32 - 1 - (torch.arange(2**17) << 9), torch.arange(2**17) << 9
    angles = torch.randint(0, 2**32, (2**18,))
    check_normals(torch.cat([near_one, near_zero]), angles)


def test_normals_around_the_quarter_turns() -> None:
    eighths = torch.arange(8)[:, None] << 29
    angles = (eighths + (torch.arange(-64, 64) << 9)).flatten() % 2**32
    for word in (0, 2**31, 2**32 - 1):
        check_normals(torch.full_like(angles, word), angles)


def noise(
    kind: str, steps: int, features: int, first_step: int = 0, ids: torch.Tensor = PLAN_IDS[2:]
) -> torch.Tensor:
    dtype = torch.float32
    return gaussian_noise(ids, steps, features, 77, 3, kind, 3, first_step, 8, dtype)


@pytest.mark.parametrize("kind", ["none", "white", "bridge"])
@pytest.mark.parametrize("features", [1, 6, 67])
def test_noise_equals_the_float64_formula(kind: str, features: int) -> None:
    expected = REFERENCE["gaussian_noise"](
        PLAN_IDS[2:], 9, features, 77, 3, kind, 3, 0, 8, torch.float64
    )
    error = (noise(kind, 9, features) - expected).abs() / expected.abs().clamp_min(1.0)
    assert error.max() < 1e-6


def test_bridge_is_exactly_zero_at_both_ends() -> None:
    bridge = noise("bridge", 9, 5)
    assert (bridge[:, [0, 8]] == 0).all()
    assert (bridge[:, 1:8] != 0).all()


def test_bridge_past_two_horizons_repeats() -> None:
    expected = noise("bridge", 3, 5, first_step=2)
    assert torch.equal(noise("bridge", 3, 5, first_step=2 + 2 * 2 * 8), expected)


@pytest.mark.parametrize("kind", ["white", "bridge"])
def test_noise_does_not_depend_on_slice_batch_or_tile(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = noise(kind, 5, 21)
    last = PLAN_IDS[-1:]
    assert torch.equal(noise(kind, 2, 21, first_step=3, ids=last), whole[1:, 3:])
    for tile in (configs.Tile(4, 8, 1), configs.Tile(2, 16, 1)):
        monkeypatch.setattr(configs, "tile_for", lambda *_, tile=tile: tile)
        assert torch.equal(noise(kind, 5, 21, ids=last), whole[1:])


@pytest.mark.parametrize(("plans", "steps", "features"), [(0, 4, 4), (2, 0, 4), (2, 4, 0)])
def test_nothing_to_draw(plans: int, steps: int, features: int) -> None:
    assert noise("white", steps, features, ids=PLAN_IDS[:plans]).shape == (plans, steps, features)
    words = philox_words(PLAN_IDS[:plans], steps, features, 0, 0, 0)
    assert words.shape == (plans, steps, 4 * math.ceil(features / 4))
