// Sums and scans over groups of kLanes lanes, a power of two, of a warp. All lanes of the warp must take
// part.
#pragma once
#include "cuda/launch.cuh"
#include "math/vec.h"

namespace raymarch {

template <int kLanes = 32>
__device__ __forceinline__ int lane_in_group() {
  return threadIdx.x % kLanes;
}

template <int kLanes = 32>
__device__ __forceinline__ real warp_inclusive_sum(real v) {
#pragma unroll
  for (int d = 1; d < kLanes; d *= 2) {
    const real up = __shfl_up_sync(~0u, v, d, kLanes);
    if (lane_in_group<kLanes>() >= d) v += up;
  }
  return v;
}

template <int kLanes = 32>
__device__ __forceinline__ real warp_inclusive_product(real v) {
#pragma unroll
  for (int d = 1; d < kLanes; d *= 2) {
    const real up = __shfl_up_sync(~0u, v, d, kLanes);
    if (lane_in_group<kLanes>() >= d) v *= up;
  }
  return v;
}

// The sum over this lane and those after it.
template <int kLanes = 32>
__device__ __forceinline__ real warp_suffix_sum(real v) {
#pragma unroll
  for (int d = 1; d < kLanes; d *= 2) {
    const real down = __shfl_down_sync(~0u, v, d, kLanes);
    if (lane_in_group<kLanes>() + d < kLanes) v += down;
  }
  return v;
}

template <int kLanes = 32>
__device__ __forceinline__ real warp_inclusive_max(real v) {
#pragma unroll
  for (int d = 1; d < kLanes; d *= 2)
    v = fmaxf(v, __shfl_up_sync(~0u, v, d, kLanes));  // low lanes meet themselves
  return v;
}

template <int kLanes = 32>
__device__ __forceinline__ real warp_sum(real v) {
#pragma unroll
  for (int d = kLanes / 2; d > 0; d /= 2) v += __shfl_xor_sync(~0u, v, d);
  return v;
}

template <int kLanes = 32>
__device__ __forceinline__ Vec3 warp_sum(Vec3 v) {
  return {warp_sum<kLanes>(v.x), warp_sum<kLanes>(v.y), warp_sum<kLanes>(v.z)};
}

__device__ __forceinline__ real warp_max(real v) {
#pragma unroll
  for (int d = 16; d > 0; d /= 2) v = fmaxf(v, __shfl_xor_sync(~0u, v, d));
  return v;
}

template <int kLanes = 32>
__device__ __forceinline__ real from_lane(real v, int source) {
  return __shfl_sync(~0u, v, source, kLanes);
}

// The sum over the lanes before this one (after it), of a scan that includes it. Not the scan less the own
// value: that is NaN for infinities, and rounding noise where nothing should be left.
template <int kLanes = 32>
__device__ __forceinline__ real lanes_before(real inclusive) {
  const real up = __shfl_up_sync(~0u, inclusive, 1, kLanes);
  return lane_in_group<kLanes>() == 0 ? real(0) : up;
}

template <int kLanes = 32>
__device__ __forceinline__ real lanes_after(real inclusive) {
  const real down = __shfl_down_sync(~0u, inclusive, 1, kLanes);
  return lane_in_group<kLanes>() == kLanes - 1 ? real(0) : down;
}

// Where the last 32 of a ray's samples begin, counted from its first: a walk from the back starts there.
__device__ __forceinline__ int64_t last_chunk(int64_t samples) { return (samples + 31) / 32 * 32 - 32; }

}  // namespace raymarch
