// How a kernel is started, and who a thread is. Errors carry the op's name.
#pragma once
#include <cstdint>
#include <stdexcept>
#include <string>

#include "array.h"
#include "cuda/machine.cuh"

namespace raymarch {

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

// Makes the arrays' device current, and gives the caller's back.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check(cudaGetDevice(&before_), "cudaGetDevice");
    if (before_ != device) check(cudaSetDevice(device), "cudaSetDevice");
    changed_ = before_ != device;
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

// Grids are one-dimensional; 2^31 - 1 blocks is the hardware's limit.
inline unsigned blocks(int64_t items, int per_block) {
  const int64_t count = (items + per_block - 1) / per_block;
  require(count < (int64_t{1} << 31), "too many items for one launch; split the call");
  return unsigned(count);
}

constexpr int kStaticShared = 48 << 10;  // above this a kernel must ask for its shared memory

// Starts a kernel on the caller's stream. Never synchronises. `shared` is dynamic shared memory in bytes.
template <class... Params, class... Args>
void launch_shared(const char* name, void (*kernel)(Params...), unsigned grid, unsigned block, size_t shared,
                   Cuda q, Args... args) {
  if (grid == 0) return;
  const DeviceGuard guard(q.device);
  if (shared > kStaticShared)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared)), name);
  start(kernel, grid, block, shared, q.stream, args...);
  check(cudaGetLastError(), name);
}

template <class... Params, class... Args>
void launch(const char* name, void (*kernel)(Params...), unsigned grid, unsigned block, Cuda q,
            Args... args) {
  launch_shared(name, kernel, grid, block, 0, q, args...);
}

// Multiprocessors of the device, read once per device: the size of a persistent grid.
inline int multiprocessors(Cuda q) {
  static int count[64] = {};
  int& known = count[q.device & 63];
  if (known == 0) check(cudaDeviceGetAttribute(&known, cudaDevAttrMultiProcessorCount, q.device), "device");
  return known;
}

// Zeroes a buffer in stream order.
inline void zero(const char* name, void* data, size_t bytes, Cuda q) {
  if (bytes == 0) return;
  const DeviceGuard guard(q.device);
  check(cudaMemsetAsync(data, 0, bytes, cudaStream_t(q.stream)), name);
}

__device__ __forceinline__ int64_t item() { return blockIdx.x * int64_t{blockDim.x} + threadIdx.x; }

constexpr int kWarpsPerBlock = 4;
__device__ __forceinline__ int64_t warp() { return item() / 32; }
__device__ __forceinline__ int lane() { return threadIdx.x % 32; }

}  // namespace raymarch
