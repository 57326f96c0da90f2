// Tensor-core tiles in TF32: points by units, activations in registers, weights in shared memory.
//
// mma.m16n8k8 multiplies 16 rows by 8 columns over 8 inner numbers. Lane (g, t) = (lane / 4, lane % 4) holds
//
//   a: (g, t) (g + 8, t) (g, t + 4) (g + 8, t + 4)     rows x inner
//   b: (t, g) (t + 4, g)                               inner x columns
//   c: (g, 2t) (g, 2t + 1) (g + 8, 2t) (g + 8, 2t + 1) rows x columns
//
// Which unit of a layer is column n of a tile is ours to choose. Units go in groups of 16, two tiles each:
// tile q holds units 2n + q of the group. Lane t then owns units 4t .. 4t + 3 of rows g and g + 8, in c and,
// as the inner dimension of the next product, in a: activations never leave their lane, and whatever is read
// or written per lane is four consecutive units.
#pragma once
#include <cstdint>

#include "cuda/launch.cuh"
#include "math/mlp.h"

namespace raymarch {

// Nearest number with ten bits of mantissa: tensor cores would truncate.
__device__ __forceinline__ float tf32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return __uint_as_float(bits);
}

__device__ __forceinline__ void mma(float (&c)[4], const float (&a)[4], float b0, float b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])),
        "r"(__float_as_uint(a[3])), "r"(__float_as_uint(b0)), "r"(__float_as_uint(b1)));
}

// Copies that pass the registers by. Bytes past `valid` are zeroed; `from` must be readable even so.
template <int kBytes>
__device__ __forceinline__ void copy_async(float* to, const float* from, bool valid = true) {
  const unsigned at = unsigned(__cvta_generic_to_shared(to));
  const int size = valid ? kBytes : 0;
  if (kBytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(size) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(at), "l"(from), "r"(size) : "memory");
}
// Asks for the cache lines of a contiguous run, on behalf of a warp that will read it soon.
__device__ __forceinline__ void prefetch(const float* from, int64_t count) {
  for (int64_t i = 32 * lane(); i < count; i += 32 * 32)
    asm volatile("prefetch.global.L2 [%0];" ::"l"(from + i));
}
__device__ __forceinline__ void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// The lanes of a warp, walking row by row over a block `columns` wide.
struct Walk {
  int row, column, columns;
  __device__ explicit Walk(int columns) : row(lane() / columns), column(lane() % columns), columns(columns) {
    rows_ = 32 / columns, rest_ = 32 % columns;
  }
  __device__ __forceinline__ void next() {
    row += rows_, column += rest_;
    if (column >= columns) column -= columns, ++row;
  }

 private:
  int rows_, rest_;
};

// A weight matrix [rows, columns] in shared memory, rounded to TF32, in blocks of 32 columns: the distance of
// rows is then known to the compiler. Within 32 columns groups of four are exchanged so that no two lanes
// meet in a bank, whether a product reads along rows or down columns.
struct Staged {
  const float* weights;
  int padded_rows;

  __device__ __forceinline__ int at(int row, int column) const {
    const int exchange = (((row >> 1) & 6) ^ ((row & 2) << 1)) << 2;
    return (column >> 5) * padded_rows * 32 + row * 32 + ((column ^ exchange) & 31);
  }
  __device__ __forceinline__ float4 along(int row, int column) const {
    return *reinterpret_cast<const float4*>(weights + at(row, column));
  }
  __device__ __forceinline__ float2 pair(int row, int column) const {
    return *reinterpret_cast<const float2*>(weights + at(row, column));
  }
};

// The same matrix where it does not fit: in global memory, read through the caches and rounded each time.
struct Unstaged {
  const float* weights;
  int rows, columns;

  __device__ __forceinline__ float one(int row, int column) const {
    int at = row < rows && column < columns ? row * columns + column : -1;
    asm volatile("" : "+r"(at));  // keeps the order: or the compiler fetches whole columns ahead, and spills
    return at >= 0 ? tf32(__ldg(weights + at)) : 0.f;
  }
  __device__ __forceinline__ float4 along(int row, int column) const {
    return {one(row, column), one(row, column + 1), one(row, column + 2), one(row, column + 3)};
  }
  __device__ __forceinline__ float2 pair(int row, int column) const {
    return {one(row, column), one(row, column + 1)};
  }
};

// The whole block copies one matrix; what lies outside [rows, columns] is zero.
__device__ __forceinline__ void stage(float* to, int padded_rows, const float* from, int rows, int columns) {
  const Staged staged{to, padded_rows};
  const int count = padded_rows * round_up(columns, 32);
#pragma unroll 8
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    const int line = i / 32, row = line % padded_rows, column = line / padded_rows * 32 + i % 32;
    to[staged.at(row, column)] = row < rows && column < columns ? tf32(from[row * columns + column]) : 0.f;
  }
}

