// One lifted Gauss-Newton step of one plan (reference/lifted_newton_step.py has the formula):
//
//     back in time    L_t = L_{t+1} A_t,  e += L_{t+1} d_t,  S_k += L_{t+1} B_t
//     once            delta = -S^T (S S^T + mu I)^-1 e, in float64; again without blocked entries
//     forth in time   dx_{t+1} = A_t dx_t + B_t step_t + d_t
//
// D features, G of them weighed, K A held actions. What is serial in time is small: scratch stays
// in first-level cache, and the Jacobians are read once in each direction.
#pragma once

#include "grasp/arena.h"
#include "grasp/simd.h"

namespace grasp::GRASP_SIMD {

constexpr double kNewtonJitter = 1e-6;  // as in the reference

// out (rows, columns) += left (rows, depth) right (depth, columns); `right` is dense.
template <int kRows>
void add_product(const float* left, int64_t left_stride, const float* right, int64_t depth,
                 int64_t columns, float* out, int64_t out_stride) {
  over_row(columns, [&](int64_t i, auto... n) {
    Float sums[kRows];
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row) sums[row] = load(out + row * out_stride + i, n...);
    for (int64_t k = 0; k < depth; ++k) {
      const Float factor = load(right + k * columns + i, n...);
#pragma GCC unroll 8
      for (int row = 0; row < kRows; ++row) {
        sums[row] = multiply_add(left[row * left_stride + k], factor, sums[row]);
      }
    }
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row) store(out + row * out_stride + i, sums[row], n...);
  });
}

// However rows are cut, every number is the same chain of multiply-adds.
template <int kRows = 8>
void add_product(const float* left, int64_t left_stride, int64_t rows, const float* right,
                 int64_t depth, int64_t columns, float* out, int64_t out_stride) {
  if constexpr (kRows > 0) {
    int64_t row = 0;
    for (; row + kRows <= rows; row += kRows) {
      add_product<kRows>(left + row * left_stride, left_stride, right, depth, columns,
                         out + row * out_stride, out_stride);
    }
    add_product<kRows / 2>(left + row * left_stride, left_stride, rows - row, right, depth, columns,
                           out + row * out_stride, out_stride);
  }
}

class NewtonPlan {
 public:
  NewtonPlan(const NewtonStep& problem, int64_t plan, Arena& arena)
      : problem_(problem),
        plan_(plan),
        steps_(problem.steps),
        features_(problem.features),
        width_(problem.width),
        entries_(problem.blocks() * problem.width),
        stride_(round_up(features_, kLanes)),
        through_(arena.take(features_ * stride_)),
        next_(arena.take(features_ * stride_)),
        sensitivity_(arena.take(features_ * entries_)),
        defect_(arena.take(stride_)),
        change_(arena.take(stride_)),
        step_(arena.take(round_up(width_, kLanes))),
        error_(arena.take_doubles(features_)),
        forces_(arena.take_doubles(features_)),
        gram_(arena.take_doubles(features_ * features_)),
        entry_(arena.take_doubles(features_)),
        delta_(arena.take_doubles(entries_)),
        blocked_(reinterpret_cast<uint8_t*>(arena.take((entries_ + 3) / 4))) {}

  void run() {
    scan_back();
    __builtin_memset(blocked_, 0, entries_);
    solve(true);
    for (int64_t i = 1; i < problem_.solves && block(); ++i) solve(false);
    scan_forth();
  }

 private:
  const float* predictions() const { return problem_.prediction + plan_ * steps_ * features_; }
  float* states() const { return problem_.trajectory + plan_ * (steps_ + 1) * features_; }
  float* actions() const { return problem_.actions + plan_ * steps_ * width_; }
  const float* state_jacobian(int64_t t) const {
    return problem_.state_jacobian + (plan_ * steps_ + t) * features_ * features_;
  }
  const float* action_jacobian(int64_t t) const {
    return problem_.action_jacobian + (plan_ * steps_ + t) * features_ * width_;
  }

  // The defect of step t, rows of whole vectors.
  void set_defect(int64_t t) {
    const float* const prediction = predictions() + t * features_;
    const float* const state = states() + (t + 1) * features_;
    over_row(features_, [&](int64_t i, auto... n) {
      store(defect_ + i, load(prediction + i, n...) - load(state + i, n...));
    });
  }

