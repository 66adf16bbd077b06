"""The page that `cvt evaluate --report` writes."""

import base64
import io
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from cvt_cli.base.errors import CvtError
from cvt_cli.evaluation import figures, report_charts
from cvt_cli.evaluation.counts import Counts
from cvt_cli.evaluation.mistakes import Mistake
from cvt_cli.evaluation.report import write_report
from cvt_cli.spec.labels import Labels

SECTIONS = [
    "Top-1 accuracy",
    "Which classes are confused?",
    "Which classes are hard?",
    "Are the probabilities trustworthy?",
    "Is it equally accurate for all groups?",
    "Most confident mistakes",
    "How it was measured",
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
        self.alts: list[str] = []
        self.rows: list[list[str]] = []  # of every table
        self.feed(self.html.replace("<wbr>", ""))
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [v or "" for name, v in attrs if name in ("src", "srcset", "href")]
        self.alts += [v or "" for name, v in attrs if name == "alt"]
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"th", "td"} & set(self.open):
            self.rows[-1][-1] += data.strip()
        if data.strip():
            self.texts.setdefault(self.open[-1] if self.open else "", []).append(data.strip())

    @property
    def text(self) -> str:
        return " ".join(
            text for tag, found in self.texts.items() if tag != "style" for text in found
        )

    @property
    def figures(self) -> dict[str, str]:
        """What is told in lists of terms."""
        return dict(re.findall(r"<dt>(.+?)</dt><dd>(?:<b>)?(.+?)<", self.html))

    def pictures(self) -> list[Image.Image]:
        return [
            Image.open(io.BytesIO(base64.b64decode(a.partition(",")[2])))
            for a in self.addresses
            if a.startswith("data:image/")
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
        "largest_gap": {
            "gap": 0.3,
            "interval": [0.1, 0.52],
            "best": "indoors",
            "worst": "outdoors",
        },
    },
    "record": {"paper_top1": 0.816, "top1": 0.8159, "verdict": "agrees with it"},
    "n_failed": 2,
}


def test_the_page_is_one_file_that_needs_no_other(tmp_path: Path) -> None:
    document, matrix = evaluated(NAMES, 20, **EVERYTHING)

    path = write_report(tmp_path / "new" / "folder", document, matrix, NAMES, MISTAKES)

    assert path == tmp_path / "new" / "folder" / "index.html"
    assert [p.name for p in path.parent.iterdir()] == ["index.html"]
    page = Page(path)
    outside = [address for address in page.addresses if not address.startswith("data:image/")]
    parts = re.findall(r' id="([^"]+)"', page.html)
    assert outside and all(address[0] == "#" and address[1:] in parts for address in outside)
    assert not re.search(r"https?:|url\(|@import|<script|<link", page.html)
    assert [picture.format for picture in page.pictures()] == ["JPEG"]


def test_every_section_and_number_is_there(tmp_path: Path) -> None:
    document, matrix = evaluated(NAMES, 20, **EVERYTHING)

    page = Page(write_report(tmp_path, document, matrix, NAMES, MISTAKES, num_classes=9))

    assert page.texts["h1"] == ["small on pets"]
    assert page.texts["h2"] == SECTIONS
    low, high = document["top1_interval"]
    for said in (
        f"{100 * document['top1']:.2f} %",
        f"{document['top1_correct']} of 60 images right",
        f"95 % interval {100 * low:.2f} to {100 * high:.2f} %",
        "measured by PaddleViT: 81.59 %",
        "agrees with it",
        "2 images could not be read and count as wrong.",
        "The largest gap is 30.00 points (95 % interval 10.00 to 52.00), between indoors and ",
        "(99 %),",
        "cat/1.jpg",
    ):
        assert said in page.text
    figures = page.figures
    assert figures["Top-5 accuracy"] == "100.00 %"
    assert figures["Top-1 among the 3 classes of the data"] == "90.00 %"
    assert (figures["ReaL accuracy"], figures["Published top-1"]) == ("91.00 %", "81.60 %")
    assert figures["Loss"] == f"{document['loss']:.4f}"
    assert figures["Calibration error"] == f"{100 * document['calibration']['ece']:.2f} %"


