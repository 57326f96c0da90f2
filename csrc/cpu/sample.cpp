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

// One loop per spacing: known beforehand, it leaves no branch in the loop.
template <class Body>
inline void each_edge(int64_t spacing, int edges, const Body& body) {
  switch (spacing) {
    case kLinearDisparity:
      for (int j = 0; j < edges; ++j) body(kLinearDisparity, j);
      return;
    case kSqrt:
      for (int j = 0; j < edges; ++j) body(kSqrt, j);
      return;
    case kPiecewise:
      for (int j = 0; j < edges; ++j) body(kPiecewise, j);
      return;
    default:
      for (int j = 0; j < edges; ++j) body(spacing, j);
  }
}

RM_CLONES void distances(int64_t spacing, Interval ends, int edges, const real* __restrict s,
                         real* __restrict t) {
  each_edge(spacing, edges, [&](int64_t spacing, int j) { t[j] = t_from_s(spacing, ends, s[j]); });
}
RM_CLONES void normalised(int64_t spacing, Interval ends, int edges, const real* __restrict t,
                          real* __restrict s) {
  each_edge(spacing, edges, [&](int64_t spacing, int j) { s[j] = s_from_t(spacing, ends, t[j]); });
}

RM_CLONES void even_edges(int bins, real* s) {
  for (int j = 0; j <= bins; ++j) s[j] = real(j) / real(bins);
}
RM_CLONES void jittered_edges(int bins, real jitter, real* s) {
  for (int j = 0; j <= bins; ++j) s[j] = jittered_edge(j, bins, jitter);
}

// The cumulative sum of the bins' masses.
RM_CLONES void cumulate(int bins, const real* __restrict weights, real exponent, real padding,
                        real* __restrict upto) {
  if (exponent == 1)
    for (int i = 0; i < bins; ++i) upto[i] = padded(weights[i], padding);
  else
    for (int i = 0; i < bins; ++i) upto[i] = annealed(weights[i], exponent, padding);
  real sum = 0;
  for (int i = 0; i < bins; ++i) upto[i] = sum += upto[i];
  if (sum >= kLeastMass) return;
  const real each = (kLeastMass - sum) / real(bins);
  for (int i = 0; i < bins; ++i) upto[i] += each * real(i + 1);
}

RM_CLONES void spread_targets(int edges, real jitter, real total, real* targets) {
  for (int k = 0; k < edges; ++k) targets[k] = spread(k, edges, jitter) * total;
}

// Finds each target's bin without a search or a branch: target k lies in the k-th of `edges` equal parts of
// the total, so a bin's end needs only one comparison to say which targets are beyond it.
void invert(int bins, const real* upto, const real* e, int edges, const real* targets, real* s) {
  static thread_local std::vector<int> steps;  // by how many bins a target is further than the one before
  steps.assign(size_t(edges) + 1, 0);
  const real parts = real(edges) / upto[bins - 1], last = real(edges - 1);
  for (int i = 0; i + 1 < bins; ++i) {
    const real part = upto[i] * parts;
    const int k = part < last ? int(part) : edges - 1;
    ++steps[size_t(k + (targets[k] < upto[i]))];
  }
  for (int k = 0, bin = 0; k < edges; ++k) {
    bin += steps[size_t(k)];
    s[k] = invert_bin(targets[k], bin ? upto[bin - 1] : 0, upto[bin], e[bin], e[bin + 1]);
  }
}

RM_CLONES void midpoints(Vec3 o, Vec3 d, int samples, const real* __restrict t, real* __restrict x) {
  for (int i = 0; i < samples; ++i) store3(x, i, o + (real(0.5) * (t[i] + t[i + 1])) * d);
}

// One loop per norm, as for spacings.
template <class Body>
inline void each_sample(int64_t norm, int samples, const Body& body) {
  if (norm == kLinf)
    for (int i = 0; i < samples; ++i) body(kLinf, i);
  else
    for (int i = 0; i < samples; ++i) body(kL2, i);
}

