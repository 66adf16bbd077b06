"""An RGB image to the network's input: resized, cropped, normalised.

Pillow and NumPy do it, bit for bit as Pillow with torchvision's transforms does (the official
code's way; a test holds the two together).
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cvt_cli.spec.preprocessing import Preprocessing

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "lanczos": Image.Resampling.LANCZOS,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}

LARGEST_RESIZED = 178_956_970
"""Pixels that a resize before a crop makes at most (Pillow's own limit for a decoded image)."""


def preprocess(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.float32]:
    """An RGB image to the network's input, float32 (3, H, W)."""
    return normalise(resize(image, preprocessing), preprocessing)


def normalise(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.float32]:
    """An RGB image that has the size it shall have, (H, W), to float32 (3, H, W)."""
    pixels = np.asarray(image)  # (H, W, 3) uint8
    table = normalisation_table(preprocessing)
    result = np.empty((3, *pixels.shape[:2]), dtype=np.float32)
    for channel in range(3):
        np.take(table[channel], pixels[:, :, channel], out=result[channel])
    return result


def resize(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """Resize and crop an RGB image to the record's height and width, still in 8 bits."""
    height, width = preprocessing.size
    new_size = preprocessing.resized(image.height, image.width)
    new_height, new_width = new_size
    resample = _RESAMPLING[preprocessing.interpolation]
    top, left = preprocessing.corner(new_size)
    if new_height * new_width > LARGEST_RESIZED:
        # An extreme shape: resample only what the crop keeps. Pillow's 8-bit rounding between its
        # two passes then falls differently, so this is not equal to the bit.
        across, down = image.width / new_width, image.height / new_height
        box = (left * across, top * down, (left + width) * across, (top + height) * down)
        return image.resize((width, height), resample, box=box)
    # Whole, then cropped: Pillow picks the order of its two passes by the sizes, so that resampling
    # the crop alone may give other bits.
    image = image.resize((new_width, new_height), resample)
    if preprocessing.resize == "pad":
        canvas = Image.new("RGB", (width, height), preprocessing.fill)
        canvas.paste(image, (-left, -top))
        return canvas
    return image.crop((left, top, left + width, top + height))


@cache
def normalisation_table(preprocessing: Preprocessing) -> NDArray[np.float32]:
    """(value / 255 - mean) / std in float32 for the 256 values of each channel: (3, 256)."""
    values = np.arange(256, dtype=np.float32) / np.float32(255)
    mean = np.array(preprocessing.mean, dtype=np.float32)[:, None]
    std = np.array(preprocessing.std, dtype=np.float32)[:, None]
    return (values - mean) / std
