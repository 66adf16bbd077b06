"""How an image becomes the network's input: a record, never a guess.

Every checkpoint has one; it is written into everything that is saved and printed with every result.
The arithmetic is in `images/transform.py`. The published numbers were measured so: below 384 pixels
the shorter side is resized to size / 0.875 and the centre cropped; from 384 up the whole image is
squashed to the size, with no crop; always with PIL's bicubic, ImageNet's mean and standard
deviation.
"""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from cvt_cli.base.errors import ConfigError
from cvt_cli.base.limits import (
    LARGEST_MEAN,
    LARGEST_SHORTER_SIDE,
    LARGEST_SIZE,
    LARGEST_STD,
    SMALLEST_STD,
)
from cvt_cli.spec.config import SMALLEST_SIZE, Size, shown

Resize = Literal["crop", "squash", "pad"]
Interpolation = Literal["nearest", "lanczos", "bilinear", "bicubic"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

SQUASH_FROM = 384
"""From this size in pixels up the published models take the whole image, squashed."""

# Pillow's numbers, which transformers writes as `resample`.
_RESAMPLE: dict[int, Interpolation] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}


@dataclass(frozen=True)
class Preprocessing:
    """Resize, crop and normalisation of one RGB image."""

    height: int  # of the network's input, in pixels
    width: int
    # "crop": resize the shorter side, crop the centre; "squash": resize both sides; "pad": resize
    # until all of it fits, fill the rest with the mean colour.
    resize: Resize
    crop_pct: float = 0.875  # only for "crop": size / length that the shorter side is resized to
    interpolation: Interpolation = "bicubic"
    mean: tuple[float, float, float] = IMAGENET_MEAN  # per channel, of values from 0 to 1
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        for name in ("height", "width"):
            value = getattr(self, name)
            if not (isinstance(value, int) and SMALLEST_SIZE <= value <= LARGEST_SIZE):
                raise ConfigError(
                    f"preprocessing `{name}` is {shown(value)}; it must be an integer of at least "
                    f"{SMALLEST_SIZE} and at most {LARGEST_SIZE} pixels"
                )
        if self.resize not in get_args(Resize):
            raise ConfigError(
                f"preprocessing `resize` is {shown(self.resize)}; accepted are "
                + ", ".join(f"`{name}`" for name in get_args(Resize))
            )
        if self.interpolation not in get_args(Interpolation):
            raise ConfigError(
                f"preprocessing `interpolation` is {shown(self.interpolation)}; accepted are "
                + ", ".join(f"`{name}`" for name in get_args(Interpolation))
            )
        if not (_is_number(self.crop_pct) and 0 < self.crop_pct <= 1):
            raise ConfigError(
                f"preprocessing `crop_pct` is {shown(self.crop_pct)}; "
                "it must be above 0 and at most 1"
            )
        # By the quotient as it is: it may be too large for an integer.
        if max(self.height, self.width) / LARGEST_SHORTER_SIDE > self.crop_pct:
            raise ConfigError(
                f"preprocessing `crop_pct` is {shown(self.crop_pct)}: the shorter side would be "
                f"resized to more than {LARGEST_SHORTER_SIDE} pixels"
            )
        for name, least, most in (
            ("mean", -LARGEST_MEAN, LARGEST_MEAN),
            ("std", SMALLEST_STD, LARGEST_STD),
        ):
            values = getattr(self, name)
            if len(values) != 3 or not all(_is_number(v) and least <= v <= most for v in values):
                raise ConfigError(
                    f"preprocessing `{name}` is {shown(values)}; "
                    f"it must be 3 numbers from {least:g} to {most:g}"
                )

    @classmethod
    def published(cls, height: int, width: int) -> "Preprocessing":
        """What the published models use at this size."""
        return cls(height, width, "squash" if min(height, width) >= SQUASH_FROM else "crop")

    def with_size(self, size: Size) -> "Preprocessing":
        """The same at another input size: crop below 384 pixels, squash from there up.

        A record that squashes below 384 already does so on purpose, and goes on; likewise one that
        crops from 384 up, and one that pads.
        """
        if self.resize == "pad" or self.resize == "crop" and min(self.size) >= SQUASH_FROM:
            return replace(self, height=size.height, width=size.width)
        on_purpose = self.resize == "squash" and min(self.height, self.width) < SQUASH_FROM
        squash = on_purpose or min(size) >= SQUASH_FROM
        resize: Resize = "squash" if squash else "crop"
        return replace(self, height=size.height, width=size.width, resize=resize)

    def resizing(self, resize: Resize | None) -> "Preprocessing":
        """The same, with images that come to the size in another way; None leaves it as it is."""
        return self if resize is None else replace(self, resize=resize)

    @property
    def size(self) -> Size:
        """Of the network's input."""
        return Size(self.height, self.width)

    @property
    def shorter_side(self) -> int:
        """Length in pixels that "crop" resizes the image's shorter side to."""
        # A crop_pct read back from a length may lie one bit above it.
        return int(max(self.height, self.width) / self.crop_pct + 1e-9)

    def resized(self, height: int, width: int) -> Size:
        """Height and width in pixels after the resize and before any crop.

        As torchvision's Resize computes it: the longer side is cut off to an integer.
        """
        if self.resize == "squash":
            return self.size
        if self.resize == "pad":
            if height * self.width >= width * self.height:
                return Size(self.height, max(1, width * self.height // height))
            return Size(max(1, height * self.width // width), self.width)
        if width <= height:
            return Size(int(self.shorter_side * height / width), self.shorter_side)
        return Size(self.shorter_side, int(self.shorter_side * width / height))

    def corner(self, resized: Size) -> tuple[int, int]:
        """Row and column of a resized image at which the input begins, as torchvision's CenterCrop.

        Both are 0 for "squash", and not above it for "pad", whose input begins outside the image.
        """
        return round((resized.height - self.height) / 2), round((resized.width - self.width) / 2)

    def describe(self) -> str:
        """One line for a person."""
        size = str(self.size)
        if self.resize == "squash":
            return f"squash to {size}, {self.interpolation}"
        if self.resize == "pad":
            return f"fit into {size} and pad with the mean colour, {self.interpolation}"
        return f"shorter side to {self.shorter_side}, centre crop {size}, {self.interpolation}"

    @property
    def fill(self) -> tuple[int, int, int]:
        """The colour that "pad" fills with: the mean, so that it is about 0 when normalised."""
        red, green, blue = (min(255, max(0, round(255 * value))) for value in self.mean)
        return red, green, blue

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values, for results."""
        return asdict(self)

    def to_transformers(self) -> dict[str, Any]:
        """The content of a ``preprocessor_config.json`` that transformers reads to the same end.

        ConvNext's processor as the published checkpoints have it; what that cannot say is written
        for ViT's (squash below 384) or CLIP's (a crop that is not square). None of them can pad:
        ``cvt_resize`` says it to us, and transformers squashes.
        """
        config: dict[str, Any] = {
            "do_resize": True,
            "resample": next(n for n, name in _RESAMPLE.items() if name == self.interpolation),
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }
        square = self.height == self.width
        if square and self.resize == ("squash" if self.height >= SQUASH_FROM else "crop"):
            return {
                "image_processor_type": "ConvNextImageProcessor",
                "size": {"shortest_edge": self.height},
                "crop_pct": self.crop_pct,
                **config,
            }
        size = {"height": self.height, "width": self.width}
        if self.resize == "squash":
            return {"image_processor_type": "ViTImageProcessor", "size": size, **config}
        if self.resize == "pad":
            own = {"cvt_resize": "pad"}
            return {"image_processor_type": "ViTImageProcessor", "size": size, **config, **own}
        return {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": self.shorter_side},
            "do_center_crop": True,
            "crop_size": size,
            **config,
        }

    @classmethod
    def from_transformers(cls, config: dict[str, Any]) -> "Preprocessing":
        """Read what `to_transformers` writes, and what hub repositories with a CvT hold.

        Raises:
            ConfigError: a step is switched off or a value is not supported.
        """
        for step in ("do_resize", "do_rescale", "do_normalize"):
            if config.get(step, True) is not True:
                raise ConfigError(f"`{step}` is {shown(config[step])}; only true is supported")
        config = {name: value for name, value in config.items() if value is not None}
        resample = config.get("resample", 3)
        if resample not in _RESAMPLE or isinstance(resample, bool):
            raise ConfigError(f"`resample` is {shown(resample)}; accepted are {sorted(_RESAMPLE)}")
        if not abs(config.get("rescale_factor", 1 / 255) - 1 / 255) <= 1e-6:  # NaN too
            raise ConfigError(
                f"`rescale_factor` is {shown(config['rescale_factor'])}; only 1/255 is supported"
            )
        common: dict[str, Any] = {
            "interpolation": _RESAMPLE[resample],
            "mean": tuple(config.get("image_mean", IMAGENET_MEAN)),
            "std": tuple(config.get("image_std", IMAGENET_STD)),
        }
        # Older files name it `feature_extractor_type`.
        kind = str(
            config.get("image_processor_type") or config.get("feature_extractor_type") or "ConvNext"
        )
        if config.get("do_center_crop") and kind.startswith("ConvNext"):
            # ConvNext's processor crops to `size` by itself, and crops the result once more.
            own, asked = _height_and_width(config, "size"), _height_and_width(config, "crop_size")
            if own != asked:
                raise ConfigError(
                    f"`do_center_crop` with a `crop_size` of {shown(config['crop_size'])} crops "
                    f"twice in {kind}, which is not supported; leave out `do_center_crop`, or name "
                    "CLIPImageProcessor, which crops once"
                )
        elif config.get("do_center_crop"):
            height, width = _height_and_width(config, "crop_size")
            shorter = config.get("size", {})
            shorter = shorter.get("shortest_edge") if isinstance(shorter, dict) else shorter
            if not isinstance(shorter, int):
                raise ConfigError(
                    f"`size` is {shown(config.get('size'))}; it must give a shortest edge in pixels"
                )
            if not all(_is_number(side) for side in (height, width)):
                raise ConfigError(
                    f"`crop_size` is {shown(config['crop_size'])}; it must be in pixels"
                )
            return cls(height, width, "crop", crop_pct=max(height, width) / shorter, **common)
        height, width = _height_and_width(config, "size")
        if not all(isinstance(side, int) for side in (height, width)):
            raise ConfigError(f"`size` is {shown(config['size'])}; it must be in pixels")
        if config.get("cvt_resize") == "pad":
            return cls(height, width, "pad", **common)
        if not kind.startswith("ConvNext"):
            return cls(height, width, "squash", **common)
        crop_pct = config.get("crop_pct", 224 / 256)
        resize: Resize = "squash" if height >= SQUASH_FROM else "crop"
        return cls(height, width, resize, crop_pct=crop_pct, **common)


def _height_and_width(config: dict[str, Any], key: str) -> Size:
    """A size written as a number, as a shortest edge, or as height and width."""
    size = config.get(key)
    if isinstance(size, dict):
        if "shortest_edge" in size:
            size = size["shortest_edge"]
        elif "height" in size and "width" in size:
            return Size(size["height"], size["width"])
    if not isinstance(size, int):
        raise ConfigError(
            f"`{key}` is {shown(config.get(key))}; accepted are a number of pixels, "
            '{"shortest_edge": n} and {"height": n, "width": n}'
        )
    return Size.square(size)


def _is_number(value: object) -> bool:
    """Whether it is a number that can be computed with."""
    is_one = isinstance(value, int | float) and not isinstance(value, bool)
    return is_one and abs(value) <= 1e9 and math.isfinite(value)  # type: ignore[arg-type]
