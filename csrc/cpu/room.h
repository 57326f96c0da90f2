// Arrays between the loops of a fused stage, and the same numbers under other names of dimensions.
#pragma once
#include <algorithm>
#include <vector>

#include "array.h"

namespace raymarch {

// An array of this call alone; even an empty one is somewhere.
template <class T, int... Dims>
struct Room {
  std::vector<T> numbers;
  View<T, Dims...> view;
  template <class... Sizes>
  explicit Room(Sizes... sizes) : numbers(size_t(std::max<int64_t>(1, (int64_t{1} * ... * sizes)))) {
    view = {numbers.data(), {int64_t(sizes)...}};
  }
  operator In<T, Dims...>() const { return as<In<T, Dims...>>(); }
  operator Out<T, Dims...>() { return view; }
  Maybe<In<T, Dims...>> maybe() const { return {as<In<T, Dims...>>()}; }

 private:
  template <class V>
  V as() const {
    V other;
    other.data = view.data;
    std::copy_n(view.size, sizeof...(Dims), other.size);
    return other;
  }
};

// The same numbers under other names of dimensions.
template <class V, class T, int... Dims, class... Sizes>
V seen_as(const View<T, Dims...>& view, Sizes... sizes) {
  V other;
  other.data = view.data;
  const int64_t size[] = {int64_t(sizes)...};
  std::copy_n(size, sizeof...(Sizes), other.size);
  return other;
}

template <class T, int... Dims>
In<T, Dims...> constant(const View<T, Dims...>& view) {
  In<T, Dims...> other;
  other.data = view.data;
  std::copy_n(view.size, sizeof...(Dims), other.size);
  return other;
}

}  // namespace raymarch
