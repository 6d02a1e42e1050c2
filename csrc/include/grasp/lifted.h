// The inner loop of lifted_step_, lifted_loss and lifted_loss_backward: one pass over one tile.
//
//     residual   = prediction - target
//     goal_error = prediction - goal
//     dynamics  += w residual^2
//     goal      += w goal_error^2
//     cotangent  = residual_scale w residual + goal_scale w goal_error
//
// and then, for the step and for the backward,
//
//     target    += 2 state_lr w residual - pull state_gradient + noise_scale noise
//     gradient   = -residual_scale w residual
//
// It reads prediction and target once, and writes cotangent and target (or gradient) once; goal and
// weights stay in cache over the rows of an item.
#pragma once

#include "grasp/noise.h"

namespace grasp::GRASP_SIMD {

enum Task : unsigned {
  kWeighted = 1,   // there are feature weights
  kLosses = 2,     // sum both losses
  kCotangent = 4,  // write the cotangent
  kGradient = 8,   // write the gradient of the target
  kUpdate = 16,    // move the target ...
  kNoisy = 32,     // ... with noise
  kPulled = 64,    // ... and with a state gradient
};

// The same columns of consecutive rows of one plan.
template <class T>
struct Column {
  T* data = nullptr;
  int64_t stride = 0;

  Column() = default;
  Column(const Rows& rows, int64_t plan, int64_t row, int64_t feature) : stride(rows.row_stride) {
    if (!rows.data) return;
    data = static_cast<T*>(rows.data) + plan * rows.plan_stride + row * stride + feature;
  }
  GRASP_INLINE T* at(int64_t row) const { return data ? data + row * stride : nullptr; }
};

// What one call of the inner loop needs: a tile of a wide row, or the tiles of many narrow ones.
template <class T>
struct Band {
  int64_t rows = 0, width = 0;
  Column<const T> prediction, goal, state_gradient;
  Column<T> target, cotangent, gradient;
  const float* weight = nullptr;
  const float* noise = nullptr;
  int64_t noise_stride = 0;
  const float* residual_scale = nullptr;
  const float* goal_scale = nullptr;
  const float* time_weight = nullptr;
  int64_t scale_stride = 0;
  float state_lr = 0, noise_scale = 0, pull = 0;  // pull = state_lr * state_gradient_scale
};

// One row of a band. Members that a task does not use are left out of it by the compiler.
template <class T>
struct Tile {
  const T *prediction, *goal, *state_gradient;
  T *target, *cotangent, *gradient;
  const float *weight, *noise;
  float residual_scale = 0, goal_scale = 0;
  float state_lr, noise_scale, pull;

