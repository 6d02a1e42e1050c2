// AVX-512: sixteen floats at a time.
// The standard headers come first, so that nothing of theirs is compiled for these instructions
// (see simd.h).
#if defined(__x86_64__)

#include <immintrin.h>

#include <cstdint>

#include "grasp/problem.h"

#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#endif

#define GRASP_SIMD avx512
#define GRASP_LANES 16
#include "grasp/kernels.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
