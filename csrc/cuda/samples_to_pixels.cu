// Samples to pixels without anything per sample in memory. A warp takes 32 rays, a lane one of them; sample
// by sample, all lanes look up their grid, the warp runs the networks on tensor cores, and each lane
// composites its ray. Rays that lie side by side on the image read the same cells, and end at about the same
// sample.
#include "cuda/entries.cuh"
#include "cuda/half_tile.cuh"
#include "cuda/vector.cuh"
#include "math/composite.h"
#include "math/march.h"
#include "math/point.h"
#include "math/transmittance.h"
#include "ops.h"

namespace raymarch {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
// Bytes between rows of 32 and of 16 halves: 16 more, so that eight rows meet no bank twice.
constexpr int kPitch = 80, kSlimPitch = 48;

// Shared memory of a block: the matrices, then what all rays add to the first colour layer, then the warps'
// own.
constexpr int kBase0 = 0, kBase1 = kBase0 + 64 / 16 * (32 / 16) * 32;
constexpr int kColour0 = kBase1 + 64 / 16 * 32;  // its groups of inputs: direction, then the base's outputs
constexpr int kColour1 = kColour0 + 64 / 16 * (32 / 16) * 32;
constexpr int kColour2 = kColour1 + 64 / 16 * (64 / 16) * 32;
constexpr int kMatrices = kColour2 + 64 / 16 * 32;  // uint4 each

// What a warp has for its 32 rays: encodings, directions, and four floats.
struct Own {
  char encoded[32 * kPitch];
  char direction[32 * kSlimPitch];
  float4 numbers[32];
  float line[6][32];  // origins and directions
};

struct Block {
  uint4 matrix[kMatrices];
  float shift[64];
  Own own[kWarps];
};

struct Backdrop {
  int64_t kind;
  const real* colour;
};

// What all rays add to the first colour layer: the code, and the columns that only pad.
__device__ void stage_shift(float* shift, const PixelNetworks& nets, const float* colour,
                            const Maybe<In<real, kCode>>& code) {
  const int pitch = nets.colour.columns(0), coded = code ? int(code.size[0]) : 0;
  for (int unit = threadIdx.x; unit < 64; unit += kThreads) {
    float sum = 0.f;
    for (int c = 31; c < pitch; ++c)
      sum += colour[unit * pitch + c] * (c - 31 < coded ? code.data[c - 31] : 1.f);
    shift[unit] = sum;
  }
}

// The first colour matrix in two groups of inputs: direction (columns 0 .. 15 of it), and the base's outputs,
// whose first is the density and has no column.
__device__ void stage_colour_inputs(uint4* to, const float* from, int pitch) {
  const auto at = [&](int row, int c) {
    if (c < 16) return from[row * pitch + c];
    return c == 16 ? 0.f : from[row * pitch + c - 1];
  };
  for (int i = threadIdx.x; i < fragments(64, 32); i += kThreads) {
    const int who = i % 32, tile = i / 32, k = tile / 4, row = 16 * (tile % 4) + who / 4;
    const int c = 16 * k + 2 * (who % 4);
    to[i] = {pack_halves(at(row, c), at(row, c + 1)), pack_halves(at(row, c + 8), at(row, c + 9)),
             pack_halves(at(row + 8, c), at(row + 8, c + 1)),
             pack_halves(at(row + 8, c + 8), at(row + 8, c + 9))};
  }
}

__device__ void stage_networks(Block& block, const PixelNetworks& nets, const float* params,
                               const Maybe<In<real, kCode>>& code) {
  const float* colour = params + nets.base.parameters();
  const int columns = nets.base.columns(0);
  for (int i = threadIdx.x; i < kBase1; i += kThreads) block.matrix[i] = {0, 0, 0, 0};
  __syncthreads();
  stage_halves(block.matrix + kBase0, params, 64, columns, 0, columns / 16);
  stage_halves(block.matrix + kBase1, params + nets.base.offset(1), 16, 64, 0, 4);
  stage_colour_inputs(block.matrix + kColour0, colour, nets.colour.columns(0));
  stage_halves(block.matrix + kColour1, colour + nets.colour.offset(1), 64, 64, 0, 4);
  stage_halves(block.matrix + kColour2, colour + nets.colour.offset(2), 16, 64, 0, 4);
  stage_shift(block.shift, nets, colour, code);
  __syncthreads();
}

// Features of the lane's point, as halves in its row.
template <bool kSmooth, class T>
__device__ __forceinline__ void encode_row(char* rows, const Grid& grid, const T* table, Vec3 y, bool live) {
#pragma unroll 1
  for (int l = 0; l < 16; l += 2) {
    uint32_t packed[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      real sum[2] = {};
      if (live && l + i < grid.levels) looked_up(grid.level[l + i], table, y, kSmooth, sum);
      packed[i] = pack_halves(sum[0], sum[1]);
    }
    *reinterpret_cast<uint2*>(rows + lane() * kPitch + l * 4) = {packed[0], packed[1]};
  }
}

// The base network on the warp's rows: 16 outputs per point.
__device__ __forceinline__ void run_base(const Block& block, const char* rows, Sums& h) {
  Operand in[2];
  load_operand(in[0], rows, kPitch, 0);
  load_operand(in[1], rows, kPitch, 32);
  clear(h);
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    Sums sum;
    clear(sum);
    multiply(sum, in[0], block.matrix + kBase0, 0, j, 4);
    multiply(sum, in[1], block.matrix + kBase0, 1, j, 4);
    Operand a;
    relu_into(sum, a);
    multiply(h, a, block.matrix + kBase1, j, 0, 1);
  }
}

