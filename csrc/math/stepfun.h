// Step functions on [0, 1]: bins between edges, a mass per bin, and the cumulative sum of masses.
#pragma once
#include <limits>

#include "math/scalar.h"

namespace raymarch {

// A histogram lighter than this is filled up evenly, so that its cumulative sum can be inverted.
constexpr real kLeastMass = real(1e-5);

// base^exponent for a normal positive base and an exponent in [0, 1], to 4e-7 relative above 1e-30. The
// host's float version has no calls and no branches, so a loop over bins is vectorised.
RM_HD real power(real base, real exponent) {
#if RM_DOUBLE || defined(__CUDA_ARCH__)
  return std::exp2(exponent * std::log2(base));
#else
  // base = 2^whole m with m within sqrt(2) of 1; log m = 2 artanh((m - 1) / (m + 1)).
  const int32_t whole = int32_t(float_bits(base) - 0x3f3504f3u) >> 23;
  const float m = bits_float(float_bits(base) - (uint32_t(whole) << 23));
  const float z = (m - 1) / (m + 1), z2 = z * z;
  const float artanh = z * (1 + z2 * (1 / 3.0f + z2 * (1 / 5.0f + z2 * (1 / 7.0f + z2 * (1 / 9.0f)))));
  const float wanted = exponent * (float(whole) + 2.88539008f * artanh);
  // 2^wanted = 2^near e^(x log 2), |x| <= 1/2, by the first eight terms of the exponential series.
  const float near = (wanted + 0x1.8p23f) - 0x1.8p23f, x = 0.693147181f * (wanted - near);
  const float rest = 1 / 24.0f + x * (1 / 120.0f + x * (1 / 720.0f + x * (1 / 5040.0f)));
  const float series = 1 + x * (1 + x * (1 / 2.0f + x * (1 / 6.0f + x * rest)));
  return bits_float(float_bits(series) + (uint32_t(int32_t(near)) << 23));
#endif
}

// Whether a weight counts; those that are negative, below the normal numbers, infinite or no number are as 0.
RM_HD bool counts(real weight) {
  return (weight >= std::numeric_limits<real>::min()) & (weight <= std::numeric_limits<real>::max());
}

// The mass of a bin: its weight, and a padding so that no bin is out of reach.
RM_HD real padded(real weight, real padding) { return (counts(weight) ? weight : real(0)) + padding; }

// The same with the weight sharpened by the annealing exponent; 0^0 is 1.
RM_HD real annealed(real weight, real exponent, real padding) {
  const real none = exponent == 0 ? real(1) : real(0);
  const real sharpened = power(counts(weight) ? weight : real(1), exponent);
  return (counts(weight) ? sharpened : none) + padding;
}

// Where the cumulative sum reaches `target` inside one bin, between edges s0, s1 with sums c0, c1.
RM_HD real invert_bin(real target, real c0, real c1, real s0, real s1) {
  const real width = c1 - c0;
  const real place = width > 0 ? clamp((target - c0) / width, 0, 1) : real(target > c0);
  const real s = s0 + place * (s1 - s0);
  return s < s1 ? s : s1;
}

// The k-th of `count` numbers spread evenly over [0, 1), moved by `jitter` in [0, 1).
RM_HD real spread(int k, int count, real jitter) { return (real(k) + jitter) / real(count); }

}  // namespace raymarch
