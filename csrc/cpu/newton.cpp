// lifted_newton_step_: plans are independent.
#include <algorithm>

#include "grasp/memory.h"
#include "grasp/ops.h"

namespace grasp {

void run_newton(const NewtonStep& step) {
  if (step.plans == 0) return;
  const Kernels& chosen = kernels();
  const int64_t work = step.steps * step.features * step.features * (step.features + step.width);
  const int64_t grain = std::max<int64_t>(1, 16384 / std::max<int64_t>(1, work));
  parallel_for(step.plans, grain, [&](int64_t begin, int64_t end) {
    const Memory scratch = allocate(chosen.newton_scratch(step));
    for (int64_t plan = begin; plan < end; ++plan) chosen.newton(step, plan, scratch.get());
  });
}

}  // namespace grasp
