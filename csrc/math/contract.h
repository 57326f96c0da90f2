// Scene contraction (Barron et al. 2022, mip-NeRF 360), with |x| the largest component (a cube of side 4) or the
// Euclidean length (a ball of radius 2):
//
//   f(x) = (2 - 1/m) x/m,  m = max(|x|, 1)
//
// At m = 1 f is the identity and the derivative's second term vanishes: the inside needs no branch, so loops are
// vectorised, and nothing divides by zero at the origin.
#pragma once
#include "math/vec.h"

namespace raymarch {

enum Norm : int64_t { kLinf, kL2 };

RM_HD real greater(real a, real b) { return a > b ? a : b; }
RM_HD Vec3 chosen(bool yes, Vec3 v) { return {yes ? v.x : real(0), yes ? v.y : real(0), yes ? v.z : real(0)}; }
RM_HD bool finite(Vec3 x) { return (x.x - x.x == 0) & (x.y - x.y == 0) & (x.z - x.z == 0); }

// With m = max(|x|, 1): 1/m, x/m, and dm/dx where |x| >= 1 (inside, where it is not asked for, it may be anything
// finite).
struct Polar {
  real inverse;
  Vec3 unit, outward;
};

// The longest axis of x/m is exactly 1, and where x is infinite, x/m is still a direction. Axes that tie for the
// longest have equal parts of dm/dx.
RM_HD Polar polar_in_cube(Vec3 x) {
  const real a = std::fabs(x.x), b = std::fabs(x.y), c = std::fabs(x.z);
  const real m = greater(greater(greater(a, b), c), 1), inverse = 1 / m;
  const bool at_a = a == m, at_b = b == m, at_c = c == m;
  const Vec3 sign = {std::copysign(real(1), x.x), std::copysign(real(1), x.y), std::copysign(real(1), x.z)};
  const Vec3 unit = {at_a ? sign.x : inverse * x.x, at_b ? sign.y : inverse * x.y, at_c ? sign.z : inverse * x.z};
  const int ties = int(at_a) + int(at_b) + int(at_c);
  const real part = ties == 3 ? real(1) / 3 : ties == 2 ? real(0.5) : real(1);
  return {inverse, unit, {at_a ? part * sign.x : real(0), at_b ? part * sign.y : real(0), at_c ? part * sign.z : real(0)}};
}

// In the ball the length is taken of x/m of the cube, whose squares do not overflow.
RM_HD Polar polar(int64_t norm, Vec3 x) {
  const Polar cube = polar_in_cube(x);
  if (norm == kLinf) return cube;
  const real scale = 1 / greater(std::sqrt(dot(cube.unit, cube.unit)), cube.inverse);
  const Vec3 unit = scale * cube.unit;
  return {scale * cube.inverse, unit, unit};
}

// J^T g of a map x -> rho(m) x/m, given across = rho/m, the factor sideways, and along = rho', the factor outwards.
RM_HD Vec3 radial_vjp(const Polar& at, real across, real along, Vec3 g) {
  return across * g + ((along - across) * dot(at.unit, g)) * at.outward;
}

RM_HD Vec3 contract(int64_t norm, Vec3 x) {
  const Polar at = polar(norm, x);
  return (2 - at.inverse) * at.unit;
}

// rho = 2 - 1/m. Where x is not finite there is no gradient.
RM_HD Vec3 contract_vjp(int64_t norm, Vec3 x, Vec3 g) {
  const Polar at = polar(norm, x);
  return chosen(finite(x), radial_vjp(at, (2 - at.inverse) * at.inverse, at.inverse * at.inverse, g));
}

// The way back: |x| = 1 / (2 - |y|) outside the unit ball. Points with |y| >= 2 have none: their components
// become infinite (zeros stay), and have no gradient.
RM_HD real endless(real y) { return y > 0 ? real(INFINITY) : y < 0 ? -real(INFINITY) : y; }
RM_HD Vec3 uncontract(int64_t norm, Vec3 y) {
  const Polar at = polar(norm, y);
  const real room = 2 - 1 / at.inverse;
  return room > 0 ? (1 / room) * at.unit : Vec3{endless(y.x), endless(y.y), endless(y.z)};
}
RM_HD Vec3 uncontract_vjp(int64_t norm, Vec3 y, Vec3 g) {
  const Polar at = polar(norm, y);
  const real room = 2 - 1 / at.inverse, rho = 1 / room;
  return chosen(finite(y) & (room > 0), radial_vjp(at, rho * at.inverse, rho * rho, g));
}

// Contracted space [-2, 2] as [0, 1]. A point that rounding puts on the border, or that is no number, becomes
// (0, 0, 0), which no other point does: fields give it density 0.
RM_HD bool inside_unit(Vec3 y) {
  return (y.x > 0) & (y.x < 1) & (y.y > 0) & (y.y < 1) & (y.z > 0) & (y.z < 1);
}
RM_HD Vec3 unit_cube(Vec3 f) { return {(f.x + 2) / 4, (f.y + 2) / 4, (f.z + 2) / 4}; }

RM_HD Vec3 contract_unit(int64_t norm, Vec3 x) {
  const Vec3 y = unit_cube(contract(norm, x));
  return chosen(inside_unit(y), y);
}
RM_HD Vec3 contract_unit_vjp(int64_t norm, Vec3 x, Vec3 g) {
  const Vec3 y = unit_cube(contract(norm, x));
  return chosen(inside_unit(y), contract_vjp(norm, x, real(0.25) * g));
}

}  // namespace raymarch
