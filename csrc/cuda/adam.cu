#include "cuda/launch.cuh"
#include "math/adam.h"
#include "ops.h"

namespace raymarch {

__device__ __forceinline__ bool finite(float x) { return fabsf(x) <= 3.402823466e38f; }

// One thread per four parameters; the tail is one thread per parameter.
__global__ void __launch_bounds__(256)
    adam_kernel(Out<real, kParams> parameter, In<real, kParams> gradient, Out<real, kParams> first,
                Out<real, kParams> second, In<float, 1> rate, In<int64_t, 1> steps, Out<bool, 1> healthy,
                real beta1, real beta2, real epsilon, real decay) {
  __shared__ AdamStep shared;
  __shared__ bool step;  // read once per block: another block may clear `healthy` meanwhile
  if (threadIdx.x == 0) step = healthy.data[0];
  __syncthreads();
  if (!step) return;
  if (threadIdx.x == 0) shared = adam_step(rate.data[0], steps.data[0], beta1, beta2, epsilon, decay);
  __syncthreads();
  const AdamStep a = shared;
  const int64_t quads = parameter.size[0] / 4, i = item();
  if (i < quads) {
    float4 p = reinterpret_cast<float4*>(parameter.data)[i], m = reinterpret_cast<float4*>(first.data)[i],
           v = reinterpret_cast<float4*>(second.data)[i];
    const float4 g = reinterpret_cast<const float4*>(gradient.data)[i];
    if (!(finite(g.x) && finite(g.y) && finite(g.z) && finite(g.w))) {
      healthy.data[0] = false;
      return;
    }
    p.x = adam(a, p.x, g.x, m.x, v.x), p.y = adam(a, p.y, g.y, m.y, v.y);
    p.z = adam(a, p.z, g.z, m.z, v.z), p.w = adam(a, p.w, g.w, m.w, v.w);
    reinterpret_cast<float4*>(parameter.data)[i] = p;
    reinterpret_cast<float4*>(first.data)[i] = m;
    reinterpret_cast<float4*>(second.data)[i] = v;
  } else if (const int64_t k = 4 * quads + (i - quads); k < parameter.size[0]) {
    if (!finite(gradient.data[k])) {
      healthy.data[0] = false;
      return;
    }
    parameter.data[k] = adam(a, parameter.data[k], gradient.data[k], first.data[k], second.data[k]);
  }
}

void adam(Cuda q, Out<real, kParams> parameter, In<real, kParams> gradient, Out<real, kParams> first,
          Out<real, kParams> second, In<float, 1> rate, In<int64_t, 1> steps, Out<bool, 1> healthy,
          double beta1, double beta2, double epsilon, double decay) {
  const uintptr_t address =
      uintptr_t(parameter.data) | uintptr_t(gradient.data) | uintptr_t(first.data) | uintptr_t(second.data);
  require(address % 16 == 0, "parameter, gradient and moments must start at multiples of 16 bytes");
  const int64_t count = parameter.size[0];
  launch("adam", adam_kernel, blocks(count / 4 + count % 4, 256), 256, q, parameter, gradient, first, second,
         rate, steps, healthy, real(beta1), real(beta2), real(epsilon), real(decay));
}

}  // namespace raymarch
