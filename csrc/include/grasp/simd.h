// Vectors of GRASP_LANES floats, and the few operations a compiler can't write by itself.
//
// GCC's and Clang's vector extensions give arithmetic, shifts, comparisons, conversions and
// shuffles for any width from one source. What remains differs per instruction set: the 32 x 32 ->
// 64 bit product, the square root, and loads and stores of part of a vector.
//
// This header and all that include it are compiled once per instruction set, each time in a
// namespace of its own (GRASP_SIMD). They must not instantiate templates of the standard library:
// the linker keeps one copy of those for the whole program, and it could be the AVX-512 one.
#pragma once

#include "grasp/problem.h"

#if !defined(GRASP_SIMD) || !defined(GRASP_LANES)
#error "include this from one of csrc/cpu/{avx512,avx2,baseline}.cpp"
#endif

#define GRASP_INLINE inline __attribute__((always_inline))

namespace grasp::GRASP_SIMD {

constexpr int kLanes = GRASP_LANES;

typedef float Float __attribute__((vector_size(4 * kLanes)));
typedef int32_t Int __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Word __attribute__((vector_size(4 * kLanes)));
typedef uint64_t Wide __attribute__((vector_size(4 * kLanes)));  // half as many lanes
typedef uint16_t Half __attribute__((vector_size(2 * kLanes)));  // the bits of bfloat16 numbers

struct BFloat16 {
  uint16_t bits;
};

// Minus zero, since x - 0 is x for every x: adding it would cost an instruction, for x = -0.
GRASP_INLINE Float splat(float x) { return x - Float{}; }
GRASP_INLINE Word splat_word(uint32_t x) { return Word{} + x; }
GRASP_INLINE Wide splat_wide(uint64_t x) { return Wide{} + x; }

// ---- The product of the low 32 bits of every 64-bit lane, the square root, and a * b + c ----
//
// Fusing is spelled out, and the compiler is told not to fuse by itself (-ffp-contract=off): it
// would fuse the same formula differently in different places, and equal coordinates must give
// equal bits.

#if GRASP_LANES == 16
GRASP_INLINE Wide multiply_low(Wide a, Wide b) {
  return (Wide)_mm512_mul_epu32((__m512i)a, (__m512i)b);
}
GRASP_INLINE Float square_root(Float x) { return (Float)_mm512_sqrt_ps((__m512)x); }
GRASP_INLINE Float multiply_add(Float a, Float b, Float c) {
  return (Float)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
#elif GRASP_LANES == 8
GRASP_INLINE Wide multiply_low(Wide a, Wide b) {
  return (Wide)_mm256_mul_epu32((__m256i)a, (__m256i)b);
}
GRASP_INLINE Float square_root(Float x) { return (Float)_mm256_sqrt_ps((__m256)x); }
GRASP_INLINE Float multiply_add(Float a, Float b, Float c) {
  return (Float)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
#elif defined(__SSE2__)
GRASP_INLINE Wide multiply_low(Wide a, Wide b) {
  return (Wide)_mm_mul_epu32((__m128i)a, (__m128i)b);
}
GRASP_INLINE Float square_root(Float x) { return (Float)_mm_sqrt_ps((__m128)x); }
GRASP_INLINE Float multiply_add(Float a, Float b, Float c) { return a * b + c; }
#elif defined(__aarch64__)
GRASP_INLINE Wide multiply_low(Wide a, Wide b) {
  return (Wide)vmull_u32(vmovn_u64((uint64x2_t)a), vmovn_u64((uint64x2_t)b));
}
GRASP_INLINE Float square_root(Float x) { return (Float)vsqrtq_f32((float32x4_t)x); }
GRASP_INLINE Float multiply_add(Float a, Float b, Float c) {
  return (Float)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}
#else
GRASP_INLINE Wide multiply_low(Wide a, Wide b) { return (a & 0xffffffffu) * (b & 0xffffffffu); }
GRASP_INLINE Float square_root(Float x) {
  for (int i = 0; i < kLanes; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
}
GRASP_INLINE Float multiply_add(Float a, Float b, Float c) { return a * b + c; }
#endif
GRASP_INLINE Float multiply_add(Float a, Float b, float c) { return multiply_add(a, b, splat(c)); }
GRASP_INLINE Float multiply_add(float a, Float b, Float c) { return multiply_add(splat(a), b, c); }

// The lesser (greater) of a limit and x; x where that is NaN.
#if GRASP_LANES == 16
GRASP_INLINE Float at_most(Float limit, Float x) {
  return (Float)_mm512_min_ps((__m512)limit, (__m512)x);
}
GRASP_INLINE Float at_least(Float limit, Float x) {
  return (Float)_mm512_max_ps((__m512)limit, (__m512)x);
}
#elif GRASP_LANES == 8
GRASP_INLINE Float at_most(Float limit, Float x) {
  return (Float)_mm256_min_ps((__m256)limit, (__m256)x);
}
GRASP_INLINE Float at_least(Float limit, Float x) {
  return (Float)_mm256_max_ps((__m256)limit, (__m256)x);
}
#else
GRASP_INLINE Float at_most(Float limit, Float x) { return limit < x ? limit : x; }
GRASP_INLINE Float at_least(Float limit, Float x) { return limit > x ? limit : x; }
#endif

// ---- Shuffles ----

// Even 32-bit lanes of a, odd ones of b.
GRASP_INLINE Word blend_even_odd(Word a, Word b) {
#if GRASP_LANES == 16
  return __builtin_shufflevector(a, b, 0, 17, 2, 19, 4, 21, 6, 23, 8, 25, 10, 27, 12, 29, 14, 31);
#elif GRASP_LANES == 8
  return __builtin_shufflevector(a, b, 0, 9, 2, 11, 4, 13, 6, 15);
#else
  return __builtin_shufflevector(a, b, 0, 5, 2, 7);
#endif
}

// Interleaves the low (or the high) halves of every 128 bits: a0 b0 a1 b1 (or a2 b2 a3 b3).
template <class Vector>
GRASP_INLINE Vector interleave_low(Vector a, Vector b) {
#if GRASP_LANES == 16
  return __builtin_shufflevector(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
#elif GRASP_LANES == 8
  return __builtin_shufflevector(a, b, 0, 8, 1, 9, 4, 12, 5, 13);
#else
  return __builtin_shufflevector(a, b, 0, 4, 1, 5);
#endif
}
template <class Vector>
GRASP_INLINE Vector interleave_high(Vector a, Vector b) {
#if GRASP_LANES == 16
  return __builtin_shufflevector(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
#elif GRASP_LANES == 8
  return __builtin_shufflevector(a, b, 2, 10, 3, 11, 6, 14, 7, 15);
#else
  return __builtin_shufflevector(a, b, 2, 6, 3, 7);
#endif
}

// ---- bfloat16: the upper half of a float32, rounded to nearest, ties to even ----

GRASP_INLINE Float widen(Half x) { return (Float)(__builtin_convertvector(x, Word) << 16); }
GRASP_INLINE Half narrow(Float x) {
  const Word bits = (Word)x;
  const Word rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const Word quiet_nan = splat_word(0x7fc0);  // rounding could carry a NaN's payload into the sign
  return __builtin_convertvector(x == x ? rounded : quiet_nan, Half);
}

// ---- Memory: any alignment ----

template <class Vector>
GRASP_INLINE Vector load_bits(const void* p) {
  typedef Vector Unaligned __attribute__((aligned(1), may_alias));
  return *static_cast<const Unaligned*>(p);
}
template <class Vector>
GRASP_INLINE void store_bits(void* p, Vector x) {
  typedef Vector Unaligned __attribute__((aligned(1), may_alias));
  *static_cast<Unaligned*>(p) = x;
}

GRASP_INLINE Float load(const float* p) { return load_bits<Float>(p); }
GRASP_INLINE Float load(const BFloat16* p) { return widen(load_bits<Half>(p)); }
GRASP_INLINE void store(float* p, Float x) { store_bits(p, x); }
GRASP_INLINE void store(BFloat16* p, Float x) { store_bits(p, narrow(x)); }

// The first n < kLanes numbers; the other lanes are zero, and no byte past the end is touched.
#if GRASP_LANES == 16
GRASP_INLINE Float load(const float* p, int n) {
  return (Float)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
}
GRASP_INLINE void store(float* p, Float x, int n) {
  _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)x);
}
#elif GRASP_LANES == 8
GRASP_INLINE __m256i first_lanes(int n) { return (__m256i)(Int{0, 1, 2, 3, 4, 5, 6, 7} < n); }
GRASP_INLINE Float load(const float* p, int n) {
  return (Float)_mm256_maskload_ps(p, first_lanes(n));
}
GRASP_INLINE void store(float* p, Float x, int n) {  // in pieces: masked stores are slow on Zen
  __m128 rest = _mm256_castps256_ps128((__m256)x);
  if (n & 4) {
    _mm_storeu_ps(p, rest);
    rest = _mm256_extractf128_ps((__m256)x, 1);
    p += 4;
  }
  if (n & 2) {
    _mm_storel_pi((__m64*)p, rest);
    rest = _mm_movehl_ps(rest, rest);
    p += 2;
  }
  if (n & 1) _mm_store_ss(p, rest);
}
#else
GRASP_INLINE Float load(const float* p, int n) {
  Float x{};
  for (int i = 0; i < n; ++i) x[i] = p[i];
  return x;
}
GRASP_INLINE void store(float* p, Float x, int n) {
  for (int i = 0; i < n; ++i) p[i] = x[i];
}
#endif
GRASP_INLINE Float load(const BFloat16* p, int n) {
  Half x{};
  for (int i = 0; i < n; ++i) x[i] = p[i].bits;
  return widen(x);
}
GRASP_INLINE void store(BFloat16* p, Float x, int n) {
  const Half bits = narrow(x);
  for (int i = 0; i < n; ++i) p[i].bits = bits[i];
}

GRASP_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
GRASP_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// body(i) for every whole vector of a row, and body(i, lanes) for the rest of it.
template <class Body>
GRASP_INLINE void over_row(int64_t size, const Body& body) {
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) body(i);
  if (i < size) body(i, int(size - i));
}

// Sums of all lanes, halving the vector until four are left.
typedef float Four __attribute__((vector_size(16)));
GRASP_INLINE Four four_sums(Float x) {
#if GRASP_LANES == 16
  const auto eight = __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7) +
                     __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15);
  return __builtin_shufflevector(eight, eight, 0, 1, 2, 3) +
         __builtin_shufflevector(eight, eight, 4, 5, 6, 7);
#elif GRASP_LANES == 8
  return __builtin_shufflevector(x, x, 0, 1, 2, 3) + __builtin_shufflevector(x, x, 4, 5, 6, 7);
#else
  return x;
#endif
}
GRASP_INLINE double sum_lanes(Float x) {
  const Four four = four_sums(x);
  return (double(four[0]) + double(four[1])) + (double(four[2]) + double(four[3]));
}
GRASP_INLINE float sum_lanes_float(Float x) {
  Four four = four_sums(x);
  four += __builtin_shufflevector(four, four, 2, 3, 0, 1);
  return four[0] + four[1];
}

}  // namespace grasp::GRASP_SIMD
