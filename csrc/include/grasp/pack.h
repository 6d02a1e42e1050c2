// Several vectors side by side. An operation on a pack applies to its vectors one after the other,
// so that a formula, written once, runs as independent chains: one chain alone would spend most of
// its time waiting (a multiply-add takes four or five cycles, and two can start in each).
#pragma once

#include "grasp/simd.h"

namespace grasp::GRASP_SIMD {

// As many chains as the registers hold: there are 32 with AVX-512 and NEON, 16 with AVX2 and SSE.
#if GRASP_LANES == 16 || defined(__aarch64__)
constexpr int kUnroll = 4;
#else
constexpr int kUnroll = 2;
#endif

template <class Vector>
struct Pack {
  Vector vectors[kUnroll];

  GRASP_INLINE Vector& operator[](int i) { return vectors[i]; }
  GRASP_INLINE const Vector& operator[](int i) const { return vectors[i]; }
};

using Floats = Pack<Float>;
using Words = Pack<Word>;
using Wides = Pack<Wide>;

#define GRASP_FOR_PACK(operation) \
  _Pragma("GCC unroll 4") for (int i = 0; i < kUnroll; ++i) { operation; }

#define GRASP_PACK_OPERATOR(op)                                           \
  template <class Vector>                                                 \
  GRASP_INLINE Pack<Vector> operator op(Pack<Vector> a, Pack<Vector> b) { \
    GRASP_FOR_PACK(a[i] = a[i] op b[i]) return a;                         \
  }                                                                       \
  template <class Vector, class Same> /* one number or vector for all */  \
  GRASP_INLINE Pack<Vector> operator op(Pack<Vector> a, Same b) {         \
    GRASP_FOR_PACK(a[i] = a[i] op b) return a;                            \
  }
GRASP_PACK_OPERATOR(+)
GRASP_PACK_OPERATOR(-)
GRASP_PACK_OPERATOR(*)
GRASP_PACK_OPERATOR(&)
GRASP_PACK_OPERATOR(|)
GRASP_PACK_OPERATOR(^)
GRASP_PACK_OPERATOR(>>)
GRASP_PACK_OPERATOR(<<)
#undef GRASP_PACK_OPERATOR

GRASP_INLINE Floats multiply_add(Floats a, Floats b, Floats c) {
  GRASP_FOR_PACK(a[i] = multiply_add(a[i], b[i], c[i])) return a;
}
GRASP_INLINE Floats multiply_add(Floats a, Floats b, float c) {
  GRASP_FOR_PACK(a[i] = multiply_add(a[i], b[i], c)) return a;
}
GRASP_INLINE Floats multiply_add(float a, Floats b, float c) {
  GRASP_FOR_PACK(b[i] = multiply_add(splat(a), b[i], c)) return b;
}
GRASP_INLINE Floats multiply_add(float a, Floats b, Floats c) {
  GRASP_FOR_PACK(c[i] = multiply_add(splat(a), b[i], c[i])) return c;
}
GRASP_INLINE Floats square_root(Floats a) { GRASP_FOR_PACK(a[i] = square_root(a[i])) return a; }
GRASP_INLINE Wides multiply_low(Wide a, Wides b) {
  GRASP_FOR_PACK(b[i] = multiply_low(a, b[i])) return b;
}
GRASP_INLINE Words blend_even_odd(Words a, Words b) {
  GRASP_FOR_PACK(a[i] = blend_even_odd(a[i], b[i])) return a;
}

// The same bits, read as another type.
template <class To, class From>
GRASP_INLINE Pack<To> as(Pack<From> a) {
  Pack<To> b;
  GRASP_FOR_PACK(b[i] = (To)a[i]) return b;
}
// Signed integers, as numbers.
GRASP_INLINE Floats to_float(Pack<Int> a) {
  Floats b;
  GRASP_FOR_PACK(b[i] = __builtin_convertvector(a[i], Float)) return b;
}

}  // namespace grasp::GRASP_SIMD
