// One parameter of Adam (Kingma and Ba 2015), with the weight decay of L2 regularisation that
// torch.optim.Adam has: it joins the gradient before the moments.
#pragma once
#include "math/scalar.h"

namespace raymarch {

struct AdamStep {
  real rate;        // learning rate / (1 - beta1^t)
  real correction;  // 1 / sqrt(1 - beta2^t)
  real beta1, beta2, epsilon, decay;
};

// In double: 1 - beta^t loses three digits of a float in the first steps. By squaring, because std::pow of a
// thread on a GPU takes longer than the memory it would wait for.
RM_HD double adam_power(double beta, int64_t t) {
  double power = 1;
  for (; t > 0; t >>= 1, beta *= beta)
    if (t & 1) power *= beta;
  return power;
}

RM_HD AdamStep adam_step(real rate, int64_t t, real beta1, real beta2, real epsilon, real decay) {
  const double first = 1 - adam_power(beta1, t), second = 1 - adam_power(beta2, t);
  return {real(double(rate) / first), real(1 / std::sqrt(second)), beta1, beta2, epsilon, decay};
}

// Updates the moments in place and returns the new parameter.
RM_HD real adam(const AdamStep& a, real parameter, real gradient, real& first, real& second) {
  const real g = gradient + a.decay * parameter;
  first = a.beta1 * first + (1 - a.beta1) * g;
  second = a.beta2 * second + (1 - a.beta2) * g * g;
  return parameter - a.rate * first / (std::sqrt(second) * a.correction + a.epsilon);
}

}  // namespace raymarch
