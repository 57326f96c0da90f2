"""Text -> similarity -> place: how well features match given embeddings, and where in space they do.

Embeddings come from a text encoder or from anywhere else; nothing here encodes text. With negatives, a
feature is asked whether it looks more like the positive than like each of them (softmax at a temperature).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

MODES = ("paired", "f3rm", "cosine")
THRESHOLD = 0.5  # paired: the positive beats every negative exactly above one half


@dataclass(frozen=True)
class Query:
    """Embeddings made ready for `score`, in D feature channels or folded into H hidden ones."""

    positive: Tensor  # [H or D]
    negatives: Tensor | None  # [m, H or D]
    triangle: Tensor | None  # [H, H] what hidden vectors are multiplied with first; None for features


@dataclass(frozen=True)
class Location:
    centroid: Tensor  # [3] weighted mean
    box: Tensor  # [2, 3] lowest and highest corner of what the coverage keeps
    weight: float  # sum of the weights


def similarity(
    features: Tensor,
    positives: Tensor,
    negatives: Tensor | None = None,
    mode: str = "paired",
    temperature: float = 0.1,
) -> Tensor:
    """How well features [..., D] match the mean of the positives ([D] or [n, D]): float32 [...].

    "cosine": the cosine, -1..1; negatives play no part, and without negatives the other modes mean this one.
    "paired": min over negatives n of e^(p/T) / (e^(p/T) + e^(n/T)), 0..1, p and n being cosines.
    "f3rm": F3RM's own softmax, e^(p/T) / (m e^(p/T) + sum_n e^(n/T)), which peaks at 1/m for m negatives.
    The positives are averaged as they come, then normalised. A feature that is zero or not finite scores 0.
    """
    return score(features, prepare(positives, negatives), mode, temperature)


def similarity_from_hidden(
    hidden: Tensor,
    feature_layer: Tensor,
    positives: Tensor,
    negatives: Tensor | None = None,
    mode: str = "paired",
    temperature: float = 0.1,
) -> Tensor:
    """`similarity(hidden @ feature_layer.T, ...)` of hidden [..., H] without ever forming D channels.

    `feature_layer` is the linear layer [D, H]. Over many images, call `prepare` once and `score` per image.
    """
    return score(hidden, prepare(positives, negatives, feature_layer), mode, temperature)


def prepare(positives: Tensor, negatives: Tensor | None = None, feature_layer: Tensor | None = None) -> Query:
    """Unit embeddings, folded through the last feature layer W [D, H] where one is given.

    With W = Q R the feature of a hidden vector h is Q (R h): its length is |R h| (R^T R is the Gram matrix
    W^T W, of which R keeps all digits) and its product with a text t is (Q^T t) . (R h).
    """
    positive = _unit(positives.float().reshape(-1, positives.shape[-1]).mean(dim=0))
    if negatives is not None:
        negatives = _unit(negatives.float().reshape(-1, negatives.shape[-1]))
        if negatives.shape[1] != len(positive):
            raise ValueError(
                f"prepare: positives have {len(positive)} channels, negatives {negatives.shape[1]}"
            )
        negatives = None if len(negatives) == 0 else negatives
    if feature_layer is None:
        return Query(positive, negatives, None)
    if feature_layer.shape[0] != len(positive):
        raise ValueError(
            f"prepare: feature_layer gives {feature_layer.shape[0]} channels, embeddings have {len(positive)}"
        )
    basis, triangle = torch.linalg.qr(feature_layer.detach().double())
    folded = None if negatives is None else (negatives.to(basis) @ basis).float()
    return Query((positive.to(basis) @ basis).float(), folded, triangle.float())


def check(mode: str, temperature: float, name: str = "mode") -> None:
    """ValueError for a way to score that does not exist; `name` is what the caller's caller calls it."""
    if mode not in MODES:
        raise ValueError(f"similarity: {name} is {mode!r}, expected one of {', '.join(MODES)}")
    if not temperature > 0:
        raise ValueError(f"similarity: temperature is {temperature}, expected a positive number")


