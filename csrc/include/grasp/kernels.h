// Every kernel, compiled for one instruction set. Included once by each of
// csrc/cpu/{avx512,avx2,baseline}.cpp.
#pragma once

#include "grasp/action.h"
#include "grasp/lifted.h"
#include "grasp/mlp_jacobians.h"
#include "grasp/mlp_plan.h"
#include "grasp/newton.h"

namespace grasp::GRASP_SIMD {

#define GRASP_STRING(x) GRASP_STRING_(x)
#define GRASP_STRING_(x) #x

// The packed model as the drivers see it: a handle at the front of its memory.
constexpr int64_t kHandleFloats = (sizeof(PackedMlp) + 3) / 4;

inline int64_t packed_floats(const Mlp& mlp) {
  Arena arena(nullptr);
  arena.take(kHandleFloats);
  pack_mlp(mlp, arena);
  return arena.used();
}
inline const void* pack_model(const Mlp& mlp, float* memory) {
  Arena arena(memory);
  PackedMlp* const handle = reinterpret_cast<PackedMlp*>(arena.take(kHandleFloats));
  const PackedMlp packed = pack_mlp(mlp, arena);
  __builtin_memcpy(static_cast<void*>(handle), &packed, sizeof packed);
  return handle;
}

template <auto kFunction, class Problem>
int64_t scratch_of(const void* packed, const Problem& problem, int64_t plans) {
  return kFunction(*static_cast<const PackedMlp*>(packed), problem, plans);
}
template <auto kFunction, class Problem>
void run_of(const void* packed, const Problem& problem, int64_t first, int64_t plans,
            float* scratch) {
  kFunction(*static_cast<const PackedMlp*>(packed), problem, first, plans, scratch);
}

// `scratch` holds the packed matrix, then both operands with aligned, padded rows.
inline int64_t plain_product_scratch(int64_t rows, int64_t depth, int64_t columns) {
  Arena arena(nullptr);
  arena.take(Matrix{nullptr, depth, columns}.floats());
  arena.take(rows * (round_up(depth, kPanel) + 16));
  arena.take(rows * (round_up(columns, kPanel) + 16));
  return arena.used();
}
inline void plain_product(const float* a, const float* matrix, int64_t rows, int64_t depth,
                          int64_t columns, int64_t repeats, float* c, float* scratch) {
  Arena arena(scratch);
  const Matrix packed = pack(arena.take(Matrix{nullptr, depth, columns}.floats()), depth, columns,
                             [&](int64_t k, int64_t j) { return matrix[k * columns + j]; });
  const int64_t a_stride = round_up(depth, kPanel) + 16, c_stride = round_up(columns, kPanel) + 16;
  float* const left = arena.take(rows * a_stride);
  float* const result = arena.take(rows * c_stride);
  for (int64_t row = 0; row < rows; ++row) {
    __builtin_memcpy(left + row * a_stride, a + row * depth, sizeof(float) * depth);
  }
  for (int64_t i = 0; i < repeats; ++i) {
    product(packed, left, a_stride, rows, nullptr, result, c_stride);
  }
  for (int64_t row = 0; row < rows; ++row) {
    __builtin_memcpy(c + row * columns, result + row * c_stride, sizeof(float) * columns);
  }
}

const MlpKernels mlp_kernels = {packed_floats,
                                pack_model,
                                scratch_of<rollout_scratch, MlpRollout>,
                                run_of<rollout_group, MlpRollout>,
                                scratch_of<lifted_scratch, MlpLifted>,
                                run_of<lifted_group, MlpLifted>,
                                scratch_of<sync_scratch, MlpSync>,
                                run_of<sync_group, MlpSync>,
                                scratch_of<jacobians_scratch, MlpJacobians>,
                                run_of<jacobians_group, MlpJacobians>,
                                plain_product_scratch,
                                plain_product};

extern const Kernels kernels;
const Kernels kernels = {
    GRASP_STRING(GRASP_SIMD), lifted_item, write_noise, write_words, write_normals, action_plan,
    newton_scratch,           newton_plan, &mlp_kernels};

}  // namespace grasp::GRASP_SIMD
