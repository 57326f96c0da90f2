// What is written in the GPU's own language: launches, shared memory whose size is known at the launch, and
// instructions that C++ has no word for. Everything else in this folder is plain C++, so that the emulator
// (csrc/emulator) replaces this file and the toolkit's headers, and nothing more.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

namespace raymarch {

constexpr bool kEmulated = false;

template <class... Params, class... Args>
void start(void (*kernel)(Params...), unsigned grid, unsigned block, size_t shared, void* stream,
           Args... args) {
  kernel<<<grid, block, shared, cudaStream_t(stream)>>>(args...);
}

// Shared memory of as many bytes as the launch says.
#define RM_SHARED(type, name) extern __shared__ __align__(16) type name[]

// The same pointer, which the compiler takes as it is: it would add what led to it again for every load.
template <class T>
__device__ __forceinline__ T* settled(T* pointer) {
  asm("" : "+l"(pointer));
  return pointer;
}

// Two numbers as halves; what is larger than a half holds becomes the largest one, and NaN stays NaN.
__device__ __forceinline__ uint32_t pack_halves(float low, float high) {
  uint32_t bits;
  asm("cvt.rn.satfinite.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}
// The same with 0 for what is negative.
__device__ __forceinline__ uint32_t pack_relu(float low, float high) {
  uint32_t bits;
  asm("cvt.rn.relu.satfinite.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}

// Sums of 16 x 8 += 16 x 16 halves times 16 x 8 halves. tile.cuh says which lane holds what.
__device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The same over 8 inner numbers in TF32. With (g, t) = (lane / 4, lane % 4):
//
//   a: (g, t) (g + 8, t) (g, t + 4) (g + 8, t + 4)         rows x inner
//   b: (t, g) (t + 4, g)                                   inner x columns
//   c: (g, 2t) (g, 2t + 1) (g + 8, 2t) (g + 8, 2t + 1)     rows x columns
__device__ __forceinline__ void mma(float (&c)[4], const float (&a)[4], float b0, float b1) {
  const auto bits = [](float x) { return __float_as_uint(x); };
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(bits(a[0])), "r"(bits(a[1])), "r"(bits(a[2])), "r"(bits(a[3])), "r"(bits(b0)), "r"(bits(b1)));
}

// Rounded to the nearest TF32, ties away from zero.
__device__ __forceinline__ float as_tf32(float x) {
  uint32_t y;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
  return __uint_as_float(y);
}

// Shared memory is addressed by bytes in 32 bits.
using Place = unsigned;
__device__ __forceinline__ Place place_of(const void* shared) {
  return Place(__cvta_generic_to_shared(shared));
}

// Four 8 x 8 blocks of halves; the eight lanes 8i .. 8i + 7 say where the rows of block i are. Lane (g, t)
// receives the numbers 2t and 2t + 1 of row g.
__device__ __forceinline__ void load_blocks(Place row, uint32_t (&b)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3])
               : "r"(row)
               : "memory");
}
// The same, every block transposed.
__device__ __forceinline__ void load_turned(Place row, uint32_t (&b)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3])
               : "r"(row)
               : "memory");
}

// The way back of load_blocks. From sm_90 on.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
__device__ __forceinline__ void store_blocks(Place row, const uint32_t (&a)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(row), "r"(a[0]),
               "r"(a[1]), "r"(a[2]), "r"(a[3])
               : "memory");
}
#endif
__device__ __forceinline__ void store_word(Place to, uint32_t word) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(to), "r"(word) : "memory");
}

// Copies that pass the registers by. Bytes past `valid` are zeroed; `from` must be readable even so.
template <int kBytes>
__device__ __forceinline__ void copy_async(Place to, const void* from, bool valid) {
  const int size = valid ? kBytes : 0;
  if constexpr (kBytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(size) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;" ::"r"(to), "l"(from), "r"(size), "n"(kBytes)
                 : "memory");
}
__device__ __forceinline__ void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// Asks for the cache line of an address.
__device__ __forceinline__ void prefetch_line(const void* from) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(from));
}

// Adds to aligned neighbours in global memory. From sm_90 on.
__device__ __forceinline__ void add_four(float* to, float a, float b, float c, float d) {
  asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "f"(a),
               "f"(b), "f"(c), "f"(d)
               : "memory");
}
__device__ __forceinline__ void add_two(float* to, float a, float b) {
  asm volatile("red.global.add.v2.f32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(to)), "f"(a), "f"(b)
               : "memory");
}

// Keeps the order in which addresses are made: or the compiler fetches far ahead, and spills.
__device__ __forceinline__ void pin(int& at) { asm volatile("" : "+r"(at)); }

}  // namespace raymarch