  // S, the error where the linearised rollout ends, and the sum of the defects.
  void scan_back() {
    const float* const last = states() + steps_ * features_;
    const float* const goal = problem_.goal + plan_ * features_;
    clear(through_, features_ * stride_);
    weighed_ = 0;
    for (int64_t i = 0; i < features_; ++i) {
      const float root = problem_.goal_weight ? __builtin_sqrtf(problem_.goal_weight[i]) : 1.0f;
      if (root == 0) continue;
      through_[weighed_ * stride_ + i] = root;
      error_[weighed_++] = root * (last[i] - goal[i]);
    }
    clear(sensitivity_, weighed_ * entries_);
    double defects = 0;
    for (int64_t t = steps_ - 1; t >= 0; --t) {
      set_defect(t);
      defects += dot(defect_, defect_);
      for (int64_t row = 0; row < weighed_; ++row) {
        error_[row] += dot(through_ + row * stride_, defect_);
      }
      add_product(through_, stride_, weighed_, action_jacobian(t), features_, width_,
                  sensitivity_ + t / problem_.hold * width_, entries_);
      clear(next_, weighed_ * stride_);
      add_product(through_, stride_, weighed_, state_jacobian(t), features_, features_, next_,
                  stride_);
      float* const free = through_;
      through_ = next_;
      next_ = free;
    }
    double goal_error = 0;
    for (int64_t row = 0; row < weighed_; ++row) goal_error += error_[row] * error_[row];
    problem_.goal_error[plan_] = float(goal_error);
    problem_.defect[plan_] = float(defects);
  }

  // delta, with the blocked entries left out; the first time, mu.
  void solve(bool first) {
    const int64_t g = weighed_;
    for (int64_t i = 0; i < g * g; ++i) gram_[i] = 0;
    for (int64_t m = 0; m < entries_; ++m) {
      if (blocked_[m]) continue;
      for (int64_t i = 0; i < g; ++i) entry_[i] = sensitivity_[i * entries_ + m];
      for (int64_t i = 0; i < g; ++i) {
        for (int64_t j = 0; j <= i; ++j) gram_[i * g + j] += entry_[i] * entry_[j];
      }
    }
    if (first) {
      double size = 0;
      for (int64_t i = 0; i < g; ++i) size += gram_[i * g + i];
      mu_ = (double(problem_.damping[plan_]) + kNewtonJitter) * size / double(larger(g, 1));
    }
    for (int64_t m = 0; m < entries_; ++m) delta_[m] = 0;
    if (mu_ == 0) return;
    for (int64_t i = 0; i < g; ++i) gram_[i * g + i] += mu_;
    solve_gram();
    for (int64_t i = 0; i < g; ++i) {
      const float* const row = sensitivity_ + i * entries_;
      for (int64_t m = 0; m < entries_; ++m) delta_[m] -= forces_[i] * row[m];
    }
    for (int64_t m = 0; m < entries_; ++m) delta_[m] = blocked_[m] ? 0 : delta_[m];
  }

  // forces = gram^-1 error, by Cholesky's factor, which takes the place of the
  // lower triangle.
  void solve_gram() {
    const int64_t g = weighed_;
    for (int64_t i = 0; i < g; ++i) {
      double* const row = gram_ + i * g;
      double force = error_[i];
      for (int64_t j = 0; j <= i; ++j) {
        double rest = row[j];
        for (int64_t k = 0; k < j; ++k) rest -= row[k] * gram_[j * g + k];
        row[j] = j < i ? rest / gram_[j * g + j] : __builtin_sqrt(rest);
        if (j < i) force -= row[j] * forces_[j];
      }
      forces_[i] = force / row[i];
    }
    for (int64_t i = g - 1; i >= 0; --i) {
      for (int64_t k = i + 1; k < g; ++k) forces_[i] -= gram_[k * g + i] * forces_[k];
      forces_[i] /= gram_[i * g + i];
    }
  }

