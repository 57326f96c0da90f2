#include "cuda/fours.cuh"
#include "cuda/losses.cuh"
#include "math/random.h"
#include "ops.h"

namespace raymarch {

// One warp per ray, or kLanes lanes of one, throughout, but for random_colour.
constexpr int kThreads = 32 * kWarpsPerBlock;

using Edges = In<real, kRays, kEdges>;
using FineEdges = In<real, kRays, kFineEdges>;
using Weights = In<real, kRays, kSamples>;
using FineWeights = In<real, kRays, kFine>;
using Normals = In<real, kRays, kSamples, 3>;

__global__ void __launch_bounds__(kThreads)
    interlevel_forward_kernel(FineEdges s, FineWeights w, Edges s_proposal, Weights w_proposal,
                              Out<real, kRays> loss) {
  const int64_t ray = warp();
  if (ray >= w.size[0]) return;
  const int fine = int(w.size[1]), bins = int(w_proposal.size[1]);
  const real* e = s.data + ray * (fine + 1);
  const real* e_proposal = s_proposal.data + ray * (bins + 1);
  real sum = 0;
  for (int i = lane(); i < fine; i += 32)
    sum += interlevel_term(w.data[ray * fine + i],
                           bound_of(e_proposal, w_proposal.data + ray * bins, bins, e[i], e[i + 1]));
  sum = warp_sum(sum);
  if (lane() == 0) loss.data[ray] = sum / real(fine);
}

// The warp's slice of shared memory holds the derivative by each fine bin's bound.
__global__ void __launch_bounds__(kThreads, 12)
    interlevel_backward_kernel(FineEdges s, FineWeights w, Edges s_proposal, Weights w_proposal,
                               In<real, kRays> grad_loss, Out<real, kRays, kSamples> grad_w_proposal) {
  RM_SHARED(real, shared);
  const int64_t ray = warp();
  if (ray >= w.size[0]) return;
  const int fine = int(w.size[1]), bins = int(w_proposal.size[1]);
  const real* e = s.data + ray * (fine + 1);
  const real* e_proposal = s_proposal.data + ray * (bins + 1);
  interlevel_to_weights(e, w.data + ray * fine, fine, e_proposal, w_proposal.data + ray * bins, bins,
                        grad_loss.data[ray] / real(fine), shared + (threadIdx.x / 32) * fine,
                        grad_w_proposal.data + ray * bins);
}

// Four bins of a lane, i .. i + 3: weights, widths, and the gaps between the middles of neighbours.
template <class Row>
struct Bins {
  real w[4], width[4], gap[5];  // gap[j] lies in front of bin i + j; there is none outside the ray

  __device__ __forceinline__ Bins(const real* weights, const real* edges, const Row& row, int i) {
    real e[7];
    load_four(weights, row, i, w);
    load_edges(edges, row, i, 1, e);
#pragma unroll
    for (int j = 0; j < 5; ++j)
      gap[j] = row.holds(i + j) && i + j > row.begin ? real(0.5) * (e[j + 2] - e[j]) : real(0);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      width[j] = e[j + 2] - e[j + 1];
      if (!row.holds(i + j)) w[j] = 0;
    }
  }
};

