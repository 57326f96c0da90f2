// What compositing does with sums along a ray: background, expected depth, unit normals.
#pragma once
#include <limits>

#include "math/vec.h"

namespace raymarch {

// What fills the rest of a ray's colour. The order is the one of ops/composite.py.
enum Background : int64_t { kNoBackground, kColour, kLastSample, kWhite, kRandom };

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

// A layer without squashing on top of unit vectors: n = normalised tanh(a).
constexpr real kLeastNormal = real(1e-12);
RM_HD Vec3 tanh3(Vec3 a) { return {std::tanh(a.x), std::tanh(a.y), std::tanh(a.z)}; }
RM_HD Vec3 normalised(Vec3 v) {
  const real r = std::sqrt(dot(v, v));
  return (1 / (r > kLeastNormal ? r : kLeastNormal)) * v;
}
RM_HD Vec3 normalised_vjp(Vec3 v, Vec3 g) {
  const real r = std::sqrt(dot(v, v)), inverse = 1 / (r > kLeastNormal ? r : kLeastNormal);
  const Vec3 n = inverse * v;
  return r > kLeastNormal ? inverse * (g - dot(n, g) * n) : inverse * g;
}
RM_HD Vec3 tanh3_vjp(Vec3 y, Vec3 g) {
  return {g.x * (1 - y.x * y.x), g.y * (1 - y.y * y.y), g.z * (1 - y.z * y.z)};
}

// For evaluation: NaN becomes 0, an infinity the largest number, and the colour of a ray lies in 0 .. 1.
// Where that changed a number no gradient flows.
RM_HD real finite(real x) {
  constexpr real most = std::numeric_limits<real>::max();
  return x == x ? clamp(x, -most, most) : real(0);
}
RM_HD real finite_vjp(real x, real g) { return x - x == 0 ? g : real(0); }
RM_HD Vec3 finite_colour(Vec3 c) { return {finite(c.x), finite(c.y), finite(c.z)}; }
RM_HD Vec3 finite_colour_vjp(Vec3 c, Vec3 g) {
  return {finite_vjp(c.x, g.x), finite_vjp(c.y, g.y), finite_vjp(c.z, g.z)};
}

RM_HD real displayable_vjp(real x, real g) { return x >= 0 && x <= 1 ? g : real(0); }
RM_HD Vec3 displayable(Vec3 c) { return {clamp(c.x, 0, 1), clamp(c.y, 0, 1), clamp(c.z, 0, 1)}; }
RM_HD Vec3 displayable_vjp(Vec3 c, Vec3 g) {
  return {displayable_vjp(c.x, g.x), displayable_vjp(c.y, g.y), displayable_vjp(c.z, g.z)};
}

}  // namespace raymarch
