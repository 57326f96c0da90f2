// What forward and backward of a network share: where its weights are, how rows come in and go out, and the
// steps of one warp.
#pragma once
#include <algorithm>

#include "cuda/tile.cuh"
#include "math/activation.h"
#include "math/mlp.h"

namespace raymarch {

constexpr int kGroup = 16;  // units that two tiles share

// The matrices of one network, `H` units where the network has at most as many.
template <int H, bool kStaged>
struct Matrices {
  Network net;
  const half* halves;
  const float* floats;

  __host__ __device__ int stride(int m) const { return (m == 0 ? net.columns(0) : H) + kApart; }
  __host__ __device__ int padded_rows(int m) const { return m == net.layers ? net.rows(m) : H; }
  __host__ __device__ int offset(int m) const {
    return m == 0 ? 0 : H * (stride(0) + (m - 1) * (H + kApart));
  }
  __host__ __device__ int size() const {  // in halves
    return kStaged ? offset(net.layers) + net.rows(net.layers) * (H + kApart) : 0;
  }

  __device__ __forceinline__ auto operator[](int m) const {
    if constexpr (kStaged)
      return Staged{halves + offset(m), stride(m)};
    else
      return Unstaged{floats + net.offset(m), net.rows(m), net.columns(m)};
  }

  // Points at the staged copy, or at the parameters themselves.
  __device__ __forceinline__ void open(half* shared, const float* params) {
    halves = shared, floats = params;
    if constexpr (kStaged)
      for (int m = 0; m <= net.layers; ++m)
        stage(shared + offset(m), padded_rows(m), stride(m) - kApart, params + net.offset(m), net.rows(m),
              net.columns(m));
  }
};

// Rows of numbers in global memory. Two neighbours are one access where that is aligned.
struct Rows {
  const float* data;
  int64_t count;
  int width;
  bool by_two;

  // Columns `column` and `column` + 1 of a row; rows past the end are zero, columns past the width `padding`.
  __device__ __forceinline__ float2 pair(int64_t row, int column, float padding) const {
    if (row >= count) return {0.f, 0.f};
    const float* at = data + row * width + column;
    if (by_two && column < width) return *reinterpret_cast<const float2*>(at);
    return {column < width ? at[0] : padding, column + 1 < width ? at[1] : padding};
  }
  // The four pairs of operand a: rows `row` and `row` + 8, columns `column` and `column` + 8.
  __device__ __forceinline__ void square(int64_t row, int column, float padding, float2 (&v)[4]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i] = pair(row + i % 2 * 8, column + i / 2 * 8, padding);
  }
};

template <class V>
Rows rows_of(V view) {
  const bool even = view.size[1] % 2 == 0 && reinterpret_cast<uintptr_t>(view.data) % 8 == 0;
  return {view.data, view.size[0], int(view.size[1]), even};
}

struct OutRows {
  float* data;
  int64_t count;
  int width;
  bool by_two;

  __device__ __forceinline__ void store(int64_t row, int column, float2 v) const {
    if (row >= count || column >= width) return;
    float* at = data + row * width + column;
    if (by_two) {
      *reinterpret_cast<float2*>(at) = v;
      return;
    }
    at[0] = v.x;
    if (column + 1 < width) at[1] = v.y;
  }
};

template <class V>
OutRows out_rows_of(V view) {
  const Rows rows = rows_of(view);
  return {view.data, rows.count, rows.width, rows.by_two};
}

__device__ __forceinline__ void round_square(const float2 (&v)[4], uint32_t (&a)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) a[i] = pack(v[i].x, v[i].y);
}

// Writes operands of one warp's 16 points to its rows of a stash [point, unit], or reads them back.
__device__ __forceinline__ uint32_t* stashed(half* stash, int stride, int group, int i) {
  const int row = i % 2 * 8 + lane() / 4, column = kGroup * group + i / 2 * 8 + 2 * (lane() % 4);
  return reinterpret_cast<uint32_t*>(stash + row * stride + column);
}

__device__ __forceinline__ void put(half* stash, int stride, int group, const uint32_t (&a)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) *stashed(stash, stride, group, i) = a[i];
}

// a = relu(sum).
template <int H>
__device__ __forceinline__ void activate_hidden(const Sums<H / 8>& sum, Operands<H / 16>& a) {
#pragma unroll
  for (int k = 0; k < H / 16; ++k)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float* two = sum[2 * k + i / 2] + i % 2 * 2;
      a[k][i] = pack(relu(two[0]), relu(two[1]));
    }
}

// a = sum where the stashed activation is positive.
template <int H>
__device__ __forceinline__ void activate_hidden_vjp(const Sums<H / 8>& sum, half* stash,
                                                    Operands<H / 16>& a) {
#pragma unroll
  for (int k = 0; k < H / 16; ++k)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float* two = sum[2 * k + i / 2] + i % 2 * 2;
      const float2 h = __half22float2(unpack(*stashed(stash, H + kApart, k, i)));
      a[k][i] = pack(relu_vjp(h.x, two[0]), relu_vjp(h.y, two[1]));
    }
}

template <int H, class Weights>
__device__ __forceinline__ void hidden_forward(const Operands<H / 16>& a, Weights w,
                                               Sums<H / 8>& sum) {
  clear<H / 8>(sum);
#pragma unroll
  for (int k = 0; k < H / 16; ++k) forward_step<H / 8>(a[k], w, 0, k, sum);
}

template <int H, class Weights>
__device__ __forceinline__ void hidden_backward(const Operands<H / 16>& a, Weights w,
                                                Sums<H / 8>& sum) {
  clear<H / 8>(sum);
#pragma unroll
  for (int k = 0; k < H / 16; ++k) backward_step<H / 8>(a[k], w, 0, k, sum);
}

// ---- host ----

inline Network network(In<real, kPoints, kInputs> x, In<real, kParams> params, int64_t hidden, int64_t layers,
                       int64_t outputs) {
  const char* why = problem(x.size[1], hidden, layers, outputs, params.size[0]);
  require(!why, why);
  return {int(x.size[1]), int(hidden), int(layers), int(outputs)};
}

// Bytes of shared memory that one block may ask for; read once per device.
inline int most_shared(Cuda q) {
  static int bytes[64] = {};
  int& known = bytes[q.device & 63];
  if (known == 0)
    check(cudaDeviceGetAttribute(&known, cudaDevAttrMaxSharedMemoryPerBlockOptin, q.device), "device");
  return known;
}

}  // namespace raymarch
