// A few consecutive numbers moved as one vector: one instruction, one sector.
#pragma once
#include "cuda/launch.cuh"

namespace raymarch {

inline bool aligned(const void* data, size_t bytes) { return reinterpret_cast<uintptr_t>(data) % bytes == 0; }

// The widest word that divides kBytes.
template <int kBytes>
struct WordOf {
  using type = typename WordOf<kBytes % 16 == 0 ? 16 : kBytes % 8 == 0 ? 8 : kBytes % 4 == 0 ? 4 : 2>::type;
};
template <>
struct WordOf<2> {
  using type = uint16_t;
};
template <>
struct WordOf<4> {
  using type = uint32_t;
};
template <>
struct WordOf<8> {
  using type = uint2;
};
template <>
struct WordOf<16> {
  using type = uint4;
};

// Through the read-only path: nothing in the kernel may write what it reads here. `kLast`: nobody reads it
// again, so it need not stay in any cache.
template <bool kLast = false, int N, class T>
__device__ __forceinline__ void load_vector(const T* from, real (&to)[N]) {
  using Word = typename WordOf<int(N * sizeof(T))>::type;
  constexpr int kWords = int(N * sizeof(T) / sizeof(Word));
  union {
    Word words[kWords];
    T numbers[N];
  } u;
#pragma unroll
  for (int w = 0; w < kWords; ++w) {
    const Word* word = reinterpret_cast<const Word*>(from) + w;
    u.words[w] = kLast ? __ldcs(word) : __ldg(word);
  }
#pragma unroll
  for (int n = 0; n < N; ++n) to[n] = to_float(u.numbers[n]);
}

template <int N>
__device__ __forceinline__ void store_vector(const real (&from)[N], real* to) {
  static_assert(N % 4 == 0, "whole float4s");
#pragma unroll
  for (int n = 0; n < N; n += 4)
    *reinterpret_cast<float4*>(to + n) = make_float4(from[n], from[n + 1], from[n + 2], from[n + 3]);
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
constexpr bool kVectorAdds = true;
#else
constexpr bool kVectorAdds = false;
#endif

// Adds to consecutive floats in global memory without reading them back. Where the hardware has vector adds,
// one costs as much as a scalar add.
template <int N>
__device__ __forceinline__ void add_vector(const real (&value)[N], real* to) {
  if constexpr (kVectorAdds && N % 4 == 0) {
#pragma unroll
    for (int n = 0; n < N; n += 4) add_four(to + n, value[n], value[n + 1], value[n + 2], value[n + 3]);
  } else if constexpr (kVectorAdds && N == 2) {
    add_two(to, value[0], value[1]);
  } else {
#pragma unroll
    for (int n = 0; n < N; ++n) atomicAdd(to + n, value[n]);
  }
}

}  // namespace raymarch
