// Gradients of networks: hidden layers are computed again, tile by tile, and never leave the multiprocessor.
#include "cuda/mlp.cuh"
#include "ops.h"

namespace raymarch {
namespace {

constexpr int kBackwardWarps = 8;

// How the blocks of one matrix's gradient are dealt to the warps of a block: `units` blocks of 16 rows by 32
// columns. Where there are fewer than warps, several warps share a unit and split the points.
struct Deal {
  int units, warps;
  __host__ __device__ int groups() const { return units < warps ? warps / units : 1; }
  __host__ __device__ int rounds() const { return (units + warps - 1) / warps; }
  __device__ int unit(int round, int warp) const {
    return units < warps ? warp % units : round * warps + warp;
  }
  __device__ int group(int warp) const { return units < warps ? warp / units : 0; }
};

// The pieces of the gradient of the parameters, in the order in which backward meets them: the outputs by
// chunks of rows, the hidden matrices from the last, the inputs by chunks of columns.
struct Piece {
  int matrix, row, column, row_units, column_units;
  __host__ __device__ Deal deal(int warps) const { return {row_units * column_units, warps}; }
};

template <int H, int kChunk>
struct Pieces {
  static constexpr int kWide = (H + 31) / 32;
  Network net;

  __host__ __device__ int outputs() const { return (net.rows(net.layers) + kChunk - 1) / kChunk; }
  __host__ __device__ int inputs() const { return (net.columns(0) + kChunk - 1) / kChunk; }
  __host__ __device__ int count() const { return outputs() + net.layers - 1 + inputs(); }
  __host__ __device__ Piece operator[](int i) const {
    if (i < outputs()) {
      const int left = net.rows(net.layers) - i * kChunk;
      return {net.layers, i * kChunk, 0, (left < kChunk ? left : kChunk) / kGroup, kWide};
    }
    i -= outputs();
    if (i < net.layers - 1) return {net.layers - 1 - i, 0, 0, H / kGroup, kWide};
    const int at = (i - (net.layers - 1)) * kChunk, left = net.columns(0) - at;
    return {0, 0, at, H / kGroup, ((left < kChunk ? left : kChunk) + 31) / 32};
  }
  int slots(int warps) const {
    int sum = 0;
    for (int i = 0; i < count(); ++i) sum += (*this)[i].deal(warps).rounds();
    return sum;
  }
};

// Adds the product of two stashed arrays to the slots this warp has of a piece; moves on to the next slot.
template <int kStrideG, int kStrideH, bool kRound, int kSlots>
__device__ __forceinline__ void add_outer(const Piece& piece, int& slot, const float* g_at, const float* h_at,
                                          int points, float (&sums)[kSlots][4][4]) {
  const int warp = threadIdx.x / 32;
  const Deal deal = piece.deal(blockDim.x / 32);
  for (int round = 0; round < deal.rounds(); ++round, ++slot) {
    const int unit = deal.unit(round, warp), group = deal.group(warp);
    if (unit >= deal.units || group >= deal.groups()) continue;
    const int steps = points / 8, begin = steps * group / deal.groups() * 8;
    const int end = steps * (group + 1) / deal.groups() * 8;
    const float* g_unit = g_at + unit / piece.column_units * 16;
    const float* h_unit = h_at + unit % piece.column_units * 32;
#pragma unroll
    for (int s = 0; s < kSlots; ++s)
      if (s == slot) outer<kStrideG, kStrideH, kRound>(g_unit, h_unit, begin, end, sums[s]);
  }
}

// Writes this block's sums of its slots to its row of `partial`. `board` holds 512 floats per warp.
template <int H, int kChunk, int kSlots>
__device__ __forceinline__ void flush(const Pieces<H, kChunk>& pieces, int first_slot,
                                      const float (&sums)[kSlots][4][4], float* board, float* partial) {
  const int warps = blockDim.x / 32, warp = threadIdx.x / 32, g = lane() / 4, t = lane() % 4;
  const Network net = pieces.net;
  int slot = -first_slot;
  for (int i = 0; i < pieces.count(); ++i) {
    const Piece part = pieces[i];
    const Deal deal = part.deal(warps);
    for (int round = 0; round < deal.rounds(); ++round, ++slot) {
      if (slot < 0 || slot >= kSlots) continue;
      __syncthreads();
#pragma unroll
      for (int s = 0; s < kSlots; ++s)
        if (s == slot)
#pragma unroll
          for (int c = 0; c < 4; ++c)
            *reinterpret_cast<float4*>(board + 512 * warp + 32 * (2 * g + c / 2) + 8 * t + 4 * (c % 2)) = {
                sums[s][0][c], sums[s][1][c], sums[s][2][c], sums[s][3][c]};
      __syncthreads();
      const int left = deal.units - round * warps, units = left < warps ? left : warps;
      for (int e = threadIdx.x; e < 512 * units; e += blockDim.x) {
        const int unit = round * warps + e / 512;
        const int row = part.row + unit / part.column_units * 16 + e % 512 / 32;
        const int column = part.column + unit % part.column_units * 32 + e % 32;
        if (row >= net.rows(part.matrix) || column >= net.columns(part.matrix)) continue;
        float sum = 0.f;
        for (int group = 0; group < deal.groups(); ++group) sum += board[e + 512 * units * group];
        partial[net.offset(part.matrix) + row * net.columns(part.matrix) + column] = sum;
      }
    }
  }
}

// A chunk of columns of x for one warp's rows; rows past the end are zero, columns past the inputs `padding`.
template <int kRows, int kChunk>
__device__ __forceinline__ void fetch_chunk(float* aux, In<real, kPoints, kInputs> x, int64_t base,
                                            int column, float padding) {
  constexpr int kAux = kChunk + kApart;
  const int inputs = int(x.size[1]), wide = min(inputs - column, kChunk);
  const float* from = x.data + base * inputs + column;
  for (Walk walk(wide); walk.row < kRows; walk.next()) {
    const bool valid = base + walk.row < x.size[0];
    copy_async<4>(aux + walk.row * kAux + walk.column,
                  valid ? from + walk.row * inputs + walk.column : x.data, valid);
  }
  if (wide + lane() < round_up(wide, kGroup))
    for (int r = 0; r < kRows; ++r) aux[r * kAux + wide + lane()] = padding;
}

// A chunk of the gradient of the outputs before their activation; zero where there is nothing.
template <int kRows, int kChunk>
__device__ __forceinline__ void load_gradient(float* aux, int64_t activation,
                                              const Maybe<In<real, kPoints, kOutputs>>& y,
                                              In<real, kPoints, kOutputs> grad_y, int64_t base, int column) {
  constexpr int kAux = kChunk + kApart;
  const int outputs = int(grad_y.size[1]), wide = min(outputs - column, kChunk);
  const int rows = int(min(int64_t{kRows}, max(int64_t{0}, grad_y.size[0] - base)));
  const float* grads = grad_y.data + base * outputs + column;
  const float* outs = activation == kLinear ? grads : y.data + base * outputs + column;
  Walk walk(wide);
#pragma unroll 8
  for (int i = 0; i < (kRows * wide + 31) / 32; ++i, walk.next()) {
    const bool valid = walk.row < rows;
    const int at = walk.row * outputs + walk.column;
    const float grad = valid ? activate_vjp(activation, outs[at], grads[at]) : 0.f;
    if (walk.row < kRows) aux[walk.row * kAux + walk.column] = tf32(grad);
  }
  if (wide + lane() < round_up(wide, kGroup))
    for (int r = 0; r < kRows; ++r) aux[r * kAux + wide + lane()] = 0.f;
}

// A chunk of grad_x for one warp's rows, by way of shared memory so that whole rows are written at once.
template <int H, int kM, int kChunk, class Weights>
__device__ __forceinline__ void store_grad_x(const Tiles<H / 8, kM>& a, Weights first, float* aux,
                                             Out<real, kPoints, kInputs> grad_x, int64_t base, int column) {
  constexpr int kAux = kChunk + kApart;
  const int g = lane() / 4, t = lane() % 4, inputs = int(grad_x.size[1]);
  const int wide = min(inputs - column, kChunk);
#pragma unroll 1
  for (int group = 0; group < round_up(wide, kGroup) / kGroup; ++group) {
    Tiles<2, kM> sum;
    clear<2, kM>(sum);
#pragma unroll
    for (int k = 0; k < H / kGroup; ++k)
      backward_step<2, kM>(a[2 * k], a[2 * k + 1], first, column / kGroup + group, k, sum);
#pragma unroll
    for (int m = 0; m < kM; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        *reinterpret_cast<float4*>(aux + (16 * m + 8 * half + g) * kAux + kGroup * group + 4 * t) =
            quad(sum[0][m], sum[1][m], half);
  }
  __syncwarp();
  for (Walk walk(wide); walk.row < 16 * kM; walk.next())
    if (base + walk.row < grad_x.size[0])
      grad_x.data[(base + walk.row) * inputs + column + walk.column] = aux[walk.row * kAux + walk.column];
  __syncwarp();
}

// One block per 16 kM points of each of its warps at a time. Every warp recomputes the hidden layers of its
// points into `stash`, walks back through the layers, and leaves each layer's gradient where its activation
// was. Between block barriers all warps add up their share of the weights' gradient over all points of the
// block; it stays in registers, in kSlots pieces of
// 16 x 32 per warp from `first_slot` on, until the block has met its last points. Without `partial` only
// grad_x is made.
template <int H, int kM, int kChunk, int kSlots, bool kStaged, int kBlocks>
__global__ void __launch_bounds__(32 * kBackwardWarps, kBlocks)
    mlp_backward_kernel(Network net, In<real, kPoints, kInputs> x, In<real, kParams> params,
                        int64_t activation, float padding, Maybe<In<real, kPoints, kOutputs>> y,
                        In<real, kPoints, kOutputs> grad_y, Maybe<Out<real, kPoints, kInputs>> grad_x,
                        float* partial, int first_slot) {
  extern __shared__ __align__(16) float shared[];
  Matrices<H, kStaged> matrices{net, nullptr};
  matrices.open(shared, params.data);
  constexpr int kRows = 16 * kM, kStash = H + kApart, kAux = kChunk + kApart, kGroups = kChunk / kGroup;
  const Pieces<H, kChunk> pieces{net};
  const int warp = threadIdx.x / 32, points = kRows * (blockDim.x / 32), last = net.layers;
  float* stash = shared + matrices.floats();    // [layers][points][kStash]
  float* aux = stash + last * points * kStash;  // [points][kAux]
  float* my_stash = stash + warp * kRows * kStash;
  float* my_aux = aux + warp * kRows * kAux;
  float sums[kSlots][4][4] = {};
  __syncthreads();

  const auto meet = [&] { partial ? __syncthreads() : __syncwarp(); };
  int64_t base = int64_t{blockIdx.x} * points + warp * kRows;
  fetch_chunk<kRows, kChunk>(my_aux, x, base, 0, padding);
  for (; base - warp * kRows < x.size[0]; base += int64_t{gridDim.x} * points) {
    Tiles<H / 8, kM> sum, a;
    const int64_t outputs = grad_y.size[1], there = min(int64_t{kRows}, x.size[0] - base);
    prefetch(grad_y.data + base * outputs, there * outputs);
    if (activation != kLinear) prefetch(y.data + base * outputs, there * outputs);

    clear<H / 8, kM>(sum);
#pragma unroll 1
    for (int chunk = 0; chunk < pieces.inputs(); ++chunk) {
      if (chunk > 0) fetch_chunk<kRows, kChunk>(my_aux, x, base, chunk * kChunk, padding);
      wait_for_copies();
      __syncwarp();
#pragma unroll 1
      for (int k = 0; k < kGroups && chunk * kChunk + k * kGroup < net.columns(0); ++k) {
        float even[kM][4], odd[kM][4];
        load_group<kM>(my_aux + kGroup * k, kAux, even, odd);
        forward_step<H / 8, kM>(even, odd, matrices.first(), 0, chunk * kGroups + k, sum);
      }
      __syncwarp();
    }
    activate_hidden<H / 8, kM>(sum, a, my_stash);
#pragma unroll 1
    for (int m = 1; m < last; ++m) {
      hidden_forward<H, kM>(a, matrices.hidden(m), sum);
      activate_hidden<H / 8, kM>(sum, a, my_stash + m * points * kStash);
    }

    int done = 0, slot = -first_slot;
    clear<H / 8, kM>(sum);
#pragma unroll 1
    for (int chunk = 0; chunk < pieces.outputs(); ++chunk) {
      load_gradient<kRows, kChunk>(my_aux, activation, y, grad_y, base, chunk * kChunk);
      meet();
#pragma unroll 1
      for (int k = 0; k < kGroups && chunk * kChunk + k * kGroup < net.rows(last); ++k) {
        float even[kM][4], odd[kM][4];
        load_group<kM>(my_aux + kGroup * k, kAux, even, odd);
        backward_step<H / 8, kM>(even, odd, matrices.last(), 0, chunk * kGroups + k, sum);
      }
      if (partial)
        add_outer<kAux, kStash, false>(pieces[done++], slot, aux, stash + (last - 1) * points * kStash,
                                       points, sums);
      meet();
    }
    if (partial) fetch_chunk<kRows, kChunk>(my_aux, x, base, 0, padding);
    activate_hidden_vjp<H / 8, kM>(sum, a, my_stash + (last - 1) * points * kStash);
#pragma unroll 1
    for (int m = last - 1; m > 0; --m) {
      meet();
      if (partial)
        add_outer<kStash, kStash, false>(pieces[done++], slot, stash + m * points * kStash,
                                         stash + (m - 1) * points * kStash, points, sums);
      hidden_backward<H, kM>(a, matrices.hidden(m), sum);
      meet();
      activate_hidden_vjp<H / 8, kM>(sum, a, my_stash + (m - 1) * points * kStash);
    }
#pragma unroll 1
    for (int chunk = 0; chunk < pieces.inputs(); ++chunk) {
      if (partial) {
        if (chunk > 0) fetch_chunk<kRows, kChunk>(my_aux, x, base, chunk * kChunk, padding);
        wait_for_copies();
        __syncthreads();
        add_outer<kStash, kAux, true>(pieces[done++], slot, stash, aux, points, sums);
        __syncthreads();
      }
      if (grad_x) store_grad_x<H, kM, kChunk>(a, matrices.first(), my_aux, grad_x, base, chunk * kChunk);
    }
    const int64_t next = base + int64_t{gridDim.x} * points;
    if (next - warp * kRows < x.size[0]) fetch_chunk<kRows, kChunk>(my_aux, x, next, 0, padding);
  }
  if (partial) flush(pieces, first_slot, sums, stash, partial + blockIdx.x * int64_t{net.parameters()});
}

// Sums the blocks' rows, always in the same order: eight warps take every eighth row of 32 parameters.
__global__ void __launch_bounds__(256)
    mlp_add_up_kernel(const float* partial, int rows, Out<real, kParams> grad_params) {
  __shared__ float board[8][32];
  const int warp = threadIdx.x / 32;
  const int64_t n = grad_params.size[0], i = blockIdx.x * int64_t{32} + lane();
  float sum = 0.f;
  if (i < n)
#pragma unroll 4
    for (int row = warp; row < rows; row += 8) sum += partial[row * n + i];
  board[warp][lane()] = sum;
  __syncthreads();
  if (warp > 0 || i >= n) return;
#pragma unroll
  for (int other = 1; other < 8; ++other) sum += board[other][lane()];
  grad_params.data[i] = sum;
}

// Starts one kernel if the device's shared memory holds it with at least `least` warps per block.
template <int H, int kM, int kChunk, int kSlots, bool kStaged, int kBlocks>
bool backward_with(int least, Cuda q, Network net, In<real, kPoints, kInputs> x, In<real, kParams> params,
                   int64_t activation, double padding, Maybe<In<real, kPoints, kOutputs>> y,
                   In<real, kPoints, kOutputs> grad_y, Maybe<Out<real, kPoints, kInputs>> grad_x,
                   Maybe<Out<real, kParams>> grad_params, Maybe<Out<real, kEntries, kParams>> partial) {
  const int weights = Matrices<H, kStaged>{net, nullptr}.floats();
  const int stash = 16 * kM * (net.layers * (H + kApart) + kChunk + kApart);
  const int warps = std::min(kBackwardWarps, (most_shared(q) - weights) / stash);
  if (warps < least) return false;
  unsigned grid = std::min(blocks(x.size[0], 16 * kM * warps), unsigned(kBlocks * multiprocessors(q)));
  int slots = 1;
  if (grad_params) {
    grid = std::min(grid, unsigned(partial.size[0]));
    slots = Pieces<H, kChunk>{net}.slots(warps);
  }
  for (int first_slot = 0; first_slot < slots; first_slot += kSlots) {
    if (first_slot > 0) grad_x.data = nullptr;  // done by the first pass
    launch_shared("mlp_backward", mlp_backward_kernel<H, kM, kChunk, kSlots, kStaged, kBlocks>, grid,
                  32 * warps, 4 * (weights + warps * stash), q, net, x, params, activation, float(padding), y,
                  grad_y, grad_x, grad_params ? partial.data : nullptr, first_slot);
  }
  if (grad_params)
    launch("mlp_backward", mlp_add_up_kernel, blocks(net.parameters(), 32), 256, q,
           static_cast<const float*>(partial.data), int(grid), static_cast<Out<real, kParams>>(grad_params));
  return true;
}

}  // namespace

void mlp_backward(Cuda q, In<real, kPoints, kInputs> x, In<real, kParams> params, int64_t hidden,
                  int64_t layers, int64_t activation, double padding, Maybe<In<real, kPoints, kOutputs>> y,
                  In<real, kPoints, kOutputs> grad_y, Maybe<Out<real, kPoints, kInputs>> grad_x,
                  Maybe<Out<real, kParams>> grad_params, Maybe<Out<real, kEntries, kParams>> partial) {
  const Network net = network(x, params, hidden, layers, grad_y.size[1]);
  require(y || activation == kLinear, "needs y, as the output has an activation");
  require(partial || !grad_params, "needs partial for the gradient of params");
  if (x.size[0] == 0 && grad_params) zero("mlp_backward", grad_params.data, 4 * net.parameters(), q);
  if (x.size[0] == 0) return;
  const auto start = [&](auto with, int least) {
    return with(least, q, net, x, params, activation, padding, y, grad_y, grad_x, grad_params, partial);
  };
  const bool wide = net.columns(0) > 32 || net.rows(net.layers) > 32;
  if (hidden <= 16 && start(backward_with<16, 2, 32, 2, true, 2>, 1)) return;
  if (hidden <= 32 && start(backward_with<32, 2, 32, 4, true, 1>, 1)) return;
  if (hidden <= 64 && wide && start(backward_with<64, 2, 64, 4, true, 1>, kBackwardWarps)) return;
  if (hidden <= 64 && start(backward_with<64, 2, 32, 4, true, 1>, 4)) return;
  if (start(backward_with<128, 1, 32, 2, true, 1>, 4)) return;
  require(start(backward_with<128, 1, 32, 2, false, 1>, 1), "needs more shared memory than the device has");
}

}  // namespace raymarch
