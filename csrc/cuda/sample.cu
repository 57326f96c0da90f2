#include "cuda/fours.cuh"
#include "cuda/sample.cuh"
#include "ops.h"

namespace raymarch {

constexpr int kThreads = 32 * kWarpsPerBlock;
constexpr int64_t kMostBins =
    4096;  // of a cumulative sum in shared memory: 64 KB per block, which sm_80 up have

// One warp, or kLanes lanes of one, per ray, in every kernel of this file: what is known per ray is computed
// once per lane, and no thread divides to find its ray.

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

template <int kLanes, bool kInverse, class Rays>
__global__ void __launch_bounds__(kThreads)
    sample_distances_kernel(Rays rays, const real* from, const real* near, const real* far, real* to,
                            int64_t spacing) {
  const int64_t ray = item() / kLanes;
  if (ray >= rays.count) return;
  const auto row = rays.row(ray);
  with_spacing(spacing, [&](auto constant) {
    const Interval ends = warped_interval(constant, near[ray], far[ray]);
    for (int i = 4 * lane_in_group<kLanes>(); i < row.end; i += 4 * kLanes) {
      real v[4];
      load_four(from, row, i, v);
#pragma unroll
      for (int j = 0; j < 4; ++j)
        v[j] = kInverse ? s_from_t(constant, ends, v[j]) : t_from_s(constant, ends, v[j]);
      store_four(v, row, i, to);
    }
  });
}

// kNorm: how positions are contracted into the unit cube, or kNotAtAll.
constexpr int kNotAtAll = -1;

template <int kLanes, int kNorm, class Rays>
__global__ void __launch_bounds__(kThreads)
    positions_forward_kernel(Rays rays, const real* origins, const real* directions, const real* t, real* x) {
  const int64_t ray = item() / kLanes, mine = ray < rays.count ? ray : 0;
  const auto row = rays.row(ray);
  const Vec3 o = load3(origins, mine), d = load3(directions, mine);
  const real* edges = edges_of(rays, ray, t);
  const auto place = [&](int i, Vec3(&found)[4]) {
    real middle[4];
    middles(edges, row, i, middle);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const Vec3 at = o + middle[j] * d;
      found[j] = kNorm == kNotAtAll ? at : contract_unit(kNorm, at);
    }
  };
  Vec3 found[4];
  if constexpr (std::is_same_v<Rays, WholeRays>) {
    __shared__ __align__(16) real tiles[kThreads / kLanes][12 * kLanes];
    for (int base = 0; base < rays.samples; base += 4 * kLanes) {  // past the last ray, too: all must come
      place(base + 4 * lane_in_group<kLanes>(), found);
      store_fours<kLanes>(found, row, base, tiles[threadIdx.x / kLanes], x);
    }
  } else {
    for (int i = 4 * lane_in_group<kLanes>(); i < row.end; i += 4 * kLanes) {
      place(i, found);
      store_four(found, row, i, x);
    }
  }
}

template <int kLanes, int kNorm, class Rays>
__global__ void __launch_bounds__(kThreads)
    positions_backward_kernel(Rays rays, const real* origins, const real* directions, const real* t,
                              const real* grad_x, real* grad_origins, real* grad_directions) {
  const int64_t ray = item() / kLanes;
  const auto row = rays.row(ray);
  const bool live = ray < rays.count;
  const int64_t mine = live ? ray : 0;
  const real* edges = edges_of(rays, ray, t);
  Vec3 o{0, 0, 0}, d{0, 0, 0}, to_o{0, 0, 0}, to_d{0, 0, 0};
  if (kNorm != kNotAtAll) o = load3(origins, mine), d = load3(directions, mine);
  for (int i = 4 * lane_in_group<kLanes>(); i < row.end; i += 4 * kLanes) {
    real middle[4];
    Vec3 g[4];
    load_four(grad_x, row, i, g);
    middles(edges, row, i, middle);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (!row.holds(i + j)) continue;
      const Vec3 h = kNorm == kNotAtAll ? g[j] : contract_unit_vjp(kNorm, o + middle[j] * d, g[j]);
      to_o = to_o + h, to_d = to_d + middle[j] * h;
    }
  }

  to_o = warp_sum<kLanes>(to_o), to_d = warp_sum<kLanes>(to_d);
  if (live && lane_in_group<kLanes>() == 0)
    store3(grad_origins, ray, to_o), store3(grad_directions, ray, to_d);
}

