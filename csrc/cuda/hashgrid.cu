// Hash grid on CUDA. Forward and input gradient: a lane takes one point, a warp one level at a time, so that
// lanes are neighbours on a ray and share cells. Table gradient: a few lanes walk a run of points of one
// level and add to memory only what the next cell does not share. What bounds it is how many sectors of 32
// bytes the adds touch, not how many numbers.
#include "cuda/entries.cuh"
#include "cuda/vector.cuh"
#include "math/harmonics.h"
#include "math/hashgrid.h"
#include "ops.h"

namespace raymarch {

constexpr int kTile = 32;  // points per tile: one per lane
constexpr int kMostWarps = 5;

// How the warps of a block share tiles: `warps` to a tile, `tiles` to a block.
struct Sharing {
  int warps, tiles;
  unsigned threads() const { return unsigned(32 * warps * tiles); }
};

// Every warp takes the same number of rounds, or one fewer. Narrow rows leave a warp enough room for a whole
// tile, and then nothing waits for other warps.
static Sharing sharing(int rounds_of_one, int64_t row_bytes) {
  if (row_bytes < 64) return {1, 4};
  const int rounds = (rounds_of_one + kMostWarps - 1) / kMostWarps;
  return {(rounds_of_one + rounds - 1) / rounds, 1};
}

// A warp's place: which tile, which of the tile's warps, and the tile's points.
struct Share {
  int tile, warp, count;
  int64_t first;
  __device__ Share(const Sharing& s, int64_t points) {
    tile = threadIdx.x / 32 / s.warps, warp = threadIdx.x / 32 % s.warps;
    first = (blockIdx.x * int64_t{s.tiles} + tile) * kTile;
    count = int(max(int64_t{0}, min(int64_t{kTile}, points - first)));
  }
};

// Calls body(row, column, i) for the numbers i of a tile's rows, thread after thread of its warps.
template <class Body>
__device__ __forceinline__ void over_rows(const Sharing& s, const Share& me, int width, const Body& body) {
  const int thread = me.warp * 32 + lane(), threads = s.warps * 32;
  const int step_row = threads / width, step_column = threads % width;
  int row = thread / width, column = thread % width;
  for (int i = thread; i < me.count * width; i += threads) {
    body(row, column, i);
    row += step_row, column += step_column;
    if (column >= width) column -= width, ++row;
  }
}

// Rows staged in shared memory start at odd multiples of four bytes: lanes that write a column of them hit
// different banks.
template <class T>
__host__ __device__ __forceinline__ int staged_pitch(int width) {
  return sizeof(T) == 4 ? width | 1 : (width + 1) / 2 * 2 + ((width + 1) / 2 % 2 ? 0 : 2);
}

template <class T, int N>
__device__ __forceinline__ void stage(const real (&value)[N], T* to) {
  using Word = std::conditional_t<N * sizeof(T) % 4 == 0, uint32_t, T>;
  union {
    Word words[N * sizeof(T) / sizeof(Word)];
    T numbers[N];
  } u;
#pragma unroll
  for (int n = 0; n < N; ++n) u.numbers[n] = from_float<T>(value[n]);
#pragma unroll
  for (int w = 0; w < int(N * sizeof(T) / sizeof(Word)); ++w) reinterpret_cast<Word*>(to)[w] = u.words[w];
}

template <class Word, class T>
__device__ __forceinline__ void unstage(const Sharing& sharing, const Share& me, const T* tile, int pitch,
                                        int width, T* to) {
  constexpr int kBytes = sizeof(Word);
  const Word* from = reinterpret_cast<const Word*>(tile);
  pitch = pitch * int(sizeof(T)) / kBytes, width = width * int(sizeof(T)) / kBytes;
  over_rows(sharing, me, width,
            [&](int r, int c, int i) { reinterpret_cast<Word*>(to)[i] = from[r * pitch + c]; });
}

// A warp takes one level of its tile at a time, then, where there are waves, one axis of them.
template <class T, int F, class Y>
__global__ void __launch_bounds__(32 * kMostWarps)
    hashgrid_forward_kernel(In<real, kPoints, 3> x, In<T, kEntries, kChannels> table,
                            const __grid_constant__ Grid grid, int frequencies, int64_t waves,
                            Sharing sharing, Out<Y, kPoints, kOutputs> y) {
  RM_SHARED(unsigned char, raw);
  const Share me(sharing, x.size[0]);
  const int width = grid.levels * F + 6 * frequencies, pitch = staged_pitch<Y>(width);
  Y* tile = reinterpret_cast<Y*>(raw) + me.tile * kTile * pitch;
  Y* row = tile + lane() * pitch;

  if (lane() < me.count) {
    const Vec3 at = load3(x.data, me.first + lane());
    for (int l = me.warp; l < grid.levels; l += sharing.warps) {
      real sum[F] = {};
      looked_up(grid.level[l], table.data, at, grid.smooth, sum);
      stage(sum, row + l * F);
    }
    const real axes[3] = {at.x, at.y, at.z};
#pragma unroll
    for (int d = 0; d < 3; ++d) {
      if ((grid.levels + d) % sharing.warps != me.warp) continue;
      for (int k = 0; k < frequencies; ++k) {
        const Turn wave = turn(fourier_frequency(k, waves) * axes[d]);
        const Columns to = fourier_columns(d, k, frequencies, waves);
        row[grid.levels * F + to.sine] = from_float<Y>(wave.sine);
        row[grid.levels * F + to.cosine] = from_float<Y>(wave.cosine);
      }
    }
  }
  __syncthreads();

  Y* to = y.data + me.first * width;
  if (width * sizeof(Y) % 4 == 0)
    unstage<uint32_t>(sharing, me, tile, pitch, width, to);
  else
    unstage<Y>(sharing, me, tile, pitch, width, to);
}

// Where the sums of a run go: floats added in whatever order the hardware takes them ...
struct FastSum {
  real* to;
  template <int N>
  __device__ void add(int64_t number, const real (&value)[N]) const {
    add_vector(value, to + number);
  }
};

// ... or integers, whose sums have no order. The scale leaves room for every point to add the largest
// gradient.
struct ExactSum {
  int64_t* to;
  double scale;
  template <int N>
  __device__ void add(int64_t number, const real (&value)[N]) const {
#pragma unroll
    for (int n = 0; n < N; ++n)
      atomicAdd(reinterpret_cast<unsigned long long*>(to + number + n),
                static_cast<unsigned long long>(__double2ll_rn(double(value[n]) * scale)));
  }
};

constexpr int kWalkThreads = 128;

// What one walk covers, and how many levels go at once. Levels that go together share rows of grad_y; fewer
// levels share the second-level cache.
struct Walks {
  int run;     // points
  int levels;  // per pass
  int passes;
  int64_t runs;
};

static Walks walks(int64_t points, int levels, int64_t features) {
  const int run = points < (1 << 21) ? 24 : 96;  // few points need every thread more than long walks
  const int most = features < 4 ? 8 : kMaxLevels, passes = (levels + most - 1) / most;
  return {run, (levels + passes - 1) / passes, passes, (points + run - 1) / run};
}

// Walks of F features per entry: C lanes own the vertices with x = 0 .. C - 1 modulo C, each cut into kParts
// of at most 16 bytes. Adds of neighbouring lanes that meet in one sector of 32 bytes cost as much as one.
template <int F, int C>
struct Lanes {
  static constexpr int kColumns = C, kParts = F < 8 ? 1 : 2, kAll = kColumns * kParts;
  static constexpr int kNumbers = F / kParts;
};

// Calls body with C as a constant. Wide windows save adds where samples skip cells, and arithmetic where they
// do not.
template <int F, class Body>
void with_columns(const Grid& grid, const Body& body) {
  constexpr int kWide = F < 8 ? 4 : 2;
  if (grid.level[grid.levels - 1].resolution > 512) return body(std::integral_constant<int, kWide>{});
  body(std::integral_constant<int, 2>{});
}

// The sums of one lane: four vertices that share an x, with bits 0 and 1 for the upper y and z.
template <int F, int kNumbers, class Sum>
struct Column {
  real sum[4][kNumbers] = {};
  int x = -1, y = 0, z = 0;

