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

// Why no kernel computes such a network; null where one does.
inline const char* problem(int64_t inputs, int64_t hidden, int64_t layers, int64_t outputs,
                           int64_t parameters) {
  if (inputs < 1 || inputs > 256) return "x must have 1 to 256 columns";
  if (hidden < 16 || hidden > 128 || hidden % 16) return "hidden must be a multiple of 16 from 16 to 128";
  if (layers < 1 || layers > 4) return "layers must be 1, 2, 3 or 4";
  if (outputs < 1 || outputs > 128) return "y must have 1 to 128 columns";
  const Network net{int(inputs), int(hidden), int(layers), int(outputs)};
  return parameters == net.parameters() ? nullptr : "params has not as many numbers as the widths ask for";
}

// How many points in order share a row of the outputs' gradient, each with a share of its own; without shares
// every point has a row. 0 where that does not work out.
inline int64_t points_of_row(int64_t points, int64_t rows, bool shared) {
  if (!shared) return points == rows;
  return rows > 0 && points % rows == 0 ? points / rows : points == 0;
}

}  // namespace raymarch
