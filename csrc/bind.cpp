// The one door between Python and the core. Arrays arrive through DLPack, so the core links no framework; a
// framework's fast C table is used when its type has one.
#include <pybind11/pybind11.h>

#include <algorithm>
#include <array>
#include <string>
#include <tuple>
#include <vector>

#include "dlpack.h"
#include "ops.h"

#ifndef RM_EMULATED
#define RM_EMULATED 0
#endif

namespace py = pybind11;
using namespace raymarch;

namespace {

constexpr int kDlCpu = 1, kDlCuda = 2;
enum DlCode : uint8_t { kDlInt = 0, kDlUInt = 1, kDlFloat = 2, kDlBfloat = 4, kDlBool = 6 };

// Looked up once per Python type: torch.Tensor and torch.nn.Parameter alternate in every call.
const dl::ExchangeApi* exchange_api(PyTypeObject* type) {
  struct Entry {
    PyTypeObject* type;
    const dl::ExchangeApi* api;
  };
  static Entry cache[4] = {};
  static unsigned next = 0;
  for (const Entry& e : cache)
    if (e.type == type) return e.api;
  const dl::ExchangeApi* api = nullptr;
  if (PyObject* capsule =
          PyObject_GetAttrString(reinterpret_cast<PyObject*>(type), "__dlpack_c_exchange_api__")) {
    api = static_cast<const dl::ExchangeApi*>(PyCapsule_GetPointer(capsule, "dlpack_exchange_api"));
    Py_DECREF(capsule);
  }
  PyErr_Clear();
  cache[next++ % 4] = {type, api};
  return api;
}

// The argument names of an op, read from its declaration in ops.def.
std::string argument_name(const char* declaration, int index) {
  int depth = 0;
  std::string name, word;
  for (const char* c = declaration;; ++c) {
    if (*c == '<') ++depth;
    if (*c == '>') --depth;
    if (*c == '\0' || (*c == ',' && depth == 0)) {
      if (index-- == 0) return word;
      word.clear();
      if (*c == '\0') return "argument";
    } else if (*c == ' ' || *c == '>' || *c == '\n') {
      word.clear();
    } else {
      word += *c;
    }
  }
}

// What the arguments of one call must agree on.
struct Call {
  const char* op;
  const char* declaration;
  int index = 0;        // of the argument being read
  bool placed = false;  // whether an array has told the device yet
  dl::Device device = {};
  const dl::ExchangeApi* api = nullptr;
  int64_t bound[kDims];                            // the size each named dimension took, -1 while free
  std::vector<std::array<int64_t, kDims>> places;  // the same for each place in lists, once one was read