  // Adds to memory what the cell (x, y, z) + (0, dy, dz) does not share; `all`: nothing is shared.
  __device__ __forceinline__ void flush(const Level& level, int part, bool all, int dy, int dz,
                                        const Sum& to) const {
    const uint32_t y0 = uint32_t(y) * level.step_y, z0 = uint32_t(z) * level.step_z;
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const bool stays = !all && unsigned((c & 1) - dy) < 2u && unsigned((c >> 1) - dz) < 2u;
      bool flows = false;
#pragma unroll
      for (int f = 0; f < kNumbers; ++f) flows |= sum[c][f] != real(0);
      if (stays || !flows) continue;
      to.add((level.offset + slot(level, x, y0 + (c & 1) * level.step_y, z0 + (c >> 1) * level.step_z)) * F +
                 part * kNumbers,
             sum[c]);
    }
  }

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int c = 0; c < 4; ++c)
#pragma unroll
      for (int f = 0; f < kNumbers; ++f) sum[c][f] = real(0);
  }

  // Moves sums to where they lie seen from a cell d further along the axis of `bit`.
  __device__ __forceinline__ void shift(int d, int bit) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      if (c & bit) continue;
#pragma unroll
      for (int f = 0; f < kNumbers; ++f) {
        const real low = sum[c][f], high = sum[c | bit][f];
        sum[c][f] = d == 0 ? low : d == 1 ? high : real(0);
        sum[c | bit][f] = d == 0 ? high : d == -1 ? low : real(0);
      }
    }
  }
};

