"""Words -> embeddings: from a file of named vectors, or from the text encoder behind a run's features.

Both are optional, and a text may be found in either: the file comes first.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from raymarch.data.archive import open_npz
from raymarch.data.atomic import write_bytes
from raymarch.features.encoder import EncoderError, open_recorded, text_embeddings

SUFFIXES = (".npz", ".safetensors")
STORED = "embeddings.safetensors"  # in a run's folder: words that need no encoder


class WordsError(ValueError):
    """A text without an embedding, or a file of embeddings that cannot be used."""


def read_embeddings(path: str | Path) -> dict[str, Tensor]:
    """Vectors [D] float32 by name, from a .npz or .safetensors file of one array, [D] or [1, D], per name.

    A .npz may instead hold `names` [K] and `vectors` [K, D]. WordsError for anything else; nothing in the
    file is executed.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise WordsError(f"{path}: embeddings come as one of {', '.join(SUFFIXES)}, not {path.suffix!r}")
    try:
        found = _npz(path) if path.suffix == ".npz" else _safetensors(path)
    except FileNotFoundError:
        raise WordsError(f"there is no file of embeddings at {path}") from None
    except WordsError:
        raise
    except Exception as error:  # damaged archives raise whatever their damage hits first
        raise WordsError(f"{path} cannot be read as embeddings: {error}") from None
    return _checked(found, path)


def _npz(path: Path) -> dict[str, Any]:
    with open_npz(path) as stored:
        if set(stored.files) != {"names", "vectors"}:
            return {name: stored[name] for name in stored.files}
        names, vectors = [str(x) for x in stored["names"]], stored["vectors"]
    if vectors.ndim != 2 or len(vectors) != len(names):
        raise WordsError(f"{path} has {len(names)} names and vectors of shape {list(vectors.shape)}")
    return dict(zip(names, vectors, strict=True))


def _safetensors(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise WordsError(f"{path} cannot be read as embeddings: {error}") from None


def _checked(found: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    vectors = {}
    for name, value in found.items():
        if not isinstance(value, Tensor) and value.dtype.kind not in "fiu":
            raise WordsError(f"{path}: {name!r} should be one vector of numbers, not of {value.dtype}")
        vector = torch.as_tensor(value).float().reshape(-1)
        if len(vector) != max(value.shape, default=0) or not vector.isfinite().all() or not vector.any():
            shape = list(value.shape)
            raise WordsError(f"{path}: {name!r} should be one finite vector that is not zero, not {shape}")
        vectors[name] = vector
    widths = sorted({len(v) for v in vectors.values()})
    if len(widths) != 1:
        raise WordsError(f"{path} should hold vectors of one width, found {widths or 'none'}")
    return vectors


def write_embeddings(path: str | Path, vectors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write named vectors [D] as safetensors, whole or not at all; `about` is kept as JSON in the header."""
    rows = {name: v.detach().cpu().float().contiguous() for name, v in vectors.items()}
    write_bytes(Path(path), save(rows, {"raymarch": json.dumps(dict(about))}))


class Words:
    """Gives texts their embeddings: named vectors first, then a text encoder, opened when first needed.

    recipe: what a feature file or a checkpoint says of the encoder its features came from, {} if nothing.
    weights: where its weights lie now, if elsewhere than then.
    """

    def __init__(
        self,
        vectors: Mapping[str, Tensor] | None = None,
        recipe: Mapping[str, Any] | None = None,
        weights: str | None = None,
        device: torch.device | str = "cpu",
    ):
        self.vectors = dict(vectors or {})
        self.recipe, self.weights, self.device = dict(recipe or {}), weights, device
        self._encoder: Any = None
        self._made: dict[str, Tensor] = {}

    @property
    def known(self) -> list[str]:
        """Names that need no encoder."""
        return sorted(self.vectors)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Embeddings [K, D] float32 of K texts. WordsError where one has none; it says what to do."""
        if isinstance(texts, str):
            texts = [texts]
        if not texts:
            raise WordsError("there is no text to look for")
        return torch.stack([self._one(text) for text in texts])

    def _one(self, text: str) -> Tensor:
        if not text.strip():
            raise WordsError(f"{text!r} is no text: write what to look for")
        for name in (text, text.strip()):
            if name in self.vectors:
                return self.vectors[name]
        folded = {name.casefold(): name for name in self.vectors}
        if (name := folded.get(text.strip().casefold(), "")) in self.vectors:
            return self.vectors[name]
        if text not in self._made:
            self._made[text] = self._encoded(text)
        return self._made[text]

    def _encoded(self, text: str) -> Tensor:
        if not self.recipe.get("encoder"):
            if not self.vectors:
                raise WordsError(
                    "this run stores no text encoder and no embeddings: give --embeddings FILE (.npz or "
                    ".safetensors, one vector per name), or distil features of `raymarch extract`"
                )
            raise WordsError(
                f"there is no embedding for {text!r} among {len(self.vectors)} names, and this run stores no "
                f"text encoder; {self._near(text)}"
            )
        try:
            if self._encoder is None:
                self._encoder = open_recorded(self.recipe, self.weights, self.device)
            if not hasattr(self._encoder, "encode_tokens"):
                raise WordsError(
                    f"the features came from {self.recipe['encoder']!r}, which knows no words: give "
                    "--embeddings FILE, or distil CLIP features too"
                )
            return text_embeddings(self._encoder, [text])[0].cpu()
        except EncoderError as error:
            known = f"; without it there are names, and {self._near(text)}" if self.vectors else ""
            raise WordsError(f"{error}{known}") from None

    def _near(self, text: str, most: int = 6) -> str:
        """Which names there are instead: those spelled alike, else the first ones."""
        folded = {name.casefold(): name for name in self.vectors}
        close = difflib.get_close_matches(text.strip().casefold(), folded, n=3, cutoff=0.4)
        if close:
            return f"the nearest are {', '.join(repr(folded[name]) for name in close)}"
        more = f" and {len(self.vectors) - most} more" if len(self.vectors) > most else ""
        return f"the names are {', '.join(map(repr, self.known[:most]))}{more}"
