// Networks on tensor cores. A warp takes 16 points through every layer with its activations in registers;
// weights wait in shared memory, copied once per block. Blocks stay and walk over the points.
#include "cuda/mlp.cuh"
#include "cuda/vector.cuh"
#include "ops.h"

namespace raymarch {
namespace {

constexpr int kForwardWarps = 8;

// One warp per 16 points at a time.
template <class T, int H, int kLayers, int kIn, bool kStaged, int kBlocks>
__global__ void __launch_bounds__(32 * kForwardWarps, kBlocks)
    mlp_forward_kernel(Shape<H, kLayers, kIn> shape, Rows<T> x, In<real, kParams> params, int64_t activation,
                       float padding, OutRows y) {
  RM_SHARED(half, shared);
  Matrices<Shape<H, kLayers, kIn>, H, kStaged> matrices{shape};
  matrices.open(shared, params.data);
  __syncthreads();

  constexpr int kAhead = kIn == 4 ? 4 : 2;  // groups of columns of x that are fetched together
  const int64_t step = int64_t{gridDim.x} * kForwardWarps * 16;
  for (int64_t base = (int64_t{blockIdx.x} * kForwardWarps + threadIdx.x / 32) * 16; base < x.count;
       base += step) {
    Sums<H / 8> sum;
    Operands<H / 16> a;
    clear<H / 8>(sum);
    x.prefetch_rows(base, step);
#pragma unroll(kLayers ? 16 : 1)
    for (int first = 0; first < shape.groups(); first += kAhead) {
      typename Rows<T>::Pair v[kAhead][4];
#pragma unroll
      for (int k = 0; k < kAhead; ++k)
        if (first + k < shape.groups()) x.load(base, first + k, padding, v[k]);
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        if (first + k >= shape.groups()) break;
        uint32_t in[4];
        round_square(v[k], in);
        forward_step<H / 8>(in, matrices[0], 0, first + k, sum);
      }
    }
    activate_hidden<H, false>(sum, a, 0);
#pragma unroll(kLayers ? 4 : 1)
    for (int m = 1; m < shape.layers(); ++m) {
      hidden_forward<H>(a, matrices[m], sum);
      activate_hidden<H, false>(sum, a, 0);
    }
#pragma unroll 1
    for (int group = 0; group < shape.net.rows(shape.layers()) / kGroup; ++group) {
      Sums<2> out;
      clear<2>(out);
#pragma unroll
      for (int k = 0; k < H / kGroup; ++k)
        forward_step<2>(a[k], matrices[shape.layers()], kGroup * group, k, out);
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

// Starts one kernel if it is for such a network and the device's shared memory holds it.
template <class T, int H, int kLayers, int kIn, bool kStaged, int kBlocks>
bool forward_with(Cuda q, Network net, In<T, kPoints, kInputs> x, In<real, kParams> params,
                  int64_t activation, double padding, Out<real, kPoints, kOutputs> y) {
  using S = Shape<H, kLayers, kIn>;
  const S shape{net};
  const int bytes = 2 * Matrices<S, H, kStaged>{shape}.size();
  if (!shape.fits() || bytes > most_shared(q)) return false;
  const unsigned grid =
      std::min(blocks(x.size[0], 16 * kForwardWarps), unsigned(kBlocks * multiprocessors(q)));
  launch_shared("mlp_forward", mlp_forward_kernel<T, H, kLayers, kIn, kStaged, kBlocks>, grid,
                32 * kForwardWarps, bytes, q, shape, rows_of<T>(x), params, activation, float(padding),
                out_rows_of(y));
  return true;
}

template <class T>
bool forward_any(Cuda q, Network net, In<T, kPoints, kInputs> x, In<real, kParams> params, int64_t activation,
                 double padding, Out<real, kPoints, kOutputs> y) {
  const auto start = [&](auto with) { return with(q, net, x, params, activation, padding, y); };
  return start(forward_with<T, 16, 1, 1, true, 4>) || start(forward_with<T, 64, 1, 2, true, 3>) ||
         start(forward_with<T, 64, 1, 9, true, 3>) || start(forward_with<T, 64, 2, 2, true, 3>) ||
         start(forward_with<T, 64, 2, 4, true, 2>) || start(forward_with<T, 32, 0, 0, true, 3>) ||
         start(forward_with<T, 64, 0, 0, true, 3>) || start(forward_with<T, 128, 0, 0, true, 1>) ||
         start(forward_with<T, 128, 0, 0, false, 1>);
}

}  // namespace

void mlp_forward(Cuda q, Payload<kPoints, kInputs> x, In<real, kParams> params, int64_t hidden,
                 int64_t layers, int64_t activation, double padding, Out<real, kPoints, kOutputs> y) {
  const Network net = network(x, params, hidden, layers, y.size[1]);
  require(aligned(params.data, 16), "params must lie at a multiple of 16 bytes");
  if (x.dtype == Dtype::kFloat16)
    forward_any(q, net, opened<half>(x), params, activation, padding, y);
  else
    forward_any(q, net, opened<float>(x), params, activation, padding, y);
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
