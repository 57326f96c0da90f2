// Rays and their samples: what lies between pixels and the networks that say where to look.
#include "cuda/losses.cuh"
#include "cuda/rays.cuh"
#include "cuda/sample.cuh"
#include "math/activation.h"
#include "math/box.h"
#include "math/pose.h"
#include "math/transmittance.h"
#include "ops.h"

namespace raymarch {

constexpr int kThreads = 32 * kWarpsPerBlock;
constexpr int kRefineThreads = 256;  // one block for all cameras: there are few, and sums have one order
constexpr int64_t kMostBins = 4096;  // of a ray, in shared memory

// The sum over a block of six numbers per thread; every thread gets it. All threads must come.
struct Six {
  double of[6];
};
__device__ Six block_sum(const Six& mine) {
  __shared__ double board[kRefineThreads / 32][6];
  Six total;
  __syncthreads();
#pragma unroll
  for (int k = 0; k < 6; ++k) {
    double v = mine.of[k];
#pragma unroll
    for (int d = 16; d > 0; d /= 2) v += __shfl_xor_sync(~0u, v, d);
    if (lane() == 0) board[threadIdx.x / 32][k] = v;
  }
  __syncthreads();
#pragma unroll
  for (int k = 0; k < 6; ++k) {
    total.of[k] = 0;
    for (int w = 0; w < kRefineThreads / 32; ++w) total.of[k] += board[w][k];
  }
  return total;
}

struct Refinement {
  In<real, kCameras, 6> xi;
  Maybe<In<bool, kCameras, 1>> free;
  bool centred, se3, clamped;
  real translation, rotation;

