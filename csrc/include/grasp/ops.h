// The border between registration.cpp, which knows torch, and the drivers, which do not.
#pragma once

#include <functional>

#include "grasp/mlp_problem.h"

namespace grasp {

// The kernels for this machine. GRASP_KERNELS_SIMD=avx512|avx2|baseline asks for a certain variant;
// throws std::runtime_error if it doesn't exist here.
const Kernels& kernels();

// Runs body(begin, end) over [0, count) on torch's own threads. Defined by registration.cpp.
void parallel_for(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body);

// How many threads parallel_for has at most.
int64_t thread_count();

void run_lifted(const Lifted& lifted);
void run_action(const ActionStep& step);
void run_noise(const NoiseField& field, int64_t plans, Storage storage, const Rows& out);
void run_words(const NoiseField& field, int64_t plans, uint32_t* out);
void run_mlp(const Mlp& mlp, const MlpRollout& rollout);
void run_mlp(const Mlp& mlp, const MlpLifted& lifted);
void run_mlp(const Mlp& mlp, const MlpSync& sync);
void run_mlp(const Mlp& mlp, const MlpJacobians& jacobians);
void run_newton(const NewtonStep& step);
void run_product(const float* a, const float* matrix, int64_t rows, int64_t depth, int64_t columns,
                 int64_t repeats, float* c);

}  // namespace grasp
