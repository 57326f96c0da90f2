"""Pictures -> a video (PyAV, extra [video]), or numbered PNG files where that is not installed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from raymarch.apps.images import save_rgb

CRF = "18"  # x264's constant rate factor: visually lossless


def has_video() -> bool:
    """Whether PyAV can be imported."""
    try:
        import av  # noqa: F401
    except ImportError:
        return False
    return True


class Video:
    """Writes pictures of one size, one after another; close it at the end."""

    def __init__(self, path: Path, fps: float):
        import av

        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.fps = path, Fraction(fps).limit_denominator(1001)
        self._draft = path.with_name(f"{path.stem}.partial{path.suffix}")
        self._container: Any = av.open(str(self._draft), "w")
        self._stream: Any = None

    def add(self, picture: np.ndarray) -> None:
        """uint8 [h, w, 3]. A last odd row or column, which H.264 cannot hold, is shown twice."""
        import av

        height, width = picture.shape[:2]
        picture = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        if self._stream is None:
            self._stream = self._container.add_stream("libx264", rate=self.fps)
            self._stream.width, self._stream.height = picture.shape[1], picture.shape[0]
            self._stream.pix_fmt = "yuv420p"
            self._stream.options = {"crf": CRF}
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        for packet in self._stream.encode(frame):
            self._container.mux(packet)

    def close(self) -> Path:
        """Finish the file; returns its path."""
        if self._stream is not None:
            for packet in self._stream.encode():
                self._container.mux(packet)
        self._container.close()
        self._draft.replace(self.path)
        return self.path

    def discard(self) -> None:
        """Leave nothing of a video that was not finished; one that was stays."""
        with contextlib.suppress(Exception):  # it may be the disk that failed
            self._container.close()
        self._draft.unlink(missing_ok=True)


def write_frames(out: Path, frames: Iterable[dict[str, np.ndarray]], fps: float) -> Iterator[str]:
    """A video OUT/HEAD.mp4 per head, or PNG files OUT/HEAD/00000.png without PyAV; yields their paths."""
    videos: dict[str, Video] = {}
    folders: dict[str, Path] = {}
    able = has_video()
    if not able:
        yield 'PyAV is not installed (pip install "raymarch[video]"): writing PNG files instead of a video'
    try:
        for i, pictures in enumerate(frames):
            for head, picture in pictures.items():
                if able:
                    if head not in videos:
                        videos[head] = Video(out / f"{head}.mp4", fps)
                    videos[head].add(picture)
                else:
                    folder = folders.setdefault(head, out / head)
                    folder.mkdir(parents=True, exist_ok=True)
                    save_rgb(folder / f"{i:05d}.png", picture)
        yield from (str(video.close()) for video in videos.values())
    finally:
        for video in videos.values():
            video.discard()
    yield from (str(folder) for folder in folders.values())
