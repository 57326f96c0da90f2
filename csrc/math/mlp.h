// How the parameters of a network without biases lie in one flat vector.
//
// Matrix 0 reads the inputs, matrices 1 .. layers - 1 lie between hidden layers, matrix `layers` makes the
// outputs. Each is row-major [rows, columns] = [out, in]. Widths of inputs and outputs are rounded up to 16:
// the added columns multiply a constant, the added rows make outputs that nobody reads.
#pragma once
#include "math/scalar.h"

namespace raymarch {

RM_HD int round_up(int n, int to) { return (n + to - 1) / to * to; }

struct Network {
  int inputs, hidden, layers, outputs;

  RM_HD int columns(int matrix) const { return matrix == 0 ? round_up(inputs, 16) : hidden; }
  RM_HD int rows(int matrix) const { return matrix == layers ? round_up(outputs, 16) : hidden; }
  RM_HD int offset(int matrix) const {
    return matrix == 0 ? 0 : hidden * (columns(0) + (matrix - 1) * hidden);
  }
  RM_HD int parameters() const { return offset(layers) + rows(layers) * columns(layers); }
};

}  // namespace raymarch
