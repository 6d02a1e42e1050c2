// The MLP ops: packs the model once, then shares out the plans, a few at a time.
#include <algorithm>

#include "grasp/memory.h"
#include "grasp/ops.h"

namespace grasp {

namespace {

// Groups of at most `most` plans, evenly filled, and one for every thread if there are as many.
template <class Problem, class Scratch, class Run>
void run_groups(const Mlp& mlp, const Problem& problem, int64_t most, Scratch scratch, Run run) {
  const int64_t plans = problem.plans;
  if (plans == 0) return;
  const MlpKernels& chosen = *kernels().mlp;
  const Memory memory = allocate(chosen.packed_floats(mlp));
  const void* const packed = chosen.pack(mlp, memory.get());
  const int64_t groups = std::max((plans + most - 1) / most, std::min(plans, thread_count()));
  parallel_for(groups, 1, [&](int64_t begin, int64_t end) {
    const Memory mine = allocate((chosen.*scratch)(packed, problem, (plans + groups - 1) / groups));
    for (int64_t group = begin; group < end; ++group) {
      const int64_t first = group * plans / groups, last = (group + 1) * plans / groups;
      (chosen.*run)(packed, problem, first, last - first, mine.get());
    }
  });
}

}  // namespace

void run_mlp(const Mlp& mlp, const MlpRollout& rollout) {
  run_groups(mlp, rollout, kRolloutPlans, &MlpKernels::rollout_scratch, &MlpKernels::rollout);
}

void run_mlp(const Mlp& mlp, const MlpLifted& lifted) {
  const int64_t most = std::max<int64_t>(1, kTileRows / std::max<int64_t>(1, lifted.steps));
  run_groups(mlp, lifted, most, &MlpKernels::lifted_scratch, &MlpKernels::lifted);
}

void run_mlp(const Mlp& mlp, const MlpSync& sync) {
  run_groups(mlp, sync, kRolloutPlans, &MlpKernels::sync_scratch, &MlpKernels::sync);
}

void run_mlp(const Mlp& mlp, const MlpJacobians& jacobians) {
  run_groups(mlp, jacobians, kTileRows, &MlpKernels::jacobians_scratch, &MlpKernels::jacobians);
}

void run_product(const float* a, const float* matrix, int64_t rows, int64_t depth, int64_t columns,
                 int64_t repeats, float* c) {
  const MlpKernels& chosen = *kernels().mlp;
  const Memory scratch = allocate(chosen.product_scratch(rows, depth, columns));
  chosen.product(a, matrix, rows, depth, columns, repeats, c, scratch.get());
}

}  // namespace grasp
