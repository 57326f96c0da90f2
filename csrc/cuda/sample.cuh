// Samples of one ray, by one warp: edges drawn from a histogram, midpoints, vectors in whole transactions.
#pragma once
#include "cuda/warp.cuh"
#include "math/contract.h"
#include "math/random.h"
#include "math/spacing.h"
#include "math/stepfun.h"

namespace raymarch {

__device__ __forceinline__ real midpoint(const real* t, int i) { return real(0.5) * (t[i] + t[i + 1]); }

// Calls body(spacing) with the spacing as a constant: one switch for all samples of a lane.
template <class Body>
__device__ __forceinline__ void with_spacing(int64_t spacing, const Body& body) {
  switch (spacing) {
    case kLinearDisparity:
      return body(std::integral_constant<int64_t, kLinearDisparity>{});
    case kSqrt:
      return body(std::integral_constant<int64_t, kSqrt>{});
    case kLog:
      return body(std::integral_constant<int64_t, kLog>{});
    case kPiecewise:
      return body(std::integral_constant<int64_t, kPiecewise>{});
    default:
      return body(std::integral_constant<int64_t, kUniform>{});
  }
}

// Even bins of one ray, moved by jitter, by one warp.
__device__ __forceinline__ void spaced_edges(int64_t ray, int edges, int64_t spacing, Interval ends,
                                             int64_t jitter, uint64_t key, real* s, real* t) {
  const int bins = edges - 1;
  const real shared = jitter == kPerRay ? uniform(key, uint64_t(ray)) : real(0);
  for (int j = lane(); j < edges; j += 32) {
    const real u = jitter == kPerEdge ? uniform(key, uint64_t(ray * edges + j)) : shared;
    const real place = jitter ? jittered_edge(j, bins, u) : real(j) / real(bins);
    s[j] = place;
    t[j] = t_from_s(spacing, ends, place);
  }
}

// Edges of one ray drawn from weights w between edges e, by one warp. `upto` has room for the cumulative sum,
// which every new edge searches. Its running maximum is taken, since sums of different grouping may round to
// a decrease.
__device__ __forceinline__ void drawn_edges(int64_t ray, const real* e, const real* w, int bins,
                                            real exponent, real padding, real* upto, int edges,
                                            int64_t spacing, Interval ends, int64_t jitter, uint64_t key,
                                            real* s, real* t) {
  real carry = real(0);
  for (int k = 0; k < bins; k += 32) {
    const int i = k + lane();
    const real weight = i < bins ? w[i] : real(0);
    const real whole = exponent == 1 ? padded(weight, padding) : annealed(weight, exponent, padding);
    const real mass = i < bins ? whole : real(0);
    const real sum = warp_inclusive_max(carry + warp_inclusive_sum(mass));
    if (i < bins) upto[i] = sum;
    carry = from_lane(sum, 31);
  }
  __syncwarp();

  const real missing = fmaxf(real(0), kLeastMass - carry), total = carry + missing,
             each = missing / real(bins);
  const auto mass_before = [&](int i) { return i > 0 ? upto[i - 1] + each * real(i) : real(0); };
  const real offset = jitter == kPerRay ? uniform(key, uint64_t(ray)) : real(0.5);
  for (int k = lane(); k < edges; k += 32) {
    const real jittered = jitter == kPerEdge ? uniform(key, uint64_t(ray * edges + k)) : offset;
    const real target = spread(k, edges, jittered) * total;
    int bin = 0, last = bins - 1;  // the first bin whose sum exceeds the target, or the last
    while (bin < last) {
      const int middle = (bin + last) / 2;
      if (mass_before(middle + 1) > target)
        last = middle;
      else
        bin = middle + 1;
    }
    const real place = invert_bin(target, mass_before(bin), mass_before(bin + 1), e[bin], e[bin + 1]);
    s[k] = place;
    t[k] = t_from_s(spacing, ends, place);
  }
}

// Vectors of up to 32 lanes to and from consecutive memory, by way of 96 numbers of shared memory, so that
// every transaction is whole. `live` lanes have one.
__device__ __forceinline__ void store3_warp(real* tile, real* to, int live, Vec3 v) {
  store3(tile, lane(), v);
  __syncwarp();
  for (int k = lane(); k < 3 * live; k += 32) to[k] = tile[k];
  __syncwarp();
}
__device__ __forceinline__ Vec3 load3_warp(real* tile, const real* from, int live) {
  for (int k = lane(); k < 3 * live; k += 32) tile[k] = from[k];
  __syncwarp();
  const Vec3 v = load3(tile, lane());
  __syncwarp();
  return v;
}
__device__ __forceinline__ int live_lanes(int samples, int from) {
  return samples - from < 32 ? samples - from : 32;
}

}  // namespace raymarch
