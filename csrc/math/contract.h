// Scene contraction: x inside the unit ball, (2 - 1/|x|) x/|x| outside.
#pragma once
#include "math/vec.h"

namespace raymarch {

RM_HD Vec3 contract(Vec3 x) {
  const real r = std::sqrt(dot(x, x));
  return r <= real(1) ? x : ((real(2) - real(1) / r) / r) * x;
}

// J = a I + b x x^T is symmetric, so the vjp is a g + b (x.g) x.
RM_HD Vec3 contract_vjp(Vec3 x, Vec3 g) {
  const real r2 = dot(x, x);
  if (r2 <= real(1)) return g;
  const real inv = real(1) / std::sqrt(r2);
  const real a = (real(2) - inv) * inv;
  const real b = real(2) * inv * inv * inv * (inv - real(1));
  return a * g + (b * dot(x, g)) * x;
}

}  // namespace raymarch
