// An MLP world model, and what its kernels are asked to do: plain structs, as in problem.h.
//
//     u = ((state, action) - input_mean) * input_inverse_scale
//     z = weight h + bias;  z = LayerNorm(z);  h = activation(z)              per layer
//     next state = output_scale * h + output_shift (+ state)
//
// N plans, T steps, D state features, A action features. All arrays here are dense float32 but for
// the weights. Plans are independent of each other: a work item is a few whole plans.
#pragma once

#include "grasp/problem.h"

namespace grasp {

// In the order of reference/mlp_dynamics.py.
enum class Activation { kIdentity, kRelu, kSilu, kGelu, kMish, kTanh, kElu, kSimNorm };

struct MlpLayer {
  int64_t inputs = 0, width = 0;
  Activation activation = Activation::kIdentity;
  int64_t group = 0;             // of kSimNorm
  const void* weight = nullptr;  // (width, inputs), in the model's storage
  const float* bias = nullptr;   // (width,)
  const float* gain = nullptr;   // (width,) of the LayerNorm, or null
  const float* shift = nullptr;  // (width,)
  float epsilon = 0;
};

struct Mlp {
  static constexpr int kMaxLayers = 16;

  int64_t state_features = 0, action_features = 0;
  bool residual = false;
  // bfloat16: weights, and what they are multiplied with, are rounded to bfloat16; sums are not.
  Storage storage = Storage::kFloat32;
  const float* input_mean = nullptr;           // (D + A,)
  const float* input_inverse_scale = nullptr;  // (D + A,)
  const float* output_scale = nullptr;         // (D,)
  const float* output_shift = nullptr;         // (D,)
  int count = 0;
  MlpLayer layers[kMaxLayers];

  int64_t inputs() const { return state_features + action_features; }
};

// Rows of activations that are worked on together: those of one layer stay in first-level cache.
constexpr int64_t kTileRows = 56;
// Plans that are rolled out together.
constexpr int64_t kRolloutPlans = 28;

struct MlpRollout {
  int64_t plans = 0, steps = 0;
  float* states = nullptr;         // (N, T + 1, D), row 0 is the start
  const float* actions = nullptr;  // (N, T, A)
  // The adjoint:
  const float* cotangent = nullptr;  // (N, T + 1, D)
  float* start_gradient = nullptr;   // (N, D)
  float* action_gradient = nullptr;  // (N, T, A)
};

// Adam (with moments) or plain descent, and the box; `actions` etc. of the whole batch.
struct MlpLifted {
  int64_t plans = 0, steps = 0, iterations = 0;
  float* trajectory = nullptr;  // (N, T + 1, D)
  ActionStep action;            // corrections and gradient are filled in by the kernel
  int64_t first_step = 1;       // Adam's
  double beta1 = 0, beta2 = 0;
  const float* goal = nullptr;            // (N, D)
  const float* schedule = nullptr;        // (K, 2): goal weight, noise scale
  const float* rates = nullptr;           // (N, 3): state step, factor on the noise, action step
  const float* feature_weight = nullptr;  // (D,) or null
  bool free_terminal = false;
  NoiseField noise;          // its iteration is that of the first
  float* history = nullptr;  // (K, N)
  uint8_t* sound = nullptr;  // (N,)
};

struct MlpSync {
  int64_t plans = 0, horizon = 0, steps = 0;
  float* trajectory = nullptr;  // (N, T + 1, D)
  ActionStep action;            // as in MlpLifted; its moments are the kernel's own
  bool adam = false;
  double beta1 = 0, beta2 = 0;
  float* best_cost = nullptr;          // (N,)
  float* best_actions = nullptr;       // (N, T, A)
  float* best_states = nullptr;        // (N, T + 1, D)
  uint8_t* sound = nullptr;            // (N,)
  const float* start = nullptr;        // (N, D)
  const float* goal = nullptr;         // (N, D)
  const float* lr = nullptr;           // (N,)
  const float* cost_weight = nullptr;  // (D,) or null
  float stop_cost = 0, blend = 0;
  bool free_terminal = false;
};

// F and its Jacobians at M rows; `plans` as everywhere is what is shared out, here rows.
struct MlpJacobians {
  int64_t plans = 0;
  const float* states = nullptr;     // (M, D)
  const float* actions = nullptr;    // (M, A)
  float* prediction = nullptr;       // (M, D)
  float* state_jacobian = nullptr;   // (M, D, D)
  float* action_jacobian = nullptr;  // (M, D, A)
};

// The MLP kernels of one instruction set. A model is packed once per call: `pack` into
// packed_floats(model) floats, a handle comes back. A run takes the plans [first, first + plans) of
// a problem and scratch of the size that `..._scratch` says; memory is on 64-byte boundaries.
struct MlpKernels {
  int64_t (*packed_floats)(const Mlp&);
  const void* (*pack)(const Mlp&, float* memory);
  int64_t (*rollout_scratch)(const void* packed, const MlpRollout&, int64_t plans);
  void (*rollout)(const void* packed, const MlpRollout&, int64_t first, int64_t plans, float*);
  int64_t (*lifted_scratch)(const void* packed, const MlpLifted&, int64_t plans);
  void (*lifted)(const void* packed, const MlpLifted&, int64_t first, int64_t plans, float*);
  int64_t (*sync_scratch)(const void* packed, const MlpSync&, int64_t plans);
  void (*sync)(const void* packed, const MlpSync&, int64_t first, int64_t plans, float*);
  int64_t (*jacobians_scratch)(const void* packed, const MlpJacobians&, int64_t plans);
  void (*jacobians)(const void* packed, const MlpJacobians&, int64_t first, int64_t plans, float*);
  // c (rows, columns) = a (rows, depth) matrix (depth, columns), `repeats` times: for tests and for
  // the benchmark that decides between this product and a library's.
  int64_t (*product_scratch)(int64_t rows, int64_t depth, int64_t columns);
  void (*product)(const float* a, const float* matrix, int64_t rows, int64_t depth, int64_t columns,
                  int64_t repeats, float* c, float* scratch);
};

}  // namespace grasp
