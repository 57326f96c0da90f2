// Step functions on [0, 1]: bins between edges, a weight per bin, and their cumulative sum.
#pragma once
#include "math/scalar.h"

namespace raymarch {

// A histogram lighter than this is filled up evenly, so that its cumulative sum can be normalised.
constexpr real kLeastMass = real(1e-5);

// Where the cumulative sum reaches u inside one bin, whose edges are s0, s1 and sums c0, c1.
RM_HD real invert_bin(real u, real c0, real c1, real s0, real s1) {
  const real width = c1 - c0;
  const real place = width > 0 ? clamp((u - c0) / width, 0, 1) : (u > c0 ? real(1) : real(0));
  return s0 + place * (s1 - s0);
}

// The k-th of `count` numbers spread evenly over [0, 1), moved by `jitter` in [0, 1).
RM_HD real spread(int64_t k, int64_t count, real jitter) { return (real(k) + jitter) / real(count); }

// A weight sharpened by the annealing exponent, plus the padding that keeps every bin reachable; 0^0 = 1.
RM_HD real annealed(real weight, real exponent, real padding) {
  if (exponent == 1) return weight + padding;
  if (exponent == 0) return 1 + padding;
  return (weight > 0 ? std::exp(exponent * std::log(weight)) : real(0)) + padding;
}

}  // namespace raymarch
