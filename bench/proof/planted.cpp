// Kernels with one fault each, and the same without it: what the emulator must tell apart. The arguments are
// a case and whether the fault is in; the program prints the sum of what the kernel wrote, or the error.
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>
#include <vector>

#include "cuda/launch.cuh"

namespace raymarch {

constexpr int kThreads = 64;

// A neighbour's number is read before it is there.
__global__ void barrier(bool fault, float* out) {
  RM_SHARED(float, numbers);
  const int i = threadIdx.x;
  numbers[i] = 1 + i;
  if (!fault) __syncthreads();
  out[i] = numbers[(i + 1) % kThreads];
}

// Half a warp shuffles, the other half does not.
__global__ void shuffle(bool fault, float* out) {
  const int i = threadIdx.x;
  out[i] = 0;
  if (!fault || i % 32 < 16) out[i] = __shfl_xor_sync(~0u, float(i), 1);
}

// One number more than the launch asked for.
__global__ void beyond(bool fault, float* out) {
  RM_SHARED(float, numbers);
  numbers[threadIdx.x + (fault ? 1 : 0)] = 1;
  __syncthreads();
  out[threadIdx.x] = 1;
}

// A copy is read before it has come.
__global__ void copy(bool fault, const float* from, float* out) {
  RM_SHARED(float, numbers);
  copy_async<4>(place_of(numbers + threadIdx.x), from + threadIdx.x, true);
  if (!fault) wait_for_copies();
  out[threadIdx.x] = numbers[threadIdx.x];
}

// Shared memory that nobody has written.
__global__ void unwritten(bool fault, float* out) {
  RM_SHARED(float, numbers);
  if (!fault) numbers[threadIdx.x] = 1;
  out[threadIdx.x] = numbers[threadIdx.x];
}

// Four numbers at an address for one.
__global__ void vector(bool fault, const float* from, float* out) {
  out[threadIdx.x] = __ldg(reinterpret_cast<const float4*>(from + (fault ? 1 : 0))).x;
}

// Some threads go to a barrier, the others to a warp's.
__global__ void divided(bool fault, float* out) {
  if (fault && threadIdx.x % 32 == 3)
    __syncthreads();
  else
    __syncwarp();
  if (!fault) __syncthreads();
  out[threadIdx.x] = 1;
}

double outcome(const std::string& name, bool fault) {
  alignas(16) static float from[kThreads + 4];
  for (int i = 0; i < kThreads + 4; ++i) from[i] = 1;
  std::vector<float> out(kThreads);
  const Cuda q = {nullptr, 0};
  const auto go = [&](auto kernel, auto... args) {
    launch_shared(name.c_str(), kernel, 1, kThreads, kThreads * sizeof(float), q, fault, args...);
  };
  const float* in = from;
  float* to = out.data();
  if (name == "barrier") go(barrier, to);
  if (name == "shuffle") go(shuffle, to);
  if (name == "beyond") go(beyond, to);
  if (name == "copy") go(copy, in, to);
  if (name == "unwritten") go(unwritten, to);
  if (name == "vector") go(vector, in, to);
  if (name == "divided") go(divided, to);
  double sum = 0;
  for (const float x : out) sum += x;
  return sum;
}

}  // namespace raymarch

int main(int count, char** words) {
  if (count != 3) return 2;
  try {
    std::printf("%g\n", raymarch::outcome(words[1], std::atoi(words[2]) != 0));
  } catch (const std::exception& error) {
    std::printf("error: %s\n", error.what());
  }
  return 0;
}
