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

// The cell under a pixel centre as F3RM finds it: trunc(pixel * map / image), pixel counted from 0.
RM_HD int64_t nearest_cell(float centre, int64_t image, int64_t map) {
  const int64_t cell = int64_t(std::floor(centre) * (float(map) / float(image)));
  return cell < map - 1 ? cell : map - 1;
}

// The two cells around a pixel centre and the share of the second, cell centres lying at + 1/2.
struct Cells {
  int64_t first, second;
  float share;
};
RM_HD Cells cells_around(float centre, int64_t image, int64_t map) {
  const float place = centre * (float(map) / float(image)) - 0.5f;
  const float low = std::floor(place), most = float(map - 1);
  const float first = low < 0 ? 0 : low > most ? most : low, next = low + 1;
  const float second = next < 0 ? 0 : next > most ? most : next;
  return {int64_t(first), int64_t(second), place - low};
}

}  // namespace raymarch