// A group of lanes walks a run of consecutive points at one level, and adds to memory what falls out of its
// window: kColumns vertices along x, two along y and z. Neighbouring groups are neighbouring levels, which
// read a row of grad_y together.
template <int F, class L, class Sum>
__device__ __forceinline__ void walk(In<real, kPoints, 3> x, In<real, kPoints, kOutputs> grad_y,
                                     const Grid& grid, const Walks& walks, const Sum& to) {
  // Lanes ask for different levels, which constant memory would serve one by one.
  __shared__ Level levels[kMaxLevels];
  if (threadIdx.x < grid.levels) levels[threadIdx.x] = grid.level[threadIdx.x];
  __syncthreads();
  const int per_run = walks.levels * L::kAll;
  const int64_t thread = item(), of_all = thread / per_run, pass = of_all / walks.runs;
  const int64_t begin = (of_all - pass * walks.runs) * walks.run, end = min(begin + walks.run, x.size[0]);
  const int in_run = int(thread - of_all * per_run), l = int(pass) * walks.levels + in_run / L::kAll;
  if (l >= grid.levels) return;
  const int part = in_run % L::kParts, residue = in_run / L::kParts % L::kColumns;
  const Level level = levels[l];

  Column<F, L::kNumbers, Sum> own;
  const int pitch = int(grad_y.size[1]);
  const real* from = grad_y.data + begin * pitch + l * F + part * L::kNumbers;
  real next[L::kNumbers];
  load_vector<true>(from, next);
  Vec3 next_at = load3(x.data, begin);
  for (int64_t i = begin; i < end; ++i) {
    // The next point is under way while this one is summed.
    real g[L::kNumbers];
    bool flows = false;
#pragma unroll
    for (int f = 0; f < L::kNumbers; ++f) flows |= (g[f] = next[f]) != real(0);
    const Vec3 at = next_at;
    if (i + 1 < end) {
      load_vector<true>(from += pitch, next);
      next_at = load3(x.data, i + 1);
    }
    if (!flows) continue;  // masked points are common, and may have no position

    const Cell cell = locate(level, at, grid.smooth);
    const int side = (residue - int(cell.x.cell)) & (L::kColumns - 1);
    const bool mine = L::kColumns == 2 || side < 2;
    const int column = mine ? int(cell.x.cell) + side : own.x;
    const int dy = int(cell.y.cell) - own.y, dz = int(cell.z.cell) - own.z;
    if (column != own.x || dy != 0 || dz != 0) {
      own.flush(level, part, column != own.x, dy, dz, to);
      if (column != own.x) own.clear();
      own.shift(dy, 1), own.shift(dz, 2);
      own.x = column, own.y = int(cell.y.cell), own.z = int(cell.z.cell);
    }
    if (!mine) continue;
    const real u = side ? cell.x.u : real(1) - cell.x.u, v = cell.y.u, w = cell.z.u;
    const real low = u * (real(1) - v), high = u * v;
    const real weight[4] = {low * (real(1) - w), high * (real(1) - w), low * w, high * w};
#pragma unroll
    for (int c = 0; c < 4; ++c)
#pragma unroll
      for (int f = 0; f < L::kNumbers; ++f) own.sum[c][f] += weight[c] * g[f];
  }
  own.flush(level, part, true, 0, 0, to);
}

