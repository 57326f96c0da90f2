// Networks on tensor cores. A warp takes 16 kM points through every layer with its activations in registers;
// weights wait in shared memory, copied once per block. Blocks stay and walk over the points.
#include "cuda/mlp.cuh"
#include "ops.h"

namespace raymarch {
namespace {

// Rows of x in shared memory: 16 more than a multiple of 32, so that eight lanes read eight different banks.
__host__ __device__ inline int row_stride(const Network& net) {
  const int columns = net.columns(0);
  return columns % 32 == 16 ? columns : columns + 16;
}

// The rows of x that a warp takes next; they are one contiguous run.
__device__ __forceinline__ void fetch_rows(float* to, int stride, const float* from, int rows, Walk walk,
                                           int width) {
  for (from += lane() * width; walk.row < rows; walk.next(), from += 32 * width) {
    float* at = to + walk.row * stride + walk.column * width;
    if (width == 4)
      copy_async<16>(at, from);
    else
      copy_async<4>(at, from);
  }
  __syncwarp();
}

// One group of outputs of kM x 16 points, from row `base` on.
template <int kM>
__device__ __forceinline__ void store_outputs(const Tiles<2, kM>& sum, int64_t activation, int group,
                                              int64_t base, Out<real, kPoints, kOutputs> y, bool by_four) {
  const int first = kGroup * group + 4 * (lane() % 4), outputs = int(y.size[1]);
#pragma unroll
  for (int m = 0; m < kM; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t row = base + 16 * m + 8 * half + lane() / 4;
      if (row >= y.size[0] || first >= outputs) continue;
      float4 v = quad(sum[0][m], sum[1][m], half);
      v = {activate(activation, v.x), activate(activation, v.y), activate(activation, v.z),
           activate(activation, v.w)};
      float* at = y.data + row * outputs + first;
      if (by_four) {
        *reinterpret_cast<float4*>(at) = v;
        continue;
      }
      at[0] = v.x;
      if (first + 1 < outputs) at[1] = v.y;
      if (first + 2 < outputs) at[2] = v.z;
      if (first + 3 < outputs) at[3] = v.w;
    }
}

__host__ __device__ inline bool by_four(const void* data, int64_t columns) {
  return columns % 4 == 0 && reinterpret_cast<uintptr_t>(data) % 16 == 0;
}

// One warp per 16 kM points at a time; the next rows of x are on their way while the later layers run.
template <int H, int kM, bool kStaged, int kWarps, int kBlocks>
__global__ void __launch_bounds__(32 * kWarps, kBlocks)
    mlp_forward_kernel(Network net, In<real, kPoints, kInputs> x, In<real, kParams> params,
                       int64_t activation, float padding, Out<real, kPoints, kOutputs> y) {
  extern __shared__ __align__(16) float shared[];
  Matrices<H, kStaged> matrices{net, nullptr};
  matrices.open(shared, params.data);
  constexpr int kRows = 16 * kM;
  const int warps = blockDim.x / 32, me = threadIdx.x / 32, stride = row_stride(net);
  float* rows = shared + matrices.floats() + me * kRows * stride;
  for (int r = 0; r < kRows; ++r)
    for (int c = net.inputs + lane(); c < net.columns(0); c += 32) rows[r * stride + c] = padding;
  __syncthreads();

  const int64_t points = x.size[0], step = int64_t{gridDim.x} * warps * kRows;
  const int width = by_four(x.data, net.inputs) ? 4 : 1;
  const auto fetch = [&](int64_t base) {
    const int count = int(points - base < kRows ? points - base : kRows);
    if (count > 0)
      fetch_rows(rows, stride, x.data + base * net.inputs, count, Walk(net.inputs / width), width);
  };
  int64_t base = (int64_t{blockIdx.x} * warps + me) * kRows;
  for (fetch(base); base < points; base += step) {
    Tiles<H / 8, kM> sum, a;
    clear<H / 8, kM>(sum);
    wait_for_copies();
    __syncwarp();
#pragma unroll 1
    for (int k = 0; k < net.columns(0) / kGroup; ++k) {
      float even[kM][4], odd[kM][4];
      load_group<kM>(rows + kGroup * k, stride, even, odd);
      forward_step<H / 8, kM>(even, odd, matrices.first(), 0, k, sum);
    }
    __syncwarp();
    fetch(base + step);

    activate_hidden<H / 8, kM>(sum, a, nullptr);
#pragma unroll 1
    for (int m = 1; m < net.layers; ++m) {
      hidden_forward<H, kM>(a, matrices.hidden(m), sum);
      activate_hidden<H / 8, kM>(sum, a, nullptr);
    }
#pragma unroll 1
    for (int group = 0; group < net.rows(net.layers) / kGroup; ++group) {
      Tiles<2, kM> out;
      clear<2, kM>(out);
#pragma unroll
      for (int k = 0; k < H / kGroup; ++k)
        forward_step<2, kM>(a[2 * k], a[2 * k + 1], matrices.last(), group, k, out);
      store_outputs<kM>(out, activation, group, base, y, by_four(y.data, y.size[1]));
      __syncwarp();
    }
  }
}

// Starts one kernel if the device's shared memory holds it with at least `least` warps per block.
template <int H, int kM, bool kStaged, int kWarps, int kBlocks>
bool forward_with(int least, Cuda q, Network net, In<real, kPoints, kInputs> x, In<real, kParams> params,
                  int64_t activation, double padding, Out<real, kPoints, kOutputs> y) {
  const int weights = Matrices<H, kStaged>{net, nullptr}.floats(), rows = 16 * kM * row_stride(net);
  const int warps = std::min(kWarps, (most_shared(q) - weights) / rows);
  if (warps < least) return false;
  const unsigned grid = std::min(blocks(x.size[0], 16 * kM * warps), unsigned(kBlocks * multiprocessors(q)));
  launch_shared("mlp_forward", mlp_forward_kernel<H, kM, kStaged, kWarps, kBlocks>, grid, 32 * warps,
                4 * (weights + warps * rows), q, net, x, params, activation, float(padding), y);
  return true;
}

}  // namespace

void mlp_forward(Cuda q, In<real, kPoints, kInputs> x, In<real, kParams> params, int64_t hidden,
                 int64_t layers, int64_t activation, double padding, Out<real, kPoints, kOutputs> y) {
  const Network net = network(x, params, hidden, layers, y.size[1]);
  const auto start = [&](auto with, int least) {
    return with(least, q, net, x, params, activation, padding, y);
  };
  if (hidden <= 16 && start(forward_with<16, 2, true, 8, 3>, 1)) return;
  if (hidden <= 32 && start(forward_with<32, 2, true, 8, 2>, 1)) return;
  if (hidden <= 64 && start(forward_with<64, 2, true, 12, 1>, 4)) return;
  if (start(forward_with<128, 1, true, 8, 1>, 4)) return;
  require(start(forward_with<128, 1, false, 8, 1>, 1), "needs more shared memory than the device has");
}

__global__ void __launch_bounds__(256)
    density_forward_kernel(In<real, kPoints, kChannels> h, In<real, kPoints, 3> y, real scale,
                           Out<real, kPoints> sigma) {
  const int64_t i = item();
  if (i < h.size[0]) sigma.data[i] = density(h.data[i * h.size[1]], load3(y.data, i), scale);
}

// One thread per point for the formula, then the block writes its rows of grad_h in order.
__global__ void __launch_bounds__(256)
    density_backward_kernel(In<real, kPoints, kChannels> h, In<real, kPoints, 3> y, real scale,
                            In<real, kPoints> grad_sigma, Out<real, kPoints, kChannels> grad_h) {
  __shared__ real grad[256];
  const int64_t first = blockIdx.x * int64_t{256}, i = first + threadIdx.x, channels = h.size[1];
  if (i < h.size[0])
    grad[threadIdx.x] = density_vjp(h.data[i * channels], load3(y.data, i), scale, grad_sigma.data[i]);
  __syncthreads();

  const int points = int(min(int64_t{256}, h.size[0] - first)), wide = int(channels);
  for (int64_t e = threadIdx.x; e < int64_t{points} * wide; e += 256) {
    const int row = int(unsigned(e) / unsigned(wide));
    grad_h.data[first * channels + e] = e == int64_t{row} * wide ? grad[row] : real(0);
  }
}

void density_forward(Cuda q, In<real, kPoints, kChannels> h, In<real, kPoints, 3> y, double scale,
                     Out<real, kPoints> sigma) {
  require(h.size[1] > 0, "h has no columns");
  launch("density_forward", density_forward_kernel, blocks(h.size[0], 256), 256, q, h, y, real(scale), sigma);
}

void density_backward(Cuda q, In<real, kPoints, kChannels> h, In<real, kPoints, 3> y, double scale,
                      In<real, kPoints> grad_sigma, Out<real, kPoints, kChannels> grad_h) {
  require(h.size[1] > 0, "h has no columns");
  launch("density_backward", density_backward_kernel, blocks(h.size[0], 256), 256, q, h, y, real(scale),
         grad_sigma, grad_h);
}

}  // namespace raymarch
