// Networks on tensor cores. A warp takes 16 points through every layer with its activations in registers;
// weights wait in shared memory, copied once per block. Blocks stay and walk over the points.
#include "cuda/mlp.cuh"
#include "ops.h"

namespace raymarch {
namespace {

constexpr int kForwardWarps = 8;

// One warp per 16 points at a time.
template <int H, bool kStaged, int kBlocks>
__global__ void __launch_bounds__(32 * kForwardWarps, kBlocks)
    mlp_forward_kernel(Network net, Rows x, In<real, kParams> params, int64_t activation, float padding,
                       OutRows y) {
  extern __shared__ __align__(16) half shared[];
  Matrices<H, kStaged> matrices{net};
  matrices.open(shared, params.data);
  __syncthreads();

  constexpr int kRows = 16, kAhead = 2;  // groups of columns of x that are fetched together
  const int64_t step = int64_t{gridDim.x} * kForwardWarps * kRows;
  for (int64_t base = (int64_t{blockIdx.x} * kForwardWarps + threadIdx.x / 32) * kRows; base < x.count;
       base += step) {
    Sums<H / 8> sum;
    Operands<H / 16> a;
    clear<H / 8>(sum);
    const int64_t next = min(base + step, x.count);
    prefetch(x.data + next * x.width, min(int64_t{kRows}, x.count - next) * x.width);
    const int groups = net.columns(0) / kGroup;
#pragma unroll 1
    for (int first = 0; first < groups; first += kAhead) {
      float2 v[kAhead][4];
#pragma unroll
      for (int k = 0; k < kAhead; ++k)
        if (first + k < groups) x.load(base, first + k, padding, v[k]);
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        if (first + k >= groups) break;
        uint32_t in[4];
        round_square(v[k], in);
        forward_step<H / 8>(in, matrices[0], 0, first + k, sum);
      }
    }
    activate_hidden<H>(sum, a);
#pragma unroll 1
    for (int m = 1; m < net.layers; ++m) {
      hidden_forward<H>(a, matrices[m], sum);
      activate_hidden<H>(sum, a);
    }
#pragma unroll 1
    for (int group = 0; group < net.rows(net.layers) / kGroup; ++group) {
      Sums<2> out;
      clear<2>(out);
#pragma unroll
      for (int k = 0; k < H / kGroup; ++k)
        forward_step<2>(a[k], matrices[net.layers], kGroup * group, k, out);
      float2 v[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 two = pair(out[0], i);
        v[i] = {activate(activation, two.x), activate(activation, two.y)};
      }
      y.store(base, group, v);
    }
  }
}

// Starts one kernel if the device's shared memory holds it.
template <int H, bool kStaged, int kBlocks>
bool forward_with(Cuda q, Network net, In<real, kPoints, kInputs> x, In<real, kParams> params,
                  int64_t activation, double padding, Out<real, kPoints, kOutputs> y) {
  const int bytes = 2 * Matrices<H, kStaged>{net}.size();
  if (bytes > most_shared(q)) return false;
  const unsigned grid =
      std::min(blocks(x.size[0], 16 * kForwardWarps), unsigned(kBlocks * multiprocessors(q)));
  launch_shared("mlp_forward", mlp_forward_kernel<H, kStaged, kBlocks>, grid, 32 * kForwardWarps, bytes, q,
                net, rows_of(x), params, activation, float(padding), out_rows_of(y));
  return true;
}

}  // namespace

void mlp_forward(Cuda q, In<real, kPoints, kInputs> x, In<real, kParams> params, int64_t hidden,
                 int64_t layers, int64_t activation, double padding, Out<real, kPoints, kOutputs> y) {
  const Network net = network(x, params, hidden, layers, y.size[1]);
  const auto start = [&](auto with) { return with(q, net, x, params, activation, padding, y); };
  if (hidden <= 16 && start(forward_with<16, true, 4>)) return;
  if (hidden <= 32 && start(forward_with<32, true, 3>)) return;
  if (hidden <= 64 && start(forward_with<64, true, 3>)) return;
  if (start(forward_with<128, true, 1>)) return;
  start(forward_with<128, false, 1>);
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
