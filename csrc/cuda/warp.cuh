// Sums and scans over the 32 lanes of a warp. All lanes must take part.
#pragma once
#include "cuda/launch.cuh"

namespace raymarch {

__device__ __forceinline__ real warp_inclusive_sum(real v) {
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    const real up = __shfl_up_sync(~0u, v, d);
    if (lane() >= d) v += up;
  }
  return v;
}

__device__ __forceinline__ real warp_inclusive_product(real v) {
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    const real up = __shfl_up_sync(~0u, v, d);
    if (lane() >= d) v *= up;
  }
  return v;
}

// The sum over this lane and those after it.
__device__ __forceinline__ real warp_suffix_sum(real v) {
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    const real down = __shfl_down_sync(~0u, v, d);
    if (lane() + d < 32) v += down;
  }
  return v;
}

__device__ __forceinline__ real warp_inclusive_max(real v) {
#pragma unroll
  for (int d = 1; d < 32; d *= 2) v = fmaxf(v, __shfl_up_sync(~0u, v, d));  // low lanes meet themselves
  return v;
}

__device__ __forceinline__ real warp_sum(real v) {
#pragma unroll
  for (int d = 16; d > 0; d /= 2) v += __shfl_xor_sync(~0u, v, d);
  return v;
}

__device__ __forceinline__ real warp_max(real v) {
#pragma unroll
  for (int d = 16; d > 0; d /= 2) v = fmaxf(v, __shfl_xor_sync(~0u, v, d));
  return v;
}

__device__ __forceinline__ real from_lane(real v, int source) { return __shfl_sync(~0u, v, source); }

// The sum over the lanes before this one (after it), of a scan that includes it. Not the scan less the own
// value: that is NaN for infinities, and rounding noise where nothing should be left.
__device__ __forceinline__ real lanes_before(real inclusive) {
  const real up = __shfl_up_sync(~0u, inclusive, 1);
  return lane() == 0 ? real(0) : up;
}

__device__ __forceinline__ real lanes_after(real inclusive) {
  const real down = __shfl_down_sync(~0u, inclusive, 1);
  return lane() == 31 ? real(0) : down;
}

// Where the last 32 of a ray's samples begin, counted from its first: a walk from the back starts there.
__device__ __forceinline__ int64_t last_chunk(int64_t samples) { return (samples + 31) / 32 * 32 - 32; }

}  // namespace raymarch
