// Fields at one point at a time, for ops that let nothing per sample reach memory: the grid's columns, and
// the layers of a small network (math/mlp.h says how its parameters lie).
#pragma once
#include "math/activation.h"
#include "math/hashgrid.h"
#include "math/mlp.h"

namespace raymarch {

// The features of one level.
template <int F, class T>
RM_HD void level_features(const Level& level, bool smooth, const T* table, Vec3 y, real (&sum)[F]) {
  const Cell cell = locate(level, y, smooth);
  const Slots slot = slots(level, cell.x.cell, cell.y.cell, cell.z.cell);
  const Corners weight = corner_weights(cell.x.u, cell.y.u, cell.z.u);
  for (int f = 0; f < F; ++f) sum[f] = real(0);
  for (int c = 0; c < 8; ++c)
    for (int f = 0; f < F; ++f)
      sum[f] += weight.of[c] * real(to_float(table[(level.offset + slot.at[c]) * F + f]));
}

// What is wrong with the shapes of a density in one go, or null.
inline const char* density_problem(const Network& net, int64_t numbers) {
  if (net.columns(0) != 16) return "the grid must have at most 16 columns";
  if (net.hidden < 16 || net.hidden > 64 || net.hidden % 16) return "hidden must be 16, 32, 48 or 64";
  return numbers == net.parameters() ? nullptr : "params has not as many numbers as the widths ask for";
}

// The two networks of samples_to_pixels.
struct PixelNetworks {
  Network base, colour;
};
inline PixelNetworks pixel_networks(int64_t columns, int64_t code) {
  return {{int(columns), 64, 1, 16}, {int(16 + 15 + code), 64, 2, 3}};
}
inline const char* pixels_problem(const PixelNetworks& net, int64_t features, int64_t numbers) {
  if (features != 2 || net.base.inputs > 32) return "the grid must have two features and at most 16 levels";
  if (net.colour.inputs > 256) return "code must have at most 225 numbers";
  return numbers == net.base.parameters() + net.colour.parameters()
             ? nullptr
             : "params has not as many numbers as the two networks ask for";
}

}  // namespace raymarch
