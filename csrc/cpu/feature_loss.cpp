#include <algorithm>

#include "cpu/parallel.h"
#include "ops.h"

namespace raymarch {

void feature_loss(Cpu, In<real, kRays, kInputs> hidden, In<real, kOutputs, kInputs> layer,
                  In<real, kRays, kOutputs> target, Out<real, kCode, kRays> losses,
                  Out<real, kCode, kRays, kInputs> grad_hidden,
                  Out<real, kEntries, kOutputs, kInputs> grad_layer) {
  const int64_t rays = hidden.size[0], inputs = hidden.size[1], outputs = layer.size[0];
  const int64_t parts = losses.size[0], groups = grad_layer.size[0];
  require(parts > 0 && groups > 0, "losses and grad_layer must have at least one part");
  parallel_for(groups, 1 << 20, [&](int64_t group) {
    real* to_layer = grad_layer.data + group * outputs * inputs;
    std::fill_n(to_layer, outputs * inputs, real(0));
    for (int64_t i = rays * group / groups; i < rays * (group + 1) / groups; ++i) {
      const real* h = hidden.data + i * inputs;
      for (int64_t part = 0; part < parts; ++part) {
        real* to_hidden =
            std::fill_n(grad_hidden.data + (part * rays + i) * inputs, inputs, real(0)) - inputs;
        real loss = 0;
        for (int64_t o = outputs * part / parts; o < outputs * (part + 1) / parts; ++o) {
          const real* row = layer.data + o * inputs;
          real sum = 0;
          for (int64_t c = 0; c < inputs; ++c) sum += row[c] * h[c];
          const real off = sum - real(target.data[i * outputs + o]);
          loss += off * off;
          for (int64_t c = 0; c < inputs; ++c) {
            to_hidden[c] += 2 * off * row[c];
            to_layer[o * inputs + c] += 2 * off * h[c];
          }
        }
        losses.data[part * rays + i] = loss;
      }
    }
  });
}

}  // namespace raymarch
