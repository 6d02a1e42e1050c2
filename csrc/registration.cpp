// With arguments.h and mlp_registration.cpp all that knows torch: checks the tensors, turns them
// into the plain structs of grasp/problem.h, and registers the ops under
// `torch.ops.grasp_kernels_native` through LibTorch's stable ABI (torch >= 2.10), out-variants all
// of them.
#include "arguments.h"

namespace grasp {

void parallel_for(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body) {
  torch::stable::parallel_for(0, count, grain, body);
}

int64_t thread_count() { return torch::stable::get_num_threads(); }

namespace {

// What all three lifted ops share: the problem itself.
Lifted lifted_problem(const Tensor& prediction, const Tensor& trajectory, const Tensor& goal,
                      const OptionalTensor& feature_weight, const OptionalTensor& time_weight) {
  STD_TORCH_CHECK(prediction.dim() == 3, "prediction must be (N, T, D)");
  const ScalarType dtype = prediction.scalar_type();
  Lifted lifted;
  lifted.storage = storage_of(prediction, "prediction");
  lifted.plans = prediction.size(0);
  lifted.steps = prediction.size(1);
  lifted.features = prediction.size(2);
  const int64_t n = lifted.plans, t = lifted.steps, d = lifted.features;
  lifted.prediction = {contiguous(prediction, "prediction", dtype, {n, t, d}), t * d, d};
  lifted.goal = {contiguous(goal, "goal", dtype, {n, d}), d, 0};
  lifted.target = strided_rows(trajectory, "trajectory", dtype, {n, t + 1, d}, 1);
  lifted.feature_weight =
      contiguous<float>(feature_weight, "feature_weight", ScalarType::Float, {d});
  lifted.time_weight = contiguous<float>(time_weight, "time_weight", ScalarType::Float, {t});
  return lifted;
}

void ask_for_losses(Lifted& lifted, const Tensor& dynamics, const Tensor& goal_error) {
  const int64_t n = lifted.plans, t = lifted.steps;
  lifted.dynamics =
      static_cast<float*>(contiguous(dynamics, "dynamics", ScalarType::Float, {n, t}));
  lifted.goal_error =
      static_cast<float*>(contiguous(goal_error, "goal_error", ScalarType::Float, {n, t}));
}

Rows contiguous_rows(const Tensor& tensor, const char* name, const Lifted& lifted) {
  const int64_t n = lifted.plans, t = lifted.steps, d = lifted.features;
  const ScalarType dtype =
      lifted.storage == Storage::kFloat32 ? ScalarType::Float : ScalarType::BFloat16;
  return {contiguous(tensor, name, dtype, {n, t, d}), t * d, d};
}

void lifted_step_(const Tensor& trajectory, const Tensor& prediction, const Tensor& goal,
                  const Tensor& coefficients, const Tensor& plan_ids,
                  const OptionalTensor& feature_weight, const OptionalTensor& time_weight,
                  const OptionalTensor& state_gradient, double state_gradient_scale, int64_t seed,
                  int64_t iteration, const std::string& noise, int64_t modes, int64_t first_step,
                  int64_t horizon, bool free_terminal, const Tensor& dynamics,
                  const Tensor& goal_error, const Tensor& cotangent) {
  Lifted lifted = lifted_problem(prediction, trajectory, goal, feature_weight, time_weight);
  const int64_t n = lifted.plans, t = lifted.steps, d = lifted.features;
  ask_for_losses(lifted, dynamics, goal_error);
  lifted.cotangent = contiguous_rows(cotangent, "cotangent", lifted);

  check_dtype(coefficients, "coefficients", ScalarType::Float);
  check_shape(coefficients, "coefficients", {n, 3});
  const std::vector<float> residual_scale(n, 2.0f);
  const std::vector<float> state_lr = gather(coefficients, 0, 1.0f);
  const std::vector<float> goal_scale = gather(coefficients, 1, 2.0f);
  const std::vector<float> noise_scale = gather(coefficients, 2, 1.0f);
  lifted.residual_scale = residual_scale.data();
  lifted.goal_scale = goal_scale.data();
  lifted.scale_plan_stride = 1;
  lifted.state_lr = state_lr.data();
  lifted.noise_scale = noise_scale.data();

  // Row r holds trajectory row first_step + r + 1; the terminal row, at the horizon, moves only if
  // it is free.
  const int64_t below_horizon = horizon - first_step - 1;
  lifted.updated_rows = free_terminal || below_horizon > t ? t : below_horizon;
  if (state_gradient && state_gradient_scale != 0) {
    lifted.state_gradient =
        strided_rows(*state_gradient, "state_gradient", prediction.scalar_type(), {n, t + 1, d}, 1);
    lifted.state_gradient_scale = static_cast<float>(state_gradient_scale);
  }
  std::vector<float> bridge;
  lifted.noise = noise_field(plan_ids, n, t, d, seed, iteration, noise, modes, first_step + 1,
                             horizon, bridge);
  run_lifted(lifted);
}

void lifted_loss(const Tensor& prediction, const Tensor& trajectory, const Tensor& goal,
                 const OptionalTensor& feature_weight, const OptionalTensor& time_weight,
                 const Tensor& dynamics, const Tensor& goal_error) {
  Lifted lifted = lifted_problem(prediction, trajectory, goal, feature_weight, time_weight);
  ask_for_losses(lifted, dynamics, goal_error);
  run_lifted(lifted);
}

void lifted_loss_backward(const Tensor& dynamics_cotangent, const Tensor& goal_cotangent,
                          const Tensor& prediction, const Tensor& trajectory, const Tensor& goal,
                          const OptionalTensor& feature_weight, const OptionalTensor& time_weight,
                          const Tensor& prediction_gradient, const Tensor& trajectory_gradient) {
  Lifted lifted = lifted_problem(prediction, trajectory, goal, feature_weight, time_weight);
  const int64_t n = lifted.plans, t = lifted.steps, d = lifted.features;
  const ScalarType dtype = prediction.scalar_type();
  lifted.cotangent = contiguous_rows(prediction_gradient, "prediction_gradient", lifted);
  lifted.target_gradient =
      strided_rows(trajectory_gradient, "trajectory_gradient", dtype, {n, t + 1, d}, 1);
  check_dtype(dynamics_cotangent, "dynamics_cotangent", ScalarType::Float);
  check_dtype(goal_cotangent, "goal_cotangent", ScalarType::Float);
  check_shape(dynamics_cotangent, "dynamics_cotangent", {n, t});
  check_shape(goal_cotangent, "goal_cotangent", {n, t});
  std::vector<float> residual_scale(n * t), goal_scale(n * t);
  const auto doubled = [&](const Tensor& from, std::vector<float>& to) {
    const float* data = static_cast<const float*>(from.data_ptr());
    const int64_t plan_stride = from.stride(0), row_stride = from.stride(1);
    for (int64_t plan = 0; plan < n; ++plan) {
      for (int64_t row = 0; row < t; ++row) {
        to[plan * t + row] = 2 * data[plan * plan_stride + row * row_stride];
      }
    }
  };
  doubled(dynamics_cotangent, residual_scale);
  doubled(goal_cotangent, goal_scale);
  lifted.residual_scale = residual_scale.data();
  lifted.goal_scale = goal_scale.data();
  lifted.scale_plan_stride = t;
  lifted.scale_row_stride = 1;
  run_lifted(lifted);
}

void action_step_(const Tensor& actions, const Tensor& gradient, const OptionalTensor& first_moment,
                  const OptionalTensor& second_moment, const Tensor& lr, const OptionalTensor& low,
                  const OptionalTensor& high, double beta1, double beta2, double epsilon,
                  double correction1, double correction2) {
  STD_TORCH_CHECK(actions.dim() == 3, "actions must be (N, T, A)");
  STD_TORCH_CHECK(first_moment.has_value() == second_moment.has_value(),
                  "first_moment and second_moment come together");
  const int64_t n = actions.size(0), t = actions.size(1), a = actions.size(2);
  const ScalarType dtype = actions.scalar_type();
  ActionStep step;
  step.storage = storage_of(actions, "actions");
  step.plans = n;
  step.width = t * a;
  step.actions = contiguous(actions, "actions", dtype, {n, t, a});
  step.gradient = contiguous(gradient, "gradient", dtype, {n, t, a});
  step.first_moment = contiguous<float>(first_moment, "first_moment", ScalarType::Float, {n, t, a});
  step.second_moment =
      contiguous<float>(second_moment, "second_moment", ScalarType::Float, {n, t, a});
  check_dtype(lr, "lr", ScalarType::Float);
  check_shape(lr, "lr", {n});
  const std::vector<float> rates = gather(lr, 0, 1.0f);
  step.lr = rates.data();

  const Box box(low, high, dtype, t, a);
  box.bound(step);
  step.beta1 = static_cast<float>(beta1);
  step.beta2 = static_cast<float>(beta2);
  step.rest1 = static_cast<float>(1 - beta1);
  step.rest2 = static_cast<float>(1 - beta2);
  step.epsilon = static_cast<float>(epsilon);
  step.correction1 = static_cast<float>(correction1);
  step.correction2 = static_cast<float>(correction2);
  run_action(step);
}

void gaussian_noise(const Tensor& plan_ids, int64_t seed, int64_t iteration,
                    const std::string& noise, int64_t modes, int64_t first_step, int64_t horizon,
                    const Tensor& out) {
  STD_TORCH_CHECK(out.dim() == 3, "out must be (N, steps, features)");
  const int64_t n = out.size(0), t = out.size(1), d = out.size(2);
  const Rows rows{contiguous(out, "out", out.scalar_type(), {n, t, d}), t * d, d};
  std::vector<float> bridge;
  const NoiseField field =
      noise_field(plan_ids, n, t, d, seed, iteration, noise, modes, first_step, horizon, bridge);
  run_noise(field, n, storage_of(out, "out"), rows);
}

void philox_words(const Tensor& plan_ids, int64_t features, int64_t seed, int64_t iteration,
                  int64_t first_step, const Tensor& out) {
  STD_TORCH_CHECK(out.dim() == 3, "out must be (N, steps, 4 * ceil(features / 4))");
  const int64_t n = out.size(0), t = out.size(1);
  std::vector<float> unused;
  NoiseField field =
      noise_field(plan_ids, n, t, features, seed, iteration, "white", 0, first_step, 1, unused);
  void* data = contiguous(out, "out", ScalarType::Int, {n, t, 4 * field.groups()});
  run_words(field, n, static_cast<uint32_t*>(data));
}

void normals_from_words(const Tensor& words, const Tensor& out) {
  const int64_t count = words.numel();
  STD_TORCH_CHECK(count % 4 == 0, "words come four by four");
  const void* from = contiguous(words, "words", ScalarType::Int, {count});
  void* to = contiguous(out, "out", ScalarType::Float, {count});
  kernels().normals(static_cast<const uint32_t*>(from), count / 4, static_cast<float*>(to));
}

std::string simd() { return kernels().name; }

}  // namespace
}  // namespace grasp

