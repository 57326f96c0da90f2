// From a field to what rays see of it and to the losses of that. One warp per ray: lanes take samples, then
// channels of hidden vectors. Sums over rays have one order.
#include "cuda/losses.cuh"
#include "cuda/sample.cuh"
#include "math/composite.h"
#include "math/transmittance.h"
#include "ops.h"

namespace raymarch {

constexpr int kThreads = 32 * kWarpsPerBlock;
constexpr int kMostLevels = 8;
constexpr int64_t kMostSamples = 4096;  // of a ray, in shared memory

struct FieldOfRays {
  In<real, kRays, kSamples> sigma;
  In<real, kRays, kEdges> s, t;
  In<real, kRays, kSamples, 3> rgb;
  Maybe<In<real, kRays, kSamples, kChannels>> hidden;
  Maybe<In<real, kRays, kSamples, 3>> normals, predicted;
  Maybe<In<real, kRays, 3>> directions;
};

struct Truth {
  In<real, kRays, kInputs> colour;
  Maybe<In<int64_t, 2>> counter;
  int64_t background, stream;
};

struct ProposalLevels {
  const real *s[kMostLevels], *w[kMostLevels];
  int bins[kMostLevels], count;
};

// What a ray's colour is compared with: what lies at random behind it, and how far off it is.
struct Compared {
  Vec3 behind, difference;
};
__device__ __forceinline__ Compared compare(const Truth& truth, int64_t ray, Vec3 colour, real opacity) {
  const real* t = truth.colour.data + ray * truth.colour.size[1];
  const real alpha = truth.colour.size[1] == 4 ? t[3] : real(-1);
  Vec3 behind = truth.background == kWhite ? Vec3{1, 1, 1} : Vec3{0, 0, 0};
  if (truth.background == kRandom) {
    const uint64_t key = random_key(truth.counter.data[0], truth.counter.data[1], truth.stream);
    const uint64_t at = uint64_t(3 * ray);
    behind = {uniform(key, at), uniform(key, at + 1), uniform(key, at + 2)};
  }
  const Vec3 wanted = truth_over({t[0], t[1], t[2]}, alpha, behind);
  if (truth.background != kRandom || alpha < 0) behind = {0, 0, 0};
  return {behind, colour + (1 - opacity) * behind - wanted};
}

// What fills the rest of a ray's colour.
__device__ __forceinline__ Vec3 backdrop(int64_t background, Vec3 last) {
  return background == kLastSample ? last : background == kWhite ? Vec3{1, 1, 1} : Vec3{0, 0, 0};
}

// How a warp lies over vectors of kVector channels, 32 at a time from `begin` on: `width` lanes along the
// channels, so that groups of lanes take consecutive samples where channels are few.
struct Spreadout {
  int count, width, groups, group, column;
  __device__ __forceinline__ Spreadout(int begin, int vectors) : count(min(32, vectors - begin)), width(1) {
    while (width < count) width *= 2;
    groups = 32 / width, group = lane() / width, column = lane() % width;
  }
};

template <int kVector>
struct alignas(sizeof(real) * kVector) Vector {
  real of[kVector];
};

// The sum of the hidden vectors of one ray under weights w.
template <int kVector>
__device__ __forceinline__ void sum_hidden(const real* hidden, const real* w, int samples, int channels,
                                           real* out) {
  using V = Vector<kVector>;
  const int vectors = channels / kVector;
  for (int begin = 0; begin < vectors; begin += 32) {
    const Spreadout at(begin, vectors);
    V sum = {};
    if (at.column < at.count) {
      const V* from = reinterpret_cast<const V*>(hidden) + begin + at.column;
#pragma unroll 4
      for (int j = at.group; j < samples; j += at.groups) {
        const V v = from[int64_t{j} * vectors];
#pragma unroll
        for (int k = 0; k < kVector; ++k) sum.of[k] += w[j] * v.of[k];
      }
    }
#pragma unroll
    for (int k = 0; k < kVector; ++k)
      for (int d = at.width; d < 32; d *= 2) sum.of[k] += __shfl_xor_sync(~0u, sum.of[k], d);
    if (at.group == 0 && at.column < at.count) reinterpret_cast<V*>(out)[begin + at.column] = sum;
  }
}

template <int kVector>
__global__ void __launch_bounds__(kThreads, 8)
    field_to_pixels_forward_kernel(FieldOfRays f, Truth truth, ProposalLevels levels,
                                   Out<real, kRays, kSamples> w, Out<real, kRays, 3> colour,
                                   Out<real, kRays> opacity, Maybe<Out<real, kRays, kChannels>> hidden_out,
                                   Out<real, kEntries, kRays> losses) {
  RM_SHARED(real, shared);
  const int64_t ray = warp(), rays = w.size[0];
  if (ray >= rays) return;
  const int samples = int(w.size[1]);
  const int64_t first = ray * samples;
  const real *t = f.t.data + ray * (samples + 1), *e = f.s.data + ray * (samples + 1);
  real* weights = shared + (threadIdx.x / 32) * samples;

  real front = 0, seen = 0, spread = 0;
  Vec3 sum = {0, 0, 0};
  Spread walk{e, samples, false};
  for (int k = 0; k < samples; k += 32) {
    const int i = k + lane();
    const bool live = i < samples;
    const real tau = live ? f.sigma.data[first + i] * interval_length(t[i], t[i + 1]) : real(0);
    const real upto = warp_inclusive_sum(tau), before = lanes_before(upto);
    const real mine = live ? weight(front + before, tau) : real(0);
    front += from_lane(upto, 31);
    if (live) {
      weights[i] = mine;
      w.data[first + i] = mine;
      sum = sum + mine * load3(f.rgb.data, first + i);
    }
    seen += mine;
    const real away = walk.next(i, mine);
    if (live) spread += distortion_term(mine, away, e[i + 1] - e[i]);
  }
  seen = warp_sum(seen), spread = warp_sum(spread), sum = warp_sum(sum);
  __syncwarp();

  real excess = 0;
  for (int level = 0; level < levels.count; ++level) {
    const int bins = levels.bins[level];
    const real *s = levels.s[level] + ray * (bins + 1), *of_bins = levels.w[level] + ray * bins;
    real of_level = 0;
    for (int i = lane(); i < samples; i += 32)
      of_level += interlevel_term(weights[i], bound_of(s, of_bins, bins, e[i], e[i + 1]));
    excess += warp_sum(of_level) / real(samples);
  }
  real away = 0, off = 0;
  if (losses.size[0] > 3) {
    const Vec3 d = load3(f.directions.data, ray);
    for (int i = lane(); i < samples; i += 32) {
      const Vec3 n = load3(f.normals.data, first + i);
      away += weights[i] * square(facing_away(n, d));
      if (losses.size[0] > 4) off += weights[i] * (1 - dot(n, load3(f.predicted.data, first + i)));
    }
    away = warp_sum(away), off = warp_sum(off);
  }
  if (lane() == 0) {
    const Vec3 c = sum + (1 - seen) * backdrop(truth.background, load3(f.rgb.data, first + samples - 1));
    store3(colour.data, ray, c);
    opacity.data[ray] = seen;
    const Vec3 d = compare(truth, ray, c, seen).difference;
    losses.data[ray] = dot(d, d);
    losses.data[rays + ray] = excess;
    losses.data[2 * rays + ray] = spread;
    if (losses.size[0] > 3) losses.data[3 * rays + ray] = away;
    if (losses.size[0] > 4) losses.data[4 * rays + ray] = off;
  }
  if (hidden_out) {
    const int channels = int(hidden_out.size[1]);
    sum_hidden<kVector>(f.hidden.data + first * channels, weights, samples, channels,
                        hidden_out.data + ray * channels);
  }
}

struct FromHidden {
  Maybe<In<real, kCode, kRays, kChannels>> parts;
  const real* scale;
};

// The way back through sum_hidden: writes gradients of hidden vectors and adds to those of the weights.
template <int kVector>
__device__ __forceinline__ void sum_hidden_vjp(const FromHidden& g, int64_t ray, const real* hidden,
                                               const real* w, int samples, int channels, bool to_weights,
                                               real* grad_w, real* grad_hidden) {
  using V = Vector<kVector>;
  const int vectors = channels / kVector;
  const real scale = g.scale ? *g.scale : real(1);
  for (int begin = 0; begin < vectors; begin += 32) {
    const Spreadout at(begin, vectors);
    const bool inside = at.column < at.count;
    V held = {};
    for (int64_t part = 0; inside && part < g.parts.size[0]; ++part) {
      const V more = reinterpret_cast<const V*>(g.parts.data +
                                                (part * g.parts.size[1] + ray) * channels)[begin + at.column];
#pragma unroll
      for (int k = 0; k < kVector; ++k) held.of[k] += more.of[k];
    }
#pragma unroll
    for (int k = 0; k < kVector; ++k) held.of[k] *= scale;
    for (int j = 0; j < samples; j += at.groups) {
      const int i = j + at.group;
      real along = 0;
      if (inside && i < samples) {
        const int64_t place = int64_t{i} * vectors + begin + at.column;
        V to;
#pragma unroll
        for (int k = 0; k < kVector; ++k) to.of[k] = w[i] * held.of[k];
        reinterpret_cast<V*>(grad_hidden)[place] = to;
        if (to_weights) {
          const V v = reinterpret_cast<const V*>(hidden)[place];
#pragma unroll
          for (int k = 0; k < kVector; ++k) along += held.of[k] * v.of[k];
        }
      }
      if (!to_weights) continue;
      for (int d = at.width / 2; d > 0; d /= 2) along += __shfl_xor_sync(~0u, along, d);
      if (at.column == 0 && i < samples) grad_w[i] += along;
    }
    __syncwarp();
  }
}

struct RayGradients {
  Out<real, kRays, kSamples> sigma;
  Out<real, kRays, kSamples, 3> rgb;
  Maybe<Out<real, kRays, kSamples, kChannels>> hidden;
  Maybe<Out<real, kRays, kSamples, 3>> predicted;
  Maybe<Out<real, kRays, 3>> directions;
};

// The warp's part of shared memory holds the weights, their gradients, and what passes each interval.
template <int kVector>
__global__ void __launch_bounds__(kThreads)
    field_to_pixels_backward_kernel(FieldOfRays f, Truth truth, bool calm, bool detached,
                                    In<real, kRays, kSamples> w, In<real, kRays, 3> colour,
                                    In<real, kRays> opacity, In<real, kEntries> grad, FromHidden from_hidden,
                                    RayGradients to) {
  RM_SHARED(real, shared);
  const int64_t ray = warp();
  if (ray >= w.size[0]) return;
  const int samples = int(w.size[1]);
  const int64_t first = ray * samples;
  const real *t = f.t.data + ray * (samples + 1), *e = f.s.data + ray * (samples + 1);
  real *weights = shared + (threadIdx.x / 32) * 3 * samples, *grad_w = weights + samples,
       *through = grad_w + samples;

  const real seen = opacity.data[ray];
  const Compared off = compare(truth, ray, load3(colour.data, ray), seen);
  const Vec3 g = (2 * grad.data[0]) * off.difference;
  const Vec3 last = load3(f.rgb.data, first + samples - 1);
  const real behind_colour = dot(g, backdrop(truth.background, last)) + dot(g, off.behind);
  const real g_spread = grad.data[2];

  Spread forwards{e, samples, false};
  real front = 0;
  for (int k = 0; k < samples; k += 32) {
    const int i = k + lane();
    const bool live = i < samples;
    const real mine = live ? w.data[first + i] : real(0);
    const real upto = front + warp_inclusive_sum(
                                  live ? f.sigma.data[first + i] * interval_length(t[i], t[i + 1]) : real(0));
    front = from_lane(upto, 31);
    const real before = forwards.next(i, mine);
    if (live) weights[i] = mine, grad_w[i] = before, through[i] = passing(upto);
  }
  __syncwarp();
  Spread backwards{e, samples, true};
  for (int k = 0; k < samples; k += 32) {
    const int i = samples - 1 - (k + lane());
    const real mine = i >= 0 ? weights[i] : real(0);
    const real behind = backwards.next(k + lane(), mine);
    if (i >= 0)
      grad_w[i] = distortion_vjp(mine, grad_w[i], behind, e[i + 1] - e[i], g_spread) +
                  dot(g, load3(f.rgb.data, first + i)) - behind_colour;
  }
  __syncwarp();
  if (to.hidden) {
    const int channels = int(to.hidden.size[2]);
    sum_hidden_vjp<kVector>(from_hidden, ray, f.hidden.data + first * channels, weights, samples, channels,
                            !detached, grad_w, to.hidden.data + first * channels);
  }

  Vec3 to_d = {0, 0, 0};
  const Vec3 d = to.directions ? load3(f.directions.data, ray) : Vec3{0, 0, 0};
  real behind = 0;
  for (int k = int(last_chunk(samples)); k >= 0; k -= 32) {
    const int i = k + lane();
    const bool live = i < samples;
    const real mine = live ? weights[i] : real(0), g_w = live ? grad_w[i] : real(0);
    const real onwards = warp_suffix_sum(live ? g_w * mine : real(0)), after = lanes_after(onwards);
    if (live) {
      const real factor = calm ? calm_near_camera(midpoint(t, i)) : real(1);
      const real grad_tau = weight_vjp(through[i], g_w, behind + after);
      to.sigma.data[first + i] = factor * factor_vjp(interval_length(t[i], t[i + 1]), grad_tau);
      const bool filler = truth.background == kLastSample && i == samples - 1;
      store3(to.rgb.data, first + i, (factor * (filler ? mine + (1 - seen) : mine)) * g);
      if (to.directions || to.predicted) {
        const Vec3 n = load3(f.normals.data, first + i);
        if (to.directions) {
          const real away = facing_away(n, d);
          if (away > 0) to_d = to_d + (2 * grad.data[3] * mine * away) * n;
        }
        if (to.predicted) store3(to.predicted.data, first + i, -(factor * grad.data[4] * mine) * n);
      }
    }
    behind += from_lane(onwards, 0);
  }
  if (!to.directions) return;
  to_d = warp_sum(to_d);
  if (lane() == 0) store3(to.directions.data, ray, to_d);
}

constexpr int kSumThreads = 512;

__device__ __forceinline__ real block_sum_of(const real* data, int64_t count) {
  __shared__ real board[kSumThreads / 32];
  real sum = 0;
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < count; i += kSumThreads) sum += data[i];
  sum = warp_sum(sum);
  if (lane() == 0) board[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x >= 32) return 0;
  return warp_sum(threadIdx.x < kSumThreads / 32 ? board[threadIdx.x] : real(0));
}

