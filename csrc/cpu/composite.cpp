#include "math/composite.h"

#include <vector>

#include "cpu/parallel.h"
#include "ops.h"

namespace raymarch {
namespace {

using Heads = Maybe<In<real, kRays, kSamples, 3>>;

Vec3 sum(const real* w, int64_t samples, const real* values, int64_t from) {
  Vec3 total{0, 0, 0};
  for (int64_t i = 0; i < samples; ++i) total = total + w[i] * load3(values, from + i);
  return total;
}

struct Sums {
  real opacity = 0, moment = 0, first = 0, last = 0;
};

Sums along(const real* w, const real* edges, int64_t samples) {
  Sums s;
  for (int64_t i = 0; i < samples; ++i) {
    s.opacity += w[i];
    s.moment += w[i] * real(0.5) * (edges[i] + edges[i + 1]);
  }
  s.first = real(0.5) * (edges[0] + edges[1]), s.last = real(0.5) * (edges[samples - 1] + edges[samples]);
  return s;
}

real median_depth(const real* w, const real* edges, int64_t samples) {
  int64_t i = 0;
  for (real upto = w[0]; upto < real(0.5) && i < samples - 1;) upto += w[++i];
  return real(0.5) * (edges[i] + edges[i + 1]);
}

}  // namespace

void composite_forward(Cpu, In<real, kRays, kSamples> w, In<real, kRays, kEdges> t, Heads rgb, Heads normals,
                       Heads predicted, Maybe<Payload<kRays, kSamples, kChannels>> feature,
                       Maybe<In<real, 3>> colour, int64_t background, bool clean,
                       Maybe<Out<real, kRays, 3>> rgb_out, Out<real, kRays> opacity, Out<real, kRays> depth,
                       Out<real, kRays> expected, Maybe<Out<real, kRays, 3>> normals_out,
                       Maybe<Out<real, kRays, 3>> predicted_out, Maybe<Out<real, kRays, kChannels>> feature_out) {
  const int64_t samples = w.size[1];
  require(t.size[1] == samples + 1 && samples > 0, "t must have one edge more than there are weights per ray");
  require(background != kColour || colour, "a constant background needs a colour");
  const int64_t channels = feature ? feature.size[2] : 0;
  parallel_for(w.size[0], samples * (8 + channels), [&](int64_t ray) {
    const real *weight = w.data + ray * samples, *edges = t.data + ray * (samples + 1);
    const int64_t from = ray * samples;
    const Sums s = along(weight, edges, samples);
    opacity.data[ray] = s.opacity;
    expected.data[ray] = expected_depth(s.moment, s.opacity, s.first, s.last).depth;
    depth.data[ray] = median_depth(weight, edges, samples);
    if (rgb_out) {
      Vec3 seen{0, 0, 0}, last{0, 0, 0};
      for (int64_t i = 0; i < samples; ++i) {
        last = load3(rgb.data, from + i);
        if (clean) last = finite_colour(last);
        seen = seen + weight[i] * last;
      }
      if (background == kColour) seen = seen + (1 - s.opacity) * load3(colour.data, 0);
      if (background == kLastSample) seen = seen + (1 - s.opacity) * last;
      store3(rgb_out.data, ray, clean ? displayable(seen) : seen);
    }
    if (normals_out) store3(normals_out.data, ray, unit_normal(sum(weight, samples, normals.data, from)));
    if (predicted_out) store3(predicted_out.data, ray, unit_normal(sum(weight, samples, predicted.data, from)));
  });
  if (!feature_out) return;
  with_dtype(feature, [&](auto feature) {
    parallel_for(w.size[0], samples * channels, [&](int64_t ray) {
      real* out = feature_out.data + ray * channels;
      for (int64_t c = 0; c < channels; ++c) out[c] = 0;
      for (int64_t i = ray * samples; i < (ray + 1) * samples; ++i)
        for (int64_t c = 0; c < channels; ++c) out[c] += w.data[i] * to_float(feature.data[i * channels + c]);
    });
  });
}

void composite_backward(Cpu, In<real, kRays, kSamples> w, In<real, kRays, kEdges> t, Heads rgb, Heads normals,
                        Heads predicted, Maybe<Payload<kRays, kSamples, kChannels>> feature,
                        Maybe<In<real, 3>> colour, int64_t background, Maybe<In<real, kRays, 3>> g_rgb,
                        Maybe<In<real, kRays>> g_opacity, Maybe<In<real, kRays>> g_expected,
                        Maybe<In<real, kRays, 3>> g_normals, Maybe<In<real, kRays, 3>> g_predicted,
                        Maybe<In<real, kRays, kChannels>> g_feature, Out<real, kRays, kSamples> grad_w,
                        Maybe<Out<real, kRays, kSamples, 3>> grad_rgb,
                        Maybe<Out<real, kRays, kSamples, 3>> grad_normals,
                        Maybe<Out<real, kRays, kSamples, 3>> grad_predicted,
                        Maybe<OutPayload<kRays, kSamples, kChannels>> grad_feature) {
  const int64_t samples = w.size[1], channels = feature ? feature.size[2] : 0;
  parallel_for(w.size[0], samples * 16, [&](int64_t ray) {
    const real *weight = w.data + ray * samples, *edges = t.data + ray * (samples + 1);
    real* out = grad_w.data + ray * samples;
    const int64_t from = ray * samples;
    const Sums s = along(weight, edges, samples);
    const Expected e = expected_depth(s.moment, s.opacity, s.first, s.last);
    const real to_depth = g_expected && e.inside ? g_expected.data[ray] / (s.opacity + kLeastOpacity) : real(0);
    for (int64_t i = 0; i < samples; ++i)
      out[i] = (g_opacity ? g_opacity.data[ray] : real(0)) +
               (to_depth != 0 ? to_depth * (real(0.5) * (edges[i] + edges[i + 1]) - e.depth) : real(0));
    if (g_rgb) {
      const Vec3 g = load3(g_rgb.data, ray), last = load3(rgb.data, from + samples - 1);
      const real behind = background == kColour ? dot(g, load3(colour.data, 0))
                          : background == kLastSample ? dot(g, last) : real(0);
      for (int64_t i = 0; i < samples; ++i) {
        out[i] += dot(g, load3(rgb.data, from + i)) - behind;
        real share = weight[i];
        if (background == kLastSample && i == samples - 1) share += 1 - s.opacity;
        if (grad_rgb) store3(grad_rgb.data, from + i, share * g);
      }
    } else if (grad_rgb) {
      for (int64_t i = 0; i < samples; ++i) store3(grad_rgb.data, from + i, {0, 0, 0});
    }
    const auto normals_backward = [&](const Heads& n, const Maybe<In<real, kRays, 3>>& g,
                                      const Maybe<Out<real, kRays, kSamples, 3>>& grad) {
      const Vec3 to_sum =
          g ? unit_normal_vjp(sum(weight, samples, n.data, from), load3(g.data, ray)) : Vec3{0, 0, 0};
      for (int64_t i = 0; i < samples; ++i) {
        if (g) out[i] += dot(to_sum, load3(n.data, from + i));
        if (grad) store3(grad.data, from + i, weight[i] * to_sum);
      }
    };
    normals_backward(normals, g_normals, grad_normals);
    normals_backward(predicted, g_predicted, grad_predicted);
  });
  if (!feature || !(g_feature || grad_feature)) return;
  with_dtype(feature, [&](auto feature) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(feature.data)>>;
    T* grad = grad_feature ? static_cast<T*>(grad_feature.data) : nullptr;
    parallel_for(w.size[0], samples * channels * 2, [&](int64_t ray) {
      const real* g = g_feature ? g_feature.data + ray * channels : nullptr;
      for (int64_t i = ray * samples; i < (ray + 1) * samples; ++i) {
        real along_g = 0;
        for (int64_t c = 0; g && c < channels; ++c) along_g += g[c] * to_float(feature.data[i * channels + c]);
        grad_w.data[i] += along_g;
        for (int64_t c = 0; grad && c < channels; ++c)
          grad[i * channels + c] = from_float<T>(g ? w.data[i] * g[c] : real(0));
      }
    });
  });
}

}  // namespace raymarch
