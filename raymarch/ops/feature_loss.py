"""The loss of features: their linear layer, its squared error and the gradients of both, in one pass."""

import torch
from torch import Tensor

from raymarch.ops._op import launch, on_gpu, op
from raymarch.ops.samples_to_field import add_rows

FEATURE_PART = 128  # features of a part, in whose losses and gradients to hidden `feature_loss` splits
FEATURE_GROUPS = 43  # and the most parts of rays, for the gradient to the layer


def feature_parts(hidden: Tensor, layer: Tensor) -> int:
    """Rows of losses that `feature_loss_into` writes."""
    return -(-layer.shape[0] // FEATURE_PART) if on_gpu(hidden) else 1


def feature_loss_into(losses: Tensor, hidden: Tensor, layer: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """`feature_loss_forward` whose squared errors are written into losses [feature_parts(..), R]."""
    (rays, width), outputs = hidden.shape, layer.shape[0]
    groups = max(1, min(FEATURE_GROUPS, -(-rays // 32))) if on_gpu(hidden) else 1
    grad_hidden = hidden.new_empty(losses.shape[0], rays, width)
    grad_layer = hidden.new_empty(groups, outputs, width)
    launch("feature_loss", hidden, layer, target, losses, grad_hidden, grad_layer)
    return grad_hidden, grad_layer


@op
def feature_loss_forward(hidden: Tensor, layer: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Squared errors [parts, R], and the gradients of their sum: [parts, R, H] and [groups, D, H]."""
    losses = hidden.new_empty(feature_parts(hidden, layer), hidden.shape[0])
    return losses, *feature_loss_into(losses, hidden, layer, target)


class _FeatureLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, layer, target):
        losses, grad_hidden, grad_layer = feature_loss_forward(hidden, layer, target)
        ctx.save_for_backward(grad_hidden, grad_layer)
        ctx.count = max(target.numel(), 1)
        return losses.sum() / target.numel()

    @staticmethod
    def backward(ctx, grad):
        if torch.is_grad_enabled():
            raise RuntimeError("feature_loss is once differentiable")
        grad_hidden, grad_layer = ctx.saved_tensors
        scale = (grad / ctx.count).reshape(1)
        return (
            grad_hidden.sum(0) * scale,
            add_rows(grad_layer.flatten(1), scale).view(grad_layer.shape[1:]),
            None,
        )


def feature_loss(hidden: Tensor, layer: Tensor, target: Tensor) -> Tensor:
    """mse_loss(hidden layer^T, target), whose gradients are made together with it; a scalar.

    hidden [R, H] with H a multiple of 16 up to 128, layer [D, H], target [R, D] float32. CUDA multiplies on
    tensor cores in TF32. Gradients to hidden and layer.
    """
    return _FeatureLoss.apply(hidden.contiguous(), layer.contiguous(), target)
