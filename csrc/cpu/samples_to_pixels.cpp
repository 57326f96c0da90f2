// Samples to densities and to pixels in one go: the formulas of the stages one after another, ray by ray.
#include <vector>

#include "cpu/parallel.h"
#include "math/composite.h"
#include "math/march.h"
#include "math/point.h"
#include "math/transmittance.h"
#include "ops.h"

namespace raymarch {
namespace {

// The outputs of one layer, out [rows].
void layer(const Network& net, int matrix, const real* params, const real* in, bool relus, real* out) {
  const int columns = net.columns(matrix);
  const real* row = params + net.offset(matrix);
  for (int r = 0; r < net.rows(matrix); ++r, row += columns) {
    real sum = 0;
    for (int c = 0; c < columns; ++c) sum += row[c] * in[c];
    out[r] = relus ? relu(sum) : sum;
  }
}

void network_at(const Network& net, const real* params, const real* in, real (&hidden)[2][64], real* out) {
  for (int m = 0; m < net.layers; ++m)
    layer(net, m, params, m == 0 ? in : hidden[(m - 1) % 2], true, hidden[m % 2]);
  layer(net, net.layers, params, hidden[(net.layers - 1) % 2], false, out);
}

template <int F, class T>
void encode_at(const Grid& grid, const T* table, Vec3 y, real* to) {
  for (int l = 0; l < grid.levels; ++l) {
    real sum[F];
    level_features(grid.level[l], grid.smooth, table, y, sum);
    std::copy_n(sum, F, to + l * F);
  }
}

Vec3 middle_of(Vec3 o, Vec3 d, const real* edge, int64_t norm) {
  return contract_unit(norm, o + real(0.5) * (edge[0] + edge[1]) * d);
}

Grid checked(const GridSettings& settings, int64_t entries, int64_t features) {
  const char* problem = grid_problem(settings);
  require(!problem, problem);
  const Grid grid = make_grid(settings);
  problem = grid_problem(grid, entries, features, grid.levels * features);
  require(!problem, problem);
  return grid;
}

// A ray as it is composited, sample by sample.
struct Sum {
  real front = 0, opacity = 0, moment = 0, depth = 0;
  Vec3 rgb = {0, 0, 0}, last = {0, 0, 0};
  bool past_half = false;

