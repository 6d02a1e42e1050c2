// The ops for MLP world models: tensors to the structs of grasp/mlp_problem.h, as registration.cpp
// does for the others. A model arrives packed, see grasp_kernels/reference/mlp_dynamics.py.
#include "arguments.h"

namespace grasp {

namespace {

// Walks over the flat constants and weights in the order they were packed in.
Mlp mlp_from(const Tensor& weights, const Tensor& constants,
             const std::vector<int64_t>& structure) {
  STD_TORCH_CHECK(structure.size() >= 8, "structure is too short");
  Mlp mlp;
  mlp.state_features = structure[0];
  mlp.action_features = structure[1];
  mlp.residual = structure[2] != 0;
  const int64_t count = structure[3];
  STD_TORCH_CHECK(count >= 1 && count <= Mlp::kMaxLayers &&
                      structure.size() == static_cast<size_t>(4 + 4 * count),
                  "structure does not fit its number of layers");
  mlp.count = static_cast<int>(count);
  mlp.storage = storage_of(weights, "weights");
  const float* next = static_cast<const float*>(
      contiguous(constants, "constants", ScalarType::Float, {constants.numel()}));
  const char* weight = static_cast<const char*>(
      contiguous(weights, "weights", weights.scalar_type(), {weights.numel()}));
  const int64_t item_size = mlp.storage == Storage::kFloat32 ? 4 : 2;
  int64_t constants_left = constants.numel(), weights_left = weights.numel();
  const auto take = [&](int64_t size) {
    STD_TORCH_CHECK(size >= 0 && size <= constants_left, "constants are too few");
    constants_left -= size;
    return (next += size) - size;
  };
  mlp.input_mean = take(mlp.inputs());
  mlp.input_inverse_scale = take(mlp.inputs());
  mlp.output_scale = take(mlp.state_features);
  mlp.output_shift = take(mlp.state_features);
  int64_t inputs = mlp.inputs();
  for (int64_t i = 0; i < count; ++i) {
    const int64_t* const described = structure.data() + 4 + 4 * i;
    MlpLayer& layer = mlp.layers[i];
    layer.inputs = inputs;
    layer.width = described[0];
    STD_TORCH_CHECK(described[1] >= 0 && described[1] <= int64_t(Activation::kSimNorm),
                    "structure has an unknown activation");
    layer.activation = static_cast<Activation>(described[1]);
    layer.group = described[3];
    STD_TORCH_CHECK(layer.width > 0 && (layer.activation != Activation::kSimNorm ||
                                        (layer.group > 0 && layer.width % layer.group == 0)),
                    "structure has a layer without width or group");
    STD_TORCH_CHECK(layer.width * inputs <= weights_left, "weights are too few");
    layer.weight = weight;
    weight += item_size * layer.width * inputs;
    weights_left -= layer.width * inputs;
    layer.bias = take(layer.width);
    if (described[2]) {
      layer.gain = take(layer.width);
      layer.shift = take(layer.width);
      layer.epsilon = *take(1);
    }
    inputs = layer.width;
  }
  STD_TORCH_CHECK(inputs == mlp.state_features && constants_left == 0 && weights_left == 0,
                  "the packed model does not fit its structure");
  return mlp;
}

uint8_t* flags(const Tensor& tensor, int64_t plans) {
  return static_cast<uint8_t*>(contiguous(tensor, "sound", ScalarType::Bool, {plans}));
}

// The part that both rollout ops share.
MlpRollout rollout_from(const Mlp& mlp, const Tensor& actions, const Tensor& states) {
  STD_TORCH_CHECK(actions.dim() == 3, "actions must be (N, T, A)");
  MlpRollout rollout;
  const int64_t n = rollout.plans = actions.size(0), t = rollout.steps = actions.size(1);
  rollout.actions = floats(actions, "actions", {n, t, mlp.action_features});
  rollout.states = floats(states, "states", {n, t + 1, mlp.state_features});
  return rollout;
}

void mlp_rollout(const Tensor& actions, const Tensor& weights, const Tensor& constants,
                 std::vector<int64_t> structure, const Tensor& states) {
  const Mlp mlp = mlp_from(weights, constants, structure);
  run_mlp(mlp, rollout_from(mlp, actions, states));
}

void mlp_rollout_backward(const Tensor& cotangent, const Tensor& states, const Tensor& actions,
                          const Tensor& weights, const Tensor& constants,
                          std::vector<int64_t> structure, const Tensor& start_gradient,
                          const Tensor& action_gradient) {
  const Mlp mlp = mlp_from(weights, constants, structure);
  MlpRollout rollout = rollout_from(mlp, actions, states);
  const int64_t n = rollout.plans, t = rollout.steps;
  const int64_t d = mlp.state_features, a = mlp.action_features;
  rollout.cotangent = floats(cotangent, "cotangent", {n, t + 1, d});
  rollout.start_gradient = floats(start_gradient, "start_gradient", {n, d});
  rollout.action_gradient = floats(action_gradient, "action_gradient", {n, t, a});
  run_mlp(mlp, rollout);
}

// What both optimizing ops share; the rest is the kernel's.
ActionStep action_step(const Tensor& actions, const Box& box, int64_t n, int64_t t, int64_t a,
                       double beta1, double beta2, double epsilon) {
  ActionStep step;
  step.plans = n;
  step.width = t * a;
  step.actions = floats(actions, "actions", {n, t, a});
  box.bound(step);
  step.beta1 = static_cast<float>(beta1);
  step.beta2 = static_cast<float>(beta2);
  step.rest1 = static_cast<float>(1 - beta1);
  step.rest2 = static_cast<float>(1 - beta2);
  step.epsilon = static_cast<float>(epsilon);
  return step;
}

void mlp_lifted_plan_(const Tensor& trajectory, const Tensor& actions,
                      const OptionalTensor& first_moment, const OptionalTensor& second_moment,
                      const Tensor& sound, const Tensor& goal, const Tensor& schedule,
                      const Tensor& rates, const Tensor& plan_ids,
                      const OptionalTensor& feature_weight, const OptionalTensor& low,
                      const OptionalTensor& high, const Tensor& weights, const Tensor& constants,
                      std::vector<int64_t> structure, int64_t seed, int64_t first_iteration,
                      const std::string& noise, int64_t modes, bool free_terminal, double beta1,
                      double beta2, double epsilon, int64_t first_step, const Tensor& history) {
  STD_TORCH_CHECK(actions.dim() == 3, "actions must be (N, T, A)");
  STD_TORCH_CHECK(first_moment.has_value() == second_moment.has_value(),
                  "first_moment and second_moment come together");
  const Mlp mlp = mlp_from(weights, constants, structure);
  const int64_t n = actions.size(0), t = actions.size(1), k = schedule.size(0);
  const int64_t d = mlp.state_features, a = mlp.action_features;
  const Box box(low, high, ScalarType::Float, t, a);
  std::vector<float> bridge;
  MlpLifted lifted;
  lifted.plans = n;
  lifted.steps = t;
  lifted.iterations = k;
  lifted.trajectory = floats(trajectory, "trajectory", {n, t + 1, d});
  lifted.action = action_step(actions, box, n, t, a, beta1, beta2, epsilon);
  lifted.action.first_moment =
      contiguous<float>(first_moment, "first_moment", ScalarType::Float, {n, t, a});
  lifted.action.second_moment =
      contiguous<float>(second_moment, "second_moment", ScalarType::Float, {n, t, a});
  lifted.first_step = first_step;
  lifted.beta1 = beta1;
  lifted.beta2 = beta2;
  lifted.goal = floats(goal, "goal", {n, d});
  lifted.schedule = floats(schedule, "schedule", {k, 2});
  lifted.rates = floats(rates, "rates", {n, 3});
  lifted.feature_weight =
      contiguous<float>(feature_weight, "feature_weight", ScalarType::Float, {d});
  lifted.free_terminal = free_terminal;
  lifted.noise = noise_field(plan_ids, n, t, d, seed, first_iteration, noise, modes, 1, t, bridge);
  lifted.history = floats(history, "history", {k, n});
  lifted.sound = flags(sound, n);
  run_mlp(mlp, lifted);
}

void mlp_sync_(const Tensor& trajectory, const Tensor& actions, const Tensor& best_cost,
               const Tensor& best_actions, const Tensor& best_states, const Tensor& sound,
               const Tensor& start, const Tensor& goal, const Tensor& lr,
               const OptionalTensor& cost_weight, const OptionalTensor& low,
               const OptionalTensor& high, const Tensor& weights, const Tensor& constants,
               std::vector<int64_t> structure, int64_t steps, bool adam, double beta1, double beta2,
               double epsilon, double stop_cost, double blend, bool free_terminal) {
  STD_TORCH_CHECK(actions.dim() == 3, "actions must be (N, T, A)");
  const Mlp mlp = mlp_from(weights, constants, structure);
  const int64_t n = actions.size(0), t = actions.size(1);
  const int64_t d = mlp.state_features, a = mlp.action_features;
  const Box box(low, high, ScalarType::Float, t, a);
  MlpSync sync;
  sync.plans = n;
  sync.horizon = t;
  sync.steps = steps;
  sync.trajectory = floats(trajectory, "trajectory", {n, t + 1, d});
  sync.action = action_step(actions, box, n, t, a, beta1, beta2, epsilon);
  sync.adam = adam;
  sync.beta1 = beta1;
  sync.beta2 = beta2;
  sync.best_cost = floats(best_cost, "best_cost", {n});
  sync.best_actions = floats(best_actions, "best_actions", {n, t, a});
  sync.best_states = floats(best_states, "best_states", {n, t + 1, d});
  sync.sound = flags(sound, n);
  sync.start = floats(start, "start", {n, d});
  sync.goal = floats(goal, "goal", {n, d});
  sync.lr = floats(lr, "lr", {n});
  sync.cost_weight = contiguous<float>(cost_weight, "cost_weight", ScalarType::Float, {d});
  sync.stop_cost = static_cast<float>(stop_cost);
  sync.blend = static_cast<float>(blend);
  sync.free_terminal = free_terminal;
  run_mlp(mlp, sync);
}

void mlp_jacobians(const Tensor& states, const Tensor& actions, const Tensor& weights,
                   const Tensor& constants, std::vector<int64_t> structure,
                   const Tensor& prediction, const Tensor& state_jacobian,
                   const Tensor& action_jacobian) {
  STD_TORCH_CHECK(states.dim() == 2, "states must be (M, D)");
  const Mlp mlp = mlp_from(weights, constants, structure);
  const int64_t m = states.size(0), d = mlp.state_features, a = mlp.action_features;
  MlpJacobians jacobians;
  jacobians.plans = m;
  jacobians.states = floats(states, "states", {m, d});
  jacobians.actions = floats(actions, "actions", {m, a});
  jacobians.prediction = floats(prediction, "prediction", {m, d});
  jacobians.state_jacobian = floats(state_jacobian, "state_jacobian", {m, d, d});
  jacobians.action_jacobian = floats(action_jacobian, "action_jacobian", {m, d, a});
  run_mlp(mlp, jacobians);
}

void small_product(const Tensor& a, const Tensor& matrix, int64_t repeats, const Tensor& out) {
  STD_TORCH_CHECK(a.dim() == 2 && matrix.dim() == 2, "a and matrix must have two dimensions");
  const int64_t rows = a.size(0), depth = a.size(1), columns = matrix.size(1);
  run_product(floats(a, "a", {rows, depth}), floats(matrix, "matrix", {depth, columns}), rows,
              depth, columns, repeats, floats(out, "out", {rows, columns}));
}

}  // namespace
}  // namespace grasp