// distortion's `before` of math/losses.h from one end of a ray to the other, pass by pass.
struct Passed {
  real mass = 0, before = 0;  // of the bins already passed; `before` is that of the last of them
};
template <int kLanes, class Row>
__device__ __forceinline__ void from_front(const Bins<Row>& bins, Passed& passed, real (&before)[4]) {
  const real *w = bins.w, *gap = bins.gap;
  const real masses = warp_inclusive_sum<kLanes>((w[0] + w[1]) + (w[2] + w[3]));
  real mass = passed.mass + lanes_before<kLanes>(masses), sum = 0;
#pragma unroll
  for (int j = 0; j < 4; ++j) before[j] = sum += gap[j] * mass, mass += w[j];
  const real sums = warp_inclusive_sum<kLanes>(sum), base = passed.before + lanes_before<kLanes>(sums);
#pragma unroll
  for (int j = 0; j < 4; ++j) before[j] += base;
  passed.mass += from_lane<kLanes>(masses, kLanes - 1);
  passed.before += from_lane<kLanes>(sums, kLanes - 1);
}
template <int kLanes, class Row>
__device__ __forceinline__ void from_back(const Bins<Row>& bins, Passed& passed, real (&behind)[4]) {
  const real *w = bins.w, *gap = bins.gap;
  const real masses = warp_suffix_sum<kLanes>((w[3] + w[2]) + (w[1] + w[0]));
  real mass = passed.mass + lanes_after<kLanes>(masses), sum = 0;
#pragma unroll
  for (int j = 3; j >= 0; --j) behind[j] = sum += gap[j + 1] * mass, mass += w[j];
  const real sums = warp_suffix_sum<kLanes>(sum), base = passed.before + lanes_after<kLanes>(sums);
#pragma unroll
  for (int j = 0; j < 4; ++j) behind[j] += base;
  passed.mass += from_lane<kLanes>(masses, 0);
  passed.before += from_lane<kLanes>(sums, 0);
}

template <int kLanes, class Rays>
__global__ void __launch_bounds__(kThreads)
    distortion_forward_kernel(Rays rays, const real* s, const real* w, real* loss) {
  const int64_t ray = item() / kLanes;
  const auto row = rays.row(ray);
  const real* edges = edges_of(rays, ray, s);
  const int count = passes<kLanes>(row);
  Passed front;
  real sum = 0;
  for (int pass = 0; pass < count; ++pass) {
    const int i = 4 * (pass * kLanes + lane_in_group<kLanes>());
    const Bins bins(w, edges, row, i);
    real before[4];
    from_front<kLanes>(bins, front, before);
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (row.holds(i + j)) sum += distortion_term(bins.w[j], before[j], bins.width[j]);
  }
  sum = warp_sum<kLanes>(sum);
  if (ray < rays.count && lane_in_group<kLanes>() == 0) loss[ray] = sum;
}

// To the back and to the front again. The last pass to the back is the first to the front and stays in
// registers; others leave their sums in the output (a lane reads only what it wrote).
template <int kLanes, class Rays>
__global__ void __launch_bounds__(kThreads)
    distortion_backward_kernel(Rays rays, const real* s, const real* w, const real* grad_loss, real* grad_w) {
  const int64_t ray = item() / kLanes;
  const auto row = rays.row(ray);
  const real* edges = edges_of(rays, ray, s);
  const int mine = 4 * lane_in_group<kLanes>(), last = 4 * kLanes * (passes<kLanes>(row) - 1);
  const real g = ray < rays.count ? grad_loss[ray] : real(0);
  Passed front, back;
  for (int k = 0; k < last; k += 4 * kLanes) {
    real before[4];
    from_front<kLanes>(Bins(w, edges, row, k + mine), front, before);
    store_four(before, row, k + mine, grad_w);
  }
  for (int k = last; k >= 0; k -= 4 * kLanes) {
    const int i = k + mine;
    const Bins bins(w, edges, row, i);
    real before[4], behind[4];
    if (k == last)
      from_front<kLanes>(bins, front, before);
    else
      load_four(grad_w, row, i, before);
    from_back<kLanes>(bins, back, behind);
#pragma unroll
    for (int j = 0; j < 4; ++j) before[j] = distortion_vjp(bins.w[j], before[j], behind[j], bins.width[j], g);
    store_four(before, row, i, grad_w);
  }
}

