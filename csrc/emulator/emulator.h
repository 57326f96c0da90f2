// CUDA kernels without a GPU: their own sources, compiled for the host. For tests, never for use.
//
// Every thread of a block has a stack of its own and runs until it must wait for others: at a barrier, in a
// shuffle or vote, at a product of tiles. Then another thread runs; in which order is a choice
// (RAYMARCH_EMULATE_ORDER), so that a result which depends on it, because a barrier is missing, can be
// caught. Blocks run one after another. What the hardware leaves open is made to fail: lanes that do not all
// come to the same place, threads that wait for ever, shuffles from absent lanes, vectors out of line, memory
// beyond what the launch asked for. Dynamic shared memory and the targets of unfinished copies hold NaN.
//
// Warps of the hardware run side by side and here they do not, so a race may hide from every order tried:
// compute-sanitizer on a GPU has the last word. Sums of tensor cores are rounded once, from double.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
};
extern Dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace raymarch::emulator {

constexpr size_t kShared = 227 << 10;  // bytes of shared memory a block may have, as on sm_90
constexpr int kMultiprocessors = 3;    // few, so that persistent kernels go round more than once

extern unsigned char shared_memory[];  // of the block that runs

// Ends the launch with an error that names the kernel's thread.
[[noreturn]] void fail(const char* what);

void run(unsigned grid, unsigned block, size_t shared, const std::function<void()>& kernel);

// Waits until every lane of the mask that has not returned is here; the last to come calls `all` with what
// each brought, null for the others.
void together(unsigned mask, void* mine, const char* where, void (*all)(void* (&)[32], void*), void* with);
template <class T, class All>
void together(unsigned mask, T& mine, const char* where, All all) {
  const auto call = [](void*(&lanes)[32], void* with) {
    T* typed[32];
    for (int i = 0; i < 32; ++i) typed[i] = static_cast<T*>(lanes[i]);
    (*static_cast<All*>(with))(typed);
  };
  together(mask, &mine, where, call, &all);
}

// The same for the block: whether all said yes.
bool block_together(bool yes);

// A copy to shared memory that happens when the thread waits for its copies.
void copy_later(void* to, const void* from, int valid, int bytes);
void copy_now();

}  // namespace raymarch::emulator
