// Gradients of networks: hidden layers are computed again, tile by tile, and never leave the multiprocessor.
#pragma once
#include "cuda/mlp.cuh"
#include "cuda/vector.cuh"
#include "ops.h"

namespace raymarch {

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

template <class S>
__host__ __device__ int column_units(const S& shape, int matrix) {
  return (shape.columns(matrix) + 31) / 32;
}
template <class S>
__host__ __device__ Deal deal(const S& shape, int matrix, int warps) {
  return {shape.rows(matrix) / kGroup * column_units(shape, matrix), warps};
}

// Whether every matrix is one unit.
template <class S>
__host__ __device__ bool single(const S& shape) {
  for (int m = 0; m <= shape.layers(); ++m)
    if (deal(shape, m, 1).units > 1) return false;
  return true;
}

// Slots of 16 x 32 sums that a warp needs for all matrices, the last first.
template <class S>
int slots(const S& shape, int warps) {
  int sum = 0;
  for (int m = 0; m <= shape.layers(); ++m) sum += deal(shape, m, warps).rounds();
  return sum;
}

// What the warps keep of a tile of points, row-major, each row kApart longer than its units: x, twice where
// the next tile's is fetched meanwhile, hidden layers, y.
template <class S, int H, bool kAhead>
struct Stash {
  S shape;
  int points;
  Place at;

  __host__ __device__ int x_stride() const { return shape.columns(0) + kApart; }
  __host__ __device__ int y_stride() const { return shape.rows(shape.layers()) + kApart; }
  __host__ __device__ int size() const {  // in halves
    return points * ((kAhead ? 2 : 1) * x_stride() + shape.layers() * (H + kApart) + y_stride()) + kSlack;
  }
  __device__ __forceinline__ Place x(int which) const { return at + 2 * which * points * x_stride(); }
  __device__ __forceinline__ Place hidden(int m) const {
    return x(kAhead ? 2 : 1) + 2 * m * points * (H + kApart);
  }
  __device__ __forceinline__ Place y() const { return hidden(shape.layers()); }
};

// Which part of a matrix's gradient a slot of a warp is, a byte each: the row and the column where it begins,
// both over 16, and the points from `begin` to `end`, over 16.
template <class S>
__device__ unsigned part(const S& shape, int matrix, int round, int points) {
  const Deal dealt = deal(shape, matrix, blockDim.x / 32);
  const int warp = threadIdx.x / 32, wide = column_units(shape, matrix);
  const int unit = dealt.unit(round, warp), group = dealt.group(warp), steps = points / 16;
  if (unit >= dealt.units || group >= dealt.groups()) return 0;
  return unsigned(unit / wide | unit % wide * 2 << 8 | steps * group / dealt.groups() << 16 |
                  steps * (group + 1) / dealt.groups() << 24);
}

// Writes this block's sums of its slots to its row of `partial`. `board` holds 512 floats per warp.
template <class S, int kSlots>
__device__ __forceinline__ void flush(const S& shape, int first_slot, const float (&sums)[kSlots][4][4],
                                      float factor, float* board, float* partial) {
  const int warps = blockDim.x / 32, warp = threadIdx.x / 32, g = lane() / 4, t = lane() % 4;
  int slot = -first_slot;
  for (int m = shape.layers(); m >= 0; --m) {
    const Deal dealt = deal(shape, m, warps);
    const int wide = column_units(shape, m);
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
        if (column >= shape.columns(m)) continue;
        float sum = 0.f;
        for (int group = 0; group < dealt.groups(); ++group) sum += board[e + 512 * units * group];
        partial[shape.offset(m) + row * shape.columns(m) + column] = sum;
      }
    }
  }
}

// Powers of two, and the one just below the largest of a warp's gradients; numbers that are not finite have
// none.
__device__ __forceinline__ float power(int exponent) {
  return exponent < -126 ? 0.f : __int_as_float((min(exponent, 127) + 127) << 23);
}
__device__ __forceinline__ float largest_of(const float* from, int64_t count) {
  float most = 0.f;
#pragma unroll 4
  for (int64_t i = lane(); i < count; i += 32) most = fmaxf(most, fabsf(__ldg(from + i)));
  return __uint_as_float(__reduce_max_sync(0xffffffffu, __float_as_uint(most)));
}
__device__ __forceinline__ int exponent_of(float most) {
  const unsigned bits = __float_as_uint(most);
  return bits >= 0x7f800000u ? 0 : min(int(bits >> 23) - 127, 126);
}

// The outputs' gradient: a row per point or, where points have shares, of `each` points in order. Kernels
// that are never asked for shares do without (kShares): they have no register to spare.
struct OutGrad {
  Rows<float> rows;
  const float* share;
  unsigned each;
  int64_t count;  // points