  // Whether there are new entries at a bound that delta pushes outward.
  bool block() {
    bool any = false;
    for (int64_t m = 0; m < entries_; ++m) {
      const float held = held_action(m), delta = float(delta_[m]);
      const int64_t i = m % width_;
      const bool outward = (problem_.low && held <= problem_.low[i] && delta < 0) ||
                           (problem_.high && held >= problem_.high[i] && delta > 0);
      blocked_[m] |= uint8_t(outward);
      any |= outward;
    }
    return any;
  }

  // Entry m of the held actions: that of its block's first step.
  float held_action(int64_t m) const {
    return actions()[m / width_ * problem_.hold * width_ + m % width_];
  }

  // As torch.clamp: NaN in, NaN out.
  static float limit(float x, float most) { return x < -most ? -most : x > most ? most : x; }

  // The actions, and the states that follow from them.
  void scan_forth() {
    float largest = 0;
    for (int64_t m = 0; m < entries_; ++m) {  // delta becomes where the actions move to
      float to = held_action(m) + limit(float(delta_[m]), problem_.max_action_step);
      const int64_t i = m % width_;
      if (problem_.low && !(to >= problem_.low[i]) && to == to) to = problem_.low[i];
      if (problem_.high && !(to <= problem_.high[i]) && to == to) to = problem_.high[i];
      delta_[m] = to;
    }
    clear(step_, round_up(width_, kLanes));
    clear(change_, stride_);
    float* const next = next_;
    clear(next, stride_);
    for (int64_t t = 0; t < steps_; ++t) {
      float* const action = actions() + t * width_;
      for (int64_t i = 0; i < width_; ++i) {
        const float to = float(delta_[t / problem_.hold * width_ + i]);
        step_[i] = to - action[i];
        action[i] = to;
        const float size = __builtin_fabsf(step_[i]);
        if (!(size <= largest) && largest == largest) largest = size;  // a NaN stays
      }
      set_defect(t);
      const float *from = state_jacobian(t), *from_action = action_jacobian(t);
      for (int64_t i = 0; i < features_; ++i, from += features_, from_action += width_) {
        Float sum{};
        over_row(features_, [&](int64_t j, auto... n) {
          sum = multiply_add(load(from + j, n...), load(change_ + j), sum);
        });
        over_row(width_, [&](int64_t j, auto... n) {
          sum = multiply_add(load(from_action + j, n...), load(step_ + j), sum);
        });
        next[i] = limit(defect_[i] + sum_lanes_float(sum), problem_.max_state_step);
      }
      float* const state = states() + (t + 1) * features_;
      over_row(features_, [&](int64_t i, auto... n) {
        const Float change = load(next + i);
        store(change_ + i, change);
        store(state + i, load(state + i, n...) + change, n...);
      });
    }
    problem_.step[plan_] = largest;
  }

  static void clear(float* values, int64_t size) {
    __builtin_memset(values, 0, sizeof(float) * size);
  }

  // Of two rows of whole vectors.
  double dot(const float* a, const float* b) const {
    Float sum{};
    for (int64_t i = 0; i < stride_; i += kLanes) sum = multiply_add(load(a + i), load(b + i), sum);
    return sum_lanes(sum);
  }

  const NewtonStep& problem_;
  const int64_t plan_, steps_, features_, width_;
  const int64_t entries_;  // K A
  const int64_t stride_;   // of `through_`, and the size of a row of features
  int64_t weighed_ = 0;    // G
  double mu_ = 0;
  float *through_, *next_;               // L_{t+1} and L_t (G, D)
  float* const sensitivity_;             // S (G, K A)
  float *const defect_, *const change_;  // d_t and dx_t (D)
  float* const step_;                    // (A)
  double *const error_, *const forces_;  // e and (S S^T + mu I)^-1 e (G)
  double *const gram_, *const entry_;    // S S^T + mu I (G, G), a column of S (G)
  double* const delta_;                  // (K A)
  uint8_t* const blocked_;               // (K A)
};

inline int64_t newton_scratch(const NewtonStep& problem) {
  Arena arena(nullptr);
  NewtonPlan(problem, 0, arena);
  return arena.used();
}
inline void newton_plan(const NewtonStep& problem, int64_t plan, float* scratch) {
  Arena arena(scratch);
  NewtonPlan(problem, plan, arena).run();
}

}  // namespace grasp::GRASP_SIMD
