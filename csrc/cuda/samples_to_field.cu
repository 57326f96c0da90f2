// What lies between the networks of a field: their inputs, normals, and the layers too thin to be networks.
#include "cuda/sample.cuh"
#include "math/activation.h"
#include "math/composite.h"
#include "math/harmonics.h"
#include "ops.h"

namespace raymarch {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kRayThreads = 32 * kWarpsPerBlock;

// Where the columns of x come from: harmonics of the direction, h but its first column, the camera's code,
// ones.
struct RadianceWidths {
  int geometry, after, samples, width;
};

__device__ __forceinline__ const real* row_of(const Maybe<In<real, kCameras, kCode>>& codes,
                                              const Maybe<In<int64_t, kRays>>& camera, int64_t ray) {
  const int64_t c = codes ? camera.data[ray] : 0;
  return codes.data + (codes && c >= 0 && c < codes.size[0] ? c : 0) * codes.size[1];
}

template <class T, int N>
struct alignas(sizeof(T) * N) Few {
  T of[N];
};

// One warp per ray. A lane keeps to N columns where 32 lanes take whole rows, and what all samples share of
// them stays in its registers.
template <class T, int N>
__global__ void __launch_bounds__(kRayThreads)
    radiance_inputs_forward_kernel(In<real, kPoints, kChannels> h, In<real, kPoints, 3> y, real scale,
                                   In<real, kRays, 3> directions, int64_t signs,
                                   Maybe<In<int64_t, kRays>> camera, Maybe<In<real, kCameras, kCode>> codes,
                                   RadianceWidths w, Out<real, kPoints> sigma, T* x) {
  __shared__ real shared[kWarpsPerBlock][kHarmonics];
  const int64_t ray = warp(), first = ray * w.samples;
  if (ray >= directions.size[0]) return;
  const int channels = w.geometry + 1, packs = w.width / N;
  const real* rows = h.data + first * channels;
  real* before = shared[threadIdx.x / 32];
  const Harmonics of_direction = harmonics(load3(directions.data, ray), signs);
  if (lane() == 0) {
#pragma unroll
    for (int k = 0; k < kHarmonics; ++k) before[k] = of_direction.of[k];
  }
  __syncwarp();
  for (int s = lane(); s < w.samples; s += 32)
    sigma.data[first + s] = density(rows[int64_t{s} * channels], load3(y.data, first + s), scale);

  const real* after = row_of(codes, camera, ray);    // never read where there is no code
  const int together = packs < 32 ? 32 / packs : 1;  // rows that a warp writes at once
  for (int begin = 0; begin < packs; begin += 32) {
    const int pack = begin + (packs < 32 ? lane() % packs : lane());
    const int row = packs < 32 ? lane() / packs : 0;
    if (pack >= packs || row >= together) continue;
    real kept[N];
    bool varies = false;
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const int column = pack * N + k, c = column - kHarmonics, last = c - w.geometry;
      kept[k] = c < 0 ? before[column] : last >= 0 && last < w.after ? after[last] : real(1);
      varies |= c >= 0 && last < 0;
    }
    Few<T, N>* to = reinterpret_cast<Few<T, N>*>(x + first * w.width) + pack;
    constexpr int kAhead = N == 1 ? 8 : 2;  // loads under way at once
    for (int s = row; s < w.samples; s += kAhead * together) {
      Few<T, N> values[kAhead];
#pragma unroll
      for (int j = 0; j < kAhead; ++j)
#pragma unroll
        for (int k = 0; k < N; ++k) {
          const int c = pack * N + k - kHarmonics, at = s + j * together;
          const bool own = varies && c >= 0 && c < w.geometry && at < w.samples;
          values[j].of[k] = saturated<T>(own ? __ldg(rows + int64_t{at} * channels + 1 + c) : kept[k]);
        }
#pragma unroll
      for (int j = 0; j < kAhead; ++j)
        if (s + j * together < w.samples) to[int64_t{s + j * together} * packs] = values[j];
    }
  }
}

