// gaussian_noise and philox_words: the noise itself, for initialisation and for tests.
#include <vector>

#include "grasp/items.h"
#include "grasp/ops.h"

namespace grasp {

void run_noise(const NoiseField& field, int64_t plans, Storage storage, const Rows& out) {
  const Items items(plans, field.rows, field.features);
  const Kernels& chosen = kernels();
  parallel_for(items.count, items.grain, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(scratch_floats(field));
    for (int64_t i = begin; i < end; ++i)
      chosen.noise(field, items[i], scratch.data(), storage, out);
  });
}

void run_words(const NoiseField& field, int64_t plans, uint32_t* out) {
  if (field.rows == 0 || field.features == 0) return;
  const Kernels& chosen = kernels();
  parallel_for(plans, 1, [&](int64_t begin, int64_t end) {
    for (int64_t plan = begin; plan < end; ++plan) {
      chosen.words(field, Item{plan, 0, field.rows, 0, field.features}, out);
    }
  });
}

}  // namespace grasp
