// Samples to fields on the CPU: the loops of its parts, one after another, with the arrays between them kept
// here.
#include "cpu/parallel.h"
#include "cpu/room.h"
#include "math/activation.h"
#include "math/composite.h"
#include "math/contract.h"
#include "math/harmonics.h"
#include "ops.h"

namespace raymarch {
namespace {

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
        view.data[i * view.size[1] + c] = saturated<T>(c < width ? exact.view.data[i * width + c] : real(1));
    });
  });
}

Vec3 middle(Vec3 o, Vec3 d, const real* t, int64_t i) { return o + (real(0.5) * (t[i] + t[i + 1])) * d; }

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

void add_rows(Cpu, In<real, kEntries, kParams> rows, Maybe<In<real, 1>> scale, Out<real, kParams> sum) {
  const int64_t count = rows.size[0], width = rows.size[1];
  parallel_for(width, count, [&](int64_t i) {
    real total = 0;
    for (int64_t k = 0; k < count; ++k) total += rows.data[k * width + i];
    sum.data[i] = scale ? total * scale.data[0] : total;
  });
}

}  // namespace raymarch
