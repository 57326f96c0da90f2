// The exponential maps of pose refinement: six numbers per camera to a rigid motion, and their vjps.
//
//   xi = (rho, w)   translation first, then the rotation vector (axis times angle, radians)
//   K               the cross product with w as a matrix; q = w.w
//   R = I + f1 K + f2 K^2                    both modes
//   t = rho                                  SO(3) x R^3
//   t = (I + f2 K + f3 K^2) rho              SE(3)
//
// f_j(q) = 1/j! - q/(j+2)! + q^2/(j+4)! - ... : f1 = sin(a)/a, f2 = (1 - cos(a))/a^2, f3 = (a - sin(a))/a^3
// at the angle a = sqrt(q). They are smooth at zero, and f_j' = (j f_{j+2} - f_{j+1}) / 2.
#pragma once
#include "math/angle.h"
#include "math/vec.h"

namespace raymarch {

enum PoseMode : int64_t { kSo3xR3, kSe3, kPoseModes };

// nerfstudio computes the coefficients of SO(3) x R^3 at q >= 1e-4, and so do we when asked to.
constexpr double kClampedAngleSquared = 1e-4;

struct Twist {
  Vec3 rho, w;
};
RM_HD Twist load_twist(const real* p, int64_t i) { return {load3(p, 2 * i), load3(p, 2 * i + 1)}; }

struct Stumpff {
  real f1, f2, f3, f4, f5;
};
RM_HD Stumpff stumpff(real q) {
  Stumpff f;
  if (q < real(10)) {  // eleven terms: the first one left out is below 1e-14 of the sum
    f.f4 = f.f5 = real(1);
    for (int k = 20; k > 0; k -= 2) {
      f.f4 = 1 - q / real((3 + k) * (4 + k)) * f.f4;
      f.f5 = 1 - q / real((4 + k) * (5 + k)) * f.f5;
    }
    f.f4 /= real(24), f.f5 /= real(120);
    f.f3 = real(1) / 6 - q * f.f5;
    f.f2 = real(1) / 2 - q * f.f4;
    f.f1 = 1 - q * f.f3;
    return f;
  }
  const real a = std::sqrt(q), half_sine = sine(a / 2);
  f.f1 = sine(a) / a;
  f.f2 = 2 * half_sine * half_sine / q;
  f.f3 = (1 - f.f1) / q;
  f.f4 = (real(0.5) - f.f2) / q;
  f.f5 = (real(1) / 6 - f.f3) / q;
  return f;
}

RM_HD real coefficient_angle_squared(real q, bool clamped) {
  return clamped && q < real(kClampedAngleSquared) ? real(kClampedAngleSquared) : q;
}

RM_HD Mat34 pose_exp(Twist xi, bool se3, bool clamped) {
  const Vec3 w = xi.w;
  const real q = dot(w, w);
  const Stumpff f = stumpff(coefficient_angle_squared(q, clamped));
  const Vec3 t = se3 ? xi.rho + f.f2 * cross(w, xi.rho) + f.f3 * (dot(w, xi.rho) * w - q * xi.rho) : xi.rho;
  const real c = 1 - f.f2 * q;  // K^2 = w w^T - q I
  const Vec3 s = f.f1 * w, b = f.f2 * w;
  return {{c + b.x * w.x, b.x * w.y - s.z, b.x * w.z + s.y, t.x,  //
           b.y * w.x + s.z, c + b.y * w.y, b.y * w.z - s.x, t.y,  //
           b.z * w.x - s.y, b.z * w.y + s.x, c + b.z * w.z, t.z}};
}

// G is the gradient with respect to [R | t]. The coefficients are held where the clamp is active.
RM_HD Twist pose_exp_vjp(Twist xi, const Mat34& G, bool se3, bool clamped) {
  const Vec3 w = xi.w, rho = xi.rho, g = translation(G);
  const real q = dot(w, w);
  const Stumpff f = stumpff(coefficient_angle_squared(q, clamped));
  const bool held = clamped && q < real(kClampedAngleSquared);
  const real df1 = held ? real(0) : (f.f3 - f.f2) / 2, df2 = held ? real(0) : (2 * f.f4 - f.f3) / 2;

  const Vec3 twist = {G.m[9] - G.m[6], G.m[2] - G.m[8], G.m[4] - G.m[1]};  // <G, dK/dw>
  const real trace = G.m[0] + G.m[5] + G.m[10];
  const Vec3 Gw = rotate(G, w);
  const real along = df1 * dot(twist, w) + df2 * (dot(w, Gw) - q * trace);
  Twist grad = {g, f.f1 * twist + f.f2 * (Gw + rotate_transposed(G, w)) + 2 * (along - f.f2 * trace) * w};
  if (!se3) return grad;

  const real df3 = (3 * f.f5 - f.f4) / 2, w_rho = dot(w, rho), w_g = dot(w, g), g_rho = dot(g, rho);
  grad.rho = g - f.f2 * cross(w, g) + f.f3 * (w_g * w - q * g);
  const real moved = df2 * dot(g, cross(w, rho)) + df3 * (w_g * w_rho - q * g_rho);
  grad.w = grad.w + f.f2 * cross(rho, g) + f.f3 * (w_rho * g + w_g * rho) + 2 * (moved - f.f3 * g_rho) * w;
  return grad;
}

}  // namespace raymarch
