#include "cuda/vector.cuh"
#include "math/harmonics.h"
#include "ops.h"

namespace raymarch {

constexpr int kThreads = 256;

// One thread per point; its row of 16 numbers moves as four vectors.
__global__ void __launch_bounds__(kThreads)
    harmonics_forward_kernel(In<real, kPoints, 3> d, int64_t signs, Out<real, kPoints, 16> y) {
  const int64_t i = item();
  if (i >= d.size[0]) return;
  const Harmonics row = harmonics(load3(d.data, i), signs);
  store_vector(row.of, y.data + i * kHarmonics);
}

__global__ void __launch_bounds__(kThreads)
    harmonics_backward_kernel(In<real, kPoints, 3> d, int64_t signs, In<real, kPoints, 16> grad_y,
                              Out<real, kPoints, 3> grad_d) {
  const int64_t i = item();
  if (i >= d.size[0]) return;
  Harmonics g;
  load_vector(grad_y.data + i * kHarmonics, g.of);
  store3(grad_d.data, i, harmonics_vjp(load3(d.data, i), signs, g));
}

constexpr int kTile = 64;  // points per block of the Fourier kernels

// Calls body(at, i) for the numbers i of a tile of rows, thread after thread, and for where each lies in rows
// of `pitch` numbers.
template <class Body>
__device__ __forceinline__ void over_rows(int count, int width, int64_t pitch, const Body& body) {
  const int step_row = blockDim.x / width, step_column = blockDim.x % width;
  int row = threadIdx.x / width, column = threadIdx.x % width;
  for (int i = threadIdx.x; i < count * width; i += blockDim.x) {
    body(row * pitch + column, i);
    row += step_row, column += step_column;
    if (column >= width) column -= width, ++row;
  }
}

// One thread per coordinate of a point, looping over octaves. Rows are staged in shared memory, so that whole
// sectors leave.
__global__ void __launch_bounds__(3 * kTile)
    fourier_forward_kernel(In<real, kPoints, 3> x, int frequencies, int64_t layout, int64_t column,
                           Out<real, kPoints, kOutputs> y) {
  RM_SHARED(real, tile);
  const int64_t first = blockIdx.x * int64_t{kTile};
  const int count = int(min(int64_t{kTile}, x.size[0] - first)), width = 6 * frequencies;
  const int point = threadIdx.x / 3, d = threadIdx.x % 3;
  if (point < count) {
    const real at = x.data[3 * first + threadIdx.x];
    for (int k = 0; k < frequencies; ++k) {
      const Turn wave = turn(fourier_frequency(k, layout) * at);
      const Columns to = fourier_columns(d, k, frequencies, layout);
      tile[point * width + to.sine] = wave.sine;
      tile[point * width + to.cosine] = wave.cosine;
    }
  }
  __syncthreads();
  real* rows = y.data + first * y.size[1] + column;
  over_rows(count, width, y.size[1], [&](int64_t at, int i) { rows[at] = tile[i]; });
}

__global__ void __launch_bounds__(3 * kTile)
    fourier_backward_kernel(In<real, kPoints, 3> x, int frequencies, int64_t layout, int64_t column,
                            In<real, kPoints, kOutputs> grad_y, Out<real, kPoints, 3> grad_x) {
  RM_SHARED(real, tile);
  const int64_t first = blockIdx.x * int64_t{kTile};
  const int count = int(min(int64_t{kTile}, x.size[0] - first)), width = 6 * frequencies;
  const real* rows = grad_y.data + first * grad_y.size[1] + column;
  over_rows(count, width, grad_y.size[1], [&](int64_t at, int i) { tile[i] = rows[at]; });
  __syncthreads();

  const int point = threadIdx.x / 3, d = threadIdx.x % 3;
  if (point >= count) return;
  const real at = x.data[3 * first + threadIdx.x];
  real sum = real(0);
  for (int k = 0; k < frequencies; ++k) {
    const Columns from = fourier_columns(d, k, frequencies, layout);
    const Turn g = {tile[point * width + from.sine], tile[point * width + from.cosine]};
    const real frequency = fourier_frequency(k, layout);
    sum += turn_vjp(turn(frequency * at), frequency, g);
  }
  grad_x.data[3 * first + threadIdx.x] = sum;
}

void harmonics_forward(Cuda q, In<real, kPoints, 3> d, int64_t signs, Out<real, kPoints, 16> y) {
  const char* problem = harmonics_problem(signs);
  require(!problem, problem);
  require(aligned(y.data, 16), "y must start at a multiple of 16 bytes");
  launch("harmonics_forward", harmonics_forward_kernel, blocks(d.size[0], kThreads), kThreads, q, d, signs,
         y);
}

void harmonics_backward(Cuda q, In<real, kPoints, 3> d, int64_t signs, In<real, kPoints, 16> grad_y,
                        Out<real, kPoints, 3> grad_d) {
  const char* problem = harmonics_problem(signs);
  require(!problem, problem);
  require(aligned(grad_y.data, 16), "grad_y must start at a multiple of 16 bytes");
  launch("harmonics_backward", harmonics_backward_kernel, blocks(d.size[0], kThreads), kThreads, q, d, signs,
         grad_y, grad_d);
}

void fourier_forward(Cuda q, In<real, kPoints, 3> x, int64_t frequencies, int64_t layout, int64_t column,
                     Out<real, kPoints, kOutputs> y) {
  const char* problem = fourier_problem(frequencies, layout, column, y.size[1]);
  require(!problem, problem);
  launch_shared("fourier_forward", fourier_forward_kernel, blocks(x.size[0], kTile), 3 * kTile,
                kTile * 6 * frequencies * sizeof(real), q, x, int(frequencies), layout, column, y);
}

void fourier_backward(Cuda q, In<real, kPoints, 3> x, int64_t frequencies, int64_t layout, int64_t column,
                      In<real, kPoints, kOutputs> grad_y, Out<real, kPoints, 3> grad_x) {
  const char* problem = fourier_problem(frequencies, layout, column, grad_y.size[1]);
  require(!problem, problem);
  launch_shared("fourier_backward", fourier_backward_kernel, blocks(x.size[0], kTile), 3 * kTile,
                kTile * 6 * frequencies * sizeof(real), q, x, int(frequencies), layout, column, grad_y,
                grad_x);
}

}  // namespace raymarch
