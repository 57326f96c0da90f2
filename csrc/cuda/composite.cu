// Two kernels each way. For the heads of one or three numbers kLanes lanes take a ray, four samples each. For
// the feature head a warp takes a ray, its lanes channels; forward, a feature wider than a warp's vectors is
// shared between warps, each with its slice of the channels.
#include <algorithm>
#include <initializer_list>

#include "cuda/fours.cuh"
#include "math/composite.h"
#include "ops.h"

namespace raymarch {

constexpr int kThreads = 32 * kWarpsPerBlock;
constexpr int kInFlight = 4;  // feature loads a lane has under way

using Weights = In<real, kRays, kSamples>;
using Edges = In<real, kRays, kEdges>;
using Heads = Maybe<In<real, kRays, kSamples, 3>>;
using GradHeads = Maybe<Out<real, kRays, kSamples, 3>>;
using PerRay = Maybe<In<real, kRays, 3>>;
using RayOut = Maybe<Out<real, kRays, 3>>;
using RayFeature = Maybe<In<real, kRays, kChannels>>;

// kVector numbers that one load or store moves.
template <class T, int kVector>
struct alignas(sizeof(T) * kVector) Pack {
  T v[kVector];
};

// kVector reals, in loads of up to four.
template <int kVector>
__device__ __forceinline__ void load_reals(const real* from, real (&to)[kVector]) {
  constexpr int kWide = kVector % 4 ? 1 : 4;
#pragma unroll
  for (int v = 0; v < kVector; v += kWide) {
    const auto pack = *reinterpret_cast<const Pack<real, kWide>*>(from + v);
#pragma unroll
    for (int k = 0; k < kWide; ++k) to[v + k] = pack.v[k];
  }
}

struct Backdrop {
  int64_t kind;
  const real* colour;
  __device__ Vec3 behind(Vec3 last) const {
    return kind == kColour       ? load3(colour, 0)
           : kind == kLastSample ? last
           : kind == kWhite      ? Vec3{1, 1, 1}
                                 : Vec3{0, 0, 0};
  }
};

__device__ __forceinline__ Vec3 colour_at(const real* rgb, int64_t i, bool clean) {
  return clean ? finite_colour(load3(rgb, i)) : load3(rgb, i);
}

// What kLanes lanes know of their ray. Past the last ray there are no samples, and the first ray's numbers.
template <int kLanes, class Rays>
struct Ray {
  decltype(std::declval<Rays>().row(0)) row;
  int64_t number, begin;  // of the ray, and of its first sample
  int samples;
  bool live;
  const real *weights, *edges;

  __device__ __forceinline__ Ray(const Rays& rays, const real* w, const real* t)
      : row(rays.row(item() / kLanes)),
        number(item() / kLanes < rays.count ? item() / kLanes : 0),
        begin(number * rays.samples),
        samples(rays.samples),
        live(item() / kLanes < rays.count),
        weights(w),
        edges(edges_of(rays, item() / kLanes, t)) {}
  __device__ __forceinline__ real middle(int i) const { return real(0.5) * (edges[i] + edges[i + 1]); }
  __device__ __forceinline__ bool writes() const { return live && lane_in_group<kLanes>() == 0; }

  // Calls body(i, w) for the four samples of a lane after another, w being 0 where there is none.
  template <class Body>
  __device__ __forceinline__ void over_samples(const Body& body) const {
    for (int i = 4 * lane_in_group<kLanes>(); i < row.end; i += 4 * kLanes) {
      real w[4];
      load_four(weights, row, i, w);
#pragma unroll
      for (int j = 0; j < 4; ++j) w[j] = row.holds(i + j) ? w[j] : real(0);
      body(i, w);
    }
  }

