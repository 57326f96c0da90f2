// The ops' CPU half has no place in a core that emulates: its arrays go to the kernels (bind.cpp).
#include "ops.h"

#include <stdexcept>

namespace raymarch {
#define RM_OP(name, ...) \
  void name(Cpu, __VA_ARGS__) { throw std::logic_error(#name ": this core has kernels only"); }
#include "ops.def"
}  // namespace raymarch