  real add(real tau, real middle) {
    const real w = weight(front, tau);
    front += tau;
    opacity += w;
    moment += w * middle;
    if (!past_half) depth = middle;
    past_half |= opacity >= real(0.5);
    return w;
  }
};

}  // namespace

void samples_to_density(Cpu, In<real, kRays, 3> origins, In<real, kRays, 3> directions,
                        In<real, kRays, kEdges> t, int64_t norm, Payload<kEntries, kChannels> any,
                        int64_t levels, int64_t base_resolution, int64_t max_resolution, int64_t log2_size,
                        int64_t interpolation, int64_t layout, In<real, kParams> params, int64_t hidden,
                        double padding, double scale, Out<real, kRays, kSamples> sigma) {
  const Grid grid = checked({levels, base_resolution, max_resolution, log2_size, interpolation, layout},
                            any.size[0], any.size[1]);
  const Network net{int(levels * any.size[1]), int(hidden), 1, 1};
  const char* problem = density_problem(net, params.size[0]);
  require(!problem, problem);
  const int64_t samples = sigma.size[1];
  require(t.size[1] == samples + 1, "t must have one edge more than samples");
  with_dtype(any, [&](auto table) {
    with_features(any.size[1], [&](auto features) {
      parallel_for(sigma.size[0], 400 * samples, [&](int64_t ray) {
        real in[16], between[2][64], out[16];
        for (int64_t i = 0; i < samples; ++i) {
          const Vec3 y = middle_of(load3(origins.data, ray), load3(directions.data, ray),
                                   t.data + ray * (samples + 1) + i, norm);
          std::fill_n(in, 16, real(padding));
          encode_at<decltype(features)::value>(grid, table.data, y, in);
          network_at(net, params.data, in, between, out);
          sigma.data[ray * samples + i] = density(out[0], y, real(scale));
        }
      });
    });
  });
}

void samples_to_pixels(Cpu, In<real, kRays, 3> origins, In<real, kRays, 3> directions,
                       In<real, kRays, kEdges> t, int64_t norm, Payload<kEntries, kChannels> any,
                       int64_t levels, int64_t base_resolution, int64_t max_resolution, int64_t log2_size,
                       int64_t interpolation, int64_t layout, In<real, kParams> params, double scale,
                       In<real, kRays, 16> direction, Maybe<In<real, kCode>> code,
                       Maybe<In<uint8_t, kBytes>> occupied, int64_t resolution, Maybe<In<real, 3>> colour,
                       int64_t background, double least, double stop, Out<real, kRays, 3> rgb,
                       Out<real, kRays> opacity, Out<real, kRays> depth, Out<real, kRays> expected,
                       Maybe<Out<real, kRays, kSamples>> w) {
  const Grid grid = checked({levels, base_resolution, max_resolution, log2_size, interpolation, layout},
                            any.size[0], any.size[1]);
  const int64_t coded = code ? code.size[0] : 0, samples = t.size[1] - 1;
  const PixelNetworks nets = pixel_networks(levels * any.size[1], coded);
  const char* problem = pixels_problem(nets, any.size[1], params.size[0]);
  require(!problem, problem);
  require(samples >= 1, "t must have at least two edges");
  require(!w || w.size[1] == samples, "w must have as many samples as t has intervals");
  require(background != kColour || colour, "colour is missing");
  require(!occupied || fits_bits(resolution, occupied.size[0]), "occupied must have a bit for each cell");
  with_dtype(any, [&](auto table) {
    parallel_for(rgb.size[0], 8000 * samples, [&](int64_t ray) {
      const Vec3 o = load3(origins.data, ray), d = load3(directions.data, ray);
      const real* edge = t.data + ray * (samples + 1);
      const auto middle = [&](int64_t i) { return real(0.5) * (edge[i] + edge[i + 1]); };
      std::vector<real> in(nets.colour.columns(0), real(1));
      real encoded[32] = {}, between[2][64], out[16], h[16];
      std::copy_n(direction.data + ray * 16, 16, in.data());
      if (code) std::copy_n(code.data, coded, in.data() + 31);
      Sum sum;
      for (int64_t i = 0; i < samples; ++i) {
        if (w) w.data[ray * samples + i] = 0;
        if (!(sum.front < real(stop))) continue;
        const Vec3 y = middle_of(o, d, edge + i, norm);
        const bool ends = background == kLastSample && i == samples - 1;
        if (!ends && !may_hold(occupied.data, int(resolution), y)) continue;
        encode_at<2>(grid, table.data, y, encoded);
        network_at(nets.base, params.data, encoded, between, h);
        const real weighs =
            sum.add(density(h[0], y, real(scale)) * interval_length(edge[i], edge[i + 1]), middle(i));
        if (w) w.data[ray * samples + i] = weighs;
        if (!(weighs > real(least)) && !ends) continue;
        std::copy_n(h + 1, 15, in.data() + 16);
        network_at(nets.colour, params.data + nets.base.parameters(), in.data(), between, out);
        const Vec3 c = finite_colour({sigmoid(out[0]), sigmoid(out[1]), sigmoid(out[2])});
        sum.rgb = sum.rgb + weighs * c;
        sum.last = c;
      }
      const Vec3 behind = background == kColour       ? load3(colour.data, 0)
                          : background == kWhite      ? Vec3{1, 1, 1}
                          : background == kLastSample ? sum.last
                                                      : Vec3{0, 0, 0};
      store3(rgb.data, ray, displayable(sum.rgb + (1 - sum.opacity) * behind));
      opacity.data[ray] = sum.opacity;
      depth.data[ray] = sum.past_half ? sum.depth : middle(samples - 1);
      expected.data[ray] = expected_depth(sum.moment, sum.opacity, middle(0), middle(samples - 1)).depth;
    });
  });
}

}  // namespace raymarch
