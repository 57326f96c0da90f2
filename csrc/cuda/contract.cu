#include "cuda/launch.cuh"
#include "math/contract.h"
#include "ops.h"

namespace raymarch {

// Every kernel here: one thread per point.
constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads)
    contract_forward_kernel(In<real, kPoints, 3> x, Out<real, kPoints, 3> y, int64_t norm) {
  const int64_t i = item();
  if (i < x.size[0]) store3(y.data, i, contract(norm, load3(x.data, i)));
}

__global__ void __launch_bounds__(kThreads)
    contract_backward_kernel(In<real, kPoints, 3> x, In<real, kPoints, 3> grad_y,
                             Out<real, kPoints, 3> grad_x, int64_t norm) {
  const int64_t i = item();
  if (i < x.size[0]) store3(grad_x.data, i, contract_vjp(norm, load3(x.data, i), load3(grad_y.data, i)));
}

__global__ void __launch_bounds__(kThreads)
    uncontract_forward_kernel(In<real, kPoints, 3> y, Out<real, kPoints, 3> x, int64_t norm) {
  const int64_t i = item();
  if (i < y.size[0]) store3(x.data, i, uncontract(norm, load3(y.data, i)));
}

__global__ void __launch_bounds__(kThreads)
    uncontract_backward_kernel(In<real, kPoints, 3> y, In<real, kPoints, 3> grad_x,
                               Out<real, kPoints, 3> grad_y, int64_t norm) {
  const int64_t i = item();
  if (i < y.size[0]) store3(grad_y.data, i, uncontract_vjp(norm, load3(y.data, i), load3(grad_x.data, i)));
}

__global__ void __launch_bounds__(kThreads)
    contract_unit_forward_kernel(In<real, kPoints, 3> x, Out<real, kPoints, 3> y, int64_t norm) {
  const int64_t i = item();
  if (i < x.size[0]) store3(y.data, i, contract_unit(norm, load3(x.data, i)));
}

__global__ void __launch_bounds__(kThreads)
    contract_unit_backward_kernel(In<real, kPoints, 3> x, In<real, kPoints, 3> grad_y,
                                  Out<real, kPoints, 3> grad_x, int64_t norm) {
  const int64_t i = item();
  if (i < x.size[0]) store3(grad_x.data, i, contract_unit_vjp(norm, load3(x.data, i), load3(grad_y.data, i)));
}

void contract_forward(Cuda q, In<real, kPoints, 3> x, Out<real, kPoints, 3> y, int64_t norm) {
  launch("contract_forward", contract_forward_kernel, blocks(x.size[0], kThreads), kThreads, q, x, y, norm);
}

void contract_backward(Cuda q, In<real, kPoints, 3> x, In<real, kPoints, 3> grad_y,
                       Out<real, kPoints, 3> grad_x, int64_t norm) {
  launch("contract_backward", contract_backward_kernel, blocks(x.size[0], kThreads), kThreads, q, x, grad_y,
         grad_x, norm);
}

void uncontract_forward(Cuda q, In<real, kPoints, 3> y, Out<real, kPoints, 3> x, int64_t norm) {
  launch("uncontract_forward", uncontract_forward_kernel, blocks(y.size[0], kThreads), kThreads, q, y, x,
         norm);
}

void uncontract_backward(Cuda q, In<real, kPoints, 3> y, In<real, kPoints, 3> grad_x,
                         Out<real, kPoints, 3> grad_y, int64_t norm) {
  launch("uncontract_backward", uncontract_backward_kernel, blocks(y.size[0], kThreads), kThreads, q, y,
         grad_x, grad_y, norm);
}

void contract_unit_forward(Cuda q, In<real, kPoints, 3> x, Out<real, kPoints, 3> y, int64_t norm) {
  launch("contract_unit_forward", contract_unit_forward_kernel, blocks(x.size[0], kThreads), kThreads, q, x,
         y, norm);
}

void contract_unit_backward(Cuda q, In<real, kPoints, 3> x, In<real, kPoints, 3> grad_y,
                            Out<real, kPoints, 3> grad_x, int64_t norm) {
  launch("contract_unit_backward", contract_unit_backward_kernel, blocks(x.size[0], kThreads), kThreads, q, x,
         grad_y, grad_x, norm);
}

}  // namespace raymarch
