// Where a pixel looks, and the ray there.
#pragma once
#include "array.h"
#include "cuda/launch.cuh"
#include "math/camera.h"

namespace raymarch {

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
};

__device__ __forceinline__ Lens lens_of(const Views& v, int64_t c) {
  const real* i = v.intrinsics.data + 4 * c;
  Lens l = {i[0], i[1], i[2], i[3], {}, v.lens.data[c], v.half_eyes};
#pragma unroll
  for (int k = 0; k < 12; ++k) l.k[k] = v.distortion.data[12 * c + k];
  return l;
}

__device__ __forceinline__ Mat34 adjustment_of(const Views& v, int64_t c) {
  return v.adjustment ? load34(v.adjustment.data, c) : identity34();
}

__device__ __forceinline__ bool has_camera(const Views& v, int64_t c) {
  return c >= 0 && c < v.poses.size[0];
}

// A ray of a camera that does not exist is NaN: the host cannot look without waiting.
struct Seen {
  WorldRay ray;
  real area;
  bool converged;
};
__device__ __forceinline__ Seen look(const Views& v, int64_t i) {
  const int64_t c = v.camera.data[i];
  LocalRay local = {{NAN, NAN, NAN}, {NAN, NAN, NAN}, {0, 0}, false};
  Mat34 pose = identity34();
  real solid = NAN;
  if (has_camera(v, c)) {
    const Lens l = lens_of(v, c);
    const real x = v.xy.data[2 * i], y = v.xy.data[2 * i + 1];
    local = local_ray(l, x, y, {0, 0});
    solid = pixel_area(l, x, y, local);
    pose = load34(v.poses.data, c);
    if (v.adjustment) pose = composed(pose, load34(v.adjustment.data, c), v.world);
  }
  return {world_ray(pose, local), solid, local.converged};
}

}  // namespace raymarch
