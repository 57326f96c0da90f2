"""Dense CLIP features and text embeddings through open_clip. The only file that imports it.

Dense features are MaskCLIP's (Zhou et al. 2022, as F3RM uses them): in the last attention layer every patch
keeps its own value instead of attending to others, so that it stays where it is, and is then projected like
the image embedding into the space that text lives in.
"""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from raymarch.features.encoder import (
    RECIPE,
    EncoderError,
    Patches,
    interpolated,
    place_of,
    required,
    sha256_of,
)

MODEL = "ViT-L-14-336-quickgelu"
WEIGHTS = "openai"
CONFIG = "open_clip_config.json"


@contextmanager
def quiet() -> Iterator[None]:
    """open_clip reports its progress as warnings of the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def open_(
    name: str,
    model: str | None,
    weights: str | None,
    device: torch.device,
    size: int | None,
    fit: str,
) -> Clip:
    """See `encoder.open_encoder`. size None is the size that the network was trained for."""
    return Clip(model or MODEL, weights, device, size, fit)


class Clip:
    """One CLIP: image tower, text tower, tokeniser. Half precision on CUDA, float32 on the CPU."""

    def __init__(self, model: str, weights: str | None, device: torch.device, size: int | None, fit: str):
        open_clip: Any = required("open_clip", "CLIP")
        where = _folder(weights)
        spelled = f"local-dir:{where}" if where else model
        if where is None and open_clip.get_model_config(model) is None:
            raise EncoderError(
                f"open_clip has no model {model!r}; `open_clip.list_models()` lists what it has"
            )
        source = where or _file(open_clip, model, weights)
        try:
            with quiet():
                network = open_clip.create_model(spelled, load_weights=False)
                _load(open_clip, network, _weights_in(source) if where else source)
                self._tokenizer = open_clip.get_tokenizer(spelled)
        except EncoderError:
            raise
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise EncoderError(
                f"{source} does not hold weights of {'its config' if where else model}: {reason}"
            ) from None
        half = device.type == "cuda"
        self._network = (
            network.to(device, torch.float16 if half else torch.float32).eval().requires_grad_(False)
        )
        self._device, self._dtype = device, torch.float16 if half else torch.float32
        prepared = open_clip.get_model_preprocess_cfg(network)
        self._mean, self._std = prepared["mean"], prepared["std"]
        self._tower = _tower(network.visual, model)
        self.width = self._tower.width
        trained = prepared["size"]
        own = trained if isinstance(trained, int) else min(trained)
        self._patches = Patches(own if size is None else size, self._tower.patch, self._tower.patch, fit)
        self.recipe: dict[str, Any] = {
            "recipe": RECIPE,
            "encoder": "clip",
            "model": where.name if where else model,
            "weights": place_of(weights, _tag(open_clip, model)),
            "weights_sha256": sha256_of(source),
            "size": self._patches.size,
            "fit": fit,
            "mean": list(self._mean),
            "std": list(self._std),
            "precision": "float16" if half else "float32",
        }

    def grid(self, width: int, height: int) -> tuple[int, int]:
        return self._patches.grid(width, height)

    @torch.no_grad()
    def encode(self, photo: np.ndarray) -> Tensor:
        rows, columns = self.grid(photo.shape[1], photo.shape[0])
        x = self._patches.prepare(photo, self._mean, self._std).to(self._device, self._dtype)
        x = x[:, :, : rows * self._tower.patch, : columns * self._tower.patch]
        return self._tower.dense(x, rows, columns)[0].view(rows, columns, -1).to("cpu", torch.float16)

    def tokens(self, texts: list[str]) -> Tensor:
        encode = getattr(self._tokenizer, "encode", None)
        room = self._tokenizer.context_length
        for text in texts:
            if encode is None:  # another tokeniser: it truncates, and cannot be asked beforehand
                continue
            count = len(encode(text))
            if count == 0:
                raise EncoderError(f"the text {text!r} has no tokens: write what to look for")
            if count + 2 > room:
                raise EncoderError(
                    f"the text {text[:40]!r}... has {count} tokens, the text tower takes {room - 2}: "
                    "shorten it"
                )
        return self._tokenizer(texts)

    @torch.no_grad()
    def encode_tokens(self, tokens: Tensor) -> Tensor:
        return self._network.encode_text(tokens.to(self._device)).float().cpu()


class VitTower:
    """open_clip's own vision transformer."""

    def __init__(self, visual: Any):
        self.visual = visual
        self.patch = visual.conv1.kernel_size[0]
        self.width = visual.proj.shape[1] if visual.proj is not None else visual.transformer.width

    def dense(self, x: Tensor, rows: int, columns: int) -> Tensor:
        """[1, rows * columns, D] of normalised pixels."""
        visual = self.visual
        patches = visual.conv1(x).flatten(2).mT  # [1, cells, C]
        table = visual.positional_embedding.to(x.dtype)
        first = (visual.class_embedding.to(x.dtype) + table[0]).view(1, 1, -1)
        x = torch.cat([first, patches + interpolated(table[1:], rows, columns)], dim=1)
        x = visual.ln_pre(x)
        *blocks, last = visual.transformer.resblocks
        batch_first = getattr(visual.transformer, "batch_first", True)
        x = x if batch_first else x.transpose(0, 1)
        for block in blocks:
            x = block(x)
        x = x if batch_first else x.transpose(0, 1)
        x = last.ls_1(own_values(last.ln_1(x[:, 1:]), last.attn))
        x = visual.ln_post(x)
        return x @ visual.proj if visual.proj is not None else x