  GRASP_INLINE Tile(const Band<T>& band, int64_t row)
      : prediction(band.prediction.at(row)),
        goal(band.goal.at(row)),
        state_gradient(band.state_gradient.at(row)),
        target(band.target.at(row)),
        cotangent(band.cotangent.at(row)),
        gradient(band.gradient.at(row)),
        weight(band.weight),
        noise(band.noise + row * band.noise_stride),
        state_lr(band.state_lr),
        noise_scale(band.noise_scale),
        pull(band.pull) {
    if (!band.residual_scale) return;
    residual_scale = band.residual_scale[row * band.scale_stride];
    goal_scale = band.goal_scale[row * band.scale_stride];
    if (band.time_weight) goal_scale *= band.time_weight[row];
  }
};

struct LossSums {
  Float dynamics{}, goal{};
};

// One vector of features, from feature i of the tile on. `count` is empty for a whole vector, or
// how many lanes exist.
template <unsigned kTask, class T, class... Count>
GRASP_INLINE void lifted_vector(const Tile<T>& tile, int64_t i, LossSums& sums, Count... count) {
  const Float prediction = load(tile.prediction + i, count...);
  const Float target = load(tile.target + i, count...);
  const Float residual = prediction - target;
  const Float goal_error = prediction - load(tile.goal + i, count...);
  Float weighted_residual = residual, weighted_error = goal_error;
  if constexpr (kTask & kWeighted) {
    const Float weight = load(tile.weight + i, count...);
    weighted_residual *= weight;
    weighted_error *= weight;
  }
  if constexpr (kTask & kLosses) {
    sums.dynamics = multiply_add(weighted_residual, residual, sums.dynamics);
    sums.goal = multiply_add(weighted_error, goal_error, sums.goal);
  }
  const Float pushed = tile.residual_scale * weighted_residual;
  if constexpr (kTask & kCotangent) {
    store(tile.cotangent + i, multiply_add(tile.goal_scale, weighted_error, pushed), count...);
  }
  if constexpr (kTask & kGradient) store(tile.gradient + i, -pushed, count...);
  if constexpr (kTask & kUpdate) {
    Float moved = multiply_add(tile.state_lr, pushed, target);  // the step: residual_scale is 2
    if constexpr (kTask & kPulled) {
      moved = multiply_add(-tile.pull, load(tile.state_gradient + i, count...), moved);
    }
    if constexpr (kTask & kNoisy) {
      moved = multiply_add(tile.noise_scale, load(tile.noise + i), moved);
    }
    store(tile.target + i, moved, count...);
  }
}

template <unsigned kTask, class T>
void lifted_band(const Band<T>& band, double* sums) {
  const int64_t width = band.width;
  for (int64_t row = 0; row < band.rows; ++row) {
    const Tile<T> tile(band, row);
    LossSums lanes;
    int64_t i = 0;
    for (; i + kLanes <= width; i += kLanes) lifted_vector<kTask>(tile, i, lanes);
    if (i < width) lifted_vector<kTask>(tile, i, lanes, int(width - i));
    if constexpr (kTask & kLosses) {
      sums[2 * row] += sum_lanes(lanes.dynamics);
      sums[2 * row + 1] += sum_lanes(lanes.goal);
    }
  }
}

// Only these combinations occur, each with and without weights.
template <class T>
using BandFunction = void (*)(const Band<T>&, double*);

template <class T, unsigned... kTasks>
BandFunction<T> find_among(unsigned task) {
  BandFunction<T> found = nullptr;
  ((task == kTasks ? void(found = lifted_band<kTasks, T>) : void(0)), ...);
  ((task == (kTasks | kWeighted) ? void(found = lifted_band<(kTasks | kWeighted), T>) : void(0)),
   ...);
  return found;
}
template <class T>
BandFunction<T> find_lifted_band(unsigned task) {
  constexpr unsigned kStep = kLosses | kCotangent;
  return find_among<T, kLosses, kCotangent | kGradient, kStep, kStep | kUpdate,
                    kStep | kUpdate | kNoisy, kStep | kUpdate | kPulled,
                    kStep | kUpdate | kPulled | kNoisy>(task);
}

// Runs the inner loop on the bands that a walk comes by. All rows of its item move, or none does.
template <class T>
class LiftedVisitor {
 public:
  LiftedVisitor(const Lifted& lifted, const Item& item, bool moving, double* sums)
      : lifted_(lifted), plan_(item.plan), sums_(sums - 2 * item.row_begin) {
    unsigned task = 0;
    if (lifted.feature_weight) task |= kWeighted;
    if (lifted.dynamics) task |= kLosses;
    if (lifted.cotangent.data) task |= kCotangent;
    if (lifted.target_gradient.data) task |= kGradient;
    if (moving) {
      task |= kUpdate;
      if (lifted.state_gradient.data) task |= kPulled;
      if (lifted.noise.kind != NoiseKind::kNone) task |= kNoisy;
      band_.state_lr = lifted.state_lr[plan_];
      band_.noise_scale = lifted.noise_scale[plan_];
      band_.pull = band_.state_lr * lifted.state_gradient_scale;
    }
    function_ = find_lifted_band<T>(task);
  }

  void operator()(const Span& span, const float* noise, int64_t noise_stride) {
    const int64_t row = span.row, feature = span.feature;
    band_.rows = span.rows;
    band_.width = span.width;
    band_.prediction = {lifted_.prediction, plan_, row, feature};
    band_.target = {lifted_.target, plan_, row, feature};
    band_.goal = {lifted_.goal, plan_, row, feature};
    band_.cotangent = {lifted_.cotangent, plan_, row, feature};
    band_.gradient = {lifted_.target_gradient, plan_, row, feature};
    band_.state_gradient = {lifted_.state_gradient, plan_, row, feature};
    band_.weight = lifted_.feature_weight ? lifted_.feature_weight + feature : nullptr;
    band_.noise = noise;
    band_.noise_stride = noise_stride;
    if (lifted_.residual_scale) {
      band_.scale_stride = lifted_.scale_row_stride;
      const int64_t i = plan_ * lifted_.scale_plan_stride + row * band_.scale_stride;
      band_.residual_scale = lifted_.residual_scale + i;
      band_.goal_scale = lifted_.goal_scale + i;
      band_.time_weight = lifted_.time_weight ? lifted_.time_weight + row : nullptr;
    }
    function_(band_, sums_ + 2 * row);
  }

 private:
  const Lifted& lifted_;
  const int64_t plan_;
  double* const sums_;
  Band<T> band_;
  BandFunction<T> function_;
};

template <class T>
void lifted_item_as(const Lifted& lifted, const Item& item, float* scratch, double* sums) {
  // The rows that move come first; those that stay need no noise.
  Item moving = item, still = item;
  const int64_t border = larger(item.row_begin, smaller(item.row_end, lifted.updated_rows));
  moving.row_end = still.row_begin = border;
  if (moving.row_begin < moving.row_end) {
    LiftedVisitor<T> visitor(lifted, item, true, sums);
    walk(lifted.noise, moving, scratch, visitor);
  }
  if (still.row_begin < still.row_end) {
    LiftedVisitor<T> visitor(lifted, item, false, sums);
    walk_quiet(still, visitor);
  }
}

inline void lifted_item(const Lifted& lifted, const Item& item, float* scratch, double* sums) {
  lifted.storage == Storage::kFloat32 ? lifted_item_as<float>(lifted, item, scratch, sums)
                                      : lifted_item_as<BFloat16>(lifted, item, scratch, sums);
}

}  // namespace grasp::GRASP_SIMD