  // The sum of `values` under the weights; every lane gets it.
  __device__ __forceinline__ Vec3 sum(const real* values, bool clean = false) const {
    Vec3 total{0, 0, 0};
    over_samples([&](int i, const real(&w)[4]) { add(total, w, values, i, clean); });
    return warp_sum<kLanes>(total);
  }
  __device__ __forceinline__ void add(Vec3& total, const real (&w)[4], const real* values, int i,
                                      bool clean = false) const {
    Vec3 v[4];
    load_four(values, row, i, v);
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (row.holds(i + j)) total = total + w[j] * (clean ? finite_colour(v[j]) : v[j]);
  }
};

// The colour of a ray before clamping, from the sum over its samples.
template <class Ray>
__device__ __forceinline__ Vec3 filled(const Ray& r, const real* rgb, const Backdrop& backdrop, Vec3 seen,
                                       real opacity, bool clean) {
  if (backdrop.kind == kNoBackground) return seen;
  return seen + (1 - opacity) * backdrop.behind(colour_at(rgb, r.begin + r.samples - 1, clean));
}

template <int kLanes, class Rays>
__global__ void __launch_bounds__(kThreads)
    composite_forward_kernel(Rays rays, const real* weights, const real* t, Heads rgb, Heads normals,
                             Heads predicted, Backdrop backdrop, bool clean, RayOut rgb_out, real* opacity,
                             real* depth, real* expected, RayOut normals_out, RayOut predicted_out) {
  const Ray<kLanes, Rays> r(rays, weights, t);
  const int count = passes<kLanes>(r.row), nowhere = 1 << 30;
  real upto = 0, moment = 0;
  Vec3 colour{0, 0, 0}, normal{0, 0, 0}, other{0, 0, 0};
  int median = nowhere;  // the first sample by which half is seen
  for (int pass = 0; pass < count; ++pass) {
    const int i = 4 * (pass * kLanes + lane_in_group<kLanes>());
    real w[4], middle[4];
    load_four(weights, r.row, i, w);
    middles(r.edges, r.row, i, middle);
#pragma unroll
    for (int j = 0; j < 4; ++j) w[j] = r.row.holds(i + j) ? w[j] : real(0);
    if (rgb_out) r.add(colour, w, rgb.data, i, clean);
    if (normals_out) r.add(normal, w, normals.data, i);
    if (predicted_out) r.add(other, w, predicted.data, i);
    const real sums = warp_inclusive_sum<kLanes>((w[0] + w[1]) + (w[2] + w[3]));
    real sum = upto + lanes_before<kLanes>(sums);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      sum += w[j];
      if (!r.row.holds(i + j)) continue;
      moment += w[j] * middle[j];
      if (sum >= real(0.5)) median = min(median, i + j - r.row.begin);
    }
    upto += from_lane<kLanes>(sums, kLanes - 1);
  }
  moment = warp_sum<kLanes>(moment);
#pragma unroll
  for (int d = kLanes / 2; d > 0; d /= 2) median = min(median, __shfl_xor_sync(~0u, median, d));
  if (r.writes()) {
    const int last = r.samples - 1;
    opacity[r.number] = upto;
    depth[r.number] = r.middle(median == nowhere ? last : median);
    expected[r.number] = expected_depth(moment, upto, r.middle(0), r.middle(last)).depth;
  }
  if (rgb_out) {
    const Vec3 c = filled(r, rgb.data, backdrop, warp_sum<kLanes>(colour), upto, clean);
    if (r.writes()) store3(rgb_out.data, r.number, clean ? displayable(c) : c);
  }
  if (normals_out) {
    const Vec3 n = unit_normal(warp_sum<kLanes>(normal));
    if (r.writes()) store3(normals_out.data, r.number, n);
  }
  if (predicted_out) {
    const Vec3 n = unit_normal(warp_sum<kLanes>(other));
    if (r.writes()) store3(predicted_out.data, r.number, n);
  }
}

// How a warp lies over `vectors` vectors of channels, from vector `begin` on: `width` lanes along the
// channels, so that groups of lanes take consecutive samples where channels are few.
struct Layout {
  int begin, count, width, groups, group, column;

  __device__ Layout(int begin, int vectors) : begin(begin), count(min(32, vectors - begin)), width(1) {
    while (width < count) width *= 2;
    groups = 32 / width;
    group = lane() / width;
    column = lane() % width;
  }
};

