#include <algorithm>
#include <vector>

#include "cpu/clones.h"
#include "cpu/parallel.h"
#include "math/contract.h"
#include "math/random.h"
#include "math/spacing.h"
#include "math/stepfun.h"
#include "ops.h"

namespace raymarch {
namespace {

real midpoint(In<real, kRays, kEdges> t, int64_t ray, int64_t i) {
  const real* edges = t.data + ray * t.size[1] + i;
  return real(0.5) * (edges[0] + edges[1]);
}

constexpr int kBlock = 64;  // points per vectorised loop

struct Ray {
  Vec3 o, d;
};
template <int64_t norm>
inline void unit_block(Ray ray, const real* t, int count, real* y) {
  real a[kBlock], b[kBlock], c[kBlock];
  for (int i = 0; i < count; ++i) {
    const Vec3 f = contract_unit(norm, ray.o + real(0.5) * (t[i] + t[i + 1]) * ray.d);
    a[i] = f.x, b[i] = f.y, c[i] = f.z;
  }
  for (int i = 0; i < count; ++i) y[3 * i] = a[i], y[3 * i + 1] = b[i], y[3 * i + 2] = c[i];
}
template <int64_t norm>
inline void unit_block_vjp(Ray ray, const real* t, int count, const real* grad_y, real (*g)[kBlock],
                           real* middle) {
  for (int i = 0; i < count; ++i)
    g[0][i] = grad_y[3 * i], g[1][i] = grad_y[3 * i + 1], g[2][i] = grad_y[3 * i + 2];
  real x[3][kBlock];
  for (int i = 0; i < count; ++i) {  // what the selector drops becomes the origin, with gradient 0
    middle[i] = real(0.5) * (t[i] + t[i + 1]);
    const Vec3 at = ray.o + middle[i] * ray.d;
    const bool inside = inside_unit(contract_unit(norm, at));
    x[0][i] = inside ? at.x : 0, x[1][i] = inside ? at.y : 0, x[2][i] = inside ? at.z : 0;
    for (int k = 0; k < 3; ++k) g[k][i] = inside ? real(0.25) * g[k][i] : 0;
  }
  for (int i = 0; i < count; ++i) {
    const Vec3 to = contract_vjp(norm, {x[0][i], x[1][i], x[2][i]}, {g[0][i], g[1][i], g[2][i]});
    g[0][i] = to.x, g[1][i] = to.y, g[2][i] = to.z;
  }
}
// Count is at most kBlock; the vjp leaves gradients of positions, by axis, and the midpoints.
RM_CLONES void unit_positions(int64_t norm, Ray ray, const real* t, int count, real* y) {
  if (norm == kLinf) return unit_block<kLinf>(ray, t, count, y);
  unit_block<kL2>(ray, t, count, y);
}
RM_CLONES void unit_positions_vjp(int64_t norm, Ray ray, const real* t, int count, const real* grad_y,
                                  real (*g)[kBlock], real* middle) {
  if (norm == kLinf) return unit_block_vjp<kLinf>(ray, t, count, grad_y, g, middle);
  unit_block_vjp<kL2>(ray, t, count, grad_y, g, middle);
}

}  // namespace

void sample_spaced(Cpu, In<real, kRays> near, In<real, kRays> far, Maybe<In<int64_t, 2>> counter,
                   Out<real, kRays, kEdges> s, Out<real, kRays, kEdges> t, int64_t spacing, int64_t jitter,
                   int64_t stream) {
  require(!jitter || counter, "jitter needs a counter");
  require(s.size[1] >= 2, "needs at least one sample per ray");
  const int64_t edges = s.size[1], n = edges - 1;
  const uint64_t key = jitter ? random_key(counter.data[0], counter.data[1], stream) : 0;
  parallel_for(near.size[0], edges * 4, [&](int64_t ray) {
    const Interval warped = warped_interval(spacing, near.data[ray], far.data[ray]);
    const real shared = jitter == 1 ? uniform(key, uint64_t(ray)) : real(0);
    for (int64_t j = 0; j < edges; ++j) {
      const int64_t i = ray * edges + j;
      const real u = jitter == 2 ? uniform(key, uint64_t(i)) : shared;
      s.data[i] = jitter ? jittered_edge(j, n, u) : real(j) / real(n);
      t.data[i] = t_from_s(spacing, warped, s.data[i]);
    }
  });
}

// Both the wanted positions and the cumulative sum increase, so one walk along the bins serves all of them.
void sample_pdf(Cpu, In<real, kRays, kFineEdges> s, In<real, kRays, kFine> weights, In<real, kRays> near,
                In<real, kRays> far, Maybe<In<int64_t, 2>> counter, Maybe<In<real, 1>> anneal,
                Out<real, kRays, kEdges> s_new, Out<real, kRays, kEdges> t_new, int64_t spacing,
                int64_t jitter, int64_t stream, double padding) {
  require(!jitter || counter, "jitter needs a counter");
  require(s.size[1] == weights.size[1] + 1, "s must have one edge more than weights has samples");
  require(weights.size[1] >= 1 && s_new.size[1] >= 2, "needs at least one sample per ray");
  const int64_t bins = weights.size[1], edges = s_new.size[1];
  const real exponent = anneal ? anneal.data[0] : real(1), pad = real(padding);
  const uint64_t key = jitter ? random_key(counter.data[0], counter.data[1], stream) : 0;
  parallel_for(near.size[0], (bins + edges) * 4, [&](int64_t ray) {
    static thread_local std::vector<real> mass;
    mass.resize(size_t(bins));
    const real* w = weights.data + ray * bins;
    const real* e = s.data + ray * (bins + 1);
    real total = 0;
    for (int64_t i = 0; i < bins; ++i) total += mass[size_t(i)] = annealed(w[i], exponent, pad);
    const real missing = std::max(real(0), kLeastMass - total);
    const real each = missing / real(bins), share = 1 / (total + missing);
    const Interval warped = warped_interval(spacing, near.data[ray], far.data[ray]);
    const real shared = jitter == 1 ? uniform(key, uint64_t(ray)) : real(0.5);
    int64_t bin = 0;
    real below = 0, above = std::min(real(1), (mass[0] + each) * share);
    for (int64_t k = 0; k < edges; ++k) {
      const int64_t i = ray * edges + k;
      const real u = spread(k, edges, jitter == 2 ? uniform(key, uint64_t(i)) : shared);
      while (above <= u && bin < bins - 1) {
        below = above;
        above = std::min(real(1), below + (mass[size_t(++bin)] + each) * share);
      }
      s_new.data[i] = invert_bin(u, below, above, e[bin], e[bin + 1]);
      t_new.data[i] = t_from_s(spacing, warped, s_new.data[i]);
    }
  });
}

void positions_forward(Cpu, In<real, kRays, 3> origins, In<real, kRays, 3> directions,
                       In<real, kRays, kEdges> t, Out<real, kRays, kSamples, 3> x) {
  require(t.size[1] == x.size[1] + 1, "t must have one edge more than there are samples");
  const int64_t samples = x.size[1];
  parallel_for(t.size[0], samples * 4, [&](int64_t ray) {
    const Vec3 o = load3(origins.data, ray), d = load3(directions.data, ray);
    for (int64_t i = 0; i < samples; ++i) store3(x.data, ray * samples + i, o + midpoint(t, ray, i) * d);
  });
}

void positions_backward(Cpu, In<real, kRays, kEdges> t, In<real, kRays, kSamples, 3> grad_x,
                        Out<real, kRays, 3> grad_origins, Out<real, kRays, 3> grad_directions) {
  require(t.size[1] == grad_x.size[1] + 1, "t must have one edge more than there are samples");
  const int64_t samples = grad_x.size[1];
  parallel_for(t.size[0], samples * 4, [&](int64_t ray) {
    Vec3 to_o{0, 0, 0}, to_d{0, 0, 0};
    for (int64_t i = 0; i < samples; ++i) {
      const Vec3 g = load3(grad_x.data, ray * samples + i);
      to_o = to_o + g, to_d = to_d + midpoint(t, ray, i) * g;
    }
    store3(grad_origins.data, ray, to_o), store3(grad_directions.data, ray, to_d);
  });
}

void sample_unit_positions_forward(Cpu, In<real, kRays, 3> origins, In<real, kRays, 3> directions,
                                   In<real, kRays, kEdges> t, Out<real, kRays, kSamples, 3> y, int64_t norm) {
  require(t.size[1] == y.size[1] + 1, "t must have one edge more than there are samples");
  const int64_t samples = y.size[1];
  parallel_for(t.size[0], samples * 16, [&](int64_t ray) {
    const Ray along = {load3(origins.data, ray), load3(directions.data, ray)};
    for (int64_t i = 0; i < samples; i += kBlock)
      unit_positions(norm, along, t.data + ray * (samples + 1) + i,
                     int(std::min<int64_t>(kBlock, samples - i)), y.data + 3 * (ray * samples + i));
  });
}

void sample_unit_positions_backward(Cpu, In<real, kRays, 3> origins, In<real, kRays, 3> directions,
                                    In<real, kRays, kEdges> t, In<real, kRays, kSamples, 3> grad_y,
                                    Out<real, kRays, 3> grad_origins, Out<real, kRays, 3> grad_directions,
                                    int64_t norm) {
  require(t.size[1] == grad_y.size[1] + 1, "t must have one edge more than there are samples");
  const int64_t samples = grad_y.size[1];
  parallel_for(t.size[0], samples * 16, [&](int64_t ray) {
    const Ray along = {load3(origins.data, ray), load3(directions.data, ray)};
    Vec3 to_o{0, 0, 0}, to_d{0, 0, 0};
    for (int64_t i = 0; i < samples; i += kBlock) {
      real g[3][kBlock], middle[kBlock];
      const int count = int(std::min<int64_t>(kBlock, samples - i));
      unit_positions_vjp(norm, along, t.data + ray * (samples + 1) + i, count,
                         grad_y.data + 3 * (ray * samples + i), g, middle);
      for (int k = 0; k < count; ++k) {
        const Vec3 to = {g[0][k], g[1][k], g[2][k]};
        to_o = to_o + to, to_d = to_d + middle[k] * to;
      }
    }
    store3(grad_origins.data, ray, to_o), store3(grad_directions.data, ray, to_d);
  });
}

}  // namespace raymarch
