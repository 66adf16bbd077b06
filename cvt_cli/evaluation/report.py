"""An evaluation as a page for people: one HTML file that needs nothing else (extra ``plots``)."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvt_cli.base import files
from cvt_cli.datasets.labelled import LabelledImages
from cvt_cli.evaluation import plots, report_plots
from cvt_cli.evaluation.judge import Subject
from cvt_cli.prediction import classify, pages

_EXTREMES = 15
"""Worst and best classes that are shown where there are too many for all."""

_HALF_PAGE = 520  # CSS pixels


@dataclass(frozen=True)
class Mistake:
    """A wrong answer."""

    path: str
    label: str  # the true class
    predicted: str
    score: float  # probability of the predicted class, 0 … 1
    thumbnail: bytes  # JPEG


def check(folder: Path) -> None:
    """Make sure that a report can be written there, before the work that it shows.

    Raises:
        UsageError: matplotlib is missing.
        CvtError: the folder cannot be written to.
    """
    plots.require()
    files.refuse_unwritable(folder / "index.html")


def write_report(
    folder: Path,
    title: str,
    document: dict[str, Any],
    matrix: NDArray[np.int64],
    names: Sequence[str],
    mistakes: Sequence[Mistake],
) -> Path:
    """Write ``index.html`` into a folder, which is made if need be.

    Args:
        folder: other files in it stay.
        title: of the page.
        document: what ``cvt evaluate --json`` prints.
        matrix: images (C, C), row = true class, column = predicted class; answers that are none
            of these classes are in no column.
        names: of the C classes, in the order of the document's ``classes``.
        mistakes: the surest wrong answers first.

    Returns:
        The path of the page.

    Raises:
        UsageError: matplotlib is missing.
        CvtError: the file cannot be written.
    """
    plots.require()
    page = pages.template("report.html").render(
        title=title,
        conditions=_conditions(document),
        cards=list(_cards(document)),
        average=100 * document["top1"],
        calibration=_calibration(document),
        confusions=_confusions(document, matrix, names),
        classes=_classes(document),
        readable=report_plots.READABLE_CLASSES,
        extremes=_EXTREMES,
        groups=[_bar(row["group"], row) for row in (document["groups"] or {}).get("groups", ())],
        gap=(document["groups"] or {}).get("largest_gap"),
        mistakes=mistakes,
    )
    path = folder / "index.html"
    files.write_text(path, page)
    return path


def report_on(
    folder: Path, document: dict[str, Any], one: Subject, data: LabelledImages, exif: bool
) -> Path:
    """Write the page of a model that was evaluated, with its surest mistakes.

    Args:
        folder: as of `write_report`.
        document: as of `write_report`.
        one: the model, with what was counted.
        data: the images.
        exif: whether they were turned upright.

    Returns:
        The path of the page.
    """
    where = {name: index for index, name in enumerate(data.names)}
    names = one.labels.names
    mistakes = [
        Mistake(
            name,
            names[right],
            names[answered],
            score,
            classify.thumbnail(data.load(where[name], exif)),
        )
        for score, name, right, answered in one.result.mistakes
    ]
    present, matrix = one.result.matrix()
    labels = [names[label] for label in present]
    title = f"{document['model']} on {document['data']}"
    return write_report(folder, title, document, matrix, labels, mistakes)


def _percent(share: float | None) -> str:
    return "none" if share is None else f"{100 * share:.2f} %"


def _images(n: int) -> str:
    return "1 image" if n == 1 else f"{n:,} images"


def _conditions(document: Mapping[str, Any]) -> str:
    """What the numbers depend on, in a line."""
    how = document["preprocessing"]
    size = f"{how['height']}x{how['width']}"
    cut = (
        f"squash to {size}"
        if how["resize"] == "squash"
        else f"centre crop {size} at {how['crop_pct']:g}"
    )
    at = f" at {document['revision'][:7]}" if document["revision"] else ""
    return (
        f"{document['model']}{at} ({document['activation']}) on {document['data']}; {cut}, "
        f"{how['interpolation']}; {document['device']}, {document['hardware']}, "
        f"{document['engine']}, {document['precision']}; cvt {document['version']}"
    )


# --- the headline numbers


@dataclass(frozen=True)
class _Card:
    """A number in large letters."""

    name: str
    value: str
    notes: tuple[str, ...]
    bad: bool = False


def _cards(document: Mapping[str, Any]) -> Iterator[_Card]:
    n = document["n"]
    yield _card(
        "top-1",
        _percent(document["top1"]),
        f"{document['top1_correct']:,} of {n:,}",
        _between(document["top1_interval"]),
    )
    for key in document:  # top5, or another k
        if re.fullmatch(r"top\d+", key) and key != "top1":
            correct = document[f"{key}_correct"]
            yield _card(f"top-{key[3:]}", _percent(document[key]), f"{correct:,} of {n:,}")
    if subset := document.get("present_classes"):
        yield _card(
            f"top-1 among the {subset['n']} classes of the data",
            _percent(subset["top1"]),
            f"{subset['top1_correct']:,} of {n:,}",
            _between(subset["top1_interval"]),
        )
    if real := document.get("real"):
        yield _card(
            "ReaL",
            _percent(real["accuracy"]),
            f"{real['correct']:,} of {real['n']:,} with such labels",
            _between(real["interval"]),
        )
    if record := document.get("record"):
        yield _card(
            "published top-1",
            _percent(record["paper_top1"]),
            f"by a third party {_percent(record['top1'])}",
            record["verdict"],
        )
    if calibration := document.get("calibration"):
        yield _card(
            "calibration error",
            _percent(calibration["ece"]),
            f"Brier score {calibration['brier']:.4f}",
        )
    if document["loss"] is not None:
        yield _card("loss", f"{document['loss']:.4f}", "nats, cross-entropy")
    if document["images_per_sec"] is not None:
        yield _card("speed", f"{document['images_per_sec']:,.0f}", "images/s, decoding included")
    if failed := document["n_failed"]:
        verdict = "left out" if document["n_skipped"] else "count as wrong"
        yield _card("unreadable", f"{failed:,}", f"{verdict}, see the errors", bad=True)


def _between(interval: Sequence[float]) -> str:
    low, high = interval
    return f"95 %: {100 * low:.2f} to {100 * high:.2f}"


def _card(name: str, value: str, *notes: str, bad: bool = False) -> _Card:
    return _Card(name, value, notes, bad)


@dataclass(frozen=True)
class _Drawn:
    """A PNG for light and one for dark pages."""

    light: bytes
    dark: bytes

    @property
    def width(self) -> int:
        """Width on the page in CSS pixels: half of the picture's own, so that it is sharp."""
        return int.from_bytes(self.light[16:20]) // 2  # after signature and head of the first chunk


