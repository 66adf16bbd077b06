"""The page that `cvt evaluate --report` writes."""

import base64
import functools
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from cvt_cli.base.errors import CvtError, UsageError
from cvt_cli.evaluation import plots
from cvt_cli.evaluation.counts import Counts
from cvt_cli.evaluation.report import Mistake, write_report
from cvt_cli.spec.labels import Labels

SECTIONS = [
    "Can its probabilities be believed?",
    "What is taken for what?",
    "Which classes are hard?",
    "Does it treat groups alike?",
    "Where is it surely wrong?",
]
VOID = {"meta", "img", "br", "source"}


class Page(HTMLParser):
    """The page's text by tag, its links and pictures; every tag that is opened must be closed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.html = path.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.addresses: list[str] = []
        self.feed(self.html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [v or "" for name, v in attrs if name in ("src", "srcset", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.setdefault(self.open[-1] if self.open else "", []).append(data.strip())

    @property
    def text(self) -> str:
        return " ".join(
            text for tag, found in self.texts.items() if tag != "style" for text in found
        )

    def pictures(self) -> list[Image.Image]:
        return [
            Image.open(io.BytesIO(base64.b64decode(a.partition(",")[2]))) for a in self.addresses
        ]


def evaluated(
    names: list[str], images: int, **more: Any
) -> tuple[dict[str, Any], NDArray[np.int64]]:
    """What an evaluation of a made-up model says, and its confusion matrix."""
    generator = np.random.default_rng(0)
    found = Counts(len(names))
    for _ in range(images):
        labels = np.arange(len(names))
        logits = generator.normal(size=(len(names), len(names))).astype(np.float32)
        logits[labels, labels] += 2.5
        found.add(logits, labels)
    found.seconds = 2.0
    document = {
        **{"data": "pets", **found.metrics(Labels(tuple(names))).to_json()},
        **{"model": "small", "revision": "0123456789", "activation": "gelu"},
        "preprocessing": {
            **{"height": 224, "width": 224, "resize": "crop", "crop_pct": 0.875},
            "interpolation": "bicubic",
        },
        **{"device": "cpu", "hardware": "a processor", "precision": "fp32", "engine": "openvino"},
        **{"version": "0.1", "record": None},
        **more,
    }
    return document, found.matrix()[1]


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 24), "red").save(buffer, "JPEG")
    return buffer.getvalue()


NAMES = ["cat", "dog", "fox"]
MISTAKES = [Mistake("cat/1.jpg", "cat", "dog", 0.987, jpeg())]
RATE = {"n": 30, "correct": 24, "accuracy": 0.8, "interval": [0.62, 0.9]}
EVERYTHING = {
    "present_classes": {"n": 3, "top1": 0.9, "top1_correct": 54, "top1_interval": [0.8, 0.95]},
    "real": {**RATE, "correct": 27, "accuracy": 0.91},
    "groups": {
        "groups": [{"group": "indoors", **RATE}, {"group": "outdoors", **RATE, "accuracy": 0.5}],
        "largest_gap": {"gap": 0.3, "best": "indoors", "worst": "outdoors"},
    },
    "record": {"paper_top1": 0.816, "top1": 0.8159, "verdict": "agrees with it"},
    "n_failed": 2,
}


def test_the_page_is_one_file_that_needs_no_other(tmp_path: Path) -> None:
    document, matrix = evaluated(NAMES, 20, **EVERYTHING)

    path = write_report(tmp_path / "new" / "folder", "small", document, matrix, NAMES, MISTAKES)

    assert path == tmp_path / "new" / "folder" / "index.html"
    assert [p.name for p in path.parent.iterdir()] == ["index.html"]
    page = Page(path)
    assert all(address.startswith("data:image/") for address in page.addresses)
    assert not re.search(r"https?:|url\(|@import|<script|<link", page.html)
    assert [picture.format for picture in page.pictures()] == ["PNG"] * 4 + ["JPEG"]


def test_every_section_and_number_is_there(tmp_path: Path) -> None:
    document, matrix = evaluated(NAMES, 20, **EVERYTHING)

    page = Page(write_report(tmp_path, "small on pets", document, matrix, NAMES, MISTAKES))

    assert page.texts["h1"] == ["small on pets"]
    assert page.texts["h2"] == SECTIONS
    low, high = document["top1_interval"]
    for said in (
        f"{100 * document['top1']:.2f} %",
        f"{document['top1_correct']} of 60",
        f"95 %: {100 * low:.2f} to {100 * high:.2f}",
        f"{document['loss']:.4f}",
        "top-5",
        "top-1 among the 3 classes of the data",
        "91.00 %",
        "81.60 %",
        "by a third party 81.59 %",
        "agrees with it",
        "unreadable",
        "The largest gap is 30.00 points, between indoors and outdoors.",
        "small at 0123456 (gelu) on pets; centre crop 224x224 at 0.875, bicubic; cpu",
        "98.7 %",
        "cat/1.jpg",
    ):
        assert said in page.text


def test_what_was_not_measured_is_left_out(tmp_path: Path) -> None:
    missing = {"loss": None, "images_per_sec": None, "calibration": None}
    document, matrix = evaluated(NAMES, 20, **missing)

    page = Page(write_report(tmp_path, "small", document, matrix, NAMES, []))

    assert page.texts["h2"] == [SECTIONS[1], SECTIONS[2]]
    for absent in ("ReaL", "published", "among the", "unreadable", "speed", "None", "calibration"):
        assert absent not in page.text


def test_every_text_is_escaped(tmp_path: Path) -> None:
    bad = '<script>alert("1")</script>&\udce9'
    names = [bad, "$a$ $", "猫\n\tcat"]
    groups = {
        "groups": [{"group": bad, **RATE}],
        "largest_gap": {"gap": 0.1, "best": bad, "worst": bad},
    }
    said = {"model": bad, "data": bad, "hardware": bad, "groups": groups}
    record = {"paper_top1": 0.5, "top1": 0.5, "verdict": bad}
    document, matrix = evaluated(names, 20, **said, record=record)

    path = write_report(tmp_path, bad, document, matrix, names, [Mistake(bad, bad, bad, 1, jpeg())])

    page = Page(path)
    assert "<script" not in page.html
    assert page.texts["title"] == ['<script>alert("1")</script>&\\udce9']
    assert "猫" in page.text and "script" not in page.texts


@pytest.mark.parametrize("count", [1, 2, 30, 31, 1000])
def test_any_number_of_classes_makes_a_page(tmp_path: Path, count: int) -> None:
    names = [f"class {i}" for i in range(count)]
    document, matrix = evaluated(names, 3)

    page = Page(write_report(tmp_path, "small", document, matrix, names, []))

    assert page.texts["h2"] == SECTIONS[:3]
    bars = page.html.count('<div class="bar">')
    assert bars == (count if count <= plots.READABLE_CLASSES else count + 30)
    assert ("Each cell is 5 x 5 neighbouring classes." in page.text) == (count == 1000)
    assert len(page.html) < 1_500_000


def test_with_many_classes_the_worst_and_the_best_come_first(tmp_path: Path) -> None:
    names = [f"class {i}" for i in range(40)]
    document, matrix = evaluated(names, 10)
    document["classes"][7].update(accuracy=0.0)
    document["classes"][9].update(accuracy=1.0)

    page = Page(write_report(tmp_path, "small", document, matrix, names, []))

    shown = re.findall(r'class="name">([^<]+)<', page.html)
    accuracy = {row["label"]: row["accuracy"] for row in document["classes"]}
    assert shown[0] == "class 7" and accuracy[shown[15]] == 1.0
    assert [accuracy[name] for name in shown[:15]] == sorted(accuracy.values())[:15]
    assert [accuracy[name] for name in shown[15:30]] == sorted(accuracy.values())[:-16:-1]
    assert sorted(shown[30:]) == sorted(names)


def test_answers_outside_the_matrix_are_counted(tmp_path: Path) -> None:
    document, matrix = evaluated(NAMES, 20, n_failed=4)

    inside = matrix.copy()
    inside[0, 0] -= 9  # 5 answers beside the 4 images that could not be read
    page = Page(write_report(tmp_path, "small", document, inside, NAMES, []))

    assert "5 images taken for a class that the data lacks are not in it." in page.text


def test_a_model_without_mistakes_has_nothing_confused(tmp_path: Path) -> None:
    document, _ = evaluated(NAMES, 20, confusions=[])

    page = Page(write_report(tmp_path, "s", document, np.diag([20, 20, 20]), NAMES, []))

    assert "No image is taken for another class." in page.text


def pixels(png: bytes) -> NDArray[np.uint8]:
    """The picture (height, width, 3)."""
    with Image.open(io.BytesIO(png)) as picture:
        return np.asarray(picture.convert("RGB"))


def drawn(matrix: NDArray[np.int64], totals: NDArray[np.int64], theme: plots.Theme) -> Any:
    names = [chr(97 + index % 26) for index in range(len(matrix))]
    return pixels(plots.confusion(matrix, totals, names, theme)).astype(int)


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

    picture = pixels(plots.reliability(bins, theme))

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
    document, matrix = evaluated(NAMES, 20)
    bins, totals = document["calibration"]["bins"], np.array([20, 20, 20])

    assert plots.reliability(bins) == plots.reliability(bins)
    assert plots.confusion(matrix, totals, NAMES) == plots.confusion(matrix, totals, NAMES)


def test_without_matplotlib_there_is_no_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots, "find_spec", lambda _: None)
    document, matrix = evaluated(NAMES, 2)

    with pytest.raises(UsageError, match="matplotlib is not installed"):
        write_report(tmp_path, "small", document, matrix, NAMES, [])


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    document, matrix = evaluated(NAMES, 2)

    with pytest.raises(CvtError, match="cannot write"):
        write_report(tmp_path / "file", "small", document, matrix, NAMES, [])