template <class T, int kVector>
__global__ void __launch_bounds__(kThreads)
    composite_features_kernel(Weights w, const T* feature, int64_t channels, int slices, real* feature_out) {
  const int64_t ray = warp() / slices;
  if (ray >= w.size[0]) return;
  const int samples = int(w.size[1]);
  const real* weights = w.data + ray * samples;
  real* out = feature_out + ray * channels;
  const Layout at(int(warp() - ray * slices) * 32, int(channels / kVector));
  const T* mine = feature + ray * samples * channels + (at.begin + at.column) * kVector;
  real sum[kVector] = {};
  for (int k = 0; k < samples; k += 32) {
    const real weight = k + lane() < samples ? weights[k + lane()] : real(0);
    const int live = min(32, samples - k);
    for (int j = at.group; j < live + at.group; j += kInFlight * at.groups) {
      Pack<T, kVector> pack[kInFlight] = {};
#pragma unroll
      for (int u = 0; u < kInFlight; ++u) {
        const int i = j + u * at.groups;
        if (i < live && at.column < at.count)
          pack[u] = *reinterpret_cast<const Pack<T, kVector>*>(mine + (k + i) * channels);
      }
#pragma unroll
      for (int u = 0; u < kInFlight; ++u) {
        const real scale = __shfl_sync(~0u, weight, (j + u * at.groups) & 31);
        if (j + u * at.groups < live) {
#pragma unroll
          for (int v = 0; v < kVector; ++v) sum[v] += scale * to_float(pack[u].v[v]);
        }
      }
    }
  }
#pragma unroll
  for (int v = 0; v < kVector; ++v)
    for (int d = at.width; d < 32; d *= 2) sum[v] += __shfl_xor_sync(~0u, sum[v], d);
  if (at.group > 0 || at.column >= at.count) return;
#pragma unroll
  for (int v = 0; v < kVector; ++v) out[(at.begin + at.column) * kVector + v] = sum[v];
}

// 32 samples of one ray from number `first` of all on, or `live` of them: writes the gradients of their
// features, and returns to each lane what its sample's weight gets.
template <class T, int kVector>
__device__ real features_vjp(int64_t first, int live, real weight, const T* feature, int64_t channels,
                             const real* g, bool to_weights, T* grad_feature) {
  const int vectors = int(channels / kVector);
  const Layout at(0, vectors);
  real found = 0, held[kVector];
  if (at.column < vectors) load_reals<kVector>(g + at.column * kVector, held);
  for (int j = 0; j < live; j += at.groups) {
    const int i = j + at.group;
    const real scale = __shfl_sync(~0u, weight, i & 31);
    real along = 0;
    for (int c = at.column; i < live && c < vectors; c += 32) {
      const int64_t place = (first + i) * channels + c * kVector;
      if (vectors > 32) load_reals<kVector>(g + c * kVector, held);
      if (to_weights) {
        const auto pack = *reinterpret_cast<const Pack<T, kVector>*>(feature + place);
#pragma unroll
        for (int v = 0; v < kVector; ++v) along += held[v] * to_float(pack.v[v]);
      }
      if (grad_feature) {
        Pack<T, kVector> pack;
#pragma unroll
        for (int v = 0; v < kVector; ++v) pack.v[v] = from_float<T>(scale * held[v]);
        *reinterpret_cast<Pack<T, kVector>*>(grad_feature + place) = pack;
      }
    }
    if (!to_weights) continue;
    for (int d = at.width / 2; d > 0; d /= 2) along += __shfl_xor_sync(~0u, along, d);
    const real sum = __shfl_sync(~0u, along, ((lane() - j) * at.width) & 31);
    if (lane() >= j && lane() < j + at.groups) found = sum;
  }
  return found;
}

// Adds to the gradients of weights what features say of them.
template <class T, int kVector>
__global__ void __launch_bounds__(kThreads)
    composite_features_backward_kernel(Weights w, const T* feature, int64_t channels, const real* g_feature,
                                       real* grad_w, T* grad_feature) {
  const int64_t ray = warp();
  if (ray >= w.size[0]) return;
  const int samples = int(w.size[1]);
  for (int k = 0; k < samples; k += 32) {
    const int64_t first = ray * samples + k;
    const int live = min(32, samples - k);
    const real weight = lane() < live ? w.data[first + lane()] : real(0);
    const real g = features_vjp<T, kVector>(first, live, weight, feature, channels,
                                            g_feature + ray * channels, grad_w != nullptr, grad_feature);
    if (grad_w && lane() < live) grad_w[first + lane()] += g;
  }
}

// What the gradients of a ray's outputs are to the sums behind them.
struct Backward {
  real to_opacity, to_depth, depth, opacity, behind;
  Vec3 to_rgb, to_normals, to_predicted;

