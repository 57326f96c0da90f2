// Scene contraction (Barron et al. 2022, mip-NeRF 360): x where |x| < 1, (2 - 1/|x|) x/|x| elsewhere, with
// the largest component (a cube of side 4) or the Euclidean length (a ball of radius 2) as |x|.
#pragma once
#include <limits>

#include "math/vec.h"

namespace raymarch {

enum Norm : int64_t { kLinf, kL2 };

RM_HD real largest(Vec3 x) {
  const real a = std::fabs(x.x), b = std::fabs(x.y), c = std::fabs(x.z), ab = a > b ? a : b;
  return ab > c ? ab : c;
}

RM_HD bool finite(Vec3 x) {
  const real most = std::numeric_limits<real>::max();
  return bool((std::fabs(x.x) <= most) & (std::fabs(x.y) <= most) & (std::fabs(x.z) <= most));
}

// One or the other without a branch, number by number, so that loops over points vectorise.
RM_HD Vec3 select(bool first, Vec3 a, Vec3 b) {
  return {first ? a.x : b.x, first ? a.y : b.y, first ? a.z : b.z};
}

// A vector as length and x / length. Beyond 1, the only place where directions are asked for, the division by
// the largest component comes first, so that no square overflows.
struct Polar {
  real length;
  Vec3 unit;
};
RM_HD Polar polar(int64_t norm, Vec3 x) {
  const real most = largest(x);
  if (norm == kL2 && most < 1) {
    const real m = std::sqrt(dot(x, x));
    return {m, m < 1 ? x : (1 / m) * x};
  }
  const Vec3 unit = {x.x / most, x.y / most, x.z / most};
  if (norm == kLinf) return {most, unit};
  const real n = std::sqrt(dot(unit, unit));
  return {most * n, (1 / n) * unit};
}

// J^T g of a map x -> rho(m) x / m, given across = rho / m, the factor sideways, and along = rho', the factor
// outwards. In the cube only the longest axis leads outwards, and it drags the other two along.
RM_HD Vec3 radial_vjp(int64_t norm, Vec3 unit, real across, real along, Vec3 g) {
  const real rest = along - across;
  if (norm == kL2) return across * g + (rest * dot(unit, g)) * unit;
  const real x = std::fabs(unit.x) >= 1 ? real(1) : real(0);  // 1 for the longest axis, the first of equals
  const real y = std::fabs(unit.y) >= 1 ? 1 - x : real(0), z = 1 - x - y;
  const Vec3 aside = {(1 - x) * unit.x * g.x, (1 - y) * unit.y * g.y, (1 - z) * unit.z * g.z};
  const real drag = rest * (aside.x + aside.y + aside.z);
  return {((1 - x) * across + x * along) * g.x + x * drag * unit.x,
          ((1 - y) * across + y * along) * g.y + y * drag * unit.y,
          ((1 - z) * across + z * along) * g.z + z * drag * unit.z};
}

// The direction is formed first: its longest axis is then exactly 1 and far points land exactly on the
// border.
RM_HD Vec3 contract(int64_t norm, Vec3 x) {
  const Polar p = polar(norm, x);
  return select(p.length < 1, x, (2 - 1 / p.length) * p.unit);
}

// rho = 2 - 1/m. Where x is not finite there is no gradient.
RM_HD Vec3 contract_vjp(int64_t norm, Vec3 x, Vec3 g) {
  const Polar p = polar(norm, x);
  const real inverse = 1 / p.length;
  const Vec3 far = radial_vjp(norm, p.unit, (2 - inverse) * inverse, inverse * inverse, g);
  return select(finite(x), select(p.length < 1, g, far), {0, 0, 0});
}

// The way back: |x| = 1 / (2 - |y|) outside the unit ball. Points with |y| >= 2 have none: their components
// become infinite (zeros stay), and have no gradient.
RM_HD real endless(real y) { return y > 0 ? real(INFINITY) : y < 0 ? -real(INFINITY) : y; }
RM_HD Vec3 uncontract(int64_t norm, Vec3 y) {
  const Polar p = polar(norm, y);
  if (p.length < 1) return y;
  if (p.length >= 2) return {endless(y.x), endless(y.y), endless(y.z)};
  return (1 / (2 - p.length)) * p.unit;
}
RM_HD Vec3 uncontract_vjp(int64_t norm, Vec3 y, Vec3 g) {
  const Polar p = polar(norm, y);
  if (p.length < 1) return g;
  if (!(p.length < 2)) return {0, 0, 0};
  const real rho = 1 / (2 - p.length);
  return radial_vjp(norm, p.unit, rho / p.length, rho * rho, g);
}

// Contracted space [-2, 2] as [0, 1]. A point that rounding puts on the border, or that is not finite,
// becomes (0, 0, 0), which no other point does: fields give it density 0.
RM_HD bool inside_unit(Vec3 y) { return y.x > 0 && y.x < 1 && y.y > 0 && y.y < 1 && y.z > 0 && y.z < 1; }
RM_HD Vec3 contract_unit(int64_t norm, Vec3 x) {
  const Vec3 f = contract(norm, x);
  const Vec3 y = {(f.x + 2) / 4, (f.y + 2) / 4, (f.z + 2) / 4};
  return select(inside_unit(y), y, {0, 0, 0});
}
RM_HD Vec3 contract_unit_vjp(int64_t norm, Vec3 x, Vec3 g) {
  const Vec3 y = contract_unit(norm, x);
  return select(inside_unit(y), contract_vjp(norm, x, real(0.25) * g), {0, 0, 0});
}

}  // namespace raymarch
