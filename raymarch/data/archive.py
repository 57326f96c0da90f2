"""NumPy archives whose contents may be trusted to be no larger than they look."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

FEW_BYTES, MOST_PER_BYTE = 1 << 28, 100  # what arrays that somebody measured or trained shrink by at most


def open_npz(path: Path) -> Any:
    """The .npz archive, to be closed, without pickles. A kilobyte of zeros is a megabyte unpacked.

    ValueError where a member would unpack to far more than it is.
    """
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.file_size > max(FEW_BYTES, MOST_PER_BYTE * member.compress_size):
                raise ValueError(
                    f"{member.filename} would unpack from {member.compress_size} to {member.file_size} bytes"
                )
    return np.load(path, allow_pickle=False)
