// What a layer ends with: none, sigmoid or relu, and the truncated exponential that makes densities.
//
// A derivative is told through the output y, so that backward needs no pre-activation.
#pragma once
#include "math/vec.h"

namespace raymarch {

// The order is the one of ops/mlp.py.
enum Activation : int64_t { kLinear = 0, kSigmoid = 1, kRelu = 2 };

// Written so that NaN passes: trouble upstream must not vanish here.
RM_HD real relu(real z) { return z < real(0) ? real(0) : z; }
RM_HD real relu_vjp(real y, real g) { return y <= real(0) ? real(0) : g; }

RM_HD real sigmoid(real z) { return real(1) / (real(1) + std::exp(-z)); }
RM_HD real sigmoid_vjp(real y, real g) { return g * y * (real(1) - y); }

RM_HD real activate(int64_t kind, real z) {
  return kind == kSigmoid ? sigmoid(z) : kind == kRelu ? relu(z) : z;
}
RM_HD real activate_vjp(int64_t kind, real y, real g) {
  return kind == kSigmoid ? sigmoid_vjp(y, g) : kind == kRelu ? relu_vjp(y, g) : g;
}

// exp whose gradient stays finite: the forward value overflows to infinity past 88.7 in float, the
// derivative never leaves exp(-15) .. exp(15).
RM_HD real trunc_exp(real z) { return std::exp(z); }
RM_HD real trunc_exp_vjp(real z, real g) { return g * std::exp(clamp(z, real(-15), real(15))); }

// A normalised position takes part unless it is the origin, where contraction puts what lies outside.
RM_HD bool selected(Vec3 y) { return y.x > real(0) || y.y > real(0) || y.z > real(0); }

RM_HD real density(real z, Vec3 y, real scale) { return selected(y) ? scale * trunc_exp(z) : real(0); }
RM_HD real density_vjp(real z, Vec3 y, real scale, real g) {
  return selected(y) ? trunc_exp_vjp(z, scale * g) : real(0);
}

}  // namespace raymarch
