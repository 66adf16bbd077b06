"""A page of explanations: a click chooses class, method, block and head, a slider fades the map."""

import base64
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvt_cli.explanation import drawing
from cvt_cli.explanation.explain import Explained, Explanation, described
from cvt_cli.explanation.geometry import Axis, Grid
from cvt_cli.explanation.methods import METHODS, Map
from cvt_cli.prediction import pages, shareable
from cvt_cli.prediction.whole_files import CardsPage

_MOST_CELLS = 96
"""Cells of a map along an axis that the page holds at most; of more, means are taken."""


class Page(CardsPage):
    """A self-contained HTML page with a card for each image.

    The browser draws the maps from their numbers, with the arithmetic of `geometry` and the colours
    of `drawing`. Without a script each card shows the first map.
    """

    def _begin(self) -> None:
        super()._begin()
        self._count = 0

    def _add(self, one: Explanation) -> None:
        self._count += 1
        self._cards.write(self._card(one).encode())

    def _page(self) -> str:
        model = shareable.title(str(self._conditions["model"]))
        return pages.template("explanations.html").render(
            title=f"Why {model} answers so: {pages.images(self._count)}",
            day=f"{pages.now():%Y-%m-%d}",
            scales=json.dumps([_base64(drawing.colours(signed)) for signed in (False, True)]),
            ramps=[drawing.ramp(signed) for signed in (False, True)],
            about=pages.about(self._conditions, data=pages.images(self._count)),
        )

    def _card(self, one: Explanation) -> str:
        path = shareable.shown(one.path)
        card = pages.template("explanation_card.html")
        if one.error is not None:
            error = one.error.replace(one.path, path)
            return card.render(path=path, error=error, number=self._count)
        assert one.view is not None and one.photo is not None
        size = type(one.size)(one.photo.height, one.photo.width)
        first = one.explained[0].maps[0]
        laid = drawing.scaled(one.laid(first, size), first.signed)
        return card.render(
            path=path,
            error=None,
            number=self._count,
            link=shareable.link(one.path, self._folder),
            photo=drawing.jpeg(one.photo),
            overlay=drawing.jpeg(drawing.overlaid(one.photo, laid, first.signed)),
            width=size.width,
            height=size.height,
            title=one.explained[0].title,
            classes=[each.title for each in one.explained],
            methods=[described(each) for each in one.explained[0].maps],
            blocks=_blocks(one),
            predictions=one.predictions,
            not_seen=one.view.not_seen,
            data=_script_safe(
                {
                    "view": [_axis(one.view.rows), _axis(one.view.columns)],
                    "maps": [
                        _numbers(each, found, index)
                        for index, each in enumerate(one.explained)
                        for found in each.maps
                    ],
                }
            ),
        )


def _blocks(one: Explanation) -> tuple[int, int] | None:
    """How many blocks and heads the attention has that is there."""
    for found in one.explained[0].maps:
        if found.heads is not None:
            return found.heads.shape[0], found.heads.shape[1]
    return None


def _axis(axis: Axis) -> list[int]:
    return [axis.photo, axis.resized, axis.corner, axis.input]


def _numbers(each: Explained, found: Map, index: int) -> dict[str, Any]:
    """A map as the page's script reads it; ``class`` is None where it is of every class."""
    values, grid = _fewer(found.values, found.grid)
    numbers = {
        "class": index if METHODS[found.method].by_class else None,
        "method": described(found),
        "signed": found.signed,
        "grid": [grid.stride, grid.offset],
        "shape": list(values.shape),
        "values": _quantised(values, found.signed),
    }
    if found.heads is not None and found.heads_grid is not None:
        grid = found.heads_grid
        heads = {
            "grid": [grid.stride, grid.offset],
            "shape": list(found.heads.shape[2:]),
            "values": [[_quantised(head, False) for head in block] for block in found.heads],
        }
        return {**numbers, "heads": heads}
    return numbers


def _fewer(values: NDArray[np.float32], grid: Grid) -> tuple[NDArray[np.float32], Grid]:
    """A map of few cells, each the mean of equally many."""
    times = -(-max(values.shape) // _MOST_CELLS)
    if times == 1:
        return values, grid
    height, width = (side // times * times for side in values.shape)
    parts = values[:height, :width].reshape(height // times, times, width // times, times)
    middle = grid.offset + grid.stride * (times - 1) / 2
    return parts.mean((1, 3)), Grid(grid.stride * times, middle)


def _quantised(values: NDArray[np.float32], signed: bool) -> str:
    return _base64(np.round(255 * drawing.scaled(values, signed)).astype(np.uint8))


def _base64(values: NDArray[np.uint8]) -> str:
    return base64.b64encode(values.tobytes()).decode()


def _script_safe(value: Any) -> str:
    """JSON that ends no element of a page."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")