// The colour network on what the base left and the rays' directions; colours before the sigmoid go to `out`.
__device__ __forceinline__ void run_colour(const Block& block, const char* directions,
                                           const Operand& geometry, float4* out) {
  const int g = lane() / 4, t = lane() % 4;
  Operand direction;
  load_operand(direction, directions, kSlimPitch, 0);
  Operand first[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    Sums sum;
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const float2 shift = *reinterpret_cast<const float2*>(block.shift + 16 * j + 8 * n + 2 * t);
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m)
        sum.at[m][n][0] = sum.at[m][n][2] = shift.x, sum.at[m][n][1] = sum.at[m][n][3] = shift.y;
    }
    multiply(sum, direction, block.matrix + kColour0, 0, j, 4);
    multiply(sum, geometry, block.matrix + kColour0, 1, j, 4);
    relu_into(sum, first[j]);
  }
  Sums rgb;
  clear(rgb);
#pragma unroll 1  // unrolled, the weights of several rounds would be fetched ahead, and registers spilled
  for (int j = 0; j < 4; ++j) {
    Sums sum;
    clear(sum);
#pragma unroll
    for (int k = 0; k < 4; ++k) multiply(sum, first[k], block.matrix + kColour1, k, j, 4);
    Operand a;
    relu_into(sum, a);
    const uint4 b = block.matrix[kColour2 + j * 32 + lane()];
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) mma(rgb.at[m][0], a.at[m], b.x, b.y);
  }
  if (t < 2)
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
      float2* low = reinterpret_cast<float2*>(out + 16 * m + g) + t;
      float2* high = reinterpret_cast<float2*>(out + 16 * m + 8 + g) + t;
      *low = {rgb.at[m][0][0], rgb.at[m][0][1]};
      *high = {rgb.at[m][0][2], rgb.at[m][0][3]};
    }
}

// Column 0 of the base's outputs goes to `out`, one float4 per point; the others become an operand.
__device__ __forceinline__ void split_base(const Sums& h, float4* out, Operand& geometry) {
  const int g = lane() / 4;
  const bool first = lane() % 4 == 0;
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
    if (first) out[16 * m + g].x = h.at[m][0][0], out[16 * m + 8 + g].x = h.at[m][0][2];
    geometry.at[m][0] = pack_halves(first ? 0.f : h.at[m][0][0], h.at[m][0][1]);
    geometry.at[m][1] = pack_halves(first ? 0.f : h.at[m][0][2], h.at[m][0][3]);
    geometry.at[m][2] = pack_halves(h.at[m][1][0], h.at[m][1][1]);
    geometry.at[m][3] = pack_halves(h.at[m][1][2], h.at[m][1][3]);
  }
}