RM_CLONES void unit_midpoints(int64_t norm, Vec3 o, Vec3 d, int samples, const real* __restrict t,
                              real* __restrict y) {
  each_sample(norm, samples, [&](int64_t norm, int i) {
    store3(y, i, contract_unit(norm, o + (real(0.5) * (t[i] + t[i + 1])) * d));
  });
}
RM_CLONES void unit_midpoints_vjp(int64_t norm, Vec3 o, Vec3 d, int samples, const real* __restrict t,
                                  const real* __restrict grad_y, real* __restrict grad_x) {
  each_sample(norm, samples, [&](int64_t norm, int i) {
    store3(grad_x, i, contract_unit_vjp(norm, o + (real(0.5) * (t[i] + t[i + 1])) * d, load3(grad_y, i)));
  });
}

struct RayGradient {
  Vec3 origin, direction;
};
RM_CLONES RayGradient summed(int samples, const real* __restrict t, const real* __restrict grad_x) {
  RayGradient sum{{0, 0, 0}, {0, 0, 0}};
  for (int i = 0; i < samples; ++i) {
    const Vec3 g = load3(grad_x, i);
    sum.origin = sum.origin + g, sum.direction = sum.direction + (real(0.5) * (t[i] + t[i + 1])) * g;
  }
  return sum;
}

std::vector<real>& scratch(int64_t size) {
  static thread_local std::vector<real> room;
  if (int64_t(room.size()) < size) room.resize(size_t(size));
  return room;
}

void require_sampling(int64_t spacing, int64_t jitter, bool has_counter) {
  require(spacing >= 0 && spacing < kSpacings, "spacing is not a known one");
  require(jitter >= 0 && jitter < kJitters, "jitter is not a known one");
  require(jitter == kNoJitter || has_counter, "jitter needs a counter");
}

}  // namespace

void sample_spaced(Cpu, In<real, kRays> near, In<real, kRays> far, Maybe<In<int64_t, 2>> counter,
                   Out<real, kRays, kEdges> s, Out<real, kRays, kEdges> t, int64_t spacing, int64_t jitter,
                   int64_t stream) {
  require_sampling(spacing, jitter, bool(counter));
  require(s.size[1] >= 2, "needs at least one sample per ray");
  const int64_t edges = s.size[1];
  const uint64_t key = jitter ? random_key(counter.data[0], counter.data[1], stream) : 0;
  parallel_for(near.size[0], 4 * edges, [&](int64_t ray) {
    real* row = s.data + ray * edges;
    if (jitter == kNoJitter) even_edges(int(edges) - 1, row);
    if (jitter == kPerRay) jittered_edges(int(edges) - 1, uniform(key, uint64_t(ray)), row);
    if (jitter == kPerEdge)
      for (int64_t j = 0; j < edges; ++j)
        row[j] = jittered_edge(int(j), int(edges) - 1, uniform(key, uint64_t(ray * edges + j)));
    distances(spacing, warped_interval(spacing, near.data[ray], far.data[ray]), int(edges), row,
              t.data + ray * edges);
  });
}

void sample_pdf(Cpu, In<real, kRays, kFineEdges> s, In<real, kRays, kFine> weights, In<real, kRays> near,
                In<real, kRays> far, Maybe<In<int64_t, 2>> counter, Maybe<In<real, 1>> anneal,
                Out<real, kRays, kEdges> s_new, Out<real, kRays, kEdges> t_new, int64_t spacing,
                int64_t jitter, int64_t stream, double padding) {
  require_sampling(spacing, jitter, bool(counter));
  require(s.size[1] == weights.size[1] + 1, "s must have one edge more than weights has samples");
  require(weights.size[1] >= 1 && s_new.size[1] >= 2, "needs at least one sample per ray");
  const int bins = int(weights.size[1]), edges = int(s_new.size[1]);
  const real exponent = anneal ? anneal.data[0] : real(1);
  const uint64_t key = jitter ? random_key(counter.data[0], counter.data[1], stream) : 0;
  parallel_for(near.size[0], 8 * (bins + edges), [&](int64_t ray) {
    real* upto = scratch(bins + edges).data();  // upto[i]: mass of bins 0 .. i
    real* targets = upto + bins;
    real* row = s_new.data + ray * edges;
    cumulate(bins, weights.data + ray * bins, exponent, real(padding), upto);
    const real total = upto[bins - 1];
    if (jitter == kPerEdge)
      for (int k = 0; k < edges; ++k)
        targets[k] = spread(k, edges, uniform(key, uint64_t(ray * edges + k))) * total;
    else
      spread_targets(edges, jitter ? uniform(key, uint64_t(ray)) : real(0.5), total, targets);
    invert(bins, upto, s.data + ray * (bins + 1), edges, targets, row);
    distances(spacing, warped_interval(spacing, near.data[ray], far.data[ray]), edges, row,
              t_new.data + ray * edges);
  });
}

