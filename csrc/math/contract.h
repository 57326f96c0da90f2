// Scene contraction (Barron et al. 2022, mip-NeRF 360): x where |x| < 1, (2 - 1/|x|) x/|x| elsewhere, with the
// largest component (a cube of side 4) or the Euclidean length (a ball of radius 2) as |x|.
#pragma once
#include "math/vec.h"

namespace raymarch {

enum Norm : int64_t { kLinf, kL2 };

RM_HD real largest(Vec3 x) { return std::fmax(std::fabs(x.x), std::fmax(std::fabs(x.y), std::fabs(x.z))); }

RM_HD real length(int64_t norm, Vec3 x) {
  if (norm == kLinf) return largest(x);
  const real most = largest(x);  // scaled, so that squares neither overflow nor vanish
  if (!(most > 0) || std::isinf(most)) return most;
  const Vec3 unit = (1 / most) * x;
  return most * std::sqrt(dot(unit, unit));
}

// phi(m) = (2 - 1/m) / m, the factor by which a point at |x| = m >= 1 shrinks.
RM_HD real shrink(real m) { return (2 - 1 / m) / m; }

RM_HD Vec3 contract(int64_t norm, Vec3 x) {
  const real m = length(norm, x);
  return m < 1 ? x : shrink(m) * x;
}

// J = phi I + x d(phi)^T, with d(phi) along the norm's own gradient: the largest axis, or x/m.
RM_HD Vec3 contract_vjp(int64_t norm, Vec3 x, Vec3 g) {
  const real m = length(norm, x);
  if (m < 1) return g;
  const real slope = (2 / m - 2) / (m * m) * dot(x, g);  // phi'(m) (x . g)
  const Vec3 along = shrink(m) * g;
  if (norm == kL2) return along + (slope / m) * x;
  if (std::fabs(x.x) == m) return along + Vec3{x.x < 0 ? -slope : slope, 0, 0};
  if (std::fabs(x.y) == m) return along + Vec3{0, x.y < 0 ? -slope : slope, 0};
  return along + Vec3{0, 0, x.z < 0 ? -slope : slope};
}

// The way back: |x| = 1 / (2 - |y|) outside the unit ball. Points with |y| >= 2 have none and become infinite.
RM_HD Vec3 uncontract(int64_t norm, Vec3 y) {
  const real m = length(norm, y);
  return m < 1 ? y : (1 / (m * (2 - m))) * y;
}
RM_HD Vec3 uncontract_vjp(int64_t norm, Vec3 y, Vec3 g) {
  const real m = length(norm, y);
  if (m < 1) return g;
  const real factor = 1 / (m * (2 - m)), slope = -(2 - 2 * m) * factor * factor * dot(y, g);
  const Vec3 along = factor * g;
  if (norm == kL2) return along + (slope / m) * y;
  if (std::fabs(y.x) == m) return along + Vec3{y.x < 0 ? -slope : slope, 0, 0};
  if (std::fabs(y.y) == m) return along + Vec3{0, y.y < 0 ? -slope : slope, 0};
  return along + Vec3{0, 0, y.z < 0 ? -slope : slope};
}

// Contracted space [-2, 2] as [0, 1]. A point that rounding puts on the border, or that is not finite, becomes
// (0, 0, 0), which no other point does: fields give it density 0.
RM_HD bool inside_unit(Vec3 y) {
  return y.x > 0 && y.x < 1 && y.y > 0 && y.y < 1 && y.z > 0 && y.z < 1;
}
RM_HD Vec3 contract_unit(int64_t norm, Vec3 x) {
  const Vec3 f = contract(norm, x);
  const Vec3 y = {(f.x + 2) / 4, (f.y + 2) / 4, (f.z + 2) / 4};
  return inside_unit(y) ? y : Vec3{0, 0, 0};
}
RM_HD Vec3 contract_unit_vjp(int64_t norm, Vec3 x, Vec3 g) {
  const Vec3 y = contract_unit(norm, x);
  if (!inside_unit(y)) return {0, 0, 0};
  return contract_vjp(norm, x, real(0.25) * g);
}

}  // namespace raymarch
