// A ray against a box: where it enters and leaves.
#pragma once
#include "math/vec.h"

namespace raymarch {

constexpr double kMiss = 1e10;  // both distances of a ray that misses; none is larger

struct Span {
  real near, far;
};

// One pair of faces. A ray that runs between them never leaves, on a face included: no 0/0.
RM_HD Span between(real o, real d, real low, real high) {
  const real forever = real(INFINITY);
  if (d == 0) return o >= low && o <= high ? Span{-forever, forever} : Span{forever, -forever};
  const real a = (low - o) / d, b = (high - o) / d;
  return a < b ? Span{a, b} : Span{b, a};
}

RM_HD Span overlap(Span a, Span b) {
  return {a.near > b.near ? a.near : b.near, a.far < b.far ? a.far : b.far};
}

// Distances along d, in 0 .. kMiss; kMiss twice where the box is missed or lies behind.
RM_HD Span ray_box(Vec3 o, Vec3 d, Vec3 low, Vec3 high) {
  Span s = overlap(overlap(between(o.x, d.x, low.x, high.x), between(o.y, d.y, low.y, high.y)),
                   between(o.z, d.z, low.z, high.z));
  s = {clamp(s.near, 0, real(kMiss)), clamp(s.far, 0, real(kMiss))};
  return s.far > s.near ? s : Span{real(kMiss), real(kMiss)};
}

// The stretch of a ray between two planes that a box allows; a ray that misses it keeps almost no length.
RM_HD Span searched(Span box, real near_plane, real far_plane) {
  if (box.near >= real(kMiss)) return {near_plane, near_plane + real(1e-6) * (1 + near_plane)};
  const real near = clamp(box.near, near_plane, far_plane);
  const real far = box.far < far_plane ? box.far : far_plane, least = near + real(1e-6) * (1 + near);
  return {near, far > least ? far : least};
}

// The box in its own frame: placement [R | t] takes the frame's coordinates to the world's.
RM_HD Span ray_placed_box(Vec3 o, Vec3 d, Vec3 low, Vec3 high, const Mat34& placement) {
  const Vec3 from = rotate_transposed(placement, o - translation(placement));
  return ray_box(from, rotate_transposed(placement, d), low, high);
}

}  // namespace raymarch
