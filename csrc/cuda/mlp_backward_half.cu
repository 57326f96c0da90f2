// The gradients of networks whose inputs are halves.
#include "cuda/mlp_backward.cuh"

namespace raymarch {

template bool backward_any<half>(Cuda q, Network net, In<half, kPoints, kInputs> x, In<real, kParams> params,
                                 int64_t activation, double padding, OutGrad grad_y,
                                 Maybe<Out<real, kPoints, kChannels>> grad_x,
                                 Maybe<Out<real, kParams>> grad_params,
                                 Maybe<Out<real, kEntries, kParams>> partial);

}  // namespace raymarch
