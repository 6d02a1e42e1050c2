// The inner loop of action_step_: one optimizer step on one plan's actions, then the projection
// onto the box.
#pragma once

#include "grasp/simd.h"

namespace grasp::GRASP_SIMD {

// As torch.clamp: a NaN in the number or in a bound comes out, and the upper bound wins if the two
// cross.
GRASP_INLINE Float clamp_below(Float x, Float low) {
  const Int take_low = (x < low) | (low != low);
  return take_low ? low : x;
}
GRASP_INLINE Float clamp_above(Float x, Float high) {
  const Int take_high = (x > high) | (high != high);
  return take_high ? high : x;
}

// `b` is the element's place in the repeated bounds.
template <bool kAdam, class T, class... Count>
GRASP_INLINE void action_vector(const ActionStep& step, float lr, int64_t i, int64_t b,
                                Count... count) {
  T* const actions = static_cast<T*>(step.actions);
  const Float gradient = load(static_cast<const T*>(step.gradient) + i, count...);
  Float direction = gradient;
  if constexpr (kAdam) {
    const Float m = step.beta1 * load(step.first_moment + i, count...) + step.rest1 * gradient;
    const Float v =
        step.beta2 * load(step.second_moment + i, count...) + step.rest2 * gradient * gradient;
    store(step.first_moment + i, m, count...);
    store(step.second_moment + i, v, count...);
    direction = (m / step.correction1) / (square_root(v / step.correction2) + step.epsilon);
  }
  Float moved = load(actions + i, count...) - lr * direction;
  if (step.low) moved = clamp_below(moved, load(step.low + b, count...));
  if (step.high) moved = clamp_above(moved, load(step.high + b, count...));
  store(actions + i, moved, count...);
}

template <bool kAdam, class T>
void action_plan_as(const ActionStep& step, int64_t plan) {
  const float lr = step.lr[plan];
  const int64_t begin = plan * step.width, end = begin + step.width;
  for (int64_t chunk = begin; chunk < end; chunk += step.period) {
    const int64_t chunk_end = chunk + step.period < end ? chunk + step.period : end;
    int64_t i = chunk;
    for (; i + kLanes <= chunk_end; i += kLanes) action_vector<kAdam, T>(step, lr, i, i - chunk);
    if (i < chunk_end) action_vector<kAdam, T>(step, lr, i, i - chunk, int(chunk_end - i));
  }
}

inline void action_plan(const ActionStep& step, int64_t plan) {
  if (step.storage == Storage::kFloat32) {
    step.first_moment ? action_plan_as<true, float>(step, plan)
                      : action_plan_as<false, float>(step, plan);
  } else {
    step.first_moment ? action_plan_as<true, BFloat16>(step, plan)
                      : action_plan_as<false, BFloat16>(step, plan);
  }
}

}  // namespace grasp::GRASP_SIMD