template <int F, int C>
__global__ void __launch_bounds__(kWalkThreads)
    hashgrid_backward_kernel(In<real, kPoints, 3> x, In<real, kPoints, kOutputs> grad_y,
                             const __grid_constant__ Grid grid, Walks walks,
                             Out<real, kEntries, kChannels> grad_table) {
  walk<F, Lanes<F, C>>(x, grad_y, grid, walks, FastSum{grad_table.data});
}

// The largest |gradient|, as the bits of a float, which order as the floats do. NaN orders above infinity.
__global__ void __launch_bounds__(256)
    hashgrid_largest_kernel(In<real, kPoints, kOutputs> grad_y, int width, int64_t* largest) {
  const int64_t count = grad_y.size[0] * width, stride = gridDim.x * int64_t{blockDim.x};
  unsigned most = 0;
  for (int64_t i = item(); i < count; i += stride)
    most = max(most, __float_as_uint(fabsf(grad_y.data[i / width * grad_y.size[1] + i % width])));
  most = __reduce_max_sync(~0u, most);
  if (lane() == 0) atomicMax(reinterpret_cast<unsigned long long*>(largest), (unsigned long long)most);
}

// 2^62 over the power of two above `largest` times the power of two above the number of points.
__device__ __forceinline__ double exact_scale(int64_t largest, int64_t points) {
  int exponent;
  frexp(double(__uint_as_float(unsigned(largest))), &exponent);
  return ldexp(1.0, 62 - exponent - (64 - __clzll(points)));
}

template <int F, int C>
__global__ void __launch_bounds__(kWalkThreads)
    hashgrid_backward_exact_kernel(In<real, kPoints, 3> x, In<real, kPoints, kOutputs> grad_y,
                                   const __grid_constant__ Grid grid, Walks walks, int64_t* sums,
                                   const int64_t* largest) {
  walk<F, Lanes<F, C>>(x, grad_y, grid, walks, ExactSum{sums, exact_scale(*largest, x.size[0])});
}

__global__ void __launch_bounds__(256)
    hashgrid_from_exact_kernel(const int64_t* sums, const int64_t* largest, int64_t points,
                               Out<real, kEntries, kChannels> grad_table) {
  const int64_t i = item();
  if (i >= grad_table.size[0] * grad_table.size[1]) return;
  const real most = __uint_as_float(unsigned(*largest));
  // Infinity and NaN have no place among integers: they spoil the whole gradient, loudly.
  grad_table.data[i] =
      most < real(INFINITY) ? real(double(sums[i]) / exact_scale(*largest, points)) : real(NAN);
}

