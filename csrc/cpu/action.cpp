// action_step_: plans are independent, and each is a few hundred numbers.
#include <algorithm>

#include "grasp/ops.h"

namespace grasp {

void run_action(const ActionStep& step) {
  if (step.plans == 0 || step.width == 0) return;
  const Kernels& chosen = kernels();
  const int64_t grain = std::max<int64_t>(1, 16384 / step.width);
  parallel_for(step.plans, grain, [&](int64_t begin, int64_t end) {
    for (int64_t plan = begin; plan < end; ++plan) chosen.action(step, plan);
  });
}

}  // namespace grasp
