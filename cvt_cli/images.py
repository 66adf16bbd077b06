"""Image files to the network's input: find, decode, turn upright, resize, crop, normalise.

Pillow and NumPy do it, bit for bit as Pillow with torchvision's transforms does (the official
code's way; a test holds the two together).
"""

import os
import re
import stat
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from cvt_cli.errors import ImageError
from cvt_cli.preprocessing import Preprocessing

SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .apng .webp .gif .bmp .tif .tiff .avif .ppm .pgm .pbm .jp2".split()
)
"""Suffixes that a folder is searched for; a file that is named is read whatever its name."""

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "lanczos": Image.Resampling.LANCZOS,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}

# What Pillow's decoders raise for damaged content, besides OSError (found by mutating files).
_DECODER_ERRORS = (
    ValueError,
    RuntimeError,
    SyntaxError,
    EOFError,
    LookupError,
    TypeError,
    ArithmeticError,
    struct.error,
    zlib.error,
)

LARGEST_RESIZED = 178_956_970
"""Pixels that a resize before a crop makes at most (Pillow's own limit for a decoded image)."""


def images_in(folder: Path) -> Iterator[Path]:
    """Image files under a folder, by suffix, in natural order: 2.jpg before 10.jpg.

    Hidden files and folders are passed over, and links to folders are not followed.
    """
    for directory, folders, files in os.walk(folder):
        folders[:] = sorted((n for n in folders if not n.startswith(".")), key=natural_key)
        for name in sorted(files, key=natural_key):
            if is_image_name(name):
                yield Path(directory, name)


def is_image_name(name: str) -> bool:
    """Whether a file name, without folders, is a visible one with an image's suffix."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Sorts names as people do: numbers in them by value, upper and lower case together."""
    parts = re.split(r"(\d+)", name)
    return [int(p) if i % 2 else p.casefold() for i, p in enumerate(parts)], name


def load(path: Path, exif: bool) -> Image.Image:
    """Decode one image file; see `decode`."""
    return decode(lambda: open_regular(path), exif)


def decode(
    opened: Callable[[], BinaryIO], exif: bool, at_least: tuple[int, int] | None = None
) -> Image.Image:
    """Decode one image to RGB, by content and not by suffix; the first frame of several.

    Args:
        opened: gives the file.
        exif: turn the picture upright as its EXIF orientation says.
        at_least: height and width; a JPEG is then decoded at the smallest of 1/1, 1/2, 1/4 and 1/8
            of its size that has them, which is faster and not exact (Pillow's draft mode).

    Raises:
        ImageError: it cannot be read; the message is a reason such as "empty file (0 bytes)".
    """
    with _explained(), opened() as file, Image.open(file) as image:
        if at_least is not None:
            image.draft("RGB", at_least[::-1])
        image.load()  # before the file is closed
        return to_rgb(ImageOps.exif_transpose(image) if exif else image)


def size(opened: Callable[[], BinaryIO]) -> tuple[int, int]:
    """Height and width in pixels as the file's header says, before EXIF; raises as `decode`."""
    with _explained(), opened() as file, Image.open(file) as image:
        return image.height, image.width


@contextmanager
def _explained() -> Iterator[None]:
    """Raises ImageError with a reason for whatever opening and decoding raise."""
    try:
        yield
    except UnidentifiedImageError:
        raise ImageError("not an image, or of a kind that Pillow cannot read") from None
    except Image.DecompressionBombError:
        raise ImageError(
            f"too large: more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels"
        ) from None
    except MemoryError:
        raise ImageError("too large for the memory of this machine") from None
    except OSError as error:
        # Either the system's (with a strerror) or a decoder's: "image file is truncated (…)".
        raise ImageError((error.strerror or str(error)).lower()) from None
    except _DECODER_ERRORS as error:
        raise ImageError(f"damaged: {error}") from None


