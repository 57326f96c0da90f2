// What csrc/cuda/machine.cuh says in the GPU's own language, on the emulator.
#pragma once
#include <cuda_runtime.h>

#include "math/scalar.h"

namespace raymarch {

constexpr bool kEmulated = true;

template <class... Params, class... Args>
void start(void (*kernel)(Params...), unsigned grid, unsigned block, size_t shared, void*, Args... args) {
  emulator::run(grid, block, shared, [=] { kernel(args...); });
}

#define RM_SHARED(type, name) type* name = reinterpret_cast<type*>(emulator::shared_memory)

using Place = unsigned;
inline Place place_of(const void* shared) {
  return Place(static_cast<const unsigned char*>(shared) - emulator::shared_memory);
}
template <class T>
T* shared_at(Place place) {
  if (place > emulator::kShared - sizeof(T) || place % alignof(T)) emulator::fail("leaves shared memory");
  return reinterpret_cast<T*>(emulator::shared_memory + place);
}

inline uint32_t halves(half low, half high) { return low.bits | uint32_t(high.bits) << 16; }
inline float low_half(uint32_t both) { return to_float(half{uint16_t(both)}); }
inline float high_half(uint32_t both) { return to_float(half{uint16_t(both >> 16)}); }
inline float within_halves(float x) { return x > 65504.f ? 65504.f : x < -65504.f ? -65504.f : x; }
template <class T>
T* settled(T* pointer) {
  return pointer;
}
inline uint32_t pack_halves(float low, float high) {
  return halves(from_float<half>(within_halves(low)), from_float<half>(within_halves(high)));
}
inline uint32_t pack_relu(float low, float high) {
  return pack_halves(low < 0 ? 0 : low, high < 0 ? 0 : high);
}

// Rows by columns over kInner, from what the lanes hold. `a(lane, r, k)`: whether and where is known below.
struct HalfProduct {
  float (&c)[4];
  const uint32_t (&a)[4];
  uint32_t b[2];
};
inline void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  HalfProduct mine{c, a, {b0, b1}};
  emulator::together(~0u, mine, "a product of tiles", [](HalfProduct*(&lane)[32]) {
    float a[16][16], b[16][8];
    for (int i = 0; i < 32; ++i) {
      if (!lane[i]) emulator::fail("multiplies tiles without all its lanes");
      const int g = i / 4, t = i % 4;
      for (int k = 0; k < 4; ++k) {
        const int row = g + k % 2 * 8, inner = 2 * t + k / 2 * 8;
        a[row][inner] = low_half(lane[i]->a[k]), a[row][inner + 1] = high_half(lane[i]->a[k]);
      }
      for (int k = 0; k < 2; ++k) {
        b[2 * t + 8 * k][g] = low_half(lane[i]->b[k]), b[2 * t + 8 * k + 1][g] = high_half(lane[i]->b[k]);
      }
    }
    for (int i = 0; i < 32; ++i)
      for (int k = 0; k < 4; ++k) {
        const int row = i / 4 + k / 2 * 8, column = 2 * (i % 4) + k % 2;
        double sum = lane[i]->c[k];
        for (int n = 0; n < 16; ++n) sum += double(a[row][n]) * double(b[n][column]);
        lane[i]->c[k] = float(sum);
      }
  });
}

struct WideProduct {
  float (&c)[4];
  const float (&a)[4];
  float b[2];
};
inline void mma(float (&c)[4], const float (&a)[4], float b0, float b1) {
  WideProduct mine{c, a, {b0, b1}};
  emulator::together(~0u, mine, "a product of tiles", [](WideProduct*(&lane)[32]) {
    const auto cut = [](float x) { return bits_float(float_bits(x) & ~0x1fffu); };  // what TF32 does not hold
    float a[16][8], b[8][8];
    for (int i = 0; i < 32; ++i) {
      if (!lane[i]) emulator::fail("multiplies tiles without all its lanes");
      const int g = i / 4, t = i % 4;
      for (int k = 0; k < 4; ++k) a[g + k % 2 * 8][t + k / 2 * 4] = cut(lane[i]->a[k]);
      for (int k = 0; k < 2; ++k) b[t + 4 * k][g] = cut(lane[i]->b[k]);
    }
    for (int i = 0; i < 32; ++i)
      for (int k = 0; k < 4; ++k) {
        const int row = i / 4 + k / 2 * 8, column = 2 * (i % 4) + k % 2;
        double sum = lane[i]->c[k];
        for (int n = 0; n < 8; ++n) sum += double(a[row][n]) * double(b[n][column]);
        lane[i]->c[k] = float(sum);
      }
  });
}

