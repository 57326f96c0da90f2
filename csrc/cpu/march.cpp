#include "math/march.h"

#include <vector>

#include "cpu/parallel.h"
#include "ops.h"

namespace raymarch {
namespace {

// The thickness before every step of one ray, and behind the last that is looked at; returns how many are.
template <class T>
int thicknesses(const T* baked, int resolution, int64_t norm, int64_t spacing, int steps, real stop, Vec3 o,
                Vec3 d, Interval ends, real* upto) {
  real front = t_from_s(spacing, ends, 0);
  upto[0] = 0;
  for (int i = 0; i < steps; ++i) {
    if (!(upto[i] < stop)) return i;
    const real back = t_from_s(spacing, ends, real(i + 1) * (1 / real(steps)));
    const Around at = cell_around(norm, o + real(0.5) * (front + back) * d, resolution);
    const real density = at.exists ? to_float(baked[at.cell]) : real(0);
    upto[i + 1] = upto[i] + step_thickness(density, back - front);
    front = back;
  }
  return steps;
}

}  // namespace

void march(Cpu, In<real, kRays, 3> origins, In<real, kRays, 3> directions, In<real, kRays> near,
           In<real, kRays> far, Payload<kEntries> any, int64_t resolution, int64_t norm, int64_t spacing,
           int64_t steps, double padding, double stop, Out<real, kRays, kEdges> t) {
  require(resolution > 0 && resolution <= kMostCells && any.size[0] == resolution * resolution * resolution,
          "baked must have resolution^3 cells, of a resolution of at most 1290");
  require(steps > 0 && steps <= 4096, "steps must lie in 1..4096");
  const int edges = int(t.size[1]), count = int(steps);
  const real each = real(1) / real(steps);
  with_dtype(any, [&](auto baked) {
    parallel_for(near.size[0], 40 * steps, [&](int64_t ray) {
      static thread_local std::vector<real> upto;
      upto.assign(size_t(count) + 1, 0);
      const Interval ends = warped_interval(spacing, near.data[ray], far.data[ray]);
      const int seen = thicknesses(baked.data, int(resolution), norm, spacing, count, real(stop),
                                   load3(origins.data, ray), load3(directions.data, ray), ends, upto.data());
      for (int i = seen; i < count; ++i) upto[i + 1] = upto[i];
      const real total = marched_mass(upto[count], count, real(padding));
      for (int k = 0, bin = 0; k < edges; ++k) {
        const real target = spread(k, edges, real(0.5)) * total;
        while (bin < count - 1 && marched_mass(upto[bin + 1], bin + 1, real(padding)) <= target) ++bin;
        const real s = invert_bin(target, marched_mass(upto[bin], bin, real(padding)),
                                  marched_mass(upto[bin + 1], bin + 1, real(padding)), real(bin) * each,
                                  real(bin + 1) * each);
        t.data[ray * edges + k] = t_from_s(spacing, ends, s);
      }
    });
  });
}

void representatives(Cpu, In<real, kRays, 3> origins, In<real, kRays, 3> directions,
                     In<real, kRays, kEdges> t, In<real, kRays, kSamples> w, Out<real, kRays, kFine, 3> x,
                     Out<real, kRays, kFine> w_kept) {
  const int samples = int(w.size[1]), kept = int(w_kept.size[1]);
  require(t.size[1] == samples + 1 && samples > 0,
          "t must have one edge more than samples, and there must be some");
  parallel_for(w.size[0], 4 * samples, [&](int64_t ray) {
    const real *weight = w.data + ray * samples, *edge = t.data + ray * (samples + 1);
    const Vec3 o = load3(origins.data, ray), d = load3(directions.data, ray);
    real all = 0, upto = 0;
    for (int i = 0; i < samples; ++i) all += or_zero(weight[i]);
    for (int i = 0, k = 0; k < kept; ++i) {
      upto += or_zero(weight[i]);
      for (; k < kept && (upto > spread(k, kept, real(0.5)) * all || i == samples - 1); ++k) {
        store3(x.data, ray * kept + k, o + real(0.5) * (edge[i] + edge[i + 1]) * d);
        w_kept.data[ray * kept + k] = all / real(kept);
      }
    }
  });
}

}  // namespace raymarch
