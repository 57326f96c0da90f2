// Small dense products, all of whose operands fit the caches of one core.
#pragma once
#include "math/scalar.h"

namespace raymarch {

// c [rows, columns] = a [rows, inner] b [inner, columns], plus what c held if `add`; then relu, or zero where
// `mask` (laid out as c) is not above zero. b and c are row-major, a has any strides.
// rows must be a multiple of 16, and so must columns.
struct Product {
  int rows, columns, inner;
  const real* a;
  int64_t a_row, a_inner;
  const real* b;
  int64_t b_row;
  real* c;
  int64_t c_row;
  bool add = false, relu = false;
  const real* mask = nullptr;
};

void multiply(const Product& p);

}  // namespace raymarch
