// lifted_step_, lifted_loss and lifted_loss_backward: shares out the work, then adds up the losses
// in a fixed order.
#include <algorithm>
#include <vector>

#include "grasp/items.h"
#include "grasp/ops.h"

namespace grasp {

void run_lifted(const Lifted& lifted) {
  const Items items(lifted.plans, lifted.steps, lifted.features);
  const Kernels& chosen = kernels();
  // A row that spans several blocks is summed by several items: keep their sums, combine them
  // afterwards.
  std::vector<double> partial(
      items.blocks > 1 && lifted.dynamics ? 2 * items.blocks * lifted.plans * lifted.steps : 0);

  const auto finish = [&](int64_t plan, int64_t row, double dynamics, double goal) {
    const int64_t out = plan * lifted.steps + row;
    lifted.dynamics[out] = float(dynamics);
    lifted.goal_error[out] = float(lifted.time_weight ? lifted.time_weight[row] * goal : goal);
  };

  parallel_for(items.count, items.grain, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(scratch_floats(lifted.noise));
    for (int64_t i = begin; i < end; ++i) {
      const Item item = items[i];
      double sums[2 * kItemRows] = {};
      chosen.lifted(lifted, item, scratch.data(), sums);
      if (!lifted.dynamics) continue;
      for (int64_t row = item.row_begin; row < item.row_end; ++row) {
        const double* sum = sums + 2 * (row - item.row_begin);
        if (items.blocks == 1) {
          finish(item.plan, row, sum[0], sum[1]);
        } else {
          const int64_t block = item.feature_begin / kBlock;
          std::copy_n(sum, 2,
                      &partial[2 * ((item.plan * lifted.steps + row) * items.blocks + block)]);
        }
      }
    }
  });

  if (lifted.dynamics && items.count == 0) {  // no features: every sum is empty
    std::fill_n(lifted.dynamics, lifted.plans * lifted.steps, 0.0f);
    std::fill_n(lifted.goal_error, lifted.plans * lifted.steps, 0.0f);
  }
  if (partial.empty()) return;
  for (int64_t plan = 0; plan < lifted.plans; ++plan) {
    for (int64_t row = 0; row < lifted.steps; ++row) {
      const double* sum = &partial[2 * (plan * lifted.steps + row) * items.blocks];
      double dynamics = 0, goal = 0;
      for (int64_t block = 0; block < items.blocks; ++block) {
        dynamics += sum[2 * block];
        goal += sum[2 * block + 1];
      }
      finish(plan, row, dynamics, goal);
    }
  }
}

}  // namespace grasp