// One warp per ray; a lane takes every 32nd column and sums what samples share in order. Only the sum over
// the rays of one camera's code has no order.
__global__ void __launch_bounds__(kRayThreads) radiance_inputs_backward_kernel(
    In<real, kPoints, kChannels> h, In<real, kPoints, 3> y, real scale, In<real, kRays, 3> directions,
    int64_t signs, Maybe<In<int64_t, kRays>> camera, In<real, kPoints> grad_sigma, const real* grad_x,
    Maybe<In<real, kPoints, kInputs>> more_h, int column_of_more, Maybe<In<real, kRays, 3>> more_directions,
    RadianceWidths w, Out<real, kPoints, kChannels> grad_h, Out<real, kRays, 3> grad_directions,
    Maybe<Out<real, kCameras, kCode>> grad_codes, Maybe<Out<real, kRays, kCode>> grad_code) {
  const int64_t ray = warp(), first = ray * w.samples;
  if (ray >= directions.size[0]) return;
  const int channels = w.geometry + 1, used = kHarmonics + w.geometry + w.after;
  for (int s = lane(); s < w.samples; s += 32) {
    const int64_t i = first + s, at = i * channels;
    grad_h.data[at] = density_vjp(h.data[at], load3(y.data, i), scale, grad_sigma.data[i]);
  }

  Harmonics to_harmonics;
  for (int begin = 0; begin < used; begin += 32) {
    const int c = begin + lane(), column = c - kHarmonics, last = column - w.geometry;
    const bool live = c < used, own = live && column >= 0 && last < 0;
    const real* from = grad_x + first * w.width + (live ? c : 0);
    const real* more =
        more_h && own ? more_h.data + first * more_h.size[1] + column_of_more + column : nullptr;
    real* to = grad_h.data + first * channels + 1 + column;
    real sum = real(0);
#pragma unroll 8
    for (int s = 0; s < w.samples; ++s) {
      const real g = __ldg(from + int64_t{s} * w.width);
      sum += g;
      if (own) to[int64_t{s} * channels] = more ? g + __ldg(more + s * more_h.size[1]) : g;
    }
    if (begin == 0) {
#pragma unroll
      for (int k = 0; k < kHarmonics; ++k) to_harmonics.of[k] = from_lane(sum, k);
    }
    if (!live || last < 0) continue;
    if (grad_code) grad_code.data[ray * w.after + last] = sum;
    if (grad_codes) {
      const int64_t who = camera.data[ray];
      if (who >= 0 && who < grad_codes.size[0]) atomicAdd(grad_codes.data + who * w.after + last, sum);
    }
  }
  if (lane() != 0) return;
  Vec3 g = harmonics_vjp(load3(directions.data, ray), signs, to_harmonics);
  if (more_directions) g = g + load3(more_directions.data, ray);
  store3(grad_directions.data, ray, g);
}

// One warp per ray.
__global__ void __launch_bounds__(kRayThreads)
    slope_normals_kernel(In<real, kRays, 3> origins, In<real, kRays, 3> directions, In<real, kRays, kEdges> t,
                         In<real, kRays, kSamples, 3> slope, int64_t norm, bool contracted,
                         Out<real, kRays, kSamples, 3> normals) {
  __shared__ real tiles[kWarpsPerBlock][96];
  real* tile = tiles[threadIdx.x / 32];
  const int64_t ray = warp();
  const int samples = int(slope.size[1]);
  if (ray >= t.size[0]) return;
  const Vec3 o = load3(origins.data, ray), d = load3(directions.data, ray);
  const real* edges = t.data + ray * t.size[1];
  for (int k = 0; k < samples; k += 32) {
    const int live = live_lanes(samples, k), i = k + (lane() < live ? lane() : 0);
    Vec3 g = load3_warp(tile, slope.data + 3 * (ray * samples + k), live);
    if (!contracted) g = contract_unit_vjp(norm, o + midpoint(edges, i) * d, g);
    store3_warp(tile, normals.data + 3 * (ray * samples + k), live, real(-1) * normalised(g));
  }
}

__device__ __forceinline__ real axis_of(Vec3 v, int axis) { return axis == 0 ? v.x : axis == 1 ? v.y : v.z; }

