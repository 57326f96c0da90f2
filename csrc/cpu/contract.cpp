#include "math/contract.h"

#include "cpu/parallel.h"
#include "ops.h"

namespace raymarch {

void contract_forward(Cpu, In<real, kPoints, 3> x, Out<real, kPoints, 3> y) {
  parallel_for(x.size[0], 8, [&](int64_t i) { store3(y.data, i, contract(load3(x.data, i))); });
}

void contract_backward(Cpu, In<real, kPoints, 3> x, In<real, kPoints, 3> grad_y,
                       Out<real, kPoints, 3> grad_x) {
  parallel_for(x.size[0], 8, [&](int64_t i) {
    store3(grad_x.data, i, contract_vjp(load3(x.data, i), load3(grad_y.data, i)));
  });
}

}  // namespace raymarch
