"""The page that `cvt evaluate --report` writes."""

import base64
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
from cvt_cli.evaluation import plots, report_plots
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
    assert bars == (count if count <= report_plots.READABLE_CLASSES else count + 30)
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
