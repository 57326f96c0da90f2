"""What turns a photo into a grid of feature vectors: the interface, and what every network needs for it.

The networks are in clip.py and dino.py, which import their packages on demand. This file opens them by name.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

EXTRA = 'pip install "raymarch[features]"'
RECIPE = 1  # raised when the same settings give other features
FITS = ("stretch", "drop")
WEIGHT_FILES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".json")


class EncoderError(ValueError):
    """An encoder that cannot be opened or fed; one sentence says why and what to do."""


class Encoder(Protocol):
    """A network with its preprocessing. `recipe` is JSON-ready and names all that its features depend on."""

    recipe: dict[str, Any]
    width: int  # D

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """Rows and columns of the map of a photo of width x height pixels."""
        ...

    def encode(self, photo: np.ndarray) -> Tensor:
        """The map [rows, columns, D] float16, on the CPU, of a photo [h, w, 3 or 4] uint8."""
        ...


class TextEncoder(Encoder, Protocol):
    """An encoder whose features can be compared with words."""

    def tokens(self, texts: list[str]) -> Tensor:
        """Token numbers [K, L]. EncoderError for texts without a word and texts that are too long."""
        ...

    def encode_tokens(self, tokens: Tensor) -> Tensor:
        """Embeddings [K, D] float32 on the CPU, as the network gives them."""
        ...


@dataclass(frozen=True)
class Patches:
    """How a photo becomes cells: its shorter side is resized to `size`, and a window of `patch` pixels moves
    by `stride`.

    fit "stretch" rounds both sides so that whole cells cover the photo, which changes its shape by less than
    half a stride. "drop" keeps the shape and leaves out what fills no cell at the right and the bottom, as
    F3RM does; every cell is then off by up to that much.
    """

    size: int  # pixels; 0 keeps the photo's own
    patch: int
    stride: int
    fit: str = "stretch"

    def __post_init__(self) -> None:
        if self.fit not in FITS:
            raise EncoderError(f"fit is {self.fit!r}, expected one of {', '.join(FITS)}")
        if self.size and self.size < self.patch:
            raise EncoderError(f"size is {self.size} pixels, expected at least one patch ({self.patch}) or 0")
        if not 1 <= self.stride <= self.patch:
            raise EncoderError(f"stride is {self.stride} pixels, expected 1 to {self.patch} (the patch)")

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Width and height that a photo is resized to."""
        short = min(width, height)
        size = self.size or short
        scaled = [x * size / short for x in (width, height)]
        if self.fit == "drop":
            across, down = (int(x + 1e-9) for x in scaled)
        else:
            across, down = (
                self.patch + self.stride * max(0, round((x - self.patch) / self.stride)) for x in scaled
            )
        return max(across, self.patch), max(down, self.patch)

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """Rows and columns."""
        across, down = self.resized(width, height)
        return 1 + (down - self.patch) // self.stride, 1 + (across - self.patch) // self.stride

    def prepare(self, photo: np.ndarray, mean: Iterable[float], std: Iterable[float]) -> Tensor:
        """[1, 3, h, w] float32, normalised: bicubic, antialiased; transparent pixels become white."""
        image = Image.fromarray(photo)
        if image.mode == "RGBA":
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert("RGB").resize(self.resized(*image.size), Image.Resampling.BICUBIC)
        x = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        middle, spread = (torch.tensor(list(v)).view(3, 1, 1) for v in (mean, std))
        return ((x - middle) / spread)[None]


def interpolated(table: Tensor, rows: int, columns: int) -> Tensor:
    """Positional embeddings [n * n, C] of a square grid for another grid: [rows * columns, C].

    Bicubic, with DINO's tenth of a cell added to the scale (spec 12.1), which keeps rounding from losing one.
    """
    side = int(len(table) ** 0.5)
    if side * side != len(table):
        raise EncoderError(f"the network has {len(table)} positional embeddings, expected a square number")
    if (rows, columns) == (side, side):
        return table
    square = table.float().view(1, side, side, -1).permute(0, 3, 1, 2)
    scale = ((rows + 0.1) / side, (columns + 0.1) / side)
    found = F.interpolate(
        square, scale_factor=scale, mode="bicubic", align_corners=False, recompute_scale_factor=False
    )
    return found[0, :, :rows, :columns].flatten(1).T.to(table.dtype)


