// Every op of ops.def as an overload on Cpu and on Cuda.
#pragma once
#include "array.h"

namespace raymarch {
#define RM_OP(name, ...)       \
  void name(Cpu, __VA_ARGS__); \
  void name(Cuda, __VA_ARGS__);
#include "ops.def"
#undef RM_OP
}  // namespace raymarch