// Numbers of kM x 16 points: two tiles for each group of 16 units, as sums in the order of c, as operands in
// the order of a.
template <int kTiles, int kM>
using Tiles = float[kTiles][kM][4];

template <int kTiles, int kM>
__device__ __forceinline__ void clear(Tiles<kTiles, kM>& c) {
#pragma unroll
  for (int j = 0; j < kTiles; ++j)
#pragma unroll
    for (int m = 0; m < kM; ++m)
#pragma unroll
      for (int k = 0; k < 4; ++k) c[j][m][k] = 0.f;
}

// Units 4t .. 4t + 3 of one group: of row g (half 0) or g + 8 (half 1), out of the sums of its two tiles, and
// into their place as operand a.
__device__ __forceinline__ float4 quad(const float (&even)[4], const float (&odd)[4], int half) {
  return {even[2 * half], odd[2 * half], even[2 * half + 1], odd[2 * half + 1]};
}
__device__ __forceinline__ void set_quad(float (&even)[4], float (&odd)[4], int half, float4 v) {
  even[half] = v.x, odd[half] = v.y, even[2 + half] = v.z, odd[2 + half] = v.w;
}

// sum += a W^T over one group of 16 inputs, for kTiles / 2 groups of outputs from `first` on.
template <int kTiles, int kM, class Weights>
__device__ __forceinline__ void forward_step(const float (&even)[kM][4], const float (&odd)[kM][4],
                                             Weights weights, int first, int group, Tiles<kTiles, kM>& sum) {
  const int g = lane() / 4, t = lane() % 4;
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
    const float4 w = weights.along(16 * (first + j / 2) + 2 * g + j % 2, 16 * group + 4 * t);
#pragma unroll
    for (int m = 0; m < kM; ++m) mma(sum[j][m], even[m], w.x, w.z);
#pragma unroll
    for (int m = 0; m < kM; ++m) mma(sum[j][m], odd[m], w.y, w.w);
  }
}

// sum += a W over one group of 16 rows of W, for kTiles / 2 groups of its columns from `first` on.
template <int kTiles, int kM, class Weights>
__device__ __forceinline__ void backward_step(const float (&even)[kM][4], const float (&odd)[kM][4],
                                              Weights weights, int first, int group, Tiles<kTiles, kM>& sum) {
  const int g = lane() / 4, t = lane() % 4;
#pragma unroll
  for (int s = 0; s < 2; ++s)
#pragma unroll
    for (int j = 0; j < kTiles; j += 2) {
      const int row = 16 * group + 4 * t + s, column = 16 * (first + j / 2) + 2 * g;
      const float2 near = weights.pair(row, column), far = weights.pair(row + 2, column);
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        mma(sum[j][m], s == 0 ? even[m] : odd[m], near.x, far.x);
        mma(sum[j + 1][m], s == 0 ? even[m] : odd[m], near.y, far.y);
      }
    }
}

// sum += G^T H over points begin .. end: 16 columns of G by 32 columns of H, both [point, unit] in shared
// memory. Rows of the tile are columns 2g and 2g + 1 of G, columns of tile q are columns 4n + q of H.
template <int kStrideG, int kStrideH, bool kRound>
__device__ __forceinline__ void outer(const float* g_at, const float* h_at, int begin, int end,
                                      float (&sum)[4][4]) {
  const int g = lane() / 4, t = lane() % 4;
#pragma unroll 2
  for (int p = begin + t; p < end; p += 8) {
    const float2 u = *reinterpret_cast<const float2*>(g_at + p * kStrideG + 2 * g);
    const float2 v = *reinterpret_cast<const float2*>(g_at + (p + 4) * kStrideG + 2 * g);
    float4 b = *reinterpret_cast<const float4*>(h_at + p * kStrideH + 4 * g);
    float4 c = *reinterpret_cast<const float4*>(h_at + (p + 4) * kStrideH + 4 * g);
    if (kRound) {
      b = {tf32(b.x), tf32(b.y), tf32(b.z), tf32(b.w)};
      c = {tf32(c.x), tf32(c.y), tf32(c.z), tf32(c.w)};
    }
    const float a[4] = {u.x, u.y, v.x, v.y};
    mma(sum[0], a, b.x, c.x), mma(sum[1], a, b.y, c.y);
    mma(sum[2], a, b.z, c.z), mma(sum[3], a, b.w, c.w);
  }
}

}  // namespace raymarch
