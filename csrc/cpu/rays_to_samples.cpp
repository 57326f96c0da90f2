// Rays to samples on the CPU: the loops of its parts, one after another, with the arrays between them kept
// here.
#include "cpu/parallel.h"
#include "cpu/room.h"
#include "math/box.h"
#include "math/contract.h"
#include "math/pose.h"
#include "math/transmittance.h"
#include "ops.h"

namespace raymarch {
namespace {

// xi as the exponential map sees it.
void centre(In<real, kCameras, 6> xi, const Maybe<In<bool, kCameras, 1>>& free, bool centred, real* to) {
  const int64_t cameras = xi.size[0];
  double mean[6] = {};
  if (centred && !free)
    for (int64_t i = 0; i < 6 * cameras; ++i) mean[i % 6] += double(xi.data[i]) / double(cameras);
  for (int64_t i = 0; i < 6 * cameras; ++i)
    to[i] = free && !free.data[i / 6] ? real(0) : real(double(xi.data[i]) - mean[i % 6]);
}

}  // namespace

void refine_forward(Cpu q, In<real, kCameras, 6> xi, Maybe<In<bool, kCameras, 1>> free, bool centred,
                    int64_t mode, bool clamped, double translation, double rotation,
                    Out<real, kCameras, 3, 4> pose, Out<real, 1> penalty) {
  Room<real, kCameras, 6> seen(xi.size[0], 6);
  centre(xi, free, centred, seen.view.data);
  pose_forward(q, seen, mode, clamped, pose);
  double lengths[2] = {};
  for (int64_t i = 0; i < 2 * xi.size[0]; ++i) {
    const Vec3 v = load3(seen.view.data, i);
    lengths[i % 2] += std::sqrt(double(dot(v, v)));
  }
  penalty.data[0] = real((translation * lengths[0] + rotation * lengths[1]) / double(xi.size[0]));
}

void refine_backward(Cpu q, In<real, kCameras, 6> xi, Maybe<In<bool, kCameras, 1>> free, bool centred,
                     int64_t mode, bool clamped, double translation, double rotation,
                     Maybe<In<real, kCameras, 3, 4>> grad_pose, Maybe<In<real, 1>> grad_penalty,
                     Out<real, kCameras, 6> grad_xi) {
  const int64_t cameras = xi.size[0];
  Room<real, kCameras, 6> seen(cameras, 6);
  centre(xi, free, centred, seen.view.data);
  if (grad_pose)
    pose_backward(q, seen, mode, clamped, grad_pose, grad_xi);
  else
    std::fill_n(grad_xi.data, 6 * cameras, real(0));
  const real factors[2] = {real(translation / double(cameras)), real(rotation / double(cameras))};
  for (int64_t i = 0; grad_penalty && i < 2 * cameras; ++i) {
    const Vec3 g = length_vjp(load3(seen.view.data, i), factors[i % 2] * grad_penalty.data[0]);
    store3(grad_xi.data, i, load3(grad_xi.data, i) + g);
  }
  double mean[6] = {};
  if (centred && !free)
    for (int64_t i = 0; i < 6 * cameras; ++i) mean[i % 6] += double(grad_xi.data[i]) / double(cameras);
  for (int64_t i = 0; i < 6 * cameras; ++i)
    grad_xi.data[i] = free && !free.data[i / 6] ? real(0) : real(double(grad_xi.data[i]) - mean[i % 6]);
}

void cast_rays(Cpu q, In<real, kCameras, 3, 4> camera_to_worlds, In<int64_t, kRays> camera,
               In<real, kRays, 2> xy, In<real, kCameras, 4> intrinsics, In<real, kCameras, 12> distortion,
               In<int64_t, kCameras> lens, Maybe<In<real, kCameras, 3, 4>> adjustment, int64_t compose,
               double eye_distance, Maybe<In<real, 2, 3>> box, double near_plane, double far_plane,
               Maybe<In<int64_t, 2>> counter, int64_t spacing, int64_t jitter, int64_t stream, int64_t norm,
               Out<real, kRays, 3> origins, Out<real, kRays, 3> directions, Out<real, kRays> area,
               Out<real, kRays> directions_norm, Out<bool, kRays> converged, Out<real, kRays> near,
               Out<real, kRays> far, Out<real, kRays, kEdges> s, Out<real, kRays, kEdges> t,
               Maybe<Out<real, kRays, kSamples, 3>> y) {
  rays_forward(q, camera_to_worlds, camera, xy, intrinsics, distortion, lens, adjustment, compose,
               eye_distance, origins, directions, area, directions_norm, converged);
  const real nearest = real(near_plane), farthest = real(far_plane);
  for (int64_t i = 0; i < near.size[0]; ++i) {
    Span span = {nearest, farthest};
    if (box)
      span = searched(
          ray_box(load3(origins.data, i), load3(directions.data, i), load3(box.data, 0), load3(box.data, 1)),
          nearest, farthest);
    near.data[i] = span.near, far.data[i] = span.far;
  }
  sample_spaced(q, constant(near), constant(far), counter, s, t, spacing, jitter, stream);
  if (y) sample_unit_positions_forward(q, constant(origins), constant(directions), constant(t), y, norm);
}

void ray_gradients(Cpu q, In<real, kRays, 3> origins, In<real, kRays, 3> directions,
                   Several<In<real, kRays, kEdges>> t, Several<In<real, kRays, kSamples, 3>> grad_y,
                   int64_t norm, Maybe<In<real, kRays, 3>> more_origins,
                   Maybe<In<real, kRays, 3>> more_directions, Out<real, kRays, 3> grad_origins,
                   Out<real, kRays, 3> grad_directions) {
  const int64_t rays = origins.size[0];
  const auto start = [&](const auto& more, real* to) {
    for (int64_t i = 0; i < 3 * rays; ++i) to[i] = more ? more.data[i] : real(0);
  };
  start(more_origins, grad_origins.data), start(more_directions, grad_directions.data);
  Room<real, kRays, 3> of_origins(rays, 3), of_directions(rays, 3);
  for (int level = 0; level < t.count; ++level) {
    require(t.item[level].size[0] == rays, "t must have the rays of origins");
    sample_unit_positions_backward(q, origins, directions, t.item[level], grad_y.item[level], of_origins,
                                   of_directions, norm);
    for (int64_t i = 0; i < 3 * rays; ++i) {
      grad_origins.data[i] += of_origins.view.data[i];
      grad_directions.data[i] += of_directions.view.data[i];
    }
  }
}

namespace {

// Densities of the samples of rays, and the lengths of their intervals. Without positions h is density
// already.
void optics(Cpu q, In<real, kPoints, kChannels> h, Maybe<In<real, kPoints, 3>> y, double scale, const real* t,
            int64_t rays, int64_t samples, Out<real, kRays, kSamples> sigma, real* delta) {
  require(h.size[0] == rays * samples, "h must have a row for every sample of every ray");
  if (y)
    density_forward(q, h, y, scale, seen_as<Out<real, kPoints>>(sigma, h.size[0]));
  else
    for (int64_t i = 0; i < h.size[0]; ++i) sigma.data[i] = h.data[i * h.size[1]];
  for (int64_t ray = 0; ray < rays; ++ray)
    for (int64_t i = 0; i < samples; ++i)
      delta[ray * samples + i] = interval_length(t[ray * (samples + 1) + i], t[ray * (samples + 1) + i + 1]);
}

}  // namespace

void resample(Cpu q, In<real, kPoints, kChannels> h, Maybe<In<real, kPoints, 3>> y, double scale,
              In<real, kRays, kFineEdges> s, In<real, kRays, kFineEdges> t, In<real, kRays> near,
              In<real, kRays> far, In<real, kRays, 3> origins, In<real, kRays, 3> directions,
              Maybe<In<int64_t, 2>> counter, Maybe<In<real, 1>> anneal, int64_t spacing, int64_t jitter,
              int64_t stream, double padding, int64_t norm, Out<real, kRays, kFine> w,
              Out<real, kRays, kEdges> s_new, Out<real, kRays, kEdges> t_new,
              Maybe<Out<real, kRays, kSamples, 3>> y_new) {
  const int64_t rays = w.size[0], samples = w.size[1];
  require(t.size[1] == samples + 1, "t must have one edge more than there are weights");
  Room<real, kRays, kSamples> sigma(rays, samples), delta(rays, samples);
  optics(q, h, y, scale, t.data, rays, samples, sigma, delta.view.data);
  weights_forward(q, sigma, delta, seen_as<Out<real, kRays, kSamples>>(w, rays, samples));
  sample_pdf(q, s, constant(w), near, far, counter, anneal, s_new, t_new, spacing, jitter, stream, padding);
  if (y_new) sample_unit_positions_forward(q, origins, directions, constant(t_new), y_new, norm);
}

void proposal_backward(Cpu q, In<real, kPoints, kChannels> h, In<real, kPoints, 3> y, double scale,
                       In<real, kRays, kEdges> s, In<real, kRays, kEdges> t, In<real, kRays, kSamples> w,
                       In<real, kRays, kFineEdges> s_fine, In<real, kRays, kFine> w_fine, In<real, 1> grad,
                       Out<real, kPoints, kChannels> grad_h) {
  const int64_t rays = w.size[0], samples = w.size[1];
  require(t.size[1] == samples + 1, "t must have one edge more than there are weights");
  Room<real, kRays> of_ray(rays);
  std::fill_n(of_ray.view.data, rays, grad.data[0]);
  Room<real, kRays, kSamples> sigma(rays, samples), delta(rays, samples), grad_w(rays, samples);
  interlevel_backward(q, s_fine, w_fine, s, w, of_ray, grad_w);
  optics(q, h, {y}, scale, t.data, rays, samples, sigma, delta.view.data);
  Room<real, kRays, kSamples> grad_sigma(rays, samples);
  weights_backward(q, sigma, delta, w, grad_w, Maybe<Out<real, kRays, kSamples>>{grad_sigma.view}, {});
  density_backward(q, h, y, scale, seen_as<In<real, kPoints>>(grad_sigma.view, h.size[0]), grad_h);
}

}  // namespace raymarch
