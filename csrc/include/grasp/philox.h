// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), kLanes / 2
// counters at a time.
//
// One round:
//
//     c0, c1, c2, c3  <-  hi(M1 c2) ^ c1 ^ k0,  lo(M1 c2),  hi(M0 c0) ^ c3 ^ k1,  lo(M0 c0)
//
// Every word sits in the low half of a 64-bit lane, and the high half may hold anything, since a
// product reads low halves only. So a 64-bit product *is* its low word, and its high word is one
// shift away: eight instructions a round, none for packing.
//
// Counter words 1 ... 3 are the same for a whole row of noise. Half of the first two rounds and a
// key of the third are therefore computed once per plan, in the constructor.
#pragma once

#include "grasp/pack.h"

namespace grasp::GRASP_SIMD {

constexpr int kCountersPerVector = kLanes / 2;
constexpr int kCountersPerPack = kUnroll * kCountersPerVector;

// Each lane pair of `even` holds words 0 and 2 of a counter, of `odd` words 1 and 3: Box and Muller
// want a radius from the former and an angle from the latter.
struct WordPairs {
  Words even, odd;
};

class Philox {
 public:
  Philox(uint64_t seed, uint32_t iteration, uint64_t plan_id) {
    uint32_t key0[10], key1[10];
    for (int round = 0; round < 10; ++round) {
      key0[round] = uint32_t(seed) + uint32_t(round) * 0x9E3779B9u;
      key1[round] = uint32_t(seed >> 32) + uint32_t(round) * 0xBB67AE85u;
    }
    const uint64_t product1 = kM1 * uint32_t(plan_id);
    const uint32_t c0 = uint32_t(product1 >> 32) ^ iteration ^ key0[0];  // after round 1
    const uint64_t product2 = kM0 * c0;
    first_key1_ = splat_wide(uint32_t(plan_id >> 32) ^ key1[0]);
    second_key0_ = splat_wide(uint32_t(product1) ^ key0[1]);
    second_key1_ = splat_wide(uint32_t(product2 >> 32) ^ key1[1]);
    third_key1_ = splat_wide(uint32_t(product2) ^ key1[2]);
    for (int round = 2; round < 9; ++round) {
      key0_[round] = splat_wide(key0[round]);
      key1_[round] = splat_wide(key1[round]);
    }
    last_key_ = splat_wide(key0[9] | uint64_t(key1[9]) << 32);
  }

  // Counter word 0 of lane j of the first vector: a vector holds consecutive counters, in the order
  // that makes interleave_low and interleave_high of its results consecutive in memory.
  static GRASP_INLINE Wide lane_counters() {
#if GRASP_LANES == 16
    return Wide{0, 4, 1, 5, 2, 6, 3, 7};
#elif GRASP_LANES == 8
    return Wide{0, 2, 1, 3};
#else
    return Wide{0, 1};
#endif
  }

  // Counter words 0 of a pack that starts at counter `first`.
  static GRASP_INLINE Wides counters(uint32_t first) {
    Wides counter;
    GRASP_FOR_PACK(counter[i] = lane_counters() + uint64_t(first + i * kCountersPerVector))
    return counter;
  }

  GRASP_INLINE WordPairs operator()(Wides counter) const {
    const Wide m0 = splat_wide(kM0), m1 = splat_wide(kM1);
    // Round 0: c2 = plan id and its product are the same for all.
    Wides p0 = multiply_low(m0, counter), p1;
    Wides c0, c1, c2 = (p0 >> 32) ^ first_key1_, c3 = p0;
    // Round 1: now it is c0 whose product is the same for all.
    p1 = multiply_low(m1, c2);
    c0 = (p1 >> 32) ^ second_key0_;
    c2 = c3 ^ second_key1_;
    c1 = p1;
    // Round 2: c3 is the same for all, and part of the key.
    p0 = multiply_low(m0, c0);
    p1 = multiply_low(m1, c2);
    c0 = (p1 >> 32) ^ c1 ^ key0_[2];
    c2 = (p0 >> 32) ^ third_key1_;
    c1 = p1;
    c3 = p0;
#pragma GCC unroll 6
    for (int round = 3; round < 9; ++round) {
      p0 = multiply_low(m0, c0);
      p1 = multiply_low(m1, c2);
      c0 = (p1 >> 32) ^ (c1 ^ key0_[round]);
      c2 = (p0 >> 32) ^ (c3 ^ key1_[round]);
      c1 = p1;
      c3 = p0;
    }
    // Round 9 leaves the words side by side.
    p0 = multiply_low(m0, c0);
    p1 = multiply_low(m1, c2);
    const Words high = blend_even_odd(as<Word>(p1 >> 32), as<Word>(p0));
    const Words mixed = blend_even_odd(as<Word>(c1), as<Word>(c3 << 32));
    return {high ^ mixed ^ (Word)last_key_, blend_even_odd(as<Word>(p1), as<Word>(p0 << 32))};
  }

 private:
  static constexpr uint64_t kM0 = 0xD2511F53u, kM1 = 0xCD9E8D57u;

  Wide first_key1_, second_key0_, second_key1_, third_key1_, last_key_;
  Wide key0_[9], key1_[9];  // rounds 2 ... 8 (counted from 0)
};

}  // namespace grasp::GRASP_SIMD
