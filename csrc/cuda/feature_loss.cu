// The last layer of features and its loss in one pass, forward and backward: what it predicts never leaves
// the multiprocessor. Products are 16 x 8 x 8 on tensor cores, in TF32 with float sums.
#include "cuda/launch.cuh"
#include "ops.h"

namespace raymarch {

constexpr int kWarps = 8, kThreads = 32 * kWarps;
constexpr int kPart = 16 * kWarps;  // features of a block
constexpr int kTileRays = 32;
constexpr int kGap = 4;  // between rows in shared memory, so that lanes meet different banks

// Operand a of 16 rows by 8 columns: rows `row` apart, columns `column` apart.
__device__ __forceinline__ void load_a(float (&a)[4], const float* from, int row, int column) {
  const int g = lane() / 4, t = lane() % 4;
  a[0] = from[g * row + t * column], a[1] = from[(g + 8) * row + t * column];
  a[2] = from[g * row + (t + 4) * column], a[3] = from[(g + 8) * row + (t + 4) * column];
}

template <int H>
struct FeatureTile {
  static constexpr int kRow = H + kGap, kErrorRow = kPart + kGap;
  float layer[kPart][kRow], hidden[kTileRays][kRow], error[kTileRays][kErrorRow], loss[kWarps][kTileRays];
};

// A block has 128 features of the layer and meets every so many tiles of 32 rays. Per tile a warp predicts
// its 16 features and leaves twice the error in shared memory; then it takes 8 columns of the gradient to
// hidden vectors at a time, and adds to that of its 16 rows of the layer, which stays in registers to the
// end.
template <int H>
__global__ void __launch_bounds__(kThreads, H > 64 ? 1 : 2)
    feature_loss_kernel(In<real, kRays, kInputs> hidden, In<real, kOutputs, kInputs> layer,
                        In<real, kRays, kOutputs> target, int parts, int groups,
                        Out<real, kCode, kRays> losses, Out<real, kCode, kRays, kInputs> grad_hidden,
                        Out<real, kEntries, kOutputs, kInputs> grad_layer) {
  RM_SHARED(unsigned char, raw);
  auto& tile = *reinterpret_cast<FeatureTile<H>*>(raw);
  using Tile = FeatureTile<H>;
  const int part = blockIdx.x % parts, group = blockIdx.x / parts;
  const int me = threadIdx.x / 32, g = lane() / 4, t = lane() % 4;
  const int64_t rays = hidden.size[0], outputs = layer.size[0], first_output = int64_t{part} * kPart;
  for (int i = threadIdx.x; i < kPart * H; i += kThreads) {
    const int64_t o = first_output + i / H;
    tile.layer[i / H][i % H] = o < outputs ? as_tf32(layer.data[o * H + i % H]) : 0.f;
  }
  float of_layer[H / 8][4] = {};
  for (int64_t base = int64_t{group} * kTileRays; base < rays; base += int64_t{groups} * kTileRays) {
    __syncthreads();
    for (int i = threadIdx.x; i < kTileRays * H; i += kThreads) {
      const int64_t ray = base + i / H;
      tile.hidden[i / H][i % H] = ray < rays ? as_tf32(hidden.data[ray * H + i % H]) : 0.f;
    }
    __syncthreads();

    float predicted[2][2][4] = {};
#pragma unroll
    for (int k = 0; k < H / 8; ++k) {
      float a[2][4];
#pragma unroll
      for (int m = 0; m < 2; ++m) load_a(a[m], &tile.hidden[16 * m][8 * k], Tile::kRow, 1);
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const float* b = &tile.layer[16 * me + 8 * n + g][8 * k + t];
#pragma unroll
        for (int m = 0; m < 2; ++m) mma(predicted[m][n], a[m], b[0], b[4]);
      }
    }
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = 16 * m + 8 * half + g;
        const int64_t ray = base + row;
        float loss = 0;
#pragma unroll
        for (int n = 0; n < 2; ++n)
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            const int column = 16 * me + 8 * n + 2 * t + c;
            const int64_t o = first_output + column;
            const bool live = ray < rays && o < outputs;
            const float off = live ? predicted[m][n][2 * half + c] - target.data[ray * outputs + o] : 0.f;
            loss += off * off;
            tile.error[row][column] = as_tf32(2 * off);
          }
        loss += __shfl_xor_sync(~0u, loss, 1);
        loss += __shfl_xor_sync(~0u, loss, 2);
        if (t == 0) tile.loss[me][row] = loss;
      }
    __syncthreads();

    if (threadIdx.x < kTileRays && base + threadIdx.x < rays) {
      float sum = 0;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) sum += tile.loss[w][threadIdx.x];
      losses.data[part * rays + base + threadIdx.x] = sum;
    }
