// What forward and backward of a network share: where its weights are, how rows come in and go out, and the
// steps of one warp.
#pragma once
#include <algorithm>

#include "cuda/tile.cuh"
#include "math/activation.h"
#include "math/mlp.h"

namespace raymarch {

constexpr int kGroup = 16;  // units that two tiles share

// A network as a kernel sees it: at most H hidden units, rounded up to H. Where kLayers is not zero the
// compiler knows all of it but the outputs: exactly H units, kLayers hidden layers, kIn groups of inputs.
template <int H, int kLayers, int kIn>
struct Shape {
  Network net;

  __host__ __device__ int layers() const { return kLayers ? kLayers : net.layers; }
  __host__ __device__ int groups() const { return kLayers ? kIn : net.columns(0) / kGroup; }
  __host__ __device__ int columns(int m) const {
    return m == 0 ? kGroup * groups() : kLayers ? H : net.hidden;
  }
  __host__ __device__ int rows(int m) const { return m == layers() ? net.rows(m) : kLayers ? H : net.hidden; }
  // Where a matrix is in the flat parameters.
  __host__ __device__ int offset(int m) const {
    const int units = kLayers ? H : net.hidden;
    return m == 0 ? 0 : units * (columns(0) + (m - 1) * units);
  }
  bool fits() const {
    return net.hidden <= H &&
           (!kLayers || (net.hidden == H && net.layers == kLayers && net.columns(0) == kGroup * kIn));
  }
};

// Its matrices, in shared memory with rows kApart longer than their columns, or where they do not fit as they
// are.
template <class S, int H, bool kStaged>
struct Matrices {
  S shape;
  Place staged;
  const float* floats;

  __host__ __device__ int stride(int m) const { return (m == 0 ? shape.columns(0) : H) + kApart; }
  __host__ __device__ int offset(int m) const {
    return m == 0 ? 0 : H * (stride(0) + (m - 1) * (H + kApart));
  }
  __host__ __device__ int size() const {  // in halves
    return kStaged ? offset(shape.layers()) + shape.net.rows(shape.layers()) * (H + kApart) : 0;
  }

  __device__ __forceinline__ auto operator[](int m) const {
    if constexpr (kStaged)
      return Staged{staged + 2 * offset(m), stride(m)};
    else
      return Unstaged{floats + shape.offset(m), shape.rows(m), shape.columns(m)};
  }

  // Points at the staged copy, or at the parameters themselves.
  __device__ __forceinline__ void open(half* shared, const float* params) {
    staged = place_of(shared), floats = params;
    if constexpr (kStaged)
#pragma unroll 1
      for (int m = 0; m <= shape.layers(); ++m)
        stage(shared + offset(m), m == shape.layers() ? shape.rows(m) : H, stride(m) - kApart,
              params + shape.offset(m), shape.rows(m), shape.columns(m));
  }
};

// Rows of numbers in global memory, taken by squares of 16 x 16: the numbers of operand a, of group `group`
// of the 16 rows from `base` on. Two neighbours are one access where that is aligned.
template <class T>
struct Rows {
  using Pair = std::conditional_t<std::is_same_v<T, half>, uint32_t, float2>;
  const T* data;
  int64_t count;
  int width;
  bool by_two;

  __device__ __forceinline__ bool whole(int64_t base, int group) const {
    return by_two && base + 16 <= count && 16 * group + 16 <= width;
  }
  // Rows past the end are zero, columns past the width `padding`.
  __device__ __forceinline__ void load(int64_t base, int group, float padding, Pair (&v)[4]) const {
    const int row = lane() / 4, column = 16 * group + 2 * (lane() % 4);
    const T* at = data + (base + row) * width + column;
    if (whole(base, group)) {
#pragma unroll
      for (int i = 0; i < 4; ++i) v[i] = *reinterpret_cast<const Pair*>(at + i % 2 * 8 * width + i / 2 * 8);
      return;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i, at += i % 2 ? 8 * width : 8 - 8 * width) {
      const bool there = base + row + i % 2 * 8 < count;
      const int left = width - column - i / 2 * 8;
      const float2 two = {!there     ? 0.f
                          : left > 0 ? to_float(at[0])
                                     : padding,
                          !there     ? 0.f
                          : left > 1 ? to_float(at[1])
                                     : padding};
      if constexpr (std::is_same_v<T, half>)
        v[i] = pack(two.x, two.y);
      else
        v[i] = two;
    }
  }
  // Asks for the rows of the square that comes `step` rows later.
  __device__ __forceinline__ void prefetch_rows(int64_t base, int64_t step) const {
    const int64_t from = base + step;
    if (from < count) prefetch(data + from * width, int(min(int64_t{16}, count - from)) * width);
  }