  __device__ __forceinline__ const float* row_of(int64_t point) const {
    return rows.data + int64_t{unsigned(point) / each} * rows.width;
  }
  __device__ __forceinline__ void prefetch_rows(int64_t base, int64_t step) const {
    if (!share) rows.prefetch_rows(base, step);
  }
  template <bool kShares>
  __device__ __forceinline__ void load(int64_t base, int group, float2 (&v)[4]) const {
    if (!kShares || !share) return rows.load(base, group, 0.f, v);
    const int column = 16 * group + 2 * (lane() % 4);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t point = base + lane() / 4 + i % 2 * 8;
      const int left = point < count ? rows.width - column - i / 2 * 8 : 0;
      const float mine = left > 0 ? share[point] : 0.f;
      const float* at = row_of(point) + column + i / 2 * 8;
      v[i] = {left > 0 ? mine * __ldg(at) : 0.f, left > 1 ? mine * __ldg(at + 1) : 0.f};
    }
  }
  // That of the largest gradient of `there` points, or of a number that is not smaller.
  template <bool kShares>
  __device__ __forceinline__ int exponent(int64_t base, int there) const {
    if (!kShares || !share || there == 0)
      return exponent_of(largest_of(rows.data + base * rows.width, int64_t{there} * rows.width));
    const float *first = row_of(base), *last = row_of(base + there - 1);
    return exponent_of(largest_of(share + base, there) * largest_of(first, last + rows.width - first));
  }
};

template <class S>
constexpr bool kShares = true;
template <int H, int kLayers, int kIn>
constexpr bool kShares<Shape<H, kLayers, kIn>> = kLayers == 0 || kIn == 9;

