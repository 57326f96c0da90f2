"""What a training run leaves besides checkpoints: held-out views as they come to be, TensorBoard logs.

The trainer writes log.jsonl itself. Here, every so many steps, one held-out view is rendered as it stands:
RUN/held_out/step-N.png, and a line of RUN/held_out.jsonl. Nothing of the training state is touched.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raymarch.apps.images import save_rgb
from raymarch.config import ConfigError
from raymarch.data.error import SceneError
from raymarch.data.images import read_photo
from raymarch.data.plain import json_text
from raymarch.data.scene import Scene
from raymarch.model.frames import FrameRenderer, OutOfMemory, Settings
from raymarch.train.evaluate import over_background
from raymarch.train.metrics import psnr
from raymarch.train.runs import CAMERA_FIELDS, smaller, subset
from raymarch.train.trainer import Progress, Trainer
from raymarch.types import Cameras

SIDES = {"cuda": 640, "cpu": 128}  # pixels of the longer side of a held-out rendering
FOLDER, LOG = "held_out", "held_out.jsonl"


def photo_of(meta: dict[str, Any], index: int, width: int, height: int) -> Tensor | None:
    """Photo `index` of a recorded scene [height, width, 3], averaged down; None where it cannot be read."""
    source = meta.get("source")
    if source is None:
        return None
    folder = Path(source["path"])
    file = (folder.parent if folder.is_file() else folder) / meta["names"][index]
    try:
        image = over_background(torch.from_numpy(read_photo(file).pixels), meta["background"])
    except (SceneError, OSError):
        return None
    small = torch.nn.functional.adaptive_avg_pool2d(image.permute(2, 0, 1)[None], (height, width))
    return small[0].permute(1, 2, 0)


def kept_of(scene: Scene | None, index: int, width: int, height: int) -> Tensor | None:
    """Pixels [height, width] bool of photo `index`, averaged down, of which a mask ignores nothing.

    None without a mask, and where it leaves none.
    """
    mask = None if scene is None or scene.masks is None else scene.masks[index]
    if mask is None:
        return None
    share = torch.nn.functional.adaptive_avg_pool2d(mask.float()[None, None], (height, width))[0, 0]
    keep = share > 0.999
    return keep if bool(keep.any()) else None


class Watcher:
    """Call it with every progress report of a trainer; let it look once more at the end, and close it.

    every: steps between held-out renderings, 0 for none. tensorboard: also write RUN/tensorboard. ConfigError
    where that is not installed. scene: where its masks are; pixels that they ignore are not judged.
    """

    def __init__(
        self, trainer: Trainer, every: int = 2000, tensorboard: bool = False, scene: Scene | None = None
    ):
        if every < 0:
            raise ConfigError(f"--look-every: expected a number of steps, or 0 for never, got {every}")
        self.trainer, self.every = trainer, every
        self.writer: Any = None
        if tensorboard and trainer.run is not None:
            self.writer = open_writer(trainer.run / "tensorboard", trainer.step)
        meta, run = trainer.scene_meta, trainer.run
        self.index = meta["test"][0] if every and run is not None and meta.get("test") else None
        self.last = trainer.step
        if self.index is not None:
            every_camera = Cameras(*(trainer.scene_tensors[f] for f in CAMERA_FIELDS))
            self.given = subset(every_camera, (self.index,), trainer.device)
            width, height = (int(v) for v in self.camera.size[0])
            self.truth = photo_of(meta, self.index, width, height)
            self.keep = kept_of(scene, self.index, width, height)
            self.frames = FrameRenderer(trainer.model, Settings(graph=False))

    @property
    def camera(self) -> Cameras:
        """The held-out camera with its lens as refined so far, at the size that is rendered."""
        lenses = self.trainer.model.intrinsics
        found = lenses.of_others(self.trainer.source.cameras, self.given)
        return smaller(found, SIDES[self.trainer.device.type])

    def __call__(self, progress: Progress) -> None:
        """Log one report; look where it is time."""
        if self.writer is not None:
            for name, value in progress.losses.items():
                self.writer.add_scalar(f"loss/{name}", value, progress.step)
            self.writer.add_scalar("psnr/training_rays", progress.psnr, progress.step)
            self.writer.add_scalar(
                "speed/steps_per_second", progress.step / max(progress.seconds, 1e-9), progress.step
            )
        if self.index is not None and progress.step // self.every > self.last // self.every:
            self.look()
        self.last = progress.step

    def look(self) -> None:
        """Render the held-out view, keep it, and log how good it is where the photo can be read.

        Where there is no room for it, in memory or on disk, training goes on without.
        """
        try:
            self._look()
        except (OSError, OutOfMemory) as error:
            self.index = None
            self.trainer.notes.append(f"the held-out view is not looked at any more: {error}")

    def _look(self) -> None:
        run, step = self.trainer.run, self.trainer.step
        assert run is not None and self.index is not None
        camera = self.camera
        picture = self.frames.render(camera, 0, frozenset({"rgb"}))["rgb"].cpu()
        (run / FOLDER).mkdir(exist_ok=True)
        file = run / FOLDER / f"step-{step:09d}.png"
        save_rgb(file, picture)
        row: dict[str, Any] = {"step": step, "photo": self.trainer.scene_meta["names"][self.index]}
        row |= {"file": f"{FOLDER}/{file.name}", "size": [int(v) for v in camera.size[0]]}
        if self.truth is not None:
            row["psnr"] = float(psnr(picture, self.truth, keep=self.keep))
            if self.keep is not None:
                row["kept"] = float(self.keep.float().mean())
        with open(run / LOG, "a", encoding="utf-8") as log:
            log.write(json_text(row, None) + "\n")
        if self.writer is not None:
            self.writer.add_image("held_out", picture.clamp(0, 1).permute(2, 0, 1), step)
            if "psnr" in row:
                self.writer.add_scalar("psnr/held_out", row["psnr"], step)

    def look_last(self) -> None:
        """Look once more at the end, if steps were done since."""
        step = self.trainer.step
        if self.index is not None and step and not self._looked(step):
            self.look()

    def close(self) -> None:
        """End the logs."""
        if self.writer is not None:
            self.writer.close()

    def _looked(self, step: int) -> bool:
        assert self.trainer.run is not None
        return (self.trainer.run / FOLDER / f"step-{step:09d}.png").exists()


def open_writer(folder: Path, step: int) -> Any:
    """A TensorBoard writer that goes on at a step."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            f"--tensorboard needs tensorboard, which cannot be imported ({error}): "
            'pip install "raymarch[tensorboard]"'
        ) from None
    return SummaryWriter(str(folder), purge_step=step or None)
