// Activations and their derivatives: a few units in the last place (elu, near zero, a dozen), NaN
// in, NaN out.
//
// On packs of vectors (pack.h): an activation is a chain of twenty operations, each waiting for the
// one before it, and a single chain leaves most of the processor idle.
//
// The polynomials are minimax fits to the functions named, in the relative error given.
#pragma once

#include "grasp/mlp_problem.h"
#include "grasp/pack.h"

namespace grasp::GRASP_SIMD {

// 1 / x for normal, finite x.
GRASP_INLINE Float reciprocal(Float x) {
#if GRASP_LANES == 16
  // 14 bits, and a step of Newton: a division would take four times as long.
  const Float r = (Float)_mm512_rcp14_ps((__m512)x);
  return multiply_add(r, multiply_add(-x, r, splat(1.0f)), r);
#else
  return splat(1.0f) / x;
#endif
}

GRASP_INLINE Floats splat_all(float x) {
  Floats all;
  GRASP_FOR_PACK(all[i] = splat(x)) return all;
}
GRASP_INLINE Floats reciprocal(Floats x) { GRASP_FOR_PACK(x[i] = reciprocal(x[i])) return x; }
GRASP_INLINE Floats negated(Floats x) { GRASP_FOR_PACK(x[i] = -x[i]) return x; }
GRASP_INLINE Floats at_most(float limit, Floats x) {
  GRASP_FOR_PACK(x[i] = at_most(splat(limit), x[i])) return x;
}
GRASP_INLINE Floats at_least(float limit, Floats x) {
  GRASP_FOR_PACK(x[i] = at_least(splat(limit), x[i])) return x;
}
// `yes` where x > limit, else (also for NaN) `no`.
GRASP_INLINE Floats where_above(Floats x, float limit, Floats yes, Floats no) {
  GRASP_FOR_PACK(no[i] = x[i] > limit ? yes[i] : no[i]) return no;
}
GRASP_INLINE Floats absolute(Floats x) { return as<Float>(as<Word>(x) & 0x7fffffffu); }
GRASP_INLINE Floats with_sign_of(Floats magnitude, Floats x) {
  return as<Float>(as<Word>(magnitude) | (as<Word>(x) & 0x80000000u));
}

// exp(x) = 2^n (1 + f P(f)), n an integer, |f| <= ln 2 / 2. The polynomial is good to 1.1e-7, ln 2
// to 2e-9 n, which shows only where the result is far from 1. The clamp keeps it normal and finite.
struct Exponential {
  Floats f, p, power;

