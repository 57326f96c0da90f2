#include "math/mlp.h"

#include <vector>

#include "cpu/gemm.h"
#include "cpu/parallel.h"
#include "math/activation.h"
#include "ops.h"

namespace raymarch {
namespace {

constexpr int kTile = 64;            // points that go through all layers together, in cache
constexpr int64_t kFewestTiles = 8;  // per chunk: a chunk clears and adds up one copy of the parameters
constexpr int64_t kMostChunks = 128;

// Chunks depend on the number of points alone, never on threads: sums over them repeat bit for bit.
struct Chunks {
  int64_t points, step, count;
  explicit Chunks(int64_t points) : points(points) {
    const int64_t tiles = (points + kTile - 1) / kTile;
    step = kTile * std::max(kFewestTiles, (tiles + kMostChunks - 1) / kMostChunks);
    count = (points + step - 1) / step;
  }
};

Network network(Payload<kPoints, kInputs> x, In<real, kParams> params, int64_t hidden, int64_t layers,
                int64_t outputs) {
  const char* why = problem(x.size[1], hidden, layers, outputs, params.size[0]);
  require(!why, why);
  return {int(x.size[1]), int(hidden), int(layers), int(outputs)};
}

std::vector<real> transposed(const Network& net, const real* params) {
  std::vector<real> t(net.parameters());
  for (int m = 0; m <= net.layers; ++m) {
    const int rows = net.rows(m), columns = net.columns(m), at = net.offset(m);
    for (int r = 0; r < rows; ++r)
      for (int c = 0; c < columns; ++c) t[at + c * rows + r] = params[at + r * columns + c];
  }
  return t;
}

// The activations of one tile, [point, unit] each.
struct Tile {
  const Network& net;
  int rows = 0;  // points, rounded up to 16
  std::vector<real> x, h[4], y, gradient[2];

  explicit Tile(const Network& net) : net(net), x(kTile * net.columns(0)), y(kTile * net.rows(net.layers)) {
    for (int l = 0; l < net.layers; ++l) h[l].resize(kTile * net.hidden);
  }

  void load(Payload<kPoints, kInputs> all, int64_t first, int points, real padding) {
    const int columns = net.columns(0), wide = net.inputs;
    rows = round_up(points, 16);
    std::fill(x.begin(), x.end(), padding);
    with_dtype(all, [&](auto view) {
      const auto* from = view.data + first * wide;
      for (int p = 0; p < points; ++p)
        for (int c = 0; c < wide; ++c) x[p * columns + c] = to_float(from[p * wide + c]);
    });
  }

  void layer(int matrix, const real* weights_transposed, real* out, bool relu) {
    const real* in = matrix == 0 ? x.data() : h[matrix - 1].data();
    const int columns = net.columns(matrix), out_columns = net.rows(matrix);
    multiply({rows, out_columns, columns, in, columns, 1, weights_transposed + net.offset(matrix),
              out_columns, out, out_columns, false, relu});
  }

  void hidden_layers(const real* weights_transposed) {
    for (int l = 0; l < net.layers; ++l) layer(l, weights_transposed, h[l].data(), true);
  }

