// Every kernel, compiled for one instruction set. Included once by each of
// csrc/cpu/{avx512,avx2,baseline}.cpp.
#pragma once

#include "grasp/action.h"
#include "grasp/lifted.h"
#include "grasp/mlp_plan.h"

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

const MlpKernels mlp_kernels = {packed_floats,
                                pack_model,
                                scratch_of<rollout_scratch, MlpRollout>,
                                run_of<rollout_group, MlpRollout>,
                                scratch_of<lifted_scratch, MlpLifted>,
                                run_of<lifted_group, MlpLifted>,
                                scratch_of<sync_scratch, MlpSync>,
                                run_of<sync_group, MlpSync>};

extern const Kernels kernels;
const Kernels kernels = {GRASP_STRING(GRASP_SIMD),
                         lifted_item,
                         write_noise,
                         write_words,
                         write_normals,
                         action_plan,
                         &mlp_kernels};

}  // namespace grasp::GRASP_SIMD
