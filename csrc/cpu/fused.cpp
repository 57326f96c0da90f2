// Fused stages on the CPU: the loops of their parts, one after another, with the arrays between them kept
// here.
#include <algorithm>
#include <atomic>
#include <vector>

#include "cpu/parallel.h"
#include "math/activation.h"
#include "math/box.h"
#include "math/composite.h"
#include "math/contract.h"
#include "math/harmonics.h"
#include "math/losses.h"
#include "math/pose.h"
#include "math/random.h"
#include "ops.h"

namespace raymarch {
namespace {

// An array of this call alone; even an empty one is somewhere.
template <class T, int... Dims>
struct Room {
  std::vector<T> numbers;
  View<T, Dims...> view;
  template <class... Sizes>
  explicit Room(Sizes... sizes) : numbers(size_t(std::max<int64_t>(1, (int64_t{1} * ... * sizes)))) {
    view = {numbers.data(), {int64_t(sizes)...}};
  }
  operator In<T, Dims...>() const { return as<In<T, Dims...>>(); }
  operator Out<T, Dims...>() { return view; }
  Maybe<In<T, Dims...>> maybe() const { return {as<In<T, Dims...>>()}; }

 private:
  template <class V>
  V as() const {
    V other;
    other.data = view.data;
    std::copy_n(view.size, sizeof...(Dims), other.size);
    return other;
  }
};

// The same numbers under other names of dimensions.
template <class V, class T, int... Dims, class... Sizes>
V seen_as(const View<T, Dims...>& view, Sizes... sizes) {
  V other;
  other.data = view.data;
  const int64_t size[] = {int64_t(sizes)...};
  std::copy_n(size, sizeof...(Sizes), other.size);
  return other;
}

template <class T, int... Dims>
In<T, Dims...> constant(const View<T, Dims...>& view) {
  In<T, Dims...> other;
  other.data = view.data;
  std::copy_n(view.size, sizeof...(Dims), other.size);
  return other;
}

// Calls body with rows of `width` numbers, then writes them to rows of x, at least as wide, ones behind them.
template <class Body>
void fill_rows(OutPayload<kPoints, kOutputs> x, int64_t width, const Body& body) {
  with_dtype(x, [&](auto view) {
    using T = std::remove_pointer_t<decltype(view.data)>;
    if constexpr (std::is_same_v<T, real>)
      if (width == view.size[1]) return body(view);
    Room<real, kPoints, kOutputs> exact(x.size[0], width);
    body(exact.view);
    parallel_for(x.size[0], view.size[1], [&](int64_t i) {
      for (int64_t c = 0; c < view.size[1]; ++c)
        view.data[i * view.size[1] + c] = from_float<T>(c < width ? exact.view.data[i * width + c] : real(1));
    });
  });
}

Vec3 middle(Vec3 o, Vec3 d, const real* t, int64_t i) { return o + (real(0.5) * (t[i] + t[i + 1])) * d; }

}  // namespace

void draw_truth(Cpu q, In<int64_t, 2> counter, In<int64_t, kEdges> starts, In<int64_t, kCameras> widths,
                Maybe<In<int64_t, kEntries>> valid, In<uint8_t, kBytes> images,
                Maybe<Payload<kPoints, kChannels>> maps, Maybe<In<int64_t, kCameras>> map_starts,
                Maybe<In<int64_t, kCameras, 2>> map_size, In<int64_t, kCameras, 2> image_size,
                Out<int64_t, kRays> camera, Out<float, kRays, 2> xy, Out<float, kRays, kInputs> colour,
                Maybe<Out<float, kRays, kChannels>> feature, int64_t stream, int64_t mode) {
  Room<int64_t, kRays> index(camera.size[0]);
  draw_pixels(q, counter, starts, widths, valid, camera, xy, index, stream);
  gather_pixels(q, images, index, {colour.data, {colour.size[0], colour.size[1]}});
  if (!feature) return;
  require(maps && map_starts && map_size, "features need maps, map_starts and map_size");
  const Payload<kEntries, kChannels> cells = {maps.data, maps.dtype, {maps.size[0], maps.size[1]}};
  gather_features(q, cells, map_starts, map_size, image_size, constant(camera), constant(xy), feature, mode);
}

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
               Out<real, kRays, kSamples, 3> y) {
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
  sample_unit_positions_forward(q, constant(origins), constant(directions), constant(t), y, norm);
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

// Densities of the samples of rays, and the lengths of their intervals.
void optics(Cpu q, In<real, kPoints, kChannels> h, In<real, kPoints, 3> y, double scale, const real* t,
            int64_t rays, int64_t samples, Out<real, kRays, kSamples> sigma, real* delta) {
  require(h.size[0] == rays * samples, "h must have a row for every sample of every ray");
  density_forward(q, h, y, scale, seen_as<Out<real, kPoints>>(sigma, h.size[0]));
  for (int64_t ray = 0; ray < rays; ++ray)
    for (int64_t i = 0; i < samples; ++i)
      delta[ray * samples + i] = t[ray * (samples + 1) + i + 1] - t[ray * (samples + 1) + i];
}

}  // namespace

