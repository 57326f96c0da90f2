// One thread per ray, so that the rays of a tile of pixels walk side by side: their cells are neighbours.
#include "cuda/launch.cuh"
#include "math/march.h"
#include "ops.h"

namespace raymarch {

constexpr int kThreads = 128;
constexpr int kAtOnce = 4;  // steps

// Where steps begin and end: computed, or for rays between the same planes known to their whole block.
struct OwnEdges {
  int64_t spacing;
  Interval ends;
  real each;  // 1 / steps
  __device__ __forceinline__ real operator()(int i) const { return t_from_s(spacing, ends, real(i) * each); }
};
struct KnownEdges {
  const real* at;
  __device__ __forceinline__ real operator()(int i) const { return at[i]; }
};

// A ray against the grid.
template <class T>
struct Field {
  const T* baked;
  int resolution;
  int64_t norm;
  Vec3 o, d;

  __device__ __forceinline__ real thickness(real front, real back) const {
    const Vec3 y = contract_unit(norm, o + real(0.5) * (front + back) * d);
    if (!selected(y)) return real(0);
    return step_thickness(to_float(baked[baked_cell(y, resolution)]), back - front);
  }
  // The thickness of steps i .. i + kAtOnce - 1, of which those past the last have none; moves `front` on.
  template <class Edges>
  __device__ __forceinline__ void look(const Edges& edge, int i, int steps, real& front,
                                       real (&tau)[kAtOnce]) const {
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      const real back = edge(i + j + 1);
      tau[j] = i + j < steps ? thickness(front, back) : real(0);
      front = back;
    }
  }
};

// Steps of a block: a thread remembers how thick the ray is up to the end of each of kBlocks.
constexpr int kBlocks = 32;
constexpr int kKnown = 512;  // steps whose edges a block keeps where they are those of all its rays
__host__ __device__ constexpr int steps_of_block(int steps) {
  return (steps + kBlocks * kAtOnce - 1) / (kBlocks * kAtOnce) * kAtOnce;
}

struct March {
  int steps;
  real padding, stop;
};

