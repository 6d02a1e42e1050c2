"""Noise as a pure function of coordinates: Philox words, normals, and how they are laid in time.

A thread owns groups of four neighbouring features, because one Philox call gives four words and a
128-bit load or store moves four floats. So the generator runs on a tile of *groups*, and only its
results are spread to features: nothing has to cross from thread to thread, and accesses stay wide.

A product and a sum are rounded once where the code says `tl.fma`, and nowhere else: the kernels
are compiled with `enable_fp_fusion=False`. All compiled variants, all GPUs and the interpreter then
make the same roundings, but for square root and division, which a GPU approximates within 2 ulp.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
MULTIPLIER_0 = tl.constexpr(0xD2511F53)
MULTIPLIER_1 = tl.constexpr(0xCD9E8D57)
WEYL_0 = tl.constexpr(0x9E3779B9)
WEYL_1 = tl.constexpr(0xBB67AE85)


@triton.jit
def philox4x32(counter_0, counter_1, counter_2, counter_3, key_0, key_1):
    """Ten rounds of Philox4x32. All arguments uint32; a counter word may be a scalar or a tile."""
    for _ in tl.static_range(10):
        # One 32 x 32 -> 64 bit multiplication gives both halves, in a single GPU instruction.
        product_0 = counter_0.to(tl.uint64) * MULTIPLIER_0
        product_1 = counter_2.to(tl.uint64) * MULTIPLIER_1
        counter_0 = (product_1 >> 32).to(tl.uint32) ^ counter_1 ^ key_0
        counter_2 = (product_0 >> 32).to(tl.uint32) ^ counter_3 ^ key_1
        counter_1 = product_1.to(tl.uint32)
        counter_3 = product_0.to(tl.uint32)
        key_0 += WEYL_0
        key_1 += WEYL_1
    return counter_0, counter_1, counter_2, counter_3


@triton.jit
def minus_two_log(word):
    """`-2 ln u`, u = ((word >> 9) + 1/2) 2^-23, to 4 ulp *relative*, also where u is next to 1.

    The hardware's `lg2.approx` has a bounded absolute error, which near u = 1, where ln u vanishes,
    is a relative error of order one. So: u = m 2^e with m in [2/3, 4/3) and a polynomial in m - 1
    that has the zero of the logarithm as a factor. For u > 2/3 the exponent e is 0.
    """
    uniform = tl.fma((word >> 9).to(tl.float32), 1.1920928955078125e-07, 5.9604644775390625e-08)
    bits = uniform.to(tl.int32, bitcast=True)
    exponent = (bits - 0x3F2AAAAB) >> 23  # 0x3F2AAAAB is 2/3
    f = (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
    # Minimax for -2 ln(1 + f) / f on [-1/3, 1/3], relative error 1.7e-7.
    p = tl.fma(f, 0.307313854696, -0.342223623232)
    p = tl.fma(p, f, 0.328401733664)
    p = tl.fma(p, f, -0.395900750832)
    p = tl.fma(p, f, 0.500152434247)
    p = tl.fma(p, f, -0.66675977369)
    p = tl.fma(p, f, 0.999998755203)
    p = tl.fma(p, f, -1.99999967243)
    return tl.fma(p, f, exponent.to(tl.float32) * -1.38629436112)


@triton.jit
def cos_sin_turns(word):
    """`cos 2 pi u` and `sin 2 pi u`, u = ((word >> 9) + 1/2) 2^-23 in turns.

    The angle is reduced in the bits of the word, exactly: the top two bits, rounded to nearest, are
    the quarter turn, the others a signed rest of at most an eighth of a turn.
    """
    rest = (word << 2).to(tl.int32, bitcast=True) >> 11
    x = tl.fma(rest.to(tl.float32), 1.1920928955078125e-07, 5.9604644775390625e-08)
    y = x * x
    # Minimax on |x| <= 1/8: sin(2 pi x) = x S(x^2) to 2.5e-9, cos(2 pi x) = C(x^2) to 5e-11.
    s = tl.fma(y, -75.4020679738, 81.5925535423)
    s = tl.fma(s, y, -41.3416626331)
    s = tl.fma(s, y, 6.28318528787) * x
    c = tl.fma(y, 59.2204072974, -85.4428521214)
    c = tl.fma(c, y, 64.9393162084)
    c = tl.fma(c, y, -19.7392086504)
    c = tl.fma(c, y, 1.0)
    # q quarter turns, (c, s) -> (-s, c) each: q odd swaps, cos is negative for q = 1, 2, sin for
    # q = 2, 3.
    turned = word + 0x20000000
    odd = (turned & 0x40000000) != 0
    cosine = flip_sign(tl.where(odd, s, c), turned + 0x40000000)
    sine = flip_sign(tl.where(odd, c, s), turned)
    return cosine, sine


@triton.jit
def flip_sign(x, word):
    """`x`, negated where the top bit of `word` is set."""
    return (x.to(tl.uint32, bitcast=True) ^ (word & 0x80000000)).to(tl.float32, bitcast=True)


@triton.jit
def box_muller(word_0, word_1):
    """Two normals from two words."""
    radius = tl.sqrt(minus_two_log(word_0))
    cosine, sine = cos_sin_turns(word_1)
    return radius * cosine, radius * sine


@triton.jit
def spread(x0, x1, x2, x3):
    """Four tiles [rows, groups] to one [rows, 4 * groups], the four of a group side by side."""
    joined = tl.join(tl.join(x0, x2), tl.join(x1, x3))
    return tl.reshape(joined, [x0.shape[0], 4 * x0.shape[1]])


@triton.jit
def words(row, group, features, plan_id, key_low, key_high, iteration):
    """The four words of each (row, group): four tiles [rows, groups].

    `row` is the leading coordinate: time steps for white noise, mode numbers from 0 for the bridge.
    Group g holds features 4 g ... 4 g + 3; what lies past the last feature is masked by the caller.
    """
    groups = (features + 3) // 4
    # Coordinates are taken modulo 2^32 (a conversion to uint32 keeps the low bits).
    counter = row.to(tl.uint32)[:, None] * groups.to(tl.uint32) + group.to(tl.uint32)[None, :]
    plan_low = plan_id.to(tl.uint32)
    plan_high = (plan_id >> 32).to(tl.uint32)
    return philox4x32(
        counter,
        iteration.to(tl.uint32),
        plan_low,
        plan_high,
        key_low.to(tl.uint32),
        key_high.to(tl.uint32),
    )


@triton.jit
def normals(row, group, features, plan_id, key_low, key_high, iteration):
    """Independent standard normals: four tiles [rows, groups]."""
    w0, w1, w2, w3 = words(row, group, features, plan_id, key_low, key_high, iteration)
    z0, z1 = box_muller(w0, w1)
    z2, z3 = box_muller(w2, w3)
    return z0, z1, z2, z3


@triton.jit
def half_wave(phase, half_period):
    """`sin(pi phase / half_period)` of integers 0 <= phase < 2 half_period; exact at its zeros."""
    second_half = phase >= half_period
    phase = tl.where(second_half, phase - half_period, phase)
    x = tl.minimum(phase, half_period - phase).to(tl.float32) * (1.0 / half_period.to(tl.float32))
    y = x * x
    # Minimax for sin(pi x) / x on [0, 1/2], relative error 5e-9.
    s = tl.fma(y, 0.0775603869352, -0.598242126387)
    s = tl.fma(s, y, 2.55006972633)
    s = tl.fma(s, y, -5.1677096848)
    s = tl.fma(s, y, 3.1415926369) * x
    return tl.where(second_half, -s, s)


@triton.jit
def noise_tile(
    step,
    group,
    features,
    plan_id,
    key_low,
    key_high,
    iteration,
    horizon,
    modes,
    NOISE: tl.constexpr,
):
    """The noise of the absolute time steps `step`, a tile [rows, 4 * groups]."""
    if NOISE == "white":
        z0, z1, z2, z3 = normals(step, group, features, plan_id, key_low, key_high, iteration)
    else:
        tl.static_assert(NOISE == "bridge")
        z0 = tl.zeros([step.shape[0], group.shape[0]], tl.float32)
        z1, z2, z3 = z0, z0, z0
        period = 2 * horizon
        phase = step % period  # k t mod 2 horizon, for mode k = 1
        mode_phase = phase
        for mode in tl.range(0, modes):
            row = tl.full([1], 0, tl.int32) + mode
            m0, m1, m2, m3 = normals(row, group, features, plan_id, key_low, key_high, iteration)
            wave = half_wave(mode_phase, horizon)[:, None] * (1.0 / (mode + 1))
            z0 = tl.fma(wave, m0, z0)
            z1 = tl.fma(wave, m1, z1)
            z2 = tl.fma(wave, m2, z2)
            z3 = tl.fma(wave, m3, z3)
            # The next k, exactly, by addition: no product that could overflow and no division.
            mode_phase += phase
            mode_phase = tl.where(mode_phase >= period, mode_phase - period, mode_phase)
    return spread(z0, z1, z2, z3)
