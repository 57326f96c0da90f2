// One warp per ray: lanes take samples for the heads of one or three numbers, then channels for the feature
// head. Forward, a feature wider than a warp's vectors is shared between warps, each with its slice of the
// channels.
#include <algorithm>
#include <initializer_list>

#include "cuda/warp.cuh"
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

__device__ __forceinline__ Vec3 warp_sum3(Vec3 v) { return {warp_sum(v.x), warp_sum(v.y), warp_sum(v.z)}; }

// What one warp knows of its ray.
struct Ray {
  const real *weight, *edges;
  int64_t from;  // number of its first sample
  int samples;

  __device__ Ray(const Weights& w, const Edges& t, int64_t ray)
      : weight(w.data + ray * w.size[1]),
        edges(t.data + ray * t.size[1]),
        from(ray * w.size[1]),
        samples(int(w.size[1])) {}
  __device__ real middle(int i) const { return real(0.5) * (edges[i] + edges[i + 1]); }

  __device__ Vec3 sum(const real* values) const {
    Vec3 total{0, 0, 0};
    for (int i = lane(); i < samples; i += 32) total = total + weight[i] * load3(values, from + i);
    return warp_sum3(total);
  }
};

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

// Before clamping; every lane gets it.
__device__ Vec3 colour_of(const Ray& r, const real* rgb, const Backdrop& backdrop, real opacity, bool clean) {
  Vec3 seen{0, 0, 0};
  for (int i = lane(); i < r.samples; i += 32) seen = seen + r.weight[i] * colour_at(rgb, r.from + i, clean);
  seen = warp_sum3(seen);
  if (backdrop.kind == kNoBackground) return seen;
  return seen + (1 - opacity) * backdrop.behind(colour_at(rgb, r.from + r.samples - 1, clean));
}

