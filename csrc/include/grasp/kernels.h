// Every kernel, compiled for one instruction set. Included once by each of
// csrc/cpu/{avx512,avx2,baseline}.cpp.
#pragma once

#include "grasp/action.h"
#include "grasp/lifted.h"

namespace grasp::GRASP_SIMD {

#define GRASP_STRING(x) GRASP_STRING_(x)
#define GRASP_STRING_(x) #x

extern const Kernels kernels;
const Kernels kernels = {
    GRASP_STRING(GRASP_SIMD), lifted_item, write_noise, write_words, write_normals, action_plan};

}  // namespace grasp::GRASP_SIMD
