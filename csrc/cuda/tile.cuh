// Tensor-core tiles in half precision: points by units, activations in registers, weights in shared memory.
//
// mma.m16n8k16 multiplies 16 rows by 8 columns over 16 inner numbers and adds in float. Lane (g, t) =
// (lane / 4, lane % 4) holds, two halves to a register,
//
//   a: (g, 2t) (g + 8, 2t) (g, 2t + 8) (g + 8, 2t + 8)     rows x inner, and the number after each
//   b: (2t, g) (2t + 8, g)                                 inner x columns, and the number below each
//   c: (g, 2t) (g, 2t + 1) (g + 8, 2t) (g + 8, 2t + 1)     rows x columns, one float each
//
// so two neighbouring tiles of sums are, rounded, operand a of the next product: activations never leave
// their lane. Halves have eleven bits, as TF32 has, but end at 65504 and thin out below 6e-5: what may lie
// there, gradients, is scaled by a power of two first.
#pragma once
#include <cuda_fp16.h>

#include <cstdint>

#include "cuda/launch.cuh"
#include "math/mlp.h"

namespace raymarch {

// What no half can hold becomes the largest half: an infinite activation would make NaN of the next layer.
__device__ __forceinline__ uint32_t pack(float low, float high) { return pack_halves(low, high); }
__device__ __forceinline__ uint32_t bits(__half2 both) { return reinterpret_cast<const uint32_t&>(both); }
__device__ __forceinline__ __half2 unpack(uint32_t both) { return reinterpret_cast<const __half2&>(both); }
__device__ __forceinline__ uint32_t scaled(uint32_t both, __half2 factor) {
  return bits(__hmul2(unpack(both), factor));
}

// relu and relu_vjp of math/activation.h, of two halves; NaN passes here too.
__device__ __forceinline__ uint32_t relu(uint32_t z) {
  return bits(__hmax2_nan(unpack(z), __half2half2(__ushort_as_half(0))));
}
__device__ __forceinline__ uint32_t relu_vjp(uint32_t y, uint32_t g) {
  return g & ~__hle2_mask(unpack(y), __half2half2(__ushort_as_half(0)));
}

// Rows are counted by their distance in halves, so that whatever the compiler knows of a place ends up in
// the instruction. Where this lane's row of the four blocks of a 16 x 16 square begins: blocks go down first
// (0), or along (1).
__device__ __forceinline__ Place corner(int order, int stride) {
  const int i = lane(), low = i / 8 % 2 * 8, high = i / 16 * 8;
  return 2 * (order == 0 ? (low + i % 8) * stride + high : (high + i % 8) * stride + low);
}

// Operand a of one group, as load_blocks reads it at corner 0 of the square.
__device__ __forceinline__ void store_operand(Place square, int stride, const uint32_t (&a)[4]) {
#if __CUDA_ARCH__ >= 900
  store_blocks(square + corner(0, stride), a);
#else
  const Place at = square + 2 * (lane() / 4 * stride + 2 * (lane() % 4));
#pragma unroll
  for (int i = 0; i < 4; ++i) store_word(at + 2 * (i % 2 * 8 * stride + i / 2 * 8), a[i]);
#endif
}

// Asks for the cache lines of a contiguous run, on behalf of a warp that will read it soon.
template <class T>
__device__ __forceinline__ void prefetch(const T* from, int count) {
#pragma unroll 1
  for (int i = 128 / sizeof(T) * lane(); i < count; i += 128 / sizeof(T) * 32) prefetch_line(from + i);
}

constexpr int kApart = 8;  // halves between rows beyond a multiple of 16: eight rows meet no bank twice

// A weight matrix [rows, columns] in shared memory.
struct Staged {
  Place weights;
  int stride;

  // Operand b of two tiles, rows .. rows + 15 of the matrix, over 16 columns: for a W^T.
  __device__ __forceinline__ void along(int row, int column, uint32_t (&b)[4]) const {
    load_blocks(weights + 2 * (row * stride + column) + corner(1, stride), b);
  }
  // Operand b of two tiles, columns .. columns + 15 of the matrix, over 16 rows: for a W.
  __device__ __forceinline__ void down(int row, int column, uint32_t (&b)[4]) const {
    load_turned(weights + 2 * (row * stride + column) + corner(0, stride), b);
  }
};

// The same matrix where it does not fit: in global memory, read through the caches and rounded each time.
struct Unstaged {
  const float* weights;
  int rows, columns;

