// The words of CUDA C++ that the kernels use, for a host compiler. See emulator.h.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "emulator/emulator.h"

#define __host__
#define __device__
#define __global__
#define __grid_constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
// One block runs at a time, and none is left before it ends.
#define __shared__ static

struct __align__(8) float2 {
  float x, y;
};
struct __align__(16) float4 {
  float x, y, z, w;
};
struct __align__(8) uint2 {
  unsigned x, y;
};
struct __align__(16) uint4 {
  unsigned x, y, z, w;
};
struct __align__(8) ushort4 {
  unsigned short x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

using std::max;
using std::min;

// Caches change nothing but time. Vectors must be aligned here too.
namespace raymarch::emulator {
template <class T>
const T& at_aligned(const T* from) {
  if (reinterpret_cast<uintptr_t>(from) % alignof(T))
    fail("reads a vector at an address it may not start at");
  return *from;
}
}  // namespace raymarch::emulator
template <class T>
T __ldg(const T* from) {
  return raymarch::emulator::at_aligned(from);
}
template <class T>
T __ldcs(const T* from) {
  return raymarch::emulator::at_aligned(from);
}
template <class T>
void __stcs(T* to, T value) {
  raymarch::emulator::at_aligned(to);
  *to = value;
}

inline float __uint_as_float(unsigned u) {
  float x;
  memcpy(&x, &u, 4);
  return x;
}
inline unsigned __float_as_uint(float x) {
  unsigned u;
  memcpy(&u, &x, 4);
  return u;
}
inline float __int_as_float(int i) { return __uint_as_float(unsigned(i)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(unsigned(x)); }
inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll(x); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return (unsigned long long)((unsigned __int128)(a)*b >> 64);
}
// Rounded down. The sum of two floats is exact in double, or its error is far below the float's.
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float x) { return std::exp(x); }
inline float __fadd_rd(float a, float b) {
  const double sum = double(a) + double(b);
  const float near = float(sum);
  return double(near) > sum ? std::nextafter(near, -INFINITY) : near;
}
inline long long __double2ll_rn(double x) { return std::llrint(x); }
inline float sinpif(float x) {
  return float(std::sin(3.14159265358979323846 * std::remainder(double(x), 2)));
}
inline float cospif(float x) {
  return float(std::cos(3.14159265358979323846 * std::remainder(double(x), 2)));
}
inline void sincospif(float x, float* s, float* c) { *s = sinpif(x), *c = cospif(x); }
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }

// Threads are run one at a time, so that plain sums are atomic.
template <class T>
T atomicAdd(T* to, T value) {
  const T before = *to;
  *to = before + value;
  return before;
}
template <class T>
T atomicMax(T* to, T value) {
  const T before = *to;
  *to = std::max(before, value);
  return before;
}
inline unsigned atomicInc(unsigned* to, unsigned most) {
  const unsigned before = *to;
  *to = before >= most ? 0 : before + 1;
  return before;
}
inline void __threadfence() {}

// What the lanes of a warp do together.
namespace raymarch::emulator {
template <class T>
struct Exchange {
  T given, got;
  int source;
};
template <class T>
T exchange(unsigned mask, T value, int source) {
  Exchange<T> mine{value, value, source};
  together(mask, mine, "a shuffle", [](Exchange<T>*(&lanes)[32]) {
    for (auto* to : lanes)
      if (to) {
        if (!lanes[to->source]) fail("shuffles from a lane that takes no part");
        to->got = lanes[to->source]->given;
      }
  });
  return mine.got;
}
}  // namespace raymarch::emulator
// `width` lanes, a power of two, shuffle among themselves.
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const int lane = threadIdx.x % 32, first = lane / width * width;
  return raymarch::emulator::exchange(mask, value, first + (source & (width - 1)));
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32) {
  const int lane = threadIdx.x % 32, source = lane - int(by);
  return raymarch::emulator::exchange(mask, value, source < lane / width * width ? lane : source);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32) {
  const int lane = threadIdx.x % 32, source = lane + int(by);
  return raymarch::emulator::exchange(mask, value, source >= lane / width * width + width ? lane : source);
}
// A lane of a later group is not read.
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int by, int width = 32) {
  const int lane = threadIdx.x % 32, source = lane ^ by;
  return raymarch::emulator::exchange(mask, value, source >= lane / width * width + width ? lane : source);
}

namespace raymarch::emulator {
template <class T>
struct Vote {
  T given;
  unsigned got;
};
}  // namespace raymarch::emulator
inline unsigned __ballot_sync(unsigned mask, bool yes) {
  raymarch::emulator::Vote<bool> mine{yes, 0};
  raymarch::emulator::together(mask, mine, "a vote", [](raymarch::emulator::Vote<bool>*(&lanes)[32]) {
    unsigned all = 0;
    for (int i = 0; i < 32; ++i) all |= lanes[i] && lanes[i]->given ? 1u << i : 0;
    for (auto* to : lanes)
      if (to) to->got = all;
  });
  return mine.got;
}
inline int __any_sync(unsigned mask, bool yes) { return __ballot_sync(mask, yes) != 0; }
inline int __all_sync(unsigned mask, bool yes) { return __ballot_sync(mask, !yes) == 0; }
template <class T>
unsigned __match_any_sync(unsigned mask, T value) {
  using Mine = raymarch::emulator::Vote<T>;
  Mine mine{value, 0};
  raymarch::emulator::together(mask, mine, "a match", [](Mine*(&lanes)[32]) {
    for (auto* to : lanes)
      for (int i = 0; to && i < 32; ++i) to->got |= lanes[i] && lanes[i]->given == to->given ? 1u << i : 0;
  });
  return mine.got;
}
inline unsigned __reduce_max_sync(unsigned mask, unsigned value) {
  using Mine = raymarch::emulator::Vote<unsigned>;
  Mine mine{value, 0};
  raymarch::emulator::together(mask, mine, "a maximum", [](Mine*(&lanes)[32]) {
    unsigned most = 0;
    for (auto* from : lanes)
      if (from) most = std::max(most, from->given);
    for (auto* to : lanes)
      if (to) to->got = most;
  });
  return mine.got;
}
inline void __syncwarp(unsigned mask = ~0u) {
  char mine = 0;
  raymarch::emulator::together(mask, mine, "a warp's barrier", [](char*(&)[32]) {});
}
inline void __syncthreads() { raymarch::emulator::block_together(true); }
inline int __syncthreads_and(bool yes) { return raymarch::emulator::block_together(yes); }

// As much of the runtime as a launch needs. There is one device, and it is always current.
using cudaStream_t = void*;
enum cudaError_t { cudaSuccess, cudaErrorInvalidValue };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount, cudaDevAttrMaxSharedMemoryPerBlockOptin };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
inline const char* cudaGetErrorString(cudaError_t) { return "not possible on the emulator"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaMemsetAsync(void* to, int byte, size_t bytes, cudaStream_t) {
  return memset(to, byte, bytes), cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
  *value = which == cudaDevAttrMultiProcessorCount ? raymarch::emulator::kMultiprocessors
                                                   : int(raymarch::emulator::kShared);
  return cudaSuccess;
}
template <class... P>
cudaError_t cudaFuncSetAttribute(void (*)(P...), cudaFuncAttribute, int bytes) {
  return size_t(bytes) > raymarch::emulator::kShared ? cudaErrorInvalidValue : cudaSuccess;
}
