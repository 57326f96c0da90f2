#include "cuda/warp.cuh"
#include "math/contract.h"
#include "math/random.h"
#include "math/spacing.h"
#include "math/stepfun.h"
#include "ops.h"

namespace raymarch {

constexpr int kThreads = 256;

__device__ __forceinline__ real midpoint(In<real, kRays, kEdges> t, int64_t ray, int64_t i) {
  const real* edges = t.data + ray * t.size[1] + i;
  return real(0.5) * (edges[0] + edges[1]);
}

// One thread per edge.
__global__ void __launch_bounds__(kThreads)
    sample_spaced_kernel(In<real, kRays> near, In<real, kRays> far, Maybe<In<int64_t, 2>> counter,
                         Out<real, kRays, kEdges> s, Out<real, kRays, kEdges> t, int64_t spacing,
                         int64_t jitter, int64_t stream) {
  const int64_t i = item(), edges = s.size[1];
  if (i >= near.size[0] * edges) return;
  const int64_t ray = i / edges, j = i - ray * edges;
  const Interval warped = warped_interval(spacing, near.data[ray], far.data[ray]);
  real place = real(j) / real(edges - 1);
  if (jitter) {
    const uint64_t key = random_key(counter.data[0], counter.data[1], stream);
    place = jittered_edge(j, edges - 1, uniform(key, uint64_t(jitter == 2 ? i : ray)));
  }
  s.data[i] = place;
  t.data[i] = t_from_s(spacing, warped, place);
}

// One warp per ray. The warp's slice of shared memory holds the cumulative sum, which every new edge
// searches.
__global__ void __launch_bounds__(32 * kWarpsPerBlock)
    sample_pdf_kernel(In<real, kRays, kFineEdges> s, In<real, kRays, kFine> weights, In<real, kRays> near,
                      In<real, kRays> far, Maybe<In<int64_t, 2>> counter, Maybe<In<real, 1>> anneal,
                      Out<real, kRays, kEdges> s_new, Out<real, kRays, kEdges> t_new, int64_t spacing,
                      int64_t jitter, int64_t stream, real padding) {
  extern __shared__ real shared[];
  const int64_t ray = warp();
  const int bins = int(weights.size[1]);
  if (ray >= weights.size[0]) return;
  real* upto = shared + (threadIdx.x / 32) * bins;  // upto[i]: mass of bins 0 .. i
  const real exponent = anneal ? anneal.data[0] : real(1);
  real carry = 0;
  for (int k = 0; k < bins; k += 32) {
    const int i = k + lane();
    const real mass = i < bins ? annealed(weights.data[ray * bins + i], exponent, padding) : real(0);
    const real sum = carry + warp_inclusive_sum(mass);
    if (i < bins) upto[i] = sum;
    carry = from_lane(sum, 31);
  }
  __syncwarp();
  const real missing = fmaxf(real(0), kLeastMass - carry), total = carry + missing,
             each = missing / real(bins);
  const auto cdf = [&](int i) {
    return i < 0 ? real(0) : fminf(real(1), (upto[i] + each * real(i + 1)) / total);
  };
  const Interval warped = warped_interval(spacing, near.data[ray], far.data[ray]);
  const uint64_t key = jitter ? random_key(counter.data[0], counter.data[1], stream) : 0;
  const real offset = jitter == 1 ? uniform(key, uint64_t(ray)) : real(0.5);
  const int64_t edges = s_new.size[1];
  for (int64_t k = lane(); k < edges; k += 32) {
    const int64_t i = ray * edges + k;
    const real u = spread(k, edges, jitter == 2 ? uniform(key, uint64_t(i)) : offset);
    int low = 0, high = bins - 1;  // the first bin whose sum exceeds u, or the last
    while (low < high) {
      const int middle = (low + high) / 2;
      if (cdf(middle) > u)
        high = middle;
      else
        low = middle + 1;
    }
    const real* e = s.data + ray * (bins + 1) + low;
    const real place = invert_bin(u, cdf(low - 1), cdf(low), e[0], e[1]);
    s_new.data[i] = place;
    t_new.data[i] = t_from_s(spacing, warped, place);
  }
}

// One thread per sample.
__global__ void __launch_bounds__(kThreads)
    positions_forward_kernel(In<real, kRays, 3> origins, In<real, kRays, 3> directions,
                             In<real, kRays, kEdges> t, Out<real, kRays, kSamples, 3> x) {
  const int64_t i = item(), samples = x.size[1];
  if (i >= t.size[0] * samples) return;
  const int64_t ray = i / samples;
  store3(x.data, i,
         load3(origins.data, ray) + midpoint(t, ray, i - ray * samples) * load3(directions.data, ray));
}

__global__ void __launch_bounds__(kThreads)
    sample_unit_positions_forward_kernel(In<real, kRays, 3> origins, In<real, kRays, 3> directions,
                                         In<real, kRays, kEdges> t, Out<real, kRays, kSamples, 3> y,
                                         int64_t norm) {
  const int64_t i = item(), samples = y.size[1];
  if (i >= t.size[0] * samples) return;
  const int64_t ray = i / samples;
  const Vec3 x = load3(origins.data, ray) + midpoint(t, ray, i - ray * samples) * load3(directions.data, ray);
  store3(y.data, i, contract_unit(norm, x));
}

__device__ __forceinline__ Vec3 warp_sum(Vec3 v) { return {warp_sum(v.x), warp_sum(v.y), warp_sum(v.z)}; }

// One warp per ray, which sums over its samples.
__global__ void __launch_bounds__(32 * kWarpsPerBlock)
    positions_backward_kernel(In<real, kRays, kEdges> t, In<real, kRays, kSamples, 3> grad_x,
                              Out<real, kRays, 3> grad_origins, Out<real, kRays, 3> grad_directions) {
  const int64_t ray = warp(), samples = grad_x.size[1];
  if (ray >= t.size[0]) return;
  Vec3 to_o{0, 0, 0}, to_d{0, 0, 0};
  for (int64_t i = lane(); i < samples; i += 32) {
    const Vec3 g = load3(grad_x.data, ray * samples + i);
    to_o = to_o + g, to_d = to_d + midpoint(t, ray, i) * g;
  }
  to_o = warp_sum(to_o), to_d = warp_sum(to_d);
  if (lane() == 0) store3(grad_origins.data, ray, to_o), store3(grad_directions.data, ray, to_d);
}

__global__ void __launch_bounds__(32 * kWarpsPerBlock)
    sample_unit_positions_backward_kernel(In<real, kRays, 3> origins, In<real, kRays, 3> directions,
                                          In<real, kRays, kEdges> t, In<real, kRays, kSamples, 3> grad_y,
                                          Out<real, kRays, 3> grad_origins,
                                          Out<real, kRays, 3> grad_directions, int64_t norm) {
  const int64_t ray = warp(), samples = grad_y.size[1];
  if (ray >= t.size[0]) return;
  const Vec3 o = load3(origins.data, ray), d = load3(directions.data, ray);
  Vec3 to_o{0, 0, 0}, to_d{0, 0, 0};
  for (int64_t i = lane(); i < samples; i += 32) {
    const real middle = midpoint(t, ray, i);
    const Vec3 g = contract_unit_vjp(norm, o + middle * d, load3(grad_y.data, ray * samples + i));
    to_o = to_o + g, to_d = to_d + middle * g;
  }
  to_o = warp_sum(to_o), to_d = warp_sum(to_d);
  if (lane() == 0) store3(grad_origins.data, ray, to_o), store3(grad_directions.data, ray, to_d);
}

void sample_spaced(Cuda q, In<real, kRays> near, In<real, kRays> far, Maybe<In<int64_t, 2>> counter,
                   Out<real, kRays, kEdges> s, Out<real, kRays, kEdges> t, int64_t spacing, int64_t jitter,
                   int64_t stream) {
  require(!jitter || counter, "jitter needs a counter");
  require(s.size[1] >= 2, "needs at least one sample per ray");
  launch("sample_spaced", sample_spaced_kernel, blocks(s.size[0] * s.size[1], kThreads), kThreads, q, near,
         far, counter, s, t, spacing, jitter, stream);
}

void sample_pdf(Cuda q, In<real, kRays, kFineEdges> s, In<real, kRays, kFine> weights, In<real, kRays> near,
                In<real, kRays> far, Maybe<In<int64_t, 2>> counter, Maybe<In<real, 1>> anneal,
                Out<real, kRays, kEdges> s_new, Out<real, kRays, kEdges> t_new, int64_t spacing,
                int64_t jitter, int64_t stream, double padding) {
  require(!jitter || counter, "jitter needs a counter");
  require(s.size[1] == weights.size[1] + 1, "s must have one edge more than weights has samples");
  require(weights.size[1] >= 1 && s_new.size[1] >= 2, "needs at least one sample per ray");
  require(weights.size[1] <= 8192, "on CUDA a ray may have at most 8192 bins to draw from");
  launch_shared("sample_pdf", sample_pdf_kernel, blocks(s.size[0], kWarpsPerBlock), 32 * kWarpsPerBlock,
                size_t(kWarpsPerBlock) * size_t(weights.size[1]) * sizeof(real), q, s, weights, near, far,
                counter, anneal, s_new, t_new, spacing, jitter, stream, real(padding));
}

void positions_forward(Cuda q, In<real, kRays, 3> origins, In<real, kRays, 3> directions,
                       In<real, kRays, kEdges> t, Out<real, kRays, kSamples, 3> x) {
  require(t.size[1] == x.size[1] + 1, "t must have one edge more than there are samples");
  launch("positions_forward", positions_forward_kernel, blocks(x.size[0] * x.size[1], kThreads), kThreads, q,
         origins, directions, t, x);
}

void positions_backward(Cuda q, In<real, kRays, kEdges> t, In<real, kRays, kSamples, 3> grad_x,
                        Out<real, kRays, 3> grad_origins, Out<real, kRays, 3> grad_directions) {
  require(t.size[1] == grad_x.size[1] + 1, "t must have one edge more than there are samples");
  launch("positions_backward", positions_backward_kernel, blocks(t.size[0], kWarpsPerBlock),
         32 * kWarpsPerBlock, q, t, grad_x, grad_origins, grad_directions);
}

void sample_unit_positions_forward(Cuda q, In<real, kRays, 3> origins, In<real, kRays, 3> directions,
                                   In<real, kRays, kEdges> t, Out<real, kRays, kSamples, 3> y, int64_t norm) {
  require(t.size[1] == y.size[1] + 1, "t must have one edge more than there are samples");
  launch("sample_unit_positions_forward", sample_unit_positions_forward_kernel,
         blocks(y.size[0] * y.size[1], kThreads), kThreads, q, origins, directions, t, y, norm);
}

void sample_unit_positions_backward(Cuda q, In<real, kRays, 3> origins, In<real, kRays, 3> directions,
                                    In<real, kRays, kEdges> t, In<real, kRays, kSamples, 3> grad_y,
                                    Out<real, kRays, 3> grad_origins, Out<real, kRays, 3> grad_directions,
                                    int64_t norm) {
  require(t.size[1] == grad_y.size[1] + 1, "t must have one edge more than there are samples");
  launch("sample_unit_positions_backward", sample_unit_positions_backward_kernel,
         blocks(t.size[0], kWarpsPerBlock), 32 * kWarpsPerBlock, q, origins, directions, t, grad_y,
         grad_origins, grad_directions, norm);
}

}  // namespace raymarch