// One warp per ray; lanes take the numbers of its rows of x one after another, each a wave, a copy or
// padding.
template <class T>
__global__ void __launch_bounds__(kRayThreads)
    normal_inputs_forward_kernel(In<real, kRays, 3> origins, In<real, kRays, 3> directions,
                                 In<real, kRays, kEdges> t, In<real, kPoints, kChannels> h, int frequencies,
                                 int64_t layout, Out<T, kPoints, kOutputs> x) {
  const int64_t ray = warp();
  if (ray >= t.size[0]) return;
  const int samples = int(t.size[1]) - 1, waves = 6 * frequencies, width = int(x.size[1]);
  const int channels = int(h.size[1]);
  const Vec3 o = load3(origins.data, ray), d = load3(directions.data, ray);
  const real* edges = t.data + ray * (samples + 1);
  for (int i = lane(); i < samples * 3 * frequencies; i += 32) {
    const int s = i / (3 * frequencies), wave = i % (3 * frequencies);
    const int axis = wave / frequencies, k = wave % frequencies;
    const real place = axis_of(o + midpoint(edges, s) * d, axis);
    const Turn at = turn(fourier_frequency(k, layout) * place);
    const Columns to = fourier_columns(axis, k, frequencies, layout);
    T* row = x.data + (ray * samples + s) * width;
    row[to.sine] = saturated<T>(at.sine), row[to.cosine] = saturated<T>(at.cosine);
  }
  const int rest = width - waves;
  constexpr int kAhead = 4;  // loads under way at once
  for (int begin = lane(); begin < samples * rest; begin += 32 * kAhead) {
    real values[kAhead];
    T* to[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      const int i = begin + 32 * j, s = i / rest, c = i % rest;
      const int64_t row = ray * samples + s;
      const bool own = s < samples && c < channels - 1;
      to[j] = s < samples ? x.data + row * width + waves + c : nullptr;
      values[j] = own ? __ldg(h.data + row * channels + 1 + c) : real(1);
    }
#pragma unroll
    for (int j = 0; j < kAhead; ++j)
      if (to[j]) *to[j] = saturated<T>(values[j]);
  }
}

// One warp per ray; a lane takes samples.
__global__ void __launch_bounds__(kRayThreads)
    normal_inputs_backward_kernel(In<real, kRays, 3> origins, In<real, kRays, 3> directions,
                                  In<real, kRays, kEdges> t, int frequencies, int64_t layout,
                                  In<real, kPoints, kOutputs> grad_x,
                                  Maybe<In<real, kRays, 3>> more_directions, Out<real, kRays, 3> grad_origins,
                                  Out<real, kRays, 3> grad_directions) {
  const int64_t ray = warp();
  if (ray >= t.size[0]) return;
  const int samples = int(t.size[1]) - 1, width = int(grad_x.size[1]);
  const Vec3 o = load3(origins.data, ray), d = load3(directions.data, ray);
  const real* edges = t.data + ray * (samples + 1);
  Vec3 to_o{0, 0, 0}, to_d{0, 0, 0};
  for (int s = lane(); s < samples; s += 32) {
    const real middle = midpoint(edges, s);
    const Vec3 at = o + middle * d;
    const real* row = grad_x.data + (ray * samples + s) * width;
    real g[3] = {0, 0, 0};
#pragma unroll
    for (int axis = 0; axis < 3; ++axis)
      for (int k = 0; k < frequencies; ++k) {
        const Columns from = fourier_columns(axis, k, frequencies, layout);
        const real frequency = fourier_frequency(k, layout);
        g[axis] +=
            turn_vjp(turn(frequency * axis_of(at, axis)), frequency, {row[from.sine], row[from.cosine]});
      }
    const Vec3 to_x = {g[0], g[1], g[2]};
    to_o = to_o + to_x, to_d = to_d + middle * to_x;
  }
  to_o = warp_sum(to_o), to_d = warp_sum(to_d);
  if (lane() != 0) return;
  if (more_directions) to_d = to_d + load3(more_directions.data, ray);
  store3(grad_origins.data, ray, to_o), store3(grad_directions.data, ray, to_d);
}

constexpr int kMostHead = 128;  // inputs of the last layer of predicted normals

// tanh(weight z + bias) of one point.
template <int N>
__device__ __forceinline__ Vec3 head_of(const real* z, const real* weight, int inputs) {
  Vec3 a = {weight[3 * inputs], weight[3 * inputs + 1], weight[3 * inputs + 2]};
#pragma unroll 4
  for (int c = 0; c < inputs; c += N) {
    const Few<real, N> v = *reinterpret_cast<const Few<real, N>*>(z + c);
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const real *at = weight + c + k, by = v.of[k];
      a = a + Vec3{at[0] * by, at[inputs] * by, at[2 * inputs] * by};
    }
  }
  return tanh3(a);
}

