#include "cuda/warp.cuh"
#include "math/transmittance.h"
#include "ops.h"

namespace raymarch {

constexpr int kThreads = 32 * kWarpsPerBlock;

// The samples of one ray, back to back in memory: rays of one length, or packed by offsets.
struct EqualRays {
  int64_t samples;
  __device__ int64_t begin(int64_t ray) const { return ray * samples; }
};
// Nobody has looked at the offsets, which would mean waiting for the device: hold them within the arrays.
struct PackedRays {
  const int64_t* offsets;
  int64_t samples;
  __device__ int64_t begin(int64_t ray) const { return min(max(offsets[ray], int64_t{0}), samples); }
};

// One warp per ray; the prefix sum of tau is a warp scan with a carry.
template <class Rays>
__global__ void __launch_bounds__(kThreads)
    weights_forward_kernel(int64_t count, Rays rays, const real* sigma, const real* delta, real* w) {
  const int64_t ray = warp();
  if (ray >= count) return;
  const int64_t begin = rays.begin(ray), end = rays.begin(ray + 1);
  real carry = 0;
  for (int64_t k = begin; k < end; k += 32) {
    const int64_t i = k + lane();
    const bool live = i < end;
    const real tau = live ? sigma[i] * delta[i] : real(0);
    const real upto = warp_inclusive_sum(tau), before = lanes_before(upto);
    if (live) w[i] = weight(carry + before, tau);
    carry += from_lane(upto, 31);
  }
}

__device__ __forceinline__ void store_factors(int64_t i, const real* sigma, const real* delta, real grad_tau,
                                              real* grad_sigma, real* grad_delta) {
  if (grad_sigma) grad_sigma[i] = factor_vjp(delta[i], grad_tau);
  if (grad_delta) grad_delta[i] = factor_vjp(sigma[i], grad_tau);
}

// One warp per ray, first to the back, leaving what passes each interval in an output (a lane reads only what
// it wrote), then to the front with a scan over what lies behind. A total less what was passed would not do:
// hidden samples would get its rounding noise for a gradient, and Adam makes full steps of noise.
template <class Rays>
__global__ void __launch_bounds__(kThreads)
    weights_backward_kernel(int64_t count, Rays rays, const real* sigma, const real* delta, const real* w,
                            const real* grad_w, real* grad_sigma, real* grad_delta) {
  const int64_t ray = warp();
  if (ray >= count) return;
  const int64_t begin = rays.begin(ray), end = rays.begin(ray + 1);
  real* through = grad_sigma ? grad_sigma : grad_delta;
  real front = 0, behind = 0;
  for (int64_t k = begin; k < end; k += 32) {
    const int64_t i = k + lane();
    const real upto = front + warp_inclusive_sum(i < end ? sigma[i] * delta[i] : real(0));
    if (i < end) through[i] = passing(upto);
    front = from_lane(upto, 31);
  }
  for (int64_t k = begin + last_chunk(end - begin); k >= begin; k -= 32) {
    const int64_t i = k + lane();
    const bool live = i < end;
    const real g = live ? grad_w[i] : real(0);
    const real onwards = warp_suffix_sum(live ? g * w[i] : real(0)), after = lanes_after(onwards);
    if (live) {
      const real grad_tau = weight_vjp(through[i], g, behind + after);
      store_factors(i, sigma, delta, grad_tau, grad_sigma, grad_delta);
    }
    behind += from_lane(onwards, 0);
  }
}

// One warp per ray.
__global__ void __launch_bounds__(kThreads)
    transmittance_forward_kernel(int64_t count, PackedRays rays, const real* sigma, const real* delta,
                                 real* front) {
  const int64_t ray = warp();
  if (ray >= count) return;
  const int64_t begin = rays.begin(ray), end = rays.begin(ray + 1);
  real carry = 0;
  for (int64_t k = begin; k < end; k += 32) {
    const int64_t i = k + lane();
    const real upto = warp_inclusive_sum(i < end ? sigma[i] * delta[i] : real(0)),
               before = lanes_before(upto);
    if (i < end) front[i] = transmitted(carry + before);
    carry += from_lane(upto, 31);
  }
}

__global__ void __launch_bounds__(kThreads)
    transmittance_backward_kernel(int64_t count, PackedRays rays, const real* sigma, const real* delta,
                                  const real* front, const real* grad_front, real* grad_sigma,
                                  real* grad_delta) {
  const int64_t ray = warp();
  if (ray >= count) return;
  const int64_t begin = rays.begin(ray), end = rays.begin(ray + 1);
  real behind = 0;
  for (int64_t k = begin + last_chunk(end - begin); k >= begin; k -= 32) {
    const int64_t i = k + lane();
    const real onwards = warp_suffix_sum(i < end ? grad_front[i] * front[i] : real(0));
    const real after = lanes_after(onwards);
    if (i < end) store_factors(i, sigma, delta, -(behind + after), grad_sigma, grad_delta);
    behind += from_lane(onwards, 0);
  }
}

// One warp per ray. What is left after each opacity is a product scan with a carry.
__global__ void __launch_bounds__(kThreads)
    weights_from_alpha_forward_kernel(In<real, kRays, kSamples> alpha, Out<real, kRays, kSamples> w,
                                      Out<real, kRays, kEdges> front, real epsilon) {
  const int64_t ray = warp();
  const int samples = int(alpha.size[1]);
  if (ray >= alpha.size[0]) return;
  const real* of_ray = alpha.data + ray * samples;
  real* to_w = w.data + ray * samples;
  real* to_front = front.data + ray * (samples + 1);
  real carry = 1;
  for (int k = 0; k < samples; k += 32) {
    const int i = k + lane();
    const real a = i < samples ? of_ray[i] : real(0);
    const real upto = warp_inclusive_product(i < samples ? 1 - a + epsilon : real(1));
    const real up = __shfl_up_sync(~0u, upto, 1);
    const real before = carry * (lane() == 0 ? real(1) : up);
    if (i < samples) to_front[i] = before, to_w[i] = a * before;
    carry *= from_lane(upto, 31);
  }
  if (lane() == 0) to_front[samples] = carry;
}

// One warp per ray, from the back. The gradient in front of an interval is, of the one behind it, an offset
// and a factor; such pairs compose, so they are scanned too.
__global__ void __launch_bounds__(kThreads)
    weights_from_alpha_backward_kernel(In<real, kRays, kSamples> alpha, In<real, kRays, kEdges> front,
                                       Maybe<In<real, kRays, kSamples>> grad_w,
                                       Maybe<In<real, kRays, kEdges>> grad_front,
                                       Out<real, kRays, kSamples> grad_alpha, real epsilon) {
  const int64_t ray = warp();
  const int samples = int(alpha.size[1]);
  if (ray >= alpha.size[0]) return;
  const int64_t first = ray * samples, edge = ray * (samples + 1);
  real carry = grad_front ? grad_front.data[edge + samples] : real(0);
  for (int k = int(last_chunk(samples)); k >= 0; k -= 32) {
    const int i = k + lane();
    const bool live = i < samples;
    const real a = live ? alpha.data[first + i] : real(0);
    const real g = live && grad_w ? grad_w.data[first + i] : real(0);
    real none = 0;  // what alpha_vjp makes of no gradient behind is the offset
    if (live) alpha_vjp(a, 0, epsilon, g, grad_front ? grad_front.data[edge + i] : real(0), none);
    real offset = none, factor = live ? 1 - a + epsilon : real(1);
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
      const real next_offset = __shfl_down_sync(~0u, offset, d),
                 next_factor = __shfl_down_sync(~0u, factor, d);
      if (lane() + d < 32) offset += factor * next_offset, factor *= next_factor;
    }
    const real in_front = offset + factor * carry, down = __shfl_down_sync(~0u, in_front, 1);
    if (live) {
      real after = lane() == 31 ? carry : down;
      grad_alpha.data[first + i] = alpha_vjp(a, front.data[edge + i], epsilon, g, 0, after);
    }
    carry = from_lane(in_front, 0);
  }
}