__global__ void __launch_bounds__(kThreads)
    orientation_forward_kernel(Weights w, Normals normals, In<real, kRays, 3> directions,
                               Out<real, kRays> loss) {
  const int64_t ray = warp(), n = w.size[1];
  if (ray >= w.size[0]) return;
  const Vec3 d = load3(directions.data, ray);
  real sum = 0;
  for (int64_t i = ray * n + lane(); i < (ray + 1) * n; i += 32)
    sum += w.data[i] * square(facing_away(load3(normals.data, i), d));
  sum = warp_sum(sum);
  if (lane() == 0) loss.data[ray] = sum;
}

__global__ void __launch_bounds__(kThreads)
    orientation_backward_kernel(Weights w, Normals normals, In<real, kRays, 3> directions,
                                In<real, kRays> grad_loss, Maybe<Out<real, kRays, kSamples>> grad_w,
                                Maybe<Out<real, kRays, kSamples, 3>> grad_normals,
                                Maybe<Out<real, kRays, 3>> grad_directions) {
  const int64_t ray = warp(), n = w.size[1];
  if (ray >= w.size[0]) return;
  const Vec3 d = load3(directions.data, ray);
  const real g = grad_loss.data[ray];
  Vec3 to_d{0, 0, 0};
  for (int64_t i = ray * n + lane(); i < (ray + 1) * n; i += 32) {
    const Vec3 normal = load3(normals.data, i);
    const real away = facing_away(normal, d), q = 2 * g * w.data[i] * away;
    if (grad_w) grad_w.data[i] = g * square(away);
    if (grad_normals) store3(grad_normals.data, i, q * d);
    if (away > 0) to_d = to_d + q * normal;  // a NaN normal has away = 0
  }
  if (grad_directions) {
    to_d = {warp_sum(to_d.x), warp_sum(to_d.y), warp_sum(to_d.z)};
    if (lane() == 0) store3(grad_directions.data, ray, to_d);
  }
}

__global__ void __launch_bounds__(kThreads)
    predicted_normals_forward_kernel(Weights w, Normals normals, Normals predicted, Out<real, kRays> loss) {
  const int64_t ray = warp(), n = w.size[1];
  if (ray >= w.size[0]) return;
  real sum = 0;
  for (int64_t i = ray * n + lane(); i < (ray + 1) * n; i += 32)
    sum += w.data[i] * (1 - dot(load3(normals.data, i), load3(predicted.data, i)));
  sum = warp_sum(sum);
  if (lane() == 0) loss.data[ray] = sum;
}

__global__ void __launch_bounds__(kThreads)
    predicted_normals_backward_kernel(Weights w, Normals normals, In<real, kRays> grad_loss,
                                      Out<real, kRays, kSamples, 3> grad_predicted) {
  const int64_t ray = warp(), n = w.size[1];
  if (ray >= w.size[0]) return;
  const real g = grad_loss.data[ray];
  for (int64_t i = ray * n + lane(); i < (ray + 1) * n; i += 32)
    store3(grad_predicted.data, i, -(g * w.data[i]) * load3(normals.data, i));
}

// One thread per channel.
__global__ void __launch_bounds__(kThreads)
    random_colour_kernel(In<int64_t, 2> counter, Out<float, kRays, 3> colour, int64_t stream) {
  const int64_t i = item();
  if (i >= colour.size[0] * 3) return;
  colour.data[i] = uniform(random_key(counter.data[0], counter.data[1], stream), uint64_t(i));
}

namespace {

void check_interlevel(FineEdges s, FineWeights w, Edges s_proposal, Weights w_proposal) {
  require(s.size[1] == w.size[1] + 1, "s must have one edge more than weights has samples");
  require(s_proposal.size[1] == w_proposal.size[1] + 1,
          "s_proposal must have one edge more than weights_proposal has samples");
  require(w.size[1] >= 1 && w_proposal.size[1] >= 1, "needs at least one sample per ray");
  require(w.size[1] <= 8192, "on CUDA a ray may have at most 8192 fine samples");
}

void check_distortion(Edges s, Weights w) {
  require(s.size[1] == w.size[1] + 1, "s must have one edge more than weights has samples");
}

unsigned warps(int64_t rays) { return blocks(rays, kWarpsPerBlock); }

}  // namespace