// One block per 16 points of each of its warps at a time. Every warp computes the hidden layers of its points
// again and keeps them in the stash, walks back through the layers, and leaves each layer's gradient where
// its activation was. Between block barriers all warps add up their share of the weights' gradient over all
// points of the block; it stays in registers, in kSlots pieces of 16 x 32 per warp from `first_slot` on,
// until the block has met its last points. Without `partial` only grad_x is made.
//
// Gradients are halves: a warp scales its own by a power of two so that the largest is near one. In the stash
// all gradients of a block share a scale, that of the largest it has met, and so do the sums.
//
// Where the compiler knows the shape, every matrix but the first is one slot, and all of them fit.
template <class T, int H, int kLayers, int kIn, int kSlots, bool kStaged, int kBlocks, int kWarps>
__global__ void __launch_bounds__(32 * kWarps, kBlocks)
    mlp_backward_kernel(Shape<H, kLayers, kIn> shape, Rows<T> x, In<real, kParams> params, int64_t activation,
                        float padding, OutGrad grad_y, OutRows grad_x, float* partial, int first_slot) {
  using S = Shape<H, kLayers, kIn>;
  RM_SHARED(half, shared);
  __shared__ int exponents[kWarps];
  Matrices<S, H, kStaged> matrices{shape};
  constexpr bool kAhead = std::is_same_v<T, half> && kLayers > 0;  // x is copied one tile ahead
  constexpr int kStride = H + kApart;
  const int warp = threadIdx.x / 32, warps = kLayers ? kWarps : blockDim.x / 32, points = 16 * warps;
  const int last = shape.layers(), groups = shape.groups();
  const Stash<S, H, kAhead> stash{shape, points, place_of(shared)};
  const int xs = stash.x_stride(), ys = stash.y_stride();
  matrices.open(shared + stash.size(), params.data);
  float sums[kSlots][4][4] = {};
  int scale = -126;  // sums are 2^-scale times what they should be
  // Where a matrix is one unit each warp reads only its own rows.
  const bool alone = !partial || single(shape);
  const auto meet = [&] { alone ? __syncwarp() : __syncthreads(); };
  unsigned parts[kSlots] = {};
#pragma unroll 1
  for (int m = last, slot = -first_slot; m >= 0; --m)
#pragma unroll 1
    for (int round = 0; round < deal(shape, m, warps).rounds(); ++round, ++slot) {
      const unsigned at = part(shape, m, round, points);
#pragma unroll
      for (int s = 0; s < kSlots; ++s) parts[s] = s == slot ? at : parts[s];
    }
  // Adds the product of two stashed arrays to the slots this warp has of a matrix; moves on to the next slot.
  const auto add_outer = [&](int matrix, int& slot, Place g, int g_stride, Place h, int h_stride) {
    const auto add = [&](int s) {
      const unsigned at = parts[s];
      outer(g + (at & 255) * 32, g_stride, h + (at >> 8 & 255) * 32, h_stride, (at >> 16 & 255) * 16,
            (at >> 24) * 16, sums[s]);
    };
    if constexpr (kLayers > 0) {
      if (matrix > 0)
        add(kLayers - matrix);
      else
#pragma unroll
        for (int s = kLayers; s < kSlots; ++s) add(s);
    } else {
      for (int round = 0; round < deal(shape, matrix, warps).rounds(); ++round, ++slot)
#pragma unroll
        for (int s = 0; s < kSlots; ++s)
          if (s == slot) add(s);
    }
  };

  const int64_t step = int64_t{gridDim.x} * points;
  int64_t base = int64_t{blockIdx.x} * points + 16 * warp;
  int now = 0;  // which of the two copies of x
  if constexpr (kAhead) {
    const uint32_t two = pack(padding, padding);
    for (int i = threadIdx.x; i < 2 * points * (16 * groups - x.width); i += blockDim.x) {
      const int row = i / (16 * groups - x.width), column = x.width + i % (16 * groups - x.width);
      reinterpret_cast<uint16_t*>(shared)[row * xs + column] = uint16_t(two);
    }
    x.copy(base, stash.x(0) + 32 * warp * xs, xs);
  }
  __syncthreads();

  for (; base - 16 * warp < x.count; base += step) {
    const Place my_x = stash.x(now) + 32 * warp * xs, my_y = stash.y() + 32 * warp * ys;
    const auto my_hidden = [&](int m) { return stash.hidden(m) + 32 * warp * kStride; };
    Sums<H / 8> sum;
    Operands<H / 16> a;
    if constexpr (kAhead) {
      wait_for_copies();
      __syncwarp();
      // Rows past the end too, as zeros: what lies there meets gradients of zero, and NaN would outlive them.
      if (base - 16 * warp + step < x.count) x.copy(base + step, stash.x(now ^ 1) + 32 * warp * xs, xs);
    } else {
      x.prefetch_rows(base, step);
    }
    grad_y.prefetch_rows(base, step);

    clear<H / 8>(sum);
#pragma unroll 1
    for (int k = 0; k < groups; ++k) {
      uint32_t in[4];
      if constexpr (kAhead) {
        load_blocks(my_x + 32 * k + corner(0, xs), in);
      } else {
        typename Rows<T>::Pair v[4];
        x.load(base, k, padding, v);
        round_square(v, in);
        if (partial) store_operand(my_x + 32 * k, xs, in);
      }
      forward_step<H / 8>(in, matrices[0], 0, k, sum);
    }
#pragma unroll(kLayers ? kLayers : 1)
    for (int m = 0; m < last; ++m) {
      activate_hidden<H, true>(sum, a, my_hidden(m));
      if (m + 1 < last) hidden_forward<H>(a, matrices[m + 1], sum);
    }

    const int there = int(max(int64_t{0}, min(int64_t{16}, x.count - base)));
    const int mine = grad_y.template exponent<kShares<S>>(base, there);
    int largest = mine;
    if (!alone) {
      if (lane() == 0) exponents[warp] = mine;
      __syncthreads();
#pragma unroll
      for (int w = 0; w < kWarps; ++w) largest = w < warps ? max(largest, exponents[w]) : largest;
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
    for (int group = 0; group < shape.net.rows(last) / kGroup; ++group) {
      float2 v[4];
      grad_y.template load<kShares<S>>(base, group, v);
      if (activation != kLinear) {  // computed again: cheaper than reading y
        Sums<2> out;
        clear<2>(out);
#pragma unroll
        for (int k = 0; k < H / kGroup; ++k) forward_step<2>(a[k], matrices[last], kGroup * group, k, out);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float2 z = pair(out[0], i);
          v[i] = {activate_vjp(activation, activate(activation, z.x), v[i].x),
                  activate_vjp(activation, activate(activation, z.y), v[i].y)};
        }
      }
      uint32_t in[4];
      const float factor = power(-mine);
#pragma unroll
      for (int i = 0; i < 4; ++i) v[i] = {v[i].x * factor, v[i].y * factor};
      round_square(v, in);
      backward_step<H / 8>(in, matrices[last], 0, group, sum);
#pragma unroll
      for (int i = 0; i < 4; ++i) in[i] = scaled(in[i], share);
      if (partial) store_operand(my_y + 32 * group, ys, in);
    }
    meet();
    if (partial) add_outer(last, slot, stash.y(), ys, stash.hidden(last - 1), kStride);
#pragma unroll(kLayers ? kLayers : 1)
    for (int m = last - 1; m >= 0; --m) {
      meet();
      activate_hidden_vjp<H>(sum, my_hidden(m), partial, share, a);
      if (partial) {
        meet();
        add_outer(m, slot, stash.hidden(m), kStride, m > 0 ? stash.hidden(m - 1) : stash.x(now),
                  m > 0 ? kStride : xs);
      }
      if (m > 0) hidden_backward<H>(a, matrices[m], sum);
    }
    if (grad_x.data) {
      const float factor = power(mine);
#pragma unroll 1
      for (int group = 0; kGroup * group < grad_x.rows.width; ++group) {
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
    if constexpr (kAhead) now ^= 1;
  }
  if (partial)
    flush(shape, first_slot, sums, power(scale), reinterpret_cast<float*>(shared),
          partial + blockIdx.x * int64_t{shape.net.parameters()});
}

// Sums the blocks' rows, always in the same order: eight warps take every eighth row of 32 parameters.
static __global__ void __launch_bounds__(256)
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
template <class T, int H, int kLayers, int kIn, int kSlots, bool kStaged, int kBlocks,
          int kWarps = kBackwardWarps>
bool backward_with(int least, Cuda q, Network net, In<T, kPoints, kInputs> x, In<real, kParams> params,
                   int64_t activation, double padding, OutGrad grad_y,
                   Maybe<Out<real, kPoints, kChannels>> grad_x, Maybe<Out<real, kParams>> grad_params,
                   Maybe<Out<real, kEntries, kParams>> partial) {
  using S = Shape<H, kLayers, kIn>;
  const S shape{net};
  if (!shape.fits() || (grad_y.share && !kShares<S>)) return false;
  using Kept = Stash<S, H, std::is_same_v<T, half> && (kLayers > 0)>;
  if (std::is_same_v<T, half> && kLayers && net.inputs % 2) return false;  // copies are of four bytes
  const int weights = Matrices<S, H, kStaged>{shape}.size();
  const int most = (most_shared(q) - 1024) / 2 - weights;
  int warps = kWarps;
  while (warps > 0 && Kept{shape, 16 * warps}.size() > most) --warps;
  if (warps < least || (kLayers && slots(shape, warps) != kSlots)) return false;
  for (int m = kLayers; m > 0; --m)
    if (deal(shape, m, warps).rounds() > 1) return false;
  unsigned grid = std::min(blocks(x.size[0], 16 * warps), unsigned(kBlocks * multiprocessors(q)));
  int passes = 1;
  if (grad_params) {
    grid = std::min(grid, unsigned(partial.size[0]));
    passes = (slots(shape, warps) + kSlots - 1) / kSlots;
  }
  for (int pass = 0; pass < passes; ++pass) {
    if (pass > 0) grad_x.data = nullptr;  // done by the first
    launch_shared("mlp_backward", mlp_backward_kernel<T, H, kLayers, kIn, kSlots, kStaged, kBlocks, kWarps>,
                  grid, 32 * warps, 2 * (weights + Kept{shape, 16 * warps}.size()), q, shape, rows_of<T>(x),
                  params, activation, float(padding), grad_y, out_rows_of(grad_x),
                  grad_params ? partial.data : nullptr, pass * kSlots);
  }
  if (grad_params)
    launch("mlp_backward", mlp_add_up_kernel, blocks(net.parameters(), 32), 256, q,
           static_cast<const float*>(partial.data), int(grid), static_cast<Out<real, kParams>>(grad_params));
  return true;
}

// Starts the kernel for a network; false if none fits the device. One source file for each T: they take long.
template <class T>
bool backward_any(Cuda q, Network net, In<T, kPoints, kInputs> x, In<real, kParams> params,
                  int64_t activation, double padding, OutGrad grad_y,
                  Maybe<Out<real, kPoints, kChannels>> grad_x, Maybe<Out<real, kParams>> grad_params,
                  Maybe<Out<real, kEntries, kParams>> partial) {
  const auto start = [&](auto with, int least) {
    return with(least, q, net, x, params, activation, padding, grad_y, grad_x, grad_params, partial);
  };
  if constexpr (std::is_same_v<T, half>) {
    // With two blocks of eight warps there are too few registers; one of twelve needs 200 KB of shared
    // memory.
    if (start(backward_with<T, 64, 1, 9, 3, true, 1, 12>, 12)) return true;
    if (start(backward_with<T, 64, 1, 9, 4, true, 1>, kBackwardWarps)) return true;
  } else {
    if (start(backward_with<T, 64, 1, 9, 4, true, 2>, kBackwardWarps)) return true;
  }
  return start(backward_with<T, 16, 1, 1, 2, true, 2>, kBackwardWarps) ||
         start(backward_with<T, 64, 1, 2, 2, true, 2>, kBackwardWarps) ||
         start(backward_with<T, 64, 2, 2, 3, true, 2>, kBackwardWarps) ||
         start(backward_with<T, 64, 2, 4, 3, true, 2>, kBackwardWarps) ||
         start(backward_with<T, 32, 0, 0, 3, true, 1>, 1) ||
         start(backward_with<T, 64, 0, 0, 4, true, 1>, 4) ||
         start(backward_with<T, 128, 0, 0, 4, true, 1>, 4) ||
         start(backward_with<T, 128, 0, 0, 4, false, 1>, 1);
}

}  // namespace raymarch
