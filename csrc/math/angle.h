// Sines and cosines of moderate angles.
#pragma once
#include "math/scalar.h"

namespace raymarch {

constexpr double kPi = 3.14159265358979323846;

// On the device in half turns, because sinf and cosf keep a table on the stack for huge angles. The error is
// 1e-7 + 1e-7 |angle|, which is what a float angle knows anyway.
RM_HD real sine(real angle) {
#if defined(__CUDA_ARCH__)
  return sinpif(angle * real(1 / kPi));
#else
  return std::sin(angle);
#endif
}
RM_HD real cosine(real angle) {
#if defined(__CUDA_ARCH__)
  return cospif(angle * real(1 / kPi));
#else
  return std::cos(angle);
#endif
}

// sin(x)/x without the hole at zero.
RM_HD real sinc(real x) { return x * x < real(1e-6) ? 1 - x * x / 6 : sine(x) / x; }

}  // namespace raymarch
