// Networks on tensor cores. A warp takes 16 kM points through every layer with its activations in registers;
// weights wait in shared memory, copied once per block. Blocks stay and walk over the points.
#include "math/mlp.h"

#include "cuda/tile.cuh"
#include "math/activation.h"
#include "ops.h"

namespace raymarch {
namespace {

constexpr int kGroup = 16;  // units that two tiles share
constexpr int kBackwardWarps = 8;
constexpr int kApart = 8;   // rows of a stash lie this much more than a multiple of 16 apart: see outer()

// The matrices of one network, `H` units where the network has at most as many.
template <int H, bool kStaged>
struct Matrices {
  Network net;
  const float* data;

  __host__ __device__ int offset(int m) const {  // columns are padded to 32, rows to H where they are units
    return m == 0 ? 0 : H * (round_up(net.columns(0), 32) + (m - 1) * round_up(H, 32));
  }
  __host__ __device__ int floats() const {
    return kStaged ? offset(net.layers) + net.rows(net.layers) * round_up(H, 32) : 0;
  }

  __device__ __forceinline__ auto first() const { return at(0, H); }
  __device__ __forceinline__ auto hidden(int m) const { return at(m, H); }
  __device__ __forceinline__ auto last() const { return at(net.layers, net.rows(net.layers)); }

  // Points `data` at the staged copy, or at the parameters themselves.
  __device__ __forceinline__ void open(float* shared, const float* params) {
    data = kStaged ? shared : params;
    if constexpr (kStaged)
      for (int m = 0; m <= net.layers; ++m)
        stage(shared + offset(m), m < net.layers ? H : net.rows(m), params + net.offset(m), net.rows(m),
              net.columns(m));
  }

