// Which instruction set to use, decided once, at the first call.
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "grasp/ops.h"

namespace grasp {

namespace avx512 {
extern const Kernels kernels;
}
namespace avx2 {
extern const Kernels kernels;
}
namespace baseline {
extern const Kernels kernels;
}

namespace {

struct Variant {
  const Kernels* kernels;
  bool supported;
};

const Kernels& choose() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") &&
                          __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const Variant variants[] = {
      {&avx512::kernels, has_avx512}, {&avx2::kernels, has_avx2}, {&baseline::kernels, true}};
#else
  const Variant variants[] = {{&baseline::kernels, true}};
#endif
  const char* asked = std::getenv("GRASP_KERNELS_SIMD");
  const bool any = asked == nullptr || *asked == '\0';
  std::string possible;
  for (const Variant& variant : variants) {
    if (!variant.supported) continue;
    if (any || std::string(asked) == variant.kernels->name) return *variant.kernels;
    possible += possible.empty() ? "" : ", ";
    possible += variant.kernels->name;
  }
  throw std::runtime_error("GRASP_KERNELS_SIMD=" + std::string(asked) +
                           " is not available here; possible: " + possible);
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace grasp
