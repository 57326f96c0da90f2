// What a point reads of one level of a hash grid.
#pragma once
#include "cuda/machine.cuh"
#include "cuda/vector.cuh"
#include "math/hashgrid.h"

namespace raymarch {

// The entries at the corners of one cell, as they lie in memory.
template <class T, int F>
struct Entries {
  using Word = typename WordOf<int(F * sizeof(T))>::type;
  static constexpr int kWords = int(F * sizeof(T) / sizeof(Word));
  union Entry {
    Word words[kWords];
    T numbers[F];
    __device__ Entry() {}
  } corner[8];

  __device__ __forceinline__ void load(int c, const T* from) {
#pragma unroll
    for (int w = 0; w < kWords; ++w) corner[c].words[w] = __ldg(reinterpret_cast<const Word*>(from) + w);
  }

  // Inside a dense level neighbours along x are neighbours in memory.
  __device__ __forceinline__ Entries(const Level& level, const T* whole, const Cell& cell) {
    const T* table = settled(whole + level.offset * F);
    const uint32_t low = cell.x.cell + cell.y.cell * level.step_y + cell.z.cell * level.step_z;
    if (level.dense && low + level.step_y + level.step_z + 1 < level.entries) {
      const T* at = table + int64_t{low} * F;
#pragma unroll
      for (int c = 0; c < 8; c += 2) {
        const T* row = at + int64_t{(c & 2 ? level.step_y : 0) + (c & 4 ? level.step_z : 0)} * F;
        load(c, row), load(c + 1, row + F);
      }
    } else {
      const Slots slot = slots(level, cell.x.cell, cell.y.cell, cell.z.cell);
#pragma unroll
      for (int c = 0; c < 8; ++c) load(c, table + int64_t{slot.at[c]} * F);
    }
  }
  __device__ __forceinline__ real number(int c, int f) const { return to_float(corner[c].numbers[f]); }
};

// Their sum under the corners' weights.
template <class T, int F>
__device__ __forceinline__ void looked_up(const Level& level, const T* table, Vec3 y, bool smooth,
                                          real (&sum)[F]) {
  const Cell cell = locate(level, y, smooth);
  const Entries<T, F> entries(level, table, cell);
  const Corners weight = corner_weights(cell.x.u, cell.y.u, cell.z.u);
#pragma unroll
  for (int c = 0; c < 8; ++c)
#pragma unroll
    for (int f = 0; f < F; ++f) sum[f] += weight.of[c] * entries.number(c, f);
}

}  // namespace raymarch