// The same schedule, with the rows of grad_y staged; then the warps' shares of each point are summed in
// order.
template <class T, int F>
__global__ void __launch_bounds__(32 * kMostWarps)
    hashgrid_input_gradient_kernel(In<real, kPoints, 3> x, In<T, kEntries, kChannels> table,
                                   const __grid_constant__ Grid grid, In<real, kPoints, kOutputs> grad_y,
                                   Sharing sharing, Out<real, kPoints, 3> grad_x) {
  RM_SHARED(real, numbers);
  const Share me(sharing, x.size[0]);
  const int width = grid.levels * F, pitch = staged_pitch<real>(width);
  real* tile = numbers + me.tile * kTile * pitch;
  const real* rows = grad_y.data + me.first * grad_y.size[1];
  over_rows(sharing, me, width,
            [&](int r, int c, int) { tile[r * pitch + c] = __ldg(rows + r * int(grad_y.size[1]) + c); });
  __syncthreads();

  Vec3 share = {0, 0, 0};
  if (lane() < me.count) {
    const Vec3 at = load3(x.data, me.first + lane());
    for (int l = me.warp; l < grid.levels; l += sharing.warps) {
      real g[F];
      bool flows = false;
#pragma unroll
      for (int f = 0; f < F; ++f) flows |= (g[f] = tile[lane() * pitch + l * F + f]) != real(0);
      if (!flows) continue;

      const Level& level = grid.level[l];
      const Cell cell = locate(level, at, grid.smooth);
      const Entries<T, F> entries(level, table.data, cell);
      Corners dot = {};
#pragma unroll
      for (int c = 0; c < 8; ++c)
#pragma unroll
        for (int f = 0; f < F; ++f) dot.of[c] += g[f] * entries.number(c, f);
      share = share + corner_weights_vjp(level, cell, dot);
    }
  }
  if (sharing.warps == 1) {
    if (lane() < me.count) store3(grad_x.data, me.first + lane(), share);
    return;
  }
  real* shares = numbers + sharing.tiles * kTile * pitch;  // [warps][kTile][3]
  store3(shares, threadIdx.x, share);
  __syncthreads();
  for (int i = threadIdx.x; i < 3 * me.count; i += blockDim.x) {
    real sum = real(0);
    for (int w = 0; w < sharing.warps; ++w) sum += shares[w * 3 * kTile + i];
    grad_x.data[3 * me.first + i] = sum;
  }
}

static Grid checked(const GridSettings& settings, int64_t entries, int64_t features, int64_t outputs) {
  const char* problem = grid_problem(settings);
  require(!problem, problem);
  const Grid grid = make_grid(settings);
  problem = grid_problem(grid, entries, features, outputs);
  require(!problem, problem);
  return grid;
}

void hashgrid_layout(Cuda, Out<double, kEntries, 4> rows, int64_t base_resolution, int64_t max_resolution,
                     int64_t log2_size, int64_t layout) {
  require(kEmulated, "the layout is made on the host: pass an array on the CPU");
  const GridSettings settings = {rows.size[0], base_resolution, max_resolution,
                                 log2_size,    kTrilinear,      layout};
  const char* problem = write_layout(settings, rows.data);
  require(!problem, problem);
}

void hashgrid_forward(Cuda q, In<real, kPoints, 3> x, Payload<kEntries, kChannels> any, int64_t levels,
                      int64_t base_resolution, int64_t max_resolution, int64_t log2_size,
                      int64_t interpolation, int64_t layout, int64_t frequencies, int64_t waves,
                      OutPayload<kPoints, kOutputs> out) {
  const int64_t column = levels * any.size[1], width = column + 6 * frequencies;
  const Grid grid = checked({levels, base_resolution, max_resolution, log2_size, interpolation, layout},
                            any.size[0], any.size[1], out.size[1]);
  const char* problem = frequencies ? fourier_problem(frequencies, waves, column, out.size[1]) : nullptr;
  require(!problem, problem);
  require(out.size[1] == width, "y must have levels * features + 6 * frequencies columns");
  require(aligned(any.data, 16), "the table must start at a multiple of 16 bytes");
  require(aligned(out.data, 4), "y must start at a multiple of 4 bytes");
  with_dtype(out, [&](auto y) {
    using Y = std::remove_pointer_t<decltype(y.data)>;
    const Sharing by = sharing(grid.levels + (frequencies ? 3 : 0), width * int64_t{sizeof(Y)});
    const size_t shared = size_t(by.tiles) * kTile * staged_pitch<Y>(int(width)) * sizeof(Y);
    with_dtype(any, [&](auto table) {
      with_features(any.size[1], [&](auto features) {
        using T = std::remove_const_t<std::remove_pointer_t<decltype(table.data)>>;
        launch_shared("hashgrid_forward", hashgrid_forward_kernel<T, decltype(features)::value, Y>,
                      blocks(x.size[0], kTile * by.tiles), by.threads(), shared, q, x, table, grid,
                      int(frequencies), waves, by, y);
      });
    });
  });
}

