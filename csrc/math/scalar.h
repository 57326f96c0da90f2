// The scalars of the core, and the one qualifier for math that both backends compile.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define RM_HD __host__ __device__ __forceinline__
#else
#define RM_HD inline
#endif

// The scalar of all geometry. Builds for gradient checks say RM_DOUBLE=1.
#ifndef RM_DOUBLE
#define RM_DOUBLE 0
#endif

namespace raymarch {

#if RM_DOUBLE
using real = double;
#else
using real = float;
#endif

// Storage of 16 bits; arithmetic is always in float. The host conversions round to nearest even, as the
// device intrinsics do.
struct half {
  uint16_t bits;
};
struct bfloat16 {
  uint16_t bits;
};

RM_HD uint32_t float_bits(float x) {
  uint32_t u;
  memcpy(&u, &x, 4);
  return u;
}
RM_HD float bits_float(uint32_t u) {
  float x;
  memcpy(&x, &u, 4);
  return x;
}

RM_HD float to_float(half h) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(h.bits));
#else
  // Multiplying by 2^112 rebuilds the exponent of normal and subnormal numbers alike.
  const uint32_t sign = uint32_t(h.bits & 0x8000u) << 16, magnitude = h.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return bits_float(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  return bits_float(sign | float_bits(bits_float(magnitude << 13) * 0x1p112f));
#endif
}
RM_HD float to_float(bfloat16 h) { return bits_float(uint32_t(h.bits) << 16); }
RM_HD float to_float(float x) { return x; }
RM_HD double to_float(double x) { return x; }

template <class T>
RM_HD T from_float(real x);
template <>
RM_HD real from_float<real>(real x) {
  return x;
}
template <>
RM_HD half from_float<half>(real wide) {
  const float x = float(wide);
#if defined(__CUDA_ARCH__)
  return {__half_as_ushort(__float2half_rn(x))};
#else
  const uint32_t u = float_bits(x), sign = (u >> 16) & 0x8000u, magnitude = u & 0x7fffffffu;
  // Every case is computed and one chosen, so that loops of this vectorise.
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  const uint32_t normal = (rounded - 0x38000000u) >> 13;
  // Subnormal: adding 0.5 lines the half's last bit up with the float's.
  const uint32_t subnormal = float_bits(bits_float(magnitude) + 0.5f) - 0x3f000000u;
  uint32_t bits = magnitude < 0x38800000u ? subnormal : normal;
  bits = magnitude >= 0x477ff000u ? 0x7c00u : bits;  // rounds to 65536 or more
  bits = magnitude > 0x7f800000u ? 0x7e00u : bits;
  return {uint16_t(sign | bits)};
#endif
}
template <>
RM_HD bfloat16 from_float<bfloat16>(real wide) {
  const uint32_t u = float_bits(float(wide));
  if ((u & 0x7fffffffu) > 0x7f800000u) return {uint16_t((u >> 16) | 0x40u)};
  return {uint16_t((u + 0x7fffu + ((u >> 16) & 1u)) >> 16)};
}

// The whole part of a number in [0, 2^23).
RM_HD int32_t whole_part(real x) {
#if defined(__CUDA_ARCH__) && !RM_DOUBLE
  // Conversions run at a quarter of the speed of sums. Rounding down leaves the number in the low bits.
  return int32_t(float_bits(__fadd_rd(x, 8388608.0f)) & 0x7fffffu);
#else
  return int32_t(x);
#endif
}

// 1 / x for a normal x whose inverse is normal too; on the device to 2 ulp.
RM_HD real quick_inverse(real x) {
#if defined(__CUDA_ARCH__) && !RM_DOUBLE
  return __fdividef(1.0f, x);
#else
  return 1 / x;
#endif
}

RM_HD real clamp(real x, real low, real high) { return x < low ? low : x > high ? high : x; }
RM_HD real square(real x) { return x * x; }

// What a network or a grid reads as T: as `from_float`, but what no half can hold becomes the largest half.
template <class T>
RM_HD T saturated(real x) {
  return from_float<T>(std::is_same<T, half>::value ? clamp(x, real(-65504), real(65504)) : x);
}

}  // namespace raymarch