void resample(Cpu q, In<real, kPoints, kChannels> h, In<real, kPoints, 3> y, double scale,
              In<real, kRays, kFineEdges> s, In<real, kRays, kFineEdges> t, In<real, kRays> near,
              In<real, kRays> far, In<real, kRays, 3> origins, In<real, kRays, 3> directions,
              Maybe<In<int64_t, 2>> counter, Maybe<In<real, 1>> anneal, int64_t spacing, int64_t jitter,
              int64_t stream, double padding, int64_t norm, Out<real, kRays, kFine> w,
              Out<real, kRays, kEdges> s_new, Out<real, kRays, kEdges> t_new,
              Out<real, kRays, kSamples, 3> y_new) {
  const int64_t rays = w.size[0], samples = w.size[1];
  require(t.size[1] == samples + 1, "t must have one edge more than there are weights");
  Room<real, kRays, kSamples> sigma(rays, samples), delta(rays, samples);
  optics(q, h, y, scale, t.data, rays, samples, sigma, delta.view.data);
  weights_forward(q, sigma, delta, seen_as<Out<real, kRays, kSamples>>(w, rays, samples));
  sample_pdf(q, s, constant(w), near, far, counter, anneal, s_new, t_new, spacing, jitter, stream, padding);
  sample_unit_positions_forward(q, origins, directions, constant(t_new), y_new, norm);
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
  optics(q, h, y, scale, t.data, rays, samples, sigma, delta.view.data);
  Room<real, kRays, kSamples> grad_sigma(rays, samples);
  weights_backward(q, sigma, delta, w, grad_w, Maybe<Out<real, kRays, kSamples>>{grad_sigma.view}, {});
  density_backward(q, h, y, scale, seen_as<In<real, kPoints>>(grad_sigma.view, h.size[0]), grad_h);
}

namespace {

Room<real, kRays, kCode> codes_of_rays(const Maybe<In<int64_t, kRays>>& camera,
                                       const Maybe<In<real, kCameras, kCode>>& codes, int64_t rays) {
  Room<real, kRays, kCode> found(rays, codes ? codes.size[1] : 0);
  for (int64_t i = 0; codes && i < rays; ++i) {
    const int64_t c = camera.data[i], width = codes.size[1];
    require(c >= 0 && c < codes.size[0], "camera has an index that no code has");
    std::copy_n(codes.data + c * width, width, found.view.data + i * width);
  }
  return found;
}

}  // namespace

void radiance_inputs_forward(Cpu q, In<real, kPoints, kChannels> h, In<real, kPoints, 3> y, double scale,
                             In<real, kRays, 3> directions, int64_t signs, Maybe<In<int64_t, kRays>> camera,
                             Maybe<In<real, kCameras, kCode>> codes, Out<real, kPoints> sigma,
                             OutPayload<kPoints, kOutputs> any) {
  require(!codes || camera, "codes need the cameras of rays");
  const int64_t rays = directions.size[0], width = 16 + h.size[1] - 1 + (codes ? codes.size[1] : 0);
  require(h.size[1] > 0 && any.size[1] >= width,
          "x must have a column for each of 16 harmonics, h but its first, and code");
  Room<real, kPoints, 16> direction(rays, 16);
  harmonics_forward(q, seen_as<In<real, kPoints, 3>>(directions, rays, 3), signs, direction);
  const Room<real, kRays, kCode> code = codes_of_rays(camera, codes, rays);
  const auto before = seen_as<In<real, kRays, kInputs>>(direction.view, rays, 16);
  fill_rows(any, width, [&](Out<real, kPoints, kOutputs> x) {
    colour_inputs_forward(q, h, y, scale, before, codes ? code.maybe() : Maybe<In<real, kRays, kCode>>{},
                          sigma, x);
  });
}