// A block per row; the last to finish adds rows to terms, in order. The ticket wraps around to zero by
// itself.
__global__ void __launch_bounds__(kSumThreads)
    sum_losses_kernel(In<real, kEntries, kRays> rows, In<real, kEntries> scales, In<int64_t, kEntries> owner,
                      Maybe<In<real, 1>> penalty, Out<real, kEntries> sums, Out<int32_t, 1> ticket,
                      Out<real, kOutputs> terms, Out<bool, 1> healthy, Out<int64_t, kCode> steps,
                      In<int64_t, kCode> stepping) {
  const int64_t row = blockIdx.x, count = rows.size[1];
  const real sum = block_sum_of(rows.data + row * count, count);
  if (threadIdx.x != 0) return;
  volatile real* all_sums = sums.data;
  all_sums[row] = sum * scales.data[row];
  __threadfence();
  unsigned* tickets = reinterpret_cast<unsigned*>(ticket.data);
  if (atomicInc(tickets, gridDim.x - 1) != gridDim.x - 1) return;
  __threadfence();
  const int64_t count_of_terms = terms.size[0];
  real all = 0;
  for (int64_t k = 0; k < count_of_terms; ++k) {
    real term = 0;
    for (int64_t r = 0; r < rows.size[0]; ++r)
      if (owner.data[r] == k) term += all_sums[r];
    if (penalty && k == count_of_terms - 1) term = penalty.data[0];
    terms.data[k] = term;
    all += term;
  }
  const bool good = healthy.data[0] && fabsf(all) <= 3.402823466e38f;
  healthy.data[0] = good;
  for (int64_t k = 0; k < steps.size[0]; ++k) steps.data[k] += good ? stepping.data[k] : 0;
}

