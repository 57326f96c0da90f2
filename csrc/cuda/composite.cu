#include "math/composite.h"

#include "cuda/warp.cuh"
#include "ops.h"

namespace raymarch {
namespace {

constexpr int kThreads = 32 * kWarpsPerBlock;
constexpr int kPerLane = 4;  // channels a lane sums at once: four loads in flight

using Heads = Maybe<In<real, kRays, kSamples, 3>>;

__device__ __forceinline__ Vec3 warp_sum(Vec3 v) {
  return {raymarch::warp_sum(v.x), raymarch::warp_sum(v.y), raymarch::warp_sum(v.z)};
}

// What one warp knows of its ray.
struct Ray {
  const real *weight, *edges;
  int64_t from;  // number of its first sample
  int samples;

  __device__ Ray(In<real, kRays, kSamples> w, In<real, kRays, kEdges> t, int64_t ray)
      : weight(w.data + ray * w.size[1]), edges(t.data + ray * t.size[1]), from(ray * w.size[1]),
        samples(int(w.size[1])) {}
  __device__ real middle(int i) const { return real(0.5) * (edges[i] + edges[i + 1]); }

  __device__ Vec3 sum(const real* values) const {
    Vec3 total{0, 0, 0};
    for (int i = lane(); i < samples; i += 32) total = total + weight[i] * load3(values, from + i);
    return warp_sum(total);
  }
};

}  // namespace

// One warp per ray; lanes take samples.
__global__ void __launch_bounds__(kThreads)
    composite_forward_kernel(In<real, kRays, kSamples> w, In<real, kRays, kEdges> t, Heads rgb, Heads normals,
                             Heads predicted, Maybe<In<real, 3>> colour, int64_t background, bool clean,
                             Maybe<Out<real, kRays, 3>> rgb_out, Out<real, kRays> opacity, Out<real, kRays> depth,
                             Out<real, kRays> expected, Maybe<Out<real, kRays, 3>> normals_out,
                             Maybe<Out<real, kRays, 3>> predicted_out) {
  const int64_t ray = warp();
  if (ray >= w.size[0]) return;
  const Ray r(w, t, ray);
  real upto = 0, moment = 0;
  int median = r.samples - 1;
  bool found = false;
  for (int k = 0; k < r.samples; k += 32) {
    const int i = k + lane();
    const real weight = i < r.samples ? r.weight[i] : real(0);
    const real sum = upto + warp_inclusive_sum(weight);
    if (i < r.samples) moment += weight * r.middle(i);
    const unsigned past = __ballot_sync(~0u, i < r.samples && sum >= real(0.5));
    if (!found && past) median = k + __ffs(int(past)) - 1, found = true;
    upto = from_lane(sum, 31);
  }
  moment = raymarch::warp_sum(moment);
  if (lane() == 0) {
    opacity.data[ray] = upto;
    depth.data[ray] = r.middle(median);
    expected.data[ray] = expected_depth(moment, upto, r.middle(0), r.middle(r.samples - 1)).depth;
  }
  if (rgb_out) {
    Vec3 seen{0, 0, 0};
    for (int i = lane(); i < r.samples; i += 32) {
      const Vec3 c = load3(rgb.data, r.from + i);
      seen = seen + r.weight[i] * (clean ? finite_colour(c) : c);
    }
    seen = warp_sum(seen);
    if (background == kColour) seen = seen + (1 - upto) * load3(colour.data, 0);
    if (background == kLastSample) {
      const Vec3 last = load3(rgb.data, r.from + r.samples - 1);
      seen = seen + (1 - upto) * (clean ? finite_colour(last) : last);
    }
    if (lane() == 0) store3(rgb_out.data, ray, clean ? displayable(seen) : seen);
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

// One warp per ray and per 128 channels; lanes take channels, and walk the samples.
template <class T>
__global__ void __launch_bounds__(kThreads)
    composite_feature_forward_kernel(In<real, kRays, kSamples> w, In<T, kRays, kSamples, kChannels> feature,
                                     Out<real, kRays, kChannels> out, int64_t slices) {
  const int64_t ray = warp() / slices, slice = warp() - ray * slices;
  if (ray >= w.size[0]) return;
  const int samples = int(w.size[1]);
  const int64_t channels = out.size[1], first = slice * 32 * kPerLane + lane();
  const T* values = feature.data + ray * samples * channels;
  real sum[kPerLane] = {};
  for (int k = 0; k < samples; k += 32) {
    const real mine = k + lane() < samples ? w.data[ray * samples + k + lane()] : real(0);
    const int count = min(32, samples - k);
    for (int j = 0; j < count; ++j) {
      const real weight = from_lane(mine, j);
#pragma unroll
      for (int p = 0; p < kPerLane; ++p)
        if (first + 32 * p < channels) sum[p] += weight * to_float(values[(k + j) * channels + first + 32 * p]);
    }
  }
#pragma unroll
  for (int p = 0; p < kPerLane; ++p)
    if (first + 32 * p < channels) out.data[ray * channels + first + 32 * p] = sum[p];
}

// One warp per ray. Lanes take samples for the heads of three numbers, then channels for the feature head.
template <class T>
__global__ void __launch_bounds__(kThreads)
    composite_backward_kernel(In<real, kRays, kSamples> w, In<real, kRays, kEdges> t, Heads rgb, Heads normals,
                              Heads predicted, Maybe<In<T, kRays, kSamples, kChannels>> feature,
                              Maybe<In<real, 3>> colour, int64_t background, Maybe<In<real, kRays, 3>> g_rgb,
                              Maybe<In<real, kRays>> g_opacity, Maybe<In<real, kRays>> g_expected,
                              Maybe<In<real, kRays, 3>> g_normals, Maybe<In<real, kRays, 3>> g_predicted,
                              Maybe<In<real, kRays, kChannels>> g_feature, Out<real, kRays, kSamples> grad_w,
                              Maybe<Out<real, kRays, kSamples, 3>> grad_rgb,
                              Maybe<Out<real, kRays, kSamples, 3>> grad_normals,
                              Maybe<Out<real, kRays, kSamples, 3>> grad_predicted, T* grad_feature) {
  const int64_t ray = warp();
  if (ray >= w.size[0]) return;
  const Ray r(w, t, ray);
  real opacity = 0, moment = 0;
  for (int i = lane(); i < r.samples; i += 32) opacity += r.weight[i], moment += r.weight[i] * r.middle(i);
  opacity = raymarch::warp_sum(opacity), moment = raymarch::warp_sum(moment);
  const Expected e = expected_depth(moment, opacity, r.middle(0), r.middle(r.samples - 1));
  const real to_depth = g_expected && e.inside ? g_expected.data[ray] / (opacity + kLeastOpacity) : real(0);
  const real to_opacity = g_opacity ? g_opacity.data[ray] : real(0);
  const Vec3 zero{0, 0, 0}, to_rgb = g_rgb ? load3(g_rgb.data, ray) : zero;
  real behind = 0;
  if (g_rgb && background == kColour) behind = dot(to_rgb, load3(colour.data, 0));
  if (g_rgb && background == kLastSample) behind = dot(to_rgb, load3(rgb.data, r.from + r.samples - 1));
  const Vec3 to_normals = g_normals ? unit_normal_vjp(r.sum(normals.data), load3(g_normals.data, ray)) : zero;
  const Vec3 to_predicted = g_predicted ? unit_normal_vjp(r.sum(predicted.data), load3(g_predicted.data, ray)) : zero;
  for (int i = lane(); i < r.samples; i += 32) {
    const real weight = r.weight[i];
    real g = to_opacity;
    if (to_depth != 0) g += to_depth * (r.middle(i) - e.depth);
    if (g_rgb) g += dot(to_rgb, load3(rgb.data, r.from + i)) - behind;
    if (g_normals) g += dot(to_normals, load3(normals.data, r.from + i));
    if (g_predicted) g += dot(to_predicted, load3(predicted.data, r.from + i));
    grad_w.data[r.from + i] = g;
    const bool last = background == kLastSample && i == r.samples - 1;
    if (grad_rgb) store3(grad_rgb.data, r.from + i, (last ? weight + 1 - opacity : weight) * to_rgb);
    if (grad_normals) store3(grad_normals.data, r.from + i, weight * to_normals);
    if (grad_predicted) store3(grad_predicted.data, r.from + i, weight * to_predicted);
  }
  if (!feature) return;
  __syncwarp();  // grad_w of every sample is written before lane 0 adds to it
  const int64_t channels = feature.size[2];
  for (int i = 0; i < r.samples; ++i) {
    const int64_t row = (r.from + i) * channels;
    const real weight = r.weight[i];
    real along = 0;
    for (int64_t c = lane(); c < channels; c += 32) {
      const real g = g_feature ? g_feature.data[ray * channels + c] : real(0);
      if (g_feature) along += g * to_float(feature.data[row + c]);
      if (grad_feature) grad_feature[row + c] = from_float<T>(weight * g);
    }
    along = raymarch::warp_sum(along);
    if (lane() == 0 && g_feature) grad_w.data[r.from + i] += along;
  }
}

void composite_forward(Cuda q, In<real, kRays, kSamples> w, In<real, kRays, kEdges> t, Heads rgb, Heads normals,
                       Heads predicted, Maybe<Payload<kRays, kSamples, kChannels>> feature,
                       Maybe<In<real, 3>> colour, int64_t background, bool clean,
                       Maybe<Out<real, kRays, 3>> rgb_out, Out<real, kRays> opacity, Out<real, kRays> depth,
                       Out<real, kRays> expected, Maybe<Out<real, kRays, 3>> normals_out,
                       Maybe<Out<real, kRays, 3>> predicted_out, Maybe<Out<real, kRays, kChannels>> feature_out) {
  require(t.size[1] == w.size[1] + 1 && w.size[1] > 0, "t must have one edge more than there are weights per ray");
  require(background != kColour || colour, "a constant background needs a colour");
  launch("composite_forward", composite_forward_kernel, blocks(w.size[0], kWarpsPerBlock), kThreads, q, w, t, rgb,
         normals, predicted, colour, background, clean, rgb_out, opacity, depth, expected, normals_out,
         predicted_out);
  if (!feature_out) return;
  with_dtype(feature, [&](auto feature) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(feature.data)>>;
    const int64_t slices = (feature.size[2] + 32 * kPerLane - 1) / (32 * kPerLane);
    launch("composite_forward", composite_feature_forward_kernel<T>, blocks(w.size[0] * slices, kWarpsPerBlock),
           kThreads, q, w, feature, static_cast<Out<real, kRays, kChannels>>(feature_out), slices);
  });
}

void composite_backward(Cuda q, In<real, kRays, kSamples> w, In<real, kRays, kEdges> t, Heads rgb, Heads normals,
                        Heads predicted, Maybe<Payload<kRays, kSamples, kChannels>> feature,
                        Maybe<In<real, 3>> colour, int64_t background, Maybe<In<real, kRays, 3>> g_rgb,
                        Maybe<In<real, kRays>> g_opacity, Maybe<In<real, kRays>> g_expected,
                        Maybe<In<real, kRays, 3>> g_normals, Maybe<In<real, kRays, 3>> g_predicted,
                        Maybe<In<real, kRays, kChannels>> g_feature, Out<real, kRays, kSamples> grad_w,
                        Maybe<Out<real, kRays, kSamples, 3>> grad_rgb,
                        Maybe<Out<real, kRays, kSamples, 3>> grad_normals,
                        Maybe<Out<real, kRays, kSamples, 3>> grad_predicted,
                        Maybe<OutPayload<kRays, kSamples, kChannels>> grad_feature) {
  with_dtype(feature, [&](auto feature) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(feature.data)>>;
    launch("composite_backward", composite_backward_kernel<T>, blocks(w.size[0], kWarpsPerBlock), kThreads, q, w, t,
           rgb, normals, predicted, Maybe<In<T, kRays, kSamples, kChannels>>{feature}, colour, background, g_rgb,
           g_opacity, g_expected, g_normals, g_predicted, g_feature, grad_w, grad_rgb, grad_normals, grad_predicted,
           static_cast<T*>(grad_feature.data));
  });
}

}  // namespace raymarch
