// Hash grid on the CPU. Points go in blocks: vectorised loops find the corners of a whole block at one level,
// then each point fetches its entries. The gradient to the table is split by levels, so no two threads write
// the same entry and its sums have one order.
#include "math/hashgrid.h"

#include <vector>

#include "cpu/clones.h"
#include "cpu/parallel.h"
#include "ops.h"

namespace raymarch {
namespace {

constexpr int kBlock = 64;         // points located at once: slots and weights fill 4 KB of L1
constexpr int64_t kChunk = 2048;   // points that visit one level before the next: its entries stay in L2
constexpr int kLevelsPerTask = 2;  // share the rows of grad_y that one task reads

struct Block {
  int count;
  real x[3][kBlock];
  uint32_t cell[3][kBlock];
  real u[3][kBlock], slope[3][kBlock];
  uint32_t slot[8][kBlock];
  real weight[8][kBlock];
  real dot[8][kBlock];  // upstream gradient times the entry at each corner
  real grad_x[3][kBlock];
};

void load_points(In<real, kPoints, 3> x, int64_t first, int64_t end, Block& block) {
  block.count = int(std::min<int64_t>(kBlock, end - first));
  for (int i = 0; i < block.count; ++i)
    for (int d = 0; d < 3; ++d) block.x[d][i] = x.data[3 * (first + i) + d];
  for (int i = block.count; i < kBlock; ++i)
    for (int d = 0; d < 3; ++d) block.x[d][i] = real(0);
}

// Loops over whole blocks, whatever the count: fixed trip counts vectorise without tails.
void find_cells(Level level, bool smooth, Block& block) {
  for (int d = 0; d < 3; ++d)
    for (int i = 0; i < kBlock; ++i) {
      const Axis axis = locate(level, block.x[d][i], smooth);
      block.cell[d][i] = axis.cell, block.u[d][i] = axis.u, block.slope[d][i] = axis.slope;
    }
}

void store_slots(const Slots& s, Block& block, int i) {
  for (int c = 0; c < 8; ++c) block.slot[c][i] = s.at[c];
}
void find_slots(Level level, Block& block) {
  const auto& cell = block.cell;
  if (level.dense)
    for (int i = 0; i < kBlock; ++i)
      store_slots(dense_slots(level, cell[0][i], cell[1][i], cell[2][i]), block, i);
  else
    for (int i = 0; i < kBlock; ++i)
      store_slots(hashed_slots(level, cell[0][i], cell[1][i], cell[2][i]), block, i);
}

void find_weights(Block& block) {
  for (int i = 0; i < kBlock; ++i) {
    const Corners w = corner_weights(block.u[0][i], block.u[1][i], block.u[2][i]);
    for (int c = 0; c < 8; ++c) block.weight[c][i] = w.of[c];
  }
}

void find_corners(Level level, bool smooth, Block& block) {
  find_cells(level, smooth, block);
  find_slots(level, block);
  find_weights(block);
}

// The features of one entry as one vector register. A vector of one is a scalar.
template <int F>
struct Features {
  typedef real type __attribute__((vector_size(F * sizeof(real))));
};
template <>
struct Features<1> {
  typedef real type;
};
template <int F>
using Entry = typename Features<F>::type;

template <int F, class T>
void load(const T* from, Entry<F>& entry) {
  real wide[F];
  for (int f = 0; f < F; ++f) wide[f] = to_float(from[f]);
  std::memcpy(&entry, wide, sizeof entry);
}
template <int F>
void store(const Entry<F>& entry, real* to) {
  std::memcpy(to, &entry, sizeof entry);
}
template <int F>
real sum_of(const Entry<F>& entry) {
  real of[F];
  store<F>(entry, of);
  for (int half = F / 2; half > 0; half /= 2)
    for (int f = 0; f < half; ++f) of[f] += of[f + half];
  return of[0];
}

template <int F>
bool any(const Entry<F>& entry) {
  real of[F];
  store<F>(entry, of);
  bool found = false;
  for (int f = 0; f < F; ++f) found |= of[f] != real(0);
  return found;
}

template <int F, class T>
void gather(const T* table, const Block& block, real* y, int64_t pitch) {
  for (int i = 0; i < block.count; ++i) {
    Entry<F> sum = {}, entry;
    for (int c = 0; c < 8; ++c) {
      load<F>(table + int64_t{block.slot[c][i]} * F, entry);
      sum += block.weight[c][i] * entry;
    }
    store<F>(sum, y + i * pitch);
  }
}

// No sums along the ray here: runs are short, and a mispredicted end of run costs more than eight additions
// whose operands were stored a moment ago (6.0 against 8.1 ns a point and level on 2026-11-22).
template <int F>
void scatter(real* grad_table, const Block& block, const real* grad_y, int64_t pitch) {
  Entry<F> g, entry;
  for (int i = 0; i < block.count; ++i) {
    load<F>(grad_y + i * pitch, g);
    if (!any<F>(g)) continue;  // masked points are common, and may have no position
    for (int c = 0; c < 8; ++c) {
      real* at = grad_table + int64_t{block.slot[c][i]} * F;
      load<F>(at, entry);
      store<F>(entry + block.weight[c][i] * g, at);
    }
  }
}

template <int F, class T>
void dots(const T* table, const real* grad_y, int64_t pitch, Block& block) {
  Entry<F> g, entry;
  for (int i = 0; i < block.count; ++i) {
    load<F>(grad_y + i * pitch, g);
    for (int c = 0; c < 8; ++c) {
      load<F>(table + int64_t{block.slot[c][i]} * F, entry);
      block.dot[c][i] = sum_of<F>(g * entry);
    }
  }
}

void add_slopes(Level level, Block& block) {
  for (int i = 0; i < kBlock; ++i) {
    const Cell cell = {{0, block.u[0][i], block.slope[0][i]},
                       {0, block.u[1][i], block.slope[1][i]},
                       {0, block.u[2][i], block.slope[2][i]}};
    const auto& dot = block.dot;
    const Corners g = {
        {dot[0][i], dot[1][i], dot[2][i], dot[3][i], dot[4][i], dot[5][i], dot[6][i], dot[7][i]}};
    const Vec3 add = corner_weights_vjp(level, cell, g);
    block.grad_x[0][i] += add.x, block.grad_x[1][i] += add.y, block.grad_x[2][i] += add.z;
  }
}

Grid checked(const GridSettings& settings, int64_t entries, int64_t features, int64_t outputs) {
  const char* problem = grid_problem(settings);
  require(!problem, problem);
  const Grid grid = make_grid(settings);
  problem = grid_problem(grid, entries, features, outputs);
  require(!problem, problem);
  return grid;
}

RM_CLONES void forward_chunk(const Grid& grid, In<real, kPoints, 3> x, Payload<kEntries, kChannels> any,
                             Out<real, kPoints, kOutputs> y, int64_t begin, int64_t end) {
  with_dtype(any, [&](auto table) {
    with_features(any.size[1], [&](auto features) {
      constexpr int F = decltype(features)::value;
      Block block;
      for (int l = 0; l < grid.levels; ++l)
        for (int64_t first = begin; first < end; first += kBlock) {
          load_points(x, first, end, block);
          find_corners(grid.level[l], grid.smooth, block);
          gather<F>(table.data + grid.level[l].offset * F, block, y.data + first * y.size[1] + l * F,
                    y.size[1]);
        }
    });
  });
}

RM_CLONES void backward_levels(const Grid& grid, int from, int to, In<real, kPoints, 3> x,
                               In<real, kPoints, kOutputs> grad_y,
                               Out<real, kEntries, kChannels> grad_table) {
  const int64_t points = x.size[0], width = grad_y.size[1];
  with_features(grad_table.size[1], [&](auto features) {
    constexpr int F = decltype(features)::value;
    Block block;
    for (int64_t begin = 0; begin < points; begin += kChunk)
      for (int l = from; l < to; ++l)
        for (int64_t first = begin; first < std::min(points, begin + kChunk); first += kBlock) {
          load_points(x, first, points, block);
          find_corners(grid.level[l], grid.smooth, block);
          scatter<F>(grad_table.data + grid.level[l].offset * F, block, grad_y.data + first * width + l * F,
                     width);
        }
  });
}

RM_CLONES void input_gradient_block(const Grid& grid, In<real, kPoints, 3> x,
                                    Payload<kEntries, kChannels> any, In<real, kPoints, kOutputs> grad_y,
                                    Out<real, kPoints, 3> grad_x, int64_t first) {
  const int64_t width = grad_y.size[1];
  with_dtype(any, [&](auto table) {
    with_features(any.size[1], [&](auto features) {
      constexpr int F = decltype(features)::value;
      Block block = {};
      load_points(x, first, x.size[0], block);
      for (int l = 0; l < grid.levels; ++l) {
        find_cells(grid.level[l], grid.smooth, block);
        find_slots(grid.level[l], block);
        dots<F>(table.data + grid.level[l].offset * F, grad_y.data + first * width + l * F, width, block);
        add_slopes(grid.level[l], block);
      }
      for (int i = 0; i < block.count; ++i)
        store3(grad_x.data, first + i, {block.grad_x[0][i], block.grad_x[1][i], block.grad_x[2][i]});
    });
  });
}

}  // namespace

void hashgrid_layout(Cpu, Out<double, kEntries, 4> rows, int64_t base_resolution, int64_t max_resolution,
                     int64_t log2_size, int64_t layout) {
  const GridSettings settings = {rows.size[0], base_resolution, max_resolution,
                                 log2_size,    kTrilinear,      layout};
  const char* problem = write_layout(settings, rows.data);
  require(!problem, problem);
}

void hashgrid_forward(Cpu q, In<real, kPoints, 3> x, Payload<kEntries, kChannels> table, int64_t levels,
                      int64_t base_resolution, int64_t max_resolution, int64_t log2_size,
                      int64_t interpolation, int64_t layout, int64_t frequencies, int64_t waves,
                      OutPayload<kPoints, kOutputs> any) {
  const int64_t points = x.size[0], width = any.size[1], column = levels * table.size[1];
  const Grid grid = checked({levels, base_resolution, max_resolution, log2_size, interpolation, layout},
                            table.size[0], table.size[1], width);
  const auto fill = [&](Out<real, kPoints, kOutputs> y) {
    // Fewer points a chunk where there are few, so that every core gets some.
    const int64_t step = std::max<int64_t>(kBlock, std::min(kChunk, points / 16 / kBlock * kBlock));
    parallel_for((points + step - 1) / step, step * levels, [&](int64_t c) {
      forward_chunk(grid, x, table, y, c * step, std::min(points, (c + 1) * step));
    });
    if (frequencies > 0) fourier_forward(q, x, frequencies, waves, column, y);
  };
  with_dtype(any, [&](auto y) {
    if constexpr (std::is_same_v<decltype(y), Out<real, kPoints, kOutputs>>) return fill(y);
    std::vector<real> wide(points * width);
    fill({wide.data(), {points, width}});
    parallel_for(points, width, [&](int64_t p) {
      for (int64_t i = p * width; i < (p + 1) * width; ++i)
        y.data[i] = from_float<std::remove_pointer_t<decltype(y.data)>>(wide[i]);
    });
  });
}

void hashgrid_backward(Cpu, In<real, kPoints, 3> x, int64_t levels, int64_t base_resolution,
                       int64_t max_resolution, int64_t log2_size, int64_t interpolation, int64_t layout,
                       In<real, kPoints, kOutputs> grad_y, Maybe<Out<int64_t, kBytes>>,
                       Out<real, kEntries, kChannels> grad_table) {
  const Grid grid = checked({levels, base_resolution, max_resolution, log2_size, interpolation, layout},
                            grad_table.size[0], grad_table.size[1], grad_y.size[1]);
  parallel_for((levels + kLevelsPerTask - 1) / kLevelsPerTask, x.size[0], [&](int64_t task) {
    const int from = int(task) * kLevelsPerTask;
    backward_levels(grid, from, std::min(grid.levels, from + kLevelsPerTask), x, grad_y, grad_table);
  });
}

void hashgrid_input_gradient(Cpu, In<real, kPoints, 3> x, Payload<kEntries, kChannels> table, int64_t levels,
                             int64_t base_resolution, int64_t max_resolution, int64_t log2_size,
                             int64_t interpolation, int64_t layout, In<real, kPoints, kOutputs> grad_y,
                             Out<real, kPoints, 3> grad_x) {
  const Grid grid = checked({levels, base_resolution, max_resolution, log2_size, interpolation, layout},
                            table.size[0], table.size[1], grad_y.size[1]);
  parallel_for((x.size[0] + kBlock - 1) / kBlock, kBlock * levels,
               [&](int64_t b) { input_gradient_block(grid, x, table, grad_y, grad_x, b * kBlock); });
}

}  // namespace raymarch
