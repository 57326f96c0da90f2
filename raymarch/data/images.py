"""Image files to uint8 arrays: formats, bit depths, averaging down. Nothing in a file is ever run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from raymarch.data import exr
from raymarch.data.error import SceneError

# Decoders that only decode; PIL has others, and its EPS one starts a program.
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "PPM")
SUFFIXES = (".png", ".jpg", ".jpeg", ".JPG", ".JPEG", ".PNG", ".webp", ".tif", ".tiff", ".bmp", ".exr")
EXIF_ORIENTATION = 0x0112
EXR = b"\x76\x2f\x31\x01"  # how those files begin, whatever they are called
LOSSY_KEEPS = 128  # a JPEG mask is grey around its edges: keep from here on
FEW_PIXELS, MOST_PER_BYTE = 1 << 24, 1 << 15  # a small damaged file may claim a picture of gigabytes
FAR = 1e9  # renderers write 1e10 and the like where a ray met nothing


@dataclass(frozen=True)
class Photo:
    """A decoded image and what its file says of itself."""

    pixels: np.ndarray  # [h, w, 3 or 4] uint8, straight alpha
    width: int  # in the file, before averaging down
    height: int
    turned: bool  # EXIF asks viewers to turn it, which we do not


def read_photo(path: Path, downscale: float = 1) -> Photo:
    """Decode to RGB or RGBA and average down. SceneError names the file where that fails.

    Sixteen bits become eight. OpenEXR holds linear light and premultiplied alpha: it is averaged so, and then
    encoded as sRGB (IEC 61966-2-1), clipped to 0..1, with straight alpha.
    """
    if is_exr(path):
        return _exr_photo(path, downscale)
    image, turned = _open(path)
    width, height = image.size
    return Photo(np.array(shrink(_colour(image, path), downscale, path)), width, height, turned)


def read_mask(path: Path) -> np.ndarray:
    """[h, w] bool: nonzero keeps the pixel; of a JPEG, whose black is never quite black, 128 and more."""
    image, _ = _open(path)
    lossy = image.format == "JPEG"
    if lossy:
        return np.array(image.convert("L")) >= LOSSY_KEEPS
    if image.mode in ("RGB", "RGBA", "P", "PA", "LA", "La", "RGBa", "CMYK", "YCbCr"):
        return (
            np.array(image.convert("RGB")).max(axis=2) != 0
        )  # not by brightness, in which dark colours are 0
    return np.array(image) != 0


def read_numbers(path: Path) -> np.ndarray:
    """[h, w] float32 from a single-channel image of 8 or 16 bits or float, or from a .npy array.

    Of an OpenEXR file: channel Z, V, Y, R or the only one; what is not finite or beyond 1e9 becomes 0.
    """
    return numbers_and_kind(path)[0]


def numbers_and_kind(path: Path) -> tuple[np.ndarray, str]:
    """What read_numbers returns, and the kind of number in the file: i, u or f."""
    if path.suffix == ".npy":
        try:
            values = np.load(path, allow_pickle=False)
        except Exception as error:  # a damaged header raises what it likes
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise SceneError(f"{path} cannot be read as an array: {reason}") from None
    elif is_exr(path):
        values = _exr_numbers(path)
    else:
        values = np.array(_open(path)[0])
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    if values.ndim != 2 or values.dtype.kind not in "uif":
        shape = list(values.shape)
        raise SceneError(f"{path} should hold one number per pixel, not {values.dtype} of shape {shape}")
    with np.errstate(over="ignore"):
        return values.astype(np.float32), values.dtype.kind


def read_positive_normals(path: Path) -> np.ndarray:
    """[h, w, 3] float32 in 0..1: the positive part of world normals, NaN where alpha is not full."""
    image = _open(path)[0].convert("RGBA")
    values = np.array(image, dtype=np.float32) / 255
    return np.where(values[:, :, 3:] == 1, values[:, :, :3], np.float32("nan"))


def nearest(values: np.ndarray, width: int, height: int) -> np.ndarray:
    """Values at another size, each pixel's from its centre."""
    rows = ((np.arange(height) + 0.5) * values.shape[0] / height).astype(np.int64)
    columns = ((np.arange(width) + 0.5) * values.shape[1] / width).astype(np.int64)
    return np.ascontiguousarray(values[rows][:, columns])


def photo_size(path: Path) -> tuple[int, int]:
    """Width and height from the file's header."""
    return photo_facts(path)[:2]


def photo_facts(path: Path) -> tuple[int, int, bool]:
    """Width, height and whether EXIF asks for a turn, from the file's header."""
    if is_exr(path):
        header = exr.read_header(_bytes(path), str(path))
        return header.width, header.height, False
    image, turned = _open(path, decode=False)
    return (*image.size, turned)


