// The only array the core knows: a pointer and the sizes of a contiguous block.
//
// Dimensions are part of the type. A positive one is exact; a named one is free, but must be the same
// wherever its name appears in a call. The binding checks both (bind.cpp), so a signature in ops.def is
// also the shape documentation and the shape check.
#pragma once
#include <cstdint>
#include <stdexcept>

#include "math/scalar.h"

namespace raymarch {

// Names of free dimensions. kDimNames below spells them for error messages, in the same order.
enum Dim : int {
  kRays = -1,       // one ray each
  kSamples = -2,    // intervals along a ray
  kEdges = -3,      // fenceposts along a ray: samples + 1
  kPoints = -4,     // positions, whatever they belong to
  kChannels = -5,   // numbers per sample or per pixel
  kCameras = -6,    // one camera each
  kFine = -7,       // a second count of intervals: the level a proposal is compared with
  kFineEdges = -8,  // fine + 1
  kEntries = -9,    // rows of a table
  kParams = -10,    // a flat vector of parameters
  kInputs = -11,    // width of what goes into a layer
  kOutputs = -12,   // width of what comes out
  kBytes = -13,     // raw storage
  kCode = -14,      // width of a code that all samples of a ray share
  kDims = 15
};
constexpr const char* kDimNames[kDims] = {
    "",           "rays",    "samples",    "edges",  "points",  "channels", "cameras",     "fine samples",
    "fine edges", "entries", "parameters", "inputs", "outputs", "bytes",    "code numbers"};

template <class T, int... Dims>
struct View {
  T* data;
  int64_t size[sizeof...(Dims)];
  RM_HD explicit operator bool() const { return data != nullptr; }
};
template <class T, int... Dims>
using In = View<const T, Dims...>;
template <class T, int... Dims>
using Out = View<T, Dims...>;

// An argument that may be None: data is null then.
template <class V>
struct Maybe : V {};

// Arguments of one kind, as many as the caller lists. Lists of one call are equally long, and a dimension
// named in them is free again from one place to the next.
constexpr int kSeveral = 32;
template <class V>
struct Several {
  V item[kSeveral];
  int count;
};

// An array whose element type is known only at run time: hash tables, weights, per-sample features.
// A backend opens it once, at the top: with_dtype(table, [&](auto table) { ... }) receives an In or Out.
enum class Dtype : int { kFloat32, kFloat64, kFloat16, kBFloat16 };
template <bool kConst, int... Dims>
struct AnyView {
  void* data;
  Dtype dtype;
  int64_t size[sizeof...(Dims)];
  RM_HD explicit operator bool() const { return data != nullptr; }
};
template <int... Dims>
using Payload = AnyView<true, Dims...>;
template <int... Dims>
using OutPayload = AnyView<false, Dims...>;

// Where an op runs. The tag picks the overload; Cuda carries the caller's stream and device.
struct Cpu {};
struct Cuda {
  void* stream;
  int device;
};

// A relation that the types cannot say. The binding puts the op's name in front of the message.
inline void require(bool ok, const char* message) {
  if (!ok) throw std::invalid_argument(message);
}

template <class T, bool kConst, int... Dims>
View<std::conditional_t<kConst, const T, T>, Dims...> opened(AnyView<kConst, Dims...> any) {
  View<std::conditional_t<kConst, const T, T>, Dims...> view;
  view.data = static_cast<T*>(any.data);
  for (unsigned d = 0; d < sizeof...(Dims); ++d) view.size[d] = any.size[d];
  return view;
}

// Calls body with the typed view. In the float build a payload is float, half or bfloat16; in the double
// build it is double.
template <bool kConst, int... Dims, class Body>
void with_dtype(AnyView<kConst, Dims...> any, const Body& body) {
#if RM_DOUBLE
  body(opened<double>(any));
#else
  if (any.dtype == Dtype::kFloat16) return body(opened<half>(any));
  if (any.dtype == Dtype::kBFloat16) return body(opened<bfloat16>(any));
  body(opened<float>(any));
#endif
}

}  // namespace raymarch
