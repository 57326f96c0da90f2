// The gradients of networks whose inputs are floats, and which of the two is meant.
#include "cuda/mlp_backward.cuh"

namespace raymarch {

extern template bool backward_any<half>(Cuda q, Network net, In<half, kPoints, kInputs> x,
                                        In<real, kParams> params, int64_t activation, double padding,
                                        OutGrad grad_y, Maybe<Out<real, kPoints, kChannels>> grad_x,
                                        Maybe<Out<real, kParams>> grad_params,
                                        Maybe<Out<real, kEntries, kParams>> partial);

void mlp_backward(Cuda q, Payload<kPoints, kInputs> x, In<real, kParams> params, int64_t hidden,
                  int64_t layers, int64_t activation, double padding, Maybe<In<real, kPoints, kOutputs>> y,
                  In<real, kRays, kOutputs> grad_y, Maybe<In<real, kPoints>> share,
                  Maybe<Out<real, kPoints, kChannels>> grad_x, Maybe<Out<real, kParams>> grad_params,
                  Maybe<Out<real, kEntries, kParams>> partial) {
  const Network net = network(x, params, hidden, layers, grad_y.size[1]);
  require(partial || !grad_params, "needs partial for the gradient of params");
  require(!grad_x || grad_x.size[1] <= x.size[1], "grad_x has more columns than x");
  const int64_t points = x.size[0], each = points_of_row(points, grad_y.size[0], bool(share));
  require(each > 0, "grad_y must have a row per point, or with share one per so many points");
  require(!share || points <= UINT32_MAX, "share: more than 2^32 points");
  require(aligned(params.data, 16), "params must lie at a multiple of 16 bytes");
  if (x.size[0] == 0 && grad_params) zero("mlp_backward", grad_params.data, 4 * net.parameters(), q);
  if (x.size[0] == 0) return;
  const OutGrad from = {rows_of<float>(grad_y), share.data, unsigned(each), points};
  const auto start = [&](auto view, auto any) {
    const bool started = any(q, net, view, params, activation, padding, from, grad_x, grad_params, partial);
    require(started, "needs more shared memory than the device has");
  };
  if (x.dtype == Dtype::kFloat16)
    start(opened<half>(x), [](auto... args) { return backward_any<half>(args...); });
  else
    start(opened<float>(x), [](auto... args) { return backward_any<float>(args...); });
}

}  // namespace raymarch
