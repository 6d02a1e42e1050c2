// Rollouts of a few plans side by side, their adjoint, and the sync phase made of both.
//
//     states_{t+1} = F(states_t, actions_t)
//     gradient_t   = (dF/da)^T adjoint_{t+1}
//     adjoint_t    = (dF/ds)^T adjoint_{t+1} + cotangent_t
//
// The way back needs the slopes of all time steps. Where they fit into kKeptFloats, a sync keeps
// them on the way there. Else the states are enough: given them, the slopes of a stretch of time
// that fills a tile are computed again, all at once and to the same bits, so memory has a bound.
#pragma once

#include "grasp/action.h"
#include "grasp/mlp.h"

namespace grasp::GRASP_SIMD {

// The plans [first, first + plans) of a batch, of at most kRolloutPlans.
struct RolloutGroup {
  int64_t plans = 0, steps = 0;
  float* states = nullptr;  // (plans, T + 1, D)
  const float* actions = nullptr;
};

constexpr int64_t kKeptFloats = 1 << 21;  // per thread

inline bool keeps_slopes(const PackedMlp& packed, int64_t plans, int64_t steps) {
  return 2 * packed.mlp->count * packed.stride * plans * steps <= kKeptFloats;  // 2: and a norm
}

// A tile for the plans of a group.
inline MlpTile rollout_tile(const PackedMlp& packed, int64_t plans, int64_t steps, bool keep,
                            Arena& arena) {
  const int64_t rows = larger(kTileRows, plans);
  return MlpTile(packed, rows, keep ? plans * steps : rows, arena);
}

// `keep`: the slopes, of step t and plan n in row t * plans + n.
inline void roll_out(MlpTile& tile, const Mlp& mlp, const RolloutGroup& group, bool keep) {
  const int64_t d = mlp.state_features, a = mlp.action_features;
  for (int64_t t = 0; t < group.steps; ++t) {
    for (int64_t plan = 0; plan < group.plans; ++plan) {
      tile.set_input(plan, group.states + (plan * (group.steps + 1) + t) * d,
                     group.actions + (plan * group.steps + t) * a);
    }
    const float* const output =
        keep ? tile.forward<true>(group.plans, t * group.plans) : tile.forward<false>(group.plans);
    for (int64_t plan = 0; plan < group.plans; ++plan) {
      float* const state = group.states + (plan * (group.steps + 1) + t) * d;
      tile.finish(output + plan * tile.stride(), state, state + d);
    }
  }
}

// `adjoint` (plans, D): that of the last state; becomes that of the start. `cotangent`, where it is
// not null, is added on the way at every state but the last, (plans, T + 1, D). `kept`: the tile
// has the slopes of this rollout.
inline void roll_back(MlpTile& tile, const Mlp& mlp, const RolloutGroup& group,
                      const float* cotangent, float* adjoint, float* gradient, bool kept) {
  const int64_t d = mlp.state_features, a = mlp.action_features, steps = group.steps;
  const int64_t stretch = kept ? steps : larger(1, kTileRows / larger(1, group.plans));
  for (int64_t end = steps; end > 0; end -= stretch) {
    const int64_t begin = larger(0, end - stretch);
    if (!kept) {
      for (int64_t t = begin; t < end; ++t) {
        for (int64_t plan = 0; plan < group.plans; ++plan) {
          tile.set_input((t - begin) * group.plans + plan,
                         group.states + (plan * (steps + 1) + t) * d,
                         group.actions + (plan * steps + t) * a);
        }
      }
      tile.forward<true>((end - begin) * group.plans);
    }
    for (int64_t t = end - 1; t >= begin; --t) {
      for (int64_t plan = 0; plan < group.plans; ++plan) {
        tile.set_cotangent(plan, adjoint + plan * d);
      }
      const float* const inputs = tile.backward((t - begin) * group.plans, group.plans, false);
      for (int64_t plan = 0; plan < group.plans; ++plan) {
        const float* const from = inputs + plan * tile.stride();
        float* const to = adjoint + plan * d;
        for (int64_t i = 0; i < d; ++i) {
          const float through = mlp.input_inverse_scale[i] * from[i];
          to[i] = mlp.residual ? through + to[i] : through;
          if (cotangent) to[i] += cotangent[(plan * (steps + 1) + t) * d + i];
        }
        for (int64_t i = 0; i < a; ++i) {
          gradient[(plan * steps + t) * a + i] = mlp.input_inverse_scale[d + i] * from[d + i];
        }
      }
    }
  }
}

// ---- The ops, on the plans [first, first + plans) ----

inline int64_t rollout_scratch(const PackedMlp& packed, const MlpRollout& rollout, int64_t plans) {
  Arena arena(nullptr);
  rollout_tile(packed, plans, rollout.steps, false, arena);
  return arena.used();
}

inline void rollout_group(const PackedMlp& packed, const MlpRollout& rollout, int64_t first,
                          int64_t plans, float* scratch) {
  const Mlp& mlp = *packed.mlp;
  const int64_t d = mlp.state_features, a = mlp.action_features, steps = rollout.steps;
  Arena arena(scratch);
  MlpTile tile = rollout_tile(packed, plans, steps, false, arena);
  const RolloutGroup group{plans, steps, rollout.states + first * (steps + 1) * d,
                           rollout.actions + first * steps * a};
  if (!rollout.cotangent) return roll_out(tile, mlp, group, false);
  const float* const cotangent = rollout.cotangent + first * (steps + 1) * d;
  float* const adjoint = rollout.start_gradient + first * d;
  for (int64_t plan = 0; plan < plans; ++plan) {
    const float* const last = cotangent + (plan * (steps + 1) + steps) * d;
    for (int64_t i = 0; i < d; ++i) adjoint[plan * d + i] = last[i];
  }
  roll_back(tile, mlp, group, cotangent, adjoint, rollout.action_gradient + first * steps * a,
            false);
}

// True where no number is infinite or NaN: none has all bits of its exponent set.
inline bool all_finite(const float* values, int64_t size) {
  uint32_t broken = 0;
  for (int64_t i = 0; i < size; ++i) {
    uint32_t bits;
    __builtin_memcpy(&bits, values + i, 4);
    broken |= uint32_t((bits & 0x7f800000u) == 0x7f800000u);
  }
  return broken == 0;
}

// Adam's bias corrections of step k = 1, 2, ..., which go to one.
class Corrections {
 public:
  Corrections(double beta1, double beta2, int64_t first_step) : beta1_(beta1), beta2_(beta2) {
    power1_ = __builtin_pow(beta1, double(first_step - 1));
    power2_ = __builtin_pow(beta2, double(first_step - 1));
  }
  void next(ActionStep& step) {
    power1_ *= beta1_;
    power2_ *= beta2_;
    step.correction1 = float(1 - power1_);
    step.correction2 = float(1 - power2_);
  }

