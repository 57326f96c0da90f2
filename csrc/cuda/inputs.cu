// What the colour network reads. A block takes one ray: its rows of x are one contiguous run.
#include "cuda/launch.cuh"
#include "math/activation.h"
#include "ops.h"

namespace raymarch {

constexpr int kThreads = 256, kWarps = kThreads / 32;

// Where the columns of x come from.
struct Widths {
  int before, geometry, after, samples;  // of direction, of h but its first column, of code; rows per ray
  __host__ __device__ int all() const { return before + geometry + after; }
};

// Thread i takes numbers i, i + kThreads, ... of the run; their row and column advance by sums.
__global__ void __launch_bounds__(kThreads)
    colour_inputs_forward_kernel(In<real, kPoints, kChannels> h, In<real, kPoints, 3> y, real scale,
                                 In<real, kRays, kInputs> direction, Maybe<In<real, kRays, kCode>> code,
                                 Widths w, Out<real, kPoints> sigma, Out<real, kPoints, kOutputs> x) {
  const int64_t ray = blockIdx.x, first = ray * w.samples;
  const int width = w.all(), channels = w.geometry + 1;
  const real* rows = h.data + first * channels;
  const real* before = direction.data + ray * w.before;
  const real* after = code.data + ray * w.after;  // never read where there is no code
  const int step_row = kThreads / width, step_column = kThreads % width;
  int row = threadIdx.x / width, column = threadIdx.x % width;
  real* to = x.data + first * width;
#pragma unroll 4
  for (int64_t i = threadIdx.x; row < w.samples; i += kThreads) {
    const int c = column - w.before;
    const real* from = c < 0            ? before + column
                       : c < w.geometry ? rows + int64_t{row} * channels + 1 + c
                                        : after + (c - w.geometry);
    to[i] = __ldg(from);
    row += step_row, column += step_column;
    if (column >= width) column -= width, ++row;
  }
  for (int s = threadIdx.x; s < w.samples; s += kThreads)
    sigma.data[first + s] = density(rows[int64_t{s} * channels], load3(y.data, first + s), scale);
}

// A lane takes one column, a warp every eighth sample. What samples share is summed per warp, then over
// warps: one order, no atomics.
__global__ void __launch_bounds__(kThreads)
    colour_inputs_backward_kernel(In<real, kPoints, kChannels> h, In<real, kPoints, 3> y, real scale,
                                  Maybe<In<real, kPoints>> grad_sigma, In<real, kPoints, kOutputs> grad_x,
                                  Widths w, Out<real, kPoints, kChannels> grad_h,
                                  Out<real, kRays, kInputs> grad_direction,
                                  Maybe<Out<real, kRays, kCode>> grad_code) {
  RM_SHARED(real, sums);  // [kWarps][width]
  const int64_t ray = blockIdx.x, first = ray * w.samples;
  const int width = w.all(), channels = w.geometry + 1, me = threadIdx.x / 32;
  for (int c = lane(); c < width; c += 32) {
    const int column = c - w.before + 1;  // of h, if it is one of them
    const bool own = column >= 1 && column <= w.geometry;
    real sum = real(0);
#pragma unroll 4
    for (int s = me; s < w.samples; s += kWarps) {
      const real g = __ldg(grad_x.data + (first + s) * width + c);
      if (own) grad_h.data[(first + s) * channels + column] = g;
      sum += g;
    }
    sums[me * width + c] = sum;
  }
  for (int s = threadIdx.x; s < w.samples; s += kThreads) {
    const int64_t i = first + s, at = i * channels;
    grad_h.data[at] =
        grad_sigma ? density_vjp(h.data[at], load3(y.data, i), scale, grad_sigma.data[i]) : real(0);
  }
  __syncthreads();

  for (int c = threadIdx.x; c < width; c += kThreads) {
    real sum = real(0);
#pragma unroll
    for (int k = 0; k < kWarps; ++k) sum += sums[k * width + c];
    const int last = c - w.before - w.geometry;
    if (c < w.before)
      grad_direction.data[ray * w.before + c] = sum;
    else if (last >= 0)
      grad_code.data[ray * w.after + last] = sum;
  }
}

static Widths widths(int64_t points, int64_t rays, int64_t before, int64_t channels, int64_t after,
                     int64_t width) {
  require(rays > 0 ? points % rays == 0 : points == 0, "h must have the same number of rows for every ray");
  require(channels > 0 && width == before + channels - 1 + after,
          "x must have a column for each of direction, h but its first, and code");
  require(width <= 1024, "x must have at most 1024 columns");
  const int64_t samples = rays > 0 ? points / rays : 0;
  require(samples < (int64_t{1} << 30), "too many rows for one ray");
  return {int(before), int(channels - 1), int(after), int(samples)};
}

void colour_inputs_forward(Cuda q, In<real, kPoints, kChannels> h, In<real, kPoints, 3> y, double scale,
                           In<real, kRays, kInputs> direction, Maybe<In<real, kRays, kCode>> code,
                           Out<real, kPoints> sigma, Out<real, kPoints, kOutputs> x) {
  const int64_t rays = direction.size[0];
  const Widths w = widths(h.size[0], rays, direction.size[1], h.size[1], code ? code.size[1] : 0, x.size[1]);
  if (x.size[1] == 0) return density_forward(q, h, y, scale, sigma);
  launch("colour_inputs_forward", colour_inputs_forward_kernel, blocks(rays, 1), kThreads, q, h, y,
         real(scale), direction, code, w, sigma, x);
}

void colour_inputs_backward(Cuda q, In<real, kPoints, kChannels> h, In<real, kPoints, 3> y, double scale,
                            Maybe<In<real, kPoints>> grad_sigma, In<real, kPoints, kOutputs> grad_x,
                            Out<real, kPoints, kChannels> grad_h, Out<real, kRays, kInputs> grad_direction,
                            Maybe<Out<real, kRays, kCode>> grad_code) {
  const int64_t rays = grad_direction.size[0];
  const Widths w = widths(h.size[0], rays, grad_direction.size[1], h.size[1],
                          grad_code ? grad_code.size[1] : 0, grad_x.size[1]);
  launch_shared("colour_inputs_backward", colour_inputs_backward_kernel, blocks(rays, 1), kThreads,
                kWarps * w.all() * sizeof(real), q, h, y, real(scale), grad_sigma, grad_x, w, grad_h,
                grad_direction, grad_code);
}

}  // namespace raymarch
