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

__device__ __forceinline__ LocalRay local_of(const Views& v, int64_t i, int64_t c) {
  return local_ray(lens_of(v, c), v.xy.data[2 * i], v.xy.data[2 * i + 1], {0, 0});
}

// What ray i says about its camera c: 12 numbers, which come first in the camera's `kWidth`.
struct SaysPose {
  static constexpr int kWidth = 12;
  Gradients g;
  bool to_adjustment;
  __device__ Mat34 operator()(const Views& v, int64_t i, int64_t c) const {
    const LocalRay local = local_of(v, i, c);
    const Vec3 g_o = g.origins ? load3(g.origins.data, i) : Vec3{};
    const Vec3 g_d = g.directions ? load3(g.directions.data, i) : Vec3{};
    return world_ray_vjp(load34(v.poses.data, c), adjustment_of(v, c), v.world, local, g_o, g_d,
                         to_adjustment);
  }
};
struct SaysLens {
  static constexpr int kWidth = 16;
  In<real, kRays, 3> directions;
  __device__ LensNumbers operator()(const Views& v, int64_t i, int64_t c) const {
    const LocalRay local = local_of(v, i, c);
    const Mat34 pose = composed(load34(v.poses.data, c), adjustment_of(v, c), v.world);
    const Vec3 g = local_vjp(pose, local, load3(directions.data, i));
    return lens_vjp(lens_of(v, c), v.xy.data[2 * i], v.xy.data[2 * i + 1], local, g);
  }
};

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
template <class Sum>
__device__ __forceinline__ bool fold_by_camera(int64_t camera, Sum& sum) {
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
template <class Says>
__global__ void __launch_bounds__(32 * kSumWarps)
    rays_backward_kernel(Views v, Says says, bool shared, bool by_four, real* grad) {
  RM_SHARED(real, rows);
  const int cameras = int(v.poses.size[0]);
  real* mine = rows + (threadIdx.x / 32) * cameras * kRow;
  for (int i = threadIdx.x; shared && i < kSumWarps * cameras * kRow; i += blockDim.x) rows[i] = 0;
  __syncthreads();

  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t base = blockIdx.x * int64_t{blockDim.x}; base < v.camera.size[0]; base += step) {
    const int64_t i = base + threadIdx.x;
    const int64_t asked = i < v.camera.size[0] ? v.camera.data[i] : -1;
    const bool known = has_camera(v, asked);
    const int64_t c = known ? asked : -1;
    decltype(says(v, i, c)) sum = {};
    if (known) sum = says(v, i, c);
    if (fold_by_camera(c, sum) && known) {
      if (shared) {
#pragma unroll
        for (int k = 0; k < 12; ++k) mine[c * kRow + k] += sum.m[k];
      } else {
        add_row(sum.m, by_four, grad + Says::kWidth * c);
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
    if (met) add_row(row, by_four, grad + Says::kWidth * c);
  }
}

// One block per camera, which looks at every ray: no atomics, so the same sum every time.
constexpr int kWarpsPerCamera = 8;
template <class Says>
__global__ void __launch_bounds__(32 * kWarpsPerCamera)
    rays_backward_same_kernel(Views v, Says says, real* grad) {
  const int64_t c = blockIdx.x;
  decltype(says(v, c, c)) sum = {};
  for (int64_t i = threadIdx.x; i < v.camera.size[0]; i += blockDim.x) {
    if (v.camera.data[i] != c) continue;
    const auto one = says(v, i, c);
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
  if (threadIdx.x >= Says::kWidth) return;
  real total = 0;
  for (int w = 0; w < kWarpsPerCamera && threadIdx.x < 12; ++w) total += sums[w][threadIdx.x];
  grad[Says::kWidth * c + threadIdx.x] = total;
}

// Sums what the rays say about each camera into its row of `grad`.
template <class Says>
void sum_over_cameras(Cuda q, const char* name, const Views& v, const Says& says, bool same_every_time,
                      real* grad) {
  const size_t cameras = size_t(v.poses.size[0]);
  if (same_every_time)
    return launch(name, rays_backward_same_kernel<Says>, blocks(cameras, 1), 32 * kWarpsPerCamera, q, v, says,
                  grad);
  zero(name, grad, sizeof(real) * Says::kWidth * cameras, q);
  const size_t room = sizeof(real) * kSumWarps * kRow * cameras;
  const bool shared = room <= kMostRows;
  const unsigned grid =
      std::min(blocks(v.camera.size[0], 32 * kSumWarps), unsigned((shared ? 1 : 4) * multiprocessors(q)));
  launch_shared(name, rays_backward_kernel<Says>, grid, 32 * kSumWarps, shared ? room : 0, q, v, says, shared,
                aligned(grad, 16), grad);
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
    sum_over_cameras(q, "rays_backward", v, SaysPose{g, to_adjustment}, same_every_time, grad.data);
  };
  if (grad_poses) sum_into(grad_poses, false);
  if (grad_adjustment) sum_into(grad_adjustment, true);
}

void rays_lens_backward(Cuda q, In<real, kCameras, 3, 4> poses, In<int64_t, kRays> camera,
                        In<real, kRays, 2> xy, In<real, kCameras, 4> intrinsics,
                        In<real, kCameras, 12> distortion, In<int64_t, kCameras> lens,
                        Maybe<In<real, kCameras, 3, 4>> adjustment, int64_t compose,
                        In<real, kRays, 3> grad_directions, bool same_every_time,
                        Out<real, kCameras, 16> grad) {
  require(compose >= 0 && compose < kComposes, "compose is 0 (camera) or 1 (world)");
  const Views v = {poses, camera, xy, intrinsics, distortion, lens, adjustment, compose == kComposeWorld, 0};
  sum_over_cameras(q, "rays_lens_backward", v, SaysLens{grad_directions}, same_every_time, grad.data);
}

}  // namespace raymarch
