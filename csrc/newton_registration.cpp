// The op of the second-order lifted step: tensors to NewtonStep, as registration.cpp does for the
// others.
#include "arguments.h"

namespace grasp {

namespace {

void lifted_newton_step_(const Tensor& trajectory, const Tensor& actions, const Tensor& prediction,
                         const Tensor& state_jacobian, const Tensor& action_jacobian,
                         const Tensor& goal, const Tensor& damping,
                         const OptionalTensor& goal_weight, const OptionalTensor& low,
                         const OptionalTensor& high, int64_t hold, double max_action_step,
                         double max_state_step, int64_t solves, const Tensor& goal_error,
                         const Tensor& defect, const Tensor& step) {
  STD_TORCH_CHECK(actions.dim() == 3 && goal.dim() == 2, "actions must be (N, T, A), goal (N, D)");
  STD_TORCH_CHECK(hold >= 1 && solves >= 1, "hold and solves must be at least 1");
  NewtonStep newton;
  const int64_t n = newton.plans = actions.size(0), t = newton.steps = actions.size(1);
  const int64_t a = newton.width = actions.size(2), d = newton.features = goal.size(1);
  newton.trajectory = floats(trajectory, "trajectory", {n, t + 1, d});
  newton.actions = floats(actions, "actions", {n, t, a});
  newton.prediction = floats(prediction, "prediction", {n, t, d});
  newton.state_jacobian = floats(state_jacobian, "state_jacobian", {n, t, d, d});
  newton.action_jacobian = floats(action_jacobian, "action_jacobian", {n, t, d, a});
  newton.goal = floats(goal, "goal", {n, d});
  newton.damping = floats(damping, "damping", {n});
  newton.goal_weight = contiguous<float>(goal_weight, "goal_weight", ScalarType::Float, {d});
  newton.low = contiguous<float>(low, "low", ScalarType::Float, {a});
  newton.high = contiguous<float>(high, "high", ScalarType::Float, {a});
  newton.hold = std::min(hold, std::max<int64_t>(t, 1));
  newton.solves = solves;
  newton.max_action_step = static_cast<float>(max_action_step);
  newton.max_state_step = static_cast<float>(max_state_step);
  newton.goal_error = floats(goal_error, "goal_error", {n});
  newton.defect = floats(defect, "defect", {n});
  newton.step = floats(step, "step", {n});
  run_newton(newton);
}

}  // namespace
}  // namespace grasp

STABLE_TORCH_LIBRARY_FRAGMENT(grasp_kernels_native, library) {
  library.def(
      "lifted_newton_step_(Tensor(a!) trajectory, Tensor(b!) actions, Tensor prediction, "
      "Tensor state_jacobian, Tensor action_jacobian, Tensor goal, Tensor damping, "
      "Tensor? goal_weight, Tensor? low, Tensor? high, int hold, float max_action_step, "
      "float max_state_step, int solves, Tensor(c!) goal_error, Tensor(d!) defect, "
      "Tensor(e!) step) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(grasp_kernels_native, CPU, library) {
  library.impl("lifted_newton_step_", TORCH_BOX(&grasp::lifted_newton_step_));
}
