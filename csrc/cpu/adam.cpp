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

void adam(Cpu, Out<real, kParams> parameter, In<real, kParams> gradient, Out<real, kParams> first,
          Out<real, kParams> second, In<float, 1> rate, In<int64_t, 1> steps, Out<bool, 1> healthy,
          double beta1, double beta2, double epsilon, double decay) {
  if (!healthy.data[0]) return;
  const AdamStep a =
      adam_step(rate.data[0], steps.data[0], real(beta1), real(beta2), real(epsilon), real(decay));
  const int64_t count = parameter.size[0];
  std::atomic<bool> good{true};
  parallel_for((count + kBlock - 1) / kBlock, kBlock, [&](int64_t block) {
    const int64_t from = block * kBlock, size = std::min(kBlock, count - from);
    if (finite(size, gradient.data + from))
      adam_block(a, size, parameter.data + from, gradient.data + from, first.data + from, second.data + from);
    else
      good = false;
  });
  healthy.data[0] = good;
}

}  // namespace raymarch
