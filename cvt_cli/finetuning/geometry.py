"""How much of the user's pictures an input has room for, and which are sideways, by headers."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from cvt_cli.datasets.labelled import LabelledImages
from cvt_cli.spec.config import Size
from cvt_cli.spec.preprocessing import Preprocessing

_LOOKED_AT = 200
"""Pictures at most, evenly spread, of which the size is read."""

_LOOKED_AT_AFAR = 20
"""Likewise of pictures that are on other machines, each of which is fetched once more for it."""


def of_plan(images: LabelledImages, preprocessing: Preprocessing) -> dict[str, Any]:
    """What a plan has of it: the mean share of a picture's area that the centre crop leaves out,
    whatever is set, and the share of pictures that EXIF says are to be turned, fractions; None
    where no header can be read."""
    seen = _looked_at(images)
    crop = replace(preprocessing, resize="crop")
    resized = [crop.resized(size.height, size.width) for size, _ in seen]
    kept = [crop.height * crop.width / (size.height * size.width) for size in resized]
    return {
        "hidden_by_crop": 1 - float(np.mean(kept)) if kept else None,
        "turned_by_exif": float(np.mean([turned for _, turned in seen])) if seen else None,
    }


def _looked_at(images: LabelledImages) -> list[tuple[Size, bool]]:
    """The sizes of some pictures, as they are stored, and whether they are to be turned."""
    if images.pixels is not None:
        return [(Size(*images.pixels.shape[1:3]), False)]
    found: list[tuple[Size, bool]] = []
    for index in images.evenly(_LOOKED_AT_AFAR if images.afar else _LOOKED_AT).tolist():
        try:
            with images.opener(index)() as file, Image.open(file) as image:
                # A TIFF is turned when it is decoded; a PNG would be decoded to ask it more.
                exif = image.getexif() if "exif" in image.info and image.format != "TIFF" else {}
                turned = exif.get(ExifTags.Base.Orientation) in range(2, 9)
                found.append((Size(image.height, image.width), turned))
        except Exception:  # noqa: BLE001  # of damaged files anything; they are told of elsewhere
            continue
    return found


def described(plan: Mapping[str, Any]) -> Iterator[str]:
    """What a plan says of it, in lines for a person."""
    hidden = plan["data"].get("hidden_by_crop")
    preprocessing = Preprocessing.from_transformers(plan["model"]["preprocessing"])
    if preprocessing.resize == "crop" and hidden is not None and hidden >= 0.01:
        yield (
            f"the centre crop hides {100 * hidden:.0f} % of the area of these pictures on average; "
            "--resize squash or --resize pad shows all of them"
        )
    if turned := plan["data"].get("turned_by_exif"):
        yield (
            f"EXIF says of {max(1, round(100 * turned))} % of these pictures that they are to be "
            "turned: they are trained on, and evaluated, as they are stored, but cvt predict turns "
            "pictures upright without --no-exif"
        )
    if preprocessing.resize == "pad":
        yield (
            "padding is nothing that transformers has: it opens the checkpoint, but squashes "
            "pictures instead"
        )
