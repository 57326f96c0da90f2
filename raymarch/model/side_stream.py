"""Work on a second CUDA stream, beside what the current one does: kernels that leave parts of the GPU idle
share it.

Memory: what is made on the second stream may be used by the first from `join` on, as long as anyone holds it;
what the first made and the second reads must be held until `join`. Captured in a graph, the streams become
its branches.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class SideStream:
    """A second stream on a device; on a CPU everything happens in place."""

    def __init__(self, device: torch.device):
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._busy = False  # since the last `join`; a graph must not wait for a stream that it has no part in

    @contextmanager
    def begun(self) -> Iterator[None]:
        """Runs its body on the second stream, after all that the current stream has been given so far."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        self._busy = True
        with torch.cuda.stream(self._stream):
            yield

    def join(self) -> None:
        """From here on the current stream is behind all that was begun."""
        if self._stream is not None and self._busy:
            self._busy = False
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)
