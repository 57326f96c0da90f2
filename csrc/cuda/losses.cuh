// What losses along a ray have in common: searches among edges, and distortion's walks.
#pragma once
#include "cuda/warp.cuh"
#include "math/losses.h"

namespace raymarch {

// The first index in 0 .. count - 1 at which the increasing `edges` exceed x (or reach it), or count.
__device__ __forceinline__ int first_above(const real* edges, int count, real x, bool or_equal) {
  int low = 0, high = count;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (edges[middle] > x || (or_equal && edges[middle] == x))
      high = middle;
    else
      low = middle + 1;
  }
  return low;
}

// The weights of all proposal bins that touch the fine bin a .. b: from the last that begins by a to the
// first that ends beyond b. The sum is as short as the fine bin is narrow, and loses no digits.
__device__ __forceinline__ real bound_of(const real* s_proposal, const real* w_proposal, int bins, real a,
                                         real b) {
  int k = first_above(s_proposal + 1, bins - 1, a, false);
  real bound = w_proposal[k];
  while (k < bins - 1 && s_proposal[k + 1] <= b) bound += w_proposal[++k];
  return bound;
}

// The gradient of one ray's proposal weights, by one warp, g being that of each fine bin's term. `q` has room
// for the derivative by each fine bin's bound; each proposal bin then gathers those of the fine bins that
// touch it. Nothing is scattered, so the sum has one order.
__device__ __forceinline__ void interlevel_to_weights(const real* e, const real* w, int fine,
                                                      const real* e_proposal, const real* w_proposal,
                                                      int bins, real g, real* q, real* grad_w_proposal) {
  for (int i = lane(); i < fine; i += 32)
    q[i] = interlevel_vjp(w[i], bound_of(e_proposal, w_proposal, bins, e[i], e[i + 1]), g);
  __syncwarp();
  for (int k = lane(); k < bins; k += 32) {
    // Fine bins touch bin k from the first that ends at its start or later, until one begins at its end.
    int i = k == 0 ? 0 : first_above(e + 1, fine, e_proposal[k], true);
    real sum = 0;
    for (; i < fine && (k == bins - 1 || e[i] < e_proposal[k + 1]); ++i) sum += q[i];
    grad_w_proposal[k] = sum;
  }
}

// distortion's `before` of math/losses.h, 32 bins at a time, from the front of a ray or from its back.
struct Spread {
  const real* e;
  int n;
  bool backwards;
  real mass = 0, before = 0;  // of the bins already passed; `before` is that of the last of them

  // For the bin at place k of the walk (k from 0, in steps of 32 per lane); places beyond n - 1 add nothing.
  __device__ __forceinline__ real next(int k, real w) {
    const int i = backwards ? n - 1 - k : k;
    const int first = backwards ? i : i - 1;  // the gap to the bin before is between the middles of two bins
    const real gap = k > 0 && k < n ? real(0.5) * (e[first + 2] - e[first]) : real(0);
    const real upto = mass + warp_inclusive_sum(w);
    const real reached = before + warp_inclusive_sum(gap * (upto - w));
    mass = from_lane(upto, 31), before = from_lane(reached, 31);
    return reached;
  }
};

}  // namespace raymarch