void radiance_inputs_backward(Cpu q, In<real, kPoints, kChannels> h, In<real, kPoints, 3> y, double scale,
                              In<real, kRays, 3> directions, int64_t signs, Maybe<In<int64_t, kRays>> camera,
                              In<real, kPoints> grad_sigma, In<real, kPoints, kOutputs> grad_x,
                              Maybe<In<real, kPoints, kInputs>> more_h, int64_t column,
                              Maybe<In<real, kRays, 3>> more_directions, Out<real, kPoints, kChannels> grad_h,
                              Out<real, kRays, 3> grad_directions,
                              Maybe<Out<real, kCameras, kCode>> grad_codes,
                              Maybe<Out<real, kRays, kCode>> grad_code) {
  const int64_t rays = directions.size[0], channels = h.size[1];
  const int64_t rest = grad_x.size[1] - 16 - (channels - 1);
  const int64_t after = grad_codes ? grad_codes.size[1] : grad_code ? grad_code.size[1] : 0;
  require(rest >= after, "grad_x must have a column for each of 16 harmonics, h but its first, and code");
  require(!grad_codes || camera, "grad_codes needs the cameras of rays");
  require(!more_h || column + channels - 1 <= more_h.size[1],
          "more_h must have the columns of h from `column`");
  Room<real, kRays, kInputs> of_direction(rays, 16);
  Room<real, kRays, kCode> of_code(rays, rest);
  colour_inputs_backward(q, h, y, scale, Maybe<In<real, kPoints>>{grad_sigma}, grad_x, grad_h, of_direction,
                         Maybe<Out<real, kRays, kCode>>{of_code.view});
  harmonics_backward(q, seen_as<In<real, kPoints, 3>>(directions, rays, 3), signs,
                     seen_as<In<real, kPoints, 16>>(of_direction.view, rays, 16),
                     seen_as<Out<real, kPoints, 3>>(grad_directions, rays, 3));
  for (int64_t i = 0; more_directions && i < 3 * rays; ++i)
    grad_directions.data[i] += more_directions.data[i];
  if (more_h)
    parallel_for(h.size[0], channels, [&](int64_t i) {
      for (int64_t c = 1; c < channels; ++c)
        grad_h.data[i * channels + c] += more_h.data[i * more_h.size[1] + column + c - 1];
    });
  for (int64_t i = 0; grad_code && i < rays; ++i)
    std::copy_n(of_code.view.data + i * rest, after, grad_code.data + i * after);
  for (int64_t i = 0; grad_codes && i < rays; ++i)
    for (int64_t c = 0; c < after; ++c)
      grad_codes.data[camera.data[i] * after + c] += of_code.view.data[i * rest + c];
}

void slope_normals(Cpu, In<real, kRays, 3> origins, In<real, kRays, 3> directions, In<real, kRays, kEdges> t,
                   In<real, kRays, kSamples, 3> slope, int64_t norm, bool contracted,
                   Out<real, kRays, kSamples, 3> normals) {
  const int64_t samples = slope.size[1];
  require(t.size[1] == samples + 1, "t must have one edge more than there are samples");
  parallel_for(t.size[0], 16 * samples, [&](int64_t ray) {
    const Vec3 o = load3(origins.data, ray), d = load3(directions.data, ray);
    for (int64_t i = 0; i < samples; ++i) {
      Vec3 g = load3(slope.data, ray * samples + i);
      if (!contracted) g = contract_unit_vjp(norm, middle(o, d, t.data + ray * (samples + 1), i), g);
      store3(normals.data, ray * samples + i, real(-1) * normalised(g));
    }
  });
}

