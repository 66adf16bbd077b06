"""The charts of a report show the numbers that they are drawn of."""

import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from cvt_cli.base.package import DATA
from cvt_cli.evaluation import report_charts
from cvt_cli.evaluation.metrics import wilson

THEMES: list[tuple[report_charts.Theme, str, str, str]] = [
    ("light", "#ffffff", "#4ba3dd", "#e9803a"),
    ("dark", "#202020", "#1f6ea8", "#a14f0c"),
]


def pixels(matrix: NDArray[np.int64], totals: NDArray[np.int64], theme: report_charts.Theme) -> Any:
    """A heat map (rows, columns, 3)."""
    with Image.open(io.BytesIO(report_charts.heat_map(matrix, totals, theme))) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def rgb(colour: str) -> NDArray[np.int64]:
    return np.array(list(bytes.fromhex(colour[1:])), np.int64)


@pytest.mark.parametrize(("theme", "back", "right", "wrong"), THEMES)
def test_each_pixel_of_the_heat_map_shows_the_share_of_its_row(
    theme: report_charts.Theme, back: str, right: str, wrong: str
) -> None:
    matrix = np.diag(np.full(40, 100))
    matrix[0, :3] = (0, 90, 10)
    matrix[1, :2] = (1, 99)
    totals = np.full(40, 100)
    totals[0] = 1000  # the rest could not be read

    found = pixels(matrix, totals, theme)

    def mixed(colour: str, strength: float) -> NDArray[np.int64]:
        return np.round(rgb(back) + strength * (rgb(colour) - rgb(back))).astype(np.int64)

    assert (found[5, 5] == rgb(right)).all() and (found[5, 6] == rgb(back)).all()
    assert (found[0, 0] == rgb(back)).all()
    assert abs(found[0, 1] - mixed(wrong, 1 + np.log10(0.09) / 4)).max() <= 1
    assert abs(found[0, 2] - mixed(wrong, 0.5)).max() <= 1  # 1 %: half of the way
    assert (found[1, 0] == found[0, 2]).all()


def test_shares_below_the_scale_are_still_seen() -> None:
    found = report_charts.strengths(np.array([0.0, 1e-4, 0.1, 1.0, 10.0, 100.0]))

    assert found.tolist() == pytest.approx([0, 0.25, 0.25, 0.5, 0.75, 1])


def test_a_class_without_images_is_an_empty_row() -> None:
    totals = np.full(40, 7)
    totals[1] = 0

    found = pixels(np.diag(totals), totals, "light")

    assert ((found != 255).any(axis=2) == np.diag(totals > 0)).all()


def test_of_many_classes_neighbours_share_a_pixel() -> None:
    totals = np.full(1000, 10)
    matrix = np.diag(np.full(1000, 9))
    matrix[np.arange(1000), (np.arange(1000) // 5 * 5 + 500) % 1000] += 1

    found = pixels(matrix, totals, "light")

    assert found.shape == (200, 200, 3)
    wanted = np.eye(200, dtype=bool) | np.roll(np.eye(200, dtype=bool), 100, axis=1)
    assert ((found != 255).any(axis=2) == wanted).all()


def test_the_cells_of_a_named_matrix_have_their_number_and_their_share_of_the_row() -> None:
    matrix, totals = np.array([[5, 15], [10, 30]]), np.array([20, 80])  # 40 unreadable

    first, second = report_charts.matrix_rows(matrix, totals, ["cat", "a dog " * 20])

    assert [(cell.n, cell.share, cell.right) for cell in first.cells] == [
        (5, 25.0, True),
        (15, 75.0, False),
    ]
    assert [(cell.share, cell.right) for cell in second.cells] == [(12.5, False), (37.5, True)]
    assert second.name == "a dog " * 20 and second.short == "a dog a dog a dog a dog…"


def test_the_bins_of_the_reliability_diagram_are_those_with_images() -> None:
    empty = {"n": 0, "confidence": None, "accuracy": None}
    bins = [
        {"low": 0.0, "high": 0.25, **empty},
        {"low": 0.25, "high": 0.5, "n": 10, "confidence": 0.3, "accuracy": 0.5},
        {"low": 0.5, "high": 0.75, **empty},
        {"low": 0.75, "high": 1.0, "n": 40, "confidence": 0.9, "accuracy": 0.75},
    ]

    few, many = report_charts.columns(bins)

    assert (few.low, few.high, few.accuracy, few.confidence) == (25, 50, 50, 30)
    assert (few.n_height, many.n_height) == (25, 100)
    assert few.range == tuple(100 * bound for bound in wilson(5, 10))


def test_the_heat_map_has_the_colours_of_the_style_sheet() -> None:
    style = (DATA / "templates" / "style.css").read_text()
    light, dark = style.split("@media screen and (prefers-color-scheme: dark)")
    for part, (theme, back, right, wrong) in zip((light, dark), THEMES, strict=True):
        short = "#fff" if back == "#ffffff" else back
        for name, colour in (("card", short), ("right", right), ("wrong", wrong)):
            assert f"--{name}: {colour};" in part.partition("}")[0], theme
