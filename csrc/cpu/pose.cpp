#include "math/pose.h"

#include "cpu/parallel.h"
#include "ops.h"

namespace raymarch {

void pose_forward(Cpu, In<real, kCameras, 6> xi, int64_t mode, bool clamped, Out<real, kCameras, 3, 4> pose) {
  require(mode >= 0 && mode < kPoseModes, "mode is 0 (SO3xR3) or 1 (SE3)");
  parallel_for(xi.size[0], 100, [&](int64_t i) {
    store34(pose.data, i, pose_exp(load_twist(xi.data, i), mode == kSe3, clamped));
  });
}

void pose_backward(Cpu, In<real, kCameras, 6> xi, int64_t mode, bool clamped,
                   In<real, kCameras, 3, 4> grad_pose, Out<real, kCameras, 6> grad_xi) {
  require(mode >= 0 && mode < kPoseModes, "mode is 0 (SO3xR3) or 1 (SE3)");
  parallel_for(xi.size[0], 200, [&](int64_t i) {
    const Twist g = pose_exp_vjp(load_twist(xi.data, i), load34(grad_pose.data, i), mode == kSe3, clamped);
    store3(grad_xi.data, 2 * i, g.rho);
    store3(grad_xi.data, 2 * i + 1, g.w);
  });
}

}  // namespace raymarch
