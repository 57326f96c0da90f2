// One thread per ray, so that the rays of a tile of pixels walk side by side: their cells are neighbours.
#include "cuda/launch.cuh"
#include "math/march.h"
#include "ops.h"

namespace raymarch {

constexpr int kThreads = 128;

// A ray against the grid.
template <class T>
struct Walk {
  const T* baked;
  int resolution;
  int64_t norm, spacing;
  Vec3 o, d;
  Interval ends;
  real each;  // 1 / steps

  __device__ __forceinline__ real edge(int i) const { return t_from_s(spacing, ends, real(i) * each); }
  __device__ __forceinline__ real thickness(real front, real back) const {
    const Vec3 y = contract_unit(norm, o + real(0.5) * (front + back) * d);
    if (!selected(y)) return real(0);
    return step_thickness(to_float(baked[baked_cell(y, resolution)]), back - front);
  }
};

// Twice over the ray: its mass, then the edges, each as soon as the mass before it is reached.
template <class T>
__global__ void __launch_bounds__(kThreads)
    march_kernel(In<real, kRays, 3> origins, In<real, kRays, 3> directions, In<real, kRays> near,
                 In<real, kRays> far, In<T, kEntries> baked, int resolution, int64_t norm, int64_t spacing,
                 int steps, real padding, real stop, Out<real, kRays, kEdges> t) {
  const int64_t ray = item();
  if (ray >= near.size[0]) return;
  const Walk<T> walk{baked.data,
                     resolution,
                     norm,
                     spacing,
                     load3(origins.data, ray),
                     load3(directions.data, ray),
                     warped_interval(spacing, near.data[ray], far.data[ray]),
                     real(1) / real(steps)};
  real all = real(0), front = walk.edge(0);
  for (int i = 0; i < steps && all < stop; ++i) {
    const real back = walk.edge(i + 1);
    all += walk.thickness(front, back);
    front = back;
  }

  const int edges = int(t.size[1]);
  const real total = marched_mass(all, steps, padding);
  real upto = real(0), before = marched_mass(real(0), 0, padding);
  real target = spread(0, edges, real(0.5)) * total;
  real* to = t.data + ray * edges;
  front = walk.edge(0);
  for (int i = 0, k = 0; i < steps && k < edges; ++i) {
    const real back = walk.edge(i + 1);
    if (upto < stop) upto += walk.thickness(front, back);
    front = back;
    const real after = marched_mass(upto, i + 1, padding);
    while (k < edges && (after > target || i == steps - 1)) {
      const real s = invert_bin(target, before, after, real(i) * walk.each, real(i + 1) * walk.each);
      to[k] = t_from_s(spacing, walk.ends, s);
      target = spread(++k, edges, real(0.5)) * total;
    }
    before = after;
  }
}

// One thread per ray ranks each sample against the others.
__global__ void __launch_bounds__(kThreads)
    heaviest_kernel(In<real, kRays, 3> origins, In<real, kRays, 3> directions, In<real, kRays, kEdges> t,
                    In<real, kRays, kSamples> w, Out<real, kRays, kFine, 3> x,
                    Out<real, kRays, kFine> w_kept) {
  const int64_t ray = item();
  if (ray >= w.size[0]) return;
  const int samples = int(w.size[1]), kept = int(w_kept.size[1]);
  const real* weight = w.data + ray * samples;
  const real* edge = t.data + ray * (samples + 1);
  const Vec3 o = load3(origins.data, ray), d = load3(directions.data, ray);

  real all = real(0), sum = real(0);
  int count = 0;
  for (int i = 0; i < samples; ++i) {
    const real own = or_zero(weight[i]);
    all += own;
    int rank = 0;
    for (int j = 0; j < samples && rank < kept; ++j) rank += heavier(or_zero(weight[j]), j, own, i);
    if (rank >= kept) continue;
    store3(x.data, ray * kept + count, o + real(0.5) * (edge[i] + edge[i + 1]) * d);
    w_kept.data[ray * kept + count++] = own;
    sum += own;
  }
  const real scale = kept_scale(sum, all);
  for (int k = 0; k < kept; ++k) w_kept.data[ray * kept + k] *= scale;
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
           far, baked, int(resolution), norm, spacing, int(steps), real(padding), real(stop), t);
  });
}

void heaviest(Cuda q, In<real, kRays, 3> origins, In<real, kRays, 3> directions, In<real, kRays, kEdges> t,
              In<real, kRays, kSamples> w, Out<real, kRays, kFine, 3> x, Out<real, kRays, kFine> w_kept) {
  const int64_t samples = w.size[1], kept = w_kept.size[1];
  require(t.size[1] == samples + 1, "t must have one edge more than samples");
  require(kept >= 1 && kept <= kMostKept && kept <= samples,
          "must keep 1 to 8 samples, and no more than there are");
  launch("heaviest", heaviest_kernel, blocks(w.size[0], kThreads), kThreads, q, origins, directions, t, w, x,
         w_kept);
}

}  // namespace raymarch
