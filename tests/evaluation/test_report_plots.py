"""The pictures of a report show the numbers that they are drawn of."""

import functools
import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from cvt_cli.evaluation import plots, report_plots
from cvt_cli.evaluation.counts import Counts
from cvt_cli.spec.labels import Labels


def pixels(png: bytes) -> NDArray[np.uint8]:
    """The picture (height, width, 3)."""
    with Image.open(io.BytesIO(png)) as picture:
        return np.asarray(picture.convert("RGB"))


def drawn(matrix: NDArray[np.int64], totals: NDArray[np.int64], theme: plots.Theme) -> Any:
    names = [chr(97 + index % 26) for index in range(len(matrix))]
    return pixels(report_plots.confusion(matrix, totals, names, theme)).astype(int)


@functools.cache
def corners(count: int) -> NDArray[np.float64]:
    """A pixel (row, column) of each cell of a matrix of so many classes, beside its number."""
    full = np.full(count, 7)
    # A full diagonal differs from an empty matrix from the first corner to the last.
    diagonal, empty = (drawn(m, full, "light") for m in (np.diag(full), np.zeros((count, count))))
    where = np.argwhere((diagonal != empty).any(axis=2))
    first, size = where.min(axis=0), np.ptp(where, axis=0) + 1
    inside = (np.arange(count) + 0.2) / count
    return first + np.stack(np.meshgrid(inside, inside, indexing="ij"), axis=-1) * size


def cells(matrix: NDArray[np.int64], totals: NDArray[np.int64], theme: plots.Theme) -> Any:
    """The colour (C, C, 3) of every cell of a confusion matrix."""
    rows, columns = np.moveaxis(corners(len(matrix)).astype(int), -1, 0)
    return drawn(matrix, totals, theme)[rows, columns]


@pytest.mark.parametrize(
    ("theme", "back", "middle", "full"),
    [("light", "#ffffff", "#3d8ec4", "#062f55"), ("dark", "#222222", "#2f7ab0", "#e3f2ff")],
)
def test_each_cell_of_the_confusion_matrix_shows_the_share_of_its_row(
    theme: plots.Theme, back: str, middle: str, full: str
) -> None:
    matrix = np.array([[5, 0, 15], [0, 20, 0], [0, 10, 30]])

    found = cells(matrix, np.array([20, 20, 120]), theme)  # 80 of the last could not be read

    def near(colour: Any, wanted: str) -> bool:  # of 256 steps
        return bool(abs(colour - list(bytes.fromhex(wanted[1:]))).max() <= 3)

    assert all(near(found[place], back) for place in ((0, 1), (1, 0), (1, 2), (2, 0)))
    assert near(found[1, 1], full)
    assert near(found[0, 0], middle)  # the root of 25 % is half of that of 100 %
    assert near(found[2, 2], middle)  # 30 of 120
    rising = [found[place].sum() for place in ((0, 1), (2, 1), (0, 0), (0, 2), (1, 1))]
    assert len(set(rising)) == 5
    assert rising == sorted(rising, reverse=theme == "light")


@pytest.mark.parametrize("count", [3, 40], ids=["named", "many"])
def test_a_class_without_images_is_an_empty_row(count: int) -> None:
    totals = np.full(count, 7)
    totals[1] = 0

    found = cells(np.diag(totals), totals, "light")

    wanted = np.diag(totals > 0)
    assert ((found != 255).any(axis=2) == wanted).all()


@pytest.mark.parametrize(
    ("theme", "bar", "mark", "soft"),
    [("light", "#0072b2", "#d55e00", "#6b6b6b"), ("dark", "#3d97d3", "#f5a742", "#9a9a9a")],
)
def test_the_calibration_picture_shows_rates_probabilities_and_counts(
    theme: plots.Theme, bar: str, mark: str, soft: str
) -> None:
    """Of two bins of four: 10 answers at 30 %, half of them right, and 40 at 90 %, 75 % right."""
    empty = {"n": 0, "confidence": None, "accuracy": None}
    bins = [
        {"low": 0.0, "high": 0.25, **empty},
        {"low": 0.25, "high": 0.5, "n": 10, "confidence": 0.3, "accuracy": 0.5},
        {"low": 0.5, "high": 0.75, **empty},
        {"low": 0.75, "high": 1.0, "n": 40, "confidence": 0.9, "accuracy": 0.75},
    ]

    picture = pixels(report_plots.reliability(bins, theme))

    def where(colour: str) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = (picture == list(bytes.fromhex(colour[1:]))).all(axis=2)
        found[: len(picture) // 20] = False  # the legend
        return found

    filled = where(bar)
    floor = np.flatnonzero(filled.any(axis=1)).max()
    columns = np.flatnonzero(filled[floor])
    first, second = np.split(columns, np.flatnonzero(np.diff(columns) > 1) + 1)
    tops = [np.flatnonzero(filled[:, run[5]]).min() for run in (first, second)]
    one, other = (floor + 1 - top for top in tops)
    assert other / one == pytest.approx(0.75 / 0.5, abs=0.02)
    percent = one / 50  # pixels, upwards
    across = (second[0] - first[0]) / 50  # pixels of a per cent, to the right
    rows, places = np.nonzero(where(mark))
    for right, (low, high) in ((0.3, (first[0], first[-1])), (0.9, (second[0], second[-1]))):
        inside = (places >= low) & (places <= high)
        assert (floor - rows[inside].mean()) / percent == pytest.approx(100 * right, abs=1)
        middle = (places[inside].mean() - low) / across + 100 * (0.25 if right == 0.3 else 0.75)
        assert middle == pytest.approx(100 * right, abs=2)
    below = where(soft)[floor + 10 :]
    few, many = (below[:, run[5]].sum() for run in (first, second))
    assert few / many == pytest.approx(10 / 40, abs=0.03)


def test_the_pictures_are_the_same_every_time() -> None:
    generator = np.random.default_rng(0)
    counts = Counts(3)
    counts.add(generator.normal(size=(60, 3)).astype(np.float32), np.arange(60) % 3)
    bins = counts.metrics(Labels(("cat", "dog", "fox"))).to_json()["calibration"]["bins"]
    _, matrix = counts.matrix()
    totals, names = np.array([20, 20, 20]), ["cat", "dog", "fox"]

    first, second = (
        (report_plots.reliability(bins), report_plots.confusion(matrix, totals, names))
        for _ in range(2)
    )

    assert first == second