void hashgrid_backward(Cuda q, In<real, kPoints, 3> x, int64_t levels, int64_t base_resolution,
                       int64_t max_resolution, int64_t log2_size, int64_t interpolation, int64_t layout,
                       In<real, kPoints, kOutputs> grad_y, Maybe<Out<int64_t, kBytes>> exact,
                       Out<real, kEntries, kChannels> grad_table) {
  const int64_t numbers = grad_table.size[0] * grad_table.size[1], points = x.size[0];
  const Grid grid = checked({levels, base_resolution, max_resolution, log2_size, interpolation, layout},
                            grad_table.size[0], grad_table.size[1], grad_y.size[1]);
  require(aligned(grad_y.data, 16), "grad_y must start at a multiple of 16 bytes");
  require(grad_y.size[1] % std::min<int64_t>(4, grad_table.size[1]) == 0,
          "rows of grad_y must start at multiples of an entry, or of 16 bytes");
  require(aligned(grad_table.data, 16), "grad_table must start at a multiple of 16 bytes");
  require(!exact || exact.size[0] == numbers + 1, "exact must have one number more than the table");
  if (points == 0) return;  // the gradient is zero already
  with_features(grad_table.size[1], [&](auto features) {
    constexpr int F = decltype(features)::value;
    const Walks by = walks(points, grid.levels, F);
    with_columns<F>(grid, [&](auto columns) {
      constexpr int C = decltype(columns)::value;
      const unsigned grid_size = blocks(by.passes * by.runs * by.levels * Lanes<F, C>::kAll, kWalkThreads);
      if (!exact)
        return launch("hashgrid_backward", hashgrid_backward_kernel<F, C>, grid_size, kWalkThreads, q, x,
                      grad_y, grid, by, grad_table);
      int64_t* largest = exact.data + numbers;
      launch("hashgrid_backward", hashgrid_largest_kernel, 4 * multiprocessors(q), 256, q, grad_y,
             grid.levels * F, largest);
      launch("hashgrid_backward", hashgrid_backward_exact_kernel<F, C>, grid_size, kWalkThreads, q, x, grad_y,
             grid, by, exact.data, largest);
      launch("hashgrid_backward", hashgrid_from_exact_kernel, blocks(numbers, 256), 256, q, exact.data,
             largest, points, grad_table);
    });
  });
}

void hashgrid_input_gradient(Cuda q, In<real, kPoints, 3> x, Payload<kEntries, kChannels> any, int64_t levels,
                             int64_t base_resolution, int64_t max_resolution, int64_t log2_size,
                             int64_t interpolation, int64_t layout, In<real, kPoints, kOutputs> grad_y,
                             Out<real, kPoints, 3> grad_x) {
  const Grid grid = checked({levels, base_resolution, max_resolution, log2_size, interpolation, layout},
                            any.size[0], any.size[1], grad_y.size[1]);
  require(aligned(any.data, 16), "the table must start at a multiple of 16 bytes");
  const Sharing by = sharing(grid.levels, levels * any.size[1] * int64_t{sizeof(real)});
  const size_t staged = size_t(by.tiles) * kTile * staged_pitch<real>(int(levels * any.size[1]));
  const size_t shared = (staged + 3 * by.threads()) * sizeof(real);
  with_dtype(any, [&](auto table) {
    with_features(any.size[1], [&](auto features) {
      using T = std::remove_const_t<std::remove_pointer_t<decltype(table.data)>>;
      launch_shared("hashgrid_input_gradient", hashgrid_input_gradient_kernel<T, decltype(features)::value>,
                    blocks(x.size[0], kTile * by.tiles), by.threads(), shared, q, x, table, grid, grad_y, by,
                    grad_x);
    });
  });
}

}  // namespace raymarch