  template <int kLanes, class Rays>
  __device__ __forceinline__ Backward(const Ray<kLanes, Rays>& r, const Heads& rgb, const Heads& normals,
                                      const Heads& predicted, const Backdrop& backdrop, bool clean,
                                      const PerRay& g_rgb, const real* g_opacity, const real* g_expected,
                                      const PerRay& g_normals, const PerRay& g_predicted) {
    real moment = 0;
    opacity = 0;
    r.over_samples([&](int i, const real(&w)[4]) {
      real middle[4];
      middles(r.edges, r.row, i, middle);
#pragma unroll
      for (int j = 0; j < 4; ++j) opacity += w[j], moment += r.row.holds(i + j) ? w[j] * middle[j] : real(0);
    });
    opacity = warp_sum<kLanes>(opacity), moment = warp_sum<kLanes>(moment);
    const int last = r.samples - 1;
    const int64_t ray = r.number;
    const Expected e = expected_depth(moment, opacity, r.middle(0), r.middle(last));
    depth = e.depth;
    to_depth = g_expected && e.inside ? g_expected[ray] / (opacity + kLeastOpacity) : real(0);
    to_opacity = g_opacity ? g_opacity[ray] : real(0);
    to_rgb = to_normals = to_predicted = Vec3{0, 0, 0};
    behind = 0;
    if (g_rgb) {
      to_rgb = load3(g_rgb.data, ray);
      if (clean)
        to_rgb =
            displayable_vjp(filled(r, rgb.data, backdrop, r.sum(rgb.data, clean), opacity, clean), to_rgb);
      if (backdrop.kind != kNoBackground)
        behind = dot(to_rgb, backdrop.behind(colour_at(rgb.data, r.begin + last, clean)));
    }
    if (g_normals) to_normals = unit_normal_vjp(r.sum(normals.data), load3(g_normals.data, ray));
    if (g_predicted) to_predicted = unit_normal_vjp(r.sum(predicted.data), load3(g_predicted.data, ray));
  }
};

template <int kLanes, class Rays>
__global__ void __launch_bounds__(kThreads)
    composite_backward_kernel(Rays rays, const real* weights, const real* t, Heads rgb, Heads normals,
                              Heads predicted, Backdrop backdrop, bool clean, PerRay g_rgb,
                              const real* g_opacity, const real* g_expected, PerRay g_normals,
                              PerRay g_predicted, real* grad_w, GradHeads grad_rgb, GradHeads grad_normals,
                              GradHeads grad_predicted) {
  const Ray<kLanes, Rays> r(rays, weights, t);
  const Backward b(r, rgb, normals, predicted, backdrop, clean, g_rgb, g_opacity, g_expected, g_normals,
                   g_predicted);
  r.over_samples([&](int i, const real(&w)[4]) {
    real g[4] = {b.to_opacity, b.to_opacity, b.to_opacity, b.to_opacity};
    if (b.to_depth != 0) {
      real middle[4];
      middles(r.edges, r.row, i, middle);
#pragma unroll
      for (int j = 0; j < 4; ++j) g[j] += b.to_depth * (middle[j] - b.depth);
    }
    // What a head of three numbers says, given the gradient to its sum.
    const auto along = [&](const real* values, Vec3 to_sum) {
      Vec3 v[4];
      load_four(values, r.row, i, v);
#pragma unroll
      for (int j = 0; j < 4; ++j) g[j] += dot(to_sum, v[j]);
    };
    const auto scaled = [&](Vec3 to_sum, real* grad) {
      const Vec3 to[4] = {w[0] * to_sum, w[1] * to_sum, w[2] * to_sum, w[3] * to_sum};
      store_four(to, r.row, i, grad);
    };
    if (g_rgb) {
      Vec3 c[4];
      load_four(rgb.data, r.row, i, c);
#pragma unroll
      for (int j = 0; j < 4; ++j) g[j] += dot(b.to_rgb, clean ? finite_colour(c[j]) : c[j]) - b.behind;
    }
    if (g_normals) along(normals.data, b.to_normals);
    if (g_predicted) along(predicted.data, b.to_predicted);
    if (grad_rgb) {
      Vec3 c[4], to[4];
      if (clean) load_four(rgb.data, r.row, i, c);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const bool filler = backdrop.kind == kLastSample && i + j == r.row.end - 1;
        to[j] = (filler ? w[j] + (1 - b.opacity) : w[j]) * b.to_rgb;
        if (clean) to[j] = finite_colour_vjp(c[j], to[j]);
      }
      store_four(to, r.row, i, grad_rgb.data);
    }
    if (grad_normals) scaled(b.to_normals, grad_normals.data);
    if (grad_predicted) scaled(b.to_predicted, grad_predicted.data);
    if (grad_w) store_four(g, r.row, i, grad_w);
  });
}

