"""Pictures of maps: their colours, a map on its photograph, and all of them beside each other.

The colours are computed and not copied: along each scale the lightness of OKLab (Ottosson 2020)
rises evenly, so that equal steps of a map look equal and grey prints keep their order.
"""

import io
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Array = NDArray[np.float32]
Colours = NDArray[np.uint8]
"""(256, 3): the colours of a scale from its lowest value to its highest."""

_HATCH = 8
"""Pixels from line to line of the hatching over what the network does not see."""

_LONGEST_LINE = 200
"""Characters of a heading; a class may have a name of millions."""


@cache
def colours(signed: bool) -> Colours:
    """The scale of maps: dark blue to yellow; of signed ones blue to grey to yellow."""
    t = np.linspace(0, 1, 256)
    lightness = 0.24 + 0.70 * t
    if signed:
        away = 2 * t - 1
        hue = np.where(away < 0, 262.0, 85.0)
        chroma = 0.15 * np.abs(away)
    else:
        hue = 300 - 195 * t
        chroma = 0.08 + 0.05 * (2 * t - 1) ** 2
    return _srgb(lightness, chroma, np.radians(hue))


def _srgb(
    lightness: NDArray[np.float64], chroma: NDArray[np.float64], hue: NDArray[np.float64]
) -> Colours:
    """OKLCH to 8-bit sRGB; a colour that sRGB has not is made paler until it has it."""
    found = np.zeros((len(lightness), 3))
    missing = np.ones(len(lightness), bool)
    for paler in np.linspace(1, 0, 101):
        linear = _linear(lightness, paler * chroma, hue)
        fits = missing & ((linear >= -1e-6) & (linear <= 1 + 1e-6)).all(1)
        found[fits] = linear[fits]
        missing &= ~fits
    linear = found.clip(0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.asarray(np.round(255 * encoded), np.uint8)


def _linear(
    lightness: NDArray[np.float64], chroma: NDArray[np.float64], hue: NDArray[np.float64]
) -> NDArray[np.float64]:
    """OKLCH to linear sRGB, by the definition of OKLab."""
    a, b = chroma * np.cos(hue), chroma * np.sin(hue)
    cones = np.stack(
        (
            lightness + 0.3963377774 * a + 0.2158037573 * b,
            lightness - 0.1055613458 * a - 0.0638541728 * b,
            lightness - 0.0894841775 * a - 1.2914855480 * b,
        ),
        1,
    )
    to_rgb = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    return np.asarray(cones**3 @ to_rgb.T)


def scaled(values: Array, signed: bool) -> Array:
    """A map in 0 … 1 of its scale: from its lowest to its highest value; signed ones keep 0 in the
    middle. The strongest hundredth looks alike, so that single cells do not hide the others. What
    is not seen stays NaN.
    """
    if not np.isfinite(values).any():
        return values
    low, high = (0.0, _largest(np.abs(values))) if signed else (np.nanmin(values), _largest(values))
    if not high > low:
        return values * 0 + (0.5 if signed else 0)
    found = values / (2 * high) + 0.5 if signed else (values - low) / (high - low)
    return np.clip(found, 0, 1)


def _largest(values: Array) -> float:
    """The value that a hundredth is above; of a map with less than that, the largest."""
    often = float(np.nanpercentile(values, 99))
    return often if often > np.nanmin(values) else float(np.nanmax(values))


def coloured(values: Array, signed: bool) -> Image.Image:
    """A map in 0 … 1 in its colours; what is not seen is hatched grey."""
    seen = np.isfinite(values)
    table = colours(signed)
    pixels = table[np.round(255 * np.where(seen, values, 0)).astype(int).clip(0, 255)]
    return Image.fromarray(_hatched(pixels, seen, np.uint8(150)))


def overlaid(photo: Image.Image, values: Array, signed: bool) -> Image.Image:
    """A photograph under a map in 0 … 1 of the same size: the stronger, the less it shows."""
    seen = np.isfinite(values)
    strength = np.where(seen, np.abs(2 * values - 1) if signed else values, 0)
    share = (0.15 + 0.6 * strength)[..., None]
    grey = np.asarray(photo.convert("L"), np.float32)[..., None]
    back = 0.5 * np.asarray(photo, np.float32) + 0.5 * grey  # so that colours are the map's
    table = colours(signed).astype(np.float32)
    front = table[np.round(255 * np.where(seen, values, 0)).astype(int).clip(0, 255)]
    pixels = np.round((1 - share) * back + share * front).clip(0, 255).astype(np.uint8)
    return Image.fromarray(_hatched(pixels, seen, np.round(0.6 * grey + 60).astype(np.uint8)))


def _hatched(
    pixels: Colours, seen: NDArray[np.bool_], under: NDArray[np.uint8] | np.uint8
) -> Colours:
    """What is not seen becomes ``under`` with slanting lines."""
    rows, columns = np.indices(seen.shape)
    line = (rows + columns) % _HATCH < 2
    found = np.where(seen[..., None], pixels, under)
    return np.where((~seen & line)[..., None], np.uint8(90), found).astype(np.uint8)


# --- all of them beside each other

_MARGIN, _GAP, _LINE = 16, 12, 22
_INK, _PAPER, _SOFT = (26, 26, 26), (255, 255, 255), (92, 92, 92)


def panel(photo: Image.Image, rows: list[tuple[str, str, Array, bool]]) -> Image.Image:
    """For each map the photograph, the map and both, under a heading and over a scale.

    Args:
        photo: as large as it shall be drawn.
        rows: heading, second line, map laid on that photograph, and whether it is signed.
    """
    width, height = photo.size
    heading, words = _font(17), _font(13)
    rows = [(_drawable(a), _drawable(b), values, signed) for a, b, values, signed in rows]
    row_height = 2 * _LINE + height + _GAP + _LINE + _GAP
    least = max(
        int(font.getlength(text)) for first, second, *_ in rows
        for font, text in ((heading, first), (words, second))
    )  # fmt: skip
    across = max(3 * width + 2 * _GAP, least)
    sheet = Image.new("RGB", (2 * _MARGIN + across, _MARGIN + row_height * len(rows)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    top = _MARGIN
    for first, second, values, signed in rows:
        draw.text((_MARGIN, top), first, _INK, heading)
        draw.text((_MARGIN, top + _LINE), second, _SOFT, words)
        shown = scaled(values, signed)
        pictures = (photo, coloured(shown, signed), overlaid(photo, shown, signed))
        for place, picture in enumerate(pictures):
            sheet.paste(picture, (_MARGIN + place * (width + _GAP), top + 2 * _LINE))
        _scale(draw, sheet, _MARGIN + width + _GAP, top + 2 * _LINE + height + 6, width, signed)
        top += row_height
    return sheet


def _drawable(line: str) -> str:
    """A line, cut where a name in it would make the picture as wide as it is long."""
    return line if len(line) <= _LONGEST_LINE else f"{line[: _LONGEST_LINE - 3]}..."


def _scale(
    draw: ImageDraw.ImageDraw, sheet: Image.Image, left: int, top: int, width: int, signed: bool
) -> None:
    """The colours from the lowest to the highest value, with words at both ends."""
    words = _font(12)
    low, high = ("against", "for") if signed else ("weak", "strong")
    before, after = (int(words.getlength(text)) + 8 for text in (low, high))
    length = max(16, width - before - after)
    bar = Image.fromarray(colours(signed)[None]).resize((length, 10), Image.Resampling.NEAREST)
    draw.text((left, top - 2), low, _SOFT, words)
    sheet.paste(bar, (left + before, top + 2))
    draw.text((left + before + length + 8, top - 2), high, _SOFT, words)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def png(picture: Image.Image) -> bytes:
    """The bytes of a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def jpeg(picture: Image.Image) -> bytes:
    """The bytes of a JPEG file, whose colours are as fine as its light."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85, subsampling=0)
    return buffer.getvalue()


def ramp(signed: bool) -> str:
    """A scale's colours for a style sheet."""
    table = colours(signed)
    return ", ".join("#" + bytes(table[i].tolist()).hex() for i in range(0, 256, 15))