__device__ real depths_of(const Ray& r, int64_t ray, real* opacity, real* depth, real* expected) {
  real upto = 0, moment = 0;
  int median = -1;
  for (int k = 0; k < r.samples; k += 32) {
    const int i = k + lane();
    const bool live = i < r.samples;
    const real weight = live ? r.weight[i] : real(0);
    const real sum = upto + warp_inclusive_sum(weight);
    if (live) moment += weight * r.middle(i);
    const unsigned past = __ballot_sync(~0u, live && sum >= real(0.5));
    if (median < 0 && past) median = k + __ffs(int(past)) - 1;
    upto = from_lane(sum, 31);
  }
  moment = warp_sum(moment);
  if (lane() == 0) {
    const int last = r.samples - 1;
    opacity[ray] = upto;
    depth[ray] = r.middle(median < 0 ? last : median);
    expected[ray] = expected_depth(moment, upto, r.middle(0), r.middle(last)).depth;
  }
  return upto;
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
__device__ void features_of(const Ray& r, const T* feature, int64_t channels, int slice, real* out) {
  const Layout at(slice * 32, int(channels / kVector));
  const T* mine = feature + r.from * channels + (at.begin + at.column) * kVector;
  real sum[kVector] = {};
  for (int k = 0; k < r.samples; k += 32) {
    const real weight = k + lane() < r.samples ? r.weight[k + lane()] : real(0);
    const int live = min(32, r.samples - k);
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

template <class T, int kVector>
__global__ void __launch_bounds__(kThreads)
    composite_forward_kernel(Weights w, Edges t, Heads rgb, Heads normals, Heads predicted, const T* feature,
                             int64_t channels, int slices, Backdrop backdrop, bool clean, RayOut rgb_out,
                             real* opacity, real* depth, real* expected, RayOut normals_out,
                             RayOut predicted_out, real* feature_out) {
  const int64_t ray = warp() / slices;
  if (ray >= w.size[0]) return;
  const int slice = int(warp() - ray * slices);
  const Ray r(w, t, ray);
  if (slice == 0) {
    const real seen = depths_of(r, ray, opacity, depth, expected);
    if (rgb_out) {
      const Vec3 c = colour_of(r, rgb.data, backdrop, seen, clean);
      if (lane() == 0) store3(rgb_out.data, ray, clean ? displayable(c) : c);
    }
    if (normals_out) {
      const Vec3 n = unit_normal(r.sum(normals.data));
      if (lane() == 0) store3(normals_out.data, ray, n);
    }
    if (predicted_out) {
      const Vec3 n = unit_normal(r.sum(predicted.data));
      if (lane() == 0) store3(predicted_out.data, ray, n);
    }
  }
  if (feature_out) features_of<T, kVector>(r, feature, channels, slice, feature_out + ray * channels);
}

// What the gradients of a ray's outputs are to the sums behind them.
struct Backward {
  real to_opacity, to_depth, depth, opacity, behind;
  Vec3 to_rgb, to_normals, to_predicted;

  __device__ Backward(const Ray& r, int64_t ray, const Heads& rgb, const Heads& normals,
                      const Heads& predicted, const Backdrop& backdrop, bool clean, const PerRay& g_rgb,
                      const real* g_opacity, const real* g_expected, const PerRay& g_normals,
                      const PerRay& g_predicted) {
    real moment = 0;
    opacity = 0;
    for (int i = lane(); i < r.samples; i += 32) {
      opacity += r.weight[i];
      moment += r.weight[i] * r.middle(i);
    }
    opacity = warp_sum(opacity), moment = warp_sum(moment);
    const int last = r.samples - 1;
    const Expected e = expected_depth(moment, opacity, r.middle(0), r.middle(last));
    depth = e.depth;
    to_depth = g_expected && e.inside ? g_expected[ray] / (opacity + kLeastOpacity) : real(0);
    to_opacity = g_opacity ? g_opacity[ray] : real(0);
    to_rgb = to_normals = to_predicted = Vec3{0, 0, 0};
    behind = 0;
    if (g_rgb) {
      to_rgb = load3(g_rgb.data, ray);
      if (clean) to_rgb = displayable_vjp(colour_of(r, rgb.data, backdrop, opacity, clean), to_rgb);
      if (backdrop.kind != kNoBackground)
        behind = dot(to_rgb, backdrop.behind(colour_at(rgb.data, r.from + last, clean)));
    }
    if (g_normals) to_normals = unit_normal_vjp(r.sum(normals.data), load3(g_normals.data, ray));
    if (g_predicted) to_predicted = unit_normal_vjp(r.sum(predicted.data), load3(g_predicted.data, ray));
  }
};

// The feature head of up to 32 samples from number k on: writes their gradients, and returns to each lane
// what its sample's weight gets.
template <class T, int kVector>
__device__ real features_vjp(const Ray& r, int k, real weight, const T* feature, int64_t channels,
                             const real* g, bool to_weights, T* grad_feature) {
  const int vectors = int(channels / kVector), live = min(32, r.samples - k);
  const Layout at(0, vectors);
  real found = 0, held[kVector];
  if (at.column < vectors) load_reals<kVector>(g + at.column * kVector, held);
  for (int j = 0; j < live; j += at.groups) {
    const int i = j + at.group;
    const real scale = __shfl_sync(~0u, weight, i & 31);
    real along = 0;
    for (int c = at.column; i < live && c < vectors; c += 32) {
      const int64_t place = (r.from + k + i) * channels + c * kVector;
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

template <class T, int kVector>
__global__ void __launch_bounds__(kThreads)
    composite_backward_kernel(Weights w, Edges t, Heads rgb, Heads normals, Heads predicted, const T* feature,
                              int64_t channels, Backdrop backdrop, bool clean, PerRay g_rgb,
                              const real* g_opacity, const real* g_expected, PerRay g_normals,
                              PerRay g_predicted, const real* g_feature, real* grad_w, GradHeads grad_rgb,
                              GradHeads grad_normals, GradHeads grad_predicted, T* grad_feature) {
  const int64_t ray = warp();
  if (ray >= w.size[0]) return;
  const Ray r(w, t, ray);
  const Backward b(r, ray, rgb, normals, predicted, backdrop, clean, g_rgb, g_opacity, g_expected, g_normals,
                   g_predicted);
  for (int k = 0; k < r.samples; k += 32) {
    const int i = k + lane();
    const bool live = i < r.samples;
    const real weight = live ? r.weight[i] : real(0);
    real g = b.to_opacity;
    if (live) {
      const int64_t n = r.from + i;
      if (b.to_depth != 0) g += b.to_depth * (r.middle(i) - b.depth);
      if (g_rgb) g += dot(b.to_rgb, colour_at(rgb.data, n, clean)) - b.behind;
      if (g_normals) g += dot(b.to_normals, load3(normals.data, n));
      if (g_predicted) g += dot(b.to_predicted, load3(predicted.data, n));
      if (grad_rgb) {
        const bool filler = backdrop.kind == kLastSample && i == r.samples - 1;
        const Vec3 to_colour = (filler ? weight + (1 - b.opacity) : weight) * b.to_rgb;
        store3(grad_rgb.data, n, clean ? finite_colour_vjp(load3(rgb.data, n), to_colour) : to_colour);
      }
      if (grad_normals) store3(grad_normals.data, n, weight * b.to_normals);
      if (grad_predicted) store3(grad_predicted.data, n, weight * b.to_predicted);
    }
    if (g_feature)
      g += features_vjp<T, kVector>(r, k, weight, feature, channels, g_feature + ray * channels,
                                    grad_w != nullptr, grad_feature);
    if (grad_w && live) grad_w[r.from + i] = g;
  }
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
  const int64_t channels = feature ? feature.size[2] : 0;
  with_vectors(feature, {feature.data}, [&](auto* data, auto vector) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(data)>>;
    const int64_t slices = std::max<int64_t>(1, (channels + 32 * vector - 1) / (32 * vector));
    launch("composite_forward", composite_forward_kernel<T, vector>,
           blocks(w.size[0] * slices, kWarpsPerBlock), kThreads, q, w, t, rgb, normals, predicted, data,
           channels, int(slices), Backdrop{background, colour.data}, clean, rgb_out, opacity.data, depth.data,
           expected.data, normals_out, predicted_out, channels ? feature_out.data : nullptr);
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
  const int64_t channels = feature ? feature.size[2] : 0;
  with_vectors(feature, {feature.data, g_feature.data, grad_feature.data}, [&](auto* data, auto vector) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(data)>>;
    if (grad_feature && !g_feature)
      zero("composite_backward", grad_feature.data, size_t(w.size[0] * w.size[1] * channels) * sizeof(T), q);
    launch("composite_backward", composite_backward_kernel<T, vector>, blocks(w.size[0], kWarpsPerBlock),
           kThreads, q, w, t, rgb, normals, predicted, data, channels, Backdrop{background, colour.data},
           clean, g_rgb, g_opacity.data, g_expected.data, g_normals, g_predicted,
           channels ? g_feature.data : nullptr, grad_w.data, grad_rgb, grad_normals, grad_predicted,
           static_cast<T*>(grad_feature.data));
  });
}

}  // namespace raymarch
