// Fields to pixels on the CPU: the loops of its parts, one after another, with the arrays between them kept
// here.
#include <algorithm>
#include <cmath>

#include "cpu/parallel.h"
#include "cpu/room.h"
#include "math/composite.h"
#include "math/losses.h"
#include "math/random.h"
#include "math/transmittance.h"
#include "ops.h"

namespace raymarch {
namespace {

// What a ray's colour is compared with, and what of it is random.
struct Compared {
  Vec3 behind, truth, difference;
};
Compared compare(const In<real, kRays, kInputs>& truth, const Maybe<In<int64_t, 2>>& counter,
                 int64_t background, int64_t stream, int64_t ray, Vec3 colour, real opacity) {
  const real* t = truth.data + ray * truth.size[1];
  const real alpha = truth.size[1] == 4 ? real(t[3]) : real(-1);
  Vec3 behind = background == kWhite ? Vec3{1, 1, 1} : Vec3{0, 0, 0};
  if (background == kRandom) {
    const uint64_t key = random_key(counter.data[0], counter.data[1], stream), at = uint64_t(3 * ray);
    behind = {uniform(key, at), uniform(key, at + 1), uniform(key, at + 2)};
  }
  const Vec3 true_colour = truth_over({real(t[0]), real(t[1]), real(t[2])}, alpha, behind);
  const bool random = background == kRandom && alpha >= 0;
  if (!random) behind = {0, 0, 0};
  return {behind, true_colour, colour + (1 - opacity) * behind - true_colour};
}

int64_t composed_background(int64_t background) { return background == kRandom ? kNoBackground : background; }

}  // namespace

void field_to_pixels_forward(Cpu q, In<real, kRays, kSamples> sigma, In<real, kRays, kEdges> s,
                             In<real, kRays, kEdges> t, In<real, kRays, kSamples, 3> rgb,
                             Maybe<In<real, kRays, kSamples, kChannels>> hidden,
                             Maybe<In<real, kRays, kSamples, 3>> normals,
                             Maybe<In<real, kRays, kSamples, 3>> predicted,
                             Maybe<In<real, kRays, 3>> directions, In<real, kRays, kInputs> truth,
                             Maybe<In<int64_t, 2>> counter, Several<In<real, kRays, kEdges>> s_proposal,
                             Several<In<real, kRays, kSamples>> w_proposal, int64_t background,
                             int64_t stream, Out<real, kRays, kSamples> w, Out<real, kRays, 3> colour,
                             Out<real, kRays> opacity, Maybe<Out<real, kRays, kChannels>> hidden_out,
                             Out<real, kEntries, kRays> losses) {
  const int64_t rays = w.size[0], samples = w.size[1];
  require(t.size[1] == samples + 1, "t must have one edge more than there are samples");
  require(truth.size[1] == 3 || truth.size[1] == 4, "truth must have 3 or 4 columns");
  require(background != kRandom || counter, "a random background needs a counter");
  Room<real, kRays, kSamples> delta(rays, samples);
  for (int64_t i = 0; i < rays; ++i)
    for (int64_t k = 0; k < samples; ++k)
      delta.view.data[i * samples + k] =
          interval_length(t.data[i * (samples + 1) + k], t.data[i * (samples + 1) + k + 1]);
  weights_forward(q, sigma, delta, w);
  Room<real, kRays> depth(rays), expected(rays);
  Maybe<Payload<kRays, kSamples, kChannels>> feature{};
  if (hidden) {
    feature.data = const_cast<real*>(hidden.data);
    feature.dtype = sizeof(real) == 8 ? Dtype::kFloat64 : Dtype::kFloat32;
    std::copy_n(hidden.size, 3, feature.size);
  }
  composite_forward(q, constant(w), t, {rgb}, {}, {}, feature, {}, composed_background(background), false,
                    Maybe<Out<real, kRays, 3>>{colour}, opacity, depth, expected, {}, {}, hidden_out);
  const auto row = [&](int64_t i) { return Out<real, kRays>{losses.data + i * rays, {rays}}; };
  const int64_t rows = losses.size[0];
  require(rows >= 3 && (rows < 4 || (normals && directions)) && (rows < 5 || predicted) && rows <= 5,
          "losses must have a row for each: 3, 4 with normals, 5 with predicted normals");
  for (int64_t i = 0; i < rays; ++i) {
    const Vec3 d =
        compare(truth, counter, background, stream, i, load3(colour.data, i), opacity.data[i]).difference;
    losses.data[i] = dot(d, d);
    losses.data[rays + i] = 0;
  }
  Room<real, kRays> of_level(rays);
  for (int level = 0; level < s_proposal.count; ++level) {
    const auto fine = seen_as<In<real, kRays, kFineEdges>>(s, rays, samples + 1);
    const auto w_fine = seen_as<In<real, kRays, kFine>>(constant(w), rays, samples);
    interlevel_forward(q, fine, w_fine, s_proposal.item[level], w_proposal.item[level], of_level);
    for (int64_t i = 0; i < rays; ++i) losses.data[rays + i] += of_level.view.data[i];
  }
  distortion_forward(q, s, constant(w), row(2));
  if (rows > 3) orientation_forward(q, constant(w), normals, directions, row(3));
  if (rows > 4) predicted_normals_forward(q, constant(w), normals, predicted, row(4));
}

void field_to_pixels_backward(
    Cpu q, In<real, kRays, kSamples> sigma, In<real, kRays, kEdges> s, In<real, kRays, kEdges> t,
    In<real, kRays, kSamples, 3> rgb, Maybe<In<real, kRays, kSamples, kChannels>> hidden,
    Maybe<In<real, kRays, kSamples, 3>> normals, Maybe<In<real, kRays, 3>> directions,
    In<real, kRays, kInputs> truth, Maybe<In<int64_t, 2>> counter, int64_t background, int64_t stream,
    bool calm, bool detached, In<real, kRays, kSamples> w, In<real, kRays, 3> colour, In<real, kRays> opacity,
    In<real, kEntries> grad, Maybe<In<real, kCode, kRays, kChannels>> g_hidden,
    Maybe<In<real, 1>> grad_hidden_scale, Out<real, kRays, kSamples> grad_sigma,
    Out<real, kRays, kSamples, 3> grad_rgb, Maybe<Out<real, kRays, kSamples, kChannels>> grad_hidden,
    Maybe<Out<real, kRays, kSamples, 3>> grad_predicted, Maybe<Out<real, kRays, 3>> grad_directions) {
  const int64_t rays = w.size[0], samples = w.size[1];
  require(t.size[1] == samples + 1, "t must have one edge more than there are samples");
  require(truth.size[1] == 3 || truth.size[1] == 4, "truth must have 3 or 4 columns");
  require(background != kRandom || counter, "a random background needs a counter");
  const int64_t rows = grad.size[0];
  require(rows >= 3 && (!grad_directions || (rows > 3 && normals && directions)) &&
              (!grad_predicted || (rows > 4 && normals)),
          "grad must have a number for each row of losses");
  const int64_t channels = hidden ? hidden.size[2] : 0, parts = g_hidden ? g_hidden.size[0] : 0;
  Room<real, kRays, 3> g_rgb(rays, 3);
  Room<real, kRays> g_opacity(rays), g_distortion(rays), g_normals(rays);
  Room<real, kRays, kChannels> g_feature(rays, channels);
  for (int64_t i = 0; i < rays; ++i) {
    const Compared c = compare(truth, counter, background, stream, i, load3(colour.data, i), opacity.data[i]);
    const Vec3 g = (2 * grad.data[0]) * c.difference;
    store3(g_rgb.view.data, i, g);
    g_opacity.view.data[i] = -dot(g, c.behind);
    g_distortion.view.data[i] = grad.data[2];
    for (int64_t k = 0; k < channels; ++k) {
      real sum = 0;
      for (int64_t part = 0; part < parts; ++part) sum += g_hidden.data[(part * rays + i) * channels + k];
      g_feature.view.data[i * channels + k] = grad_hidden_scale ? sum * grad_hidden_scale.data[0] : sum;
    }
  }
  Maybe<Payload<kRays, kSamples, kChannels>> feature{};
  Maybe<OutPayload<kRays, kSamples, kChannels>> grad_feature{};
  feature.dtype = grad_feature.dtype = sizeof(real) == 8 ? Dtype::kFloat64 : Dtype::kFloat32;
  if (hidden) {
    require(bool(grad_hidden), "hidden needs grad_hidden");
    feature.data = const_cast<real*>(hidden.data), grad_feature.data = grad_hidden.data;
    std::copy_n(hidden.size, 3, feature.size), std::copy_n(hidden.size, 3, grad_feature.size);
  }
  Room<real, kRays, kSamples> grad_w(rays, samples), more(rays, samples), delta(rays, samples);
  const Maybe<Out<real, kRays, kSamples>> to_w{grad_w.view};
  if (hidden && detached) {
    composite_backward(q, w, t, {}, {}, {}, feature, {}, kNoBackground, false, {}, {}, {}, {}, {},
                       g_feature.maybe(), {}, {}, {}, {}, grad_feature);
    feature.data = nullptr, grad_feature.data = nullptr;
  }
  composite_backward(q, w, t, {rgb}, {}, {}, feature, {}, composed_background(background), false,
                     g_rgb.maybe(), g_opacity.maybe(), {}, {}, {},
                     feature ? g_feature.maybe() : Maybe<In<real, kRays, kChannels>>{}, to_w,
                     Maybe<Out<real, kRays, kSamples, 3>>{grad_rgb}, {}, {}, grad_feature);
  distortion_backward(q, s, w, g_distortion, more);
  for (int64_t i = 0; i < rays * samples; ++i) {
    grad_w.view.data[i] += more.view.data[i];
    const real* edge = t.data + i / samples * (samples + 1) + i % samples;
    delta.view.data[i] = interval_length(edge[0], edge[1]);
  }
  weights_backward(q, sigma, delta, w, grad_w, Maybe<Out<real, kRays, kSamples>>{grad_sigma}, {});
  if (grad_directions) {
    std::fill_n(g_normals.view.data, rays, grad.data[3]);
    orientation_backward(q, w, normals, directions, g_normals, {}, {}, grad_directions);
  }
  if (grad_predicted) {
    std::fill_n(g_normals.view.data, rays, grad.data[4]);
    predicted_normals_backward(q, w, normals, g_normals,
                               seen_as<Out<real, kRays, kSamples, 3>>(grad_predicted, rays, samples, 3));
  }
  if (calm)
    for (int64_t i = 0; i < rays * samples; ++i) {
      const real* edge = t.data + i / samples * (samples + 1) + i % samples;
      const real factor = calm_near_camera(real(0.5) * (edge[0] + edge[1]));
      grad_sigma.data[i] *= factor;
      store3(grad_rgb.data, i, factor * load3(grad_rgb.data, i));
      if (grad_predicted) store3(grad_predicted.data, i, factor * load3(grad_predicted.data, i));
    }
}

void sum_losses(Cpu, In<real, kEntries, kRays> rows, In<real, kEntries> scales, In<int64_t, kEntries> owner,
                Maybe<In<real, 1>> penalty, Out<real, kEntries> sums, Out<int32_t, 1>,
                Out<real, kOutputs> terms, Out<bool, 1> healthy, Out<int64_t, kCode> steps,
                In<int64_t, kCode> stepping) {
  std::fill_n(terms.data, terms.size[0], real(0));
  for (int64_t k = 0; k < rows.size[0]; ++k) {
    double total = 0;
    for (int64_t i = 0; i < rows.size[1]; ++i) total += rows.data[k * rows.size[1] + i];
    sums.data[k] = real(total * scales.data[k]);
    require(owner.data[k] >= 0 && owner.data[k] < terms.size[0], "owner names a term that is not there");
    terms.data[owner.data[k]] += sums.data[k];
  }
  if (penalty) terms.data[terms.size[0] - 1] = penalty.data[0];
  real all = 0;
  for (int64_t k = 0; k < terms.size[0]; ++k) all += terms.data[k];
  if (!std::isfinite(all)) healthy.data[0] = false;
  for (int64_t k = 0; k < steps.size[0]; ++k) steps.data[k] += healthy.data[0] ? stepping.data[k] : 0;
}

void advance(Cpu, Out<int64_t, 2> counter, In<bool, 1> healthy, In<float, kEntries, kParams> schedules,
             Out<float, kParams> row) {
  counter.data[1] += healthy.data[0];
  const int64_t last = schedules.size[0] - 1;
  require(last >= 0, "schedules must have a row");
  const int64_t at = std::min(std::max<int64_t>(counter.data[1], 0), last);
  std::copy_n(schedules.data + at * schedules.size[1], schedules.size[1], row.data);
}

}  // namespace raymarch