STABLE_TORCH_LIBRARY(grasp_kernels_native, library) {
  library.def(
      "lifted_step_(Tensor(a!) trajectory, Tensor prediction, Tensor goal, Tensor coefficients, "
      "Tensor plan_ids, Tensor? feature_weight, Tensor? time_weight, Tensor? state_gradient, "
      "float state_gradient_scale, int seed, int iteration, str noise, int modes, int first_step, "
      "int horizon, bool free_terminal, Tensor(b!) dynamics, Tensor(c!) goal_error, "
      "Tensor(d!) cotangent) -> ()");
  library.def(
      "lifted_loss(Tensor prediction, Tensor trajectory, Tensor goal, Tensor? feature_weight, "
      "Tensor? time_weight, Tensor(a!) dynamics, Tensor(b!) goal_error) -> ()");
  library.def(
      "lifted_loss_backward(Tensor dynamics_cotangent, Tensor goal_cotangent, Tensor prediction, "
      "Tensor trajectory, Tensor goal, Tensor? feature_weight, Tensor? time_weight, "
      "Tensor(a!) prediction_gradient, Tensor(b!) trajectory_gradient) -> ()");
  library.def(
      "action_step_(Tensor(a!) actions, Tensor gradient, Tensor(b!)? first_moment, "
      "Tensor(c!)? second_moment, Tensor lr, Tensor? low, Tensor? high, float beta1, float beta2, "
      "float epsilon, float correction1, float correction2) -> ()");
  library.def(
      "gaussian_noise(Tensor plan_ids, int seed, int iteration, str noise, int modes, "
      "int first_step, int horizon, Tensor(a!) out) -> ()");
  library.def(
      "philox_words(Tensor plan_ids, int features, int seed, int iteration, int first_step, "
      "Tensor(a!) out) -> ()");
  library.def("normals_from_words(Tensor words, Tensor(a!) out) -> ()");
  library.def("simd() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(grasp_kernels_native, CPU, library) {
  library.impl("lifted_step_", TORCH_BOX(&grasp::lifted_step_));
  library.impl("lifted_loss", TORCH_BOX(&grasp::lifted_loss));
  library.impl("lifted_loss_backward", TORCH_BOX(&grasp::lifted_loss_backward));
  library.impl("action_step_", TORCH_BOX(&grasp::action_step_));
  library.impl("gaussian_noise", TORCH_BOX(&grasp::gaussian_noise));
  library.impl("philox_words", TORCH_BOX(&grasp::philox_words));
  library.impl("normals_from_words", TORCH_BOX(&grasp::normals_from_words));
}

STABLE_TORCH_LIBRARY_IMPL(grasp_kernels_native, CompositeExplicitAutograd, library) {
  library.impl("simd", TORCH_BOX(&grasp::simd));
}
