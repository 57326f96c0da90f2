// Marching through a baked grid of densities, and what a march leaves of a ray.
//
// The grid holds one density per cell of the contracted unit cube, `resolution` cells along an axis, x
// fastest. A ray is walked in even steps of its spacing; the thickness of a step is the density of the cell
// around its middle times its length. The mass of step i is its weight plus a padding:
//
//   mass before step i:  1 - exp(-thickness before i) + i padding
//
// which needs no sum of weights: they telescope.
#pragma once
#include "math/activation.h"
#include "math/contract.h"
#include "math/spacing.h"
#include "math/stepfun.h"
#include "math/transmittance.h"

namespace raymarch {

constexpr int64_t kMostCells = 1290;  // along an axis: the number of a cell fits in 31 bits

// The cell around a position in the unit cube.
RM_HD int64_t baked_cell(Vec3 y, int resolution) {
  const real n = real(resolution);
  const int top = resolution - 1;
  const int x = int(y.x * n), v = int(y.y * n), z = int(y.z * n);
  const int i = x < top ? x : top, j = v < top ? v : top, k = z < top ? z : top;
  return (int64_t(k) * resolution + j) * resolution + i;
}

// Thickness of a step whose cell holds `density`. What is no number or negative counts as nothing.
RM_HD real step_thickness(real density, real length) {
  const real tau = density * length;
  return tau > real(0) ? tau : real(0);
}

// The mass of the first `steps` steps, whose thickness is `thickness`.
RM_HD real marched_mass(real thickness, int steps, real padding) {
  return -quick_expm1(-thickness) + real(steps) * padding;
}

// Whether a sample may hold anything, by the bit of its cell; without bits, always.
RM_HD bool may_hold(const uint8_t* occupied, int resolution, Vec3 y) {
  if (!occupied) return true;
  const int64_t cell = baked_cell(y, resolution);
  return (occupied[cell >> 3] >> (cell & 7) & 1) != 0;
}
inline bool fits_bits(int64_t resolution, int64_t bytes) {
  return resolution > 0 && resolution <= kMostCells &&
         bytes == (resolution * resolution * resolution + 7) / 8;
}

}  // namespace raymarch
