// Spacings: how normalised distance s in [0, 1] becomes distance t between near and far.
//
//   t = g^-1(s g(far) + (1 - s) g(near))
//
// with g the warp in which samples are even (nerfstudio's spaced samplers).
#pragma once
#include "math/scalar.h"

namespace raymarch {

enum Spacing : int64_t { kUniform, kLinearDisparity, kSqrt, kLog, kPiecewise };

RM_HD real warp_distance(int64_t spacing, real t) {
  switch (spacing) {
    case kLinearDisparity:
      return 1 / t;
    case kSqrt:
      return std::sqrt(t);
    case kLog:
      return std::log(t);
    case kPiecewise:
      return t < 1 ? t / 2 : 1 - 1 / (2 * t);
    default:
      return t;
  }
}

RM_HD real unwarp_distance(int64_t spacing, real g) {
  switch (spacing) {
    case kLinearDisparity:
      return 1 / g;
    case kSqrt:
      return g * g;
    case kLog:
      return std::exp(g);
    case kPiecewise:
      return g < real(0.5) ? 2 * g : 1 / (2 - 2 * g);
    default:
      return g;
  }
}

// A ray's interval in the warped space. A near of zero is moved to the smallest distance that disparity and
// logarithm can hold, so that they stay finite.
struct Interval {
  real near, far;
};
RM_HD Interval warped_interval(int64_t spacing, real near, real far) {
  const bool singular = spacing == kLinearDisparity || spacing == kLog;
  if (singular && near < real(1e-6)) near = real(1e-6);
  return {warp_distance(spacing, near), warp_distance(spacing, far)};
}

RM_HD real t_from_s(int64_t spacing, Interval warped, real s) {
  return unwarp_distance(spacing, s * warped.far + (1 - s) * warped.near);
}
RM_HD real s_from_t(int64_t spacing, Interval warped, real t) {
  return (warp_distance(spacing, t) - warped.near) / (warped.far - warped.near);
}

// Edge j of n even bins, moved by `jitter` in [0, 1) within half a bin to either side; 0.5 would be the edge
// itself but at the two ends, which move inwards only.
RM_HD real jittered_edge(int64_t j, int64_t n, real jitter) {
  const real low = j == 0 ? real(0) : (real(j) - real(0.5)) / real(n);
  const real high = j == n ? real(1) : (real(j) + real(0.5)) / real(n);
  return low + (high - low) * jitter;
}

}  // namespace raymarch
