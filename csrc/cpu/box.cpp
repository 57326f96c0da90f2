#include "math/box.h"

#include "cpu/parallel.h"
#include "ops.h"

namespace raymarch {

void near_far(Cpu, In<real, kRays, 3> origins, In<real, kRays, 3> directions, In<real, 2, 3> box,
              Maybe<In<real, 3, 4>> placement, Out<real, kRays> near, Out<real, kRays> far) {
  const Vec3 low = load3(box.data, 0), high = load3(box.data, 1);
  parallel_for(origins.size[0], 20, [&](int64_t i) {
    const Vec3 o = load3(origins.data, i), d = load3(directions.data, i);
    const Span s =
        placement ? ray_placed_box(o, d, low, high, load34(placement.data, 0)) : ray_box(o, d, low, high);
    near.data[i] = s.near;
    far.data[i] = s.far;
  });
}

}  // namespace raymarch
