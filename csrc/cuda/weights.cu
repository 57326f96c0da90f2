#include "cuda/fours.cuh"
#include "math/transmittance.h"
#include "ops.h"

namespace raymarch {

constexpr int kThreads = 32 * kWarpsPerBlock;
constexpr int kPackedLanes = 16;  // lanes of a packed ray, whatever its length

// Rays packed by offsets. Nobody has looked at the offsets, which would mean waiting for the device: hold
// them within the arrays.
struct PackedRays {
  const int64_t* offsets;
  int64_t count, samples;
  bool vectors;
  __device__ __forceinline__ int64_t edge(int64_t ray) const {
    return min(max(offsets[min(ray, count)], int64_t{0}), samples);
  }
  __device__ __forceinline__ AnyRow row(int64_t ray) const {
    const int64_t begin = edge(ray), end = edge(ray + 1);
    return {begin, max(begin, end), samples, vectors};
  }
};

// What lies in front of a lane's four samples: the thickness of each is `tau`, of all before them `front`.
template <int kLanes>
struct Thickness {
  real sigma[4], delta[4], tau[4], front;

  // Moves `carry` behind the pass.
  template <class Row>
  __device__ __forceinline__ Thickness(const real* all_sigma, const real* all_delta, const Row& row, int i,
                                       real& carry) {
    load_four(all_sigma, row, i, sigma);
    load_four(all_delta, row, i, delta);
    real sum = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      tau[j] = row.holds(i + j) ? sigma[j] * delta[j] : real(0);
      sum += tau[j];
    }
    const real upto = warp_inclusive_sum<kLanes>(sum);
    front = carry + lanes_before<kLanes>(upto);
    carry += from_lane<kLanes>(upto, kLanes - 1);
  }
};

// kLanes lanes per ray; the prefix sum of tau is a scan over lanes with a carry. Writes weights, or what is
// left of the light in front of each sample.
template <int kLanes, bool kFront, class Rays>
__global__ void __launch_bounds__(kThreads)
    weights_forward_kernel(Rays rays, const real* sigma, const real* delta, real* out) {
  const auto row = rays.row(item() / kLanes);
  const int count = passes<kLanes>(row);
  real carry = 0;
  for (int pass = 0; pass < count; ++pass) {
    const int i = 4 * (pass * kLanes + lane_in_group<kLanes>());
    const Thickness<kLanes> at(sigma, delta, row, i, carry);
    real front = at.front, found[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      found[j] = kFront ? transmitted(front) : weight(front, at.tau[j]);
      front += at.tau[j];
    }
    store_four(found, row, i, out);
  }
}

template <class Row>
__device__ __forceinline__ void store_factors(const Row& row, int i, const real (&sigma)[4],
                                              const real (&delta)[4], const real (&grad_tau)[4],
                                              real* grad_sigma, real* grad_delta) {
  real to_sigma[4], to_delta[4];
#pragma unroll
  for (int j = 0; j < 4; ++j)
    to_sigma[j] = factor_vjp(delta[j], grad_tau[j]), to_delta[j] = factor_vjp(sigma[j], grad_tau[j]);
  if (grad_sigma) store_four(to_sigma, row, i, grad_sigma);
  if (grad_delta) store_four(to_delta, row, i, grad_delta);
}

// The sum of `values` over the samples behind each of a lane's four; moves `carry` in front of the pass.
template <int kLanes>
__device__ __forceinline__ void sums_behind(const real (&values)[4], real& carry, real (&behind)[4]) {
  const real onwards = warp_suffix_sum<kLanes>((values[3] + values[2]) + (values[1] + values[0]));
  behind[3] = carry + lanes_after<kLanes>(onwards);
#pragma unroll
  for (int j = 2; j >= 0; --j) behind[j] = behind[j + 1] + values[j + 1];
  carry += from_lane<kLanes>(onwards, 0);
}

// kLanes lanes per ray, first to the back, then to the front with a scan over what lies behind. The last pass
// to the back is the first to the front and stays in registers; others leave what passes each interval in an
// output (a lane reads only what it wrote). A total less what was passed would not do: hidden samples would
// get its rounding noise for a gradient, and Adam makes full steps of noise.
template <int kLanes, class Rays>
__global__ void __launch_bounds__(kThreads)
    weights_backward_kernel(Rays rays, const real* sigma, const real* delta, const real* w,
                            const real* grad_w, real* grad_sigma, real* grad_delta) {
  const auto row = rays.row(item() / kLanes);
  const int mine = 4 * lane_in_group<kLanes>(), last = 4 * kLanes * (passes<kLanes>(row) - 1);
  real* kept = grad_sigma ? grad_sigma : grad_delta;
  real g[4], of_ray[4], front = 0, behind = 0;
  load_four(grad_w, row, last + mine, g);
  load_four(w, row, last + mine, of_ray);
  for (int k = 0; k <= last; k += 4 * kLanes) {
    Thickness<kLanes> at(sigma, delta, row, k + mine, front);
    real through[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) through[j] = passing(at.front += at.tau[j]);
    if (k < last) {
      store_four(through, row, k + mine, kept);
      continue;
    }
    for (int back = last;;) {
      real seen[4], after[4], grad_tau[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) seen[j] = row.holds(back + mine + j) ? g[j] * of_ray[j] : real(0);
      sums_behind<kLanes>(seen, behind, after);
#pragma unroll
      for (int j = 0; j < 4; ++j) grad_tau[j] = weight_vjp(through[j], g[j], after[j]);
      store_factors(row, back + mine, at.sigma, at.delta, grad_tau, grad_sigma, grad_delta);
      if (back == 0) break;
      back -= 4 * kLanes;
      load_four(grad_w, row, back + mine, g);
      load_four(w, row, back + mine, of_ray);
      load_four(sigma, row, back + mine, at.sigma);
      load_four(delta, row, back + mine, at.delta);
      load_four(kept, row, back + mine, through);
    }
  }
}

