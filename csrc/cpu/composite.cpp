// A ray at a time, all its heads; the loops over the channels of a feature vectorise.
#include "math/composite.h"

#include <algorithm>

#include "cpu/clones.h"
#include "cpu/parallel.h"
#include "ops.h"

namespace raymarch {
namespace {

using Heads = Maybe<In<real, kRays, kSamples, 3>>;
using GradHeads = Maybe<Out<real, kRays, kSamples, 3>>;
using PerRay = Maybe<In<real, kRays, 3>>;

struct Ray {
  const real *weight, *edges;
  int64_t samples, from;  // `from` is the number of its first sample

  Ray(const In<real, kRays, kSamples>& w, const In<real, kRays, kEdges>& t, int64_t ray)
      : weight(w.data + ray * w.size[1]),
        edges(t.data + ray * t.size[1]),
        samples(w.size[1]),
        from(ray * w.size[1]) {}
  real middle(int64_t i) const { return real(0.5) * (edges[i] + edges[i + 1]); }

  Vec3 sum(const real* values) const {
    Vec3 total{0, 0, 0};
    for (int64_t i = 0; i < samples; ++i) total = total + weight[i] * load3(values, from + i);
    return total;
  }
};

struct Sums {
  real opacity = 0, moment = 0;
};

Sums along(const Ray& r) {
  Sums s;
  for (int64_t i = 0; i < r.samples; ++i) {
    s.opacity += r.weight[i];
    s.moment += r.weight[i] * r.middle(i);
  }
  return s;
}

Expected expected_of(const Ray& r, const Sums& s) {
  return expected_depth(s.moment, s.opacity, r.middle(0), r.middle(r.samples - 1));
}

real median_depth(const Ray& r) {
  int64_t i = 0;
  for (real upto = r.weight[0]; !(upto >= real(0.5)) && i < r.samples - 1;) upto += r.weight[++i];
  return r.middle(i);
}

struct Backdrop {
  int64_t kind;
  const real* colour;
  Vec3 behind(Vec3 last) const {
    return kind == kColour       ? load3(colour, 0)
           : kind == kLastSample ? last
           : kind == kWhite      ? Vec3{1, 1, 1}
                                 : Vec3{0, 0, 0};
  }
};

Vec3 colour_at(const real* rgb, int64_t i, bool clean) {
  return clean ? finite_colour(load3(rgb, i)) : load3(rgb, i);
}

// Before clamping.
Vec3 colour_of(const Ray& r, const real* rgb, const Backdrop& backdrop, real opacity, bool clean) {
  Vec3 seen{0, 0, 0};
  for (int64_t i = 0; i < r.samples; ++i) seen = seen + r.weight[i] * colour_at(rgb, r.from + i, clean);
  if (backdrop.kind == kNoBackground) return seen;
  return seen + (1 - opacity) * backdrop.behind(colour_at(rgb, r.from + r.samples - 1, clean));
}

// g is the gradient to the colour; adds to that of the weights, and writes those of the samples' colours.
void colour_vjp(const Ray& r, const real* rgb, const Backdrop& backdrop, real opacity, bool clean, Vec3 g,
                real* grad_w, real* grad_rgb) {
  if (clean) g = displayable_vjp(colour_of(r, rgb, backdrop, opacity, clean), g);
  const int64_t last = r.samples - 1;
  const real behind = backdrop.kind == kNoBackground
                          ? real(0)
                          : dot(g, backdrop.behind(colour_at(rgb, r.from + last, clean)));
  for (int64_t i = 0; i < r.samples; ++i) {
    if (grad_w) grad_w[i] += dot(g, colour_at(rgb, r.from + i, clean)) - behind;
    if (!grad_rgb) continue;
    const real more = backdrop.kind == kLastSample && i == last ? 1 - opacity : real(0);
    const Vec3 to_colour = (r.weight[i] + more) * g;
    store3(grad_rgb, r.from + i, clean ? finite_colour_vjp(load3(rgb, r.from + i), to_colour) : to_colour);
  }
}

void normals_vjp(const Ray& r, const real* normals, Vec3 g, real* grad_w, real* grad_normals) {
  const Vec3 to_sum = unit_normal_vjp(r.sum(normals), g);
  for (int64_t i = 0; i < r.samples; ++i) {
    if (grad_w) grad_w[i] += dot(to_sum, load3(normals, r.from + i));
    if (grad_normals) store3(grad_normals, r.from + i, r.weight[i] * to_sum);
  }
}

RM_CLONES void add_scaled(int64_t n, real scale, const real* x, real* y) {
  for (int64_t c = 0; c < n; ++c) y[c] += scale * x[c];
}
template <class T>
void add_scaled(int64_t n, real scale, const T* x, real* y) {
  for (int64_t c = 0; c < n; ++c) y[c] += scale * real(to_float(x[c]));
}

constexpr int kLanes = 16;  // partial sums, so that a sum of products vectorises

template <class T>
inline real products(int64_t n, const T* x, const real* y) {
  real partial[kLanes] = {}, sum = 0;
  int64_t c = 0;
  for (; c + kLanes <= n; c += kLanes)
    for (int k = 0; k < kLanes; ++k) partial[k] += real(to_float(x[c + k])) * y[c + k];
  for (; c < n; ++c) sum += real(to_float(x[c])) * y[c];
  for (int k = 0; k < kLanes; ++k) sum += partial[k];
  return sum;
}
RM_CLONES real product_of(int64_t n, const real* x, const real* y) { return products(n, x, y); }
template <class T>
real product_of(int64_t n, const T* x, const real* y) {
  return products(n, x, y);
}

RM_CLONES void scale_into(int64_t n, real scale, const real* x, real* y) {
  for (int64_t c = 0; c < n; ++c) y[c] = scale * x[c];
}
template <class T>
void scale_into(int64_t n, real scale, const real* x, T* y) {
  for (int64_t c = 0; c < n; ++c) y[c] = from_float<T>(scale * x[c]);
}

template <class T>
void features_of(const Ray& r, int64_t channels, const T* feature, real* out) {
  std::fill(out, out + channels, real(0));
  for (int64_t i = 0; i < r.samples; ++i)
    add_scaled(channels, r.weight[i], feature + (r.from + i) * channels, out);
}

template <class T>
void features_vjp(const Ray& r, int64_t channels, const T* feature, const real* g, real* grad_w,
                  T* grad_feature) {
  for (int64_t i = 0; i < r.samples; ++i) {
    const int64_t row = (r.from + i) * channels;
    if (grad_w) grad_w[i] += product_of(channels, feature + row, g);
    if (grad_feature) scale_into(channels, r.weight[i], g, grad_feature + row);
  }
}

template <class V>
real* data_or_null(const V& view, int64_t offset) {
  return view ? view.data + offset : nullptr;
}

}  // namespace

void composite_forward(Cpu, In<real, kRays, kSamples> w, In<real, kRays, kEdges> t, Heads rgb, Heads normals,
                       Heads predicted, Maybe<Payload<kRays, kSamples, kChannels>> feature,
                       Maybe<In<real, 3>> colour, int64_t background, bool clean,
                       Maybe<Out<real, kRays, 3>> rgb_out, Out<real, kRays> opacity, Out<real, kRays> depth,
                       Out<real, kRays> expected, Maybe<Out<real, kRays, 3>> normals_out,
                       Maybe<Out<real, kRays, 3>> predicted_out,
                       Maybe<Out<real, kRays, kChannels>> feature_out) {
  require(t.size[1] == w.size[1] + 1 && w.size[1] > 0,
          "t must have one edge more than there are weights per ray, and there must be a weight");
  require(background != kColour || colour, "a constant background needs a colour");
  const int64_t channels = feature_out ? feature.size[2] : 0;
  const Backdrop backdrop{background, colour.data};
  with_dtype(feature, [&](auto feature) {
    parallel_for(w.size[0], w.size[1] * (4 + channels / 8), [&](int64_t ray) {
      const Ray r(w, t, ray);
      const Sums s = along(r);
      opacity.data[ray] = s.opacity;
      depth.data[ray] = median_depth(r);
      expected.data[ray] = expected_of(r, s).depth;
      if (rgb_out) {
        const Vec3 seen = colour_of(r, rgb.data, backdrop, s.opacity, clean);
        store3(rgb_out.data, ray, clean ? displayable(seen) : seen);
      }
      if (normals_out) store3(normals_out.data, ray, unit_normal(r.sum(normals.data)));
      if (predicted_out) store3(predicted_out.data, ray, unit_normal(r.sum(predicted.data)));
      if (feature_out) features_of(r, channels, feature.data, feature_out.data + ray * channels);
    });
  });
}

void composite_backward(Cpu, In<real, kRays, kSamples> w, In<real, kRays, kEdges> t, Heads rgb, Heads normals,
                        Heads predicted, Maybe<Payload<kRays, kSamples, kChannels>> feature,
                        Maybe<In<real, 3>> colour, int64_t background, bool clean, PerRay g_rgb,
                        Maybe<In<real, kRays>> g_opacity, Maybe<In<real, kRays>> g_expected, PerRay g_normals,
                        PerRay g_predicted, Maybe<In<real, kRays, kChannels>> g_feature,
                        Maybe<Out<real, kRays, kSamples>> grad_w, GradHeads grad_rgb, GradHeads grad_normals,
                        GradHeads grad_predicted,
                        Maybe<OutPayload<kRays, kSamples, kChannels>> grad_feature) {
  require(t.size[1] == w.size[1] + 1 && w.size[1] > 0,
          "t must have one edge more than there are weights per ray, and there must be a weight");
  const int64_t samples = w.size[1], channels = feature ? feature.size[2] : 0;
  const Backdrop backdrop{background, colour.data};
  const auto to_ray = [](const PerRay& g, int64_t ray) { return g ? load3(g.data, ray) : Vec3{0, 0, 0}; };
  with_dtype(feature, [&](auto feature) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(feature.data)>>;
    parallel_for(w.size[0], samples * (8 + channels / 4), [&](int64_t ray) {
      const Ray r(w, t, ray);
      const Sums s = along(r);
      const Expected e = expected_of(r, s);
      real* of_w = data_or_null(grad_w, r.from);
      const real to_opacity = g_opacity ? g_opacity.data[ray] : real(0);
      const real to_depth =
          g_expected && e.inside ? g_expected.data[ray] / (s.opacity + kLeastOpacity) : real(0);
      for (int64_t i = 0; of_w && i < samples; ++i)
        of_w[i] = to_opacity + (to_depth == 0 ? real(0) : to_depth * (r.middle(i) - e.depth));
      if (g_rgb || grad_rgb)
        colour_vjp(r, rgb.data, backdrop, s.opacity, clean, to_ray(g_rgb, ray), of_w, grad_rgb.data);
      if (g_normals || grad_normals)
        normals_vjp(r, normals.data, to_ray(g_normals, ray), of_w, grad_normals.data);
      if (g_predicted || grad_predicted)
        normals_vjp(r, predicted.data, to_ray(g_predicted, ray), of_w, grad_predicted.data);
      T* of_feature = static_cast<T*>(grad_feature.data);
      if (g_feature)
        features_vjp(r, channels, feature.data, g_feature.data + ray * channels, of_w, of_feature);
      else if (of_feature)
        std::fill_n(of_feature + r.from * channels, samples * channels, from_float<T>(0));
    });
  });
}

}  // namespace raymarch
