// Numbers by counter: the same (seed, step, stream, index) gives the same number on every backend, whatever
// the launch shape. The mixer is the finaliser of splitmix64 (Steele, Lea and Flood 2014), applied twice.
#pragma once
#include "math/scalar.h"

namespace raymarch {

RM_HD uint64_t mixed(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

// What the numbers of one use in one step have in common. `stream` tells uses of the same step apart.
RM_HD uint64_t random_key(int64_t seed, int64_t step, int64_t stream) {
  const uint64_t golden = 0x9e3779b97f4a7c15ull;
  return mixed(mixed(mixed(uint64_t(seed) + golden) + uint64_t(step) * golden) + uint64_t(stream) * golden);
}

RM_HD uint64_t random_bits(uint64_t key, uint64_t index) {
  return mixed(mixed(key + index * 0x9e3779b97f4a7c15ull));
}

// Uniform in [0, 1), of 24 bits, so that a float holds it exactly.
RM_HD real uniform(uint64_t key, uint64_t index) {
  return real(random_bits(key, index) >> 40) * real(0x1p-24);
}

// Uniform in 0 .. count - 1; the bias is below count / 2^64.
RM_HD int64_t uniform_below(uint64_t key, uint64_t index, int64_t count) {
  const uint64_t bits = random_bits(key, index), n = uint64_t(count);
#if defined(__CUDA_ARCH__)
  return int64_t(__umul64hi(bits, n));
#else
  return int64_t((unsigned __int128)(bits)*n >> 64);
#endif
}

}  // namespace raymarch
