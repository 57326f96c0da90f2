// Three-vectors and the 3x4 matrices of rigid motion.
#pragma once
#include "math/scalar.h"

namespace raymarch {

struct Vec3 {
  real x, y, z;
};
RM_HD Vec3 operator*(real s, Vec3 v) { return {s * v.x, s * v.y, s * v.z}; }
RM_HD Vec3 operator+(Vec3 a, Vec3 b) { return {a.x + b.x, a.y + b.y, a.z + b.z}; }
RM_HD Vec3 operator-(Vec3 a, Vec3 b) { return {a.x - b.x, a.y - b.y, a.z - b.z}; }
RM_HD real dot(Vec3 a, Vec3 b) { return a.x * b.x + a.y * b.y + a.z * b.z; }
RM_HD Vec3 cross(Vec3 a, Vec3 b) {
  return {a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x};
}

RM_HD Vec3 load3(const real* p, int64_t i) { return {p[3 * i], p[3 * i + 1], p[3 * i + 2]}; }
RM_HD void store3(real* p, int64_t i, Vec3 v) { p[3 * i] = v.x, p[3 * i + 1] = v.y, p[3 * i + 2] = v.z; }

// The gradient of g |v|; 0 at v = 0, where the length has none.
RM_HD Vec3 length_vjp(Vec3 v, real g) {
  const real r = std::sqrt(dot(v, v));
  return r > 0 ? (g / r) * v : Vec3{0, 0, 0};
}

// Row-major [R | t].
struct Mat34 {
  real m[12];
};
RM_HD Mat34 load34(const real* p, int64_t i) {
  Mat34 a;
  for (int k = 0; k < 12; ++k) a.m[k] = p[12 * i + k];
  return a;
}
RM_HD void store34(real* p, int64_t i, const Mat34& a) {
  for (int k = 0; k < 12; ++k) p[12 * i + k] = a.m[k];
}
RM_HD Vec3 rotate(const Mat34& a, Vec3 v) {
  return {a.m[0] * v.x + a.m[1] * v.y + a.m[2] * v.z, a.m[4] * v.x + a.m[5] * v.y + a.m[6] * v.z,
          a.m[8] * v.x + a.m[9] * v.y + a.m[10] * v.z};
}
RM_HD Vec3 rotate_transposed(const Mat34& a, Vec3 v) {
  return {a.m[0] * v.x + a.m[4] * v.y + a.m[8] * v.z, a.m[1] * v.x + a.m[5] * v.y + a.m[9] * v.z,
          a.m[2] * v.x + a.m[6] * v.y + a.m[10] * v.z};
}
RM_HD Vec3 translation(const Mat34& a) { return {a.m[3], a.m[7], a.m[11]}; }

}  // namespace raymarch
