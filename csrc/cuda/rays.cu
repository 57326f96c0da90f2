#include <algorithm>

#include "cuda/rays.cuh"
#include "cuda/vector.cuh"
#include "cuda/warp.cuh"
#include "ops.h"

namespace raymarch {
namespace {

struct Gradients {
  Maybe<In<real, kRays, 3>> origins, directions;
};

__device__ Mat34 ray_says(const Views& v, const Gradients& g, int64_t i, int64_t c, bool to_adjustment) {
  const LocalRay local = local_ray(lens_of(v, c), v.xy.data[2 * i], v.xy.data[2 * i + 1], {0, 0});
  const Vec3 g_o = g.origins ? load3(g.origins.data, i) : Vec3{};
  const Vec3 g_d = g.directions ? load3(g.directions.data, i) : Vec3{};
  return world_ray_vjp(load34(v.poses.data, c), adjustment_of(v, c), v.world, local, g_o, g_d, to_adjustment);
}

}  // namespace

// One thread per ray. The numbers of a camera come through the cache.
__global__ void __launch_bounds__(128)
    rays_forward_kernel(Views v, Out<real, kRays, 3> origins, Out<real, kRays, 3> directions,
                        Out<real, kRays> area, Out<real, kRays> norm, Out<bool, kRays> converged) {
  const int64_t i = item();
  if (i >= v.camera.size[0]) return;
  const Seen seen = look(v, i);
  store3(origins.data, i, seen.ray.origin);
  store3(directions.data, i, seen.ray.direction);
  area.data[i] = seen.area;
  norm.data[i] = seen.ray.norm;
  converged.data[i] = seen.converged;
}

// The lanes of a warp that share a camera add up; the first of them is left with the sum, and told so. Lanes
// fold in pairs of neighbours within their group, so random cameras cost one or two rounds of shuffles.
__device__ __forceinline__ bool fold_by_camera(int64_t camera, Mat34& sum) {
  const unsigned group = __match_any_sync(~0u, static_cast<long long>(camera));
  const unsigned below = group & ((1u << lane()) - 1u);
  unsigned above = group & ~below & ~(1u << lane());
  unsigned rank = __popc(below);
  while (__any_sync(~0u, above != 0)) {
    const int next = __ffs(above) - 1;
#pragma unroll
    for (int k = 0; k < 12; ++k) {
      const real other = from_lane(sum.m[k], next < 0 ? lane() : next);
      if (next >= 0) sum.m[k] += other;
    }
    above &= __ballot_sync(~0u, (rank & 1u) == 0);  // those of odd rank have been added to their neighbour
    rank >>= 1;
  }
  return below == 0;
}

__device__ __forceinline__ void add_row(const real (&row)[12], bool by_four, real* to) {
#pragma unroll
  for (int k = 0; k < 12; k += 4) {
    const real part[4] = {row[k], row[k + 1], row[k + 2], row[k + 3]};
    if (by_four) {
      add_vector(part, to + k);
    } else {
#pragma unroll
      for (int n = 0; n < 4; ++n) atomicAdd(to + k + n, part[n]);
    }
  }
}

// One thread per ray at a time. Every warp sums in its own rows of shared memory, one per camera, and the
// block adds those of the cameras it met to the result once: without that, all rays would queue for the few
// rows there are. Without `shared` rows (too many cameras) every warp adds for itself.
constexpr int kSumWarps = 8, kRow = 13;         // numbers between rows: cameras meet in few banks
constexpr size_t kMostRows = size_t{96} << 10;  // bytes of shared memory, for 236 cameras
__global__ void __launch_bounds__(32 * kSumWarps)
    rays_backward_kernel(Views v, Gradients g, bool to_adjustment, bool shared, bool by_four,
                         Out<real, kCameras, 3, 4> grad) {
  RM_SHARED(real, rows);
  const int cameras = int(grad.size[0]);
  real* mine = rows + (threadIdx.x / 32) * cameras * kRow;
  for (int i = threadIdx.x; shared && i < kSumWarps * cameras * kRow; i += blockDim.x) rows[i] = 0;
  __syncthreads();

  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t base = blockIdx.x * int64_t{blockDim.x}; base < v.camera.size[0]; base += step) {
    const int64_t i = base + threadIdx.x;
    const int64_t asked = i < v.camera.size[0] ? v.camera.data[i] : -1;
    const bool known = has_camera(v, asked);
    const int64_t c = known ? asked : -1;
    Mat34 sum = {};
    if (known) sum = ray_says(v, g, i, c, to_adjustment);
    if (fold_by_camera(c, sum) && known) {
      if (shared) {
#pragma unroll
        for (int k = 0; k < 12; ++k) mine[c * kRow + k] += sum.m[k];
      } else {
        add_row(sum.m, by_four, grad.data + 12 * c);
      }
    }
    __syncwarp();  // another lane may be the first of this camera next time
  }

