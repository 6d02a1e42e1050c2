// What the kernels are asked to do: plain structs of pointers, strides and numbers.
//
// Nothing here knows torch, and nothing here depends on the instruction set: these structs cross
// the border between the drivers (csrc/cpu/*.cpp, compiled once) and the kernels (compiled once per
// instruction set, see kernels.h). Symbols and formulas are those of the method: N plans, T steps,
// D features, trajectory rows 0 ... T.
#pragma once

#include <cstdint>

namespace grasp {

enum class Storage { kFloat32, kBFloat16 };
enum class NoiseKind { kNone, kWhite, kBridge };

// Losses are summed tile by tile: a tile is kTile consecutive features of one row, at a fixed place
// in the row, so that the order of every sum depends on the feature count alone, never on threads,
// batch or slicing.
constexpr int64_t kTile = 256;
// The most features one work item covers: wide rows are shared between threads at these fixed
// borders.
constexpr int64_t kBlock = 16 * kTile;
// The most rows one work item covers; its loss sums live on the stack.
constexpr int64_t kItemRows = 64;

// Gaussian noise as a pure function of (seed, plan id, iteration, row, feature).
struct NoiseField {
  NoiseKind kind = NoiseKind::kNone;
  const int64_t* plan_ids = nullptr;  // (N,)
  uint64_t seed = 0;
  uint32_t iteration = 0;
  int64_t first_row = 0;  // the absolute time t of row 0
  int64_t features = 0;
  // Bridge noise only: sin(k pi t / horizon) / k for mode k = 1 ... modes, row after row.
  int64_t modes = 0;
  int64_t rows = 0;
  const float* coefficients = nullptr;  // (modes, rows)

  // Philox counters per row: four features each.
  int64_t groups() const { return (features + 3) / 4; }
};

// A rectangle of one plan: rows [row_begin, row_end), features [feature_begin, feature_end).
struct Item {
  int64_t plan;
  int64_t row_begin, row_end;
  int64_t feature_begin, feature_end;
};

// A (N, rows, D) array whose features are adjacent; strides count elements.
struct Rows {
  void* data = nullptr;
  int64_t plan_stride = 0;
  int64_t row_stride = 0;
};

// One problem type serves the step, the losses alone and their backward: they differ in what is
// asked for.
struct Lifted {
  int64_t plans = 0, steps = 0, features = 0;
  Storage storage = Storage::kFloat32;

  Rows prediction;                        // (N, T, D)
  Rows target;                            // trajectory rows 1 ... T; written by the step
  Rows goal;                              // (N, D): row_stride 0
  const float* feature_weight = nullptr;  // (D,) or null
  const float* time_weight = nullptr;     // (T,) or null

  // Outputs, each optional.
  float* dynamics = nullptr;    // (N, T), with goal_error
  float* goal_error = nullptr;  // (N, T)
  Rows cotangent;               // residual_scale * w residual + goal_scale * v w goal_error
  Rows target_gradient;         // -residual_scale * w residual
  // Per plan and row, factor 2 included; strides in elements (row stride 0 for the step).
  const float* residual_scale = nullptr;
  const float* goal_scale = nullptr;
  int64_t scale_plan_stride = 0, scale_row_stride = 0;

  // The update of the states, for rows below updated_rows.
  int64_t updated_rows = 0;
  const float* state_lr = nullptr;     // (N,)
  const float* noise_scale = nullptr;  // (N,)
  Rows state_gradient;                 // rows 1 ... T, or null
  float state_gradient_scale = 0;
  NoiseField noise;
};

// Adam (both moments) or plain gradient descent (no moments) on the actions, then the box.
struct ActionStep {
  int64_t plans = 0, width = 0;  // width: T * A numbers of one plan, contiguous
  Storage storage = Storage::kFloat32;
  void* actions = nullptr;
  const void* gradient = nullptr;
  float* first_moment = nullptr;
  float* second_moment = nullptr;
  const float* lr = nullptr;  // (N,)
  // The box repeated to `period` numbers, a multiple of A: element i is bounded by [i % period].
  const float* low = nullptr;
  const float* high = nullptr;
  int64_t period = 0;
  float beta1 = 0, beta2 = 0;
  float rest1 = 1, rest2 = 1;  // 1 - beta, taken before rounding to float
  float epsilon = 0, correction1 = 1, correction2 = 1;
};

// One lifted Gauss-Newton step of whole plans; all arrays are dense. See newton.h.
struct NewtonStep {
  int64_t plans = 0, steps = 0, features = 0, width = 0;  // width: A
  float* trajectory = nullptr;                            // (N, T + 1, D)
  float* actions = nullptr;                               // (N, T, A)
  const float* prediction = nullptr;                      // (N, T, D)
  const float* state_jacobian = nullptr;                  // (N, T, D, D)
  const float* action_jacobian = nullptr;                 // (N, T, D, A)
  const float* goal = nullptr;                            // (N, D)
  const float* damping = nullptr;                         // (N,)
  const float* goal_weight = nullptr;                     // (D,) or null
  const float* low = nullptr;                             // (A,) or null
  const float* high = nullptr;                            // (A,) or null
  int64_t hold = 1, solves = 1;
  float max_action_step = 0, max_state_step = 0;
  float* goal_error = nullptr;  // (N,)
  float* defect = nullptr;      // (N,)
  float* step = nullptr;        // (N,)

  int64_t blocks() const { return (steps + hold - 1) / hold; }
};

struct MlpKernels;  // mlp_problem.h

// The kernels of one instruction set. `scratch` points to scratch_floats(field) floats.
struct Kernels {
  const char* name;
  // Adds to `sums` two numbers per row of the item: the dynamics and the goal loss.
  void (*lifted)(const Lifted&, const Item&, float* scratch, double* sums);
  void (*noise)(const NoiseField&, const Item&, float* scratch, Storage, const Rows& out);
  void (*words)(const NoiseField&, const Item&, uint32_t* out);
  void (*normals)(const uint32_t* words, int64_t counters, float* out);
  void (*action)(const ActionStep&, int64_t plan);
  int64_t (*newton_scratch)(const NewtonStep&);
  void (*newton)(const NewtonStep&, int64_t plan, float* scratch);
  const MlpKernels* mlp;
};

// Noise is written by whole packs of vectors, hence up to this many numbers past the end.
constexpr int64_t kPadding = 256;

// Bridge noise keeps the modes of a band of features at hand: as wide a band as fits in the
// second-level cache.
inline int64_t mode_band(int64_t modes) {
  const int64_t tiles = 16384 / (kTile * modes);
  return kTile * (tiles < 1 ? 1 : tiles > 16 ? 16 : tiles);
}
inline int64_t scratch_floats(const NoiseField& field) {
  const bool bridge = field.kind == NoiseKind::kBridge;
  return bridge ? field.modes * (mode_band(field.modes) + kPadding) : 0;
}

}  // namespace grasp
