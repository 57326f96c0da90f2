#include "math/losses.h"

#include <algorithm>

#include "cpu/parallel.h"
#include "math/random.h"
#include "ops.h"

namespace raymarch {
namespace {

using Edges = In<real, kRays, kEdges>;
using FineEdges = In<real, kRays, kFineEdges>;
using Weights = In<real, kRays, kSamples>;
using FineWeights = In<real, kRays, kFine>;
using Normals = In<real, kRays, kSamples, 3>;

void check_interlevel(FineEdges s, FineWeights w, Edges s_proposal, Weights w_proposal) {
  require(s.size[1] == w.size[1] + 1, "s must have one edge more than weights has samples");
  require(s_proposal.size[1] == w_proposal.size[1] + 1,
          "s_proposal must have one edge more than weights_proposal has samples");
  require(w.size[1] >= 1 && w_proposal.size[1] >= 1, "needs at least one sample per ray");
}

void check_distortion(Edges s, Weights w) {
  require(s.size[1] == w.size[1] + 1, "s must have one edge more than weights has samples");
}

// Calls body(i, low, high, bound) for each fine bin i of one ray: it touches the proposal bins low .. high,
// whose weights sum to bound. Edges increase, so low and high do, and the sums are short: a fine bin begins
// at most one bin before the last one ended. (Differences of a running sum would lose small bounds.)
template <class Body>
void each_bound(const real* s, int64_t fine, const real* s_proposal, const real* w_proposal, int64_t bins,
                const Body& body) {
  int64_t low = 0, high = 0;
  for (int64_t i = 0; i < fine; ++i) {
    while (low < bins - 1 && s_proposal[low + 1] <= s[i]) ++low;
    while (high < bins - 1 && s_proposal[high + 1] <= s[i + 1]) ++high;
    real bound = 0;
    for (int64_t k = low; k <= high; ++k) bound += w_proposal[k];
    body(i, low, high, bound);
  }
}

}  // namespace

void interlevel_forward(Cpu, FineEdges s, FineWeights w, Edges s_proposal, Weights w_proposal,
                        Out<real, kRays> loss) {
  check_interlevel(s, w, s_proposal, w_proposal);
  const int64_t fine = w.size[1], bins = w_proposal.size[1];
  parallel_for(w.size[0], fine + bins, [&](int64_t ray) {
    const real* of_ray = w.data + ray * fine;
    real sum = 0;
    each_bound(s.data + ray * (fine + 1), fine, s_proposal.data + ray * (bins + 1),
               w_proposal.data + ray * bins, bins,
               [&](int64_t i, int64_t, int64_t, real bound) { sum += interlevel_term(of_ray[i], bound); });
    loss.data[ray] = sum / real(fine);
  });
}

void interlevel_backward(Cpu, FineEdges s, FineWeights w, Edges s_proposal, Weights w_proposal,
                         In<real, kRays> grad_loss, Out<real, kRays, kSamples> grad_w_proposal) {
  check_interlevel(s, w, s_proposal, w_proposal);
  const int64_t fine = w.size[1], bins = w_proposal.size[1];
  parallel_for(w.size[0], fine + 2 * bins, [&](int64_t ray) {
    real* out = grad_w_proposal.data + ray * bins;
    std::fill(out, out + bins, real(0));
    const real* of_ray = w.data + ray * fine;
    const real g = grad_loss.data[ray] / real(fine);
    each_bound(s.data + ray * (fine + 1), fine, s_proposal.data + ray * (bins + 1),
               w_proposal.data + ray * bins, bins, [&](int64_t i, int64_t low, int64_t high, real bound) {
                 const real q = interlevel_vjp(of_ray[i], bound, g);
                 for (int64_t k = low; k <= high; ++k) out[k] += q;
               });
  });
}

void distortion_forward(Cpu, Edges s, Weights w, Out<real, kRays> loss) {
  check_distortion(s, w);
  const int64_t n = w.size[1];
  parallel_for(w.size[0], n * 2, [&](int64_t ray) {
    const real* e = s.data + ray * (n + 1);
    const real* of_ray = w.data + ray * n;
    real sum = 0, mass = 0, before = 0;
    for (int64_t i = 0; i < n; ++i) {
      if (i) before += real(0.5) * (e[i + 1] - e[i - 1]) * mass;
      sum += distortion_term(of_ray[i], before, e[i + 1] - e[i]);
      mass += of_ray[i];
    }
    loss.data[ray] = sum;
  });
}

void distortion_backward(Cpu, Edges s, Weights w, In<real, kRays> grad_loss,
                         Out<real, kRays, kSamples> grad_w) {
  check_distortion(s, w);
  const int64_t n = w.size[1];
  parallel_for(w.size[0], n * 4, [&](int64_t ray) {
    const real* e = s.data + ray * (n + 1);
    const real* of_ray = w.data + ray * n;
    real* out = grad_w.data + ray * n;
    const real g = grad_loss.data[ray];
    real mass = 0, before = 0;
    for (int64_t i = 0; i < n; ++i) {
      if (i) before += real(0.5) * (e[i + 1] - e[i - 1]) * mass;
      out[i] = before;
      mass += of_ray[i];
    }
    real behind = 0;
    mass = 0;
    for (int64_t i = n - 1; i >= 0; --i) {
      if (i < n - 1) behind += real(0.5) * (e[i + 2] - e[i]) * mass;
      out[i] = distortion_vjp(of_ray[i], out[i], behind, e[i + 1] - e[i], g);
      mass += of_ray[i];
    }
  });
}

void orientation_forward(Cpu, Weights w, Normals normals, In<real, kRays, 3> directions,
                         Out<real, kRays> loss) {
  const int64_t n = w.size[1];
  parallel_for(w.size[0], n * 2, [&](int64_t ray) {
    const Vec3 d = load3(directions.data, ray);
    real sum = 0;
    for (int64_t i = ray * n; i < (ray + 1) * n; ++i)
      sum += w.data[i] * square(facing_away(load3(normals.data, i), d));
    loss.data[ray] = sum;
  });
}

void orientation_backward(Cpu, Weights w, Normals normals, In<real, kRays, 3> directions,
                          In<real, kRays> grad_loss, Maybe<Out<real, kRays, kSamples>> grad_w,
                          Maybe<Out<real, kRays, kSamples, 3>> grad_normals,
                          Maybe<Out<real, kRays, 3>> grad_directions) {
  const int64_t n = w.size[1];
  parallel_for(w.size[0], n * 4, [&](int64_t ray) {
    const Vec3 d = load3(directions.data, ray);
    const real g = grad_loss.data[ray];
    Vec3 to_d{0, 0, 0};
    for (int64_t i = ray * n; i < (ray + 1) * n; ++i) {
      const Vec3 normal = load3(normals.data, i);
      const real away = facing_away(normal, d), q = 2 * g * w.data[i] * away;
      if (grad_w) grad_w.data[i] = g * square(away);
      if (grad_normals) store3(grad_normals.data, i, q * d);
      if (away > 0) to_d = to_d + q * normal;  // a NaN normal has away = 0
    }
    if (grad_directions) store3(grad_directions.data, ray, to_d);
  });
}

void predicted_normals_forward(Cpu, Weights w, Normals normals, Normals predicted, Out<real, kRays> loss) {
  const int64_t n = w.size[1];
  parallel_for(w.size[0], n * 2, [&](int64_t ray) {
    real sum = 0;
    for (int64_t i = ray * n; i < (ray + 1) * n; ++i)
      sum += w.data[i] * (1 - dot(load3(normals.data, i), load3(predicted.data, i)));
    loss.data[ray] = sum;
  });
}

void predicted_normals_backward(Cpu, Weights w, Normals normals, In<real, kRays> grad_loss,
                                Out<real, kRays, kSamples, 3> grad_predicted) {
  const int64_t n = w.size[1];
  parallel_for(w.size[0], n * 2, [&](int64_t ray) {
    for (int64_t i = ray * n; i < (ray + 1) * n; ++i)
      store3(grad_predicted.data, i, -(grad_loss.data[ray] * w.data[i]) * load3(normals.data, i));
  });
}

void random_colour(Cpu, In<int64_t, 2> counter, Out<float, kRays, 3> colour, int64_t stream) {
  const uint64_t key = random_key(counter.data[0], counter.data[1], stream);
  parallel_for(colour.size[0] * 3, 4, [&](int64_t i) { colour.data[i] = float(uniform(key, uint64_t(i))); });
}

}  // namespace raymarch
