#include "cuda/vector.cuh"
#include "math/pose.h"
#include "ops.h"

namespace raymarch {

// One thread per camera: there are few, so these kernels are all latency.
__global__ void __launch_bounds__(64) pose_forward_kernel(In<real, kCameras, 6> xi, bool se3, bool clamped,
                                                          bool by_four, Out<real, kCameras, 3, 4> pose) {
  const int64_t i = item();
  if (i >= xi.size[0]) return;
  const Mat34 found = pose_exp(load_twist(xi.data, i), se3, clamped);
  if (by_four)
    store_vector(found.m, pose.data + 12 * i);
  else
    store34(pose.data, i, found);
}

__global__ void __launch_bounds__(64)
    pose_backward_kernel(In<real, kCameras, 6> xi, bool se3, bool clamped, In<real, kCameras, 3, 4> grad_pose,
                         Out<real, kCameras, 6> grad_xi) {
  const int64_t i = item();
  if (i >= xi.size[0]) return;
  const Twist g = pose_exp_vjp(load_twist(xi.data, i), load34(grad_pose.data, i), se3, clamped);
  store3(grad_xi.data, 2 * i, g.rho);
  store3(grad_xi.data, 2 * i + 1, g.w);
}

void pose_forward(Cuda q, In<real, kCameras, 6> xi, int64_t mode, bool clamped,
                  Out<real, kCameras, 3, 4> pose) {
  require(mode >= 0 && mode < kPoseModes, "mode is 0 (SO3xR3) or 1 (SE3)");
  launch("pose_forward", pose_forward_kernel, blocks(xi.size[0], 64), 64, q, xi, mode == kSe3, clamped,
         aligned(pose.data, 16), pose);
}

void pose_backward(Cuda q, In<real, kCameras, 6> xi, int64_t mode, bool clamped,
                   In<real, kCameras, 3, 4> grad_pose, Out<real, kCameras, 6> grad_xi) {
  require(mode >= 0 && mode < kPoseModes, "mode is 0 (SO3xR3) or 1 (SE3)");
  launch("pose_backward", pose_backward_kernel, blocks(xi.size[0], 64), 64, q, xi, mode == kSe3, clamped,
         grad_pose, grad_xi);
}

}  // namespace raymarch
