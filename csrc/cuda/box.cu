#include "cuda/launch.cuh"
#include "math/box.h"
#include "ops.h"

namespace raymarch {

// One thread per ray; the box is the same for all, so its loads are broadcasts.
__global__ void __launch_bounds__(256)
    near_far_kernel(In<real, kRays, 3> origins, In<real, kRays, 3> directions, In<real, 2, 3> box,
                    Maybe<In<real, 3, 4>> placement, Out<real, kRays> near, Out<real, kRays> far) {
  const int64_t i = item();
  if (i >= origins.size[0]) return;
  const Vec3 o = load3(origins.data, i), d = load3(directions.data, i);
  const Vec3 low = load3(box.data, 0), high = load3(box.data, 1);
  const Span s =
      placement ? ray_placed_box(o, d, low, high, load34(placement.data, 0)) : ray_box(o, d, low, high);
  near.data[i] = s.near;
  far.data[i] = s.far;
}

void near_far(Cuda q, In<real, kRays, 3> origins, In<real, kRays, 3> directions, In<real, 2, 3> box,
              Maybe<In<real, 3, 4>> placement, Out<real, kRays> near, Out<real, kRays> far) {
  launch("near_far", near_far_kernel, blocks(origins.size[0], 256), 256, q, origins, directions, box,
         placement, near, far);
}

}  // namespace raymarch
