#include "cuda/warp.cuh"
#include "math/transmittance.h"
#include "ops.h"

namespace raymarch {

// One warp per ray; the prefix sum of tau is a warp scan with a carry.
__global__ void __launch_bounds__(32 * kWarpsPerBlock)
    weights_forward_kernel(In<real, kRays, kSamples> sigma, In<real, kRays, kSamples> delta,
                           Out<real, kRays, kSamples> w) {
  const int64_t ray = warp(), n = sigma.size[1];
  if (ray >= sigma.size[0]) return;
  real carry = real(0);
  for (int64_t k = 0; k < n; k += 32) {
    const int64_t i = ray * n + k + lane();
    const bool live = k + lane() < n;
    const real tau = live ? sigma.data[i] * delta.data[i] : real(0);
    const real upto = warp_inclusive_sum(tau);
    if (live) w.data[i] = weight(carry + upto - tau, tau);
    carry += __shfl_sync(~0u, upto, 31);
  }
}

__global__ void __launch_bounds__(32 * kWarpsPerBlock)
    weights_backward_kernel(In<real, kRays, kSamples> sigma, In<real, kRays, kSamples> delta,
                            In<real, kRays, kSamples> w, In<real, kRays, kSamples> grad_w,
                            Out<real, kRays, kSamples> grad_sigma) {
  const int64_t ray = warp(), n = sigma.size[1];
  if (ray >= sigma.size[0]) return;
  real total = real(0), carry = real(0);
  for (int64_t k = lane(); k < n; k += 32) total += grad_w.data[ray * n + k] * w.data[ray * n + k];
  real behind = warp_sum(total);
  for (int64_t k = 0; k < n; k += 32) {
    const int64_t i = ray * n + k + lane();
    const bool live = k + lane() < n;
    const real tau = live ? sigma.data[i] * delta.data[i] : real(0);
    const real gw = live ? grad_w.data[i] * w.data[i] : real(0);
    const real upto = warp_inclusive_sum(tau), seen = warp_inclusive_sum(gw);
    if (live)
      grad_sigma.data[i] = delta.data[i] * weight_vjp(carry + upto - tau, tau, grad_w.data[i], behind - seen);
    carry += __shfl_sync(~0u, upto, 31);
    behind -= __shfl_sync(~0u, seen, 31);
  }
}

void weights_forward(Cuda q, In<real, kRays, kSamples> sigma, In<real, kRays, kSamples> delta,
                     Out<real, kRays, kSamples> w) {
  launch("weights_forward", weights_forward_kernel, blocks(sigma.size[0], kWarpsPerBlock),
         32 * kWarpsPerBlock, q, sigma, delta, w);
}

void weights_backward(Cuda q, In<real, kRays, kSamples> sigma, In<real, kRays, kSamples> delta,
                      In<real, kRays, kSamples> w, In<real, kRays, kSamples> grad_w,
                      Out<real, kRays, kSamples> grad_sigma) {
  launch("weights_backward", weights_backward_kernel, blocks(sigma.size[0], kWarpsPerBlock),
         32 * kWarpsPerBlock, q, sigma, delta, w, grad_w, grad_sigma);
}

}  // namespace raymarch