  template <class Error = py::value_error>
  [[noreturn]] void fail(const std::string& why) const {
    throw Error(std::string(op) + ": " + argument_name(declaration, index) + " " + why);
  }
};

void agree(Call& call, int dim, int64_t size) {
  if (dim > 0) {
    if (size != dim) call.fail("has " + std::to_string(size) + " columns, expected " + std::to_string(dim));
    return;
  }
  int64_t& want = call.bound[-dim];
  if (want < 0) want = size;
  if (want != size)
    call.fail("has " + std::to_string(size) + " " + kDimNames[-dim] + ", expected " + std::to_string(want));
}

std::string spelled(dl::DataType t) {
  const char* kind = t.code == kDlInt      ? "int"
                     : t.code == kDlUInt   ? "uint"
                     : t.code == kDlFloat  ? "float"
                     : t.code == kDlBfloat ? "bfloat"
                     : t.code == kDlBool   ? "bool"
                                           : "dtype code ";
  return t.code == kDlBool ? kind : kind + std::to_string(t.bits);
}

template <class T>
constexpr dl::DataType kType = {std::is_same_v<T, bool>       ? uint8_t(kDlBool)
                                : std::is_floating_point_v<T> ? uint8_t(kDlFloat)
                                : std::is_signed_v<T>         ? uint8_t(kDlInt)
                                                              : uint8_t(kDlUInt),
                                uint8_t(8 * sizeof(T)), 1};

template <class V>
struct Arg;

dl::Tensor read_array(Call& call, PyObject* obj) {
  dl::Tensor t;
  if (const dl::ExchangeApi* api = exchange_api(Py_TYPE(obj))) {
    if (api->dltensor_from_py_object_no_sync(obj, &t)) throw py::error_already_set();
    call.api = api;
  } else if (PyObject_HasAttrString(obj, "__dlpack__")) {
    auto capsule = py::reinterpret_steal<py::object>(PyObject_CallMethod(obj, "__dlpack__", nullptr));
    if (!capsule) throw py::error_already_set();
    t = static_cast<dl::ManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"))->tensor;
  } else {
    call.fail<py::type_error>(std::string("is a ") + Py_TYPE(obj)->tp_name + ", expected an array");
  }
  if (!call.placed) call.device = t.device, call.placed = true;
  if (t.device.type != call.device.type || t.device.id != call.device.id)
    call.fail("is on another device than the arguments before it");
  return t;
}

template <int... Dims>
void read_sizes(Call& call, const dl::Tensor& t, int64_t* size) {
  constexpr int rank = sizeof...(Dims);
  constexpr int dims[] = {Dims...};
  if (t.ndim != rank)
    call.fail("has " + std::to_string(t.ndim) + " dimensions, expected " + std::to_string(rank));
  int64_t stride = 1;
  for (int d = 0; d < rank; ++d) agree(call, dims[d], t.shape[d]);
  bool empty = false;
  for (int d = 0; d < rank; ++d) empty |= t.shape[d] == 0;
  for (int d = rank - 1; d >= 0; --d) {
    if (t.strides && t.shape[d] > 1 && !empty && t.strides[d] != stride) call.fail("is not contiguous");
    stride *= size[d] = t.shape[d];
  }
}

template <class T, int... Dims>
struct Arg<View<T, Dims...>> {
  static View<T, Dims...> read(Call& call, PyObject* obj) {
    const dl::Tensor t = read_array(call, obj);
    constexpr dl::DataType want = kType<std::remove_const_t<T>>;
    if (t.dtype.code != want.code || t.dtype.bits != want.bits)
      call.fail<py::type_error>("has dtype " + spelled(t.dtype) + ", expected " + spelled(want));
    View<T, Dims...> view;
    read_sizes<Dims...>(call, t, view.size);
    view.data = reinterpret_cast<T*>(static_cast<char*>(t.data) + t.byte_offset);
    return view;
  }
};

template <bool kConst, int... Dims>
struct Arg<AnyView<kConst, Dims...>> {
  static AnyView<kConst, Dims...> read(Call& call, PyObject* obj) {
    const dl::Tensor t = read_array(call, obj);
    AnyView<kConst, Dims...> view;
    const bool is_float = t.dtype.code == kDlFloat;
    if (RM_DOUBLE && is_float && t.dtype.bits == 64)
      view.dtype = Dtype::kFloat64;
    else if (!RM_DOUBLE && is_float && t.dtype.bits == 32)
      view.dtype = Dtype::kFloat32;
    else if (!RM_DOUBLE && is_float && t.dtype.bits == 16)
      view.dtype = Dtype::kFloat16;
    else if (!RM_DOUBLE && t.dtype.code == kDlBfloat && t.dtype.bits == 16)
      view.dtype = Dtype::kBFloat16;
    else
      call.fail<py::type_error>(
          "has dtype " + spelled(t.dtype) +
          (RM_DOUBLE ? ", expected float64" : ", expected float32, float16 or bfloat16"));
    read_sizes<Dims...>(call, t, view.size);
    view.data = static_cast<char*>(t.data) + t.byte_offset;
    return view;
  }
};

template <class V>
struct Arg<Maybe<V>> {
  static Maybe<V> read(Call& call, PyObject* obj) {
    if (obj == Py_None) return Maybe<V>{};
    Maybe<V> given{Arg<V>::read(call, obj)};
    static char nothing;  // an empty array, whose data may be null, is not an absent one
    if (!given.data) given.data = reinterpret_cast<decltype(given.data)>(&nothing);
    return given;
  }
};

template <>
struct Arg<int64_t> {
  static int64_t read(Call& call, PyObject* obj) {
    const long long value = PyLong_AsLongLong(obj);
    if (value == -1 && PyErr_Occurred()) {
      PyErr_Clear();
      call.fail<py::type_error>(std::string("is a ") + Py_TYPE(obj)->tp_name + ", expected an int");
    }
    return value;
  }
};
template <>
struct Arg<double> {
  static double read(Call& call, PyObject* obj) {
    const double value = PyFloat_AsDouble(obj);
    if (value == -1 && PyErr_Occurred()) {
      PyErr_Clear();
      call.fail<py::type_error>(std::string("is a ") + Py_TYPE(obj)->tp_name + ", expected a float");
    }
    return value;
  }
};
template <>
struct Arg<bool> {
  static bool read(Call&, PyObject* obj) { return PyObject_IsTrue(obj) == 1; }
};

template <class V>
struct Arg<Several<V>> {
  static Several<V> read(Call& call, PyObject* obj) {
    if (!PyList_Check(obj))
      call.fail<py::type_error>(std::string("is a ") + Py_TYPE(obj)->tp_name + ", expected a list");
    const size_t count = PyList_GET_SIZE(obj);
    if (count > kSeveral)
      call.fail("lists " + std::to_string(count) + ", expected at most " + std::to_string(kSeveral));
    if (call.places.empty()) {
      call.places.resize(count);
      for (auto& place : call.places) place.fill(-1);
    }
    if (call.places.size() != count)
      call.fail("lists " + std::to_string(count) + ", expected " + std::to_string(call.places.size()));
    Several<V> list{};
    list.count = int(count);
    for (size_t i = 0; i < count; ++i) {
      std::swap_ranges(call.bound, call.bound + kDims, call.places[i].data());
      list.item[i] = Arg<V>::read(call, PyList_GET_ITEM(obj, i));
      std::swap_ranges(call.bound, call.bound + kDims, call.places[i].data());
    }
    return list;
  }
};

template <class A>
A next_argument(Call& call, PyObject* obj) {
  A value = Arg<A>::read(call, obj);
  ++call.index;
  return value;
}

template <class V>
using Obj = py::handle;

template <class... Args>
void bind(py::module_& m, const char* name, const char* declaration, void (*cpu)(Cpu, Args...),
          void (*cuda)(Cuda, Args...)) {
  m.def(
      name,
      [=](Obj<Args>... objs) {
        Call call{name, declaration, 0, false, {}, nullptr, {}, {}};
        for (int64_t& size : call.bound) size = -1;
        std::tuple<Args...> args{next_argument<Args>(call, objs.ptr())...};
        try {
          if (RM_EMULATED && call.device.type == kDlCpu) {
            std::apply([&](auto... a) { cuda(Cuda{nullptr, 0}, a...); }, args);
          } else if (call.device.type == kDlCpu) {
            const py::gil_scoped_release others_may_run;
            std::apply([&](auto... a) { cpu(Cpu{}, a...); }, args);
          } else if (call.device.type == kDlCuda) {
            void* stream = nullptr;
            if (call.api) call.api->current_work_stream(call.device.type, call.device.id, &stream);
            std::apply([&](auto... a) { cuda(Cuda{stream, call.device.id}, a...); }, args);
          } else {
            throw std::invalid_argument("arrays must be on the CPU or on a CUDA device");
          }
        } catch (const std::invalid_argument& error) {
          throw py::value_error(std::string(name) + ": " + error.what());
        }
      },
      declaration);
}

}  // namespace

PYBIND11_MODULE(RM_MODULE, m) {
#define RM_OP(name, ...)                                                      \
  bind(m, #name, #__VA_ARGS__, static_cast<void (*)(Cpu, __VA_ARGS__)>(name), \
       static_cast<void (*)(Cuda, __VA_ARGS__)>(name));
#include "ops.def"
#undef RM_OP
  m.attr("has_cuda") = bool(RM_CUDA);
  m.attr("emulated") = bool(RM_EMULATED);  // arrays on the CPU go to the CUDA kernels
  m.attr("cuda_archs") = RM_CUDA_ARCHS;
  m.attr("cuda_version") = RM_CUDA_VERSION;
}
