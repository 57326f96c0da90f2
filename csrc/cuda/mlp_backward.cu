// Gradients of networks: hidden layers are computed again, tile by tile, and never leave the multiprocessor.
#include "cuda/mlp.cuh"
#include "ops.h"

namespace raymarch {
namespace {

constexpr int kBackwardWarps = 8;
constexpr int kSlack = 32;  // halves that a block of 32 columns may reach past the last row

// How the blocks of one matrix's gradient are dealt to the warps of a block: `units` blocks of 16 rows by 32
// columns. Where there are fewer than warps, several warps share a unit and split the points.
struct Deal {
  int units, warps;
  __host__ __device__ int groups() const { return units < warps ? warps / units : 1; }
  __host__ __device__ int rounds() const { return (units + warps - 1) / warps; }
  __device__ int unit(int round, int warp) const {
    return units < warps ? warp % units : round * warps + warp;
  }
  __device__ int group(int warp) const { return units < warps ? warp / units : 0; }
};

__host__ __device__ inline int column_units(const Network& net, int matrix) {
  return (net.columns(matrix) + 31) / 32;
}
__host__ __device__ inline Deal deal(const Network& net, int matrix, int warps) {
  return {net.rows(matrix) / kGroup * column_units(net, matrix), warps};
}

// Whether every matrix is one unit.
__host__ __device__ inline bool single(const Network& net) {
  for (int m = 0; m <= net.layers; ++m)
    if (deal(net, m, 1).units > 1) return false;
  return true;
}

// Slots of 16 x 32 sums that a warp needs for all matrices, the last first.
inline int slots(const Network& net, int warps) {
  int sum = 0;
  for (int m = 0; m <= net.layers; ++m) sum += deal(net, m, warps).rounds();
  return sum;
}

// What the warps keep of a tile of points, row-major, each row kApart longer than its units.
template <int H>
struct Stash {
  Network net;
  int points;
  half* data;

