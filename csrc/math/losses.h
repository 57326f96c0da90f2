// Losses: what one interval, or one pair of numbers, adds to the loss of its ray.
#pragma once
#include "math/vec.h"

namespace raymarch {

// Interlevel (mip-NeRF 360): a fine weight w may not exceed `bound`, the sum of all proposal weights whose
// bins touch the fine bin. w is a constant; the derivative is that by `bound`.
constexpr real kInterlevelEps = real(1e-7);

RM_HD real interlevel_excess(real w, real bound) { return w > bound ? w - bound : real(0); }
RM_HD real interlevel_term(real w, real bound) {
  return square(interlevel_excess(w, bound)) / (w + kInterlevelEps);
}
RM_HD real interlevel_vjp(real w, real bound, real g) {
  return -2 * g * interlevel_excess(w, bound) / (w + kInterlevelEps);
}

// Distortion (mip-NeRF 360): sum_ij w_i w_j |u_i - u_j| + sum_i w_i^2 width_i / 3, u the midpoints.
//
//   before_i = sum_{j<i} w_j (u_i - u_j)     so that the double sum is 2 sum_i w_i before_i
//   before_i = before_{i-1} + (u_i - u_{i-1}) sum_{j<i} w_j
//
// Every term is positive: no digits cancel. `behind_i` is the same from the other end.
RM_HD real distortion_term(real w, real before, real width) {
  return w * (2 * before + w * width * real(1.0 / 3.0));
}
RM_HD real distortion_vjp(real w, real before, real behind, real width, real g) {
  return g * (2 * (before + behind) + w * width * real(2.0 / 3.0));
}

// Orientation (Ref-NeRF): how far a normal n faces away along the ray d. A NaN counts as facing the camera.
RM_HD real facing_away(Vec3 n, Vec3 d) {
  const real along = dot(n, d);
  return along > 0 ? along : real(0);
}

// The true colour over what is behind it: as given, or where it has an alpha (`alpha` < 0 says not) blended.
RM_HD Vec3 truth_over(Vec3 colour, real alpha, Vec3 behind) {
  return alpha < 0 ? colour : behind + alpha * (colour - behind);
}

// Near the camera many pixels share few samples: gradients of a field times min(1, distance^2).
RM_HD real calm_near_camera(real distance) { return clamp(square(distance), 0, 1); }

}  // namespace raymarch