STABLE_TORCH_LIBRARY_FRAGMENT(grasp_kernels_native, library) {
  library.def(
      "mlp_rollout(Tensor actions, Tensor weights, Tensor constants, int[] structure, "
      "Tensor(a!) states) -> ()");
  library.def(
      "mlp_rollout_backward(Tensor cotangent, Tensor states, Tensor actions, Tensor weights, "
      "Tensor constants, int[] structure, Tensor(a!) start_gradient, "
      "Tensor(b!) action_gradient) -> ()");
  library.def(
      "mlp_lifted_plan_(Tensor(a!) trajectory, Tensor(b!) actions, Tensor(c!)? first_moment, "
      "Tensor(d!)? second_moment, Tensor(e!) sound, Tensor goal, Tensor schedule, Tensor rates, "
      "Tensor plan_ids, Tensor? feature_weight, Tensor? low, Tensor? high, Tensor weights, "
      "Tensor constants, int[] structure, int seed, int first_iteration, str noise, int modes, "
      "bool free_terminal, float beta1, float beta2, float epsilon, int first_step, "
      "Tensor(f!) history) -> ()");
  library.def(
      "mlp_sync_(Tensor(a!) trajectory, Tensor(b!) actions, Tensor(c!) best_cost, "
      "Tensor(d!) best_actions, Tensor(e!) best_states, Tensor(f!) sound, Tensor start, "
      "Tensor goal, Tensor lr, Tensor? cost_weight, Tensor? low, Tensor? high, Tensor weights, "
      "Tensor constants, int[] structure, int steps, bool adam, float beta1, float beta2, "
      "float epsilon, float stop_cost, float blend, bool free_terminal) -> ()");
  library.def(
      "mlp_jacobians(Tensor states, Tensor actions, Tensor weights, Tensor constants, "
      "int[] structure, Tensor(a!) prediction, Tensor(b!) state_jacobian, "
      "Tensor(c!) action_jacobian) -> ()");
  library.def("small_product(Tensor a, Tensor matrix, int repeats, Tensor(a!) out) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(grasp_kernels_native, CPU, library) {
  library.impl("mlp_rollout", TORCH_BOX(&grasp::mlp_rollout));
  library.impl("mlp_rollout_backward", TORCH_BOX(&grasp::mlp_rollout_backward));
  library.impl("mlp_lifted_plan_", TORCH_BOX(&grasp::mlp_lifted_plan_));
  library.impl("mlp_sync_", TORCH_BOX(&grasp::mlp_sync_));
  library.impl("mlp_jacobians", TORCH_BOX(&grasp::mlp_jacobians));
  library.impl("small_product", TORCH_BOX(&grasp::small_product));
}
