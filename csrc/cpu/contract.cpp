#include "math/contract.h"

#include "cpu/parallel.h"
#include "ops.h"

namespace raymarch {

constexpr int64_t kWork = 16;  // about what one point costs, in parallel_for's units

void contract_forward(Cpu, In<real, kPoints, 3> x, Out<real, kPoints, 3> y, int64_t norm) {
  parallel_for(x.size[0], kWork, [&](int64_t i) { store3(y.data, i, contract(norm, load3(x.data, i))); });
}

void contract_backward(Cpu, In<real, kPoints, 3> x, In<real, kPoints, 3> grad_y, Out<real, kPoints, 3> grad_x,
                       int64_t norm) {
  parallel_for(x.size[0], kWork, [&](int64_t i) {
    store3(grad_x.data, i, contract_vjp(norm, load3(x.data, i), load3(grad_y.data, i)));
  });
}

void uncontract_forward(Cpu, In<real, kPoints, 3> y, Out<real, kPoints, 3> x, int64_t norm) {
  parallel_for(y.size[0], kWork, [&](int64_t i) { store3(x.data, i, uncontract(norm, load3(y.data, i))); });
}

void uncontract_backward(Cpu, In<real, kPoints, 3> y, In<real, kPoints, 3> grad_x,
                         Out<real, kPoints, 3> grad_y, int64_t norm) {
  parallel_for(y.size[0], kWork, [&](int64_t i) {
    store3(grad_y.data, i, uncontract_vjp(norm, load3(y.data, i), load3(grad_x.data, i)));
  });
}

void contract_unit_forward(Cpu, In<real, kPoints, 3> x, Out<real, kPoints, 3> y, int64_t norm) {
  parallel_for(x.size[0], kWork,
               [&](int64_t i) { store3(y.data, i, contract_unit(norm, load3(x.data, i))); });
}

void contract_unit_backward(Cpu, In<real, kPoints, 3> x, In<real, kPoints, 3> grad_y,
                            Out<real, kPoints, 3> grad_x, int64_t norm) {
  parallel_for(x.size[0], kWork, [&](int64_t i) {
    store3(grad_x.data, i, contract_unit_vjp(norm, load3(x.data, i), load3(grad_y.data, i)));
  });
}

}  // namespace raymarch
