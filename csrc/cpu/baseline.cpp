// Four floats at a time, with what every machine of the architecture has: SSE2, NEON, or plain C++.
#if defined(__SSE2__)
#include <emmintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include <cstdint>

#define GRASP_SIMD baseline
#define GRASP_LANES 4
#include "grasp/kernels.h"