// First over the whole ray, for its mass. Then the edges, each as soon as the mass before it is reached:
// blocks without an edge are passed over, and of those without thickness nothing needs to be looked up again.
// A few steps are looked up at once, so that their loads are under way together. `upto` [kBlocks] is the
// thread's own column of shared memory.
template <class T, class Edges>
__device__ __forceinline__ void march_ray(const Field<T>& field, const Edges& edge, const OwnEdges& exact,
                                          March by, real (*upto_block)[kThreads], int edges, real* to) {
  const int steps = by.steps, length = steps_of_block(steps), count = (steps + length - 1) / length;
  real all = real(0), front = edge(0);
  for (int b = 0; b < count; ++b) {
    const int end = min(steps, (b + 1) * length);
    for (int i = b * length; i < end && all < by.stop; i += kAtOnce) {
      real tau[kAtOnce];
      field.look(edge, i, steps, front, tau);
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) all += all < by.stop ? tau[j] : real(0);
    }
    upto_block[b][threadIdx.x] = all;
  }

  const real total = marched_mass(all, steps, by.padding);
  real upto = real(0), before = marched_mass(real(0), 0, by.padding);
  real target = spread(0, edges, real(0.5)) * total;
  for (int b = 0, k = 0; b < count && k < edges; ++b) {
    const int begin = b * length, end = min(steps, begin + length);
    const real then = upto_block[b][threadIdx.x], after_all = marched_mass(then, end, by.padding);
    if (after_all <= target && end < steps) {
      upto = then, before = after_all;
      continue;
    }
    const bool something = then > upto;
    front = edge(begin);
    for (int i = begin; i < end && k < edges; i += kAtOnce) {
      real tau[kAtOnce] = {};
      if (something && upto < by.stop) field.look(edge, i, steps, front, tau);
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        if (i + j >= steps) break;
        if (upto < by.stop) upto += tau[j];
        const real after = marched_mass(upto, i + j + 1, by.padding);
        while (k < edges && (after > target || i + j == steps - 1)) {
          const real s =
              invert_bin(target, before, after, real(i + j) * exact.each, real(i + j + 1) * exact.each);
          to[k] = t_from_s(exact.spacing, exact.ends, s);
          target = spread(++k, edges, real(0.5)) * total;
        }
        before = after;
      }
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    march_kernel(In<real, kRays, 3> origins, In<real, kRays, 3> directions, In<real, kRays> near,
                 In<real, kRays> far, In<T, kEntries> baked, int resolution, int64_t norm, int64_t spacing,
                 March by, Out<real, kRays, kEdges> t) {
  __shared__ real upto_block[kBlocks][kThreads], known[kKnown + kAtOnce];
  const int64_t rays = near.size[0], first = blockIdx.x * int64_t{kThreads}, ray = first + threadIdx.x;
  const int64_t at = ray < rays ? ray : first;
  const OwnEdges own{spacing, warped_interval(spacing, near.data[at], far.data[at]),
                     real(1) / real(by.steps)};
  const bool like_first = near.data[at] == near.data[first] && far.data[at] == far.data[first];
  const bool alike = __syncthreads_and(like_first && by.steps <= kKnown);
  for (int i = threadIdx.x; alike && i < by.steps + kAtOnce; i += kThreads) known[i] = own(i);
  __syncthreads();
  if (ray >= rays) return;
  const Field<T> field{baked.data, resolution, norm, load3(origins.data, ray), load3(directions.data, ray)};
  const int edges = int(t.size[1]);
  real* to = t.data + ray * edges;
  if (alike)
    march_ray(field, KnownEdges{known}, own, by, upto_block, edges, to);
  else
    march_ray(field, own, own, by, upto_block, edges, to);
}

// One thread per ray, twice over its weights: their sum, then each sample as soon as the middle of a share is
// reached.
__global__ void __launch_bounds__(kThreads)
    representatives_kernel(In<real, kRays, 3> origins, In<real, kRays, 3> directions,
                           In<real, kRays, kEdges> t, In<real, kRays, kSamples> w,
                           Out<real, kRays, kFine, 3> x, Out<real, kRays, kFine> w_kept) {
  const int64_t ray = item();
  if (ray >= w.size[0]) return;
  const int samples = int(w.size[1]), kept = int(w_kept.size[1]);
  const real *weight = w.data + ray * samples, *edge = t.data + ray * (samples + 1);
  const Vec3 o = load3(origins.data, ray), d = load3(directions.data, ray);

  real all = real(0), upto = real(0);
  for (int i = 0; i < samples; ++i) all += or_zero(weight[i]);
  for (int i = 0, k = 0; k < kept; ++i) {
    upto += or_zero(weight[i]);
    for (; k < kept && (upto > spread(k, kept, real(0.5)) * all || i == samples - 1); ++k) {
      store3(x.data, ray * kept + k, o + real(0.5) * (edge[i] + edge[i + 1]) * d);
      w_kept.data[ray * kept + k] = all / real(kept);
    }
  }
}

void march(Cuda q, In<real, kRays, 3> origins, In<real, kRays, 3> directions, In<real, kRays> near,
           In<real, kRays> far, Payload<kEntries> any, int64_t resolution, int64_t norm, int64_t spacing,
           int64_t steps, double padding, double stop, Out<real, kRays, kEdges> t) {
  require(resolution > 0 && resolution <= kMostCells && any.size[0] == resolution * resolution * resolution,
          "baked must have resolution^3 cells, of a resolution of at most 1290");
  require(steps > 0 && steps <= 4096, "steps must lie in 1..4096");
  with_dtype(any, [&](auto baked) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(baked.data)>>;
    launch("march", march_kernel<T>, blocks(near.size[0], kThreads), kThreads, q, origins, directions, near,
           far, baked, int(resolution), norm, spacing, March{int(steps), real(padding), real(stop)}, t);
  });
}

void representatives(Cuda q, In<real, kRays, 3> origins, In<real, kRays, 3> directions,
                     In<real, kRays, kEdges> t, In<real, kRays, kSamples> w, Out<real, kRays, kFine, 3> x,
                     Out<real, kRays, kFine> w_kept) {
  require(t.size[1] == w.size[1] + 1 && w.size[1] > 0,
          "t must have one edge more than samples, and there must be some");
  launch("representatives", representatives_kernel, blocks(w.size[0], kThreads), kThreads, q, origins,
         directions, t, w, x, w_kept);
}

}  // namespace raymarch