namespace {

void require_sampling(int64_t spacing, int64_t jitter, bool has_counter) {
  require(spacing >= 0 && spacing < kSpacings, "spacing is not a known one");
  require(jitter >= 0 && jitter < kJitters, "jitter is not a known one");
  require(jitter == kNoJitter || has_counter, "jitter needs a counter");
}

// Calls body(norm) with the norm as a constant.
template <class Body>
void with_norm(int64_t norm, const Body& body) {
  if (norm == kLinf)
    body(std::integral_constant<int, kLinf>{});
  else
    body(std::integral_constant<int, kL2>{});
}

template <class Norm>
void start_forward(const char* name, Cuda q, In<real, kRays, 3> origins, In<real, kRays, 3> directions,
                   In<real, kRays, kEdges> t, Out<real, kRays, kSamples, 3> x, Norm norm) {
  require(t.size[1] == x.size[1] + 1, "t must have one edge more than there are samples");
  with_rays(x.size[0], x.size[1], {x.data}, [&](auto rays, auto lanes) {
    launch(name, positions_forward_kernel<lanes, norm, decltype(rays)>, blocks(rays.count, kThreads / lanes),
           kThreads, q, rays, origins.data, directions.data, t.data, x.data);
  });
}

template <class Norm>
void start_backward(const char* name, Cuda q, const real* origins, const real* directions,
                    In<real, kRays, kEdges> t, In<real, kRays, kSamples, 3> grad_x,
                    Out<real, kRays, 3> grad_origins, Out<real, kRays, 3> grad_directions, Norm norm) {
  require(t.size[1] == grad_x.size[1] + 1, "t must have one edge more than there are samples");
  with_rays(t.size[0], grad_x.size[1], {grad_x.data}, [&](auto rays, auto lanes) {
    launch(name, positions_backward_kernel<lanes, norm, decltype(rays)>, blocks(rays.count, kThreads / lanes),
           kThreads, q, rays, origins, directions, t.data, grad_x.data, grad_origins.data,
           grad_directions.data);
  });
}

}  // namespace

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
  with_rays(from.size[0], from.size[1], {from.data, to.data}, [&](auto rays, auto lanes) {
    const auto kernel = inverse ? sample_distances_kernel<lanes, true, decltype(rays)>
                                : sample_distances_kernel<lanes, false, decltype(rays)>;
    launch("sample_distances", kernel, blocks(rays.count, kThreads / lanes), kThreads, q, rays, from.data,
           near.data, far.data, to.data, spacing);
  });
}

void positions_forward(Cuda q, In<real, kRays, 3> origins, In<real, kRays, 3> directions,
                       In<real, kRays, kEdges> t, Out<real, kRays, kSamples, 3> x) {
  start_forward("positions_forward", q, origins, directions, t, x, std::integral_constant<int, kNotAtAll>{});
}

void positions_backward(Cuda q, In<real, kRays, kEdges> t, In<real, kRays, kSamples, 3> grad_x,
                        Out<real, kRays, 3> grad_origins, Out<real, kRays, 3> grad_directions) {
  start_backward("positions_backward", q, nullptr, nullptr, t, grad_x, grad_origins, grad_directions,
                 std::integral_constant<int, kNotAtAll>{});
}

void sample_unit_positions_forward(Cuda q, In<real, kRays, 3> origins, In<real, kRays, 3> directions,
                                   In<real, kRays, kEdges> t, Out<real, kRays, kSamples, 3> y, int64_t norm) {
  with_norm(norm, [&](auto constant) {
    start_forward("sample_unit_positions_forward", q, origins, directions, t, y, constant);
  });
}

void sample_unit_positions_backward(Cuda q, In<real, kRays, 3> origins, In<real, kRays, 3> directions,
                                    In<real, kRays, kEdges> t, In<real, kRays, kSamples, 3> grad_y,
                                    Out<real, kRays, 3> grad_origins, Out<real, kRays, 3> grad_directions,
                                    int64_t norm) {
  with_norm(norm, [&](auto constant) {
    start_backward("sample_unit_positions_backward", q, origins.data, directions.data, t, grad_y,
                   grad_origins, grad_directions, constant);
  });
}

}  // namespace raymarch
