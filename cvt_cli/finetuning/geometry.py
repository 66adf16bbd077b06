"""How much of the user's pictures an input has room for, from the sizes in their headers."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from cvt_cli.datasets.labelled import LabelledImages
from cvt_cli.spec.config import Size
from cvt_cli.spec.preprocessing import Preprocessing

_LOOKED_AT = 200
"""Pictures at most, evenly spread, of which the size is read."""


def hidden_by_crop(images: LabelledImages, preprocessing: Preprocessing) -> float | None:
    """Mean share of a picture's area that the centre crop leaves out, whatever is set.

    Returns:
        A fraction; None where no size can be read.
    """
    crop = replace(preprocessing, resize="crop")
    sizes = _sizes(images)
    kept = [crop.height * crop.width / (size[0] * size[1]) for size in map(crop.resized, *sizes)]
    return 1 - float(np.mean(kept)) if kept else None


def _sizes(images: LabelledImages) -> tuple[list[int], list[int]]:
    """Heights and widths of some pictures, as they are stored."""
    if images.pixels is not None:
        return [images.pixels.shape[1]], [images.pixels.shape[2]]
    found: list[Size] = []
    for index in np.unique(np.linspace(0, len(images) - 1, _LOOKED_AT).astype(int)).tolist():
        try:
            with images.opener(index)() as file, Image.open(file) as image:
                found.append(Size(image.height, image.width))
        except Exception:  # noqa: BLE001  # of damaged files anything; they are told of elsewhere
            continue
    return [size.height for size in found], [size.width for size in found]


def described(plan: Mapping[str, Any]) -> Iterator[str]:
    """What a plan says of it, in lines for a person."""
    hidden = plan["data"].get("hidden_by_crop")
    preprocessing = Preprocessing.from_transformers(plan["model"]["preprocessing"])
    if preprocessing.resize == "crop" and hidden is not None and hidden >= 0.01:
        yield (
            f"the centre crop hides {100 * hidden:.0f} % of the area of these pictures on average; "
            "--resize squash or --resize pad shows all of them"
        )
    if preprocessing.resize == "pad":
        yield (
            "padding is nothing that transformers has: it opens the checkpoint, but squashes "
            "pictures instead"
        )
