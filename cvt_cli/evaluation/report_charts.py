"""The geometry and colours of a report's charts, which its templates draw as text, boxes and lines.

What a page draws itself is sharp at any size, follows a dark page and can be read aloud and copied.
"""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cvt_cli.base.text import as_utf8, threshold
from cvt_cli.evaluation.metrics import wilson

Theme = Literal["light", "dark"]

READABLE_CLASSES = 30
"""Up to here a confusion matrix names its classes and tells every number."""

FAINTEST = 0.001
"""Share of a class's images from which a cell of an unnamed matrix is coloured in steps."""

_MATRIX_CELLS = 200  # at most, on a side; more classes share a cell
_LONGEST_NAME = 24  # characters of a class beside the matrix

# Blue and orange differ without colour vision too (Okabe and Ito). Those of the style sheet.
_COLOURS: dict[Theme, dict[str, str]] = {
    "light": {"back": "#ffffff", "right": "#4ba3dd", "wrong": "#e9803a"},
    "dark": {"back": "#202020", "right": "#1f6ea8", "wrong": "#a14f0c"},
}


# --- calibration


@dataclass(frozen=True)
class Column:
    """A bin of the reliability diagram, in per cent from 0 to 100."""

    low: float
    high: float
    n: int
    n_height: float  # of the fullest bin
    accuracy: float
    range: tuple[float, float]  # 95 % interval of the accuracy
    confidence: float  # mean probability


def columns(bins: Sequence[Mapping[str, Any]]) -> list[Column]:
    """Those of the bins that have images.

    Args:
        bins: of equal width, with ``low``, ``high``, ``n``, ``confidence`` and ``accuracy`` as
            fractions; the last two are None where ``n`` is 0.
    """
    most = max(row["n"] for row in bins)
    found = []
    for row in bins:
        if row["n"]:
            low, high = wilson(round(row["accuracy"] * row["n"]), row["n"])
            found.append(
                Column(
                    low=100 * row["low"],
                    high=100 * row["high"],
                    n=row["n"],
                    n_height=100 * row["n"] / most,
                    accuracy=100 * row["accuracy"],
                    range=(100 * low, 100 * high),
                    confidence=100 * row["confidence"],
                )
            )
    return found


# --- confusions


@dataclass(frozen=True)
class Cell:
    """How many images of one class were taken for another."""

    n: int
    share: float  # of the true class's images, in per cent
    right: bool


@dataclass(frozen=True)
class MatrixRow:
    """The images of one class."""

    name: str
    short: str
    cells: list[Cell]


def matrix_rows(
    matrix: NDArray[np.int64], totals: NDArray[np.int64], names: Sequence[str]
) -> list[MatrixRow]:
    """A confusion matrix whose cells are told one by one.

    Args:
        matrix: images (C, C), row = true class, column = predicted class.
        totals: images of each true class (C,), those included that the matrix lacks.
        names: of the classes.
    """
    shares = _shares(matrix, totals)
    return [
        MatrixRow(
            name,
            shortened(name),
            [
                Cell(n, share, row == column)
                for column, (n, share) in enumerate(
                    zip(matrix[row].tolist(), shares[row].tolist(), strict=True)
                )
            ],
        )
        for row, name in enumerate(names)
    ]


