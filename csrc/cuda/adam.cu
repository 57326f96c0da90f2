#include "cuda/launch.cuh"
#include "cuda/vector.cuh"
#include "math/adam.h"
#include "ops.h"

namespace raymarch {

constexpr int kThreads = 256, kQuads = 4;  // a thread's fours of parameters, two at a time in flight
constexpr int kPerBlock = 4 * kThreads * kQuads;

// One parameter, as the kernel takes it: by value, so that nothing has to be copied to the device first.
struct AdamItem {
  real *parameter, *gradient, *first, *second;
  void* stored;
  const float* rate;
  const int64_t* step;
  int64_t size;
  unsigned end;  // of its blocks
  real epsilon, decay;
  bool wide;   // everything lies at multiples of four elements
  bool clear;  // the gradient is a sum that the next step adds to: zero it
  Dtype dtype;
};
struct AdamItems {
  AdamItem item[kSeveral];
};
static_assert(sizeof(AdamItems) <= 3072, "kernel arguments have 4096 bytes");

__device__ __forceinline__ bool finite(float x) { return fabsf(x) <= 3.402823466e38f; }
__device__ __forceinline__ bool finite(float4 g) {
  return finite(g.x) && finite(g.y) && finite(g.z) && finite(g.w);
}

template <class T>
__device__ __forceinline__ void store_copy(void* stored, int64_t quad, float4 p) {
  const ushort4 bits = {saturated<T>(p.x).bits, saturated<T>(p.y).bits, saturated<T>(p.z).bits,
                        saturated<T>(p.w).bits};
  static_cast<ushort4*>(stored)[quad] = bits;
}
__device__ __forceinline__ void store_copy(const AdamItem& it, int64_t quad, float4 p) {
  if (!it.stored) return;
  if (it.dtype == Dtype::kFloat16) store_copy<half>(it.stored, quad, p);
  if (it.dtype == Dtype::kBFloat16) store_copy<bfloat16>(it.stored, quad, p);
  if (it.dtype == Dtype::kFloat32) static_cast<float4*>(it.stored)[quad] = p;
}
__device__ __forceinline__ void store_copy_of_one(const AdamItem& it, int64_t i, real p) {
  if (!it.stored) return;
  if (it.dtype == Dtype::kFloat16) static_cast<half*>(it.stored)[i] = saturated<half>(p);
  if (it.dtype == Dtype::kBFloat16) static_cast<bfloat16*>(it.stored)[i] = saturated<bfloat16>(p);
  if (it.dtype == Dtype::kFloat32) static_cast<real*>(it.stored)[i] = p;
}

// Most entries of a table get no gradient: reading tells, and spares the writing.
__device__ __forceinline__ void clear(const AdamItem& it, int64_t quad, float4 g) {
  if (it.clear && !(g.x == 0 && g.y == 0 && g.z == 0 && g.w == 0))
    reinterpret_cast<float4*>(it.gradient)[quad] = make_float4(0, 0, 0, 0);
}

__device__ __forceinline__ void update(const AdamItem& it, const AdamStep& a, int64_t quad, float4 p,
                                       float4 g, float4 m, float4 v) {
  p.x = adam(a, p.x, g.x, m.x, v.x), p.y = adam(a, p.y, g.y, m.y, v.y);
  p.z = adam(a, p.z, g.z, m.z, v.z), p.w = adam(a, p.w, g.w, m.w, v.w);
  __stcs(reinterpret_cast<float4*>(it.parameter) + quad, p);
  __stcs(reinterpret_cast<float4*>(it.first) + quad, m);
  __stcs(reinterpret_cast<float4*>(it.second) + quad, v);
  store_copy(it, quad, p);
}

// A block does kPerBlock parameters of one item. What only the next step reads streams past the cache and
// leaves it to the copies, which the next forward pass looks up.
__global__ void __launch_bounds__(kThreads)
    adam_kernel(const __grid_constant__ AdamItems items, Out<bool, 1> healthy, real beta1, real beta2) {
  int k = 0;
  while (blockIdx.x >= items.item[k].end) ++k;
  const AdamItem& it = items.item[k];
  __shared__ AdamStep shared;
  __shared__ bool step;  // read once per block: another block may clear `healthy` meanwhile
  if (threadIdx.x == 0) {
    step = healthy.data[0];
    shared = adam_step(*it.rate, *it.step, beta1, beta2, it.epsilon, it.decay);
  }
  __syncthreads();
  if (!step && !it.clear) return;
  const AdamStep a = shared;
  const int64_t from = int64_t(blockIdx.x - (k > 0 ? items.item[k - 1].end : 0)) * kPerBlock;
  const int64_t to = from + kPerBlock < it.size ? from + kPerBlock : it.size;
  const int64_t quads = it.wide ? to / 4 : 0;  // up to here four at a time
  if (!step) {
    for (int64_t i = from + threadIdx.x; i < to; i += kThreads) it.gradient[i] = 0;
    return;
  }
  bool good = true;
  for (int64_t i = from / 4 + threadIdx.x; i < quads; i += 2 * kThreads) {
    const int64_t j = i + kThreads;
    const bool both = j < quads;
    const auto load = [](const real* data, int64_t quad) {
      return __ldcs(reinterpret_cast<const float4*>(data) + quad);
    };
    const int64_t other = both ? j : i;  // loaded all the same, so that the loads of both go out together
    const float4 g = load(it.gradient, i), p = load(it.parameter, i), m = load(it.first, i),
                 v = load(it.second, i), g2 = load(it.gradient, other), p2 = load(it.parameter, other),
                 m2 = load(it.first, other), v2 = load(it.second, other);
    if (finite(g))
      update(it, a, i, p, g, m, v);
    else
      good = false;
    if (both && finite(g2)) update(it, a, j, p2, g2, m2, v2);
    good &= finite(g2);
    clear(it, i, g);
    if (both) clear(it, j, g2);
  }
  for (int64_t i = (4 * quads > from ? 4 * quads : from) + threadIdx.x; i < to; i += kThreads) {
    const real g = it.gradient[i];
    good &= finite(g);
    if (it.clear) it.gradient[i] = 0;
    if (!finite(g)) continue;
    const real p = adam(a, it.parameter[i], g, it.first[i], it.second[i]);
    it.parameter[i] = p;
    store_copy_of_one(it, i, p);
  }
  if (!good) healthy.data[0] = false;
}

void adam(Cuda q, Several<Out<real, kParams>> parameters, Several<Out<real, kParams>> gradients,
          Several<Out<real, kParams>> first, Several<Out<real, kParams>> second,
          Several<Maybe<OutPayload<kParams>>> stored, Several<In<float, 1>> rates,
          Several<In<int64_t, 1>> steps, Several<double> epsilon, Several<double> decay, Several<bool> clear,
          Out<bool, 1> healthy, double beta1, double beta2) {
  AdamItems items;
  for (int k = 0; k < parameters.count; ++k) {
    AdamItem& it = items.item[k];
    it = {parameters.item[k].data, gradients.item[k].data, first.item[k].data, second.item[k].data,
          stored.item[k].data,     rates.item[k].data,     steps.item[k].data, parameters.item[k].size[0]};
    it.dtype = stored.item[k].dtype, it.clear = clear.item[k];
    it.epsilon = real(epsilon.item[k]), it.decay = real(decay.item[k]);
    it.wide = aligned(it.parameter, 16) && aligned(it.gradient, 16) && aligned(it.first, 16) &&
              aligned(it.second, 16) && aligned(it.stored, it.dtype == Dtype::kFloat32 ? 16 : 8);
    it.end = (k > 0 ? items.item[k - 1].end : 0) + blocks(it.size, kPerBlock);
  }
  if (parameters.count == 0) return;
  launch("adam", adam_kernel, items.item[parameters.count - 1].end, kThreads, q, items, healthy, real(beta1),
         real(beta2));
}

}  // namespace raymarch