  __host__ __device__ int x_stride() const { return net.columns(0) + kApart; }
  __host__ __device__ int y_stride() const { return net.rows(net.layers) + kApart; }
  __host__ __device__ int size() const {
    return points * (x_stride() + net.layers * (H + kApart) + y_stride()) + kSlack;
  }
  __device__ half* hidden(int m) const { return data + m * points * (H + kApart); }
  __device__ half* y() const { return hidden(net.layers); }
  __device__ half* x() const { return y() + points * y_stride(); }
};

// Which part of a matrix's gradient a slot of a warp is: 16 rows and 32 columns, over some of the points.
struct Place {
  int row, column, begin, end;
};
__device__ inline Place place(const Network& net, int matrix, int round, int points) {
  const Deal dealt = deal(net, matrix, blockDim.x / 32);
  const int warp = threadIdx.x / 32, wide = column_units(net, matrix);
  const int unit = dealt.unit(round, warp), group = dealt.group(warp), steps = points / 16;
  if (unit >= dealt.units || group >= dealt.groups()) return {0, 0, 0, 0};
  return {unit / wide * 16, unit % wide * 32, steps * group / dealt.groups() * 16,
          steps * (group + 1) / dealt.groups() * 16};
}

// Writes this block's sums of its slots to its row of `partial`. `board` holds 512 floats per warp.
template <int kSlots>
__device__ __forceinline__ void flush(const Network& net, int first_slot, const float (&sums)[kSlots][4][4],
                                      float factor, float* board, float* partial) {
  const int warps = blockDim.x / 32, warp = threadIdx.x / 32, g = lane() / 4, t = lane() % 4;
  int slot = -first_slot;
  for (int m = net.layers; m >= 0; --m) {
    const Deal dealt = deal(net, m, warps);
    const int wide = column_units(net, m);
    for (int round = 0; round < dealt.rounds(); ++round, ++slot) {
      if (slot < 0 || slot >= kSlots) continue;
      __syncthreads();
#pragma unroll
      for (int s = 0; s < kSlots; ++s)
        if (s == slot)
#pragma unroll
          for (int i = 0; i < 8; ++i)
            *reinterpret_cast<float2*>(board + 512 * warp + 32 * (g + i % 2 * 8) + 8 * (i / 2) + 2 * t) = {
                factor * sums[s][i / 2][i % 2 * 2], factor * sums[s][i / 2][i % 2 * 2 + 1]};
      __syncthreads();
      const int left = dealt.units - round * warps, units = left < warps ? left : warps;
      for (int e = threadIdx.x; e < 512 * units; e += blockDim.x) {
        const int unit = round * warps + e / 512;
        const int row = unit / wide * 16 + e % 512 / 32, column = unit % wide * 32 + e % 32;
        if (column >= net.columns(m)) continue;
        float sum = 0.f;
        for (int group = 0; group < dealt.groups(); ++group) sum += board[e + 512 * units * group];
        partial[net.offset(m) + row * net.columns(m) + column] = sum;
      }
    }
  }
}

// Powers of two, and the one just below the largest of a warp's gradients; numbers that are not finite have
// none.
__device__ __forceinline__ float power(int exponent) {
  return exponent < -126 ? 0.f : __int_as_float((min(exponent, 127) + 127) << 23);
}
__device__ __forceinline__ int exponent_of(const float* from, int64_t count) {
  float most = 0.f;
#pragma unroll 4
  for (int64_t i = lane(); i < count; i += 32) most = fmaxf(most, fabsf(__ldg(from + i)));
  const unsigned bits = __reduce_max_sync(0xffffffffu, __float_as_uint(most));
  return bits >= 0x7f800000u ? 0 : min(int(bits >> 23) - 127, 126);
}

// One block per 16 points of each of its warps at a time. Every warp computes the hidden layers of its points
// again and keeps them in the stash, walks back through the layers, and leaves each layer's gradient where
// its activation was. Between block barriers all warps add up their share of the weights' gradient over all
// points of the block; it stays in registers, in kSlots pieces of 16 x 32 per warp from `first_slot` on,
// until the block has met its last points. Without `partial` only grad_x is made.
//
// Gradients are halves: a warp scales its own by a power of two so that the largest is near one. In the stash
// all gradients of a block share a scale, that of the largest it has met, and so do the sums.
//
// kLayers is the number of hidden layers where it is known to the compiler, else 0. It then also knows that
// every matrix but the first is one slot, and all of them fit.
template <int H, int kLayers, int kSlots, bool kStaged, int kBlocks>
__global__ void __launch_bounds__(32 * kBackwardWarps, kBlocks)
    mlp_backward_kernel(Network net, Rows x, In<real, kParams> params, int64_t activation, float padding,
                        Rows y, Rows grad_y, OutRows grad_x, float* partial, int first_slot) {
  extern __shared__ __align__(16) half shared[];
  __shared__ int exponents[kBackwardWarps];
  __shared__ int4 places[kSlots][kBackwardWarps];
  Matrices<H, kStaged> matrices{net};
  matrices.open(shared, params.data);
  constexpr int kStride = H + kApart, kAhead = kSlots > 3 ? 1 : 2;  // groups of columns of x that are fetched together
  const int warp = threadIdx.x / 32, warps = blockDim.x / 32, points = 16 * warps;
  const int last = kLayers ? kLayers : net.layers, groups = net.columns(0) / kGroup;
  const Stash<H> stash{net, points, shared + matrices.size()};
  const auto my_hidden = [&](int m) { return stash.hidden(m) + 16 * warp * kStride; };
  half* my_x = stash.x() + 16 * warp * stash.x_stride();
  half* my_y = stash.y() + 16 * warp * stash.y_stride();
  float sums[kSlots][4][4] = {};
  int scale = -126;  // sums are 2^-scale times what they should be
  // Where a matrix is one unit each warp reads only its own rows.
  const bool alone = !partial || single(net);
  const auto meet = [&] { alone ? __syncwarp() : __syncthreads(); };
  for (int m = last, slot = -first_slot; m >= 0; --m)
    for (int round = 0; round < deal(net, m, warps).rounds(); ++round, ++slot)
      if (lane() == 0 && slot >= 0 && slot < kSlots) {
        const Place at = place(net, m, round, points);
        places[slot][warp] = {at.row, at.column, at.begin, at.end};
      }
  // Adds the product of two stashed arrays to the slots this warp has of a matrix; moves on to the next slot.
  const auto add_outer = [&](int matrix, int& slot, const half* g, int g_stride, const half* h,
                             int h_stride) {
    const auto add = [&](int s) {
      const int4 at = places[s][warp];
      outer(g + at.x, g_stride, h + at.y, h_stride, at.z, at.w, sums[s]);
    };
    if constexpr (kLayers > 0) {
      if (matrix > 0)
        add(kLayers - matrix);
      else
#pragma unroll
        for (int s = kLayers; s < kSlots; ++s) add(s);
    } else {
      for (int round = 0; round < deal(net, matrix, warps).rounds(); ++round, ++slot)
#pragma unroll
        for (int s = 0; s < kSlots; ++s)
          if (s == slot) add(s);
    }
  };
  __syncthreads();

  for (int64_t first = int64_t{blockIdx.x} * points; first < x.count; first += int64_t{gridDim.x} * points) {
    const int64_t base = first + 16 * warp, there = max(int64_t{0}, min(int64_t{16}, x.count - base));
    Sums<H / 8> sum;
    Operands<H / 16> a;
    const int64_t next = min(base + int64_t{gridDim.x} * points, x.count),
                  then = min(int64_t{16}, x.count - next);
    prefetch(x.data + next * x.width, then * x.width);
    prefetch(grad_y.data + next * grad_y.width, then * grad_y.width);
    if (activation != kLinear) prefetch(y.data + next * y.width, then * y.width);

    clear<H / 8>(sum);
#pragma unroll 1
    for (int at = 0; at < groups; at += kAhead) {
      float2 v[kAhead][4];
#pragma unroll
      for (int k = 0; k < kAhead; ++k)
        if (at + k < groups) x.load(base, at + k, padding, v[k]);
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        if (at + k >= groups) break;
        uint32_t in[4];
        round_square(v[k], in);
        if (partial) store_blocks(my_x + kGroup * (at + k), stash.x_stride(), in);
        forward_step<H / 8>(in, matrices[0], 0, at + k, sum);
      }
    }
#pragma unroll(kLayers ? kLayers : 1)
    for (int m = 0; m < last; ++m) {
      activate_hidden<H>(sum, a, my_hidden(m));
      if (m + 1 < last) hidden_forward<H>(a, matrices[m + 1], sum);
    }

    const int mine = exponent_of(grad_y.data + base * grad_y.width, there * grad_y.width);
    int largest = mine;
    if (!alone) {
      if (lane() == 0) exponents[warp] = mine;
      __syncthreads();
      for (int w = 0; w < warps; ++w) largest = max(largest, exponents[w]);
    }
    if (largest > scale) {
      const float factor = power(scale - largest);
#pragma unroll
      for (int s = 0; s < kSlots; ++s)
#pragma unroll
        for (int i = 0; i < 16; ++i) sums[s][i / 4][i % 4] *= factor;
      scale = largest;
    }
    const __half2 share = __float2half2_rn(power(mine - scale));

    int slot = -first_slot;
    clear<H / 8>(sum);
#pragma unroll 1
    for (int group = 0; group < net.rows(last) / kGroup; ++group) {
      float2 v[4];
      grad_y.load(base, group, 0.f, v);
      if (activation != kLinear) {
        float2 out[4];
        y.load(base, group, 0.f, out);
#pragma unroll
        for (int i = 0; i < 4; ++i)
          v[i] = {activate_vjp(activation, out[i].x, v[i].x), activate_vjp(activation, out[i].y, v[i].y)};
      }
      uint32_t in[4];
      const float factor = power(-mine);
#pragma unroll
      for (int i = 0; i < 4; ++i) v[i] = {v[i].x * factor, v[i].y * factor};
      round_square(v, in);
      backward_step<H / 8>(in, matrices[last], 0, group, sum);
#pragma unroll
      for (int i = 0; i < 4; ++i) in[i] = scaled(in[i], share);
      if (partial) store_blocks(my_y + kGroup * group, stash.y_stride(), in);
    }
    meet();
    if (partial) add_outer(last, slot, stash.y(), stash.y_stride(), stash.hidden(last - 1), kStride);
#pragma unroll(kLayers ? kLayers : 1)
    for (int m = last - 1; m >= 0; --m) {
      meet();
      activate_hidden_vjp<H>(sum, my_hidden(m), partial, share, a);
      if (partial) {
        meet();
        add_outer(m, slot, stash.hidden(m), kStride, m > 0 ? stash.hidden(m - 1) : stash.x(),
                  m > 0 ? kStride : stash.x_stride());
      }
      if (m > 0) hidden_backward<H>(a, matrices[m], sum);
    }
    if (grad_x.data) {
      const float factor = power(mine);
#pragma unroll 1
      for (int group = 0; group < groups; ++group) {
        Sums<2> out;
        clear<2>(out);
#pragma unroll
        for (int k = 0; k < H / kGroup; ++k) backward_step<2>(a[k], matrices[0], kGroup * group, k, out);
        float2 v[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) v[i] = pair(out[0], i), v[i].x *= factor, v[i].y *= factor;
        grad_x.store(base, group, v);
      }
    }
    meet();
  }
  if (partial)
    flush(net, first_slot, sums, power(scale), reinterpret_cast<float*>(stash.data),
          partial + blockIdx.x * int64_t{net.parameters()});
}

// Sums the blocks' rows, always in the same order: eight warps take every eighth row of 32 parameters.
__global__ void __launch_bounds__(256)
    mlp_add_up_kernel(const float* partial, int rows, Out<real, kParams> grad_params) {
  __shared__ float board[8][32];
  const int warp = threadIdx.x / 32;
  const int64_t n = grad_params.size[0], i = blockIdx.x * int64_t{32} + lane();
  float sum = 0.f;
  if (i < n)
#pragma unroll 4
    for (int row = warp; row < rows; row += 8) sum += partial[row * n + i];
  board[warp][lane()] = sum;
  __syncthreads();
  if (warp > 0 || i >= n) return;
#pragma unroll
  for (int other = 1; other < 8; ++other) sum += board[other][lane()];
  grad_params.data[i] = sum;
}

// Starts one kernel if it is for such a network and the device's shared memory holds it with at least `least`
// warps per block.
template <int H, int kLayers, int kSlots, bool kStaged, int kBlocks>
bool backward_with(int least, Cuda q, Network net, In<real, kPoints, kInputs> x, In<real, kParams> params,
                   int64_t activation, double padding, Maybe<In<real, kPoints, kOutputs>> y,
                   In<real, kPoints, kOutputs> grad_y, Maybe<Out<real, kPoints, kInputs>> grad_x,
                   Maybe<Out<real, kParams>> grad_params, Maybe<Out<real, kEntries, kParams>> partial) {
  const int weights = Matrices<H, kStaged>{net}.size();
  const int most = (most_shared(q) - 1024) / 2 - weights;
  int warps = kBackwardWarps;
  while (warps > 0 && Stash<H>{net, 16 * warps}.size() > most) --warps;
  if (warps < least || (kLayers && (net.layers != kLayers || slots(net, warps) != kSlots))) return false;
  for (int m = kLayers; m > 0; --m)
    if (deal(net, m, warps).rounds() > 1) return false;
  unsigned grid = std::min(blocks(x.size[0], 16 * warps), unsigned(kBlocks * multiprocessors(q)));
  int passes = 1;
  if (grad_params) {
    grid = std::min(grid, unsigned(partial.size[0]));
    passes = (slots(net, warps) + kSlots - 1) / kSlots;
  }
  for (int pass = 0; pass < passes; ++pass) {
    if (pass > 0) grad_x.data = nullptr;  // done by the first
    launch_shared("mlp_backward", mlp_backward_kernel<H, kLayers, kSlots, kStaged, kBlocks>, grid, 32 * warps,
                  2 * (weights + Stash<H>{net, 16 * warps}.size()), q, net, rows_of(x), params, activation,
                  float(padding), rows_of(y), rows_of(grad_y), out_rows_of(grad_x),
                  grad_params ? partial.data : nullptr, pass * kSlots);
  }
  if (grad_params)
    launch("mlp_backward", mlp_add_up_kernel, blocks(net.parameters(), 32), 256, q,
           static_cast<const float*>(partial.data), int(grid), static_cast<Out<real, kParams>>(grad_params));
  return true;
}

}  // namespace

