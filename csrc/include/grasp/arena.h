// Scratch memory of a kernel: many arrays out of one allocation.
#pragma once

#include "grasp/simd.h"

namespace grasp::GRASP_SIMD {

inline int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// Hands out pieces of one allocation, each on a 64-byte boundary; without memory it only counts.
class Arena {
 public:
  explicit Arena(float* memory) : memory_(memory) {}
  float* take(int64_t floats) {
    float* const piece = memory_ ? memory_ + used_ : nullptr;
    used_ += round_up(floats, 16);
    return piece;
  }
  double* take_doubles(int64_t doubles) { return reinterpret_cast<double*>(take(2 * doubles)); }
  int64_t used() const { return used_; }

 private:
  float* memory_;
  int64_t used_ = 0;
};

}  // namespace grasp::GRASP_SIMD
