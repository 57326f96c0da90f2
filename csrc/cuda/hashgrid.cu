// Hash grid on CUDA. Forward and input gradient: a block takes 32 points, a warp one level at a time, a lane
// one point, so that lanes are neighbours on a ray and share cells. Table gradient: a thread walks a run of
// points of one level and adds to memory only when it leaves a cell.
#include "cuda/vector.cuh"
#include "math/hashgrid.h"
#include "ops.h"

namespace raymarch {

constexpr int kTile = 32;  // points per block: one per lane
constexpr int kMostWarps = 8;

// Sums of eight corner entries, staged in shared memory: neighbours of a row leave together, in whole
// sectors. Odd pitch: lanes that write a column hit different banks.
template <class T, int F>
__global__ void __launch_bounds__(32 * kMostWarps)
    hashgrid_forward_kernel(In<real, kPoints, 3> x, In<T, kEntries, kChannels> table,
                            const __grid_constant__ Grid grid, Out<real, kPoints, kOutputs> y) {
  extern __shared__ real tile[];
  const int width = grid.levels * F, pitch = width | 1, warps = blockDim.x / 32;
  const int64_t first = blockIdx.x * int64_t{kTile};
  const int count = int(min(int64_t{kTile}, x.size[0] - first));

  if (lane() < count) {
    const Vec3 at = load3(x.data, first + lane());
    for (int l = threadIdx.x / 32; l < grid.levels; l += warps) {
      const Level& level = grid.level[l];
      const T* entries = table.data + level.offset * F;
      const Cell cell = locate(level, at, grid.smooth);
      const Slots slot = slots(level, cell.x.cell, cell.y.cell, cell.z.cell);
      const Corners weight = corner_weights(cell.x.u, cell.y.u, cell.z.u);
      real entry[8][F], sum[F] = {};
#pragma unroll
      for (int c = 0; c < 8; ++c) load_vector(entries + int64_t{slot.at[c]} * F, entry[c]);
#pragma unroll
      for (int c = 0; c < 8; ++c)
#pragma unroll
        for (int f = 0; f < F; ++f) sum[f] += weight.of[c] * entry[c][f];
#pragma unroll
      for (int f = 0; f < F; ++f) tile[lane() * pitch + l * F + f] = sum[f];
    }
  }
  __syncthreads();

  // Thread i of the block takes numbers i, i + blockDim, ... of the run; their row and column advance by
  // sums.
  const int step_row = blockDim.x / width, step_column = blockDim.x % width;
  int row = threadIdx.x / width, column = threadIdx.x % width;
  for (int i = threadIdx.x; i < count * width; i += blockDim.x) {
    y.data[(first + row) * y.size[1] + column] = tile[row * pitch + column];
    row += step_row, column += step_column;
    if (column >= width) column -= width, ++row;
  }
}

// Where the sums of a run go: floats added in whatever order the hardware takes them ...
struct FastSum {
  real* to;
  template <int F>
  __device__ void add(int64_t entry, const real (&value)[F]) const {
    add_vector(value, to + entry * F);
  }
};

// ... or integers, whose sums have no order. The scale leaves room for every point to add the largest
// gradient.
struct ExactSum {
  int64_t* to;
  double scale;
  template <int F>
  __device__ void add(int64_t entry, const real (&value)[F]) const {
#pragma unroll
    for (int f = 0; f < F; ++f)
      atomicAdd(reinterpret_cast<unsigned long long*>(to + entry * F + f),
                static_cast<unsigned long long>(__double2ll_rn(double(value[f]) * scale)));
  }
};

constexpr int kRun = 16;  // points per thread; from performance.md's 8, 16, 48 the best over all grids
constexpr int kWalkThreads = 128;

template <int F, class Sum>
__device__ __forceinline__ void flush(const Level& level, const Cell& cell, real (&sum)[8][F],
                                      const Sum& to) {
  const Slots slot = slots(level, cell.x.cell, cell.y.cell, cell.z.cell);
#pragma unroll
  for (int c = 0; c < 8; ++c) {
    to.add(level.offset + slot.at[c], sum[c]);
#pragma unroll
    for (int f = 0; f < F; ++f) sum[c][f] = real(0);
  }
}

// One thread per run of consecutive points and one level. Neighbouring threads are neighbouring levels: they
// read a row of grad_y together and add to different addresses.
template <int F, class Sum>
__device__ __forceinline__ void walk(In<real, kPoints, 3> x, In<real, kPoints, kOutputs> grad_y,
                                     const Grid& grid, const Sum& to) {
  // Lanes ask for different levels, which constant memory would serve one by one.
  __shared__ Level levels[kMaxLevels];
  if (threadIdx.x < grid.levels) levels[threadIdx.x] = grid.level[threadIdx.x];
  __syncthreads();
  const int64_t thread = item(), run = thread / grid.levels;
  const int64_t begin = run * kRun, end = min(begin + kRun, x.size[0]);
  if (begin >= end) return;
  const int l = int(thread - run * grid.levels);
  const Level level = levels[l];

  real sum[8][F] = {};
  Cell open = {};
  bool any = false;
  for (int64_t i = begin; i < end; ++i) {
    real g[F];
    load_vector(grad_y.data + i * grad_y.size[1] + l * F, g);
    const Cell cell = locate(level, load3(x.data, i), grid.smooth);
    bool flows = false;
#pragma unroll
    for (int f = 0; f < F; ++f) flows |= g[f] != real(0);
    if (!flows) continue;

    if (any && !same_cell(cell, open)) flush(level, open, sum, to);
    open = cell, any = true;
    const Corners weight = corner_weights(cell.x.u, cell.y.u, cell.z.u);
#pragma unroll
    for (int c = 0; c < 8; ++c)
#pragma unroll
      for (int f = 0; f < F; ++f) sum[c][f] += weight.of[c] * g[f];
  }
  if (any) flush(level, open, sum, to);
}

template <int F>
__global__ void __launch_bounds__(kWalkThreads)
    hashgrid_backward_kernel(In<real, kPoints, 3> x, In<real, kPoints, kOutputs> grad_y,
                             const __grid_constant__ Grid grid, Out<real, kEntries, kChannels> grad_table) {
  walk<F>(x, grad_y, grid, FastSum{grad_table.data});
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

template <int F>
__global__ void __launch_bounds__(kWalkThreads)
    hashgrid_backward_exact_kernel(In<real, kPoints, 3> x, In<real, kPoints, kOutputs> grad_y,
                                   const __grid_constant__ Grid grid, int64_t* sums, const int64_t* largest) {
  walk<F>(x, grad_y, grid, ExactSum{sums, exact_scale(*largest, x.size[0])});
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

// The same schedule as the forward pass, with the rows of grad_y staged; then the warps' shares of each point
// are summed in order.
template <class T, int F>
__global__ void __launch_bounds__(32 * kMostWarps)
    hashgrid_input_gradient_kernel(In<real, kPoints, 3> x, In<T, kEntries, kChannels> table,
                                   const __grid_constant__ Grid grid, In<real, kPoints, kOutputs> grad_y,
                                   Out<real, kPoints, 3> grad_x) {
  extern __shared__ real tile[];
  const int width = grid.levels * F, pitch = width | 1, warps = blockDim.x / 32;
  real* shares = tile + kTile * pitch;  // [warps][kTile][3]
  const int64_t first = blockIdx.x * int64_t{kTile};
  const int count = int(min(int64_t{kTile}, x.size[0] - first));
  const int step_row = blockDim.x / width, step_column = blockDim.x % width;
  int row = threadIdx.x / width, column = threadIdx.x % width;
  for (int i = threadIdx.x; i < count * width; i += blockDim.x) {
    tile[row * pitch + column] = grad_y.data[(first + row) * grad_y.size[1] + column];
    row += step_row, column += step_column;
    if (column >= width) column -= width, ++row;
  }
  __syncthreads();

  if (lane() < count) {
    const Vec3 at = load3(x.data, first + lane());
    Vec3 share = {0, 0, 0};
    for (int l = threadIdx.x / 32; l < grid.levels; l += warps) {
      real g[F];
      bool flows = false;
#pragma unroll
      for (int f = 0; f < F; ++f) flows |= (g[f] = tile[lane() * pitch + l * F + f]) != real(0);
      if (!flows) continue;

      const Level& level = grid.level[l];
      const T* entries = table.data + level.offset * F;
      const Cell cell = locate(level, at, grid.smooth);
      const Slots slot = slots(level, cell.x.cell, cell.y.cell, cell.z.cell);
      Corners dot = {};
#pragma unroll
      for (int c = 0; c < 8; ++c) {
        real entry[F];
        load_vector(entries + int64_t{slot.at[c]} * F, entry);
#pragma unroll
        for (int f = 0; f < F; ++f) dot.of[c] += g[f] * entry[f];
      }
      share = share + corner_weights_vjp(level, cell, dot);
    }
    store3(shares, threadIdx.x, share);
  }
  __syncthreads();

  for (int i = threadIdx.x; i < 3 * count; i += blockDim.x) {
    real sum = real(0);
    for (int w = 0; w < warps; ++w) sum += shares[w * 3 * kTile + i];
    grad_x.data[3 * first + i] = sum;
  }
}

// Warps per block: every warp takes the same number of levels, or one fewer.
static int warps_for(int levels) {
  const int rounds = (levels + kMostWarps - 1) / kMostWarps;
  return (levels + rounds - 1) / rounds;
}

static Grid checked(const GridSettings& settings, int64_t entries, int64_t features, int64_t outputs) {
  const char* problem = grid_problem(settings);
  require(!problem, problem);
  const Grid grid = make_grid(settings);
  problem = grid_problem(grid, entries, features, outputs);
  require(!problem, problem);
  return grid;
}

void hashgrid_layout(Cuda, Out<double, kEntries, 4>, int64_t, int64_t, int64_t, int64_t) {
  require(false, "the layout is made on the host: pass an array on the CPU");
}

void hashgrid_forward(Cuda q, In<real, kPoints, 3> x, Payload<kEntries, kChannels> any, int64_t levels,
                      int64_t base_resolution, int64_t max_resolution, int64_t log2_size,
                      int64_t interpolation, int64_t layout, Out<real, kPoints, kOutputs> y) {
  const Grid grid = checked({levels, base_resolution, max_resolution, log2_size, interpolation, layout},
                            any.size[0], any.size[1], y.size[1]);
  require(aligned(any.data, 16), "the table must start at a multiple of 16 bytes");
  const int block = 32 * warps_for(grid.levels);
  const size_t shared = kTile * ((levels * any.size[1]) | 1) * sizeof(real);
  with_dtype(any, [&](auto table) {
    with_features(any.size[1], [&](auto features) {
      using T = std::remove_const_t<std::remove_pointer_t<decltype(table.data)>>;
      launch_shared("hashgrid_forward", hashgrid_forward_kernel<T, decltype(features)::value>,
                    blocks(x.size[0], kTile), block, shared, q, x, table, grid, y);
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
  const unsigned threads = blocks((points + kRun - 1) / kRun * levels, kWalkThreads);
  with_features(grad_table.size[1], [&](auto features) {
    constexpr int F = decltype(features)::value;
    if (!exact)
      return launch("hashgrid_backward", hashgrid_backward_kernel<F>, threads, kWalkThreads, q, x, grad_y,
                    grid, grad_table);
    int64_t* largest = exact.data + numbers;
    launch("hashgrid_backward", hashgrid_largest_kernel, 4 * multiprocessors(q), 256, q, grad_y,
           grid.levels * F, largest);
    launch("hashgrid_backward", hashgrid_backward_exact_kernel<F>, threads, kWalkThreads, q, x, grad_y, grid,
           exact.data, largest);
    launch("hashgrid_backward", hashgrid_from_exact_kernel, blocks(numbers, 256), 256, q, exact.data, largest,
           points, grad_table);
  });
}

void hashgrid_input_gradient(Cuda q, In<real, kPoints, 3> x, Payload<kEntries, kChannels> any, int64_t levels,
                             int64_t base_resolution, int64_t max_resolution, int64_t log2_size,
                             int64_t interpolation, int64_t layout, In<real, kPoints, kOutputs> grad_y,
                             Out<real, kPoints, 3> grad_x) {
  const Grid grid = checked({levels, base_resolution, max_resolution, log2_size, interpolation, layout},
                            any.size[0], any.size[1], grad_y.size[1]);
  require(aligned(any.data, 16), "the table must start at a multiple of 16 bytes");
  const int block = 32 * warps_for(grid.levels);
  const size_t shared = (kTile * ((levels * any.size[1]) | 1) + 3 * block) * sizeof(real);
  with_dtype(any, [&](auto table) {
    with_features(any.size[1], [&](auto features) {
      using T = std::remove_const_t<std::remove_pointer_t<decltype(table.data)>>;
      launch_shared("hashgrid_input_gradient", hashgrid_input_gradient_kernel<T, decltype(features)::value>,
                    blocks(x.size[0], kTile), block, shared, q, x, table, grid, grad_y, grad_x);
    });
  });
}

}  // namespace raymarch