template <int kLanes>
__global__ void __launch_bounds__(kThreads)
    transmittance_backward_kernel(PackedRays rays, const real* sigma, const real* delta, const real* front,
                                  const real* grad_front, real* grad_sigma, real* grad_delta) {
  const auto row = rays.row(item() / kLanes);
  real carry = 0;
  for (int pass = passes<kLanes>(row) - 1; pass >= 0; --pass) {
    const int i = 4 * (pass * kLanes + lane_in_group<kLanes>());
    real g[4], before[4], s[4], d[4], seen[4], behind[4];
    load_four(grad_front, row, i, g);
    load_four(front, row, i, before);
    load_four(sigma, row, i, s);
    load_four(delta, row, i, d);
#pragma unroll
    for (int j = 0; j < 4; ++j) seen[j] = row.holds(i + j) ? g[j] * before[j] : real(0);
    sums_behind<kLanes>(seen, carry, behind);
#pragma unroll
    for (int j = 0; j < 4; ++j) behind[j] = -behind[j];
    store_factors(row, i, s, d, behind, grad_sigma, grad_delta);
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

namespace {

PackedRays packed(In<int64_t, kEdges> offsets, int64_t samples, std::initializer_list<const void*> arrays) {
  require(offsets.size[0] >= 1, "offsets must have one number more than there are rays");
  bool vectors = true;
  for (const void* array : arrays) vectors = vectors && aligned(array, 16);
  return {offsets.data, offsets.size[0] - 1, samples, vectors};
}

}  // namespace

void weights_forward(Cuda q, In<real, kRays, kSamples> sigma, In<real, kRays, kSamples> delta,
                     Out<real, kRays, kSamples> w) {
  with_rays(w.size[0], w.size[1], {sigma.data, delta.data, w.data}, [&](auto rays, auto lanes) {
    launch("weights_forward", weights_forward_kernel<lanes, false, decltype(rays)>,
           blocks(rays.count, kThreads / lanes), kThreads, q, rays, sigma.data, delta.data, w.data);
  });
}

void weights_backward(Cuda q, In<real, kRays, kSamples> sigma, In<real, kRays, kSamples> delta,
                      In<real, kRays, kSamples> w, In<real, kRays, kSamples> grad_w,
                      Maybe<Out<real, kRays, kSamples>> grad_sigma,
                      Maybe<Out<real, kRays, kSamples>> grad_delta) {
  if (!grad_sigma && !grad_delta) return;
  with_rays(w.size[0], w.size[1],
            {sigma.data, delta.data, w.data, grad_w.data, grad_sigma.data, grad_delta.data},
            [&](auto rays, auto lanes) {
              launch("weights_backward", weights_backward_kernel<lanes, decltype(rays)>,
                     blocks(rays.count, kThreads / lanes), kThreads, q, rays, sigma.data, delta.data, w.data,
                     grad_w.data, grad_sigma.data, grad_delta.data);
            });
}

void weights_packed_forward(Cuda q, In<real, kSamples> sigma, In<real, kSamples> delta,
                            In<int64_t, kEdges> offsets, Out<real, kSamples> w) {
  const PackedRays rays = packed(offsets, w.size[0], {sigma.data, delta.data, w.data});
  launch("weights_packed_forward", weights_forward_kernel<kPackedLanes, false, PackedRays>,
         blocks(rays.count, kThreads / kPackedLanes), kThreads, q, rays, sigma.data, delta.data, w.data);
}

void weights_packed_backward(Cuda q, In<real, kSamples> sigma, In<real, kSamples> delta,
                             In<int64_t, kEdges> offsets, In<real, kSamples> w, In<real, kSamples> grad_w,
                             Maybe<Out<real, kSamples>> grad_sigma, Maybe<Out<real, kSamples>> grad_delta) {
  if (!grad_sigma && !grad_delta) return;
  const PackedRays rays = packed(
      offsets, w.size[0], {sigma.data, delta.data, w.data, grad_w.data, grad_sigma.data, grad_delta.data});
  launch("weights_packed_backward", weights_backward_kernel<kPackedLanes, PackedRays>,
         blocks(rays.count, kThreads / kPackedLanes), kThreads, q, rays, sigma.data, delta.data, w.data,
         grad_w.data, grad_sigma.data, grad_delta.data);
}

void transmittance_forward(Cuda q, In<real, kSamples> sigma, In<real, kSamples> delta,
                           In<int64_t, kEdges> offsets, Out<real, kSamples> front) {
  const PackedRays rays = packed(offsets, front.size[0], {sigma.data, delta.data, front.data});
  launch("transmittance_forward", weights_forward_kernel<kPackedLanes, true, PackedRays>,
         blocks(rays.count, kThreads / kPackedLanes), kThreads, q, rays, sigma.data, delta.data, front.data);
}

void transmittance_backward(Cuda q, In<real, kSamples> sigma, In<real, kSamples> delta,
                            In<int64_t, kEdges> offsets, In<real, kSamples> front,
                            In<real, kSamples> grad_front, Maybe<Out<real, kSamples>> grad_sigma,
                            Maybe<Out<real, kSamples>> grad_delta) {
  const PackedRays rays =
      packed(offsets, front.size[0],
             {sigma.data, delta.data, front.data, grad_front.data, grad_sigma.data, grad_delta.data});
  launch("transmittance_backward", transmittance_backward_kernel<kPackedLanes>,
         blocks(rays.count, kThreads / kPackedLanes), kThreads, q, rays, sigma.data, delta.data, front.data,
         grad_front.data, grad_sigma.data, grad_delta.data);
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
