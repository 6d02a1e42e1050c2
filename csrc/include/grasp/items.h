// How N plans x T rows x D features are cut into work items. The cuts between rows follow
// convenience; those between features are fixed, since they decide the order of the loss sums.
#pragma once

#include <algorithm>

#include "grasp/problem.h"

namespace grasp {

struct Items {
  static constexpr int64_t kItemWork = 32768;   // elements per item, about: tens of microseconds
  static constexpr int64_t kGrainWork = 16384;  // elements below which a second thread does not pay

  Items(int64_t plans, int64_t rows, int64_t features) : rows(rows), features(features) {
    if (plans == 0 || rows == 0 || features == 0) return;
    const int64_t width = std::min(features, kBlock);
    blocks = (features + kBlock - 1) / kBlock;
    item_rows = std::clamp<int64_t>(kItemWork / width, 1, std::min(rows, kItemRows));
    chunks = (rows + item_rows - 1) / item_rows;
    count = plans * chunks * blocks;
    grain = std::max<int64_t>(1, kGrainWork / (item_rows * width));
  }

  Item operator[](int64_t i) const {
    const int64_t block = i % blocks, chunk = i / blocks % chunks, plan = i / blocks / chunks;
    return {plan, chunk * item_rows, std::min(rows, (chunk + 1) * item_rows), block * kBlock,
            std::min(features, (block + 1) * kBlock)};
  }

  int64_t rows, features;
  int64_t blocks = 1, chunks = 0, item_rows = 1;
  int64_t count = 0, grain = 1;
};

}  // namespace grasp
