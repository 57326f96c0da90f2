// Where a pixel lies: which image, which place in it, which cell of that image's feature map.
#pragma once
#include "math/scalar.h"

namespace raymarch {

enum Lookup : int64_t { kNearestBelow, kBilinear, kLookups };

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

// `place` held within [0, most]; what is no number counts as 0.
RM_HD float within(float place, int64_t most) {
  return !(place > 0) ? 0 : place < float(most) ? place : float(most);
}

// The cell under a pixel centre as F3RM finds it: trunc(pixel * map / image), pixels counted from 0. Whole
// numbers, so that a pixel on the border of two cells does not depend on how map / image rounds.
RM_HD int64_t nearest_cell(float centre, int64_t image, int64_t map) {
  return int64_t(within(centre, image - 1)) * map / image;
}

// The two cells around a pixel centre and the share of the second. Cell centres lie at + 1/2; beyond the
// outermost the map is constant.
struct Cells {
  int64_t first, second;
  float share;
};
RM_HD Cells cells_around(float centre, int64_t image, int64_t map) {
  const float place = within(centre * (float(map) / float(image)) - 0.5f, map - 1);
  const int64_t first = int64_t(place), second = first + 1 < map ? first + 1 : first;
  return {first, second, place - float(first)};
}

RM_HD float blend(float a, float b, float share) { return a + share * (b - a); }

}  // namespace raymarch
