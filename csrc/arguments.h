// Tensors to pointers: the checks that keep memory safe, shared by the registrations. Messages for
// users are the business of grasp_kernels/functional.py.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "grasp/ops.h"

namespace grasp {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

inline void check_shape(const Tensor& tensor, const char* name,
                        std::initializer_list<int64_t> shape) {
  bool same = tensor.dim() == static_cast<int64_t>(shape.size());
  int64_t dim = 0;
  for (const int64_t size : shape) same = same && tensor.size(dim++) == size;
  STD_TORCH_CHECK(same, name, " has the wrong shape");
}

inline void check_dtype(const Tensor& tensor, const char* name, ScalarType dtype) {
  STD_TORCH_CHECK(tensor.scalar_type() == dtype, name, " has the wrong dtype");
}

inline Storage storage_of(const Tensor& tensor, const char* name) {
  const ScalarType dtype = tensor.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::BFloat16, name,
                  " must be float32 or bfloat16 for the native backend");
  return dtype == ScalarType::Float ? Storage::kFloat32 : Storage::kBFloat16;
}

inline void* contiguous(const Tensor& tensor, const char* name, ScalarType dtype,
                        std::initializer_list<int64_t> shape) {
  check_dtype(tensor, name, dtype);
  check_shape(tensor, name, shape);
  STD_TORCH_CHECK(tensor.is_contiguous(), name, " must be contiguous");
  return tensor.data_ptr();
}

template <class T>
T* contiguous(const OptionalTensor& tensor, const char* name, ScalarType dtype,
              std::initializer_list<int64_t> shape) {
  return tensor ? static_cast<T*>(contiguous(*tensor, name, dtype, shape)) : nullptr;
}

inline float* floats(const Tensor& tensor, const char* name, std::initializer_list<int64_t> shape) {
  return static_cast<float*>(contiguous(tensor, name, ScalarType::Float, shape));
}

// The last `rows` rows of a (N, any, D) array with adjacent features.
inline Rows strided_rows(const Tensor& tensor, const char* name, ScalarType dtype,
                         std::initializer_list<int64_t> shape, int64_t first_row) {
  check_dtype(tensor, name, dtype);
  check_shape(tensor, name, shape);
  STD_TORCH_CHECK(tensor.stride(2) == 1 || tensor.size(2) <= 1, name,
                  " must have adjacent features (last stride 1)");
  const int64_t item_size = dtype == ScalarType::Float ? 4 : 2;
  char* data = static_cast<char*>(tensor.data_ptr()) + first_row * tensor.stride(1) * item_size;
  return {data, tensor.stride(0), tensor.stride(1)};
}

// A column of a small float32 matrix of any strides, or an (N,) vector when `column` is 0, gathered
// and scaled.
inline std::vector<float> gather(const Tensor& tensor, int64_t column, float factor) {
  const float* data = static_cast<const float*>(tensor.data_ptr());
  const int64_t plans = tensor.size(0), stride = tensor.stride(0);
  const int64_t offset = column == 0 ? 0 : column * tensor.stride(1);
  std::vector<float> values(plans);
  for (int64_t plan = 0; plan < plans; ++plan) values[plan] = factor * data[plan * stride + offset];
  return values;
}

// The box of the actions. A short action is repeated, so that the kernel's vectors are full.
class Box {
 public:
  Box(const OptionalTensor& low, const OptionalTensor& high, ScalarType dtype, int64_t steps,
      int64_t width)
      : width_(width),
        repeats_(width > 0 ? std::clamp<int64_t>(1024 / width, 1, std::max<int64_t>(steps, 1)) : 1),
        low_(repeated(low, "low", dtype)),
        high_(repeated(high, "high", dtype)) {}

  // The box must outlive the step.
  void bound(ActionStep& step) const {
    step.period = std::max<int64_t>(1, repeats_ * width_);
    step.low = low_.empty() ? nullptr : low_.data();
    step.high = high_.empty() ? nullptr : high_.data();
  }

 private:
  std::vector<float> repeated(const OptionalTensor& bound, const char* name, ScalarType dtype) {
    std::vector<float> values;
    if (!bound) return values;
    const void* data = contiguous(*bound, name, dtype, {width_});
    values.resize(std::max<int64_t>(1, repeats_ * width_));
    for (int64_t i = 0; i < repeats_ * width_; ++i) {
      const int64_t j = i % width_;
      values[i] = dtype == ScalarType::Float
                      ? static_cast<const float*>(data)[j]
                      : float(static_cast<const torch::headeronly::BFloat16*>(data)[j]);
    }
    return values;
  }

  int64_t width_, repeats_;
  std::vector<float> low_, high_;
};

// sin(k pi t / horizon) / k, exactly zero at both ends: the angle is reduced in integers.
inline std::vector<float> bridge_coefficients(int64_t modes, int64_t first_row, int64_t rows,
                                              int64_t horizon) {
  const double pi = 3.14159265358979323846;
  std::vector<float> coefficients(modes * rows);
  for (int64_t mode = 0; mode < modes; ++mode) {
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t k = mode + 1;
      const int64_t turn = k * ((first_row + row) % (2 * horizon)) % (2 * horizon);
      const double sine = turn % horizon == 0 ? 0.0 : std::sin(pi * double(turn) / double(horizon));
      coefficients[mode * rows + row] = float(sine / double(k));
    }
  }
  return coefficients;
}

// `coefficients` backs the field's pointer and must outlive it.
inline NoiseField noise_field(const Tensor& plan_ids, int64_t plans, int64_t rows, int64_t features,
                              int64_t seed, int64_t iteration, const std::string& noise,
                              int64_t modes, int64_t first_row, int64_t horizon,
                              std::vector<float>& coefficients) {
  NoiseField field;
  field.plan_ids =
      static_cast<const int64_t*>(contiguous(plan_ids, "plan_ids", ScalarType::Long, {plans}));
  field.seed = static_cast<uint64_t>(seed);
  field.iteration = static_cast<uint32_t>(iteration);
  field.first_row = first_row;
  field.features = features;
  field.rows = rows;
  if (noise == "white") {
    field.kind = NoiseKind::kWhite;
  } else if (noise == "bridge") {
    STD_TORCH_CHECK(modes > 0 && horizon > 0, "bridge noise needs modes > 0 and horizon > 0");
    field.kind = NoiseKind::kBridge;
    field.modes = modes;
    coefficients = bridge_coefficients(modes, first_row, rows, horizon);
    field.coefficients = coefficients.data();
  } else {
    STD_TORCH_CHECK(noise == "none", "noise must be white, bridge or none, not ", noise);
  }
  return field;
}

}  // namespace grasp
