#include "cuda/vector.cuh"
#include "math/harmonics.h"
#include "ops.h"

namespace raymarch {

constexpr int kThreads = 256;

// One thread per point. A warp's 32 rows of four vectors change hands in shared memory, so that whole sectors
// leave; columns are turned about there, so that lanes meet different banks.
__global__ void __launch_bounds__(kThreads)
    harmonics_forward_kernel(In<real, kPoints, 3> d, int64_t signs, Out<real, kPoints, 16> y) {
  __shared__ float4 tiles[kThreads / 32][32][4];
  float4(*tile)[4] = tiles[threadIdx.x / 32];
  const int lane = threadIdx.x % 32;
  const int64_t i = item(), first = i - lane;
  if (first >= d.size[0]) return;
  const Harmonics row = harmonics(i < d.size[0] ? load3(d.data, i) : Vec3{0, 0, 0}, signs);
#pragma unroll
  for (int k = 0; k < 4; ++k)
    tile[lane][k ^ (lane / 2 % 4)] =
        make_float4(row.of[4 * k], row.of[4 * k + 1], row.of[4 * k + 2], row.of[4 * k + 3]);
  __syncwarp();
  float4* to = reinterpret_cast<float4*>(y.data) + 4 * first;
  const int live = int(min(int64_t{32}, d.size[0] - first));
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const int point = 8 * k + lane / 4;
    if (point < live) to[32 * k + lane] = tile[point][(lane % 4) ^ (point / 2 % 4)];
  }
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

// Whether a tile of rows is one run of whole, aligned vectors.
__device__ __forceinline__ bool back_to_back(const real* rows, int width, int64_t pitch, int count) {
  return width == pitch && count * width % 4 == 0 && reinterpret_cast<uintptr_t>(rows) % 16 == 0;
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
  if (back_to_back(rows, width, y.size[1], count)) {
    for (int i = threadIdx.x; i < count * width / 4; i += blockDim.x)
      reinterpret_cast<float4*>(rows)[i] = reinterpret_cast<const float4*>(tile)[i];
    return;
  }
  over_rows(count, width, y.size[1], [&](int64_t at, int i) { rows[at] = tile[i]; });
}

__global__ void __launch_bounds__(3 * kTile)
    fourier_backward_kernel(In<real, kPoints, 3> x, int frequencies, int64_t layout, int64_t column,
                            In<real, kPoints, kOutputs> grad_y, Out<real, kPoints, 3> grad_x) {
  RM_SHARED(real, tile);
  const int64_t first = blockIdx.x * int64_t{kTile};
  const int count = int(min(int64_t{kTile}, x.size[0] - first)), width = 6 * frequencies;
  const real* rows = grad_y.data + first * grad_y.size[1] + column;
  if (back_to_back(rows, width, grad_y.size[1], count)) {
    for (int i = threadIdx.x; i < count * width / 4; i += blockDim.x)
      reinterpret_cast<float4*>(tile)[i] = __ldg(reinterpret_cast<const float4*>(rows) + i);
  } else {
    over_rows(count, width, grad_y.size[1], [&](int64_t at, int i) { tile[i] = rows[at]; });
  }
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
