// exp and exp - 1 without a library call, so that the host compiler can vectorise the loop around them. On
// the device, and in the double build, they are the library's.
#pragma once
#include "math/scalar.h"

namespace raymarch {

// x = count ln 2 + rest with |rest| <= ln 2 / 2, exp(x) = power + power * tail, tail = exp(rest) - 1.
struct Exponential {
  float power, tail;
};

// Right for |x| <= 87; NaN comes out as a tail of NaN. Taylor to the seventh order: the rest is below 6e-9.
RM_HD Exponential split_exponential(float x) {
  const float shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the integer part lies in the low bits
  const float count = shifted - 12582912.0f;
  const float rest = (x - count * 0.693359375f) + count * 2.12194440e-4f;  // ln 2 in two pieces
  const float power = bits_float((float_bits(shifted) << 23) + 0x3f800000u);
  float tail = 1.0f / 5040;
  tail = tail * rest + 1.0f / 720;
  tail = tail * rest + 1.0f / 120;
  tail = tail * rest + 1.0f / 24;
  tail = tail * rest + 1.0f / 6;
  tail = tail * rest + 0.5f;
  return {power, tail * rest * rest + rest};
}

// exp(x) to 2 ulp; 0 below -87 and infinite above 88.
RM_HD real quick_exp(real x) {
#if RM_DOUBLE || defined(__CUDA_ARCH__)
  return std::exp(x);
#else
  const float held = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
  const Exponential e = split_exponential(held);
  const float y = e.power + e.power * e.tail;
  return x < -87.0f ? 0.0f : x > 88.0f ? INFINITY : y;
#endif
}

// exp(x) - 1 to 2 ulp, near 0 too.
RM_HD real quick_expm1(real x) {
#if RM_DOUBLE || defined(__CUDA_ARCH__)
  return std::expm1(x);
#else
  const float held = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
  const Exponential e = split_exponential(held);
  const float y = e.power * e.tail + (e.power - 1.0f);
  return x > 88.0f ? INFINITY : y;
#endif
}

}  // namespace raymarch
