"""Every head of a rendering in one pass over shared weights: colour, opacity, depths, normals, features."""

from typing import NamedTuple

from torch import Tensor, empty_like

from raymarch.ops._op import differentiable, launch, op

NONE, COLOUR, LAST_SAMPLE, WHITE = range(4)  # as in math/composite.h


class Composite(NamedTuple):
    """What rays see. Heads that were not given are None. Lengths are in the units of t, along the ray."""

    rgb: Tensor | None  # [R, 3]
    opacity: Tensor  # [R] sum of weights
    depth: Tensor  # [R] median: where the weights' sum reaches a half; the last sample if it never does
    expected_depth: Tensor  # [R] mean, kept between the ray's first and last sample
    normals: Tensor | None  # [R, 3] unit, or zero
    predicted_normals: Tensor | None  # [R, 3] unit, or zero
    feature: Tensor | None  # [R, F] float32


@op
def composite_forward(
    w: Tensor,
    t: Tensor,
    rgb: Tensor | None,
    normals: Tensor | None,
    predicted: Tensor | None,
    feature: Tensor | None,
    colour: Tensor | None,
    background: int,
    clean: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    rays = w.shape[0]
    opacity, depth, expected = w.new_empty(rays), w.new_empty(rays), w.new_empty(rays)
    colours = [w.new_empty(0 if h is None else (rays, 3)) for h in (rgb, normals, predicted)]
    summed = w.new_empty(0 if feature is None else (rays, feature.shape[2]))
    out = [o if o.ndim > 1 else None for o in (*colours, summed)]
    launch(
        "composite_forward", w, t, rgb, normals, predicted, feature, colour, background, clean, out[0],
        opacity, depth, expected, *out[1:],
    )  # fmt: skip
    return colours[0], opacity, depth, expected, colours[1], colours[2], summed


@op
def composite_backward(
    w: Tensor,
    t: Tensor,
    rgb: Tensor | None,
    normals: Tensor | None,
    predicted: Tensor | None,
    feature: Tensor | None,
    colour: Tensor | None,
    background: int,
    clean: bool,
    g_rgb: Tensor | None,
    g_opacity: Tensor | None,
    g_expected: Tensor | None,
    g_normals: Tensor | None,
    g_predicted: Tensor | None,
    g_feature: Tensor | None,
    needs_w: bool,
    needs_rgb: bool,
    needs_normals: bool,
    needs_predicted: bool,
    needs_feature: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    needs = (needs_w, needs_rgb, needs_normals, needs_predicted, needs_feature)
    inputs = (w, rgb, normals, predicted, feature)
    grads = [empty_like(x) if x is not None and need else None for x, need in zip(inputs, needs, strict=True)]
    launch(
        "composite_backward", w, t, rgb, normals, predicted, feature, colour, background, clean, g_rgb,
        g_opacity, g_expected, g_normals, g_predicted, g_feature, *grads,
    )  # fmt: skip
    found = [w.new_empty(0) if g is None else g for g in grads]
    return found[0], found[1], found[2], found[3], found[4]


def _backward(inputs, saved, grads, needs):
    g_rgb, g_opacity, _, g_expected, g_normals, g_predicted, g_feature = grads
    # A head that was not given has no gradient. Under torch.compile an empty one comes where eager has None.
    of_heads = zip((g_rgb, g_normals, g_predicted, g_feature), inputs[2:6], strict=True)
    g_rgb, g_normals, g_predicted, g_feature = (None if head is None else g for g, head in of_heads)
    needs = (needs[0], *needs[2:6])
    found = composite_backward(
        *inputs, g_rgb, g_opacity, g_expected, g_normals, g_predicted, g_feature, *needs
    )
    w, *heads = (g if need else None for g, need in zip(found, needs, strict=True))
    return w, None, *heads, None, None, None


_composite = differentiable(composite_forward, _backward, fixed=(2,))


def composite(
    weights: Tensor,
    t: Tensor,
    rgb: Tensor | None = None,
    normals: Tensor | None = None,
    predicted_normals: Tensor | None = None,
    feature: Tensor | None = None,
    background: str | Tensor = "last_sample",
    clean: bool = False,
) -> Composite:
    """Composite heads along rays with weights [R, S] and edges t [R, S + 1].

    rgb, normals, predicted_normals [R, S, 3] float32; feature [R, S, F] float32, float16 or bfloat16, summed
    in float32. `background` fills what opacity leaves of rgb: "last_sample" (the colour of the ray's last
    sample), "black", "white", "random" (nothing: the loss adds one random colour to both sides) or a colour
    [3]. `clean`, for evaluation, replaces colours that are not finite (NaN by 0) and clamps rgb to 0..1; no
    gradient flows through a number it changed.

    Gradients reach weights and heads; the median depth and t have none. ValueError for shapes that do not fit
    and for an unknown background.
    """
    mode, colour = _background(background, weights)
    heads = [None if h is None else h.contiguous() for h in (rgb, normals, predicted_normals, feature)]
    arguments = (weights.contiguous(), t.detach().contiguous(), *heads, colour, mode, clean)
    out = _composite(*arguments)
    present = [h is not None for h in heads]
    return Composite(
        out[0] if present[0] else None,
        *out[1:4],
        *(o if there else None for o, there in zip(out[4:], present[1:], strict=True)),
    )


def _background(background: str | Tensor, like: Tensor) -> tuple[int, Tensor | None]:
    if isinstance(background, Tensor):
        if background.shape != (3,):
            raise ValueError(f"composite: background has shape {tuple(background.shape)}, expected [3]")
        return COLOUR, background.to(like)
    modes = {"last_sample": LAST_SAMPLE, "black": NONE, "random": NONE, "white": WHITE}
    if background not in modes:
        raise ValueError(
            f"composite: background is {background!r}, expected last_sample, black, white, random or a colour"
        )
    return modes[background], None