void sample_distances(Cpu, In<real, kRays, kEdges> from, In<real, kRays> near, In<real, kRays> far,
                      Out<real, kRays, kEdges> to, int64_t spacing, bool inverse) {
  require_sampling(spacing, kNoJitter, false);
  const int64_t edges = from.size[1];
  parallel_for(near.size[0], 4 * edges, [&](int64_t ray) {
    const Interval ends = warped_interval(spacing, near.data[ray], far.data[ray]);
    (inverse ? normalised : distances)(spacing, ends, int(edges), from.data + ray * edges,
                                       to.data + ray * edges);
  });
}

void positions_forward(Cpu, In<real, kRays, 3> origins, In<real, kRays, 3> directions,
                       In<real, kRays, kEdges> t, Out<real, kRays, kSamples, 3> x) {
  require(t.size[1] == x.size[1] + 1, "t must have one edge more than there are samples");
  const int64_t samples = x.size[1];
  parallel_for(t.size[0], 4 * samples, [&](int64_t ray) {
    midpoints(load3(origins.data, ray), load3(directions.data, ray), int(samples),
              t.data + ray * (samples + 1), x.data + 3 * ray * samples);
  });
}

void positions_backward(Cpu, In<real, kRays, kEdges> t, In<real, kRays, kSamples, 3> grad_x,
                        Out<real, kRays, 3> grad_origins, Out<real, kRays, 3> grad_directions) {
  require(t.size[1] == grad_x.size[1] + 1, "t must have one edge more than there are samples");
  const int64_t samples = grad_x.size[1];
  parallel_for(t.size[0], 4 * samples, [&](int64_t ray) {
    const RayGradient sum =
        summed(int(samples), t.data + ray * (samples + 1), grad_x.data + 3 * ray * samples);
    store3(grad_origins.data, ray, sum.origin), store3(grad_directions.data, ray, sum.direction);
  });
}

void sample_unit_positions_forward(Cpu, In<real, kRays, 3> origins, In<real, kRays, 3> directions,
                                   In<real, kRays, kEdges> t, Out<real, kRays, kSamples, 3> y, int64_t norm) {
  require(t.size[1] == y.size[1] + 1, "t must have one edge more than there are samples");
  const int64_t samples = y.size[1];
  parallel_for(t.size[0], 8 * samples, [&](int64_t ray) {
    unit_midpoints(norm, load3(origins.data, ray), load3(directions.data, ray), int(samples),
                   t.data + ray * (samples + 1), y.data + 3 * ray * samples);
  });
}

void sample_unit_positions_backward(Cpu, In<real, kRays, 3> origins, In<real, kRays, 3> directions,
                                    In<real, kRays, kEdges> t, In<real, kRays, kSamples, 3> grad_y,
                                    Out<real, kRays, 3> grad_origins, Out<real, kRays, 3> grad_directions,
                                    int64_t norm) {
  require(t.size[1] == grad_y.size[1] + 1, "t must have one edge more than there are samples");
  const int64_t samples = grad_y.size[1];
  parallel_for(t.size[0], 12 * samples, [&](int64_t ray) {
    const real* edges = t.data + ray * (samples + 1);
    real* grad_x = scratch(3 * samples).data();
    unit_midpoints_vjp(norm, load3(origins.data, ray), load3(directions.data, ray), int(samples), edges,
                       grad_y.data + 3 * ray * samples, grad_x);
    const RayGradient sum = summed(int(samples), edges, grad_x);
    store3(grad_origins.data, ray, sum.origin), store3(grad_directions.data, ray, sum.direction);
  });
}

}  // namespace raymarch