__device__ __forceinline__ void stage_head(const real* weight, const real* bias, int inputs, real* shared) {
  for (int i = threadIdx.x; i < 3 * inputs + 3; i += blockDim.x)
    shared[i] = i < 3 * inputs ? weight[i] : bias[i - 3 * inputs];
}

// One thread per point; weights in shared memory.
template <int N>
__global__ void __launch_bounds__(kThreads)
    normal_head_forward_kernel(In<real, kPoints, kInputs> z, In<real, 3, kInputs> weight, In<real, 3> bias,
                               Out<real, kPoints, 3> n) {
  __shared__ real staged[3 * kMostHead + 3];
  const int inputs = int(z.size[1]);
  stage_head(weight.data, bias.data, inputs, staged);
  __syncthreads();
  const int64_t i = item();
  if (i < z.size[0]) store3(n.data, i, normalised(head_of<N>(z.data + i * inputs, staged, inputs)));
}

// Blocks take every so many points by 256: a thread per point finds what comes to its three sums, then a
// thread per column passes it on to z and adds it up over the points; those sums stay in registers to the
// end.
template <int N>
__global__ void __launch_bounds__(kThreads)
    normal_head_backward_kernel(In<real, kPoints, kInputs> z, In<real, 3, kInputs> weight, In<real, 3> bias,
                                In<real, kPoints, 3> grad_n, Out<real, kPoints, kInputs> grad_z,
                                Out<real, kEntries, kParams> partial) {
  __shared__ real staged[3 * kMostHead + 3], to_sums[3][kThreads], board[kWarps][3];
  const int inputs = int(z.size[1]), groups = kThreads / inputs;
  stage_head(weight.data, bias.data, inputs, staged);
  __syncthreads();
  const int column = threadIdx.x % inputs, group = threadIdx.x / inputs;
  real of_weight[3] = {0, 0, 0}, of_bias[3] = {0, 0, 0};
  for (int64_t base = blockIdx.x * int64_t{kThreads}; base < z.size[0];
       base += int64_t{gridDim.x} * kThreads) {
    const int count = int(min(int64_t{kThreads}, z.size[0] - base));
    if (int(threadIdx.x) < count) {
      const int64_t i = base + threadIdx.x;
      const Vec3 y = head_of<N>(z.data + i * inputs, staged, inputs);
      const Vec3 g = tanh3_vjp(y, normalised_vjp(y, load3(grad_n.data, i)));
      to_sums[0][threadIdx.x] = g.x, to_sums[1][threadIdx.x] = g.y, to_sums[2][threadIdx.x] = g.z;
      of_bias[0] += g.x, of_bias[1] += g.y, of_bias[2] += g.z;
    }
    __syncthreads();
    for (int p = group; group < groups && p < count; p += groups) {
      const real g[3] = {to_sums[0][p], to_sums[1][p], to_sums[2][p]};
      const int64_t at = (base + p) * inputs + column;
      grad_z.data[at] =
          g[0] * staged[column] + g[1] * staged[inputs + column] + g[2] * staged[2 * inputs + column];
      const real v = z.data[at];
#pragma unroll
      for (int k = 0; k < 3; ++k) of_weight[k] += g[k] * v;
    }
    __syncthreads();
  }

  real* to = partial.data + blockIdx.x * partial.size[1];
#pragma unroll
  for (int k = 0; k < 3; ++k) {
    to_sums[k][threadIdx.x] = of_weight[k];
    const real sum = warp_sum(of_bias[k]);
    if (lane() == 0) board[threadIdx.x / 32][k] = sum;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < 3 * inputs; i += kThreads) {
    real sum = 0;
    for (int other = 0; other < groups; ++other) sum += to_sums[i / inputs][other * inputs + i % inputs];
    to[i] = sum;
  }
  if (threadIdx.x < 3) {
    real sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += board[w][threadIdx.x];
    to[3 * inputs + threadIdx.x] = sum;
  }
}

