// Hash grid on the CPU. Points go in blocks: one vectorised loop finds the corners of a whole block at one
// level, a second one fetches entries. The gradient to the table is split by levels, so no two threads write the
// same entry and its sums have one order.
#include "math/hashgrid.h"

#include "cpu/clones.h"
#include "cpu/parallel.h"
#include "ops.h"

namespace raymarch {
namespace {

constexpr int kBlock = 64;        // points located at once: slots and weights fill 4 KB of L1
constexpr int64_t kChunk = 2048;  // points that visit one level before the next: its entries stay in L2
constexpr int kLevelsPerTask = 2; // share the rows of grad_y that one task reads

struct Block {
  int count;
  real x[3][kBlock];
  uint32_t cell[3][kBlock];
  real u[3][kBlock], slope[3][kBlock];
  uint32_t slot[8][kBlock];
  real weight[8][kBlock];
  real dot[8][kBlock];  // upstream gradient times the entry at each corner
};

void load_points(const real* x, int64_t first, int64_t end, Block& block) {
  block.count = int(std::min<int64_t>(kBlock, end - first));
  for (int i = 0; i < block.count; ++i)
    for (int d = 0; d < 3; ++d) block.x[d][i] = x[3 * (first + i) + d];
  for (int i = block.count; i < kBlock; ++i)
    for (int d = 0; d < 3; ++d) block.x[d][i] = real(0);
}

// Whole blocks, whatever the count: fixed trip counts vectorise without tails.
RM_CLONES void find_cells(const Level& level_in, bool smooth, Block& block) {
  const Level level = level_in;
  for (int d = 0; d < 3; ++d)
    for (int i = 0; i < kBlock; ++i) {
      const Axis axis = locate(level, block.x[d][i], smooth);
      block.cell[d][i] = axis.cell, block.u[d][i] = axis.u, block.slope[d][i] = axis.slope;
    }
}

RM_CLONES void find_slots(const Level& level_in, Block& block) {
  const Level level = level_in;
  for (int i = 0; i < kBlock; ++i) {
    const Slots s = slots(level, block.cell[0][i], block.cell[1][i], block.cell[2][i]);
    for (int c = 0; c < 8; ++c) block.slot[c][i] = s.at[c];
  }
}

RM_CLONES void find_weights(Block& block) {
  for (int i = 0; i < kBlock; ++i) {
    const Corners w = corner_weights(block.u[0][i], block.u[1][i], block.u[2][i]);
    for (int c = 0; c < 8; ++c) block.weight[c][i] = w.of[c];
  }
}

template <class T, int F>
void gather(const T* table, const Block& block, real* y, int64_t pitch) {
  for (int i = 0; i < block.count; ++i) {
    real sum[F] = {};
    for (int c = 0; c < 8; ++c) {
      const T* entry = table + int64_t{block.slot[c][i]} * F;
      for (int f = 0; f < F; ++f) sum[f] += block.weight[c][i] * to_float(entry[f]);
    }
    for (int f = 0; f < F; ++f) y[i * pitch + f] = sum[f];
  }
}

// Consecutive points of a ray share coarse cells: their sum is written once.
template <int F>
void scatter(real* grad_table, const Block& block, const real* grad_y, int64_t pitch) {
  for (int i = 0; i < block.count;) {
    real sum[8][F] = {};
    const int first = i;
    do {
      for (int c = 0; c < 8; ++c)
        for (int f = 0; f < F; ++f) sum[c][f] += block.weight[c][i] * grad_y[i * pitch + f];
      ++i;
    } while (i < block.count && block.cell[0][i] == block.cell[0][first] &&
             block.cell[1][i] == block.cell[1][first] && block.cell[2][i] == block.cell[2][first]);
    for (int c = 0; c < 8; ++c) {
      real* entry = grad_table + int64_t{block.slot[c][first]} * F;
      for (int f = 0; f < F; ++f) entry[f] += sum[c][f];
    }
  }
}

template <class T, int F>
void dots(const T* table, const real* grad_y, int64_t pitch, Block& block) {
  for (int i = 0; i < block.count; ++i)
    for (int c = 0; c < 8; ++c) {
      const T* entry = table + int64_t{block.slot[c][i]} * F;
      real sum = real(0);
      for (int f = 0; f < F; ++f) sum += grad_y[i * pitch + f] * to_float(entry[f]);
      block.dot[c][i] = sum;
    }
}

RM_CLONES void add_slopes(const Level& level_in, const Block& block, real (&grad_x)[3][kBlock]) {
  const Level level = level_in;
  for (int i = 0; i < kBlock; ++i) {
    Cell cell;
    cell.x = {0, block.u[0][i], block.slope[0][i]};
    cell.y = {0, block.u[1][i], block.slope[1][i]};
    cell.z = {0, block.u[2][i], block.slope[2][i]};
    const Corners g = {{block.dot[0][i], block.dot[1][i], block.dot[2][i], block.dot[3][i], block.dot[4][i],
                        block.dot[5][i], block.dot[6][i], block.dot[7][i]}};
    const Vec3 add = corner_weights_vjp(level, cell, g);
    grad_x[0][i] += add.x, grad_x[1][i] += add.y, grad_x[2][i] += add.z;
  }
}

Grid opened_grid(int64_t levels, int64_t base_resolution, int64_t max_resolution, int64_t log2_size,
                 int64_t interpolation, int64_t layout, int64_t entries, int64_t features, int64_t outputs) {
  const char* problem =
      grid_problem(levels, base_resolution, max_resolution, log2_size, interpolation, layout);
  require(!problem, problem);
  const Grid grid = make_grid(levels, base_resolution, max_resolution, log2_size, interpolation, layout);
  require(entries == grid.entries, "the table must have as many entries as table_layout says");
  require(outputs == levels * features, "the output must have levels * features columns");
  return grid;
}

template <class Body>
void with_features(int64_t features, const Body& body) {
  if (features == 1) return body(std::integral_constant<int, 1>{});
  if (features == 2) return body(std::integral_constant<int, 2>{});
  if (features == 4) return body(std::integral_constant<int, 4>{});
  require(features == 8, "the table must have 1, 2, 4 or 8 features per entry");
  body(std::integral_constant<int, 8>{});
}

// Calls body(begin, end) for chunks of points, fewer points each where there are few.
template <class Body>
void for_chunks(int64_t points, const Body& body) {
  const int64_t step = std::max<int64_t>(kBlock, std::min(kChunk, points / 16 / kBlock * kBlock));
  parallel_for((points + step - 1) / step, 4096,
               [&](int64_t c) { body(c * step, std::min(points, (c + 1) * step)); });
}

}  // namespace

void hashgrid_layout(Cpu, Out<double, kEntries, 4> rows, int64_t base_resolution, int64_t max_resolution,
                     int64_t log2_size, int64_t layout) {
  const int64_t levels = rows.size[0];
  const char* problem = grid_problem(levels, base_resolution, max_resolution, log2_size, kLinear, layout);
  require(!problem, problem);
  const Grid grid = make_grid(levels, base_resolution, max_resolution, log2_size, kLinear, layout);
  for (int64_t l = 0; l < levels; ++l) {
    const Level level = grid.level[l];
    const double row[4] = {double(level.resolution), double(level.scale), double(level.entries),
                           double(level.offset)};
    std::copy(row, row + 4, rows.data + 4 * l);
  }
}

void hashgrid_forward(Cpu, In<real, kPoints, 3> x, Payload<kEntries, kChannels> any, int64_t levels,
                      int64_t base_resolution, int64_t max_resolution, int64_t log2_size,
                      int64_t interpolation, int64_t layout, Out<real, kPoints, kOutputs> y) {
  const Grid grid = opened_grid(levels, base_resolution, max_resolution, log2_size, interpolation, layout,
                                any.size[0], any.size[1], y.size[1]);
  const int64_t width = y.size[1];
  with_dtype(any, [&](auto table) {
    with_features(any.size[1], [&](auto features) {
      constexpr int F = decltype(features)::value;
      for_chunks(x.size[0], [&](int64_t begin, int64_t end) {
        for (int l = 0; l < grid.levels; ++l)
          for (int64_t first = begin; first < end; first += kBlock) {
            Block block;
            load_points(x.data, first, end, block);
            find_cells(grid.level[l], grid.smooth, block);
            find_slots(grid.level[l], block);
            find_weights(block);
            gather<std::remove_const_t<std::remove_pointer_t<decltype(table.data)>>, F>(
                table.data + grid.level[l].offset * F, block, y.data + first * width + l * F, width);
          }
      });
    });
  });
}

void hashgrid_backward(Cpu, In<real, kPoints, 3> x, int64_t levels, int64_t base_resolution,
                       int64_t max_resolution, int64_t log2_size, int64_t interpolation, int64_t layout,
                       In<real, kPoints, kOutputs> grad_y, Maybe<Out<int64_t, kBytes>>,
                       Out<real, kEntries, kChannels> grad_table) {
  const Grid grid = opened_grid(levels, base_resolution, max_resolution, log2_size, interpolation, layout,
                                grad_table.size[0], grad_table.size[1], grad_y.size[1]);
  const int64_t points = x.size[0], width = grad_y.size[1];
  with_features(grad_table.size[1], [&](auto features) {
    constexpr int F = decltype(features)::value;
    parallel_for((levels + kLevelsPerTask - 1) / kLevelsPerTask, 4096, [&](int64_t task) {
      const int last = std::min(grid.levels, int(task + 1) * kLevelsPerTask);
      for (int64_t begin = 0; begin < points; begin += kChunk)
        for (int l = int(task) * kLevelsPerTask; l < last; ++l)
          for (int64_t first = begin; first < std::min(points, begin + kChunk); first += kBlock) {
            Block block;
            load_points(x.data, first, points, block);
            find_cells(grid.level[l], grid.smooth, block);
            find_slots(grid.level[l], block);
            find_weights(block);
            scatter<F>(grad_table.data + grid.level[l].offset * F, block, grad_y.data + first * width + l * F,
                       width);
          }
    });
  });
}

void hashgrid_input_gradient(Cpu, In<real, kPoints, 3> x, Payload<kEntries, kChannels> any, int64_t levels,
                             int64_t base_resolution, int64_t max_resolution, int64_t log2_size,
                             int64_t interpolation, int64_t layout, In<real, kPoints, kOutputs> grad_y,
                             Out<real, kPoints, 3> grad_x) {
  const Grid grid = opened_grid(levels, base_resolution, max_resolution, log2_size, interpolation, layout,
                                any.size[0], any.size[1], grad_y.size[1]);
  const int64_t width = grad_y.size[1];
  with_dtype(any, [&](auto table) {
    with_features(any.size[1], [&](auto features) {
      constexpr int F = decltype(features)::value;
      parallel_for((x.size[0] + kBlock - 1) / kBlock, kBlock * levels, [&](int64_t b) {
        Block block;
        load_points(x.data, b * kBlock, x.size[0], block);
        std::fill(&block.dot[0][0], &block.dot[0][0] + 8 * kBlock, real(0));
        real sum[3][kBlock] = {};
        for (int l = 0; l < grid.levels; ++l) {
          find_cells(grid.level[l], grid.smooth, block);
          find_slots(grid.level[l], block);
          dots<std::remove_const_t<std::remove_pointer_t<decltype(table.data)>>, F>(
              table.data + grid.level[l].offset * F, grad_y.data + b * kBlock * width + l * F, width, block);
          add_slopes(grid.level[l], block, sum);
        }
        for (int i = 0; i < block.count; ++i)
          store3(grad_x.data, b * kBlock + i, {sum[0][i], sum[1][i], sum[2][i]});
      });
    });
  });
}

}  // namespace raymarch