// The lane's direction, as halves in its row.
__device__ __forceinline__ void store_direction(char* rows, const float* from) {
  uint4* row = reinterpret_cast<uint4*>(rows + lane() * kSlimPitch);
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    const float4 v = __ldg(reinterpret_cast<const float4*>(from) + 2 * c);
    const float4 u = __ldg(reinterpret_cast<const float4*>(from) + 2 * c + 1);
    row[c] = {pack_halves(v.x, v.y), pack_halves(v.z, v.w), pack_halves(u.x, u.y), pack_halves(u.z, u.w)};
  }
  __syncwarp();
}

// `distance` along the lane's ray.
__device__ __forceinline__ Vec3 point_on(const Own& own, real distance) {
  const auto at = [&](int c) { return own.line[c][lane()]; };
  return Vec3{at(0), at(1), at(2)} + distance * Vec3{at(3), at(4), at(5)};
}

template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    samples_to_pixels_kernel(In<real, kRays, 3> origins, In<real, kRays, 3> directions,
                             In<real, kRays, kEdges> t, int64_t norm, In<T, kEntries, kChannels> table,
                             const __grid_constant__ Grid grid, In<real, kParams> params, PixelNetworks nets,
                             real scale, In<real, kRays, 16> direction, Maybe<In<real, kCode>> code,
                             const uint8_t* occupied, int resolution, Backdrop backdrop, real least,
                             real stop, Out<real, kRays, 3> rgb_out, Out<real, kRays> opacity_out,
                             Out<real, kRays> depth_out, Out<real, kRays> expected_out,
                             Maybe<Out<real, kRays, kSamples>> w_out) {
  RM_SHARED(char, shared);
  Block& block = *reinterpret_cast<Block*>(shared);
  stage_networks(block, nets, params.data, code);
  Own& own = block.own[threadIdx.x / 32];

  const int64_t rays = rgb_out.size[0], base = blockIdx.x * int64_t{kThreads} + threadIdx.x / 32 * 32;
  if (base >= rays) return;
  const int samples = int(t.size[1]) - 1;
  const int64_t ray = base + lane();
  const bool exists = ray < rays;
  const int64_t at = exists ? ray : rays - 1;  // lanes without a ray walk beside the last one
  const Vec3 o = load3(origins.data, at), d = load3(directions.data, at);
  const real line[6] = {o.x, o.y, o.z, d.x, d.y, d.z};
#pragma unroll
  for (int c = 0; c < 6; ++c) own.line[c][lane()] = line[c];
  const real* edge = t.data + at * (samples + 1);
  store_direction(own.direction, direction.data + at * 16);

  real thickness = real(0), opacity = real(0), moment = real(0), depth = real(0), front = edge[0];
  bool half_seen = false;
  Vec3 rgb = {0, 0, 0};
  int i = 0;  // the lane's own: rays do not wait for each other where there is nothing
  for (;;) {
    real middle = real(0), length = real(0);
    Vec3 y = {0, 0, 0};
    bool live = exists && thickness < stop, ends = false;
    for (; live && i < samples; ++i) {
      const real back = edge[i + 1];
      length = interval_length(front, back), middle = real(0.5) * (front + back);
      front = back;
      y = contract_unit(norm, point_on(own, middle));
      ends = backdrop.kind == kLastSample && i == samples - 1;
      if (ends || may_hold(occupied, resolution, y)) break;
      if (w_out) w_out.data[ray * samples + i] = real(0);
    }
    live = live && i < samples;
    if (!__any_sync(~0u, live)) break;
    const bool looks = live && selected(y);
    if (grid.smooth)
      encode_row<true>(own.encoded, grid, table.data, y, looks);
    else
      encode_row<false>(own.encoded, grid, table.data, y, looks);
    __syncwarp();
    Sums h;
    run_base(block, own.encoded, h);
    Operand geometry;
    split_base(h, own.numbers, geometry);
    __syncwarp();

    real w = real(0);
    if (live) {
      const real tau = density(own.numbers[lane()].x, y, scale) * length;
      w = weight(thickness, tau);
      thickness += tau;
      opacity += w;
      moment += w * middle;
      if (!half_seen) depth = middle;
      half_seen |= opacity >= real(0.5);
    }
    if (w_out && live) w_out.data[ray * samples + i] = w;
    if (live) ++i;
    __syncwarp();
    if (!__any_sync(~0u, live && (w > least || ends))) continue;
    run_colour(block, own.direction, geometry, own.numbers);
    __syncwarp();
    const float4 c = own.numbers[lane()];
    __syncwarp();
    if (live && (w > least || ends))  // the last sample also stands for all that lies behind it
      rgb = rgb + (ends ? w + (1 - opacity) : w) * finite_colour({sigmoid(c.x), sigmoid(c.y), sigmoid(c.z)});
  }
  if (!exists) return;
  if (w_out)
    for (; i < samples; ++i) w_out.data[ray * samples + i] = real(0);

  const real farthest = real(0.5) * (edge[samples - 1] + edge[samples]);
  const Vec3 behind = backdrop.kind == kColour  ? load3(backdrop.colour, 0)
                      : backdrop.kind == kWhite ? Vec3{1, 1, 1}
                                                : Vec3{0, 0, 0};
  store3(rgb_out.data, ray, displayable(rgb + (1 - opacity) * behind));
  opacity_out.data[ray] = opacity;
  depth_out.data[ray] = half_seen ? depth : farthest;
  expected_out.data[ray] = expected_depth(moment, opacity, real(0.5) * (edge[0] + edge[1]), farthest).depth;
}

}  // namespace