// Eight warps take every eighth row of 32 columns, and are then summed in order.
__global__ void __launch_bounds__(kThreads)
    add_rows_kernel(In<real, kEntries, kParams> rows, Maybe<In<real, 1>> scale, Out<real, kParams> sum) {
  __shared__ real board[kWarps][32];
  const int me = threadIdx.x / 32;
  const int64_t n = rows.size[1], i = blockIdx.x * int64_t{32} + lane();
  real mine = 0;
  if (i < n)
#pragma unroll 4
    for (int64_t row = me; row < rows.size[0]; row += kWarps) mine += rows.data[row * n + i];
  board[me][lane()] = mine;
  __syncthreads();
  if (me > 0 || i >= n) return;
#pragma unroll
  for (int other = 1; other < kWarps; ++other) mine += board[other][lane()];
  sum.data[i] = scale ? mine * scale.data[0] : mine;
}

static RadianceWidths radiance_widths(int64_t points, int64_t rays, int64_t channels, int64_t after,
                                      int64_t width) {
  require(rays > 0 ? points % rays == 0 : points == 0, "h must have the same number of rows for every ray");
  require(channels > 0 && width >= kHarmonics + channels - 1 + after,
          "x must have a column for each of 16 harmonics, h but its first, and code");
  require(width <= 4096, "x must have at most 4096 columns");
  const int64_t samples = rays > 0 ? points / rays : 0;
  require(samples < (int64_t{1} << 30), "too many rows for one ray");
  return {int(channels - 1), int(after), int(samples), int(width)};
}

void radiance_inputs_forward(Cuda q, In<real, kPoints, kChannels> h, In<real, kPoints, 3> y, double scale,
                             In<real, kRays, 3> directions, int64_t signs, Maybe<In<int64_t, kRays>> camera,
                             Maybe<In<real, kCameras, kCode>> codes, Out<real, kPoints> sigma,
                             OutPayload<kPoints, kOutputs> any) {
  const char* problem = harmonics_problem(signs);
  require(!problem, problem);
  require(!codes || camera, "codes need the cameras of rays");
  const int64_t rays = directions.size[0];
  const RadianceWidths w =
      radiance_widths(h.size[0], rays, h.size[1], codes ? codes.size[1] : 0, any.size[1]);
  with_dtype(any, [&](auto x) {
    using T = std::remove_pointer_t<decltype(x.data)>;
    constexpr int kWide = 16 / sizeof(T);
    const auto start = [&](auto kernel) {
      launch("radiance_inputs_forward", kernel, blocks(rays, kWarpsPerBlock), kRayThreads, q, h, y,
             real(scale), directions, signs, camera, codes, w, sigma, x.data);
    };
    if (w.width % kWide == 0 && reinterpret_cast<uintptr_t>(x.data) % 16 == 0)
      start(radiance_inputs_forward_kernel<T, kWide>);
    else
      start(radiance_inputs_forward_kernel<T, 1>);
  });
}

void radiance_inputs_backward(Cuda q, In<real, kPoints, kChannels> h, In<real, kPoints, 3> y, double scale,
                              In<real, kRays, 3> directions, int64_t signs, Maybe<In<int64_t, kRays>> camera,
                              In<real, kPoints> grad_sigma, In<real, kPoints, kOutputs> grad_x,
                              Maybe<In<real, kPoints, kInputs>> more_h, int64_t column,
                              Maybe<In<real, kRays, 3>> more_directions, Out<real, kPoints, kChannels> grad_h,
                              Out<real, kRays, 3> grad_directions,
                              Maybe<Out<real, kCameras, kCode>> grad_codes,
                              Maybe<Out<real, kRays, kCode>> grad_code) {
  const char* problem = harmonics_problem(signs);
  require(!problem, problem);
  require(!grad_codes || camera, "grad_codes needs the cameras of rays");
  require(!more_h || (column >= 0 && column + h.size[1] - 1 <= more_h.size[1]),
          "more_h must have the columns of h from `column`");
  const int64_t rays = directions.size[0];
  const int64_t after = grad_codes ? grad_codes.size[1] : grad_code ? grad_code.size[1] : 0;
  require(!grad_codes || !grad_code || grad_code.size[1] == after,
          "grad_codes and grad_code must be as wide");
  const RadianceWidths w = radiance_widths(h.size[0], rays, h.size[1], after, grad_x.size[1]);
  launch("radiance_inputs_backward", radiance_inputs_backward_kernel, blocks(rays, kWarpsPerBlock),
         kRayThreads, q, h, y, real(scale), directions, signs, camera, grad_sigma, grad_x.data, more_h,
         int(column), more_directions, w, grad_h, grad_directions, grad_codes, grad_code);
}

