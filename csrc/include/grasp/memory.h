// Aligned memory for the drivers; kernels see pieces of it (arena.h).
#pragma once

#include <cstdint>
#include <memory>
#include <new>

namespace grasp {

constexpr std::align_val_t kAlignment{64};

struct Release {
  void operator()(float* memory) const { ::operator delete(memory, kAlignment); }
};
using Memory = std::unique_ptr<float, Release>;

inline Memory allocate(int64_t floats) {
  return Memory(static_cast<float*>(::operator new(sizeof(float) * floats, kAlignment)));
}

}  // namespace grasp
