// Where a pixel lies: which image, which place in it, which cell of that image's feature map.
#pragma once
#include "math/scalar.h"

namespace raymarch {

// The last of `count` starts that is not beyond `index`: the image a pixel number belongs to.
RM_HD int64_t owner(const int64_t* starts, int64_t count, int64_t index) {
  int64_t low = 0, high = count - 1;
  while (low < high) {
    const int64_t middle = (low + high + 1) / 2;
    if (starts[middle] <= index)
      low = middle;
    else
      high = middle - 1;
  }
  return low;
}

// The cell that holds a place counted in cells; the first or last where the place is outside, or not a
// number.
RM_HD int64_t bounded_cell(float place, int64_t map) {
  return place >= float(map - 1) ? map - 1 : place > 0 ? int64_t(place) : 0;
}

// The cell under a pixel centre as F3RM finds it: trunc(pixel * map / image), pixel counted from 0.
RM_HD int64_t nearest_cell(float centre, int64_t image, int64_t map) {
  return bounded_cell(std::floor(centre) * (float(map) / float(image)), map);
}

// The two cells around a pixel centre and the share of the second, cell centres lying at + 1/2.
struct Cells {
  int64_t first, second;
  float share;
};
RM_HD Cells cells_around(float centre, int64_t image, int64_t map) {
  const float place = centre * (float(map) / float(image)) - 0.5f, low = std::floor(place);
  return {bounded_cell(low, map), bounded_cell(low + 1, map), place - low};
}

}  // namespace raymarch
