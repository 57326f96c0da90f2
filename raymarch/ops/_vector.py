"""What CUDA kernels that move whole vectors ask of their arguments."""

from torch import Tensor

from raymarch.ops._op import on_gpu


def vectorisable(x: Tensor) -> Tensor:
    """x itself, or a copy where it is a view on CUDA that starts between multiples of 16 bytes.

    torch's own allocations start at such multiples, so the copy is rare; it costs no synchronisation.
    """
    if on_gpu(x) and x.storage_offset() * x.element_size() % 16:
        return x.clone()
    return x