def heat_map(matrix: NDArray[np.int64], totals: NDArray[np.int64], theme: Theme) -> bytes:
    """A confusion matrix as PNG, a pixel for each cell, of shares on a logarithmic scale.

    Args:
        matrix: images (C, C), row = true class, column = predicted class.
        totals: images of each true class (C,), those included that the matrix lacks.
        theme: of the page.
    """
    starts = np.arange(0, len(totals), classes_per_cell(len(totals)))
    cells = np.add.reduceat(np.add.reduceat(matrix, starts, axis=0), starts, axis=1)
    strength = strengths(_shares(cells, np.add.reduceat(totals, starts)))
    back, right, wrong = (_rgb(_COLOURS[theme][name]) for name in ("back", "right", "wrong"))
    full = np.where(np.eye(len(cells), dtype=bool)[..., None], right, wrong)
    pixels = back + strength[..., None] * (full - back)
    buffer = io.BytesIO()
    Image.fromarray(pixels.round().astype(np.uint8)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def strengths(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """How strong a cell of the heat map is coloured, 0 … 1, by its share in per cent.

    Each factor of ten has a quarter of the scale: 100 % is 1, 10 % 3/4, 1 % 1/2 and `FAINTEST` 1/4.
    """
    with np.errstate(divide="ignore"):
        steps = 1 + np.log10(shares / 100) / 4
    faintest = 1 + math.log10(FAINTEST) / 4
    return np.where(shares > 0, np.maximum(steps, faintest), 0.0)


def _shares(matrix: NDArray[np.int64], totals: NDArray[np.int64]) -> NDArray[np.float64]:
    """Per cent of each row's images; 0 in a row without any."""
    return 100 * matrix / np.maximum(totals, 1)[:, None]


def _rgb(colour: str) -> NDArray[np.float64]:
    return np.array(list(bytes.fromhex(colour[1:])), np.float64)


def classes_per_cell(count: int) -> int:
    """How many neighbouring classes of ``count`` share a row of the confusion matrix."""
    return -(-count // _MATRIX_CELLS)


def shortened(name: str) -> str:
    """A class's name in a line that fits beside the matrix."""
    name = " ".join(as_utf8(name).split())
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1].rstrip(" ,") + "…"


# --- answering alone


@dataclass(frozen=True)
class RiskPoint:
    """A point of the curve, in per cent."""

    coverage: float  # of all images, those that are answered
    risk: float  # of the answers, those that are wrong
    low: float  # 95 % interval of the risk
    high: float


def alone(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What a page tells of a document's ``risk_coverage``; None if no image has an answer."""
    if not found:
        return None
    most = 100 * max(row["risk"] for row in found["points"])
    step = next(size for size in (0.5, 1, 2, 5, 10, 20) if size == 20 or 5 * size >= most)
    points = []
    for row in found["points"]:
        low, high = (100 * bound for bound in wilson(row["wrong"], row["n"]))
        # The few surest have wide intervals, which end at the top.
        high = min(high, 5 * step)
        points.append(RiskPoint(100 * row["coverage"], 100 * row["risk"], low, high))
    every = found["points"][-1]
    sentence = f"Of all answers, {100 * every['risk']:.1f} % are wrong."
    told = [row for row in found["at_risk"] if row["coverage"] and row["at_most"] < every["risk"]]
    if told:
        row = told[-1]
        sentence += (
            f" {100 * row['coverage']:.1f} % of the images have a probability of "
            f"{threshold(row['threshold'])} "
            f"or more; of these, {100 * row['risk']:.1f} % are wrong. A person would check the "
            f"other {100 * (1 - row['coverage']):.1f} %."
        )
    return {
        "points": points,
        "highest": 5 * step,
        "ticks": [step * number for number in range(6)],
        "rows": found["at_risk"],
        "sentence": sentence,
    }


# --- classes


@dataclass(frozen=True)
class ClassScore:
    """How good the answers are for one class; shares are fractions."""

    name: str
    n: int
    recall: float  # share of its images that were recognised
    interval: tuple[float, float] | None  # 95 %, of the recall; none by weights
    precision: float | None  # share of the answers of this class that are right; None without any
    f1: float | None  # their harmonic mean; None where its images have no weight


def class_scores(
    rows: Sequence[Mapping[str, Any]], matrix: NDArray[np.int64], weighted: bool = False
) -> list[ClassScore]:
    """What follows for each class that has images.

    Args:
        rows: of the document's ``classes``, each with ``label``, ``n``, ``correct``, ``accuracy``
            and ``interval``; where ``weighted`` with ``recall``, ``precision`` and ``f1``.
        matrix: images (C, C) of the same classes, row = true class, column = predicted class.
        weighted: take what was measured by the weights of the images.
    """
    if weighted:
        return [
            ClassScore(
                row["label"], row["n"], row["recall"] or 0.0, None, row["precision"], row["f1"]
            )
            for row in rows
            if row["n"]
        ]
    return [
        ClassScore(
            name=row["label"],
            n=row["n"],
            recall=row["accuracy"],
            interval=(row["interval"][0], row["interval"][1]),
            precision=row["correct"] / answered if answered else None,
            f1=2 * row["correct"] / (row["n"] + answered),
        )
        for row, answered in zip(rows, matrix.sum(axis=0).tolist(), strict=True)
        if row["n"]
    ]