void slope_normals(Cuda q, In<real, kRays, 3> origins, In<real, kRays, 3> directions,
                   In<real, kRays, kEdges> t, In<real, kRays, kSamples, 3> slope, int64_t norm,
                   bool contracted, Out<real, kRays, kSamples, 3> normals) {
  require(t.size[1] == slope.size[1] + 1, "t must have one edge more than there are samples");
  launch("slope_normals", slope_normals_kernel, blocks(t.size[0], kWarpsPerBlock), kRayThreads, q, origins,
         directions, t, slope, norm, contracted, normals);
}

void normal_inputs_forward(Cuda q, In<real, kRays, 3> origins, In<real, kRays, 3> directions,
                           In<real, kRays, kEdges> t, In<real, kPoints, kChannels> h, int64_t frequencies,
                           int64_t layout, OutPayload<kPoints, kOutputs> x) {
  const char* problem = fourier_problem(frequencies, layout, 0, x.size[1]);
  require(!problem, problem);
  require(x.size[1] >= 6 * frequencies + h.size[1] - 1,
          "x must have a column for each wave, and for h but its first");
  require(x.size[0] == t.size[0] * (t.size[1] - 1), "x must have a row for every sample of every ray");
  with_dtype(x, [&](auto view) {
    using T = std::remove_pointer_t<decltype(view.data)>;
    launch("normal_inputs_forward", normal_inputs_forward_kernel<T>, blocks(t.size[0], kWarpsPerBlock),
           kRayThreads, q, origins, directions, t, h, int(frequencies), layout, view);
  });
}

void normal_inputs_backward(Cuda q, In<real, kRays, 3> origins, In<real, kRays, 3> directions,
                            In<real, kRays, kEdges> t, int64_t frequencies, int64_t layout,
                            In<real, kPoints, kOutputs> grad_x, Maybe<In<real, kRays, 3>> more_directions,
                            Out<real, kRays, 3> grad_origins, Out<real, kRays, 3> grad_directions) {
  const char* problem = fourier_problem(frequencies, layout, 0, grad_x.size[1]);
  require(!problem, problem);
  require(grad_x.size[0] == t.size[0] * (t.size[1] - 1),
          "grad_x must have a row for every sample of every ray");
  launch("normal_inputs_backward", normal_inputs_backward_kernel, blocks(t.size[0], kWarpsPerBlock),
         kRayThreads, q, origins, directions, t, int(frequencies), layout, grad_x, more_directions,
         grad_origins, grad_directions);
}

static bool in_fours(In<real, kPoints, kInputs> z) {
  return z.size[1] % 4 == 0 && reinterpret_cast<uintptr_t>(z.data) % 16 == 0;
}

void normal_head_forward(Cuda q, In<real, kPoints, kInputs> z, In<real, 3, kInputs> weight, In<real, 3> bias,
                         Out<real, kPoints, 3> n) {
  require(z.size[1] <= kMostHead, "on CUDA z may have at most 128 columns");
  const auto kernel = in_fours(z) ? normal_head_forward_kernel<4> : normal_head_forward_kernel<1>;
  launch("normal_head_forward", kernel, blocks(z.size[0], kThreads), kThreads, q, z, weight, bias, n);
}

void normal_head_backward(Cuda q, In<real, kPoints, kInputs> z, In<real, 3, kInputs> weight, In<real, 3> bias,
                          In<real, kPoints, 3> grad_n, Out<real, kPoints, kInputs> grad_z,
                          Out<real, kEntries, kParams> partial) {
  require(z.size[1] >= 1 && z.size[1] <= kMostHead, "on CUDA z may have at most 128 columns");
  require(partial.size[1] == 3 * z.size[1] + 3 && partial.size[0] > 0,
          "partial must have a column per weight and bias");
  const auto kernel = in_fours(z) ? normal_head_backward_kernel<4> : normal_head_backward_kernel<1>;
  launch("normal_head_backward", kernel, unsigned(partial.size[0]), kThreads, q, z, weight, bias, grad_n,
         grad_z, partial);
}

void add_rows(Cuda q, In<real, kEntries, kParams> rows, Maybe<In<real, 1>> scale, Out<real, kParams> sum) {
  launch("add_rows", add_rows_kernel, blocks(sum.size[0], 32), kThreads, q, rows, scale, sum);
}

}  // namespace raymarch