def from_memory(image: object, exif: bool) -> Image.Image:
    """An image that Python holds, to RGB.

    Args:
        image: a Pillow image; an array (H, W, 3) or (H, W), or a tensor (3, H, W), of uint8.
        exif: turn a Pillow image upright as its EXIF orientation says.

    Raises:
        ImageError: it is something else.
    """
    if isinstance(image, Image.Image):
        return to_rgb(ImageOps.exif_transpose(image) if exif else image)
    if hasattr(image, "detach"):  # a torch tensor, without importing torch
        array = np.asarray(image.detach().cpu().numpy())
        array = array.transpose(1, 2, 0) if array.ndim == 3 else array
    else:
        array = np.asarray(image)
    fits = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)
    if not fits or array.dtype != np.uint8 or array.size == 0:
        raise ImageError(
            f"{type(image).__name__} of {array.dtype} with shape {array.shape}; accepted are uint8 "
            "arrays (H, W, 3) or (H, W) and tensors (3, H, W)"
        )
    return to_rgb(Image.fromarray(array))


def open_regular(path: Path) -> BinaryIO:
    """Open a file that has bytes to read; a pipe would block for ever."""
    info = path.stat()
    if stat.S_ISDIR(info.st_mode):
        raise ImageError("a folder, not a file")
    if not stat.S_ISREG(info.st_mode):
        raise ImageError("not a regular file (a pipe, socket or device)")
    if info.st_size == 0:
        raise ImageError("empty file (0 bytes)")
    return path.open("rb")


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode that Pillow opens to RGB; alpha is dropped, deep greys are scaled to 8 bits."""
    if image.mode == "RGB":
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = Image.fromarray(_grey_to_8_bits(np.asarray(image), image.mode))
    if image.mode == "P" and "transparency" in image.info:
        # Straight to RGB, Pillow warns about transparency given in bytes.
        image = image.convert("RGBA")
    return image.convert("RGB")


def _grey_to_8_bits(values: NDArray[np.generic], mode: str) -> NDArray[np.uint8]:
    """Scale deep grey values to 0 … 255; Pillow's own conversion clips them.

    The full scale is the mode's where it has one (65535); 32-bit integers and floats are taken as
    holding the smallest of 1 (floats only), 255, 65535 and their own maximum that is not exceeded.
    """
    scaled = np.nan_to_num(values.astype(np.float64))
    largest = float(scaled.max(initial=0.0))
    if mode.startswith("I;16"):
        full_scale = 65535.0
    else:
        scales = (1.0, 255.0, 65535.0) if mode == "F" else (255.0, 65535.0)
        full_scale = next((scale for scale in scales if largest <= scale), largest)
    return np.rint(np.clip(scaled / full_scale, 0.0, 1.0) * 255.0).astype(np.uint8)


def preprocess(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.float32]:
    """An RGB image to the network's input, float32 (3, H, W)."""
    return normalise(resize(image, preprocessing), preprocessing)


def normalise(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.float32]:
    """An RGB image that has the size it shall have, (H, W), to float32 (3, H, W)."""
    pixels = np.asarray(image)  # (H, W, 3) uint8
    table = _normalisation_table(preprocessing)
    result = np.empty((3, *pixels.shape[:2]), dtype=np.float32)
    for channel in range(3):
        np.take(table[channel], pixels[:, :, channel], out=result[channel])
    return result


def resize(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """Resize and crop an RGB image to the record's height and width, still in 8 bits."""
    height, width = preprocessing.height, preprocessing.width
    new_height, new_width = preprocessing.resized(image.height, image.width)
    resample = _RESAMPLING[preprocessing.interpolation]
    # As torchvision's CenterCrop; both are 0 for a squash.
    top = round((new_height - height) / 2.0)
    left = round((new_width - width) / 2.0)
    if new_height * new_width > LARGEST_RESIZED:
        # An extreme shape: resample only what the crop keeps. Pillow's 8-bit rounding between its
        # two passes then falls differently, so this is not equal to the bit.
        across, down = image.width / new_width, image.height / new_height
        box = (left * across, top * down, (left + width) * across, (top + height) * down)
        return image.resize((width, height), resample, box=box)
    # Whole, then cropped: Pillow picks the order of its two passes by the sizes, so that resampling
    # the crop alone may give other bits.
    image = image.resize((new_width, new_height), resample)
    return image.crop((left, top, left + width, top + height))


@cache
def _normalisation_table(preprocessing: Preprocessing) -> NDArray[np.float32]:
    """(value / 255 - mean) / std in float32 for the 256 values of each channel: (3, 256)."""
    values = np.arange(256, dtype=np.float32) / np.float32(255)
    mean = np.array(preprocessing.mean, dtype=np.float32)[:, None]
    std = np.array(preprocessing.std, dtype=np.float32)[:, None]
    return (values - mean) / std