def sha256_of(path: Path) -> str:
    """Of a file, or of the weight and config files in a folder with their names."""
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix in WEIGHT_FILES and p.is_file())
        text = "\n".join(f"{p.name} {sha256_of(p)}" for p in files)
        return hashlib.sha256(text.encode()).hexdigest()
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def required(package: str, use: str) -> ModuleType:
    """Import an optional package, or say in one sentence how to get it or why it does not load."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name == package:
            raise EncoderError(f"{use} needs {package}, which is not installed: {EXTRA}") from None
        raise EncoderError(f"{use} needs {package}, which needs {error.name}: {EXTRA}") from None
    except Exception as error:  # torchvision beside a torch it was not built for raises what it likes
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise EncoderError(
            f"{use} needs {package}, which does not load ({reason}); `raymarch doctor` says what is broken"
        ) from None


ENCODERS = {
    "clip": "raymarch.features.clip",
    "dino": "raymarch.features.dino",
    "dinov2": "raymarch.features.dino",
}


def open_encoder(
    name: str,
    model: str | None = None,
    weights: str | None = None,
    device: torch.device | str = "cpu",
    size: int | None = None,
    fit: str = "stretch",
    **options: Any,
) -> Encoder:
    """The encoder `clip`, `dino` or `dinov2`.

    model: a name of open_clip or timm (None: the encoder's default). weights: a local file, a folder with a
    config and weights, or a tag to download (None: the default's). size: pixels of the shorter side, 0 for
    the photo's own. options: `facet` (key or token) and `stride` for DINO. EncoderError says what is wrong.
    """
    if name not in ENCODERS:
        raise EncoderError(f"there is no encoder {name!r}; expected one of {', '.join(ENCODERS)}")
    if name == "clip" and options:
        raise EncoderError(f"--{next(iter(options))} is for dino and dinov2: leave it out for clip")
    module = importlib.import_module(ENCODERS[name])
    return module.open_(name, model, weights, torch.device(device), size, fit, **options)


def open_recorded(
    recipe: dict[str, Any], weights: str | None = None, device: torch.device | str = "cpu"
) -> Encoder:
    """The encoder that a feature file or a checkpoint's head came from, to ask it words.

    weights: where its weights lie now, if elsewhere than then. EncoderError where there are none or others.
    """
    if not recipe.get("encoder"):
        raise EncoderError("these features were not made by `raymarch extract`: open their encoder yourself")
    options = {k: recipe[k] for k in ("size", "fit", "facet", "stride") if k in recipe}
    place = weights or recipe["weights"]
    if weights is None and Path(place).is_absolute() and not Path(place).exists():
        raise EncoderError(
            f"the weights that the features were made with lay at {place}, where nothing is now: say where "
            "they are with --weights"
        )
    found = open_encoder(recipe["encoder"], recipe["model"], place, device, **options)
    if found.recipe["weights_sha256"] != recipe["weights_sha256"]:
        raise EncoderError(
            f"{place} holds other weights of {recipe['model']} than those the features were made with: give "
            "the same with --weights"
        )
    return found


def place_of(weights: str | None, default: str) -> str:
    """How a recipe spells where weights came from: an absolute path, or a tag."""
    path = Path(weights).expanduser() if weights else None
    return str(path.resolve()) if path is not None and path.exists() else weights or default


@torch.no_grad()
def text_embeddings(
    encoder: TextEncoder, texts: Iterable[str], templates: Iterable[str] = ("{}",), batch: int = 64
) -> Tensor:
    """Unit embeddings [K, D] float32 of texts: each the mean over prompt templates, as `a photo of a {}`.

    Embeddings are scaled to one before the mean and after it (CLIP's zero-shot recipe). EncoderError for a
    text without a word, one with more tokens than the tower takes, and templates without {}.
    """
    if isinstance(texts, str) or isinstance(templates, str):
        raise EncoderError("text_embeddings: expected lists of texts and of templates, got a bare string")
    texts, templates = list(texts), list(templates)
    if not texts:
        raise EncoderError("text_embeddings: expected at least one text")
    for text in texts:
        if not isinstance(text, str) or not text.strip():
            raise EncoderError(f"text_embeddings: {text!r} is no text: write what to look for")
    if not templates or not all("{}" in template for template in templates):
        raise EncoderError(
            f"text_embeddings: templates are {templates}, expected at least one, each with {{}}"
        )
    prompts = [template.replace("{}", text) for text in texts for template in templates]
    rows = torch.cat([F.normalize(encoder.encode_tokens(encoder.tokens(prompts[i : i + batch])), dim=-1)
                      for i in range(0, len(prompts), batch)])  # fmt: skip
    return F.normalize(rows.view(len(texts), len(templates), -1).mean(1), dim=-1)