def test_a_page_says_how_it_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["cvt", "evaluate", "--data", "/home/ada/my pets"])
    document, matrix = evaluated(NAMES, 20, split="val")

    page = Page(write_report(tmp_path, document, matrix, NAMES, MISTAKES))

    assert page.figures == page.figures | {
        "Model": "small",
        "Commit": "0123456789",
        "Data": "pets, 60 images",
        "Part": "the images that the run held out to choose its best epoch",
        "Speed": "30 images/s, decoding included",
        "Preprocessing": "shorter side resized to 256 pixels, then a centre crop of 224x224 "
        "(bicubic)",
        "Activation": "GELU",
        "Engine": "OpenVINO, fp32",
        "Device": "cpu, a processor",
        "Version": "cvt 0.1",
    }
    assert page.texts["code"] == ["cvt evaluate --data '…/ada/my pets'"]
    assert re.fullmatch(r"20\d\d-\d\d-\d\d \d\d:\d\d .+", page.figures["Date"])
    assert page.texts["time"] == [page.figures["Date"][:10]]


def test_no_page_tells_the_folders_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model, the data and the command line were given with their whole paths."""
    model, data = tmp_path / "runs" / "first" / "best", tmp_path / "pets" / "test"
    line = ["evaluate", f"--data={data}", "--model", str(model), "--report", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["cvt", *line])
    document, matrix = evaluated(NAMES, 20, model=str(model), data=str(data))

    page = Page(write_report(tmp_path / "out", document, matrix, NAMES, MISTAKES))

    assert page.texts["h1"] == page.texts["title"] == ["first/best on pets/test"]
    assert page.figures["Model"] == "…/first/best"
    assert str(tmp_path.parent) not in page.html and tmp_path.parent.name not in page.html
    (command,) = page.texts["code"]
    assert command.startswith("cvt evaluate --data=…/pets/test --model …/first/best --report …/")


def test_precision_recall_and_f1_of_each_class_follow_from_the_matrix(tmp_path: Path) -> None:
    """Of 3 classes: 8 of 10 cats, 5 of 5 dogs and none of 4 foxes are recognised."""
    found = Counts(3)
    answers = {0: [0] * 8 + [1, 2], 1: [1] * 5, 2: [0, 0, 1, 1]}
    for right, answered in answers.items():
        logits = np.eye(3, dtype=np.float32)[answered]
        found.add(logits, np.full(len(answered), right))
    document, _ = evaluated(NAMES, 1)
    document |= found.metrics(Labels(tuple(NAMES))).to_json()

    page = Page(write_report(tmp_path, document, found.matrix()[1], NAMES, []))

    place = page.rows.index(["Class", "Recall", "Precision", "F1", "Images"])
    assert page.rows[place + 1 : place + 5] == [
        ["fox", "0.0 %", "0.0 %", "0.0 %", "4"],
        ["cat", "80.0 %", "80.0 %", "80.0 %", "10"],
        ["dog", "100.0 %", "62.5 %", "76.9 %", "5"],
        ["Mean of all classes", "60.0 %", "47.5 %", "52.3 %", ""],
    ]
    assert page.figures["Macro F1"] == "52.31 %"


def test_a_class_that_is_never_answered_has_no_precision(tmp_path: Path) -> None:
    found = Counts(2)
    found.add(np.eye(2, dtype=np.float32)[[0, 0]], np.array([0, 1]))
    document, _ = evaluated(["cat", "dog"], 1)
    document |= found.metrics(Labels(("cat", "dog"))).to_json()

    page = Page(write_report(tmp_path, document, found.matrix()[1], ["cat", "dog"], []))

    assert ["dog", "0.0 %", "–", "0.0 %", "1"] in page.rows


def test_the_commonest_confusions_are_told_and_single_images_are_not(tmp_path: Path) -> None:
    found = Counts(3)
    answers = {0: [0] * 7 + [1] * 3, 1: [1] * 9 + [2], 2: [2] * 6}
    for right, answered in answers.items():
        found.add(np.eye(3, dtype=np.float32)[answered], np.full(len(answered), right))
    document, _ = evaluated(NAMES, 1)
    document |= found.metrics(Labels(tuple(NAMES))).to_json()

    page = Page(write_report(tmp_path, document, found.matrix()[1], NAMES, []))

    place = page.rows.index(["Labelled", "Predicted", "Images", "Of the class"])
    assert page.rows[place + 1] == ["cat", "dog", "3", "30.0 %"]
    assert page.rows[place + 2] == ["Class", "Recall", "Precision", "F1", "Images"]
    assert page.rows[:4] == [
        ["predicted →labelled ↓", "cat", "dog", "fox"],
        ["cat", "7", "3", "·"],
        ["dog", "·", "9", "1"],
        ["fox", "·", "·", "6"],
    ]


def test_where_k_reaches_the_classes_the_second_accuracy_is_left_out(tmp_path: Path) -> None:
    document, matrix = evaluated(NAMES, 20)

    page = Page(write_report(tmp_path, document, matrix, NAMES, [], num_classes=5))

    assert "top5" in document and not [name for name in page.figures if "Top-5" in name]


def test_images_that_were_trained_on_are_warned_of_at_the_top(tmp_path: Path) -> None:
    document, matrix = evaluated(NAMES, 20, n_trained_on=12)

    page = Page(write_report(tmp_path, document, matrix, NAMES, []))

    warning = "12 of these 60 images were used in training, so the accuracy is too high."
    assert warning in page.text
    assert page.html.index(warning) < page.html.index("Top-1 accuracy")


def test_a_mistake_says_what_was_predicted_and_labelled_and_leads_to_its_file(
    tmp_path: Path,
) -> None:
    document, matrix = evaluated(NAMES, 20)
    large = io.BytesIO()
    Image.new("RGB", (224, 100)).save(large, "JPEG")
    linked = [
        Mistake("cat/1.jpg", "cat", "dog", 0.987, jpeg(), "../pets/cat/1.jpg"),
        Mistake("fox/2.jpg", "fox", "cat", 0.5, large.getvalue()),
    ]

    page = Page(write_report(tmp_path, document, matrix, NAMES, linked))

    assert page.alts == [
        "cat/1.jpg: predicted dog (99 %), labelled cat",
        "fox/2.jpg: predicted cat (50 %), labelled fox",
    ]
    assert "../pets/cat/1.jpg" in page.addresses
    small, other = re.findall(r"<img[^>]*?alt", page.html)
    assert 'class="small"' in small and "class" not in other  # 32 pixels stay squares
    assert "predicted <b>dog</b>" in page.html and "labelled <b>cat</b>" in page.html


@pytest.mark.parametrize(
    ("sharper", "said"), [(0.2, "underconfident by"), (5.0, "overconfident by")]
)
def test_the_page_says_whether_the_model_is_too_sure(
    tmp_path: Path, sharper: float, said: str
) -> None:
    generator = np.random.default_rng(0)
    found = Counts(3)
    for _ in range(200):
        logits = generator.normal(size=(3, 3)).astype(np.float32)
        logits[range(3), range(3)] += 1.5
        found.add(sharper * logits, np.arange(3))
    document, _ = evaluated(NAMES, 1)
    document |= found.metrics(Labels(tuple(NAMES))).to_json()

    page = Page(write_report(tmp_path, document, found.matrix()[1], NAMES, []))

    full = [row for row in document["calibration"]["bins"] if row["n"]]
    mean = sum(row["n"] * row["confidence"] for row in full) / 600
    assert any(text.startswith(said) for text in page.texts["b"])
    assert f"{abs(100 * (mean - document['top1'])):.1f} points" in page.text
    numbers = [["Probability", "Images", "Mean", "Right"]] + [
        [
            f"{100 * row['low']:.0f} to {100 * row['high']:.0f} %",
            str(row["n"]),
            f"{100 * row['confidence']:.1f} %",
            f"{100 * row['accuracy']:.1f} %",
        ]
        for row in full
    ]
    place = page.rows.index(numbers[0])
    assert page.rows[place : place + len(numbers)] == numbers


def test_what_was_not_measured_is_left_out(tmp_path: Path) -> None:
    missing = {"loss": None, "images_per_sec": None, "calibration": None}
    document, matrix = evaluated(NAMES, 20, **missing)

    page = Page(write_report(tmp_path, document, matrix, NAMES, []))

    assert page.texts["h2"] == [*SECTIONS[:3], SECTIONS[-1]]
    for absent in ("ReaL", "ublished", "mong the", "not be read", "peed", "None", "alibration"):
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
    mistakes = [Mistake(bad, bad, bad, 1, jpeg(), bad)]

    path = write_report(tmp_path, document, matrix, names, mistakes)

    page = Page(path)
    assert "<script" not in page.html
    title = '<script>alert("1")</script>&\\udce9'
    assert page.texts["title"] == [f"{title} on {title}"]
    assert "猫" in page.text and "script" not in page.texts


@pytest.mark.parametrize("count", [1, 2, 30, 31, 1000])
def test_any_number_of_classes_makes_a_page(tmp_path: Path, count: int) -> None:
    names = [f"class {i}" for i in range(count)]
    document, matrix = evaluated(names, 3)

    page = Page(write_report(tmp_path, document, matrix, names, []))

    assert page.texts["h2"] == [*SECTIONS[:4], SECTIONS[-1]]
    bars = page.html.count('<span class="track"')
    assert bars == (count if count <= report_charts.READABLE_CLASSES else count + 30)
    assert [picture.size for picture in page.pictures()] == (
        [] if count <= 30 else [(min(count, 200), min(count, 200))] * 2
    )
    assert ("Each cell is 5 x 5 neighbouring classes." in page.text) == (count == 1000)
    assert len(page.html) < 1_500_000


def test_with_many_classes_the_hardest_and_the_easiest_come_first(tmp_path: Path) -> None:
    names = [f"class {i}" for i in range(40)]
    document, matrix = evaluated(names, 10)
    document["classes"][7].update(accuracy=0.0)
    document["classes"][9].update(accuracy=1.0)

    page = Page(write_report(tmp_path, document, matrix, names, []))

    place = page.rows.index(["Class", "Recall", "Precision", "F1", "Images"])
    shown = [row[0] for row in page.rows[place:] if row[0].startswith("class ")]
    accuracy = {row["label"]: row["accuracy"] for row in document["classes"]}
    assert shown[0] == "class 7" and accuracy[shown[15]] == 1.0
    assert [accuracy[name] for name in shown[:15]] == sorted(accuracy.values())[:15]
    assert [accuracy[name] for name in shown[15:30]] == sorted(accuracy.values())[:-16:-1]
    assert sorted(shown[30:]) == sorted(names)


def test_answers_outside_the_matrix_are_counted(tmp_path: Path) -> None:
    document, matrix = evaluated(NAMES, 20, n_failed=4)

    inside = matrix.copy()
    inside[0, 0] -= 9  # 5 answers beside the 4 images that could not be read
    page = Page(write_report(tmp_path, document, inside, NAMES, []))

    assert "Not shown: 5 answers that name a class without images in this data." in page.text


def test_a_model_without_mistakes_has_nothing_confused(tmp_path: Path) -> None:
    document, _ = evaluated(NAMES, 20, confusions=[])

    page = Page(write_report(tmp_path, document, np.diag([20, 20, 20]), NAMES, []))

    assert "No image was taken for another class." in page.text


def test_a_page_needs_no_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(figures, "find_spec", lambda _: None)
    document, matrix = evaluated(NAMES, 2)

    assert write_report(tmp_path, document, matrix, NAMES, []).exists()


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    document, matrix = evaluated(NAMES, 2)

    with pytest.raises(CvtError, match="cannot write"):
        write_report(tmp_path / "file", document, matrix, NAMES, [])
