"""Where the numbers of a map lie: in the network's input, and in the photograph.

A convolution with kernel k, stride s and padding p sees, for its output number j, inputs whose
middle is s j - p + (k - 1) / 2. Places are in pixels; the pixel n reaches from n to n + 1. So a
token of CvT-13's last stage lies at 16 j + 1.5, and not in the middle of its 16 pixels: a map that
is merely enlarged is off by almost half a token.

Along each axis a place in the photograph becomes one in the input by a factor and an offset
(resize, then crop or pad), and this one in a map likewise, so that a map is laid on the photograph
by two matrices, one for the rows and one for the columns.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cvt_cli.spec.config import KEY_VALUE_STRIDE, PROJECTION_KERNEL, CvTConfig, Size
from cvt_cli.spec.preprocessing import Preprocessing

Array = NDArray[np.float32]
Places = NDArray[np.float64]


@dataclass(frozen=True)
class Grid:
    """Where the cells of a map lie along an axis of the input, in pixels: stride i + offset."""

    stride: float = 1.0
    offset: float = 0.5

    def convolved(self, kernel: int, stride: int, padding: int) -> "Grid":
        """That of what a convolution makes of such a map."""
        middle = (kernel - 1) / 2 - padding
        return Grid(self.stride * stride, self.offset + self.stride * middle)


PIXELS = Grid()
"""The input itself."""


def token_grid(config: CvTConfig, stage: int) -> Grid:
    """Where the tokens of a stage lie."""
    grid = PIXELS
    for one in config.stages[: stage + 1]:
        grid = grid.convolved(one.kernel, one.stride, one.padding)
    return grid


def key_grid(tokens: Grid) -> Grid:
    """Where the keys and values lie that are made of a map of tokens."""
    return tokens.convolved(PROJECTION_KERNEL, KEY_VALUE_STRIDE, PROJECTION_KERNEL // 2)


@dataclass(frozen=True)
class Axis:
    """One axis of a photograph on its way into the input, in pixels."""

    photo: int  # of the photograph
    resized: int  # of what it is resized to
    corner: int  # where the input begins in that; below 0 where it is padded
    input: int  # of the input

    def in_input(self, places: Places) -> Places:
        """Places in the photograph as places in the input; outside 0 … input they are not seen."""
        return places * (self.resized / self.photo) - self.corner

    @property
    def seen(self) -> tuple[float, float]:
        """From where to where in the photograph the network sees it."""
        scale = self.photo / self.resized
        return max(0.0, self.corner * scale), min(self.photo, (self.corner + self.input) * scale)


@dataclass(frozen=True)
class View:
    """What of a photograph the network sees, and where."""

    rows: Axis
    columns: Axis

    @classmethod
    def of(cls, preprocessing: Preprocessing, height: int, width: int) -> "View":
        """Of a photograph of this size, turned upright if it is read so."""
        resized = preprocessing.resized(height, width)
        top, left = preprocessing.corner(resized)
        return cls(
            Axis(height, resized.height, top, preprocessing.height),
            Axis(width, resized.width, left, preprocessing.width),
        )

    @property
    def not_seen(self) -> float:
        """The share of the photograph's area that the network does not see."""
        (top, bottom), (left, right) = self.rows.seen, self.columns.seen
        return 1 - (bottom - top) * (right - left) / (self.rows.photo * self.columns.photo)

    def lay(self, values: Array, grid: Grid, size: Size | None = None) -> Array:
        """A map on the photograph, between its cells linearly; what is not seen is NaN.

        Args:
            values: (rows, columns) of the map.
            grid: where its cells lie in the input.
            size: to which the photograph is scaled; by default its own.
        """
        height, width = size or (self.rows.photo, self.columns.photo)
        down = _between(_middles(self.rows, height), self.rows.input, grid, values.shape[0])
        across = _between(_middles(self.columns, width), self.columns.input, grid, values.shape[1])
        return np.asarray(down @ values @ across.T, np.float32)


def on_input(values: Array, grid: Grid, size: Size) -> Array:
    """A map on the network's input, between its cells linearly."""
    down, across = (
        _between(_pixels(length), length, grid, cells)
        for length, cells in zip(size, values.shape, strict=True)
    )
    return np.asarray(down @ values @ across.T, np.float32)


def _middles(axis: Axis, length: int) -> Places:
    """Places in the input of the pixels of a photograph that is scaled to a length."""
    return axis.in_input(_pixels(length) * (axis.photo / length))


def _pixels(length: int) -> Places:
    return np.arange(length, dtype=np.float64) + 0.5


def _between(places: Places, input: int, grid: Grid, cells: int) -> Array:
    """Shares (places, cells) that the cells have in the value at each place; not seen is NaN.

    Beyond the first and the last cell their own value holds.
    """
    at = np.clip((places - grid.offset) / grid.stride, 0, cells - 1)
    first = np.minimum(at.astype(int), max(cells - 2, 0))
    shares = np.zeros((len(places), cells), np.float32)
    every = np.arange(len(places))
    shares[every, first] = 1 - (at - first)
    if cells > 1:
        shares[every, first + 1] = at - first
    shares[(places < 0) | (places > input)] = np.nan
    return shares