  __device__ bool mean_out() const { return centred && !free; }
  // The mean of xi, or zero where it stays.
  __device__ Six mean() const {
    Six sum = {};
    if (mean_out())
      for (int64_t c = threadIdx.x; c < xi.size[0]; c += kRefineThreads)
        for (int k = 0; k < 6; ++k) sum.of[k] += xi.data[6 * c + k];
    sum = block_sum(sum);
    for (int k = 0; k < 6; ++k) sum.of[k] /= double(xi.size[0]);
    return sum;
  }
  __device__ Twist seen(int64_t c, const Six& mean) const {
    if (free && !free.data[c]) return {{0, 0, 0}, {0, 0, 0}};
    const real* x = xi.data + 6 * c;
    return {{real(x[0] - mean.of[0]), real(x[1] - mean.of[1]), real(x[2] - mean.of[2])},
            {real(x[3] - mean.of[3]), real(x[4] - mean.of[4]), real(x[5] - mean.of[5])}};
  }
};

// One block; a thread takes every 256th camera.
__global__ void __launch_bounds__(kRefineThreads)
    refine_forward_kernel(Refinement r, Out<real, kCameras, 3, 4> pose, Out<real, 1> penalty) {
  const Six mean = r.mean();
  Six lengths = {};
  for (int64_t c = threadIdx.x; c < r.xi.size[0]; c += kRefineThreads) {
    const Twist xi = r.seen(c, mean);
    store34(pose.data, c, pose_exp(xi, r.se3, r.clamped));
    lengths.of[0] += sqrt(double(dot(xi.rho, xi.rho)));
    lengths.of[1] += sqrt(double(dot(xi.w, xi.w)));
  }
  lengths = block_sum(lengths);
  if (threadIdx.x == 0)
    penalty.data[0] =
        real((r.translation * lengths.of[0] + r.rotation * lengths.of[1]) / double(r.xi.size[0]));
}

__global__ void __launch_bounds__(kRefineThreads)
    refine_backward_kernel(Refinement r, Maybe<In<real, kCameras, 3, 4>> grad_pose,
                           Maybe<In<real, 1>> grad_penalty, Out<real, kCameras, 6> grad_xi) {
  const Six mean = r.mean();
  const real share = grad_penalty ? grad_penalty.data[0] / real(r.xi.size[0]) : real(0);
  Six sum = {};
  for (int64_t c = threadIdx.x; c < r.xi.size[0]; c += kRefineThreads) {
    const Twist xi = r.seen(c, mean);
    Twist g = {{0, 0, 0}, {0, 0, 0}};
    if (grad_pose) g = pose_exp_vjp(xi, load34(grad_pose.data, c), r.se3, r.clamped);
    g.rho = g.rho + length_vjp(xi.rho, r.translation * share);
    g.w = g.w + length_vjp(xi.w, r.rotation * share);
    if (r.free && !r.free.data[c]) g = {{0, 0, 0}, {0, 0, 0}};
    store3(grad_xi.data, 2 * c, g.rho), store3(grad_xi.data, 2 * c + 1, g.w);
    const real of[6] = {g.rho.x, g.rho.y, g.rho.z, g.w.x, g.w.y, g.w.z};
    for (int k = 0; k < 6; ++k) sum.of[k] += of[k];
  }
  if (!r.mean_out()) return;
  sum = block_sum(sum);
  for (int64_t c = threadIdx.x; c < r.xi.size[0]; c += kRefineThreads)  // what this thread wrote
    for (int k = 0; k < 6; ++k)
      grad_xi.data[6 * c + k] = real(grad_xi.data[6 * c + k] - sum.of[k] / double(r.xi.size[0]));
}

// Unit positions of the midpoints of one ray's edges, by one warp; `tile` is its 96 numbers of shared memory.
__device__ __forceinline__ void unit_positions(Vec3 o, Vec3 d, const real* edges, int samples, int64_t norm,
                                               real* tile, real* y) {
  for (int k = 0; k < samples; k += 32) {
    const int live = live_lanes(samples, k), i = k + (lane() < live ? lane() : 0);
    store3_warp(tile, y + 3 * k, live, contract_unit(norm, o + midpoint(edges, i) * d));
  }
}

struct Stretch {
  Maybe<In<real, 2, 3>> box;
  real near, far;
};

// One warp per ray: every lane finds the ray, then lanes take edges and midpoints.
__global__ void __launch_bounds__(kThreads, 6)
    cast_rays_kernel(Views v, Stretch stretch, Maybe<In<int64_t, 2>> counter, int64_t spacing, int64_t jitter,
                     int64_t stream, int64_t norm, Out<real, kRays, 3> origins,
                     Out<real, kRays, 3> directions, Out<real, kRays> area, Out<real, kRays> length,
                     Out<bool, kRays> converged, Out<real, kRays> near, Out<real, kRays> far,
                     Out<real, kRays, kEdges> s, Out<real, kRays, kEdges> t,
                     Maybe<Out<real, kRays, kSamples, 3>> y) {
  __shared__ real tiles[kWarpsPerBlock][96];
  const int64_t ray = warp();
  if (ray >= v.camera.size[0]) return;
  const Seen seen = look(v, ray);
  const Vec3 o = seen.ray.origin, d = seen.ray.direction;
  Span span = {stretch.near, stretch.far};
  if (stretch.box)
    span =
        searched(ray_box(o, d, load3(stretch.box.data, 0), load3(stretch.box.data, 1)), span.near, span.far);
  if (lane() == 0) {
    store3(origins.data, ray, o), store3(directions.data, ray, d);
    area.data[ray] = seen.area, length.data[ray] = seen.ray.norm, converged.data[ray] = seen.converged;
    near.data[ray] = span.near, far.data[ray] = span.far;
  }

  const int edges = int(s.size[1]);
  const uint64_t key = jitter ? random_key(counter.data[0], counter.data[1], stream) : 0;
  real* of_t = t.data + ray * edges;
  spaced_edges(ray, edges, spacing, warped_interval(spacing, span.near, span.far), jitter, key,
               s.data + ray * edges, of_t);
  if (!y) return;
  __syncwarp();
  unit_positions(o, d, of_t, edges - 1, norm, tiles[threadIdx.x / 32], y.data + 3 * ray * (edges - 1));
}

constexpr int kMostLevels = 8;
struct Levels {
  const real *t[kMostLevels], *grad_y[kMostLevels];
  int samples[kMostLevels], count;
};

// One warp per ray; a level after another.
__global__ void __launch_bounds__(kThreads)
    ray_gradients_kernel(In<real, kRays, 3> origins, In<real, kRays, 3> directions, Levels levels,
                         int64_t norm, Maybe<In<real, kRays, 3>> more_origins,
                         Maybe<In<real, kRays, 3>> more_directions, Out<real, kRays, 3> grad_origins,
                         Out<real, kRays, 3> grad_directions) {
  __shared__ real tiles[kWarpsPerBlock][96];
  real* tile = tiles[threadIdx.x / 32];
  const int64_t ray = warp();
  if (ray >= origins.size[0]) return;
  const Vec3 o = load3(origins.data, ray), d = load3(directions.data, ray);
  Vec3 to_o{0, 0, 0}, to_d{0, 0, 0};
  for (int level = 0; level < levels.count; ++level) {
    const int samples = levels.samples[level];
    const real* edges = levels.t[level] + ray * (samples + 1);
    const real* grads = levels.grad_y[level] + 3 * ray * samples;
    for (int k = 0; k < samples; k += 32) {
      const int live = live_lanes(samples, k);
      const Vec3 g = load3_warp(tile, grads + 3 * k, live);
      if (lane() < live) {
        const real middle = midpoint(edges, k + lane());
        const Vec3 h = contract_unit_vjp(norm, o + middle * d, g);
        to_o = to_o + h, to_d = to_d + middle * h;
      }
    }
  }
  to_o = warp_sum(to_o), to_d = warp_sum(to_d);
  if (lane() != 0) return;
  if (more_origins) to_o = to_o + load3(more_origins.data, ray);
  if (more_directions) to_d = to_d + load3(more_directions.data, ray);
  store3(grad_origins.data, ray, to_o), store3(grad_directions.data, ray, to_d);
}

// What a network says of samples at unit positions y; without them h is density already.
struct Densities {
  In<real, kPoints, kChannels> h;
  Maybe<In<real, kPoints, 3>> y;
  real scale;
  __device__ __forceinline__ real z(int64_t i) const { return h.data[i * h.size[1]]; }
  __device__ __forceinline__ real at(int64_t i) const {
    return y ? density(z(i), load3(y.data, i), scale) : z(i);
  }
  __device__ __forceinline__ real vjp(int64_t i, real g) const {
    return density_vjp(z(i), load3(y.data, i), scale, g);
  }
};

// One warp per ray: a scan over its samples gives the weights, which the same warp then draws from.
__global__ void __launch_bounds__(kThreads)
    resample_kernel(Densities field, In<real, kRays, kFineEdges> s, In<real, kRays, kFineEdges> t,
                    In<real, kRays> near, In<real, kRays> far, In<real, kRays, 3> origins,
                    In<real, kRays, 3> directions, Maybe<In<int64_t, 2>> counter, Maybe<In<real, 1>> anneal,
                    int64_t spacing, int64_t jitter, int64_t stream, real padding, int64_t norm,
                    Out<real, kRays, kFine> w, Out<real, kRays, kEdges> s_new, Out<real, kRays, kEdges> t_new,
                    Maybe<Out<real, kRays, kSamples, 3>> y_new) {
  RM_SHARED(real, shared);
  __shared__ real tiles[kWarpsPerBlock][96];
  const int64_t ray = warp();
  const int bins = int(w.size[1]), edges = int(s_new.size[1]);
  if (ray >= w.size[0]) return;

  real* of_ray = w.data + ray * bins;
  const real* old = t.data + ray * (bins + 1);
  real front = 0;
  for (int k = 0; k < bins; k += 32) {
    const int i = k + lane();
    const real tau = i < bins ? field.at(ray * bins + i) * interval_length(old[i], old[i + 1]) : real(0);
    const real upto = warp_inclusive_sum(tau), before = lanes_before(upto);
    if (i < bins) of_ray[i] = weight(front + before, tau);
    front += from_lane(upto, 31);
  }
  __syncwarp();

  const Interval ends = warped_interval(spacing, near.data[ray], far.data[ray]);
  const uint64_t key = jitter ? random_key(counter.data[0], counter.data[1], stream) : 0;
  const real exponent = anneal ? anneal.data[0] : real(1);
  real* of_t = t_new.data + ray * edges;
  drawn_edges(ray, s.data + ray * (bins + 1), of_ray, bins, exponent, padding,
              shared + (threadIdx.x / 32) * bins, edges, spacing, ends, jitter, key, s_new.data + ray * edges,
              of_t);
  if (!y_new) return;
  __syncwarp();
  unit_positions(load3(origins.data, ray), load3(directions.data, ray), of_t, edges - 1, norm,
                 tiles[threadIdx.x / 32], y_new.data + 3 * ray * (edges - 1));
}

// One warp per ray. Its part of shared memory holds the derivative by each fine bin's bound, then the
// gradient of each weight and what passes each interval.
__global__ void __launch_bounds__(kThreads)
    proposal_backward_kernel(Densities field, In<real, kRays, kEdges> s, In<real, kRays, kEdges> t,
                             In<real, kRays, kSamples> w, In<real, kRays, kFineEdges> s_fine,
                             In<real, kRays, kFine> w_fine, In<real, 1> grad,
                             Out<real, kPoints, kChannels> grad_h) {
  RM_SHARED(real, shared);
  const int64_t ray = warp();
  if (ray >= w.size[0]) return;
  const int fine = int(w_fine.size[1]), bins = int(w.size[1]), channels = int(grad_h.size[1]);
  real* q = shared + (threadIdx.x / 32) * (fine + 2 * bins);
  real *grad_w = q + fine, *through = grad_w + bins;
  const int64_t first = ray * bins;
  const real *e = s_fine.data + ray * (fine + 1), *e_proposal = s.data + ray * (bins + 1);
  interlevel_to_weights(e, w_fine.data + ray * fine, fine, e_proposal, w.data + first, bins,
                        grad.data[0] / real(fine), q, grad_w);

  const real* edges = t.data + ray * (bins + 1);
  real front = 0, behind = 0;
  for (int k = 0; k < bins; k += 32) {
    const int i = k + lane();
    const real tau = i < bins ? field.at(first + i) * interval_length(edges[i], edges[i + 1]) : real(0);
    const real upto = front + warp_inclusive_sum(tau);
    if (i < bins) through[i] = passing(upto);
    front = from_lane(upto, 31);
  }
  __syncwarp();
  for (int k = int(last_chunk(bins)); k >= 0; k -= 32) {
    const int i = k + lane();
    const real g = i < bins ? grad_w[i] : real(0);
    const real onwards = warp_suffix_sum(i < bins ? g * w.data[first + i] : real(0));
    const real after = lanes_after(onwards);
    if (i < bins) {
      const real grad_tau = weight_vjp(through[i], g, behind + after);
      real* to = grad_h.data + (first + i) * channels;
      to[0] = field.vjp(first + i, factor_vjp(interval_length(edges[i], edges[i + 1]), grad_tau));
      for (int c = 1; c < channels; ++c) to[c] = 0;
    }
    behind += from_lane(onwards, 0);
  }
}

static Refinement refinement(In<real, kCameras, 6> xi, Maybe<In<bool, kCameras, 1>> free, bool centred,
                             int64_t mode, bool clamped, double translation, double rotation) {
  require(mode >= 0 && mode < kPoseModes, "mode is 0 (SO3xR3) or 1 (SE3)");
  return {xi, free, centred, mode == kSe3, clamped, real(translation), real(rotation)};
}

static void require_drawing(int64_t spacing, int64_t jitter, bool has_counter) {
  require(spacing >= 0 && spacing < kSpacings, "spacing is not a known one");
  require(jitter >= 0 && jitter < kJitters, "jitter is not a known one");
  require(jitter == kNoJitter || has_counter, "jitter needs a counter");
}

void refine_forward(Cuda q, In<real, kCameras, 6> xi, Maybe<In<bool, kCameras, 1>> free, bool centred,
                    int64_t mode, bool clamped, double translation, double rotation,
                    Out<real, kCameras, 3, 4> pose, Out<real, 1> penalty) {
  launch("refine_forward", refine_forward_kernel, 1, kRefineThreads, q,
         refinement(xi, free, centred, mode, clamped, translation, rotation), pose, penalty);
}

void refine_backward(Cuda q, In<real, kCameras, 6> xi, Maybe<In<bool, kCameras, 1>> free, bool centred,
                     int64_t mode, bool clamped, double translation, double rotation,
                     Maybe<In<real, kCameras, 3, 4>> grad_pose, Maybe<In<real, 1>> grad_penalty,
                     Out<real, kCameras, 6> grad_xi) {
  launch("refine_backward", refine_backward_kernel, 1, kRefineThreads, q,
         refinement(xi, free, centred, mode, clamped, translation, rotation), grad_pose, grad_penalty,
         grad_xi);
}

void cast_rays(Cuda q, In<real, kCameras, 3, 4> poses, In<int64_t, kRays> camera, In<real, kRays, 2> xy,
               In<real, kCameras, 4> intrinsics, In<real, kCameras, 12> distortion,
               In<int64_t, kCameras> lens, Maybe<In<real, kCameras, 3, 4>> adjustment, int64_t compose,
               double eye_distance, Maybe<In<real, 2, 3>> box, double near_plane, double far_plane,
               Maybe<In<int64_t, 2>> counter, int64_t spacing, int64_t jitter, int64_t stream, int64_t norm,
               Out<real, kRays, 3> origins, Out<real, kRays, 3> directions, Out<real, kRays> area,
               Out<real, kRays> length, Out<bool, kRays> converged, Out<real, kRays> near,
               Out<real, kRays> far, Out<real, kRays, kEdges> s, Out<real, kRays, kEdges> t,
               Maybe<Out<real, kRays, kSamples, 3>> y) {
  require(compose >= 0 && compose < kComposes, "compose is 0 (camera) or 1 (world)");
  require_drawing(spacing, jitter, bool(counter));
  require(s.size[1] >= 2 && (!y || y.size[1] + 1 == s.size[1]),
          "needs a sample per ray, and one edge more than samples");
  const Views v = {poses,
                   camera,
                   xy,
                   intrinsics,
                   distortion,
                   lens,
                   adjustment,
                   compose == kComposeWorld,
                   real(eye_distance / 2)};
  launch("cast_rays", cast_rays_kernel, blocks(camera.size[0], kWarpsPerBlock), kThreads, q, v,
         Stretch{box, real(near_plane), real(far_plane)}, counter, spacing, jitter, stream, norm, origins,
         directions, area, length, converged, near, far, s, t, y);
}

void ray_gradients(Cuda q, In<real, kRays, 3> origins, In<real, kRays, 3> directions,
                   Several<In<real, kRays, kEdges>> t, Several<In<real, kRays, kSamples, 3>> grad_y,
                   int64_t norm, Maybe<In<real, kRays, 3>> more_origins,
                   Maybe<In<real, kRays, 3>> more_directions, Out<real, kRays, 3> grad_origins,
                   Out<real, kRays, 3> grad_directions) {
  require(t.count <= kMostLevels, "on CUDA rays may have at most 8 levels of samples");
  Levels levels = {};
  levels.count = t.count;
  for (int k = 0; k < t.count; ++k) {
    require(t.item[k].size[0] == origins.size[0] && t.item[k].size[1] == grad_y.item[k].size[1] + 1,
            "t must have the rays of origins, and one edge more than there are samples");
    levels.t[k] = t.item[k].data, levels.grad_y[k] = grad_y.item[k].data;
    levels.samples[k] = int(grad_y.item[k].size[1]);
  }
  launch("ray_gradients", ray_gradients_kernel, blocks(origins.size[0], kWarpsPerBlock), kThreads, q, origins,
         directions, levels, norm, more_origins, more_directions, grad_origins, grad_directions);
}

void resample(Cuda q, In<real, kPoints, kChannels> h, Maybe<In<real, kPoints, 3>> y, double scale,
              In<real, kRays, kFineEdges> s, In<real, kRays, kFineEdges> t, In<real, kRays> near,
              In<real, kRays> far, In<real, kRays, 3> origins, In<real, kRays, 3> directions,
              Maybe<In<int64_t, 2>> counter, Maybe<In<real, 1>> anneal, int64_t spacing, int64_t jitter,
              int64_t stream, double padding, int64_t norm, Out<real, kRays, kFine> w,
              Out<real, kRays, kEdges> s_new, Out<real, kRays, kEdges> t_new,
              Maybe<Out<real, kRays, kSamples, 3>> y_new) {
  require_drawing(spacing, jitter, bool(counter));
  require(t.size[1] == w.size[1] + 1 && w.size[1] >= 1, "t must have one edge more than there are weights");
  require(s_new.size[1] >= 2 && (!y_new || y_new.size[1] + 1 == s_new.size[1]),
          "needs at least one sample per ray");
  require(h.size[0] == w.size[0] * w.size[1], "h must have a row for every sample of every ray");
  require(w.size[1] <= kMostBins, "on CUDA a ray may have at most 4096 bins to draw from");
  launch_shared("resample", resample_kernel, blocks(w.size[0], kWarpsPerBlock), kThreads,
                size_t(kWarpsPerBlock) * size_t(w.size[1]) * sizeof(real), q, Densities{h, y, real(scale)}, s,
                t, near, far, origins, directions, counter, anneal, spacing, jitter, stream, real(padding),
                norm, w, s_new, t_new, y_new);
}

void proposal_backward(Cuda q, In<real, kPoints, kChannels> h, In<real, kPoints, 3> y, double scale,
                       In<real, kRays, kEdges> s, In<real, kRays, kEdges> t, In<real, kRays, kSamples> w,
                       In<real, kRays, kFineEdges> s_fine, In<real, kRays, kFine> w_fine, In<real, 1> grad,
                       Out<real, kPoints, kChannels> grad_h) {
  require(t.size[1] == w.size[1] + 1 && s_fine.size[1] == w_fine.size[1] + 1,
          "edges must be one more than there are weights");
  require(w.size[1] >= 1 && w_fine.size[1] >= 1, "needs at least one sample per ray");
  require(h.size[0] == w.size[0] * w.size[1], "h must have a row for every sample of every ray");
  require(w.size[1] <= kMostBins && w_fine.size[1] <= kMostBins,
          "on CUDA a ray may have at most 4096 samples");
  const int64_t room = kWarpsPerBlock * (w_fine.size[1] + 2 * w.size[1]);
  launch_shared("proposal_backward", proposal_backward_kernel, blocks(w.size[0], kWarpsPerBlock), kThreads,
                size_t(room) * sizeof(real), q, Densities{h, {y}, real(scale)}, s, t, w, s_fine, w_fine, grad,
                grad_h);
}

}  // namespace raymarch