  __syncthreads();
  for (int c = threadIdx.x; shared && c < cameras; c += blockDim.x) {
    real row[12] = {};
    bool met = false;
    for (int w = 0; w < kSumWarps; ++w) {
#pragma unroll
      for (int k = 0; k < 12; ++k) row[k] += rows[(w * cameras + c) * kRow + k];
    }
#pragma unroll
    for (int k = 0; k < 12; ++k) met |= row[k] != 0;
    if (met) add_row(row, by_four, grad.data + 12 * c);
  }
}

// One block per camera, which looks at every ray: no atomics, so the same sum every time.
constexpr int kWarpsPerCamera = 8;
__global__ void __launch_bounds__(32 * kWarpsPerCamera)
    rays_backward_same_kernel(Views v, Gradients g, bool to_adjustment, Out<real, kCameras, 3, 4> grad) {
  const int64_t c = blockIdx.x;
  Mat34 sum = {};
  for (int64_t i = threadIdx.x; i < v.camera.size[0]; i += blockDim.x) {
    if (v.camera.data[i] != c) continue;
    const Mat34 one = ray_says(v, g, i, c, to_adjustment);
#pragma unroll
    for (int k = 0; k < 12; ++k) sum.m[k] += one.m[k];
  }

  __shared__ real sums[kWarpsPerCamera][12];
#pragma unroll
  for (int k = 0; k < 12; ++k) {
    const real total = warp_sum(sum.m[k]);
    if (lane() == 0) sums[threadIdx.x / 32][k] = total;
  }
  __syncthreads();
  if (threadIdx.x >= 12) return;
  real total = 0;
  for (int w = 0; w < kWarpsPerCamera; ++w) total += sums[w][threadIdx.x];
  grad.data[12 * c + threadIdx.x] = total;
}

void rays_forward(Cuda q, In<real, kCameras, 3, 4> poses, In<int64_t, kRays> camera, In<real, kRays, 2> xy,
                  In<real, kCameras, 4> intrinsics, In<real, kCameras, 12> distortion,
                  In<int64_t, kCameras> lens, Maybe<In<real, kCameras, 3, 4>> adjustment, int64_t compose,
                  double eye_distance, Out<real, kRays, 3> origins, Out<real, kRays, 3> directions,
                  Out<real, kRays> area, Out<real, kRays> norm, Out<bool, kRays> converged) {
  require(compose >= 0 && compose < kComposes, "compose is 0 (camera) or 1 (world)");
  const Views v = {poses,
                   camera,
                   xy,
                   intrinsics,
                   distortion,
                   lens,
                   adjustment,
                   compose == kComposeWorld,
                   real(eye_distance / 2)};
  launch("rays_forward", rays_forward_kernel, blocks(camera.size[0], 128), 128, q, v, origins, directions,
         area, norm, converged);
}

void rays_backward(Cuda q, In<real, kCameras, 3, 4> poses, In<int64_t, kRays> camera, In<real, kRays, 2> xy,
                   In<real, kCameras, 4> intrinsics, In<real, kCameras, 12> distortion,
                   In<int64_t, kCameras> lens, Maybe<In<real, kCameras, 3, 4>> adjustment, int64_t compose,
                   double eye_distance, Maybe<In<real, kRays, 3>> grad_origins,
                   Maybe<In<real, kRays, 3>> grad_directions, bool same_every_time,
                   Maybe<Out<real, kCameras, 3, 4>> grad_poses,
                   Maybe<Out<real, kCameras, 3, 4>> grad_adjustment) {
  require(compose >= 0 && compose < kComposes, "compose is 0 (camera) or 1 (world)");
  const Views v = {poses,
                   camera,
                   xy,
                   intrinsics,
                   distortion,
                   lens,
                   adjustment,
                   compose == kComposeWorld,
                   real(eye_distance / 2)};
  const Gradients g = {grad_origins, grad_directions};
  const auto sum_into = [&](const Out<real, kCameras, 3, 4>& grad, bool to_adjustment) {
    if (same_every_time)
      return launch("rays_backward", rays_backward_same_kernel, blocks(grad.size[0], 1), 32 * kWarpsPerCamera,
                    q, v, g, to_adjustment, grad);
    zero("rays_backward", grad.data, sizeof(real) * 12 * grad.size[0], q);
    const size_t room = sizeof(real) * kSumWarps * kRow * size_t(grad.size[0]);
    const bool shared = room <= kMostRows;
    const unsigned grid =
        std::min(blocks(camera.size[0], 32 * kSumWarps), unsigned((shared ? 1 : 4) * multiprocessors(q)));
    launch_shared("rays_backward", rays_backward_kernel, grid, 32 * kSumWarps, shared ? room : 0, q, v, g,
                  to_adjustment, shared, aligned(grad.data, 16), grad);
  };
  if (grad_poses) sum_into(grad_poses, false);
  if (grad_adjustment) sum_into(grad_adjustment, true);
}

}  // namespace raymarch
