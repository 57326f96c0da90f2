"""Dense DINO and DINOv2 features through timm. The only file that imports it.

Facet `key`: the keys of the last attention layer, as Amir et al. 2021 and F3RM use them for DINO. Facet
`token`: the patches as the last block leaves them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
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

MODELS = {"dino": "vit_small_patch8_224.dino", "dinov2": "vit_large_patch14_dinov2.lvd142m"}
SIZES = {"dino": 224, "dinov2": 518}  # pixels of the shorter side
FACETS = {"dino": "key", "dinov2": "token"}
STRIDES = {"dino": 4, "dinov2": None}  # pixels; None: a patch, so that patches do not overlap


def open_(
    name: str,
    model: str | None,
    weights: str | None,
    device: torch.device,
    size: int | None,
    fit: str,
    facet: str | None = None,
    stride: int | None = None,
) -> Dino:
    """See `encoder.open_encoder`."""
    return Dino(name, model or MODELS[name], weights, device, size, fit, facet or FACETS[name], stride)


class Dino:
    """A plain vision transformer of timm, in float32."""

    def __init__(
        self,
        name: str,
        model: str,
        weights: str | None,
        device: torch.device,
        size: int | None,
        fit: str,
        facet: str,
        stride: int | None,
    ):
        if facet not in ("key", "token"):
            raise EncoderError(f"facet is {facet!r}, expected key or token")
        timm: Any = required("timm", name)
        if not timm.is_model(model.partition(".")[0]):
            raise EncoderError(f"timm has no model {model!r}; `timm.list_models()` lists what it has")
        network, file = _network(timm, model, weights)
        _check(network, model)
        self._network = network.to(device).eval().requires_grad_(False)
        self._device, self._facet = device, facet
        patch = network.patch_embed.proj.kernel_size[0]
        step = stride or STRIDES[name] or patch
        self._patches = Patches(SIZES[name] if size is None else size, patch, step, fit)
        network.patch_embed.proj.stride = (step, step)
        attention = network.blocks[-1].attn
        self.width = attention.num_heads * attention.head_dim if facet == "key" else network.embed_dim
        prepared = timm.data.resolve_model_data_config(network)
        self._mean, self._std = prepared["mean"], prepared["std"]
        self.recipe: dict[str, Any] = {
            "recipe": RECIPE,
            "encoder": name,
            "model": model,
            "weights": place_of(weights, model.partition(".")[2]),
            "weights_sha256": sha256_of(file) if file else _digest(network),
            "size": self._patches.size,
            "fit": fit,
            "facet": facet,
            "stride": step,
            "mean": list(self._mean),
            "std": list(self._std),
            "precision": "float32",
        }

    def grid(self, width: int, height: int) -> tuple[int, int]:
        return self._patches.grid(width, height)

    @torch.no_grad()
    def encode(self, photo: np.ndarray) -> Tensor:
        rows, columns = self.grid(photo.shape[1], photo.shape[0])
        x = self._tokens(self._patches.prepare(photo, self._mean, self._std).to(self._device), rows, columns)
        network = self._network
        *blocks, last = network.blocks
        for block in blocks:
            x = block(x)
        x = keys(last.norm1(x), last.attn) if self._facet == "key" else last(x)
        return x[0, network.num_prefix_tokens :].view(rows, columns, -1).to("cpu", torch.float16)

    def _tokens(self, x: Tensor, rows: int, columns: int) -> Tensor:
        """Class and register tokens, then the patches, with their positions: [1, n, C]."""
        network = self._network
        prefix = [t for t in (network.cls_token, network.reg_token) if t is not None]
        patches = network.patch_embed.norm(network.patch_embed.proj(x).flatten(2).mT)
        table = network.pos_embed[0]
        skip = 0 if network.no_embed_class else network.num_prefix_tokens
        patches = patches + interpolated(table[skip:], rows, columns)
        front = torch.cat(prefix, dim=1) if prefix else patches[:, :0]
        if skip:
            front = front + table[:skip]
        return network.norm_pre(torch.cat([front, patches], dim=1))


def keys(x: Tensor, attention: Any) -> Tensor:
    """The keys of tokens [B, n, C]: [B, n, head_dim * heads], channel = place in the head * heads + head."""
    _, k, _ = attention.qkv(x).chunk(3, dim=-1)
    return k.view(*k.shape[:2], attention.num_heads, -1).transpose(2, 3).flatten(2)


def _network(timm: Any, model: str, weights: str | None) -> tuple[Any, Path | None]:
    """The network with its weights, and the file they came from where it was a local one."""
    file = Path(weights).expanduser() if weights else None
    if weights and "/" not in weights and not Path(weights).suffix and not Path(weights).is_file():
        model, file = f"{model.partition('.')[0]}.{weights}", None  # a tag
    if file is not None and not file.is_file():
        raise EncoderError(f"there are no weights at {file}")
    try:
        if file is None:
            return timm.create_model(model, pretrained=True, num_classes=0), None
    except Exception as error:
        raise EncoderError(
            f"the weights of {model} could not be downloaded ({type(error).__name__}): fetch them where "
            "there is a network and give the file with --weights PATH"
        ) from None
    try:
        network = timm.create_model(model, pretrained=False, num_classes=0)
        state = timm.models.load_state_dict(str(file), use_ema=False, weights_only=True)
        fits = {k: v for k, v in state.items() if not k.startswith(("head.", "fc_norm."))}
        convert = getattr(timm.models.vision_transformer, "checkpoint_filter_fn", None)
        network.load_state_dict(convert(fits, network) if convert else fits)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise EncoderError(f"{file} does not hold weights of {model}: {reason}") from None
    return network, file


def _check(network: Any, model: str) -> None:
    needs = ("patch_embed", "pos_embed", "blocks", "norm_pre", "num_prefix_tokens", "no_embed_class")
    plain = all(hasattr(network, name) for name in needs) and hasattr(network.blocks[-1], "norm1")
    if not plain or network.pos_embed is None or not hasattr(network.blocks[-1].attn, "qkv"):
        raise EncoderError(f"{model} is not a plain vision transformer with learnt positions, as DINO's are")


def _digest(network: Any) -> str:
    """Of downloaded weights: over the tensors themselves, wherever timm keeps their file."""
    import hashlib

    found = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