#pragma unroll 1
    for (int j = me; j < H / 8; j += kWarps) {
      float sum[2][4] = {};
#pragma unroll 4
      for (int k = 0; k < kPart / 8; ++k) {
        const float b0 = tile.layer[8 * k + t][8 * j + g], b1 = tile.layer[8 * k + t + 4][8 * j + g];
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          float a[4];
          load_a(a, &tile.error[16 * m][8 * k], Tile::kErrorRow, 1);
          mma(sum[m], a, b0, b1);
        }
      }
#pragma unroll
      for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int64_t ray = base + 16 * m + 8 * half + g;
          if (ray >= rays) continue;
          real* to = grad_hidden.data + (part * rays + ray) * H + 8 * j + 2 * t;
          to[0] = sum[m][2 * half], to[1] = sum[m][2 * half + 1];
        }
    }
#pragma unroll
    for (int k = 0; k < kTileRays / 8; ++k) {
      float a[4];
      load_a(a, &tile.error[8 * k][16 * me], 1, Tile::kErrorRow);
#pragma unroll
      for (int j = 0; j < H / 8; ++j)
        mma(of_layer[j], a, tile.hidden[8 * k + t][8 * j + g], tile.hidden[8 * k + t + 4][8 * j + g]);
    }
  }
#pragma unroll
  for (int j = 0; j < H / 8; ++j)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t o = first_output + 16 * me + 8 * half + g;
      if (o >= outputs) continue;
      real* to = grad_layer.data + (group * outputs + o) * H + 8 * j + 2 * t;
      to[0] = of_layer[j][2 * half], to[1] = of_layer[j][2 * half + 1];
    }
}

template <int H>
static void start(Cuda q, In<real, kRays, kInputs> hidden, In<real, kOutputs, kInputs> layer,
                  In<real, kRays, kOutputs> target, Out<real, kCode, kRays> losses,
                  Out<real, kCode, kRays, kInputs> grad_hidden,
                  Out<real, kEntries, kOutputs, kInputs> grad_layer) {
  const int64_t parts = losses.size[0], groups = grad_layer.size[0];
  launch_shared("feature_loss", feature_loss_kernel<H>, blocks(parts * groups, 1), kThreads,
                sizeof(FeatureTile<H>), q, hidden, layer, target, int(parts), int(groups), losses,
                grad_hidden, grad_layer);
}

void feature_loss(Cuda q, In<real, kRays, kInputs> hidden, In<real, kOutputs, kInputs> layer,
                  In<real, kRays, kOutputs> target, Out<real, kCode, kRays> losses,
                  Out<real, kCode, kRays, kInputs> grad_hidden,
                  Out<real, kEntries, kOutputs, kInputs> grad_layer) {
  require(losses.size[0] == (layer.size[0] + kPart - 1) / kPart && grad_layer.size[0] > 0,
          "on CUDA losses must have a part for every 128 features, and grad_layer at least one");
  const auto call = [&](auto starter) { starter(q, hidden, layer, target, losses, grad_hidden, grad_layer); };
  switch (hidden.size[1]) {
    case 16:
      return call(start<16>);
    case 32:
      return call(start<32>);
    case 48:
      return call(start<48>);
    case 64:
      return call(start<64>);
    case 80:
      return call(start<80>);
    case 96:
      return call(start<96>);
    case 112:
      return call(start<112>);
    case 128:
      return call(start<128>);
    default:
      require(false, "on CUDA hidden must be a multiple of 16 wide, 128 at most");
  }
}

}  // namespace raymarch