 private:
  __device__ __forceinline__ auto at(int m, int padded_rows) const {
    if constexpr (kStaged)
      return Staged{data + offset(m), padded_rows};
    else
      return Unstaged{data + net.offset(m), net.rows(m), net.columns(m)};
  }
};

// Operand a for one group of 16 columns, from rows of shared memory `stride` apart.
template <int kM>
__device__ __forceinline__ void load_group(const float* from, int stride, float (&even)[kM][4],
                                           float (&odd)[kM][4]) {
  const int g = lane() / 4, t = lane() % 4;
#pragma unroll
  for (int m = 0; m < kM; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float4 v = *reinterpret_cast<const float4*>(from + (16 * m + 8 * half + g) * stride + 4 * t);
      set_quad(even[m], odd[m], half, {tf32(v.x), tf32(v.y), tf32(v.z), tf32(v.w)});
    }
}

// a = relu(sum), and a copy to `stash` where there is one.
template <int kTiles, int kM>
__device__ __forceinline__ void activate_hidden(const Tiles<kTiles, kM>& sum, Tiles<kTiles, kM>& a,
                                                float* stash) {
  const int g = lane() / 4, t = lane() % 4;
#pragma unroll
  for (int j = 0; j < kTiles; j += 2)
#pragma unroll
    for (int m = 0; m < kM; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float4 v = quad(sum[j][m], sum[j + 1][m], half);
        v = {tf32(relu(v.x)), tf32(relu(v.y)), tf32(relu(v.z)), tf32(relu(v.w))};
        set_quad(a[j][m], a[j + 1][m], half, v);
        const int row = 16 * m + 8 * half + g;
        if (stash) *reinterpret_cast<float4*>(stash + row * (8 * kTiles + kApart) + 8 * j + 4 * t) = v;
      }
}

// a = sum where the stashed activation is positive; the stash then holds a instead.
template <int kTiles, int kM>
__device__ __forceinline__ void activate_hidden_vjp(const Tiles<kTiles, kM>& sum, Tiles<kTiles, kM>& a,
                                                    float* stash) {
  const int g = lane() / 4, t = lane() % 4;
#pragma unroll
  for (int j = 0; j < kTiles; j += 2)
#pragma unroll
    for (int m = 0; m < kM; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = 16 * m + 8 * half + g;
        float4* at = reinterpret_cast<float4*>(stash + row * (8 * kTiles + kApart) + 8 * j + 4 * t);
        const float4 h = *at, v = quad(sum[j][m], sum[j + 1][m], half);
        const float4 grad = {tf32(relu_vjp(h.x, v.x)), tf32(relu_vjp(h.y, v.y)), tf32(relu_vjp(h.z, v.z)),
                             tf32(relu_vjp(h.w, v.w))};
        set_quad(a[j][m], a[j + 1][m], half, grad);
        *at = grad;
      }
}

template <int H, int kM, class Weights>
__device__ __forceinline__ void hidden_forward(const Tiles<H / 8, kM>& a, Weights w,
                                               Tiles<H / 8, kM>& sum) {
  clear<H / 8, kM>(sum);
#pragma unroll
  for (int k = 0; k < H / kGroup; ++k) forward_step<H / 8, kM>(a[2 * k], a[2 * k + 1], w, 0, k, sum);
}

template <int H, int kM, class Weights>
__device__ __forceinline__ void hidden_backward(const Tiles<H / 8, kM>& a, Weights w,
                                                Tiles<H / 8, kM>& sum) {
  clear<H / 8, kM>(sum);
#pragma unroll
  for (int k = 0; k < H / kGroup; ++k) backward_step<H / 8, kM>(a[2 * k], a[2 * k + 1], w, 0, k, sum);
}

// ---- forward ----

// Rows of x in shared memory: 16 more than a multiple of 32, so that eight lanes read eight different banks.
__host__ __device__ inline int row_stride(const Network& net) {
  const int columns = net.columns(0);
  return columns % 32 == 16 ? columns : columns + 16;
}

// The rows of x that a warp takes next; they are one contiguous run.
__device__ __forceinline__ void fetch_rows(float* to, int stride, const float* from, int rows, Walk walk,
                                           int width) {
  for (from += lane() * width; walk.row < rows; walk.next(), from += 32 * width) {
    float* at = to + walk.row * stride + walk.column * width;
    if (width == 4)
      copy_async<16>(at, from);
    else
      copy_async<4>(at, from);
  }
}

// One group of outputs of kM x 16 points, from row `base` on.
template <int kM>
__device__ __forceinline__ void store_outputs(const Tiles<2, kM>& sum, int64_t activation, int group,
                                              int64_t base, Out<real, kPoints, kOutputs> y, bool by_four) {
  const int first = kGroup * group + 4 * (lane() % 4), outputs = int(y.size[1]);
#pragma unroll
  for (int m = 0; m < kM; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t row = base + 16 * m + 8 * half + lane() / 4;
      if (row >= y.size[0] || first >= outputs) continue;
      float4 v = quad(sum[0][m], sum[1][m], half);
      v = {activate(activation, v.x), activate(activation, v.y), activate(activation, v.z),
           activate(activation, v.w)};
      float* at = y.data + row * outputs + first;
      if (by_four) {
        *reinterpret_cast<float4*>(at) = v;
        continue;
      }
      at[0] = v.x;
      if (first + 1 < outputs) at[1] = v.y;
      if (first + 2 < outputs) at[2] = v.z;
      if (first + 3 < outputs) at[3] = v.w;
    }
}

__host__ __device__ inline bool by_four(const void* data, int64_t columns) {
  return columns % 4 == 0 && reinterpret_cast<uintptr_t>(data) % 16 == 0;
}

// One warp per 16 kM points at a time; the next rows of x are on their way while the later layers run.
template <int H, int kM, bool kStaged, int kWarps, int kBlocks>
__global__ void __launch_bounds__(32 * kWarps, kBlocks)
    mlp_forward_kernel(Network net, In<real, kPoints, kInputs> x, In<real, kParams> params,
                       int64_t activation, float padding, Out<real, kPoints, kOutputs> y) {
  extern __shared__ __align__(16) float shared[];
  Matrices<H, kStaged> matrices{net, nullptr};
  matrices.open(shared, params.data);
  constexpr int kRows = 16 * kM;
  const int warps = blockDim.x / 32, me = threadIdx.x / 32, stride = row_stride(net);
  float* rows = shared + matrices.floats() + me * kRows * stride;
  for (int r = 0; r < kRows; ++r)
    for (int c = net.inputs + lane(); c < net.columns(0); c += 32) rows[r * stride + c] = padding;
  __syncthreads();

  const int64_t points = x.size[0], step = int64_t{gridDim.x} * warps * kRows;
  const int width = by_four(x.data, net.inputs) ? 4 : 1;
  const Walk walk(net.inputs / width);
  const auto fetch = [&](int64_t base) {
    const int count = int(points - base < kRows ? points - base : kRows);
    if (count > 0) fetch_rows(rows, stride, x.data + base * net.inputs, count, walk, width);
  };
  int64_t base = (int64_t{blockIdx.x} * warps + me) * kRows;
  for (fetch(base); base < points; base += step) {
    Tiles<H / 8, kM> sum, a;
    clear<H / 8, kM>(sum);
    wait_for_copies();
    __syncwarp();
#pragma unroll 1
    for (int k = 0; k < net.columns(0) / kGroup; ++k) {
      float even[kM][4], odd[kM][4];
      load_group<kM>(rows + kGroup * k, stride, even, odd);
      forward_step<H / 8, kM>(even, odd, matrices.first(), 0, k, sum);
    }
    __syncwarp();
    fetch(base + step);

    activate_hidden<H / 8, kM>(sum, a, nullptr);
#pragma unroll 1
    for (int m = 1; m < net.layers; ++m) {
      hidden_forward<H, kM>(a, matrices.hidden(m), sum);
      activate_hidden<H / 8, kM>(sum, a, nullptr);
    }
#pragma unroll 1
    for (int group = 0; group < net.rows(net.layers) / kGroup; ++group) {
      Tiles<2, kM> out;
      clear<2, kM>(out);
#pragma unroll
      for (int k = 0; k < H / kGroup; ++k)
        forward_step<2, kM>(a[2 * k], a[2 * k + 1], matrices.last(), group, k, out);
      store_outputs<kM>(out, activation, group, base, y, by_four(y.data, y.size[1]));
    }
  }
}

// ---- backward ----

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
__device__ __forceinline__ void flush(const Pieces<H, kChunk>& pieces, int first_slot, const float (&sums)[kSlots][4][4],
                                      float* board, float* partial) {
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
__device__ __forceinline__ void fetch_chunk(float* aux, In<real, kPoints, kInputs> x, int64_t base, int column,
                                            float padding) {
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
// 16 x 32 per warp from `first_slot` on, until the block has met its last points. Without `partial` only grad_x
// is made.
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
  float* stash = shared + matrices.floats();  // [layers][points][kStash]
  float* aux = stash + last * points * kStash;  // [points][kAux]
  float* my_stash = stash + warp * kRows * kStash;
  float* my_aux = aux + warp * kRows * kAux;
  float sums[kSlots][4][4] = {};
  __syncthreads();

  const auto meet = [&] { partial ? __syncthreads() : __syncwarp(); };
  fetch_chunk<kRows, kChunk>(my_aux, x, int64_t{blockIdx.x} * points + warp * kRows, 0, padding);
  for (int64_t tile = blockIdx.x; tile * points < x.size[0]; tile += gridDim.x) {
    Tiles<H / 8, kM> sum, a;
    const int64_t base = tile * points + warp * kRows;
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
        add_outer<kAux, kStash, false>(pieces[done++], slot, aux, stash + (last - 1) * points * kStash, points,
                                       sums);
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
      if (grad_x)
        store_grad_x<H, kM, kChunk>(a, matrices.first(), my_aux, grad_x, base, chunk * kChunk);
    }
    const int64_t next = tile + gridDim.x;
    if (next * points < x.size[0])
      fetch_chunk<kRows, kChunk>(my_aux, x, next * points + warp * kRows, 0, padding);
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

// ---- which kernel, and how large its blocks ----

Network network(In<real, kPoints, kInputs> x, In<real, kParams> params, int64_t hidden, int64_t layers,
                int64_t outputs) {
  require(hidden >= 16 && hidden <= 128 && hidden % 16 == 0, "hidden must be 16, 32, .. 128");
  require(layers >= 1 && layers <= 4, "layers must be 1, 2, 3 or 4");
  const Network net{int(x.size[1]), int(hidden), int(layers), int(outputs)};
  require(net.inputs >= 1 && net.inputs <= 256, "x must have 1 to 256 columns");
  require(net.outputs >= 1 && net.outputs <= 128, "outputs must be 1 to 128");
  require(params.size[0] == net.parameters(), "params has not as many numbers as the widths ask for");
  return net;
}

// Shared memory that one block may ask for, in floats; read once per device.
int most_shared(Cuda q) {
  static int bytes[64] = {};
  int& known = bytes[q.device & 63];
  if (known == 0)
    check(cudaDeviceGetAttribute(&known, cudaDevAttrMaxSharedMemoryPerBlockOptin, q.device), "device");
  return known / 4;
}

// Each *_with starts one kernel if the device's shared memory holds it with at least `least` warps per block.
template <int H, int kM, bool kStaged, int kWarps, int kBlocks>
bool forward_with(int least, Cuda q, Network net, In<real, kPoints, kInputs> x, In<real, kParams> params,
                  int64_t activation, double padding, Out<real, kPoints, kOutputs> y) {
  const int weights = Matrices<H, kStaged>{net, nullptr}.floats(), rows = 16 * kM * row_stride(net);
  const int warps = std::min(kWarps, (most_shared(q) - weights) / rows);
  if (warps < least) return false;
  const unsigned grid = std::min(blocks(x.size[0], 16 * kM * warps), unsigned(kBlocks * multiprocessors(q)));
  launch_shared("mlp_forward", mlp_forward_kernel<H, kM, kStaged, kWarps, kBlocks>, grid, 32 * warps,
                4 * (weights + warps * rows), q, net, x, params, activation, float(padding), y);
  return true;
}

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
    launch_shared("mlp_backward", mlp_backward_kernel<H, kM, kChunk, kSlots, kStaged, kBlocks>, grid, 32 * warps,
                  4 * (weights + warps * stash), q, net, x, params, activation, float(padding), y, grad_y,
                  grad_x, grad_params ? partial.data : nullptr, first_slot);
  }
  if (grad_params)
    launch("mlp_backward", mlp_add_up_kernel, blocks(net.parameters(), 32), 256, q,
           static_cast<const float*>(partial.data), int(grid), static_cast<Out<real, kParams>>(grad_params));
  return true;
}

}  // namespace

void mlp_forward(Cuda q, In<real, kPoints, kInputs> x, In<real, kParams> params, int64_t hidden,
                 int64_t layers, int64_t activation, double padding, Out<real, kPoints, kOutputs> y) {
  const Network net = network(x, params, hidden, layers, y.size[1]);
  const auto start = [&](auto with, int least) {
    return with(least, q, net, x, params, activation, padding, y);
  };
  if (hidden <= 16 && start(forward_with<16, 2, true, 8, 3>, 1)) return;
  if (hidden <= 32 && start(forward_with<32, 2, true, 8, 2>, 1)) return;
  if (hidden <= 64 && start(forward_with<64, 2, true, 12, 1>, 4)) return;
  if (start(forward_with<128, 1, true, 8, 1>, 4)) return;
  require(start(forward_with<128, 1, false, 8, 1>, 1), "needs more shared memory than the device has");
}

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

// ---- density ----

__global__ void __launch_bounds__(256)
    density_forward_kernel(In<real, kPoints, kChannels> h, In<real, kPoints, 3> y, real scale,
                           Out<real, kPoints> sigma) {
  const int64_t i = item();
  if (i < h.size[0]) sigma.data[i] = density(h.data[i * h.size[1]], load3(y.data, i), scale);
}

// One thread per point for the formula, then the block writes its rows of grad_h in order.
__global__ void __launch_bounds__(256)
    density_backward_kernel(In<real, kPoints, kChannels> h, In<real, kPoints, 3> y, real scale,
                            In<real, kPoints> grad_sigma, Out<real, kPoints, kChannels> grad_h) {
  __shared__ real grad[256];
  const int64_t first = blockIdx.x * int64_t{256}, i = first + threadIdx.x, channels = h.size[1];
  if (i < h.size[0])
    grad[threadIdx.x] = density_vjp(h.data[i * channels], load3(y.data, i), scale, grad_sigma.data[i]);
  __syncthreads();

  const int points = int(min(int64_t{256}, h.size[0] - first)), wide = int(channels);
  for (int64_t e = threadIdx.x; e < int64_t{points} * wide; e += 256) {
    const int row = int(unsigned(e) / unsigned(wide));
    grad_h.data[first * channels + e] = e == int64_t{row} * wide ? grad[row] : real(0);
  }
}

void density_forward(Cuda q, In<real, kPoints, kChannels> h, In<real, kPoints, 3> y, double scale,
                     Out<real, kPoints> sigma) {
  require(h.size[1] > 0, "h has no columns");
  launch("density_forward", density_forward_kernel, blocks(h.size[0], 256), 256, q, h, y, real(scale), sigma);
}

void density_backward(Cuda q, In<real, kPoints, kChannels> h, In<real, kPoints, 3> y, double scale,
                      In<real, kPoints> grad_sigma, Out<real, kPoints, kChannels> grad_h) {
  require(h.size[1] > 0, "h has no columns");
  launch("density_backward", density_backward_kernel, blocks(h.size[0], 256), 256, q, h, y, real(scale),
         grad_sigma, grad_h);
}

}  // namespace raymarch