 private:
  double beta1_, beta2_, power1_, power2_;
};

inline int64_t sync_scratch(const PackedMlp& packed, const MlpSync& sync, int64_t plans) {
  const Mlp& mlp = *packed.mlp;
  Arena arena(nullptr);
  rollout_tile(packed, plans, sync.horizon, keeps_slopes(packed, plans, sync.horizon), arena);
  arena.take(plans * (sync.horizon + 1) * mlp.state_features);
  arena.take(plans * mlp.state_features);
  for (int i = 0; i < 3; ++i) arena.take(plans * sync.horizon * mlp.action_features);
  return arena.used();
}

inline void sync_group(const PackedMlp& packed, const MlpSync& sync, int64_t first, int64_t plans,
                       float* scratch) {
  const Mlp& mlp = *packed.mlp;
  const int64_t d = mlp.state_features, horizon = sync.horizon;
  const int64_t width = horizon * mlp.action_features, length = (horizon + 1) * d;
  const bool keep = keeps_slopes(packed, plans, horizon);
  Arena arena(scratch);
  MlpTile tile = rollout_tile(packed, plans, horizon, keep, arena);
  float* const states = arena.take(plans * length);
  float* const adjoint = arena.take(plans * d);
  float* const gradient = arena.take(plans * width);
  float* const first_moment = arena.take(plans * width);
  float* const second_moment = arena.take(plans * width);
  if (sync.adam) {
    __builtin_memset(first_moment, 0, sizeof(float) * plans * width);
    __builtin_memset(second_moment, 0, sizeof(float) * plans * width);
  }
  float* const actions = static_cast<float*>(sync.action.actions) + first * width;
  ActionStep step = sync.action;
  step.plans = 1;
  step.width = width;
  Corrections corrections(sync.beta1, sync.beta2, 1);
  const RolloutGroup group{plans, horizon, states, actions};
  for (int64_t plan = 0; plan < plans; ++plan) {
    __builtin_memcpy(states + plan * length, sync.start + (first + plan) * d, sizeof(float) * d);
  }

  for (int64_t k = 0; k <= sync.steps; ++k) {
    roll_out(tile, mlp, group, keep && k < sync.steps);
    for (int64_t plan = 0; plan < plans; ++plan) {
      const int64_t n = first + plan;
      const float* const last = states + plan * length + horizon * d;
      float cost = 0;
      for (int64_t i = 0; i < d; ++i) {
        const float error = last[i] - sync.goal[n * d + i];
        const float weighted = sync.cost_weight ? sync.cost_weight[i] * error : error;
        cost += weighted * error;
        adjoint[plan * d + i] = 2 * weighted;
      }
      const bool arrived = all_finite(&cost, 1) && all_finite(states + plan * length, length);
      sync.sound[n] &= uint8_t(arrived);
      if (arrived && cost < sync.best_cost[n]) {
        sync.best_cost[n] = cost;
        __builtin_memcpy(sync.best_actions + n * width, actions + plan * width,
                         sizeof(float) * width);
        __builtin_memcpy(sync.best_states + n * length, states + plan * length,
                         sizeof(float) * length);
      }
      if (k == sync.steps && arrived && sync.blend > 0) {
        const int64_t free_rows = horizon + sync.free_terminal - 1;
        float* const to = sync.trajectory + n * length + d;
        const float* const from = states + plan * length + d;
        for (int64_t i = 0; i < free_rows * d; ++i) {
          to[i] = sync.blend == 1 ? from[i] : to[i] + sync.blend * (from[i] - to[i]);
        }
      }
    }
    if (k == sync.steps) break;
    roll_back(tile, mlp, group, nullptr, adjoint, gradient, keep);
    corrections.next(step);
    for (int64_t plan = 0; plan < plans; ++plan) {
      const int64_t n = first + plan;
      sync.sound[n] &= uint8_t(all_finite(gradient + plan * width, width));
      const float lr = sync.best_cost[n] > sync.stop_cost ? sync.lr[n] : 0.0f;
      step.actions = actions + plan * width;
      step.gradient = gradient + plan * width;
      step.first_moment = sync.adam ? first_moment + plan * width : nullptr;
      step.second_moment = sync.adam ? second_moment + plan * width : nullptr;
      step.lr = &lr;
      action_plan(step, 0);
    }
  }
}

}  // namespace grasp::GRASP_SIMD
