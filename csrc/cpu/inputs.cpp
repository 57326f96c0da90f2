#include "cpu/parallel.h"
#include "math/activation.h"
#include "ops.h"

namespace raymarch {
namespace {

// Samples on each ray, of so many points in all.
int64_t samples_on(int64_t points, int64_t rays) {
  require(rays > 0 ? points % rays == 0 : points == 0, "h must have the same number of rows for every ray");
  return rays > 0 ? points / rays : 0;
}

}  // namespace

void colour_inputs_forward(Cpu, In<real, kPoints, kChannels> h, In<real, kPoints, 3> y, double scale,
                           In<real, kRays, kInputs> direction, Maybe<In<real, kRays, kCode>> code,
                           Out<real, kPoints> sigma, Out<real, kPoints, kOutputs> x) {
  const int64_t channels = h.size[1], width = x.size[1], before = direction.size[1];
  const int64_t after = code ? code.size[1] : 0, samples = samples_on(h.size[0], direction.size[0]);
  require(channels > 0 && width == before + channels - 1 + after,
          "x must have a column for each of direction, h but its first, and code");
  parallel_for(direction.size[0], samples * (width + 16), [&](int64_t ray) {
    for (int64_t i = ray * samples; i < (ray + 1) * samples; ++i) {
      const real* row = h.data + i * channels;
      sigma.data[i] = density(row[0], load3(y.data, i), real(scale));
      real* to = std::copy_n(direction.data + ray * before, before, x.data + i * width);
      to = std::copy(row + 1, row + channels, to);
      if (code) std::copy_n(code.data + ray * after, after, to);
    }
  });
}

void colour_inputs_backward(Cpu, In<real, kPoints, kChannels> h, In<real, kPoints, 3> y, double scale,
                            Maybe<In<real, kPoints>> grad_sigma, In<real, kPoints, kOutputs> grad_x,
                            Out<real, kPoints, kChannels> grad_h, Out<real, kRays, kInputs> grad_direction,
                            Maybe<Out<real, kRays, kCode>> grad_code) {
  const int64_t channels = h.size[1], width = grad_x.size[1], before = grad_direction.size[1];
  const int64_t after = grad_code ? grad_code.size[1] : 0;
  const int64_t samples = samples_on(h.size[0], grad_direction.size[0]);
  require(channels > 0 && width == before + channels - 1 + after,
          "grad_x must have a column for each of direction, h but its first, and code");
  parallel_for(grad_direction.size[0], samples * (width + 16), [&](int64_t ray) {
    real* direction = std::fill_n(grad_direction.data + ray * before, before, real(0)) - before;
    real* code = grad_code ? std::fill_n(grad_code.data + ray * after, after, real(0)) - after : nullptr;
    for (int64_t i = ray * samples; i < (ray + 1) * samples; ++i) {
      const real* g = grad_x.data + i * width;
      real* to = grad_h.data + i * channels;
      for (int64_t c = 0; c < before; ++c) direction[c] += g[c];
      std::copy_n(g + before, channels - 1, to + 1);
      for (int64_t c = 0; c < after; ++c) code[c] += g[width - after + c];
      to[0] = grad_sigma
                  ? density_vjp(h.data[i * channels], load3(y.data, i), real(scale), grad_sigma.data[i])
                  : real(0);
    }
  });
}

}  // namespace raymarch
