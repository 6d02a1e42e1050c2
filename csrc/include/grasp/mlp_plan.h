// Many lifted iterations of a few plans, from first to last without leaving the core:
//
//     prediction = F(trajectory[:, :-1], actions)                  all time steps of a tile at once
//     losses, cotangent, and the move of the states                the step of lifted.h
//     gradient   = (dF/da)^T cotangent                             the action columns alone
//     actions    = project(optimizer(actions, gradient))           the step of action.h
//
// A tile is the time steps of several short plans, or a stretch of a long one. Stretches come last
// first: a step moves the states *after* its inputs, so those that follow find theirs as they were.
#pragma once

#include "grasp/lifted.h"
#include "grasp/mlp_rollout.h"

namespace grasp::GRASP_SIMD {

struct LiftedBuffers {
  float *prediction, *cotangent, *gradient, *noise;

  LiftedBuffers(const Mlp& mlp, const MlpLifted& lifted, int64_t plans, Arena& arena)
      : prediction(arena.take(kTileRows * mlp.state_features)),
        cotangent(arena.take(kTileRows * mlp.state_features)),
        gradient(arena.take(plans * lifted.action.width)),
        noise(arena.take(scratch_floats(lifted.noise))) {}
};

inline int64_t lifted_scratch(const PackedMlp& packed, const MlpLifted& lifted, int64_t plans) {
  Arena arena(nullptr);
  MlpTile tile(packed, kTileRows, kTileRows, arena);
  LiftedBuffers buffers(*packed.mlp, lifted, plans, arena);
  return arena.used();
}

class LiftedGroup {
 public:
  LiftedGroup(const PackedMlp& packed, const MlpLifted& lifted, int64_t first, int64_t plans,
              float* scratch)
      : mlp_(*packed.mlp),
        lifted_(lifted),
        first_(first),
        plans_(plans),
        arena_(scratch),
        tile_(packed, kTileRows, kTileRows, arena_),
        buffers_(mlp_, lifted, plans, arena_) {}

  void run() {
    ActionStep step = lifted_.action;
    step.plans = 1;
    Corrections corrections(lifted_.beta1, lifted_.beta2, lifted_.first_step);
    const int64_t stretch = smaller(lifted_.steps, kTileRows);
    for (int64_t k = 0; k < lifted_.iterations; ++k) {
      for (int64_t plan = 0; plan < plans_; ++plan) loss(k, plan) = 0;
      for (int64_t end = lifted_.steps; end > 0; end -= stretch) {
        iterate(k, larger(0, end - stretch), end);
      }
      corrections.next(step);
      for (int64_t plan = 0; plan < plans_; ++plan) move_actions(k, plan, step);
    }
  }

 private:
  float& loss(int64_t k, int64_t plan) {
    return lifted_.history[k * lifted_.plans + first_ + plan];
  }
  float* trajectory(int64_t plan, int64_t t) {
    return lifted_.trajectory + ((first_ + plan) * (lifted_.steps + 1) + t) * mlp_.state_features;
  }
  float* actions(int64_t plan) {
    return static_cast<float*>(lifted_.action.actions) + (first_ + plan) * lifted_.action.width;
  }