void weights_forward(Cuda q, In<real, kRays, kSamples> sigma, In<real, kRays, kSamples> delta,
                     Out<real, kRays, kSamples> w) {
  launch("weights_forward", weights_forward_kernel<EqualRays>, blocks(w.size[0], kWarpsPerBlock), kThreads, q,
         w.size[0], EqualRays{w.size[1]}, sigma.data, delta.data, w.data);
}

void weights_backward(Cuda q, In<real, kRays, kSamples> sigma, In<real, kRays, kSamples> delta,
                      In<real, kRays, kSamples> w, In<real, kRays, kSamples> grad_w,
                      Maybe<Out<real, kRays, kSamples>> grad_sigma,
                      Maybe<Out<real, kRays, kSamples>> grad_delta) {
  if (!grad_sigma && !grad_delta) return;
  launch("weights_backward", weights_backward_kernel<EqualRays>, blocks(w.size[0], kWarpsPerBlock), kThreads,
         q, w.size[0], EqualRays{w.size[1]}, sigma.data, delta.data, w.data, grad_w.data, grad_sigma.data,
         grad_delta.data);
}

void weights_packed_forward(Cuda q, In<real, kSamples> sigma, In<real, kSamples> delta,
                            In<int64_t, kEdges> offsets, Out<real, kSamples> w) {
  require(offsets.size[0] >= 1, "offsets must have one number more than there are rays");
  const int64_t rays = offsets.size[0] - 1;
  launch("weights_packed_forward", weights_forward_kernel<PackedRays>, blocks(rays, kWarpsPerBlock), kThreads,
         q, rays, PackedRays{offsets.data, sigma.size[0]}, sigma.data, delta.data, w.data);
}