void normal_inputs_forward(Cpu, In<real, kRays, 3> origins, In<real, kRays, 3> directions,
                           In<real, kRays, kEdges> t, In<real, kPoints, kChannels> h, int64_t frequencies,
                           int64_t layout, OutPayload<kPoints, kOutputs> any) {
  const int64_t samples = t.size[1] - 1, waves = int64_t(6) * frequencies, width = waves + h.size[1] - 1;
  const char* problem = fourier_problem(frequencies, layout, 0, width);
  require(!problem, problem);
  require(any.size[1] >= width, "x must have a column for each wave, and for h but its first");
  require(any.size[0] == t.size[0] * samples, "x must have a row for every sample of every ray");
  const auto fill = [&](Out<real, kPoints, kOutputs> x) {
    parallel_for(t.size[0], 20 * samples * frequencies, [&](int64_t ray) {
      const Vec3 o = load3(origins.data, ray), d = load3(directions.data, ray);
      for (int64_t i = 0; i < samples; ++i) {
        const Vec3 at = middle(o, d, t.data + ray * (samples + 1), i);
        const real coordinates[3] = {at.x, at.y, at.z};
        const int64_t row = ray * samples + i;
        real* to = x.data + row * width;
        for (int axis = 0; axis < 3; ++axis)
          for (int k = 0; k < frequencies; ++k) {
            const Turn wave = turn(fourier_frequency(k, layout) * coordinates[axis]);
            const Columns c = fourier_columns(axis, k, int(frequencies), layout);
            to[c.sine] = wave.sine, to[c.cosine] = wave.cosine;
          }
        std::copy_n(h.data + row * h.size[1] + 1, h.size[1] - 1, to + waves);
      }
    });
  };
  fill_rows(any, width, fill);
}

void normal_inputs_backward(Cpu, In<real, kRays, 3> origins, In<real, kRays, 3> directions,
                            In<real, kRays, kEdges> t, int64_t frequencies, int64_t layout,
                            In<real, kPoints, kOutputs> grad_x, Maybe<In<real, kRays, 3>> more_directions,
                            Out<real, kRays, 3> grad_origins, Out<real, kRays, 3> grad_directions) {
  const int64_t samples = t.size[1] - 1, width = grad_x.size[1];
  const char* problem = fourier_problem(frequencies, layout, 0, width);
  require(!problem, problem);
  require(grad_x.size[0] == t.size[0] * samples, "grad_x must have a row for every sample of every ray");
  parallel_for(t.size[0], 20 * samples * frequencies, [&](int64_t ray) {
    const Vec3 o = load3(origins.data, ray), d = load3(directions.data, ray);
    const real* edges = t.data + ray * (samples + 1);
    Vec3 to_o{0, 0, 0}, to_d = more_directions ? load3(more_directions.data, ray) : Vec3{0, 0, 0};
    for (int64_t i = 0; i < samples; ++i) {
      const Vec3 at = middle(o, d, edges, i);
      const real coordinates[3] = {at.x, at.y, at.z};
      const real* from = grad_x.data + (ray * samples + i) * width;
      real g[3] = {};
      for (int axis = 0; axis < 3; ++axis)
        for (int k = 0; k < frequencies; ++k) {
          const Columns c = fourier_columns(axis, k, int(frequencies), layout);
          const real frequency = fourier_frequency(k, layout);
          g[axis] += turn_vjp(turn(frequency * coordinates[axis]), frequency, {from[c.sine], from[c.cosine]});
        }
      const Vec3 to_x = {g[0], g[1], g[2]};
      to_o = to_o + to_x, to_d = to_d + (real(0.5) * (edges[i] + edges[i + 1])) * to_x;
    }
    store3(grad_origins.data, ray, to_o), store3(grad_directions.data, ray, to_d);
  });
}

namespace {

Vec3 head_of(const real* z, const real* weight, const real* bias, int64_t inputs) {
  real a[3] = {bias[0], bias[1], bias[2]};
  for (int k = 0; k < 3; ++k)
    for (int64_t c = 0; c < inputs; ++c) a[k] += weight[k * inputs + c] * z[c];
  return tanh3({a[0], a[1], a[2]});
}

}  // namespace

void normal_head_forward(Cpu, In<real, kPoints, kInputs> z, In<real, 3, kInputs> weight, In<real, 3> bias,
                         Out<real, kPoints, 3> n) {
  const int64_t inputs = z.size[1];
  parallel_for(z.size[0], 6 * inputs, [&](int64_t i) {
    store3(n.data, i, normalised(head_of(z.data + i * inputs, weight.data, bias.data, inputs)));
  });
}