def score(features: Tensor, query: Query, mode: str = "paired", temperature: float = 0.1) -> Tensor:
    """Similarity [...] of features [..., D], or of hidden vectors [..., H] where the query was folded."""
    check(mode, temperature)
    width = len(query.positive) if query.triangle is None else query.triangle.shape[1]
    if features.shape[-1] != width:
        what = "the embeddings have" if query.triangle is None else "feature_layer takes"
        raise ValueError(f"similarity: got {features.shape[-1]} channels, {what} {width}")
    features = features.float()
    if query.triangle is not None:
        features = features @ query.triangle.to(features.device).T
    length = torch.linalg.vector_norm(features, dim=-1)
    usable = (length > 0) & length.isfinite()
    features = features / torch.where(usable, length, 1)[..., None]
    wanted = features @ query.positive.to(features.device)
    if query.negatives is not None and mode != "cosine":
        unwanted = features @ query.negatives.to(features.device).T
        wanted = _against(wanted / temperature, unwanted / temperature, mode)
    return torch.where(usable, wanted, 0)


def against(
    wanted: Tensor,
    unwanted: Tensor | None,
    mode: str = "paired",
    temperature: float = 0.1,
) -> Tensor:
    """Scores [..., Q] from the cosines [..., Q] of Q queries and those [..., m] of m negatives, or of none.

    The same rule as `similarity`, for those who have the cosines already: a feature without length has
    cosine 0 with everything, and scores 0 here too.
    """
    check(mode, temperature)
    if unwanted is None or unwanted.shape[-1] == 0 or mode == "cosine":
        return wanted
    none = (unwanted == 0).all(-1, keepdim=True) & (wanted == 0)
    scores = [_against(w / temperature, unwanted / temperature, mode) for w in wanted.unbind(-1)]
    return torch.where(none, 0, torch.stack(scores, -1))


def _against(wanted, unwanted, mode):
    """The softmax of one logit [...] against m others [..., m], written so that nothing overflows."""
    if mode == "paired":
        return torch.sigmoid(wanted - unwanted.amax(dim=-1))
    count = unwanted.shape[-1]
    return torch.sigmoid(wanted + math.log(count) - unwanted.logsumexp(dim=-1)) / count


def _unit(x):
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / torch.where(length > 0, length, 1)


def mask(similarity: Tensor, threshold: float = THRESHOLD) -> Tensor:
    """Where the similarity reaches the threshold; False where it is NaN."""
    return similarity >= threshold


def locate(points: Tensor, weights: Tensor, coverage: float = 0.98) -> Location:
    """Where weighted points [P, 3] lie: their weighted mean, and a box that holds `coverage` of each axis.

    Weights [P] are opacities, densities or similarities; those that are not above zero are left out. A
    coverage of 1 gives the exact bounds, less than 1 keeps stray points from stretching the box. The
    place has the dtype of the points.
    """
    if points.shape != (*weights.shape, 3):
        raise ValueError(f"locate: points {tuple(points.shape)} do not fit weights {tuple(weights.shape)}")
    if not 0 < coverage <= 1:
        raise ValueError(f"locate: coverage lies in (0, 1], got {coverage}")
    given = points.dtype
    keep = (weights > 0) & points.isfinite().all(dim=-1)
    points, weights = points[keep].double(), weights[keep].double()
    if len(points) == 0:
        raise ValueError("locate: no point has a weight above zero")
    total = weights.sum()
    centroid = (weights[:, None] * points).sum(dim=0) / total
    ordered, order = points.sort(dim=0)
    reached = weights[order].cumsum(dim=0) / total
    outside = (1 - coverage) / 2
    first = (reached <= outside).sum(dim=0, keepdim=True)
    last = (reached < 1 - outside).sum(dim=0, keepdim=True).clamp_max(len(points) - 1)
    box = torch.cat([ordered.gather(0, first.clamp_max(len(points) - 1)), ordered.gather(0, last)])
    return Location(centroid.to(given), box.to(given), float(total))
