// The words of cuda_fp16.h that the kernels use, on the emulator. Arithmetic is in float and rounded once.
#pragma once
#include <cuda_runtime.h>

struct __half {
  _Float16 value;
};
struct __half2 {
  __half x, y;
};
inline __half __ushort_as_half(unsigned short bits) {
  __half h;
  memcpy(&h, &bits, 2);
  return h;
}
inline unsigned short __half_as_ushort(__half h) {
  unsigned short bits;
  memcpy(&bits, &h, 2);
  return bits;
}
inline float __half2float(__half h) { return float(h.value); }
inline __half __float2half_rn(float x) { return {_Float16(x)}; }
inline __half2 __half2half2(__half h) { return {h, h}; }
inline __half2 __float2half2_rn(float x) { return {__float2half_rn(x), __float2half_rn(x)}; }
inline __half2 __floats2half2_rn(float x, float y) { return {__float2half_rn(x), __float2half_rn(y)}; }
inline __half2 __hmul2(__half2 a, __half2 b) {
  return __floats2half2_rn(__half2float(a.x) * __half2float(b.x), __half2float(a.y) * __half2float(b.y));
}
inline __half2 __hmax2_nan(__half2 a, __half2 b) {
  const auto most = [](__half a, __half b) {
    return a.value != a.value ? a : b.value != b.value ? b : a.value > b.value ? a : b;
  };
  return {most(a.x, b.x), most(a.y, b.y)};
}
inline unsigned __hle2_mask(__half2 a, __half2 b) {
  return (a.x.value <= b.x.value ? 0xffffu : 0) | (a.y.value <= b.y.value ? 0xffff0000u : 0);
}