def is_exr(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(4) == EXR
    except (OSError, ValueError):
        return False


def shrunk_size(width: int, height: int, factor: float) -> tuple[int, int]:
    """Pixels left after averaging down: a part of a pixel at the right and the bottom is dropped."""
    return int(width / factor + 1e-9), int(height / factor + 1e-9)


def shrink(image: Image.Image, factor: float, path: Path) -> Image.Image:
    """Average over areas of factor x factor pixels; straight alpha weighs the colours."""
    if factor == 1:
        return image
    width, height = shrunk_size(*image.size, factor)
    if min(width, height) < 1:
        size = f"{image.size[0]} x {image.size[1]}"
        raise SceneError(f"{path} has {size} pixels: too few to downscale by {factor:g}")
    if factor == int(factor):
        factor = int(factor)
        return image.crop((0, 0, width * factor, height * factor)).reduce(factor)
    right, bottom = min(width * factor, image.size[0]), min(height * factor, image.size[1])
    return image.resize((width, height), Image.Resampling.BOX, box=(0, 0, right, bottom))


def shrink_nearest(values: np.ndarray, factor: float) -> np.ndarray:
    """Pick the value at each larger pixel's centre: masks, depths and normals must not be averaged."""
    if factor == 1:
        return values
    width, height = shrunk_size(values.shape[1], values.shape[0], factor)
    rows = ((np.arange(height) + 0.5) * factor).astype(np.int64)
    columns = ((np.arange(width) + 0.5) * factor).astype(np.int64)
    return np.ascontiguousarray(values[rows][:, columns])


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SceneError(f"{path} cannot be read: {error.strerror or error}") from None


def _exr_photo(path: Path, downscale: float) -> Photo:
    found = exr.channels(_bytes(path), str(path))
    words = ("R", "G", "B") if "R" in found else ("Y", "Y", "Y")
    if any(word not in found for word in words):
        raise SceneError(
            f"{path} has the channels {', '.join(found)}: a photo needs R, G, B or Y, and perhaps A"
        )
    planes = [found[word] for word in (*words, "A") if word in found]
    height, width = planes[0].shape
    linear = np.nan_to_num(np.stack(planes, axis=2), nan=0.0, posinf=1e4, neginf=0.0)
    layers = [Image.fromarray(linear[:, :, i]) for i in range(linear.shape[2])]
    small = np.stack([np.array(shrink(layer, downscale, path)) for layer in layers], axis=2)
    if small.shape[2] == 4:
        alpha = np.clip(small[:, :, 3:], 0, 1)
        small = np.concatenate([small[:, :, :3] / np.maximum(alpha, 1e-6), alpha], axis=2)
    encoded = np.concatenate([srgb(small[:, :, :3]), small[:, :, 3:]], axis=2)
    return Photo(np.rint(encoded * 255).astype(np.uint8), width, height, False)


def srgb(linear: np.ndarray) -> np.ndarray:
    """Linear light as sRGB, IEC 61966-2-1; clipped to 0..1."""
    light = np.clip(linear, 0, 1)
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def _exr_numbers(path: Path) -> np.ndarray:
    found = exr.channels(_bytes(path), str(path))
    words = [word for word in ("Z", "V", "Y", "R", *found) if word in found]
    if words[0] not in ("Z", "V", "Y", "R") and len(found) > 1:
        raise SceneError(f"{path} has the channels {', '.join(found)}: numbers should be in Z, V, Y or R")
    values = found[words[0]]
    return np.where(np.isfinite(values) & (np.abs(values) < FAR), values, np.float32(0))


def _open(path: Path, decode: bool = True) -> tuple[Image.Image, bool]:
    try:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            size = path.stat().st_size
            if width * height > max(FEW_PIXELS, MOST_PER_BYTE * size):
                raise OSError(f"{width} x {height} pixels cannot be in its {size} bytes")
            if decode:
                image.load()
            turned = image.getexif().get(EXIF_ORIENTATION, 1) not in (0, 1)
        return image, turned
    except Exception as error:  # broken files make decoders raise SyntaxError, struct.error, zlib.error ...
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else repr(error)
        if "cannot identify image file" in reason:
            reason = f"empty, truncated or not one of {', '.join(FORMATS)}"
        raise SceneError(f"{path} cannot be read as an image: {reason}") from None


def _colour(image: Image.Image, path: Path) -> Image.Image:
    """RGB, or RGBA where there is alpha. Sixteen bits round to eight; grey becomes three equal channels."""
    mode = image.mode
    if mode == "F":
        raise SceneError(f"{path} holds floating-point pixels: save the photo with 8 or 16 bits per channel")
    if mode.startswith("I"):
        wide = np.clip(np.array(image), 0, 65535).astype(np.uint32)
        image = Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8))
    alpha = mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info
    wanted = "RGBA" if alpha else "RGB"
    return image if image.mode == wanted else image.convert(wanted)
