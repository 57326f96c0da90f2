#include "cuda/losses.cuh"
#include "math/random.h"
#include "ops.h"

namespace raymarch {

// One warp per ray throughout, but for random_colour.
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

__global__ void __launch_bounds__(kThreads)
    distortion_forward_kernel(Edges s, Weights w, Out<real, kRays> loss) {
  const int64_t ray = warp();
  if (ray >= w.size[0]) return;
  const int n = int(w.size[1]);
  const real* e = s.data + ray * (n + 1);
  Spread front{e, n, false};
  real sum = 0;
  for (int k = 0; k < n; k += 32) {
    const int i = k + lane();
    const real of_bin = i < n ? w.data[ray * n + i] : real(0);
    const real before = front.next(i, of_bin);
    if (i < n) sum += distortion_term(of_bin, before, e[i + 1] - e[i]);
  }
  sum = warp_sum(sum);
  if (lane() == 0) loss.data[ray] = sum;
}

// Two walks; the first leaves its sums in the output for the second.
__global__ void __launch_bounds__(kThreads)
    distortion_backward_kernel(Edges s, Weights w, In<real, kRays> grad_loss,
                               Out<real, kRays, kSamples> grad_w) {
  const int64_t ray = warp();
  if (ray >= w.size[0]) return;
  const int n = int(w.size[1]);
  const real* e = s.data + ray * (n + 1);
  const real* of_ray = w.data + ray * n;
  real* out = grad_w.data + ray * n;
  const real g = grad_loss.data[ray];
  Spread front{e, n, false};
  for (int k = 0; k < n; k += 32) {
    const int i = k + lane();
    const real before = front.next(i, i < n ? of_ray[i] : real(0));
    if (i < n) out[i] = before;
  }
  __syncwarp();
  Spread back{e, n, true};
  for (int k = 0; k < n; k += 32) {
    const int i = n - 1 - (k + lane());
    const real of_bin = i >= 0 ? of_ray[i] : real(0);
    const real behind = back.next(k + lane(), of_bin);
    if (i >= 0) out[i] = distortion_vjp(of_bin, out[i], behind, e[i + 1] - e[i], g);
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
  launch("distortion_forward", distortion_forward_kernel, warps(w.size[0]), kThreads, q, s, w, loss);
}

void distortion_backward(Cuda q, Edges s, Weights w, In<real, kRays> grad_loss,
                         Out<real, kRays, kSamples> grad_w) {
  check_distortion(s, w);
  launch("distortion_backward", distortion_backward_kernel, warps(w.size[0]), kThreads, q, s, w, grad_loss,
         grad_w);
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