  __device__ __forceinline__ float one(int row, int column) const {
    int at = row < rows && column < columns ? row * columns + column : -1;
    pin(at);
    return at >= 0 ? __ldg(weights + at) : 0.f;
  }
  __device__ __forceinline__ void along(int row, int column, uint32_t (&b)[4]) const {
    const int g = lane() / 4, t = lane() % 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int r = row + i / 2 * 8 + g, c = column + i % 2 * 8 + 2 * t;
      b[i] = pack(one(r, c), one(r, c + 1));
    }
  }
  __device__ __forceinline__ void down(int row, int column, uint32_t (&b)[4]) const {
    const int g = lane() / 4, t = lane() % 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int r = row + i % 2 * 8 + 2 * t, c = column + i / 2 * 8 + g;
      b[i] = pack(one(r, c), one(r + 1, c));
    }
  }
};

// The whole block copies one matrix, four columns at a time; what lies outside [rows, columns] is zero.
__device__ __forceinline__ void stage(half* to, int padded_rows, int padded_columns, const float* from,
                                      int rows, int columns) {
  const int quads = padded_columns / 4, stride = padded_columns + kApart;
#pragma unroll 4
  for (int i = threadIdx.x; i < padded_rows * quads; i += blockDim.x) {
    const int row = i / quads, column = 4 * (i - row * quads);
    const bool inside = row < rows && column < columns;
    const float4 v =
        inside ? __ldg(reinterpret_cast<const float4*>(from + row * columns + column)) : float4{};
    *reinterpret_cast<uint2*>(to + row * stride + column) = {pack(v.x, v.y), pack(v.z, v.w)};
  }
}

// Numbers of 16 points: sums by tiles of 8 units, operands by groups of 16.
template <int kTiles>
using Sums = float[kTiles][4];
template <int kGroups>
using Operands = uint32_t[kGroups][4];

template <int kTiles>
__device__ __forceinline__ void clear(Sums<kTiles>& c) {
#pragma unroll
  for (int j = 0; j < kTiles; ++j)
#pragma unroll
    for (int k = 0; k < 4; ++k) c[j][k] = 0.f;
}

// sum += a W^T over one group of 16 inputs, for the kTiles * 8 outputs from row `first` on.
template <int kTiles, class Weights>
__device__ __forceinline__ void forward_step(const uint32_t (&a)[4], Weights weights, int first, int group,
                                             Sums<kTiles>& sum) {
#pragma unroll
  for (int j = 0; j < kTiles; j += 2) {
    uint32_t b[4];
    weights.along(first + 8 * j, 16 * group, b);
    mma(sum[j], a, b[0], b[1]), mma(sum[j + 1], a, b[2], b[3]);
  }
}

// sum += a W over one group of 16 rows of W, for kTiles * 8 of its columns from `first` on.
template <int kTiles, class Weights>
__device__ __forceinline__ void backward_step(const uint32_t (&a)[4], Weights weights, int first, int group,
                                              Sums<kTiles>& sum) {
#pragma unroll
  for (int j = 0; j < kTiles; j += 2) {
    uint32_t b[4];
    weights.down(16 * group, first + 8 * j, b);
    mma(sum[j], a, b[0], b[1]), mma(sum[j + 1], a, b[2], b[3]);
  }
}

// sum += G^T H over points begin .. end: 16 columns of G by 32 columns of H, both [point, unit] in shared
// memory, rows `g_stride` and `h_stride` apart.
__device__ __forceinline__ void outer(Place g, int g_stride, Place h, int h_stride, int begin, int end,
                                      float (&sum)[4][4]) {
  g += corner(1, g_stride) + 2 * begin * g_stride, h += corner(0, h_stride) + 2 * begin * h_stride;
#pragma unroll 2
  for (int p = begin; p < end; p += 16, g += 32 * g_stride, h += 32 * h_stride) {
    uint32_t a[4], near[4], far[4];
    load_turned(g, a);
    load_turned(h, near);
    load_turned(h + 32, far);
    mma(sum[0], a, near[0], near[1]), mma(sum[1], a, near[2], near[3]);
    mma(sum[2], a, far[0], far[1]), mma(sum[3], a, far[2], far[3]);
  }
}

}  // namespace raymarch