namespace {

// Calls body with the feature's type and how many channels one load takes: 16 bytes where everything is
// aligned.
template <class Feature, class Body>
void with_vectors(const Feature& feature, std::initializer_list<const void*> arrays, const Body& body) {
  with_dtype(feature, [&](auto view) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(view.data)>>;
    constexpr int kVector = 16 / sizeof(T);
    bool aligned = view.data && view.size[2] % kVector == 0;
    for (const void* array : arrays) aligned = aligned && reinterpret_cast<uintptr_t>(array) % 16 == 0;
    if (aligned)
      body(view.data, std::integral_constant<int, kVector>{});
    else
      body(view.data, std::integral_constant<int, 1>{});
  });
}

void check_rays(const Weights& w, const Edges& t) {
  require(t.size[1] == w.size[1] + 1 && w.size[1] > 0,
          "t must have one edge more than there are weights per ray, and there must be a weight");
}

}  // namespace

void composite_forward(Cuda q, In<real, kRays, kSamples> w, In<real, kRays, kEdges> t, Heads rgb,
                       Heads normals, Heads predicted, Maybe<Payload<kRays, kSamples, kChannels>> feature,
                       Maybe<In<real, 3>> colour, int64_t background, bool clean, RayOut rgb_out,
                       Out<real, kRays> opacity, Out<real, kRays> depth, Out<real, kRays> expected,
                       RayOut normals_out, RayOut predicted_out,
                       Maybe<Out<real, kRays, kChannels>> feature_out) {
  check_rays(w, t);
  require(background != kColour || colour, "a constant background needs a colour");
  with_rays(w.size[0], w.size[1], {w.data, rgb.data, normals.data, predicted.data},
            [&](auto rays, auto lanes) {
              launch("composite_forward", composite_forward_kernel<lanes, decltype(rays)>,
                     blocks(rays.count, kThreads / lanes), kThreads, q, rays, w.data, t.data, rgb, normals,
                     predicted, Backdrop{background, colour.data}, clean, rgb_out, opacity.data, depth.data,
                     expected.data, normals_out, predicted_out);
            });
  if (!feature || !feature_out) return;
  const int64_t channels = feature.size[2];
  with_vectors(feature, {feature.data}, [&](auto* data, auto vector) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(data)>>;
    const int64_t slices = (channels + 32 * vector - 1) / (32 * vector);
    launch("composite_forward", composite_features_kernel<T, vector>,
           blocks(w.size[0] * slices, kWarpsPerBlock), kThreads, q, w, data, channels, int(slices),
           feature_out.data);
  });
}

void composite_backward(Cuda q, In<real, kRays, kSamples> w, In<real, kRays, kEdges> t, Heads rgb,
                        Heads normals, Heads predicted, Maybe<Payload<kRays, kSamples, kChannels>> feature,
                        Maybe<In<real, 3>> colour, int64_t background, bool clean, PerRay g_rgb,
                        Maybe<In<real, kRays>> g_opacity, Maybe<In<real, kRays>> g_expected, PerRay g_normals,
                        PerRay g_predicted, RayFeature g_feature, Maybe<Out<real, kRays, kSamples>> grad_w,
                        GradHeads grad_rgb, GradHeads grad_normals, GradHeads grad_predicted,
                        Maybe<OutPayload<kRays, kSamples, kChannels>> grad_feature) {
  check_rays(w, t);
  with_rays(w.size[0], w.size[1],
            {w.data, rgb.data, normals.data, predicted.data, grad_w.data, grad_rgb.data, grad_normals.data,
             grad_predicted.data},
            [&](auto rays, auto lanes) {
              launch("composite_backward", composite_backward_kernel<lanes, decltype(rays)>,
                     blocks(rays.count, kThreads / lanes), kThreads, q, rays, w.data, t.data, rgb, normals,
                     predicted, Backdrop{background, colour.data}, clean, g_rgb, g_opacity.data,
                     g_expected.data, g_normals, g_predicted, grad_w.data, grad_rgb, grad_normals,
                     grad_predicted);
            });
  if (!feature || (!g_feature && !grad_feature)) return;
  const int64_t channels = feature.size[2];
  with_vectors(feature, {feature.data, g_feature.data, grad_feature.data}, [&](auto* data, auto vector) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(data)>>;
    if (!g_feature)
      return zero("composite_backward", grad_feature.data,
                  size_t(w.size[0] * w.size[1] * channels) * sizeof(T), q);
    launch("composite_backward", composite_features_backward_kernel<T, vector>,
           blocks(w.size[0], kWarpsPerBlock), kThreads, q, w, data, channels, g_feature.data, grad_w.data,
           static_cast<T*>(grad_feature.data));
  });
}

}  // namespace raymarch