  // The time steps [begin, end) of all plans of the group: at most kTileRows rows.
  void iterate(int64_t k, int64_t begin, int64_t end) {
    const int64_t d = mlp_.state_features, a = mlp_.action_features, steps = end - begin;
    for (int64_t plan = 0; plan < plans_; ++plan) {
      for (int64_t t = begin; t < end; ++t) {
        tile_.set_input(plan * steps + t - begin, trajectory(plan, t), actions(plan) + t * a);
      }
    }
    const float* const output = tile_.forward<true>(plans_ * steps);
    for (int64_t plan = 0; plan < plans_; ++plan) {
      for (int64_t t = begin; t < end; ++t) {
        const int64_t row = plan * steps + t - begin;
        tile_.finish(output + row * tile_.stride(), trajectory(plan, t),
                     buffers_.prediction + row * d);
      }
    }
    for (int64_t plan = 0; plan < plans_; ++plan) move_states(k, plan, begin, end);
    for (int64_t row = 0; row < plans_ * steps; ++row) {
      tile_.set_cotangent(row, buffers_.cotangent + row * d);
    }
    const float* const inputs = tile_.backward(0, plans_ * steps, true);
    for (int64_t plan = 0; plan < plans_; ++plan) {
      float* const to = buffers_.gradient + plan * lifted_.action.width + begin * a;
      for (int64_t row = 0; row < steps; ++row) {
        const float* const from = inputs + (plan * steps + row) * tile_.stride();
        for (int64_t i = 0; i < a; ++i) {
          to[row * a + i] = mlp_.input_inverse_scale[d + i] * from[i];
        }
      }
    }
  }

  // The fused step of lifted.h on one plan's stretch; its coordinates are shifted to begin at zero.
  void move_states(int64_t k, int64_t plan, int64_t begin, int64_t end) {
    const int64_t d = mlp_.state_features, n = first_ + plan, steps = end - begin;
    const float* const rates = lifted_.rates + 3 * n;
    const float goal_weight = lifted_.schedule[2 * k];
    const float residual_scale = 2, goal_scale = 2 * goal_weight, state_lr = rates[0];
    const float noise_scale = lifted_.schedule[2 * k + 1] * rates[1];
    double sums[2 * kTileRows] = {};
    float unused[2] = {};

    Lifted step;
    step.plans = 1;
    step.steps = steps;
    step.features = d;
    step.prediction = {buffers_.prediction + plan * steps * d, 0, d};
    step.target = {trajectory(plan, begin + 1), 0, d};
    step.goal = {const_cast<float*>(lifted_.goal) + n * d, 0, 0};
    step.cotangent = {buffers_.cotangent + plan * steps * d, 0, d};
    step.feature_weight = lifted_.feature_weight;
    step.dynamics = step.goal_error = unused;  // asks for the sums
    step.residual_scale = &residual_scale;
    step.goal_scale = &goal_scale;
    step.updated_rows = end < lifted_.steps || lifted_.free_terminal ? steps : steps - 1;
    step.state_lr = &state_lr;
    step.noise_scale = &noise_scale;
    step.noise = lifted_.noise;
    step.noise.plan_ids += n;
    step.noise.iteration += uint32_t(k);
    step.noise.first_row = begin + 1;
    if (step.noise.coefficients) step.noise.coefficients += begin;
    lifted_item(step, Item{0, 0, steps, 0, d}, buffers_.noise, sums);
    for (int64_t row = 0; row < steps; ++row) {
      loss(k, plan) += float(sums[2 * row] + double(goal_weight) * sums[2 * row + 1]);
    }
  }

  void move_actions(int64_t k, int64_t plan, ActionStep& step) {
    const int64_t width = lifted_.action.width, n = first_ + plan;
    const float* const gradient = buffers_.gradient + plan * width;
    lifted_.sound[n] &= uint8_t(all_finite(&loss(k, plan), 1) && all_finite(gradient, width));
    const ActionStep& all = lifted_.action;
    step.actions = actions(plan);
    step.gradient = gradient;
    step.first_moment = all.first_moment ? all.first_moment + n * width : nullptr;
    step.second_moment = all.second_moment ? all.second_moment + n * width : nullptr;
    step.lr = lifted_.rates + 3 * n + 2;
    action_plan(step, 0);
  }

  const Mlp& mlp_;
  const MlpLifted& lifted_;
  const int64_t first_, plans_;
  Arena arena_;
  MlpTile tile_;
  LiftedBuffers buffers_;
};

inline void lifted_group(const PackedMlp& packed, const MlpLifted& lifted, int64_t first,
                         int64_t plans, float* scratch) {
  LiftedGroup(packed, lifted, first, plans, scratch).run();
}

}  // namespace grasp::GRASP_SIMD
