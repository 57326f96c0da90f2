// What compositing does with sums along a ray: background, expected depth, unit normals.
#pragma once
#include "math/vec.h"

namespace raymarch {

enum Background : int64_t { kNoBackground, kColour, kLastSample };

constexpr real kLeastOpacity = real(1e-10);  // keeps the mean distance of an empty ray finite
constexpr real kLeastLength = real(1e-10);   // keeps the direction of a zero normal finite

// Mean distance from sum(w t) and sum(w), kept between the ray's first and last sample.
struct Expected {
  real depth;
  bool inside;  // whether the clip left it alone, so that a gradient flows
};
RM_HD Expected expected_depth(real moment, real opacity, real first, real last) {
  const real depth = moment / (opacity + kLeastOpacity);
  return {clamp(depth, first, last), depth >= first && depth <= last};
}

RM_HD Vec3 unit_normal(Vec3 n) { return (1 / (std::sqrt(dot(n, n)) + kLeastLength)) * n; }

// The gradient to a zero normal is zero: it has no direction to improve.
RM_HD Vec3 unit_normal_vjp(Vec3 n, Vec3 g) {
  const real r = std::sqrt(dot(n, n)), inverse = 1 / (r + kLeastLength);
  if (!(r > 0)) return {0, 0, 0};
  return inverse * (g - (dot(n, g) * inverse / r) * n);
}

// For evaluation: NaN becomes 0 and a colour lies in 0 .. 1.
RM_HD Vec3 finite_colour(Vec3 c) {
  return {c.x == c.x ? c.x : real(0), c.y == c.y ? c.y : real(0), c.z == c.z ? c.z : real(0)};
}
RM_HD Vec3 displayable(Vec3 c) { return {clamp(c.x, 0, 1), clamp(c.y, 0, 1), clamp(c.z, 0, 1)}; }

}  // namespace raymarch