# --- the sections


def _calibration(document: Mapping[str, Any]) -> dict[str, Any] | None:
    found = document["calibration"]
    if not found:
        return None
    bins = found["bins"]
    numbers = [
        ("expected calibration error", _percent(found["ece"])),
        ("negative log-likelihood", f"{found['nll']:.4f} nats"),
        ("Brier score", f"{found['brier']:.4f}"),
    ]
    gain = None
    if (temperature := found["temperature"]) is not None:
        numbers[2:2] = [
            ("the same at the best temperature", f"{found['nll_at_temperature']:.4f} nats"),
            ("best temperature", f"{temperature:.3f}"),
        ]
        gain = (
            "the model is surer than it is right"
            if temperature > 1.05
            else "the model is less sure than it could be"
            if temperature < 0.95
            else "there is little to gain"
        )
        if found["temperature_at_bound"]:
            gain += ", and more so than this temperature, the last that is tried, can mend"
    drawn = _Drawn(report_plots.reliability(bins, "light"), report_plots.reliability(bins, "dark"))
    return {"numbers": numbers, "gain": gain, "drawn": drawn}


def _confusions(
    document: Mapping[str, Any], matrix: NDArray[np.int64], names: Sequence[str]
) -> dict[str, Any]:
    totals = np.array([row["n"] for row in document["classes"]], np.int64)
    drawn = None
    if len(names):
        drawn = _Drawn(
            report_plots.confusion(matrix, totals, names, "light"),
            report_plots.confusion(matrix, totals, names, "dark"),
        )
    explained = "Colours are shares of the true class's images, on a scale that shows the rare ones"
    if len(names) <= report_plots.READABLE_CLASSES:
        explained += "; numbers are images. The diagonal is what is right."
    else:
        explained += ". The diagonal is what is right; classes are in the model's order."
        if (together := report_plots.classes_per_cell(len(names))) > 1:
            explained += f" Each cell is {together} x {together} neighbouring classes."
    answered = document["n"] - (0 if document["n_skipped"] else document["n_failed"])
    if (outside := answered - int(matrix.sum())) > 0:
        explained += f" {_images(outside)} taken for a class that the data lacks are not in it."
    return {
        "explained": explained,
        "drawn": drawn,
        "beside": drawn is not None and drawn.width <= _HALF_PAGE,
        "rows": document["confusions"],
    }


def _classes(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A bar for each class that has images, the hardest first."""
    rows = [row for row in document["classes"] if row["n"]]
    ordered = sorted(rows, key=lambda row: float(row["accuracy"]))
    return [_bar(row["label"], row) for row in ordered]


def _bar(name: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """A rate as a bar, in per cent."""
    low, high = row["interval"]
    return {
        "name": name,
        "share": 100 * row["accuracy"],
        "low": 100 * low,
        "high": 100 * high,
        "images": f"{row['n']:,}",
    }
