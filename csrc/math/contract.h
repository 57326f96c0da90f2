// Scene contraction (Barron et al. 2022, mip-NeRF 360), with |x| the largest component (a cube of side 4) or
// the Euclidean length (a ball of radius 2):
//
//   f(x) = (2 - 1/m) x/m,  m = max(|x|, 1)
//
// At m = 1 f is the identity and the derivative's second term vanishes: the inside needs no branch, so loops
// are vectorised, and nothing divides by zero at the origin.
#pragma once
#include "math/vec.h"

namespace raymarch {

enum Norm : int64_t { kLinf, kL2 };

RM_HD real greater(real a, real b) { return a > b ? a : b; }
RM_HD Vec3 chosen(bool yes, Vec3 v) {
  return {yes ? v.x : real(0), yes ? v.y : real(0), yes ? v.z : real(0)};
}
RM_HD bool finite(Vec3 x) { return (x.x - x.x == 0) & (x.y - x.y == 0) & (x.z - x.z == 0); }

// With m = max(|x|, 1): 1/m, x/m, and in the cube the share each axis has in d|x|/dx, 0 for all but the
// longest.
struct Polar {
  real inverse;
  Vec3 unit, share;
};

// The longest axis of x/m is exactly 1, and where x is infinite, x/m is still a direction. Axes that tie for
// the longest have equal shares.
RM_HD Polar polar_in_cube(Vec3 x) {
  const real a = std::fabs(x.x), b = std::fabs(x.y), c = std::fabs(x.z);
  const real m = greater(greater(greater(a, b), c), 1), inverse = 1 / m;
  const bool at_a = a == m, at_b = b == m, at_c = c == m;
  const int ties = int(at_a) + int(at_b) + int(at_c);
  const real part = ties == 3 ? real(1) / 3 : ties == 2 ? real(0.5) : real(1);
  return {
      inverse,
      {at_a ? std::copysign(real(1), x.x) : inverse * x.x, at_b ? std::copysign(real(1), x.y) : inverse * x.y,
       at_c ? std::copysign(real(1), x.z) : inverse * x.z},
      {at_a ? part : real(0), at_b ? part : real(0), at_c ? part : real(0)}};
}

// In the ball the length is taken of x/m of the cube, whose squares do not overflow.
RM_HD Polar polar(int64_t norm, Vec3 x) {
  const Polar cube = polar_in_cube(x);
  if (norm == kLinf) return cube;
  const real scale = 1 / greater(std::sqrt(dot(cube.unit, cube.unit)), cube.inverse);
  return {scale * cube.inverse, scale * cube.unit, {0, 0, 0}};
}

// One axis of the cube: as much of it as leads outwards grows by `along` and is dragged along by the others.
RM_HD real cube_axis(real across, real along, real share, real unit, real g, real others) {
  return (across * (1 - share) + along * share) * g + (along - across) * share * unit * others;
}

// J^T g of a map x -> rho(m) x/m, given across = rho/m, the factor sideways, and along = rho', the factor
// outwards. Far out `along` is much the smaller; neither sum hides it behind a difference of two large
// numbers.
RM_HD Vec3 radial_vjp(int64_t norm, const Polar& at, real across, real along, Vec3 g) {
  const Vec3 u = at.unit, p = at.share, ug = {u.x * g.x, u.y * g.y, u.z * g.z};
  if (norm == kLinf)
    return {cube_axis(across, along, p.x, u.x, g.x, ug.y + ug.z),
            cube_axis(across, along, p.y, u.y, g.y, ug.x + ug.z),
            cube_axis(across, along, p.z, u.z, g.z, ug.x + ug.y)};
  const Vec3 outwards = (ug.x + ug.y + ug.z) * u;
  const Vec3 turned = across * (g - outwards) + along * outwards;
  const bool inside = across == along;  // to the last bit
  return {inside ? g.x : turned.x, inside ? g.y : turned.y, inside ? g.z : turned.z};
}

RM_HD Vec3 contract(int64_t norm, Vec3 x) {
  const Polar at = polar(norm, x);
  return (2 - at.inverse) * at.unit;
}

// rho = 2 - 1/m. Where x is not finite there is no gradient.
RM_HD Vec3 contract_vjp(int64_t norm, Vec3 x, Vec3 g) {
  const Polar at = polar(norm, x);
  return chosen(finite(x), radial_vjp(norm, at, (2 - at.inverse) * at.inverse, at.inverse * at.inverse, g));
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
  return chosen(finite(y) & (room > 0), radial_vjp(norm, at, rho * at.inverse, rho * rho, g));
}

// Contracted space [-2, 2] as [0, 1]. A point that rounding puts on the border, or that is no number, becomes
// (0, 0, 0), which no other point does: fields give it density 0.
RM_HD bool inside_unit(Vec3 y) {
  return (y.x > 0) & (y.x < 1) & (y.y > 0) & (y.y < 1) & (y.z > 0) & (y.z < 1);
}
RM_HD Vec3 unit_cube(Vec3 f) { return {(f.x + 2) / 4, (f.y + 2) / 4, (f.z + 2) / 4}; }

RM_HD Vec3 contract_unit(int64_t norm, Vec3 x) {
  const Vec3 y = unit_cube(contract(norm, x));
  return chosen(finite(x) & inside_unit(y), y);
}
RM_HD Vec3 contract_unit_vjp(int64_t norm, Vec3 x, Vec3 g) {
  const Vec3 y = unit_cube(contract(norm, x));
  return chosen(inside_unit(y), contract_vjp(norm, x, real(0.25) * g));
}

}  // namespace raymarch
