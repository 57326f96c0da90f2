// Scene contraction (Barron et al. 2022, mip-NeRF 360, equation 10), with |x| the largest component (a cube of
// side 4) or the Euclidean length (a ball of radius 2):
//
//   f(x) = phi(m) x,  phi(m) = (2 - 1/m) / m,  m = max(|x|, 1)
//
// At m = 1 phi is 1 and its slope drops out of the derivative below, so the inside, where f is the identity,
// needs no branch, and nothing divides by zero at the origin.
#pragma once
#include <limits>

#include "math/vec.h"

namespace raymarch {

enum Norm : int64_t { kLinf, kL2 };

RM_HD real greater(real a, real b) { return a > b ? a : b; }
RM_HD real largest(Vec3 x) {
  return greater(greater(std::fabs(x.x), std::fabs(x.y)), std::fabs(x.z));
}

// Infinities become the largest number: what is infinitely far contracts to where the farthest does.
RM_HD Vec3 representable(Vec3 x) {
  constexpr real most = std::numeric_limits<real>::max();
  return {clamp(x.x, -most, most), clamp(x.y, -most, most), clamp(x.z, -most, most)};
}

// A vector in polar form: 1/max(|x|, 1), and d|x|/dx where |x| >= 1.
struct Polar {
  real inverse;
  Vec3 outward;
};

// Where components tie for the largest, each has an equal part of the derivative.
RM_HD Vec3 largest_vjp(Vec3 x) {
  const real m = largest(x);
  const real a = std::fabs(x.x) == m, b = std::fabs(x.y) == m, c = std::fabs(x.z) == m;
  const real part = 1 / greater(a + b + c, 1);
  return {std::copysign(a * part, x.x), std::copysign(b * part, x.y), std::copysign(c * part, x.z)};
}

RM_HD Polar polar(int64_t norm, Vec3 x) {
  const real inverse = 1 / greater(largest(x), 1);
  if (norm == kLinf) return {inverse, largest_vjp(x)};
  const Vec3 scaled = inverse * x;  // so that squares cannot overflow
  const real length = std::sqrt(dot(scaled, scaled)), along = 1 / greater(length, inverse);
  return {inverse * along, along * scaled};
}

RM_HD real shrink(real inverse) { return (2 - inverse) * inverse; }

RM_HD Vec3 contract(int64_t norm, Vec3 x) {
  const Vec3 p = representable(x);
  return shrink(polar(norm, p).inverse) * p;
}

// The vjp of x -> phi(m) x: phi g + (m phi'(m)) (x/m . g) dm/dx.
RM_HD Vec3 radial_vjp(real phi, real steepness, Vec3 unit, Vec3 outward, Vec3 g) {
  return phi * g + (steepness * dot(unit, g)) * outward;
}

RM_HD Vec3 contract_vjp(int64_t norm, Vec3 x, Vec3 g) {
  const Vec3 p = representable(x);
  const Polar at = polar(norm, p);
  return radial_vjp(shrink(at.inverse), 2 * at.inverse * (at.inverse - 1), at.inverse * p, at.outward, g);
}

// The way back: y / (m (2 - m)), m = max(|y|, 1). Nothing contracts to |y| >= 2; the factor stops growing there.
RM_HD real room(real m) { return greater(2 - m, std::numeric_limits<real>::epsilon()); }

RM_HD Vec3 uncontract(int64_t norm, Vec3 y) {
  const Vec3 p = representable(y);
  const real inverse = polar(norm, p).inverse;
  return (inverse / room(1 / inverse)) * p;
}

RM_HD Vec3 uncontract_vjp(int64_t norm, Vec3 y, Vec3 g) {
  const Vec3 p = representable(y);
  const Polar at = polar(norm, p);
  const real m = 1 / at.inverse, grow = at.inverse / room(m);
  const real steepness = 2 * (m - 1) * grow / room(m);
  return radial_vjp(grow, steepness, at.inverse * p, at.outward, g);
}

// Contracted space [-2, 2] as [0, 1]. A point that rounding puts on the border, or that is no number, becomes
// (0, 0, 0), which no other point does: fields give it density 0.
RM_HD bool inside_unit(Vec3 y) {
  return (y.x > 0) & (y.x < 1) & (y.y > 0) & (y.y < 1) & (y.z > 0) & (y.z < 1);
}
RM_HD Vec3 unit_cube(Vec3 f) { return {(f.x + 2) / 4, (f.y + 2) / 4, (f.z + 2) / 4}; }
RM_HD Vec3 chosen(bool yes, Vec3 v) { return {yes ? v.x : 0, yes ? v.y : 0, yes ? v.z : 0}; }

RM_HD Vec3 contract_unit(int64_t norm, Vec3 x) {
  const Vec3 y = unit_cube(contract(norm, x));
  return chosen(inside_unit(y), y);
}
RM_HD Vec3 contract_unit_vjp(int64_t norm, Vec3 x, Vec3 g) {
  const Vec3 p = representable(x);
  const Polar at = polar(norm, p);
  const real phi = shrink(at.inverse);
  const Vec3 back = radial_vjp(phi, 2 * at.inverse * (at.inverse - 1), at.inverse * p, at.outward, real(0.25) * g);
  return chosen(inside_unit(unit_cube(phi * p)), back);
}

}  // namespace raymarch