inline float as_tf32(float x) {
  const uint32_t u = float_bits(x);
  return (u & 0x7f800000u) == 0x7f800000u ? x : bits_float((u + 0x1000u) & ~0x1fffu);
}

struct BlockRows {
  Place row;
  uint32_t* words;
};
// Moves four 8 x 8 blocks between shared memory and lanes; `word(b, i, lane)` is what lane i has of block b.
inline uint16_t* block_row(BlockRows* (&lane)[32], int block, int row) {
  BlockRows* owner = lane[8 * block + row];
  if (!owner) emulator::fail("moves blocks without all its lanes");
  if (owner->row % 16) emulator::fail("moves a row of a block at an address that 16 does not divide");
  shared_at<uint64_t>(owner->row + 8);
  return shared_at<uint16_t>(owner->row);
}
inline void load_blocks(Place row, uint32_t (&b)[4]) {
  BlockRows mine{row, b};
  emulator::together(~0u, mine, "a load of blocks", [](BlockRows*(&lane)[32]) {
    for (int block = 0; block < 4; ++block)
      for (int i = 0; i < 32; ++i) {
        const uint16_t* from = block_row(lane, block, i / 4) + 2 * (i % 4);
        lane[i]->words[block] = from[0] | uint32_t(from[1]) << 16;
      }
  });
}
inline void load_turned(Place row, uint32_t (&b)[4]) {
  BlockRows mine{row, b};
  emulator::together(~0u, mine, "a load of blocks", [](BlockRows*(&lane)[32]) {
    for (int block = 0; block < 4; ++block)
      for (int i = 0; i < 32; ++i) {
        const int at = i / 4, down = 2 * (i % 4);
        lane[i]->words[block] =
            block_row(lane, block, down)[at] | uint32_t(block_row(lane, block, down + 1)[at]) << 16;
      }
  });
}
inline void store_blocks(Place row, const uint32_t (&a)[4]) {
  uint32_t words[4] = {a[0], a[1], a[2], a[3]};
  BlockRows mine{row, words};
  emulator::together(~0u, mine, "a store of blocks", [](BlockRows*(&lane)[32]) {
    for (int block = 0; block < 4; ++block)
      for (int i = 0; i < 32; ++i) {
        uint16_t* to = block_row(lane, block, i / 4) + 2 * (i % 4);
        to[0] = uint16_t(lane[i]->words[block]), to[1] = uint16_t(lane[i]->words[block] >> 16);
      }
  });
}
inline void store_word(Place to, uint32_t word) { *shared_at<uint32_t>(to) = word; }

template <int kBytes>
void copy_async(Place to, const void* from, bool valid) {
  if (to % kBytes || reinterpret_cast<uintptr_t>(from) % kBytes) emulator::fail("copies out of line");
  shared_at<char>(to + kBytes - 1);
  emulator::copy_later(shared_at<char>(to), from, valid ? kBytes : 0, kBytes);
}
inline void wait_for_copies() { emulator::copy_now(); }
inline void prefetch_line(const void*) {}

inline void add_four(float* to, float a, float b, float c, float d) {
  if (reinterpret_cast<uintptr_t>(to) % 16) emulator::fail("adds four floats out of line");
  to[0] += a, to[1] += b, to[2] += c, to[3] += d;
}
inline void add_two(float* to, float a, float b) {
  if (reinterpret_cast<uintptr_t>(to) % 8) emulator::fail("adds two floats out of line");
  to[0] += a, to[1] += b;
}
inline void pin(int&) {}

}  // namespace raymarch
