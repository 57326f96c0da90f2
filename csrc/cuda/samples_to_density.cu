// Densities of a small grid and network. One thread per sample, lanes are neighbours on a ray: features and
// hidden units stay in registers, weights in shared memory, where all lanes read the same number at once.
#include <algorithm>

#include "cuda/entries.cuh"
#include "math/contract.h"
#include "math/point.h"
#include "ops.h"

namespace raymarch {

constexpr int kThreads = 256;
constexpr int kMostHidden = 64;

// One hidden unit's weights: those of the grid's columns, then what the padding adds, then its output weight.
template <int kIn>
struct Unit {
  static constexpr int kFloats = (kIn + 2 + 3) / 4 * 4;
};

// A warp takes 32 samples of one ray at a time.
template <class T, int F, int kLevels>
__global__ void __launch_bounds__(kThreads, 2)
    samples_to_density_kernel(In<real, kRays, 3> origins, In<real, kRays, 3> directions,
                              In<real, kRays, kEdges> t, int64_t norm, In<T, kEntries, kChannels> table,
                              const __grid_constant__ Grid grid, In<real, kParams> params, int hidden,
                              real padding, real scale, int runs, Out<real, kRays, kSamples> sigma) {
  constexpr int kIn = F * kLevels, kFloats = Unit<kIn>::kFloats;
  __shared__ __align__(16) float units[kMostHidden * kFloats];
  for (int i = threadIdx.x; i < hidden * kFloats; i += kThreads) {
    const int unit = i / kFloats, c = i % kFloats;
    const float* row = params.data + unit * 16;
    float value = 0.f;
    if (c < grid.levels * F) value = row[c];
    if (c == kIn)
      for (int p = grid.levels * F; p < 16; ++p) value += padding * row[p];
    if (c == kIn + 1) value = params.data[hidden * 16 + unit];
    units[i] = value;
  }
  __syncthreads();

  const int samples = int(sigma.size[1]);
  const int64_t all = sigma.size[0] * runs, step = gridDim.x * int64_t{kThreads / 32};
  for (int64_t run = threadIdx.x / 32 + blockIdx.x * int64_t{kThreads / 32}; run < all; run += step) {
    const int64_t ray = unsigned(all) == all ? unsigned(run) / unsigned(runs) : run / runs;
    const int i = int(run - ray * runs) * 32 + lane();
    if (i >= samples) continue;
    const real* edge = t.data + ray * (samples + 1) + i;
    const real middle = real(0.5) * (edge[0] + edge[1]);
    const Vec3 y = contract_unit(norm, load3(origins.data, ray) + middle * load3(directions.data, ray));

    float x[kIn];
#pragma unroll
    for (int l = 0; l < kLevels; ++l) {
      real sum[F] = {};
      if (l < grid.levels) looked_up(grid.level[l], table.data, y, grid.smooth, sum);
#pragma unroll
      for (int f = 0; f < F; ++f) x[l * F + f] = sum[f];
    }

    float z = 0.f;
#pragma unroll 4
    for (int unit = 0; unit < hidden; ++unit) {
      float row[kFloats];
#pragma unroll
      for (int c = 0; c < kFloats; c += 4) {
        const float4 v = *reinterpret_cast<const float4*>(units + unit * kFloats + c);
        row[c] = v.x, row[c + 1] = v.y, row[c + 2] = v.z, row[c + 3] = v.w;
      }
      float sum = row[kIn];
#pragma unroll
      for (int c = 0; c < kIn; ++c) sum += row[c] * x[c];
      z += row[kIn + 1] * relu(sum);
    }
    sigma.data[ray * samples + i] = density(z, y, scale);
  }
}

void samples_to_density(Cuda q, In<real, kRays, 3> origins, In<real, kRays, 3> directions,
                        In<real, kRays, kEdges> t, int64_t norm, Payload<kEntries, kChannels> any,
                        int64_t levels, int64_t base_resolution, int64_t max_resolution, int64_t log2_size,
                        int64_t interpolation, int64_t layout, In<real, kParams> params, int64_t hidden,
                        double padding, double scale, Out<real, kRays, kSamples> sigma) {
  const GridSettings settings = {levels, base_resolution, max_resolution, log2_size, interpolation, layout};
  const char* problem = grid_problem(settings);
  require(!problem, problem);
  const Grid grid = make_grid(settings);
  problem = grid_problem(grid, any.size[0], any.size[1], levels * any.size[1]);
  require(!problem, problem);
  problem = density_problem({int(levels * any.size[1]), int(hidden), 1, 1}, params.size[0]);
  require(!problem, problem);
  require(t.size[1] == sigma.size[1] + 1, "t must have one edge more than samples");
  require(aligned(any.data, 16), "the table must start at a multiple of 16 bytes");
  const int runs = int((sigma.size[1] + 31) / 32);
  const unsigned grid_size =
      std::min(blocks(sigma.size[0] * runs, kThreads / 32), unsigned(8 * multiprocessors(q)));
  with_dtype(any, [&](auto table) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(table.data)>>;
    const auto start = [&](auto kernel) {
      launch("samples_to_density", kernel, grid_size, kThreads, q, origins, directions, t, norm, table, grid,
             params, int(hidden), real(padding), real(scale), runs, sigma);
    };
    if (any.size[1] == 2 && levels == 5) return start(samples_to_density_kernel<T, 2, 5>);
    with_features(any.size[1], [&](auto features) {
      constexpr int F = decltype(features)::value;
      start(samples_to_density_kernel<T, F, 16 / F>);
    });
  });
}

}  // namespace raymarch
