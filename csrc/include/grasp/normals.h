// Philox words to standard normals (Box and Muller), within 1e-6 of the exact formula, absolute or
// relative.
//
//     u(x)   = ((x >> 9) + 1/2) 2^-23
//     radius = sqrt(-2 ln u(even word))
//     angle  = 2 pi u(odd word)
//
// For every 2 kLanes normals: 72 instructions for the words, 17 for the radius, 20 for cosine and
// sine, 2 to interleave. AVX-512 saves a sixth of them (three-way logic).
#pragma once

#include "grasp/philox.h"

namespace grasp::GRASP_SIMD {

// sqrt(-2 ln u). With u = 2^e m, m in [sqrt(1/2), sqrt(2)) and f = m - 1, this is
//
//     -2 ln u = -2 ln 2 e + f P(f)
//
// Near u = 1 the exponent is 0 and f exact, so that the tiny logarithm keeps its relative accuracy.
GRASP_INLINE Floats box_muller_radius(Words word) {
  // The mantissa of a number in [1, 2) is x >> 9; subtracting 1 - 2^-24 is exact.
  const Floats u = as<Float>((word >> 9) | 0x3f800000u) - 0x1.fffffep-1f;
  const Words exponent = (as<Word>(u) - 0x3f3504f3u) & 0xff800000u;  // e 2^23, from sqrt(1/2) up
  const Floats f = as<Float>(as<Word>(u) - exponent) - 1.0f;
  // P, minimax in the error of the normals that come of it: 3e-7.
  Floats p = multiply_add(-0.24260686337947845f, f, 0.3787798285484314f);
  p = multiply_add(p, f, -0.4102945923805237f);
  p = multiply_add(p, f, 0.4974610507488251f);
  p = multiply_add(p, f, -0.6662220358848572f);
  p = multiply_add(p, f, 1.0000468492507935f);
  p = multiply_add(p, f, -2.00000262260437f);
  const Floats power = to_float(as<Int>(exponent)) * -0x1.62e43p-23f;  // -2 ln 2 e
  return square_root(multiply_add(p, f, power));
}

struct Normals {
  Floats cosine, sine;
};

// radius * (cos 2 pi u, sin 2 pi u). The top bit of the word is half a turn, a sign; the next 22
// bits are the place v in the half turn, moved to [-1/2, 1/2), where cos(pi v + pi/2) = -sin(pi v)
// and sin(pi v + pi/2) = cos(pi v). All exact so far.
GRASP_INLINE Normals box_muller_rotate(Words word, Floats radius) {
  const Floats v = as<Float>(((word >> 8) & 0x7ffffeu) | 0x3f800001u) - 1.5f;
  const Floats y = v * v;
  // s, minimax for -sin(pi v) / v, relative error 5e-9; c, for cos(pi v) / (v^2 - 1/4), 2.1e-7:
  // taking out the zeros keeps the error relative near them.
  Floats s = multiply_add(-0.07756039500236511f, y, 0.5982421040534973f);
  Floats c = multiply_add(0.21648705005645752f, y, -1.2760367393493652f);
  s = multiply_add(s, y, -2.550069808959961f);
  c = multiply_add(c, y, 3.739107370376587f);
  s = multiply_add(s, y, 5.167709827423096f);
  c = multiply_add(c, y, -3.9999992847442627f);
  s = multiply_add(s, y, -3.1415927410125732f);
  const Floats signed_radius = as<Float>(as<Word>(radius) ^ (word & 0x80000000u));
  return {signed_radius * (s * v), signed_radius * (c * (y - 0.25f))};
}

// Into memory order: the four numbers of every counter, one counter after the other.
template <class Vector>
GRASP_INLINE void store_interleaved(void* out, const Pack<Vector>& even, const Pack<Vector>& odd) {
  char* to = static_cast<char*>(out);
  GRASP_FOR_PACK({
    store_bits(to, interleave_low(even[i], odd[i]));
    store_bits(to + sizeof(Vector), interleave_high(even[i], odd[i]));
    to += 2 * sizeof(Vector);
  })
}

// The four normals of every counter in [first, first + counters), in memory order. Writes whole
// packs: less than kPadding numbers past the end.
inline void fill_normals(const Philox& philox, uint32_t first, int64_t counters, float* out) {
  static_assert(4 * kCountersPerPack <= kPadding);
  Wides counter = Philox::counters(first);
  for (int64_t i = 0; i < counters; i += kCountersPerPack) {
    const WordPairs words = philox(counter);
    const Normals normals = box_muller_rotate(words.odd, box_muller_radius(words.even));
    store_interleaved(out + 4 * i, normals.cosine, normals.sine);
    counter = counter + uint64_t(kCountersPerPack);
  }
}

}  // namespace grasp::GRASP_SIMD
