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

// The cell that holds whole parts of cells x, y, z.
RM_HD uint32_t baked_index(int32_t x, int32_t y, int32_t z, int32_t resolution) {
  const int32_t top = resolution - 1;
  const int32_t i = x < top ? x : top, j = y < top ? y : top, k = z < top ? z : top;
  return uint32_t((k * resolution + j) * resolution + i);
}

// The cell around a position in the unit cube.
RM_HD uint32_t baked_cell(Vec3 y, int resolution) {
  const real n = real(resolution);
  return baked_index(whole_part(y.x * n), whole_part(y.y * n), whole_part(y.z * n), resolution);
}

// Farther than this from the middle nothing is looked up: about where contraction reaches its border.
constexpr real kFarthest = real(8388608);

// The cell around a point of the scene: `baked_cell` of its `contract_unit`, but for points that round to
// another side of a border between cells. There is none where the point is too far or no number.
struct Around {
  uint32_t cell;
  bool exists;
};
RM_HD Around cell_around(int64_t norm, Vec3 x, int resolution) {
  const real longest = std::fmax(std::fmax(std::fabs(x.x), std::fabs(x.y)), std::fabs(x.z));
  const real m = norm == kLinf ? longest : std::sqrt(dot(x, x)), sum = x.x + x.y + x.z;
  const real inverse = m > 1 ? quick_inverse(m) : real(1), half = real(0.5) * real(resolution);
  const real scale = (2 - inverse) * inverse * (real(0.5) * half);
  const bool exists = (m < kFarthest) & (sum - sum == 0);
  const uint32_t cell = baked_index(whole_part(scale * x.x + half), whole_part(scale * x.y + half),
                                    whole_part(scale * x.z + half), resolution);
  return {exists ? cell : 0, exists};
}

// Thickness of a step whose cell holds `density`. What is no number or negative counts as nothing.
RM_HD real step_thickness(real density, real length) {
  const real tau = density * length;
  return tau > real(0) ? tau : real(0);
}

// 1 - exp(-thickness), the light that is lost, to 3e-6 of itself, for thickness >= 0.
RM_HD real light_lost(real thickness) {
#if defined(__CUDA_ARCH__) && !RM_DOUBLE
  const float series = thickness * (1.0f - thickness * (0.5f - thickness * (1.0f / 6)));
  return thickness < 0.04f ? series : 1.0f - __expf(-thickness);
#else
  return -quick_expm1(-thickness);
#endif
}

// The mass of the first `steps` steps, whose thickness is `thickness`.
RM_HD real marched_mass(real thickness, int steps, real padding) {
  return light_lost(thickness) + real(steps) * padding;
}

// Whether a sample may hold anything, by the bit of its cell; without bits, always.
RM_HD bool may_hold(const uint8_t* occupied, int resolution, Vec3 y) {
  if (!occupied) return true;
  const uint32_t cell = baked_cell(y, resolution);
  return (occupied[cell >> 3] >> (cell & 7) & 1) != 0;
}
inline bool fits_bits(int64_t resolution, int64_t bytes) {
  return resolution > 0 && resolution <= kMostCells &&
         bytes == (resolution * resolution * resolution + 7) / 8;
}

}  // namespace raymarch