  // grad [rows of the matrix] over the tile's points -> gradients of the matrix and of what it read.
  void layer_vjp(int matrix, const real* params, const real* grad, real* grad_in, real* grad_params) {
    const real* in = matrix == 0 ? x.data() : h[matrix - 1].data();
    const int columns = net.columns(matrix), wide = net.rows(matrix), at = net.offset(matrix);
    if (grad_params)
      multiply({wide, columns, rows, grad, 1, wide, in, columns, grad_params + at, columns, true});
    if (grad_in)
      multiply({rows, columns, matrix == net.layers ? net.outputs : wide, grad, wide, 1, params + at, columns,
                grad_in, columns, false, false, matrix == 0 ? nullptr : in});
  }
};

// From the gradient of the outputs in tile.y to grad_x (`points` rows of its `wide` first columns, or null)
// and grad_params (or null).
void backward(Tile& tile, const real* params, int points, real* grad_x, int64_t wide, real* grad_params) {
  const Network& net = tile.net;
  const real* grad = tile.y.data();
  for (int m = net.layers; m > 0; --m) {
    real* next = tile.gradient[m % 2].data();
    tile.layer_vjp(m, params, grad, next, grad_params);
    grad = next;
  }
  real* last = tile.gradient[0].data();  // matrix 1 wrote gradient[1]
  tile.layer_vjp(0, params, grad, grad_x ? last : nullptr, grad_params);
  if (grad_x)
    for (int p = 0; p < points; ++p) std::copy_n(last + p * net.columns(0), wide, grad_x + p * wide);
}

void add_up(const std::vector<real>& partial, int64_t copies, Out<real, kParams> total) {
  const int64_t n = total.size[0];
  parallel_for(n, copies, [&](int64_t i) {
    real sum = 0;
    for (int64_t c = 0; c < copies; ++c) sum += partial[c * n + i];
    total.data[i] = sum;
  });
}

}  // namespace

void mlp_forward(Cpu, Payload<kPoints, kInputs> x, In<real, kParams> params, int64_t hidden, int64_t layers,
                 int64_t activation, double padding, Out<real, kPoints, kOutputs> y) {
  const Network net = network(x, params, hidden, layers, y.size[1]);
  const std::vector<real> weights = transposed(net, params.data);
  const Chunks chunks(x.size[0]);
  run_chunks(chunks.count, [&](int64_t chunk) {
    Tile tile(net);
    const int64_t end = std::min(chunks.points, (chunk + 1) * chunks.step);
    for (int64_t at = chunk * chunks.step; at < end; at += kTile) {
      const int points = int(std::min<int64_t>(kTile, end - at));
      tile.load(x, at, points, real(padding));
      tile.hidden_layers(weights.data());
      tile.layer(net.layers, weights.data(), tile.y.data(), false);
      for (int p = 0; p < points; ++p)
        for (int o = 0; o < net.outputs; ++o)
          y.data[(at + p) * net.outputs + o] = activate(activation, tile.y[p * net.rows(net.layers) + o]);
    }
  });
}

void mlp_backward(Cpu, Payload<kPoints, kInputs> x, In<real, kParams> params, int64_t hidden, int64_t layers,
                  int64_t activation, double padding, Maybe<In<real, kPoints, kOutputs>> y,
                  In<real, kRays, kOutputs> grad_y, Maybe<In<real, kPoints>> share,
                  Maybe<Out<real, kPoints, kChannels>> grad_x, Maybe<Out<real, kParams>> grad_params,
                  Maybe<Out<real, kEntries, kParams>>) {
  const Network net = network(x, params, hidden, layers, grad_y.size[1]);
  const int64_t each = points_of_row(x.size[0], grad_y.size[0], bool(share));
  require(each > 0, "grad_y must have a row per point, or with share one per so many points");
  require(y || activation == kLinear, "needs y, as the output has an activation");
  require(!grad_x || grad_x.size[1] <= x.size[1], "grad_x has more columns than x");
  const std::vector<real> weights = transposed(net, params.data);
  const Chunks chunks(x.size[0]);
  std::vector<real> partial(grad_params ? chunks.count * net.parameters() : 0);
  run_chunks(chunks.count, [&](int64_t chunk) {
    Tile tile(net);
    for (auto& g : tile.gradient) g.resize(kTile * std::max(net.columns(0), net.hidden));
    const int64_t end = std::min(chunks.points, (chunk + 1) * chunks.step);
    for (int64_t at = chunk * chunks.step; at < end; at += kTile) {
      const int points = int(std::min<int64_t>(kTile, end - at));
      tile.load(x, at, points, real(padding));
      tile.hidden_layers(weights.data());
      std::fill(tile.y.begin(), tile.y.end(), real(0));
      for (int p = 0; p < points; ++p)
        for (int o = 0; o < net.outputs; ++o) {
          const int64_t i = (at + p) * net.outputs + o;
          const real g =
              share ? share.data[at + p] * grad_y.data[(at + p) / each * net.outputs + o] : grad_y.data[i];
          tile.y[p * net.rows(net.layers) + o] = activate_vjp(activation, y ? y.data[i] : 0, g);
        }
      backward(tile, params.data, points, grad_x ? grad_x.data + at * grad_x.size[1] : nullptr,
               grad_x.size[1], grad_params ? &partial[chunk * net.parameters()] : nullptr);
    }
  });
  if (grad_params) add_up(partial, chunks.count, grad_params);
}

void density_forward(Cpu, In<real, kPoints, kChannels> h, In<real, kPoints, 3> y, double scale,
                     Out<real, kPoints> sigma) {
  const int64_t channels = h.size[1];
  require(channels > 0, "h has no columns");
  parallel_for(h.size[0], 16, [&](int64_t i) {
    sigma.data[i] = density(h.data[i * channels], load3(y.data, i), real(scale));
  });
}

void density_backward(Cpu, In<real, kPoints, kChannels> h, In<real, kPoints, 3> y, double scale,
                      In<real, kPoints> grad_sigma, Out<real, kPoints, kChannels> grad_h) {
  const int64_t channels = h.size[1];
  require(channels > 0, "h has no columns");
  parallel_for(h.size[0], 16 + channels, [&](int64_t i) {
    std::fill_n(grad_h.data + i * channels, channels, real(0));
    grad_h.data[i * channels] =
        density_vjp(h.data[i * channels], load3(y.data, i), real(scale), grad_sigma.data[i]);
  });
}

}  // namespace raymarch