void samples_to_pixels(Cuda q, In<real, kRays, 3> origins, In<real, kRays, 3> directions,
                       In<real, kRays, kEdges> t, int64_t norm, Payload<kEntries, kChannels> any,
                       int64_t levels, int64_t base_resolution, int64_t max_resolution, int64_t log2_size,
                       int64_t interpolation, int64_t layout, In<real, kParams> params, double scale,
                       In<real, kRays, 16> direction, Maybe<In<real, kCode>> code,
                       Maybe<In<uint8_t, kBytes>> occupied, int64_t resolution, Maybe<In<real, 3>> colour,
                       int64_t background, double least, double stop, Out<real, kRays, 3> rgb,
                       Out<real, kRays> opacity, Out<real, kRays> depth, Out<real, kRays> expected,
                       Maybe<Out<real, kRays, kSamples>> w) {
  const GridSettings settings = {levels, base_resolution, max_resolution, log2_size, interpolation, layout};
  const char* problem = grid_problem(settings);
  require(!problem, problem);
  const Grid grid = make_grid(settings);
  problem = grid_problem(grid, any.size[0], any.size[1], levels * any.size[1]);
  require(!problem, problem);
  const PixelNetworks nets = pixel_networks(levels * any.size[1], code ? code.size[0] : 0);
  problem = pixels_problem(nets, any.size[1], params.size[0]);
  require(!problem, problem);
  require(t.size[1] >= 2, "t must have at least two edges");
  require(!w || w.size[1] == t.size[1] - 1, "w must have as many samples as t has intervals");
  require(background != kColour || colour, "colour is missing");
  require(!occupied || fits_bits(resolution, occupied.size[0]), "occupied must have a bit for each cell");
  require(aligned(any.data, 16) && aligned(direction.data, 16),
          "the table and direction must start at multiples of 16 bytes");
  with_dtype(any, [&](auto table) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(table.data)>>;
    // More blocks than fit at once: staging is a hundredth of their work, and they end at different times.
    const unsigned size = blocks(rgb.size[0], kThreads);
    launch_shared("samples_to_pixels", samples_to_pixels_kernel<T>, size, kThreads, sizeof(Block), q, origins,
                  directions, t, norm, table, grid, params, nets, real(scale), direction, code, occupied.data,
                  int(resolution), Backdrop{background, colour.data}, real(least), real(stop), rgb, opacity,
                  depth, expected, w);
  });
}

}  // namespace raymarch