void mlp_backward(Cuda q, In<real, kPoints, kInputs> x, In<real, kParams> params, int64_t hidden,
                  int64_t layers, int64_t activation, double padding, Maybe<In<real, kPoints, kOutputs>> y,
                  In<real, kPoints, kOutputs> grad_y, Maybe<Out<real, kPoints, kInputs>> grad_x,
                  Maybe<Out<real, kParams>> grad_params, Maybe<Out<real, kEntries, kParams>> partial) {
  const Network net = network(x, params, hidden, layers, grad_y.size[1]);
  require(y || activation == kLinear, "needs y, as the output has an activation");
  require(partial || !grad_params, "needs partial for the gradient of params");
  if (x.size[0] == 0 && grad_params) zero("mlp_backward", grad_params.data, 4 * net.parameters(), q);
  if (x.size[0] == 0) return;
  const auto start = [&](auto with, int least) {
    return with(least, q, net, x, params, activation, padding, y, grad_y, grad_x, grad_params, partial);
  };
  if (hidden <= 16 && start(backward_with<16, 1, 2, true, 3>, kBackwardWarps)) return;
  if (hidden <= 64 && hidden > 32) {
    if (start(backward_with<64, 1, 2, true, 2>, kBackwardWarps)) return;
    if (start(backward_with<64, 2, 3, true, 2>, kBackwardWarps)) return;
    if (start(backward_with<64, 1, 4, true, 2>, kBackwardWarps)) return;
  }
  if (hidden <= 32 && start(backward_with<32, 0, 3, true, 2>, 1)) return;
  if (hidden <= 64 && start(backward_with<64, 0, 4, true, 1>, 4)) return;
  if (start(backward_with<128, 0, 4, true, 1>, 4)) return;
  require(start(backward_with<128, 0, 4, false, 1>, 1), "needs more shared memory than the device has");
}

}  // namespace raymarch
