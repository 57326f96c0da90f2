#include "math/contract.h"

#include <algorithm>

#include "cpu/clones.h"
#include "cpu/parallel.h"
#include "ops.h"

namespace raymarch {
namespace {

constexpr int64_t kBlock = 512;  // points per chunk of work

// One loop per norm: a norm known beforehand leaves no branch, and the loop is vectorised.
template <class Body>
inline void each_norm(int64_t norm, int count, const Body& body) {
  if (norm == kLinf)
    for (int i = 0; i < count; ++i) body(kLinf, i);
  else
    for (int i = 0; i < count; ++i) body(kL2, i);
}

using Map = void (*)(int64_t norm, int count, const real* x, real* y);
using Vjp = void (*)(int64_t norm, int count, const real* x, const real* grad_y, real* grad_x);

RM_CLONES void contract_block(int64_t norm, int count, const real* x, real* y) {
  each_norm(norm, count, [&](int64_t norm, int i) { store3(y, i, contract(norm, load3(x, i))); });
}
RM_CLONES void contract_block_vjp(int64_t norm, int count, const real* x, const real* grad_y, real* grad_x) {
  each_norm(norm, count, [&](int64_t norm, int i) {
    store3(grad_x, i, contract_vjp(norm, load3(x, i), load3(grad_y, i)));
  });
}
RM_CLONES void uncontract_block(int64_t norm, int count, const real* y, real* x) {
  each_norm(norm, count, [&](int64_t norm, int i) { store3(x, i, uncontract(norm, load3(y, i))); });
}
RM_CLONES void uncontract_block_vjp(int64_t norm, int count, const real* y, const real* grad_x,
                                    real* grad_y) {
  each_norm(norm, count, [&](int64_t norm, int i) {
    store3(grad_y, i, uncontract_vjp(norm, load3(y, i), load3(grad_x, i)));
  });
}
RM_CLONES void contract_unit_block(int64_t norm, int count, const real* x, real* y) {
  each_norm(norm, count, [&](int64_t norm, int i) { store3(y, i, contract_unit(norm, load3(x, i))); });
}
RM_CLONES void contract_unit_block_vjp(int64_t norm, int count, const real* x, const real* grad_y,
                                       real* grad_x) {
  each_norm(norm, count, [&](int64_t norm, int i) {
    store3(grad_x, i, contract_unit_vjp(norm, load3(x, i), load3(grad_y, i)));
  });
}

void for_blocks(Map block, int64_t norm, In<real, kPoints, 3> x, Out<real, kPoints, 3> y) {
  const int64_t points = x.size[0];
  parallel_for((points + kBlock - 1) / kBlock, 8 * kBlock, [&](int64_t b) {
    const int64_t from = 3 * kBlock * b, count = std::min(kBlock, points - kBlock * b);
    block(norm, int(count), x.data + from, y.data + from);
  });
}
void for_blocks(Vjp block, int64_t norm, In<real, kPoints, 3> x, In<real, kPoints, 3> grad_y,
                Out<real, kPoints, 3> grad_x) {
  const int64_t points = x.size[0];
  parallel_for((points + kBlock - 1) / kBlock, 8 * kBlock, [&](int64_t b) {
    const int64_t from = 3 * kBlock * b, count = std::min(kBlock, points - kBlock * b);
    block(norm, int(count), x.data + from, grad_y.data + from, grad_x.data + from);
  });
}

}  // namespace

void contract_forward(Cpu, In<real, kPoints, 3> x, Out<real, kPoints, 3> y, int64_t norm) {
  for_blocks(contract_block, norm, x, y);
}

void contract_backward(Cpu, In<real, kPoints, 3> x, In<real, kPoints, 3> grad_y, Out<real, kPoints, 3> grad_x,
                       int64_t norm) {
  for_blocks(contract_block_vjp, norm, x, grad_y, grad_x);
}

void uncontract_forward(Cpu, In<real, kPoints, 3> y, Out<real, kPoints, 3> x, int64_t norm) {
  for_blocks(uncontract_block, norm, y, x);
}

void uncontract_backward(Cpu, In<real, kPoints, 3> y, In<real, kPoints, 3> grad_x,
                         Out<real, kPoints, 3> grad_y, int64_t norm) {
  for_blocks(uncontract_block_vjp, norm, y, grad_x, grad_y);
}

void contract_unit_forward(Cpu, In<real, kPoints, 3> x, Out<real, kPoints, 3> y, int64_t norm) {
  for_blocks(contract_unit_block, norm, x, y);
}

void contract_unit_backward(Cpu, In<real, kPoints, 3> x, In<real, kPoints, 3> grad_y,
                            Out<real, kPoints, 3> grad_x, int64_t norm) {
  for_blocks(contract_unit_block_vjp, norm, x, grad_y, grad_x);
}

}  // namespace raymarch
