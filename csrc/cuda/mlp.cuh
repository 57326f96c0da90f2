// What forward and backward of a network share: where its weights are, and the steps of one warp.
#pragma once
#include <algorithm>

#include "cuda/tile.cuh"
#include "math/activation.h"
#include "math/mlp.h"

namespace raymarch {

constexpr int kGroup = 16;  // units that two tiles share
constexpr int kApart = 8;   // rows of a stash lie this much more than a multiple of 16 apart: see outer()

// The matrices of one network, `H` units where the network has at most as many.
template <int H, bool kStaged>
struct Matrices {
  Network net;
  const float* data;

  __host__ __device__ int offset(int m) const {  // columns are padded to 32, rows to H where they are units
    return m == 0 ? 0 : H * (round_up(net.columns(0), 32) + (m - 1) * round_up(H, 32));
  }
  __host__ __device__ int floats() const {
    return kStaged ? offset(net.layers) + net.rows(net.layers) * round_up(H, 32) : 0;
  }

  __device__ __forceinline__ auto first() const { return at(0, H); }
  __device__ __forceinline__ auto hidden(int m) const { return at(m, H); }
  __device__ __forceinline__ auto last() const { return at(net.layers, net.rows(net.layers)); }

  // Points `data` at the staged copy, or at the parameters themselves.
  __device__ __forceinline__ void open(float* shared, const float* params) {
    data = kStaged ? shared : params;
    if constexpr (kStaged)
      for (int m = 0; m <= net.layers; ++m)
        stage(shared + offset(m), m < net.layers ? H : net.rows(m), params + net.offset(m), net.rows(m),
              net.columns(m));
  }

 private:
  __device__ __forceinline__ auto at(int m, int padded_rows) const {
    if constexpr (kStaged)
      return Staged{data + offset(m), padded_rows};
    else
      return Unstaged{data + net.offset(m), net.rows(m), net.columns(m)};
  }
};

// Operand a for one group of 16 columns, from rows of shared memory `stride` apart.
template <int kM>
__device__ __forceinline__ void load_group(const float* from, int stride, float (&even)[kM][4],
                                           float (&odd)[kM][4]) {
  const int g = lane() / 4, t = lane() % 4;
#pragma unroll
  for (int m = 0; m < kM; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float4 v = *reinterpret_cast<const float4*>(from + (16 * m + 8 * half + g) * stride + 4 * t);
      set_quad(even[m], odd[m], half, {tf32(v.x), tf32(v.y), tf32(v.z), tf32(v.w)});
    }
}

// a = relu(sum), and a copy to `stash` where there is one.
template <int kTiles, int kM>
__device__ __forceinline__ void activate_hidden(const Tiles<kTiles, kM>& sum, Tiles<kTiles, kM>& a,
                                                float* stash) {
  const int g = lane() / 4, t = lane() % 4;
#pragma unroll
  for (int j = 0; j < kTiles; j += 2)
#pragma unroll
    for (int m = 0; m < kM; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float4 v = quad(sum[j][m], sum[j + 1][m], half);
        v = {tf32(relu(v.x)), tf32(relu(v.y)), tf32(relu(v.z)), tf32(relu(v.w))};
        set_quad(a[j][m], a[j + 1][m], half, v);
        const int row = 16 * m + 8 * half + g;
        if (stash) *reinterpret_cast<float4*>(stash + row * (8 * kTiles + kApart) + 8 * j + 4 * t) = v;
      }
}

// a = sum where the stashed activation is positive; the stash then holds a instead.
template <int kTiles, int kM>
__device__ __forceinline__ void activate_hidden_vjp(const Tiles<kTiles, kM>& sum, Tiles<kTiles, kM>& a,
                                                    float* stash) {
  const int g = lane() / 4, t = lane() % 4;
#pragma unroll
  for (int j = 0; j < kTiles; j += 2)
#pragma unroll
    for (int m = 0; m < kM; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = 16 * m + 8 * half + g;
        float4* at = reinterpret_cast<float4*>(stash + row * (8 * kTiles + kApart) + 8 * j + 4 * t);
        const float4 h = *at, v = quad(sum[j][m], sum[j + 1][m], half);
        const float4 grad = {tf32(relu_vjp(h.x, v.x)), tf32(relu_vjp(h.y, v.y)), tf32(relu_vjp(h.z, v.z)),
                             tf32(relu_vjp(h.w, v.w))};
        set_quad(a[j][m], a[j + 1][m], half, grad);
        *at = grad;
      }
}

template <int H, int kM, class Weights>
__device__ __forceinline__ void hidden_forward(const Tiles<H / 8, kM>& a, Weights w, Tiles<H / 8, kM>& sum) {
  clear<H / 8, kM>(sum);
#pragma unroll
  for (int k = 0; k < H / kGroup; ++k) forward_step<H / 8, kM>(a[2 * k], a[2 * k + 1], w, 0, k, sum);
}

template <int H, int kM, class Weights>
__device__ __forceinline__ void hidden_backward(const Tiles<H / 8, kM>& a, Weights w, Tiles<H / 8, kM>& sum) {
  clear<H / 8, kM>(sum);
#pragma unroll
  for (int k = 0; k < H / kGroup; ++k) backward_step<H / 8, kM>(a[2 * k], a[2 * k + 1], w, 0, k, sum);
}

// ---- host ----

inline Network network(In<real, kPoints, kInputs> x, In<real, kParams> params, int64_t hidden, int64_t layers,
                       int64_t outputs) {
  const char* why = problem(x.size[1], hidden, layers, outputs, params.size[0]);
  require(!why, why);
  return {int(x.size[1]), int(hidden), int(layers), int(outputs)};
}

// Shared memory that one block may ask for, in floats; read once per device.
inline int most_shared(Cuda q) {
  static int bytes[64] = {};
  int& known = bytes[q.device & 63];
  if (known == 0)
    check(cudaDeviceGetAttribute(&known, cudaDevAttrMaxSharedMemoryPerBlockOptin, q.device), "device");
  return known / 4;
}

}  // namespace raymarch