void interlevel_forward(Cuda q, FineEdges s, FineWeights w, Edges s_proposal, Weights w_proposal,
                        Out<real, kRays> loss) {
  check_interlevel(s, w, s_proposal, w_proposal);
  launch("interlevel_forward", interlevel_forward_kernel, warps(w.size[0]), kThreads, q, s, w, s_proposal,
         w_proposal, loss);
}

void interlevel_backward(Cuda q, FineEdges s, FineWeights w, Edges s_proposal, Weights w_proposal,
                         In<real, kRays> grad_loss, Out<real, kRays, kSamples> grad_w_proposal) {
  check_interlevel(s, w, s_proposal, w_proposal);
  launch_shared("interlevel_backward", interlevel_backward_kernel, warps(w.size[0]), kThreads,
                size_t(kWarpsPerBlock) * size_t(w.size[1]) * sizeof(real), q, s, w, s_proposal, w_proposal,
                grad_loss, grad_w_proposal);
}

void distortion_forward(Cuda q, Edges s, Weights w, Out<real, kRays> loss) {
  check_distortion(s, w);
  with_rays(w.size[0], w.size[1], {w.data}, [&](auto rays, auto lanes) {
    launch("distortion_forward", distortion_forward_kernel<lanes, decltype(rays)>,
           blocks(rays.count, kThreads / lanes), kThreads, q, rays, s.data, w.data, loss.data);
  });
}

void distortion_backward(Cuda q, Edges s, Weights w, In<real, kRays> grad_loss,
                         Out<real, kRays, kSamples> grad_w) {
  check_distortion(s, w);
  with_rays(w.size[0], w.size[1], {w.data, grad_w.data}, [&](auto rays, auto lanes) {
    launch("distortion_backward", distortion_backward_kernel<lanes, decltype(rays)>,
           blocks(rays.count, kThreads / lanes), kThreads, q, rays, s.data, w.data, grad_loss.data,
           grad_w.data);
  });
}

void orientation_forward(Cuda q, Weights w, Normals normals, In<real, kRays, 3> directions,
                         Out<real, kRays> loss) {
  launch("orientation_forward", orientation_forward_kernel, warps(w.size[0]), kThreads, q, w, normals,
         directions, loss);
}

void orientation_backward(Cuda q, Weights w, Normals normals, In<real, kRays, 3> directions,
                          In<real, kRays> grad_loss, Maybe<Out<real, kRays, kSamples>> grad_w,
                          Maybe<Out<real, kRays, kSamples, 3>> grad_normals,
                          Maybe<Out<real, kRays, 3>> grad_directions) {
  launch("orientation_backward", orientation_backward_kernel, warps(w.size[0]), kThreads, q, w, normals,
         directions, grad_loss, grad_w, grad_normals, grad_directions);
}

void predicted_normals_forward(Cuda q, Weights w, Normals normals, Normals predicted, Out<real, kRays> loss) {
  launch("predicted_normals_forward", predicted_normals_forward_kernel, warps(w.size[0]), kThreads, q, w,
         normals, predicted, loss);
}

void predicted_normals_backward(Cuda q, Weights w, Normals normals, In<real, kRays> grad_loss,
                                Out<real, kRays, kSamples, 3> grad_predicted) {
  launch("predicted_normals_backward", predicted_normals_backward_kernel, warps(w.size[0]), kThreads, q, w,
         normals, grad_loss, grad_predicted);
}

void random_colour(Cuda q, In<int64_t, 2> counter, Out<float, kRays, 3> colour, int64_t stream) {
  launch("random_colour", random_colour_kernel, blocks(colour.size[0] * 3, kThreads), kThreads, q, counter,
         colour, stream);
}

}  // namespace raymarch
