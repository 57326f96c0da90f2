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
template <class T, int64_t kNorm>
struct Field {
  const T* baked;
  int resolution;
  Vec3 o, d;

  __device__ __forceinline__ real thickness(real front, real back) const {
    const Around at = cell_around(kNorm, o + real(0.5) * (front + back) * d, resolution);
    const real tau = step_thickness(to_float(baked[at.cell]), back - front);
    return at.exists ? tau : real(0);
  }
  // The thickness of steps i .. i + kAtOnce - 1, of which those past the last have none; moves `front` on.
  template <class Edges>
  __device__ __forceinline__ void look(const Edges& edge, int i, int steps, real& front,
                                       real (&tau)[kAtOnce]) const {
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      const real back = edge(i + j + 1);
      const real thick = thickness(front, back);  // beyond the last step, too: no branch around the load
      tau[j] = i + j < steps ? thick : real(0);
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
template <class Looked, class Edges>
__device__ __forceinline__ void march_ray(const Looked& field, const Edges& edge, const OwnEdges& exact,
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

template <class T, int64_t kNorm>
__global__ void __launch_bounds__(kThreads)
    march_kernel(In<real, kRays, 3> origins, In<real, kRays, 3> directions, In<real, kRays> near,
                 In<real, kRays> far, In<T, kEntries> baked, int resolution, int64_t spacing, March by,
                 Out<real, kRays, kEdges> t) {
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
  const Field<T, kNorm> field{baked.data, resolution, load3(origins.data, ray), load3(directions.data, ray)};
  const int edges = int(t.size[1]);
  real* to = t.data + ray * edges;
  if (alike)
    march_ray(field, KnownEdges{known}, own, by, upto_block, edges, to);
  else
    march_ray(field, own, own, by, upto_block, edges, to);
}

// A few lanes per ray, twice over its weights: their sum, then the samples in which the middles of shares are
// reached. Lanes add in another order each, so what they have summed is made to rise from lane to lane: no
// middle may be met twice.
constexpr int kRayLanes = 8;
__device__ __forceinline__ real rising_sum(real mass, real upto) {
  real x = mass;
#pragma unroll
  for (int d = 1; d < kRayLanes; d *= 2) {
    const real other = __shfl_up_sync(~0u, x, d, kRayLanes);
    if (lane() % kRayLanes >= d) x += other;
  }
  x += upto;
#pragma unroll
  for (int d = 1; d < kRayLanes; d *= 2)  // the lowest lanes meet themselves
    x = fmaxf(x, __shfl_up_sync(~0u, x, d, kRayLanes));
  return x;
}
__global__ void __launch_bounds__(kThreads)
    representatives_kernel(In<real, kRays, 3> origins, In<real, kRays, 3> directions,
                           In<real, kRays, kEdges> t, In<real, kRays, kSamples> w,
                           Out<real, kRays, kFine, 3> x, Out<real, kRays, kFine> w_kept) {
  const int64_t ray = item() / kRayLanes;
  const bool exists = ray < w.size[0];
  const int samples = exists ? int(w.size[1]) : 0, kept = int(w_kept.size[1]), me = lane() % kRayLanes;
  const int64_t at = exists ? ray : 0;
  const real *weight = w.data + at * w.size[1], *edge = t.data + at * (w.size[1] + 1);
  const Vec3 o = load3(origins.data, at), d = load3(directions.data, at);

  real all = real(0), upto = real(0);
  for (int i = me; i < samples; i += kRayLanes) all += or_zero(weight[i]);
#pragma unroll
  for (int apart = kRayLanes / 2; apart > 0; apart /= 2) all += __shfl_xor_sync(~0u, all, apart, kRayLanes);
  const int longest = int(w.size[1]);  // of all rays: lanes stay together
  int next = 0;                        // shares whose middle lies before this round
  for (int begin = 0; begin < longest; begin += kRayLanes) {
    const int i = begin + me;
    const bool last = i == samples - 1;
    const real mass = i < samples ? or_zero(weight[i]) : real(0);
    const real after = rising_sum(mass, upto), left = __shfl_up_sync(~0u, after, 1, kRayLanes);
    const real before = me == 0 ? upto : left;
    int mine = next;
    while (mine < kept && before > spread(mine, kept, real(0.5)) * all) ++mine;
    for (; i < samples && mine < kept && (after > spread(mine, kept, real(0.5)) * all || last); ++mine) {
      store3(x.data, ray * kept + mine, o + real(0.5) * (edge[i] + edge[i + 1]) * d);
      w_kept.data[ray * kept + mine] = all / real(kept);
    }
    upto = __shfl_sync(~0u, after, kRayLanes - 1, kRayLanes);
    while (next < kept && upto > spread(next, kept, real(0.5)) * all) ++next;
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
    const auto kernel = norm == kLinf ? march_kernel<T, kLinf> : march_kernel<T, kL2>;
    launch("march", kernel, blocks(near.size[0], kThreads), kThreads, q, origins, directions, near, far,
           baked, int(resolution), spacing, March{int(steps), real(padding), real(stop)}, t);
  });
}

void representatives(Cuda q, In<real, kRays, 3> origins, In<real, kRays, 3> directions,
                     In<real, kRays, kEdges> t, In<real, kRays, kSamples> w, Out<real, kRays, kFine, 3> x,
                     Out<real, kRays, kFine> w_kept) {
  require(t.size[1] == w.size[1] + 1 && w.size[1] > 0,
          "t must have one edge more than samples, and there must be some");
  launch("representatives", representatives_kernel, blocks(w.size[0] * kRayLanes, kThreads), kThreads, q,
         origins, directions, t, w, x, w_kept);
}

}  // namespace raymarch