void normal_head_backward(Cpu, In<real, kPoints, kInputs> z, In<real, 3, kInputs> weight, In<real, 3> bias,
                          In<real, kPoints, 3> grad_n, Out<real, kPoints, kInputs> grad_z,
                          Out<real, kEntries, kParams> partial) {
  const int64_t inputs = z.size[1], parts = partial.size[0], points = z.size[0];
  require(partial.size[1] == 3 * inputs + 3 && parts > 0, "partial must have a column per weight and bias");
  parallel_for(parts, 1 << 20, [&](int64_t part) {
    real* to = partial.data + part * partial.size[1];
    std::fill_n(to, partial.size[1], real(0));
    for (int64_t i = points * part / parts; i < points * (part + 1) / parts; ++i) {
      const real* row = z.data + i * inputs;
      const Vec3 y = head_of(row, weight.data, bias.data, inputs);
      const Vec3 v = tanh3_vjp(y, normalised_vjp(y, load3(grad_n.data, i)));
      const real g[3] = {v.x, v.y, v.z};
      for (int64_t c = 0; c < inputs; ++c)
        grad_z.data[i * inputs + c] =
            g[0] * weight.data[c] + g[1] * weight.data[inputs + c] + g[2] * weight.data[2 * inputs + c];
      for (int k = 0; k < 3; ++k) {
        for (int64_t c = 0; c < inputs; ++c) to[k * inputs + c] += g[k] * row[c];
        to[3 * inputs + k] += g[k];
      }
    }
  });
}

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
      delta.view.data[i * samples + k] = t.data[i * (samples + 1) + k + 1] - t.data[i * (samples + 1) + k];
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
    delta.view.data[i] = edge[1] - edge[0];
  }
  weights_backward(q, sigma, delta, w, grad_w, Maybe<Out<real, kRays, kSamples>>{grad_sigma}, {});
  if (calm)
    for (int64_t i = 0; i < rays * samples; ++i) {
      const real* edge = t.data + i / samples * (samples + 1) + i % samples;
      const real factor = calm_near_camera(real(0.5) * (edge[0] + edge[1]));
      grad_sigma.data[i] *= factor;
      store3(grad_rgb.data, i, factor * load3(grad_rgb.data, i));
    }
  if (grad_directions) {
    std::fill_n(g_normals.view.data, rays, grad.data[3]);
    orientation_backward(q, w, normals, directions, g_normals, {}, {}, grad_directions);
  }
  if (grad_predicted) {
    std::fill_n(g_normals.view.data, rays, grad.data[4]);
    predicted_normals_backward(q, w, normals, g_normals,
                               seen_as<Out<real, kRays, kSamples, 3>>(grad_predicted, rays, samples, 3));
  }
}

void feature_loss(Cpu, In<real, kRays, kInputs> hidden, In<real, kOutputs, kInputs> layer,
                  In<real, kRays, kOutputs> target, Out<real, kCode, kRays> losses,
                  Out<real, kCode, kRays, kInputs> grad_hidden,
                  Out<real, kEntries, kOutputs, kInputs> grad_layer) {
  const int64_t rays = hidden.size[0], inputs = hidden.size[1], outputs = layer.size[0];
  const int64_t parts = losses.size[0], groups = grad_layer.size[0];
  require(parts > 0 && groups > 0, "losses and grad_layer must have at least one part");
  parallel_for(groups, 1 << 20, [&](int64_t group) {
    real* to_layer = grad_layer.data + group * outputs * inputs;
    std::fill_n(to_layer, outputs * inputs, real(0));
    for (int64_t i = rays * group / groups; i < rays * (group + 1) / groups; ++i) {
      const real* h = hidden.data + i * inputs;
      for (int64_t part = 0; part < parts; ++part) {
        real* to_hidden =
            std::fill_n(grad_hidden.data + (part * rays + i) * inputs, inputs, real(0)) - inputs;
        real loss = 0;
        for (int64_t o = outputs * part / parts; o < outputs * (part + 1) / parts; ++o) {
          const real* row = layer.data + o * inputs;
          real sum = 0;
          for (int64_t c = 0; c < inputs; ++c) sum += row[c] * h[c];
          const real off = sum - real(target.data[i * outputs + o]);
          loss += off * off;
          for (int64_t c = 0; c < inputs; ++c) {
            to_hidden[c] += 2 * off * row[c];
            to_layer[o * inputs + c] += 2 * off * h[c];
          }
        }
        losses.data[part * rays + i] = loss;
      }
    }
  });
}

void add_rows(Cpu, In<real, kEntries, kParams> rows, Maybe<In<real, 1>> scale, Out<real, kParams> sum) {
  const int64_t count = rows.size[0], width = rows.size[1];
  parallel_for(width, count, [&](int64_t i) {
    real total = 0;
    for (int64_t k = 0; k < count; ++k) total += rows.data[k * width + i];
    sum.data[i] = scale ? total * scale.data[0] : total;
  });
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