__global__ void __launch_bounds__(32)
    advance_kernel(Out<int64_t, 2> counter, In<bool, 1> healthy, In<float, kEntries, kParams> schedules,
                   Out<float, kParams> row) {
  const int64_t step = counter.data[1] + (healthy.data[0] ? 1 : 0), last = schedules.size[0] - 1;
  const int64_t at = min(max(step, int64_t{0}), last);
  for (int64_t k = lane(); k < row.size[0]; k += 32) row.data[k] = schedules.data[at * row.size[0] + k];
  __syncwarp();
  if (lane() == 0) counter.data[1] = step;
}

static bool in_fours(const void* a, const void* b, const void* c, int64_t channels) {
  const auto whole = [](const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; };
  return channels % 4 == 0 && whole(a) && whole(b) && whole(c);
}

static void check(const FieldOfRays& f, const Truth& truth, int64_t samples) {
  require(f.t.size[1] == samples + 1 && samples >= 1, "t must have one edge more than there are samples");
  require(samples <= kMostSamples, "on CUDA a ray may have at most 4096 samples");
  require(truth.colour.size[1] == 3 || truth.colour.size[1] == 4, "truth must have 3 or 4 columns");
  require(truth.background != kRandom || truth.counter, "a random background needs a counter");
}

void field_to_pixels_forward(Cuda q, In<real, kRays, kSamples> sigma, In<real, kRays, kEdges> s,
                             In<real, kRays, kEdges> t, In<real, kRays, kSamples, 3> rgb,
                             Maybe<In<real, kRays, kSamples, kChannels>> hidden,
                             Maybe<In<real, kRays, kSamples, 3>> normals,
                             Maybe<In<real, kRays, kSamples, 3>> predicted,
                             Maybe<In<real, kRays, 3>> directions, In<real, kRays, kInputs> truth,
                             Maybe<In<int64_t, 2>> counter, Several<In<real, kRays, kEdges>> s_proposal,
                             Several<In<real, kRays, kSamples>> w_proposal, int64_t background,
                             int64_t stream, Out<real, kRays, kSamples> w, Out<real, kRays, 3> colour,
                             Out<real, kRays> opacity, Maybe<Out<real, kRays, kChannels>> hidden_out,
                             Out<real, kEntries, kRays> losses) {
  const FieldOfRays f = {sigma, s, t, rgb, hidden, normals, predicted, directions};
  const Truth wanted = {truth, counter, background, stream};
  check(f, wanted, w.size[1]);
  const int64_t rows = losses.size[0];
  require(rows >= 3 && (rows < 4 || (normals && directions)) && (rows < 5 || predicted) && rows <= 5,
          "losses must have a row for each: 3, 4 with normals, 5 with predicted normals");
  require(s_proposal.count <= kMostLevels, "on CUDA rays may have at most 8 levels of proposals");
  ProposalLevels levels = {};
  levels.count = s_proposal.count;
  for (int k = 0; k < levels.count; ++k) {
    const auto& of_level = w_proposal.item[k];
    require(of_level.size[0] == w.size[0] && of_level.size[1] >= 1 &&
                s_proposal.item[k].size[1] == of_level.size[1] + 1,
            "w_proposal must have the rays of sigma, and one sample fewer than there are edges");
    levels.s[k] = s_proposal.item[k].data, levels.w[k] = of_level.data,
    levels.bins[k] = int(of_level.size[1]);
  }
  const auto start = [&](auto kernel) {
    launch_shared("field_to_pixels_forward", kernel, blocks(w.size[0], kWarpsPerBlock), kThreads,
                  size_t(kWarpsPerBlock) * size_t(w.size[1]) * sizeof(real), q, f, wanted, levels, w, colour,
                  opacity, hidden_out, losses);
  };
  if (!hidden || in_fours(hidden.data, hidden_out.data, hidden.data, hidden.size[2]))
    start(field_to_pixels_forward_kernel<4>);
  else
    start(field_to_pixels_forward_kernel<1>);
}

