#include "math/adam.h"

#include <algorithm>
#include <atomic>
#include <limits>

#include "cpu/parallel.h"
#include "ops.h"

namespace raymarch {

constexpr int64_t kBlock = 4096;

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
__attribute__((target_clones("avx512f", "avx2", "default")))
#endif
static bool finite(int64_t count, const real* __restrict values) {
  int bad = 0;
  for (int64_t i = 0; i < count; ++i) bad |= !(std::abs(values[i]) <= std::numeric_limits<real>::max());
  return !bad;
}

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
__attribute__((target_clones("avx512f", "avx2", "default")))
#endif
static void adam_block(const AdamStep& a, int64_t count, real* __restrict parameter,
                       const real* __restrict gradient, real* __restrict first, real* __restrict second) {
  for (int64_t i = 0; i < count; ++i) parameter[i] = adam(a, parameter[i], gradient[i], first[i], second[i]);
}

template <class T>
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
__attribute__((target_clones("avx512f", "avx2", "default")))
#endif
void copy_block(int64_t count, const real* __restrict from, T* __restrict to) {
  for (int64_t i = 0; i < count; ++i) to[i] = saturated<T>(from[i]);
}

void adam(Cpu, Several<Out<real, kParams>> parameters, Several<Out<real, kParams>> gradients,
          Several<Out<real, kParams>> first, Several<Out<real, kParams>> second,
          Several<Maybe<OutPayload<kParams>>> stored, Several<In<float, 1>> rates,
          Several<In<int64_t, 1>> steps, Several<double> epsilon, Several<double> decay, Several<bool> clear,
          Out<bool, 1> healthy, double beta1, double beta2) {
  const bool healthy_before = healthy.data[0];
  AdamStep step[kSeveral];
  int64_t end[kSeveral], blocks = 0;  // of each parameter's blocks
  for (int k = 0; k < parameters.count; ++k) {
    step[k] = adam_step(rates.item[k].data[0], steps.item[k].data[0], real(beta1), real(beta2),
                        real(epsilon.item[k]), real(decay.item[k]));
    end[k] = blocks += (parameters.item[k].size[0] + kBlock - 1) / kBlock;
  }
  std::atomic<bool> good{true};
  parallel_for(blocks, kBlock, [&](int64_t block) {
    const int64_t k = std::upper_bound(end, end + parameters.count, block) - end;
    const int64_t from = (block - (k > 0 ? end[k - 1] : 0)) * kBlock;
    const int64_t size = std::min(kBlock, parameters.item[k].size[0] - from);
    real* parameter = parameters.item[k].data + from;
    real* gradient = gradients.item[k].data + from;
    if (healthy_before && finite(size, gradient)) {
      adam_block(step[k], size, parameter, gradient, first.item[k].data + from, second.item[k].data + from);
      if (stored.item[k])
        with_dtype(stored.item[k], [&](auto copy) { copy_block(size, parameter, copy.data + from); });
    } else {
      good = false;
    }
    if (clear.item[k]) std::fill_n(gradient, size, real(0));
  });
  healthy.data[0] = healthy_before && good;
}

}  // namespace raymarch
