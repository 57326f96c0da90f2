#include "cuda/launch.cuh"
#include "math/contract.h"
#include "ops.h"

namespace raymarch {

__global__ void __launch_bounds__(256)
    contract_forward_kernel(In<real, kPoints, 3> x, Out<real, kPoints, 3> y) {
  const int64_t i = item();
  if (i < x.size[0]) store3(y.data, i, contract(load3(x.data, i)));
}

__global__ void __launch_bounds__(256)
    contract_backward_kernel(In<real, kPoints, 3> x, In<real, kPoints, 3> grad_y,
                             Out<real, kPoints, 3> grad_x) {
  const int64_t i = item();
  if (i < x.size[0]) store3(grad_x.data, i, contract_vjp(load3(x.data, i), load3(grad_y.data, i)));
}

void contract_forward(Cuda q, In<real, kPoints, 3> x, Out<real, kPoints, 3> y) {
  launch("contract_forward", contract_forward_kernel, blocks(x.size[0], 256), 256, q, x, y);
}

void contract_backward(Cuda q, In<real, kPoints, 3> x, In<real, kPoints, 3> grad_y,
                       Out<real, kPoints, 3> grad_x) {
  launch("contract_backward", contract_backward_kernel, blocks(x.size[0], 256), 256, q, x, grad_y, grad_x);
}

}  // namespace raymarch