  // Rows in memory as operands want them can be copied on the side, kBytes at a time.
  template <int kBytes>
  __device__ __forceinline__ void copy_by(int64_t base, Place to, int stride) const {
    const int chunks = width * int(sizeof(T)) / kBytes, row_step = 32 / chunks, rest = 32 % chunks;
    int row = lane() / chunks, chunk = lane() % chunks;
    const char* from = reinterpret_cast<const char*>(data + base * width) + kBytes * lane();
#pragma unroll 1
    for (; row < 16; from += 32 * kBytes) {
      const bool there = base + row < count;
      copy_async<kBytes>(to + 2 * row * stride + kBytes * chunk,
                         there ? static_cast<const void*>(from) : data, there);
      row += row_step, chunk += rest;
      if (chunk >= chunks) chunk -= chunks, ++row;
    }
  }
  __device__ __forceinline__ void copy(int64_t base, Place to, int stride) const {
    if (width % 8 == 0)
      copy_by<16>(base, to, stride);
    else if (width % 4 == 0)
      copy_by<8>(base, to, stride);
    else
      copy_by<4>(base, to, stride);
  }
};

template <class T, class V>
Rows<T> rows_of(V view) {
  const bool even = view.size[1] % 2 == 0 && reinterpret_cast<uintptr_t>(view.data) % (2 * sizeof(T)) == 0;
  return {view.data, view.size[0], int(view.size[1]), even};
}

struct OutRows {
  float* data;
  Rows<float> rows;

  __device__ __forceinline__ void store(int64_t base, int group, const float2 (&v)[4]) const {
    const int row = lane() / 4, column = 16 * group + 2 * (lane() % 4), width = rows.width;
    float* at = data + (base + row) * width + column;
    if (rows.whole(base, group)) {
#pragma unroll
      for (int i = 0; i < 4; ++i) *reinterpret_cast<float2*>(at + i % 2 * 8 * width + i / 2 * 8) = v[i];
      return;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i, at += i % 2 ? 8 * width : 8 - 8 * width) {
      const bool there = base + row + i % 2 * 8 < rows.count;
      const int left = width - column - i / 2 * 8;
      if (there && left > 0) at[0] = v[i].x;
      if (there && left > 1) at[1] = v[i].y;
    }
  }
};

template <class V>
OutRows out_rows_of(V view) {
  return {view.data, rows_of<float>(view)};
}

__device__ __forceinline__ void round_square(const float2 (&v)[4], uint32_t (&a)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) a[i] = pack(v[i].x, v[i].y);
}

__device__ __forceinline__ void round_square(const uint32_t (&v)[4], uint32_t (&a)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) a[i] = v[i];
}

// The four pairs of two neighbouring tiles of sums, in the order of operand a.
__device__ __forceinline__ float2 pair(const float* two_tiles, int i) {
  const float* at = two_tiles + 4 * (i / 2) + i % 2 * 2;
  return {at[0], at[1]};
}

// a = relu(sum), kept in the stash if asked to.
template <int H, bool kKeep>
__device__ __forceinline__ void activate_hidden(const Sums<H / 8>& sum, Operands<H / 16>& a, Place stash) {
#pragma unroll
  for (int k = 0; k < H / 16; ++k) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 two = pair(sum[2 * k], i);
      a[k][i] = relu(pack(two.x, two.y));
    }
    if constexpr (kKeep) store_operand(stash + 2 * kGroup * k, H + kApart, a[k]);
  }
}

// a = sum where the stashed activation is positive. The stash then holds a times `share` instead.
template <int H>
__device__ __forceinline__ void activate_hidden_vjp(const Sums<H / 8>& sum, Place stash, bool keep,
                                                    __half2 share, Operands<H / 16>& a) {
#pragma unroll
  for (int k = 0; k < H / 16; ++k) {
    uint32_t h[4], out[4];
    load_blocks(stash + 2 * kGroup * k + corner(0, H + kApart), h);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 two = pair(sum[2 * k], i);
      a[k][i] = relu_vjp(h[i], pack(two.x, two.y));
      out[i] = scaled(a[k][i], share);
    }
    if (keep) store_operand(stash + 2 * kGroup * k, H + kApart, out);
  }
}

template <int H, class Weights>
__device__ __forceinline__ void hidden_forward(const Operands<H / 16>& a, Weights w, Sums<H / 8>& sum) {
  clear<H / 8>(sum);
#pragma unroll
  for (int k = 0; k < H / 16; ++k) forward_step<H / 8>(a[k], w, 0, k, sum);
}

template <int H, class Weights>
__device__ __forceinline__ void hidden_backward(const Operands<H / 16>& a, Weights w, Sums<H / 8>& sum) {
  clear<H / 8>(sum);
#pragma unroll
  for (int k = 0; k < H / 16; ++k) backward_step<H / 8>(a[k], w, 0, k, sum);
}

// ---- host ----

inline Network network(Payload<kPoints, kInputs> x, In<real, kParams> params, int64_t hidden, int64_t layers,
                       int64_t outputs) {
  const char* why = problem(x.size[1], hidden, layers, outputs, params.size[0]);
  require(!why, why);
  require(x.dtype != Dtype::kBFloat16, "x must be float32 or float16");
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
