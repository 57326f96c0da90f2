#include <vector>

#include "cpu/parallel.h"
#include "math/camera.h"
#include "ops.h"

namespace raymarch {
namespace {

// Everything that says where a pixel looks.
struct Views {
  In<real, kCameras, 3, 4> poses;
  In<int64_t, kRays> camera;
  In<real, kRays, 2> xy;
  In<real, kCameras, 4> intrinsics;
  In<real, kCameras, 12> distortion;
  In<int64_t, kCameras> lens;
  Maybe<In<real, kCameras, 3, 4>> adjustment;
  bool world;
  real half_eyes;

  Lens lens_of(int64_t c) const {
    const real* i = intrinsics.data + 4 * c;
    Lens l = {i[0], i[1], i[2], i[3], {}, lens.data[c], half_eyes};
    for (int k = 0; k < 12; ++k) l.k[k] = distortion.data[12 * c + k];
    return l;
  }
  LocalRay local(int64_t i, int64_t c) const {
    return local_ray(lens_of(c), xy.data[2 * i], xy.data[2 * i + 1], {0, 0});
  }
  Mat34 adjustment_of(int64_t c) const { return adjustment ? load34(adjustment.data, c) : identity34(); }
};

void check(const Views& v, int64_t compose) {
  require(compose >= 0 && compose < kComposes, "compose is 0 (camera) or 1 (world)");
  for (int64_t c = 0; c < v.lens.size[0]; ++c)
    require(v.lens.data[c] >= 0 && v.lens.data[c] < kLensModels, "lens has a number outside 0..8");
  for (int64_t i = 0; i < v.camera.size[0]; ++i)
    require(v.camera.data[i] >= 0 && v.camera.data[i] < v.poses.size[0],
            "camera has an index that no camera has");
}

constexpr int64_t kRaysPerSum = 1024;  // one partial sum per so many rays, whoever computes it
constexpr int64_t kMostSums = 64;

// Sums what each ray says about its camera, in an order that does not depend on the threads. `says` gives 12
// numbers for ray i of camera c, which come first in a camera's `width`.
template <class Says>
void sum_over_cameras(const Views& v, int64_t width, real* grad, const Says& says) {
  const int64_t rays = v.camera.size[0], numbers = width * v.poses.size[0];
  const int64_t sums = std::max<int64_t>(1, std::min(kMostSums, rays / kRaysPerSum));
  std::vector<double> partial(sums * numbers, 0.0);
  run_chunks(sums, [&](int64_t s) {
    double* sum = partial.data() + s * numbers;
    for (int64_t i = rays * s / sums; i < rays * (s + 1) / sums; ++i) {
      const int64_t c = v.camera.data[i];
      const auto one = says(i, c);
      for (int k = 0; k < 12; ++k) sum[width * c + k] += one.m[k];
    }
  });
  for (int64_t k = 0; k < numbers; ++k) {
    double total = 0;
    for (int64_t s = 0; s < sums; ++s) total += partial[s * numbers + k];
    grad[k] = real(total);
  }
}

}  // namespace

void rays_forward(Cpu, In<real, kCameras, 3, 4> poses, In<int64_t, kRays> camera, In<real, kRays, 2> xy,
                  In<real, kCameras, 4> intrinsics, In<real, kCameras, 12> distortion,
                  In<int64_t, kCameras> lens, Maybe<In<real, kCameras, 3, 4>> adjustment, int64_t compose,
                  double eye_distance, Out<real, kRays, 3> origins, Out<real, kRays, 3> directions,
                  Out<real, kRays> area, Out<real, kRays> norm, Out<bool, kRays> converged) {
  const Views v = {poses,
                   camera,
                   xy,
                   intrinsics,
                   distortion,
                   lens,
                   adjustment,
                   compose == kComposeWorld,
                   real(eye_distance / 2)};
  check(v, compose);
  parallel_for(camera.size[0], 200, [&](int64_t i) {
    const int64_t c = camera.data[i];
    const Lens l = v.lens_of(c);
    const real x = xy.data[2 * i], y = xy.data[2 * i + 1];
    const LocalRay local = local_ray(l, x, y, {0, 0});
    const Mat34 pose = load34(poses.data, c);
    const WorldRay ray = world_ray(adjustment ? composed(pose, v.adjustment_of(c), v.world) : pose, local);
    store3(origins.data, i, ray.origin);
    store3(directions.data, i, ray.direction);
    area.data[i] = pixel_area(l, x, y, local);
    norm.data[i] = ray.norm;
    converged.data[i] = local.converged;
  });
}

void rays_backward(Cpu, In<real, kCameras, 3, 4> poses, In<int64_t, kRays> camera, In<real, kRays, 2> xy,
                   In<real, kCameras, 4> intrinsics, In<real, kCameras, 12> distortion,
                   In<int64_t, kCameras> lens, Maybe<In<real, kCameras, 3, 4>> adjustment, int64_t compose,
                   double eye_distance, Maybe<In<real, kRays, 3>> grad_origins,
                   Maybe<In<real, kRays, 3>> grad_directions, bool same_every_time,
                   Maybe<Out<real, kCameras, 3, 4>> grad_poses,
                   Maybe<Out<real, kCameras, 3, 4>> grad_adjustment) {
  const Views v = {poses,
                   camera,
                   xy,
                   intrinsics,
                   distortion,
                   lens,
                   adjustment,
                   compose == kComposeWorld,
                   real(eye_distance / 2)};
  check(v, compose);
  const auto sum_into = [&](real* grad, bool to_adjustment) {
    sum_over_cameras(v, 12, grad, [&](int64_t i, int64_t c) {
      const Vec3 g_o = grad_origins ? load3(grad_origins.data, i) : Vec3{};
      const Vec3 g_d = grad_directions ? load3(grad_directions.data, i) : Vec3{};
      return world_ray_vjp(load34(v.poses.data, c), v.adjustment_of(c), v.world, v.local(i, c), g_o, g_d,
                           to_adjustment);
    });
  };
  if (grad_poses) sum_into(grad_poses.data, false);
  if (grad_adjustment) sum_into(grad_adjustment.data, true);
}

void rays_lens_backward(Cpu, In<real, kCameras, 3, 4> poses, In<int64_t, kRays> camera, In<real, kRays, 2> xy,
                        In<real, kCameras, 4> intrinsics, In<real, kCameras, 12> distortion,
                        In<int64_t, kCameras> lens, Maybe<In<real, kCameras, 3, 4>> adjustment,
                        int64_t compose, In<real, kRays, 3> grad_directions, bool same_every_time,
                        Out<real, kCameras, 16> grad) {
  const Views v = {poses, camera, xy, intrinsics, distortion, lens, adjustment, compose == kComposeWorld, 0};
  check(v, compose);
  for (int64_t i = 0; i < camera.size[0]; ++i)
    require(can_refine(lens.data[camera.data[i]]),
            "gradients reach perspective and fisheye lenses, not panoramas, orthophotos or fisheye624");
  sum_over_cameras(v, 16, grad.data, [&](int64_t i, int64_t c) {
    const Mat34 pose = composed(load34(poses.data, c), v.adjustment_of(c), v.world);
    const LocalRay local = v.local(i, c);
    const Vec3 g = local_vjp(pose, local, load3(grad_directions.data, i));
    return lens_vjp(v.lens_of(c), xy.data[2 * i], xy.data[2 * i + 1], local, g);
  });
}

}  // namespace raymarch