def own_values(x: Tensor, attention: Any) -> Tensor:
    """Attention [.., C] in which every token attends to nothing but itself."""
    rows = slice(2 * x.shape[-1], None)  # queries, keys, values
    bias = None if attention.in_proj_bias is None else attention.in_proj_bias[rows]
    return attention.out_proj(F.linear(x, attention.in_proj_weight[rows], bias))


class ResNetTower:
    """open_clip's ModifiedResNet, whose last layer is an attention pool over the cells of a feature image."""

    def __init__(self, visual: Any):
        self.visual = visual
        side = int((len(visual.attnpool.positional_embedding) - 1) ** 0.5)
        size = visual.image_size if isinstance(visual.image_size, int) else visual.image_size[0]
        self.patch = size // side
        self.width = visual.attnpool.c_proj.out_features

    def dense(self, x: Tensor, rows: int, columns: int) -> Tensor:
        """[1, rows * columns, D] of normalised pixels."""
        visual, pool = self.visual, self.visual.attnpool
        for stage in (visual.stem, visual.layer1, visual.layer2, visual.layer3, visual.layer4):
            x = stage(x)
        table = pool.positional_embedding.to(x.dtype)
        x = x.flatten(2).mT + interpolated(table[1:], rows, columns)
        return pool.c_proj(pool.v_proj(x))


def _tower(visual: Any, model: str) -> VitTower | ResNetTower:
    if hasattr(visual, "attnpool") and hasattr(visual, "layer4"):
        return ResNetTower(visual)
    own = hasattr(visual, "conv1") and hasattr(getattr(visual, "transformer", None), "resblocks")
    if own and visual.attn_pool is None and hasattr(visual.transformer.resblocks[-1].attn, "in_proj_weight"):
        return VitTower(visual)
    raise EncoderError(
        f"{model}: dense features are known for open_clip's own ViT and ModifiedResNet towers, and this is a "
        f"{type(visual).__name__}; choose another model, as {MODEL}"
    )


def _folder(weights: str | None) -> Path | None:
    """A folder that holds a config beside its weights."""
    path = Path(weights).expanduser() if weights else None
    if path is None or not path.is_dir():
        return None
    if not (path / CONFIG).is_file():
        raise EncoderError(f"{path} holds no {CONFIG}: give the weights file itself and --model")
    return path


def _weights_in(folder: Path) -> Path:
    for pattern in ("open_clip_model.safetensors", "*.safetensors", "*.bin", "*.pt", "*.pth"):
        if found := sorted(folder.glob(pattern)):
            return found[0]
    raise EncoderError(f"{folder} holds a config but no weights: expected a .safetensors, .bin or .pt file")


def _tag(open_clip: Any, model: str) -> str:
    tags = open_clip.list_pretrained_tags_by_model(model)
    return WEIGHTS if WEIGHTS in tags or not tags else tags[0]


def _file(open_clip: Any, model: str, weights: str | None) -> Path:
    """The weights on disk: as given, or downloaded by tag (once; open_clip keeps them)."""
    if weights and (Path(weights).expanduser().is_file() or "/" in weights or Path(weights).suffix):
        path = Path(weights).expanduser()
        if not path.is_file():
            raise EncoderError(f"there are no weights at {path}")
        return path
    tag = weights or _tag(open_clip, model)
    entry = open_clip.get_pretrained_cfg(model, tag)
    if not entry:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(model)) or "none"
        raise EncoderError(f"open_clip knows no weights {tag!r} of {model} (it has {tags}), nor is it a file")
    try:
        with quiet():
            return Path(open_clip.download_pretrained(entry))
    except Exception as error:
        raise EncoderError(
            f"the weights {tag!r} of {model} could not be downloaded ({type(error).__name__}): fetch them "
            "where there is a network and give the file with --weights PATH"
        ) from None


def _load(open_clip: Any, network: Any, file: Path) -> None:
    """Tensors only: nothing in the file is executed."""
    if zipfile.is_zipfile(file) and any(
        n.endswith("constants.pkl") for n in zipfile.ZipFile(file).namelist()
    ):
        raise EncoderError(
            f"{file} is a TorchScript program, which is not run; save its state_dict() with safetensors"
        )
    open_clip.load_checkpoint(network, str(file), strict=True, weights_only=True)
