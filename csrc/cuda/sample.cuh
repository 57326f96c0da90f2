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

// a / b for whole numbers below 2^24, given 1 / b: rounded as a division, without its special cases.
__device__ __forceinline__ real quotient(real a, real b, real inverse) {
  const real q = a * inverse;
  return fmaf(fmaf(-q, b, a), inverse, q);
}

// Even bins of one ray, moved by jitter, by one warp.
__device__ __forceinline__ void spaced_edges(int64_t ray, int edges, int64_t spacing, Interval ends,
                                             int64_t jitter, uint64_t key, real* s, real* t) {
  const int bins = edges - 1;
  const real shared = jitter == kPerRay ? uniform(key, uint64_t(ray)) : real(0), inverse = 1 / real(bins);
  with_spacing(spacing, [&](auto constant) {
#pragma unroll 2
    for (int j = lane(); j < edges; j += 32) {
      real place = quotient(real(j), real(bins), inverse);
      if (jitter) {
        const real u = jitter == kPerEdge ? uniform(key, uint64_t(ray * edges + j)) : shared;
        place = jittered_edge(j, bins, u);
      }
      s[j] = place;
      t[j] = t_from_s(constant, ends, place);
    }
  });
}

// The cumulative sum of masses of one ray's bins, by one warp, four bins to a lane; returns the whole mass,
// kLeastMass at least. Running maxima are taken, since sums of different grouping may round to a decrease.
__device__ __forceinline__ real cumulative_mass(const real* w, int bins, real exponent, real padding,
                                                real* upto) {
  const auto whole = [](const real* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; };
  const bool fours = bins % 4 == 0 && whole(w) && whole(upto);
  real carry = real(0);
  for (int k = 0; k < bins; k += 128) {
    const int i = k + 4 * lane();
    real sums[4] = {0, 0, 0, 0};
    if (fours && i < bins) {
      const float4 v = *reinterpret_cast<const float4*>(w + i);
      sums[0] = v.x, sums[1] = v.y, sums[2] = v.z, sums[3] = v.w;
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j) sums[j] = i + j < bins ? w[i + j] : real(0);
    }
    real sum = real(0);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const real mass = exponent == 1 ? padded(sums[j], padding) : annealed(sums[j], exponent, padding);
      sums[j] = sum += i + j < bins ? mass : real(0);
    }
    const real before = carry + lanes_before(warp_inclusive_sum(sum)),
               most = warp_inclusive_max(before + sum);
    const real up = __shfl_up_sync(~0u, most, 1), least = lane() == 0 ? carry : fmaxf(carry, up);
#pragma unroll
    for (int j = 0; j < 4; ++j) sums[j] = fmaxf(before + sums[j], least);
    if (fours && i < bins) {
      *reinterpret_cast<float4*>(upto + i) = make_float4(sums[0], sums[1], sums[2], sums[3]);
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j)
        if (i + j < bins) upto[i + j] = sums[j];
    }
    carry = fmaxf(carry, from_lane(most, 31));
  }

  const real missing = kLeastMass - carry;
  if (missing > 0) {
    const real each = missing / real(bins);
    for (int i = 4 * lane(); i < bins; i += 128)
      for (int j = i; j < min(i + 4, bins); ++j) upto[j] += each * real(j + 1);
    carry += missing;
  }
  __syncwarp();
  return carry;
}

// Edges of one ray drawn from a histogram between edges e, by one warp: each searches the cumulative sum.
__device__ __forceinline__ void drawn_edges(int64_t ray, const real* e, real total, int bins,
                                            const real* upto, int edges, int64_t spacing, Interval ends,
                                            int64_t jitter, uint64_t key, real* s, real* t) {
  const real offset = jitter == kPerRay ? uniform(key, uint64_t(ray)) : real(0.5);
  const int widest = bins > 1 ? 1 << (31 - __clz(bins - 1)) : 0;
#pragma unroll 2
  for (int k = lane(); k < edges; k += 32) {
    const real jittered = jitter == kPerEdge ? uniform(key, uint64_t(ray * edges + k)) : offset;
    const real target = spread(k, edges, jittered) * total;
    int bin = 0;  // the first bin whose sum exceeds the target, or the last
    for (int step = widest; step > 0; step /= 2) {
      const int next = bin + step;
      if (next < bins && !(upto[next - 1] > target)) bin = next;
    }
    const real place = invert_bin(target, bin > 0 ? upto[bin - 1] : real(0), upto[bin], e[bin], e[bin + 1]);
    s[k] = place;
    t[k] = t_from_s(spacing, ends, place);
  }
}

// The same from weights w. `upto` has room for the cumulative sum.
__device__ __forceinline__ void drawn_edges(int64_t ray, const real* e, const real* w, int bins,
                                            real exponent, real padding, real* upto, int edges,
                                            int64_t spacing, Interval ends, int64_t jitter, uint64_t key,
                                            real* s, real* t) {
  const real total = cumulative_mass(w, bins, exponent, padding, upto);
  drawn_edges(ray, e, total, bins, upto, edges, spacing, ends, jitter, key, s, t);
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