void field_to_pixels_backward(
    Cuda q, In<real, kRays, kSamples> sigma, In<real, kRays, kEdges> s, In<real, kRays, kEdges> t,
    In<real, kRays, kSamples, 3> rgb, Maybe<In<real, kRays, kSamples, kChannels>> hidden,
    Maybe<In<real, kRays, kSamples, 3>> normals, Maybe<In<real, kRays, 3>> directions,
    In<real, kRays, kInputs> truth, Maybe<In<int64_t, 2>> counter, int64_t background, int64_t stream,
    bool calm, bool detached, In<real, kRays, kSamples> w, In<real, kRays, 3> colour, In<real, kRays> opacity,
    In<real, kEntries> grad, Maybe<In<real, kCode, kRays, kChannels>> g_hidden,
    Maybe<In<real, 1>> grad_hidden_scale, Out<real, kRays, kSamples> grad_sigma,
    Out<real, kRays, kSamples, 3> grad_rgb, Maybe<Out<real, kRays, kSamples, kChannels>> grad_hidden,
    Maybe<Out<real, kRays, kSamples, 3>> grad_predicted, Maybe<Out<real, kRays, 3>> grad_directions) {
  const FieldOfRays f = {sigma, s, t, rgb, hidden, normals, {}, directions};
  const Truth wanted = {truth, counter, background, stream};
  check(f, wanted, w.size[1]);
  const int64_t rows = grad.size[0];
  require(rows >= 3 && (!grad_directions || (rows > 3 && normals && directions)) &&
              (!grad_predicted || (rows > 4 && normals)),
          "grad must have a number for each row of losses");
  require(!grad_hidden || (hidden && g_hidden), "grad_hidden needs hidden and g_hidden");
  const RayGradients to = {grad_sigma, grad_rgb, grad_hidden, grad_predicted, grad_directions};
  const auto start = [&](auto kernel) {
    launch_shared("field_to_pixels_backward", kernel, blocks(w.size[0], kWarpsPerBlock), kThreads,
                  size_t(3 * kWarpsPerBlock) * size_t(w.size[1]) * sizeof(real), q, f, wanted, calm, detached,
                  w, colour, opacity, grad, FromHidden{g_hidden, grad_hidden_scale.data}, to);
  };
  if (!grad_hidden || in_fours(hidden.data, g_hidden.data, grad_hidden.data, hidden.size[2]))
    start(field_to_pixels_backward_kernel<4>);
  else
    start(field_to_pixels_backward_kernel<1>);
}

void sum_losses(Cuda q, In<real, kEntries, kRays> rows, In<real, kEntries> scales,
                In<int64_t, kEntries> owner, Maybe<In<real, 1>> penalty, Out<real, kEntries> sums,
                Out<int32_t, 1> ticket, Out<real, kOutputs> terms, Out<bool, 1> healthy,
                Out<int64_t, kCode> steps, In<int64_t, kCode> stepping) {
  require(rows.size[0] > 0, "rows must have at least one row");
  launch("sum_losses", sum_losses_kernel, blocks(rows.size[0], 1), kSumThreads, q, rows, scales, owner,
         penalty, sums, ticket, terms, healthy, steps, stepping);
}

void advance(Cuda q, Out<int64_t, 2> counter, In<bool, 1> healthy, In<float, kEntries, kParams> schedules,
             Out<float, kParams> row) {
  require(schedules.size[0] > 0, "schedules must have a row");
  launch("advance", advance_kernel, 1, 32, q, counter, healthy, schedules, row);
}

}  // namespace raymarch
