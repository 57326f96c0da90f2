// Spacings: how normalised distance s in [0, 1] becomes distance t between near and far.
//
//   t = g^-1(s g(far) + (1 - s) g(near))
//
// with g the warp in which samples are even (nerfstudio's spaced samplers).
#pragma once
#include "math/scalar.h"

namespace raymarch {

enum Spacing : int64_t { kUniform, kLinearDisparity, kSqrt, kLog, kPiecewise, kSpacings };
enum Jitter : int64_t { kNoJitter, kPerRay, kPerEdge, kJitters };

constexpr real kNearest = real(1e-6);  // where disparity and logarithm, infinite at 0, take a ray to begin

// A distance warped. Far away piecewise comes so close to 1 that only `rest` = 1 - g still tells distances
// apart.
struct Warped {
  real g, rest;
};
RM_HD Warped warp_distance(int64_t spacing, real t) {
  switch (spacing) {
    case kLinearDisparity:
      return {1 / (t > kNearest ? t : kNearest), 0};
    case kSqrt:
      return {std::sqrt(t > 0 ? t : 0), 0};
    case kLog:
      return {std::log(t > kNearest ? t : kNearest), 0};
    case kPiecewise: {
      const real far = 1 / (2 * (t > 1 ? t : 1));
      return t < 1 ? Warped{t / 2, 1 - t / 2} : Warped{1 - far, far};
    }
    default:
      return {t, 0};
  }
}

RM_HD real unwarp_distance(int64_t spacing, Warped at) {
  switch (spacing) {
    case kLinearDisparity:
      return 1 / at.g;
    case kSqrt:
      return at.g * at.g;
    case kLog:
      return std::exp(at.g);
    case kPiecewise: {
      const real far = 1 / (2 * at.rest);
      return at.g < real(0.5) ? 2 * at.g : far;
    }
    default:
      return at.g;
  }
}

// A ray's ends in the warped space.
struct Interval {
  Warped near, far;
};
RM_HD Interval warped_interval(int64_t spacing, real near, real far) {
  return {warp_distance(spacing, near), warp_distance(spacing, far)};
}

RM_HD real between(real s, real near, real far) { return s * far + (1 - s) * near; }

RM_HD real t_from_s(int64_t spacing, Interval ends, real s) {
  return unwarp_distance(spacing,
                         {between(s, ends.near.g, ends.far.g), between(s, ends.near.rest, ends.far.rest)});
}

// The inverse, kept in [0, 1]; 0 where near and far are one.
RM_HD real s_from_t(int64_t spacing, Interval ends, real t) {
  const Warped at = warp_distance(spacing, t);
  const bool beyond = spacing == kPiecewise && t > 1;
  const real part = beyond ? ends.near.rest - at.rest : at.g - ends.near.g;
  const real whole = beyond ? ends.near.rest - ends.far.rest : ends.far.g - ends.near.g;
  return whole != 0 ? clamp(part / whole, 0, 1) : real(0);
}

// Edge j of n even bins, moved by `jitter` in [0, 1) within half a bin to either side; 0.5 would be the edge
// itself but at the two ends, which move inwards only.
RM_HD real jittered_edge(int j, int n, real jitter) {
  const real before = (real(j) - real(0.5)) / real(n), after = (real(j) + real(0.5)) / real(n);
  const real low = before > 0 ? before : 0, high = after < 1 ? after : 1;
  return low + (high - low) * jitter;
}

}  // namespace raymarch