void weights_packed_backward(Cuda q, In<real, kSamples> sigma, In<real, kSamples> delta,
                             In<int64_t, kEdges> offsets, In<real, kSamples> w, In<real, kSamples> grad_w,
                             Maybe<Out<real, kSamples>> grad_sigma, Maybe<Out<real, kSamples>> grad_delta) {
  require(offsets.size[0] >= 1, "offsets must have one number more than there are rays");
  if (!grad_sigma && !grad_delta) return;
  const int64_t rays = offsets.size[0] - 1;
  launch("weights_packed_backward", weights_backward_kernel<PackedRays>, blocks(rays, kWarpsPerBlock),
         kThreads, q, rays, PackedRays{offsets.data, sigma.size[0]}, sigma.data, delta.data, w.data,
         grad_w.data, grad_sigma.data, grad_delta.data);
}

void transmittance_forward(Cuda q, In<real, kSamples> sigma, In<real, kSamples> delta,
                           In<int64_t, kEdges> offsets, Out<real, kSamples> front) {
  require(offsets.size[0] >= 1, "offsets must have one number more than there are rays");
  const int64_t rays = offsets.size[0] - 1;
  launch("transmittance_forward", transmittance_forward_kernel, blocks(rays, kWarpsPerBlock), kThreads, q,
         rays, PackedRays{offsets.data, sigma.size[0]}, sigma.data, delta.data, front.data);
}

void transmittance_backward(Cuda q, In<real, kSamples> sigma, In<real, kSamples> delta,
                            In<int64_t, kEdges> offsets, In<real, kSamples> front,
                            In<real, kSamples> grad_front, Maybe<Out<real, kSamples>> grad_sigma,
                            Maybe<Out<real, kSamples>> grad_delta) {
  const int64_t rays = offsets.size[0] - 1;
  launch("transmittance_backward", transmittance_backward_kernel, blocks(rays, kWarpsPerBlock), kThreads, q,
         rays, PackedRays{offsets.data, sigma.size[0]}, sigma.data, delta.data, front.data, grad_front.data,
         grad_sigma.data, grad_delta.data);
}

void weights_from_alpha_forward(Cuda q, In<real, kRays, kSamples> alpha, Out<real, kRays, kSamples> w,
                                Out<real, kRays, kEdges> front, double epsilon) {
  require(front.size[1] == alpha.size[1] + 1, "transmittance must have one edge more than alpha has samples");
  launch("weights_from_alpha_forward", weights_from_alpha_forward_kernel,
         blocks(alpha.size[0], kWarpsPerBlock), kThreads, q, alpha, w, front, real(epsilon));
}

void weights_from_alpha_backward(Cuda q, In<real, kRays, kSamples> alpha, In<real, kRays, kEdges> front,
                                 Maybe<In<real, kRays, kSamples>> grad_w,
                                 Maybe<In<real, kRays, kEdges>> grad_front,
                                 Out<real, kRays, kSamples> grad_alpha, double epsilon) {
  launch("weights_from_alpha_backward", weights_from_alpha_backward_kernel,
         blocks(alpha.size[0], kWarpsPerBlock), kThreads, q, alpha, front, grad_w, grad_front, grad_alpha,
         real(epsilon));
}

}  // namespace raymarch
