#include "cuda/sample.cuh"
#include "ops.h"

namespace raymarch {

constexpr int kThreads = 32 * kWarpsPerBlock;
constexpr int64_t kMostBins =
    4096;  // of a cumulative sum in shared memory: 64 KB per block, which sm_80 up have

// One warp per ray, in every kernel of this file: what is known per ray is computed once per lane, and no
// thread divides to find its ray.

__global__ void __launch_bounds__(kThreads)
    sample_spaced_kernel(In<real, kRays> near, In<real, kRays> far, Maybe<In<int64_t, 2>> counter,
                         Out<real, kRays, kEdges> s, Out<real, kRays, kEdges> t, int64_t spacing,
                         int64_t jitter, int64_t stream) {
  const int64_t ray = warp();
  const int edges = int(s.size[1]);
  if (ray >= near.size[0]) return;

  const Interval ends = warped_interval(spacing, near.data[ray], far.data[ray]);
  const uint64_t key = jitter ? random_key(counter.data[0], counter.data[1], stream) : 0;
  spaced_edges(ray, edges, spacing, ends, jitter, key, s.data + ray * edges, t.data + ray * edges);
}

// The warp's part of shared memory holds the cumulative sum.
__global__ void __launch_bounds__(kThreads)
    sample_pdf_kernel(In<real, kRays, kFineEdges> s, In<real, kRays, kFine> weights, In<real, kRays> near,
                      In<real, kRays> far, Maybe<In<int64_t, 2>> counter, Maybe<In<real, 1>> anneal,
                      Out<real, kRays, kEdges> s_new, Out<real, kRays, kEdges> t_new, int64_t spacing,
                      int64_t jitter, int64_t stream, real padding) {
  RM_SHARED(real, shared);
  const int64_t ray = warp();
  const int bins = int(weights.size[1]), edges = int(s_new.size[1]);
  if (ray >= weights.size[0]) return;

  real* upto = shared + (threadIdx.x / 32) * bins;  // upto[i]: mass of bins 0 .. i
  const real* w = weights.data + ray * bins;
  const real exponent = anneal ? anneal.data[0] : real(1);
  const Interval ends = warped_interval(spacing, near.data[ray], far.data[ray]);
  const uint64_t key = jitter ? random_key(counter.data[0], counter.data[1], stream) : 0;
  drawn_edges(ray, s.data + ray * (bins + 1), w, bins, exponent, padding, upto, edges, spacing, ends, jitter,
              key, s_new.data + ray * edges, t_new.data + ray * edges);
}

__global__ void __launch_bounds__(kThreads)
    sample_distances_kernel(In<real, kRays, kEdges> from, In<real, kRays> near, In<real, kRays> far,
                            Out<real, kRays, kEdges> to, int64_t spacing, bool inverse) {
  const int64_t ray = warp(), edges = from.size[1];
  if (ray >= from.size[0]) return;
  const Interval ends = warped_interval(spacing, near.data[ray], far.data[ray]);
  for (int64_t i = ray * edges + lane(); i < (ray + 1) * edges; i += 32)
    to.data[i] = inverse ? s_from_t(spacing, ends, from.data[i]) : t_from_s(spacing, ends, from.data[i]);
}

__global__ void __launch_bounds__(kThreads)
    positions_forward_kernel(In<real, kRays, 3> origins, In<real, kRays, 3> directions,
                             In<real, kRays, kEdges> t, Out<real, kRays, kSamples, 3> x) {
  __shared__ real tiles[kWarpsPerBlock][96];
  real* tile = tiles[threadIdx.x / 32];
  const int64_t ray = warp();
  const int samples = int(x.size[1]);
  if (ray >= t.size[0]) return;

  const Vec3 o = load3(origins.data, ray), d = load3(directions.data, ray);
  const real* edges = t.data + ray * t.size[1];
  for (int k = 0; k < samples; k += 32) {
    const int live = live_lanes(samples, k), i = k + (lane() < live ? lane() : 0);
    store3_warp(tile, x.data + 3 * (ray * samples + k), live, o + midpoint(edges, i) * d);
  }
}

__global__ void __launch_bounds__(kThreads)
    sample_unit_positions_forward_kernel(In<real, kRays, 3> origins, In<real, kRays, 3> directions,
                                         In<real, kRays, kEdges> t, Out<real, kRays, kSamples, 3> y,
                                         int64_t norm) {
  __shared__ real tiles[kWarpsPerBlock][96];
  real* tile = tiles[threadIdx.x / 32];
  const int64_t ray = warp();
  const int samples = int(y.size[1]);
  if (ray >= t.size[0]) return;

  const Vec3 o = load3(origins.data, ray), d = load3(directions.data, ray);
  const real* edges = t.data + ray * t.size[1];
  for (int k = 0; k < samples; k += 32) {
    const int live = live_lanes(samples, k), i = k + (lane() < live ? lane() : 0);
    store3_warp(tile, y.data + 3 * (ray * samples + k), live,
                contract_unit(norm, o + midpoint(edges, i) * d));
  }
}

__global__ void __launch_bounds__(kThreads)
    positions_backward_kernel(In<real, kRays, kEdges> t, In<real, kRays, kSamples, 3> grad_x,
                              Out<real, kRays, 3> grad_origins, Out<real, kRays, 3> grad_directions) {
  __shared__ real tiles[kWarpsPerBlock][96];
  real* tile = tiles[threadIdx.x / 32];
  const int64_t ray = warp();
  const int samples = int(grad_x.size[1]);
  if (ray >= t.size[0]) return;

  const real* edges = t.data + ray * t.size[1];
  Vec3 to_o{0, 0, 0}, to_d{0, 0, 0};
  for (int k = 0; k < samples; k += 32) {
    const int live = live_lanes(samples, k);
    const Vec3 g = load3_warp(tile, grad_x.data + 3 * (ray * samples + k), live);
    if (lane() < live) to_o = to_o + g, to_d = to_d + midpoint(edges, k + lane()) * g;
  }

  to_o = warp_sum(to_o), to_d = warp_sum(to_d);
  if (lane() == 0) store3(grad_origins.data, ray, to_o), store3(grad_directions.data, ray, to_d);
}

__global__ void __launch_bounds__(kThreads)
    sample_unit_positions_backward_kernel(In<real, kRays, 3> origins, In<real, kRays, 3> directions,
                                          In<real, kRays, kEdges> t, In<real, kRays, kSamples, 3> grad_y,
                                          Out<real, kRays, 3> grad_origins,
                                          Out<real, kRays, 3> grad_directions, int64_t norm) {
  __shared__ real tiles[kWarpsPerBlock][96];
  real* tile = tiles[threadIdx.x / 32];
  const int64_t ray = warp();
  const int samples = int(grad_y.size[1]);
  if (ray >= t.size[0]) return;

  const Vec3 o = load3(origins.data, ray), d = load3(directions.data, ray);
  const real* edges = t.data + ray * t.size[1];
  Vec3 to_o{0, 0, 0}, to_d{0, 0, 0};
  for (int k = 0; k < samples; k += 32) {
    const int live = live_lanes(samples, k);
    const Vec3 g = load3_warp(tile, grad_y.data + 3 * (ray * samples + k), live);
    if (lane() < live) {
      const real middle = midpoint(edges, k + lane());
      const Vec3 h = contract_unit_vjp(norm, o + middle * d, g);
      to_o = to_o + h, to_d = to_d + middle * h;
    }
  }

  to_o = warp_sum(to_o), to_d = warp_sum(to_d);
  if (lane() == 0) store3(grad_origins.data, ray, to_o), store3(grad_directions.data, ray, to_d);
}

static void require_sampling(int64_t spacing, int64_t jitter, bool has_counter) {
  require(spacing >= 0 && spacing < kSpacings, "spacing is not a known one");
  require(jitter >= 0 && jitter < kJitters, "jitter is not a known one");
  require(jitter == kNoJitter || has_counter, "jitter needs a counter");
}

void sample_spaced(Cuda q, In<real, kRays> near, In<real, kRays> far, Maybe<In<int64_t, 2>> counter,
                   Out<real, kRays, kEdges> s, Out<real, kRays, kEdges> t, int64_t spacing, int64_t jitter,
                   int64_t stream) {
  require_sampling(spacing, jitter, bool(counter));
  require(s.size[1] >= 2, "needs at least one sample per ray");
  launch("sample_spaced", sample_spaced_kernel, blocks(s.size[0], kWarpsPerBlock), kThreads, q, near, far,
         counter, s, t, spacing, jitter, stream);
}

void sample_pdf(Cuda q, In<real, kRays, kFineEdges> s, In<real, kRays, kFine> weights, In<real, kRays> near,
                In<real, kRays> far, Maybe<In<int64_t, 2>> counter, Maybe<In<real, 1>> anneal,
                Out<real, kRays, kEdges> s_new, Out<real, kRays, kEdges> t_new, int64_t spacing,
                int64_t jitter, int64_t stream, double padding) {
  require_sampling(spacing, jitter, bool(counter));
  require(s.size[1] == weights.size[1] + 1, "s must have one edge more than weights has samples");
  require(weights.size[1] >= 1 && s_new.size[1] >= 2, "needs at least one sample per ray");
  require(weights.size[1] <= kMostBins, "on CUDA a ray may have at most 4096 bins to draw from");
  launch_shared("sample_pdf", sample_pdf_kernel, blocks(s.size[0], kWarpsPerBlock), kThreads,
                size_t(kWarpsPerBlock) * size_t(weights.size[1]) * sizeof(real), q, s, weights, near, far,
                counter, anneal, s_new, t_new, spacing, jitter, stream, real(padding));
}

void sample_distances(Cuda q, In<real, kRays, kEdges> from, In<real, kRays> near, In<real, kRays> far,
                      Out<real, kRays, kEdges> to, int64_t spacing, bool inverse) {
  require_sampling(spacing, kNoJitter, false);
  launch("sample_distances", sample_distances_kernel, blocks(from.size[0], kWarpsPerBlock), kThreads, q, from,
         near, far, to, spacing, inverse);
}

void positions_forward(Cuda q, In<real, kRays, 3> origins, In<real, kRays, 3> directions,
                       In<real, kRays, kEdges> t, Out<real, kRays, kSamples, 3> x) {
  require(t.size[1] == x.size[1] + 1, "t must have one edge more than there are samples");
  launch("positions_forward", positions_forward_kernel, blocks(x.size[0], kWarpsPerBlock), kThreads, q,
         origins, directions, t, x);
}

void positions_backward(Cuda q, In<real, kRays, kEdges> t, In<real, kRays, kSamples, 3> grad_x,
                        Out<real, kRays, 3> grad_origins, Out<real, kRays, 3> grad_directions) {
  require(t.size[1] == grad_x.size[1] + 1, "t must have one edge more than there are samples");
  launch("positions_backward", positions_backward_kernel, blocks(t.size[0], kWarpsPerBlock), kThreads, q, t,
         grad_x, grad_origins, grad_directions);
}

void sample_unit_positions_forward(Cuda q, In<real, kRays, 3> origins, In<real, kRays, 3> directions,
                                   In<real, kRays, kEdges> t, Out<real, kRays, kSamples, 3> y, int64_t norm) {
  require(t.size[1] == y.size[1] + 1, "t must have one edge more than there are samples");
  launch("sample_unit_positions_forward", sample_unit_positions_forward_kernel,
         blocks(t.size[0], kWarpsPerBlock), kThreads, q, origins, directions, t, y, norm);
}

void sample_unit_positions_backward(Cuda q, In<real, kRays, 3> origins, In<real, kRays, 3> directions,
                                    In<real, kRays, kEdges> t, In<real, kRays, kSamples, 3> grad_y,
                                    Out<real, kRays, 3> grad_origins, Out<real, kRays, 3> grad_directions,
                                    int64_t norm) {
  require(t.size[1] == grad_y.size[1] + 1, "t must have one edge more than there are samples");
  launch("sample_unit_positions_backward", sample_unit_positions_backward_kernel,
         blocks(t.size[0], kWarpsPerBlock), kThreads, q, origins, directions, t, grad_y, grad_origins,
         grad_directions, norm);
}

}  // namespace raymarch
