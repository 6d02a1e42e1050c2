// An MLP world model and its Jacobians at many rows.
//
// A tile of rows goes forward and keeps its slopes. Then D unit cotangents for each go back, a tile
// of those at a time, whichever rows they belong to: products of any D fill their registers.
#pragma once

#include "grasp/mlp.h"

namespace grasp::GRASP_SIMD {

inline int64_t jacobians_scratch(const PackedMlp& packed, const MlpJacobians&, int64_t rows) {
  Arena arena(nullptr);
  MlpTile(packed, kTileRows, rows, arena);
  return arena.used();
}

// At the rows [first, first + rows), at most kTileRows.
inline void jacobians_group(const PackedMlp& packed, const MlpJacobians& problem, int64_t first,
                            int64_t rows, float* scratch) {
  const Mlp& mlp = *packed.mlp;
  const int64_t d = mlp.state_features, a = mlp.action_features;
  Arena arena(scratch);
  MlpTile tile(packed, kTileRows, rows, arena);
  const float* const states = problem.states + first * d;
  for (int64_t row = 0; row < rows; ++row) {
    tile.set_input(row, states + row * d, problem.actions + (first + row) * a);
  }
  const float* const output = tile.forward<true>(rows);
  for (int64_t row = 0; row < rows; ++row) {
    tile.finish(output + row * tile.stride(), states + row * d,
                problem.prediction + (first + row) * d);
  }
  float* state_row = problem.state_jacobian + first * d * d;
  float* action_row = problem.action_jacobian + first * d * a;
  const float* const inverse = mlp.input_inverse_scale;
  for (int64_t begin = 0; begin < rows * d; begin += kTileRows) {
    const int64_t units = smaller(kTileRows, rows * d - begin);
    const float* from = tile.backward_units(begin, units);
    for (int64_t unit = begin; unit < begin + units; ++unit) {
      over_row(d, [&](int64_t i, auto... n) {
        store(state_row + i, load(inverse + i, n...) * load(from + i, n...), n...);
      });
      over_row(a, [&](int64_t i, auto... n) {
        store(action_row + i, load(inverse + d + i, n...) * load(from + d + i, n...), n...);
      });
      if (mlp.residual) state_row[unit % d] += 1;
      from += tile.stride();
      state_row += d;
      action_row += a;
    }
  }
}

}  // namespace grasp::GRASP_SIMD
