#include "cpu/gemm.h"

#include <cstring>

namespace raymarch {
namespace {

template <int kBytes>
struct Vector {
  typedef real type __attribute__((vector_size(kBytes)));
};

// One block of c, kRows by kVectors vectors, held in registers over the whole inner dimension.
template <int kBytes, int kRows, int kVectors>
__attribute__((always_inline)) inline void block(const Product& p, int row, int column) {
  using Lanes = typename Vector<kBytes>::type;
  constexpr int kLanes = kBytes / sizeof(real);
  Lanes sum[kRows][kVectors] = {};
  const real* a = p.a + row * p.a_row;
  const real* b = p.b + column;
  for (int k = 0; k < p.inner; ++k, a += p.a_inner, b += p.b_row) {
    Lanes right[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) std::memcpy(&right[v], b + v * kLanes, sizeof right[v]);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[r][v] += a[r * p.a_row] * right[v];
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const int64_t at = (row + r) * p.c_row + column + v * kLanes;
      Lanes out = sum[r][v], held;
      if (p.add) {
        std::memcpy(&held, p.c + at, sizeof held);
        out += held;
      }
      if (p.relu) out = out < 0 ? Lanes{} : out;
      if (p.mask) {
        std::memcpy(&held, p.mask + at, sizeof held);
        out = held <= 0 ? Lanes{} : out;
      }
      std::memcpy(p.c + at, &out, sizeof out);
    }
}

// Wide blocks while they fit, then columns one vector wide and sixteen rows high.
template <int kBytes, int kRows, int kVectors>
__attribute__((always_inline)) inline void sweep(const Product& p) {
  constexpr int kLanes = kBytes / sizeof(real);
  int column = 0;
  for (; column + kVectors * kLanes <= p.columns; column += kVectors * kLanes)
    for (int row = 0; row < p.rows; row += kRows) block<kBytes, kRows, kVectors>(p, row, column);
  for (; column < p.columns; column += kLanes)
    for (int row = 0; row < p.rows; row += 16) block<kBytes, 16, 1>(p, row, column);
}

void multiply_plain(const Product& p) { sweep<16, 4, 2>(p); }

#if defined(__x86_64__)
__attribute__((target("avx2,fma"))) void multiply_avx2(const Product& p) { sweep<32, 4, 2>(p); }
__attribute__((target("avx512f"))) void multiply_avx512(const Product& p) { sweep<64, 4, 4>(p); }
#endif

using Multiply = void (*)(const Product&);

Multiply fastest() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return multiply_avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return multiply_avx2;
#endif
  return multiply_plain;
}

}  // namespace

void multiply(const Product& p) {
  static const Multiply chosen = fastest();
  chosen(p);
}

}  // namespace raymarch