  explicit GRASP_INLINE Exponential(Floats x) {
    x = at_most(88.0f, at_least(-87.0f, x));
    // Adding 1.5 2^23 rounds to an integer, which then stands in the low bits; with 127 on top, in
    // the form of an exponent.
    const float magic = 0x1.8p+23f + 127;
    const Floats shifted = multiply_add(0x1.715476p+0f, x, magic);
    f = multiply_add(-0x1.62e43p-1f, shifted - magic, x);
    p = multiply_add(0x1.10621ep-7f, f, 0x1.572adap-5f);
    p = multiply_add(p, f, 0x1.5557bp-3f);
    p = multiply_add(p, f, 0x1.fffdfap-2f);
    p = multiply_add(p, f, 1.0f);
    power = as<Float>(as<Word>(shifted) << 23);
  }
  GRASP_INLINE Floats value() const { return power * multiply_add(p, f, 1.0f); }
  GRASP_INLINE Floats value_plus_one() const {
    return multiply_add(power, multiply_add(p, f, 1.0f), 1.0f);
  }
};

// A NaN's payload may go astray in the exponent; where nothing else carries the NaN on, it is kept.
GRASP_INLINE Floats exponential(Floats x) {
  Floats e = Exponential(x).value();
  GRASP_FOR_PACK(e[i] = x[i] == x[i] ? e[i] : x[i]) return e;
}

// x + x^3 P(x^2) for |x| < 0.625, to 5e-9; else 1 - 2 / (exp(2 |x|) + 1).
GRASP_INLINE Floats hyperbolic_tangent(Floats x) {
  const Floats y = x * x, size = absolute(x);
  Floats p = multiply_add(-0x1.75e1c4p-8f, y, 0x1.52269ap-6f);
  p = multiply_add(p, y, -0x1.b83c5ap-5f);
  p = multiply_add(p, y, 0x1.110726p-3f);
  p = multiply_add(p, y, -0x1.555532p-2f);
  const Floats near = multiply_add(x * y, p, x);
  const Floats inverse = reciprocal(Exponential(size + size).value_plus_one());
  const Floats far = multiply_add(-2.0f, inverse, 1.0f);
  return where_above(size, 0.625f, with_sign_of(far, x), near);
}

// The normal distribution function. erfc(y) = exp(-y^2) R(1 / (1 + y / 2)) for y = |x| / sqrt 2 >
// 1, to 2e-8; erf(y) = y P(y^2) below, to 2e-9. `density` is exp(-x^2 / 2).
GRASP_INLINE Floats normal_cumulative(Floats x, Floats density) {
  const Floats y = x * 0x1.6a09e6p-1f, size = absolute(y), square = y * y;
  Floats p = multiply_add(0x1.496a52p-14f, square, -0x1.a3f70ep-11f);
  p = multiply_add(p, square, 0x1.5405b4p-8f);
  p = multiply_add(p, square, -0x1.b7f90ep-6f);
  p = multiply_add(p, square, 0x1.ce2cf8p-4f);
  p = multiply_add(p, square, -0x1.81273ep-2f);
  p = multiply_add(p, square, 0x1.20dd74p+0f);
  const Floats near = multiply_add(y * 0.5f, p, 0.5f);
  const Floats t = reciprocal(multiply_add(0.5f, size, 1.0f));
  Floats r = multiply_add(0x1.6106bap-4f, t, -0x1.a39d8cp-3f);
  r = multiply_add(r, t, 0x1.cd9d28p-5f);
  r = multiply_add(r, t, 0x1.4071cep-4f);
  r = multiply_add(r, t, 0x1.60959p-3f);
  r = multiply_add(r, t, 0x1.fccf5ap-3f);
  r = multiply_add(r, t, 0x1.20a074p-2f);
  r = multiply_add(r, t, 0x1.20e0b8p-2f);
  const Floats half_tail = density * 0.5f * (r * t);
  const Floats far = where_above(x, 0.0f, splat_all(1.0f) - half_tail, half_tail);
  return where_above(size, 1.0f, far, near);
}

struct Activated {
  Floats value, slope;
};

template <Activation kActivation>
GRASP_INLINE Activated activate(Floats x) {
  const Floats zero = splat_all(0.0f), one = splat_all(1.0f);
  if constexpr (kActivation == Activation::kRelu) {
    return {at_least(0.0f, x), where_above(x, 0.0f, one, zero)};
  } else if constexpr (kActivation == Activation::kSilu) {
    const Floats sigmoid = reciprocal(Exponential(negated(x)).value_plus_one());
    return {x * sigmoid, sigmoid * multiply_add(x, one - sigmoid, one)};
  } else if constexpr (kActivation == Activation::kGelu) {
    const Floats density = Exponential(x * x * -0.5f).value();
    const Floats cumulative = normal_cumulative(x, density);
    return {x * cumulative, multiply_add(x * 0x1.988454p-2f, density, cumulative)};
  } else if constexpr (kActivation == Activation::kMish) {
    // x tanh(ln(1 + e)) = x n / (n + 2), n = e (e + 2); beyond 20 the quotient is 1 in float32.
    const Floats bounded = at_most(20.0f, x);
    const Floats e = Exponential(bounded).value();
    const Floats n = e * (e + 2.0f);
    const Floats r = reciprocal(n + 2.0f), squashed = n * r;
    return {x * squashed, multiply_add(bounded * r * 4.0f, e * (e + 1.0f) * r, squashed)};
  } else if constexpr (kActivation == Activation::kTanh) {
    const Floats squashed = hyperbolic_tangent(x);
    return {squashed, one - squashed * squashed};
  } else if constexpr (kActivation == Activation::kElu) {
    // exp(x) - 1 loses its accuracy near 0, where f P(f) is the same.
    const Exponential e(at_most(0.0f, x));
    const Floats grown = where_above(x, -0.34f, e.p * e.f, e.value() - 1.0f);
    return {where_above(x, 0.0f, x, grown), where_above(x, 0.0f, one, grown + 1.0f)};
  } else {
    return {x, one};
  }
}

}  // namespace grasp::GRASP_SIMD
