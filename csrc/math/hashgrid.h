// Multiresolution hash grid: the eight table entries a point reads at one level, and their weights.
//
//   p = scale x + shift           x in [0, 1]^3
//   cell = floor(p), f = p - cell
//   u = f, or f^2 (3 - 2 f) for smoothstep
//   corner c: vertex cell + (bits 0, 1, 2 of c), weight prod_d (bit d ? u_d : 1 - u_d)
//
// A level whose vertices fit into its share of the table is dense: x + res y + res^2 z. Any other is hashed:
// x ^ 2654435761 y ^ 805459861 z, modulo a power of two. Two layouts exist: that of tiny-cuda-nn, and that of
// nerfstudio's torch fallback, which hashes every level, shifts by nothing and rounds its scales down.
#pragma once
#include "math/vec.h"

namespace raymarch {

constexpr int kMaxLevels = 32;
constexpr uint32_t kPrimeY = 2654435761u, kPrimeZ = 805459861u;

enum Interpolation : int64_t { kTrilinear, kSmoothstep, kInterpolations };
enum GridLayout : int64_t { kTcnnGrid, kNerfstudioGrid, kGridLayouts };

struct Level {
  float scale, shift;
  uint32_t resolution;      // vertices along an axis
  uint32_t top;             // the last cell along an axis
  uint32_t step_y, step_z;  // what one step along y or z adds: strides where dense, primes where hashed
  uint32_t entries;
  bool dense;
  int64_t offset;  // of the level's first entry in the table
};

struct Grid {
  Level level[kMaxLevels];
  int levels;
  bool smooth;
  int64_t entries;  // of all levels
};

// The settings of a grid, as they come from the user.
struct GridSettings {
  int64_t levels, base_resolution, max_resolution, log2_size, interpolation, layout;
};

// What is wrong with them, in the user's words, or null.
inline const char* grid_problem(const GridSettings& s) {
  if (s.levels < 1 || s.levels > kMaxLevels) return "levels must lie in 1..32";
  if (s.base_resolution < 1) return "base_resolution must be at least 1";
  if (s.max_resolution < s.base_resolution || s.max_resolution > (1 << 20))
    return "max_resolution must lie between base_resolution and 1048576";
  if (s.log2_size < 3 || s.log2_size > 30) return "log2_size must lie in 3..30";
  if (s.interpolation < 0 || s.interpolation >= kInterpolations) return "interpolation is not a known mode";
  if (s.layout < 0 || s.layout >= kGridLayouts) return "layout is not a known mode";
  return nullptr;
}

// tiny-cuda-nn's scale, with its float32 roundings: 2^(level log2 b) base - 1, with b the growth per level.
// Each step is taken in double and rounded once, so that every machine gets the same table.
inline Level tcnn_level(int level, float growth, int64_t base_resolution, int64_t most) {
  const float exponent = float(level) * float(std::log2(double(growth)));
  const float stretched = float(double(float(std::exp2(double(exponent)))) * double(base_resolution));
  Level out = {};
  out.scale = stretched - 1.0f;
  out.shift = 0.5f;
  out.resolution = uint32_t(std::ceil(out.scale)) + 1;
  out.top = out.resolution - 1;
  const uint64_t vertices = uint64_t(out.resolution) * out.resolution * out.resolution;
  const uint64_t rounded = (vertices + 7) / 8 * 8;
  out.entries = uint32_t(rounded < uint64_t(most) ? rounded : uint64_t(most));
  out.dense = vertices <= out.entries;
  return out;
}

// nerfstudio's torch fallback: floor(base b^level), no shift, a full table for every level.
inline Level nerfstudio_level(int level, float growth, int64_t base_resolution, int64_t most) {
  const float power = float(std::pow(double(growth), double(level)));
  Level out = {};
  out.scale = std::floor(float(double(power) * double(base_resolution)));
  out.resolution = uint32_t(out.scale) + 1;
  out.top = out.resolution - 1;
  out.entries = uint32_t(most);
  return out;
}

inline Grid make_grid(const GridSettings& s) {
  const double octaves = std::log(double(s.max_resolution)) - std::log(double(s.base_resolution));
  const float growth = s.levels > 1 ? float(std::exp(octaves / double(s.levels - 1))) : 1.0f;
  const int64_t most = int64_t{1} << s.log2_size;
  Grid grid = {};
  grid.levels = int(s.levels);
  grid.smooth = s.interpolation == kSmoothstep;
  for (int l = 0; l < grid.levels; ++l) {
    Level level = s.layout == kTcnnGrid ? tcnn_level(l, growth, s.base_resolution, most)
                                        : nerfstudio_level(l, growth, s.base_resolution, most);
    level.step_y = level.dense ? level.resolution : kPrimeY;
    level.step_z = level.dense ? level.resolution * level.resolution : kPrimeZ;
    level.offset = grid.entries;
    grid.entries += level.entries;
    grid.level[l] = level;
  }
  return grid;
}

// One row per level: resolution, scale, entries, offset. Returns what is wrong with the settings, or null.
inline const char* write_layout(const GridSettings& s, double* rows) {
  if (const char* problem = grid_problem(s)) return problem;
  const Grid grid = make_grid(s);
  for (int l = 0; l < grid.levels; ++l, rows += 4) {
    const Level& level = grid.level[l];
    rows[0] = level.resolution, rows[1] = level.scale, rows[2] = level.entries,
    rows[3] = double(level.offset);
  }
  return nullptr;
}

// What is wrong with a table of that many entries and features and rows of that many columns, or null.
inline const char* grid_problem(const Grid& grid, int64_t entries, int64_t features, int64_t outputs) {
  if (entries != grid.entries) return "the table must have as many entries as table_layout says";
  if (features != 1 && features != 2 && features != 4 && features != 8)
    return "the table must have 1, 2, 4 or 8 features per entry";
  return outputs < grid.levels * features ? "the encoding must have levels * features columns" : nullptr;
}

// Calls body with the number of features as a constant.
template <class Body>
void with_features(int64_t features, const Body& body) {
  if (features == 1) return body(std::integral_constant<int, 1>{});
  if (features == 2) return body(std::integral_constant<int, 2>{});
  if (features == 4) return body(std::integral_constant<int, 4>{});
  body(std::integral_constant<int, 8>{});
}

// One axis of a point at one level. `slope` is du/dp.
struct Axis {
  uint32_t cell;
  real u, slope;
};

// The cell is clamped, so a point outside [0, 1] extrapolates and NaN reads cell 0 with weights NaN. The
// comparisons are spelled so that NaN fails them.
RM_HD Axis locate(const Level& level, real x, bool smooth) {
  const real p = real(level.scale) * x + real(level.shift), top = real(level.top);
  const real inside = p > real(0) ? p : real(0), kept = inside < top ? inside : top;
#if defined(__CUDA_ARCH__) && !RM_DOUBLE
  // Conversions run at a quarter of the speed of sums. Rounding down leaves the cell in the low bits.
  const real shifted = __fadd_rd(kept, 8388608.0f), whole = shifted - 8388608.0f;
  const uint32_t cell = float_bits(shifted) & 0x7fffffu;
#else
  const int32_t cell = int32_t(kept);
  const real whole = real(cell);
#endif
  const real f = p - whole;
  return {uint32_t(cell), smooth ? f * f * (real(3) - real(2) * f) : f,
          smooth ? real(6) * f * (real(1) - f) : real(1)};
}

struct Cell {
  Axis x, y, z;
};
RM_HD Cell locate(const Level& level, Vec3 x, bool smooth) {
  return {locate(level, x.x, smooth), locate(level, x.y, smooth), locate(level, x.z, smooth)};
}
RM_HD bool same_cell(const Cell& a, const Cell& b) {
  return a.x.cell == b.x.cell && a.y.cell == b.y.cell && a.z.cell == b.z.cell;
}

// Where the eight corners lie in the level's entries. A dense index runs past the end by less than a table
// (the vertex behind the last cell), so one subtraction wraps it.
struct Slots {
  uint32_t at[8];
};
RM_HD uint32_t wrapped(uint32_t index, uint32_t entries) { return index < entries ? index : index - entries; }
RM_HD Slots dense_slots(const Level& level, uint32_t x, uint32_t y, uint32_t z) {
  const uint32_t a = x + y * level.step_y + z * level.step_z, n = level.entries;
  const uint32_t b = a + level.step_y, c = a + level.step_z, d = b + level.step_z;
  return {{wrapped(a, n), wrapped(a + 1, n), wrapped(b, n), wrapped(b + 1, n), wrapped(c, n),
           wrapped(c + 1, n), wrapped(d, n), wrapped(d + 1, n)}};
}
RM_HD Slots hashed_slots(const Level& level, uint32_t x, uint32_t y, uint32_t z) {
  const uint32_t mask = level.entries - 1, x0 = x & mask, x1 = (x + 1) & mask;
  const uint32_t y0 = y * level.step_y, y1 = y0 + level.step_y, z0 = z * level.step_z, z1 = z0 + level.step_z;
  const uint32_t a = (y0 ^ z0) & mask, b = (y1 ^ z0) & mask, c = (y0 ^ z1) & mask, d = (y1 ^ z1) & mask;
  return {{x0 ^ a, x1 ^ a, x0 ^ b, x1 ^ b, x0 ^ c, x1 ^ c, x0 ^ d, x1 ^ d}};
}
// One of them, from x and from y and z times their steps.
RM_HD uint32_t slot(const Level& level, uint32_t x, uint32_t stepped_y, uint32_t stepped_z) {
  return level.dense ? wrapped(x + stepped_y + stepped_z, level.entries)
                     : (x ^ stepped_y ^ stepped_z) & (level.entries - 1);
}
RM_HD Slots slots(const Level& level, uint32_t x, uint32_t y, uint32_t z) {
  return level.dense ? dense_slots(level, x, y, z) : hashed_slots(level, x, y, z);
}

struct Corners {
  real of[8];
};
RM_HD Corners corner_weights(real u, real v, real w) {
  const real v0w0 = (real(1) - v) * (real(1) - w), v1w0 = v * (real(1) - w);
  const real v0w1 = (real(1) - v) * w, v1w1 = v * w, u0 = real(1) - u;
  return {{u0 * v0w0, u * v0w0, u0 * v1w0, u * v1w0, u0 * v0w1, u * v0w1, u0 * v1w1, u * v1w1}};
}

RM_HD real bilinear(real u, real v, real a00, real a10, real a01, real a11) {
  const real low = a00 + u * (a10 - a00), high = a01 + u * (a11 - a01);
  return low + v * (high - low);
}

// Gradient to x of sum_c weight_c g_c, where g_c is the upstream gradient times the entry at corner c.
RM_HD Vec3 corner_weights_vjp(const Level& level, const Cell& cell, const Corners& g) {
  const Axis x = cell.x, y = cell.y, z = cell.z;
  const real gx =
      bilinear(y.u, z.u, g.of[1] - g.of[0], g.of[3] - g.of[2], g.of[5] - g.of[4], g.of[7] - g.of[6]);
  const real gy =
      bilinear(x.u, z.u, g.of[2] - g.of[0], g.of[3] - g.of[1], g.of[6] - g.of[4], g.of[7] - g.of[5]);
  const real gz =
      bilinear(x.u, y.u, g.of[4] - g.of[0], g.of[5] - g.of[1], g.of[6] - g.of[2], g.of[7] - g.of[3]);
  return real(level.scale) * Vec3{x.slope * gx, y.slope * gy, z.slope * gz};
}

}  // namespace raymarch
