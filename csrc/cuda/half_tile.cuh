// Tensor-core tiles in half precision: 32 points by units, sums in float, activations in registers.
//
// mma.m16n8k16 multiplies 16 rows by 8 columns over 16 inner numbers. Lane (g, t) = (lane / 4, lane % 4)
// holds pairs of neighbouring columns:
//
//   a: (g, 2t) (g + 8, 2t) (g, 2t + 8) (g + 8, 2t + 8)   rows x inner
//   b: (2t, g) (2t + 8, g)                               inner x columns
//   c: (g, 2t) (g + 8, 2t)                               rows x columns
//
// Two neighbouring tiles of c are, rounded, one a of the next product: activations never leave their lane.
// A half has ten bits of mantissa, as TF32 has; what is larger than 65504 is kept at that.
#pragma once
#include <cstdint>

#include "cuda/launch.cuh"

namespace raymarch {

constexpr int kRowTiles = 2;  // of 16 points: a warp has 32

// Operand a: 32 points by 16 inner numbers. Sums c: 32 points by 16 columns.
struct Operand {
  uint32_t at[kRowTiles][4];
};
struct Sums {
  float at[kRowTiles][2][4];  // row tile, column tile, number
};

// A weight matrix [rows, columns] in shared memory, in the order in which lanes read it: for every 16 inputs
// and 16 outputs one uint4 per lane, b of the two column tiles.
__host__ __device__ inline int fragments(int outputs, int inputs) {
  return outputs / 16 * (inputs / 16) * 32;
}

// The whole block copies columns first .. first + 16 groups - 1 of `from` [rows, pitch].
__device__ __forceinline__ void stage_halves(uint4* to, const float* from, int rows, int pitch, int first,
                                             int groups) {
  const int count = fragments(rows, 16 * groups);
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    const int who = i % 32, tile = i / 32, k = tile / (rows / 16), j = tile % (rows / 16);
    const float* row = from + (16 * j + who / 4) * pitch + first + 16 * k + 2 * (who % 4);
    const float* next = row + 8 * pitch;
    to[i] = {pack_halves(row[0], row[1]), pack_halves(row[8], row[9]), pack_halves(next[0], next[1]),
             pack_halves(next[8], next[9])};
  }
}

__device__ __forceinline__ void clear(Sums& c) {
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int k = 0; k < 4; ++k) c.at[m][n][k] = 0.f;
}

// c += a W^T for inputs of group k and outputs of group j of a matrix with `columns` groups of outputs.
__device__ __forceinline__ void multiply(Sums& c, const Operand& a, const uint4* matrix, int k, int j,
                                         int columns) {
  const uint4 b = matrix[(k * columns + j) * 32 + lane()];
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
    mma(c.at[m][0], a.at[m], b.x, b.y);
    mma(c.at[m][1], a.at[m], b.z, b.w);
  }
}

__device__ __forceinline__ void relu_into(const Sums& c, Operand& a) {
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        a.at[m][2 * n + half] = pack_relu(c.at[m][n][2 * half], c.at[m][n][2 * half + 1]);
}

// Rows of halves in shared memory, `pitch` bytes apart, as an operand: 16 columns from byte `column` on.
__device__ __forceinline__ void load_operand(Operand& a, const char* rows, int pitch, int column) {
  const int row = lane() % 16, side = lane() / 16;
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
    load_blocks(place_of(rows + (16 * m + row) * pitch + column + 16 * side), a.at[m]);
  }
}

}  // namespace raymarch
