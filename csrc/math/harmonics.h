// Encodings without parameters: real spherical harmonics of directions, Fourier features of positions.
#pragma once
#include "math/vec.h"

namespace raymarch {

// Signs and arguments of the harmonics. tiny-cuda-nn negates the terms of odd order m. nerfstudio's torch
// fallback forgets to map (d + 1) / 2 back, and evaluates its polynomials there.
enum HarmonicSigns : int64_t { kNerfstudioSigns, kTcnnSigns, kNerfstudioTorch, kHarmonicSigns };

// tcnn: sin, cos of pi 2^k x_d, ordered d, k, (sin, cos). nerfstudio: of 2 pi 2^k x_d, all sines (d, k)
// first.
enum FourierLayout : int64_t { kTcnnFourier, kNerfstudioFourier, kFourierLayouts };

constexpr int kHarmonics = 16;
constexpr int64_t kMaxFrequencies = 24;

// What is wrong with the settings, in the user's words, or null.
inline const char* harmonics_problem(int64_t signs) {
  return signs < 0 || signs >= kHarmonicSigns ? "signs is not a known convention" : nullptr;
}
inline const char* fourier_problem(int64_t frequencies, int64_t layout, int64_t column, int64_t outputs) {
  if (frequencies < 1 || frequencies > kMaxFrequencies) return "frequencies must lie in 1..24";
  if (layout < 0 || layout >= kFourierLayouts) return "layout is not a known mode";
  const bool fits = column >= 0 && column + 6 * frequencies <= outputs;
  return fits ? nullptr : "the encoding must have 6 * frequencies columns from column on";
}

struct Harmonics {
  real of[kHarmonics];
};

// Degrees 0 to 3 at a unit direction, nerfstudio's order and signs.
RM_HD Harmonics harmonics(Vec3 d) {
  const real x = d.x, y = d.y, z = d.z, xx = x * x, yy = y * y, zz = z * z;
  return {{real(0.28209479177387814), real(0.4886025119029199) * y, real(0.4886025119029199) * z,
           real(0.4886025119029199) * x, real(1.0925484305920792) * x * y, real(1.0925484305920792) * y * z,
           real(0.9461746957575601) * zz - real(0.31539156525252), real(1.0925484305920792) * x * z,
           real(0.5462742152960396) * (xx - yy), real(0.5900435899266435) * y * (real(3) * xx - yy),
           real(2.890611442640554) * x * y * z, real(0.4570457994644658) * y * (real(5) * zz - real(1)),
           real(0.3731763325901154) * z * (real(5) * zz - real(3)),
           real(0.4570457994644658) * x * (real(5) * zz - real(1)), real(1.445305721320277) * z * (xx - yy),
           real(0.5900435899266435) * x * (xx - real(3) * yy)}};
}

RM_HD Vec3 harmonics_vjp(Vec3 d, const Harmonics& g) {
  const real x = d.x, y = d.y, z = d.z, xx = x * x, yy = y * y, zz = z * z;
  const real a = real(0.4886025119029199), b = real(1.0925484305920792), c = real(0.5900435899266435);
  const real e = real(2.890611442640554), h = real(0.4570457994644658), k = real(1.445305721320277);
  const real gx = a * g.of[3] + b * (y * g.of[4] + z * g.of[7] + x * g.of[8]) +
                  c * real(6) * x * y * g.of[9] + e * y * z * g.of[10] +
                  h * (real(5) * zz - real(1)) * g.of[13] + k * real(2) * x * z * g.of[14] +
                  c * real(3) * (xx - yy) * g.of[15];
  const real gy = a * g.of[1] + b * (x * g.of[4] + z * g.of[5] - y * g.of[8]) +
                  c * real(3) * (xx - yy) * g.of[9] + e * x * z * g.of[10] +
                  h * (real(5) * zz - real(1)) * g.of[11] - k * real(2) * y * z * g.of[14] -
                  c * real(6) * x * y * g.of[15];
  const real gz = a * g.of[2] + b * (y * g.of[5] + x * g.of[7]) + real(1.8923493915151202) * z * g.of[6] +
                  e * x * y * g.of[10] + h * real(10) * z * (y * g.of[11] + x * g.of[13]) +
                  real(0.3731763325901154) * (real(15) * zz - real(3)) * g.of[12] + k * (xx - yy) * g.of[14];
  return {gx, gy, gz};
}

// The terms of odd order m are the odd indices.
RM_HD Harmonics odd_orders_negated(const Harmonics& y) {
  return {{y.of[0], -y.of[1], y.of[2], -y.of[3], y.of[4], -y.of[5], y.of[6], -y.of[7], y.of[8], -y.of[9],
           y.of[10], -y.of[11], y.of[12], -y.of[13], y.of[14], -y.of[15]}};
}
RM_HD Vec3 halfway_to_one(Vec3 d) { return real(0.5) * (d + Vec3{1, 1, 1}); }

RM_HD Harmonics harmonics(Vec3 d, int64_t signs) {
  if (signs == kNerfstudioTorch) return harmonics(halfway_to_one(d));
  const Harmonics y = harmonics(d);
  return signs == kTcnnSigns ? odd_orders_negated(y) : y;
}
RM_HD Vec3 harmonics_vjp(Vec3 d, int64_t signs, const Harmonics& g) {
  if (signs == kNerfstudioTorch) return real(0.5) * harmonics_vjp(halfway_to_one(d), g);
  return harmonics_vjp(d, signs == kTcnnSigns ? odd_orders_negated(g) : g);
}

struct Turn {
  real sine, cosine;
};

// sin(pi t) and cos(pi t). The reduction to |r| <= 1/4 is exact, so large t loses nothing; the Taylor sums
// are cut where a further term is below half a unit in the last place. No branches: CPU loops over it
// vectorise.
RM_HD Turn turn(real t) {
  const real quarters = std::floor(real(2) * t + real(0.5)), r = t - real(0.5) * quarters;
  const real a = real(3.14159265358979323846) * r, s = a * a;
  real sine = real(1), cosine = real(1);
  for (int k = RM_DOUBLE ? 9 : 5; k >= 1; --k) {
    sine = real(1) - s * sine * (real(1) / real(2 * k * (2 * k + 1)));
    cosine = real(1) - s * cosine * (real(1) / real(2 * k * (2 * k - 1)));
  }
  sine *= a;
  // The quarters again: a rotation by 90 degrees where odd, a change of sign for two.
  const real halves = std::floor(real(0.5) * quarters), odd = quarters - real(2) * halves;
  const real sign = real(1) - real(2) * (halves - real(2) * std::floor(real(0.5) * halves));
  return {sign * ((real(1) - odd) * sine + odd * cosine), sign * ((real(1) - odd) * cosine - odd * sine)};
}

// Where the sine and the cosine of coordinate d at octave k go.
struct Columns {
  int sine, cosine;
};
RM_HD Columns fourier_columns(int d, int k, int frequencies, int64_t layout) {
  const int wave = d * frequencies + k;
  if (layout == kTcnnFourier) return {2 * wave, 2 * wave + 1};
  return {wave, 3 * frequencies + wave};
}
RM_HD real fourier_frequency(int k, int64_t layout) {
  return real(1 << (layout == kNerfstudioFourier ? k + 1 : k));
}
// d/dx of sin(pi frequency x) and of its cosine, against their upstream gradients.
RM_HD real turn_vjp(Turn at, real frequency, Turn g) {
  return real(3.14159265358979323846) * frequency * (at.cosine * g.sine - at.sine * g.cosine);
}

}  // namespace raymarch
