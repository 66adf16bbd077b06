"""An evaluation as a page for people: one HTML file that needs nothing else (extra ``plots``)."""

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvt_cli.base import files
from cvt_cli.datasets.labelled import LabelledImages
from cvt_cli.evaluation import plots
from cvt_cli.evaluation.judge import Subject
from cvt_cli.prediction import classify
from cvt_cli.prediction.writers import as_text

_EXTREMES = 15
"""Worst and best classes that are shown where there are too many for all."""

_HALF_PAGE = 520  # CSS pixels

_STYLE = """
:root { color-scheme: light dark; --back: #f4f4f2; --card: #fff; --text: #1b1b1b; --soft: #6b6b6b;
  --line: #e2e2df; --bar: #0072b2; --track: #ececea; --mark: #d55e00; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --back: #161616; --card: #222; --text: #eee;
  --soft: #9a9a9a; --line: #333; --bar: #3d97d3; --track: #303030; --mark: #f5a742;
  --bad: #f2867f; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1120px; padding: 28px 20px 60px; background: var(--back);
  color: var(--text); font: 14px/1.45 system-ui, sans-serif; }
h1 { margin: 0 0 4px; font-size: 24px; overflow-wrap: anywhere; }
h2 { margin: 0 0 2px; font-size: 17px; }
p { margin: 0; }
.soft { color: var(--soft); font-size: 12.5px; overflow-wrap: anywhere; }
section { margin-top: 18px; padding: 18px 20px; background: var(--card);
  border: 1px solid var(--line); border-radius: 10px; }
section > .soft { max-width: 80ch; margin-bottom: 12px; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(190px, 1fr)); gap: 12px;
  margin-top: 18px; }
.card { padding: 12px 16px; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; }
.card b { display: block; font-size: 25px; line-height: 1.25; }
.card.bad b { color: var(--bad); }
.pictured { display: block; max-width: 100%; height: auto; margin: 0 auto; }
.side { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(400px, 100%), 1fr));
  gap: 8px 32px; align-items: start; }
.side > * { min-width: 0; }
table + .soft { margin-top: 10px; }
table { width: 100%; border-collapse: collapse; }
th { text-align: left; font-weight: 600; font-size: 12.5px; color: var(--soft); }
th, td { padding: 3px 10px 3px 0; border-bottom: 1px solid var(--line); overflow-wrap: anywhere; }
.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
h3 { margin: 12px 0 4px; font-size: 13px; color: var(--soft); }
.bar { display: flex; align-items: center; gap: 10px; padding: 2px 0; font-size: 13px; }
.bar .name { flex: 0 0 34%; text-align: right; overflow-wrap: anywhere; line-height: 1.2; }
.bar .track { position: relative; flex: 1; height: 14px; background: var(--track);
  border-radius: 3px; }
.bar .track * { position: absolute; }
.bar .share { left: 0; top: 0; bottom: 0; background: var(--bar); border-radius: 3px; }
.bar .range { top: 6px; height: 2px; background: var(--text);
  box-shadow: 0 0 0 1px var(--card); }
.bar .all { top: -3px; bottom: -3px; width: 2px; margin-left: -1px; background: var(--mark); }
.bar .count { flex: 0 0 118px; white-space: nowrap; font-variant-numeric: tabular-nums; }
summary { margin-top: 12px; cursor: pointer; color: var(--soft); }
.mistakes { display: grid; grid-template-columns: repeat(auto-fill, minmax(160px, 1fr));
  gap: 12px; }
figure { margin: 0; border: 1px solid var(--line); border-radius: 8px; overflow: hidden; }
figure .thumbnail { height: 150px; display: flex; align-items: center; justify-content: center;
  background: var(--back); }
figure img { max-width: 100%; max-height: 100%; min-height: 96px; }
figcaption { padding: 8px 10px 10px; font-size: 13px; line-height: 1.35; }
figcaption span { color: var(--soft); }
figcaption .soft { font-size: 11px; margin-top: 4px; }
@media print { .card, .bar, figure, picture { break-inside: avoid; } }
"""


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
    sections = [
        _calibration(document),
        _confusions(document, matrix, names),
        _classes(document),
        _groups(document),
        _mistakes(mistakes),
    ]
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_text(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<header>
<h1>{_text(title)}</h1>
<p class="soft">{_text(_conditions(document))}</p>
</header>
<div class="cards">
{"".join(_cards(document))}</div>
{"".join(sections)}</body>
</html>
"""
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


def _text(text: object) -> str:
    """Text for the page: escaped, and with nothing that UTF-8 lacks, as file names may have."""
    return escape(as_text(str(text)))


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


def _cards(document: Mapping[str, Any]) -> Iterable[str]:
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


def _card(name: str, value: str, *notes: str, bad: bool = False) -> str:
    lines = "".join(f'<p class="soft">{_text(note)}</p>' for note in notes)
    kind = "card bad" if bad else "card"
    return f'<div class="{kind}">{_text(name)}<b>{_text(value)}</b>{lines}</div>\n'


# --- the sections


def _section(name: str, explained: str, *content: str) -> str:
    return (
        f'<section>\n<h2>{_text(name)}</h2>\n<p class="soft">{_text(explained)}</p>\n'
        + "".join(content)
        + "</section>\n"
    )


def _picture(light: bytes, dark: bytes, what: str) -> str:
    """A PNG drawn for light and for dark pages, at half its pixels so that it is sharp."""
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{_uri(dark, "png")}">'
        f'<img class="pictured" style="width: {_width(light)}px" alt="{_text(what)}" '
        f'src="{_uri(light, "png")}">'
        "</picture>\n"
    )


def _width(png: bytes) -> int:
    """Of the picture on the page, in CSS pixels."""
    return int.from_bytes(png[16:20]) // 2  # after the signature and the head of the first chunk


def _uri(picture: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


def _calibration(document: Mapping[str, Any]) -> str:
    found = document.get("calibration")
    if not found:
        return ""
    bins = found["bins"]
    rows = [
        ("expected calibration error", _percent(found["ece"])),
        ("negative log-likelihood", f"{found['nll']:.4f} nats"),
        ("Brier score", f"{found['brier']:.4f}"),
    ]
    advice = ""
    if (temperature := found["temperature"]) is not None:
        rows[2:2] = [
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
        if found.get("temperature_at_bound"):
            gain += ", and more so than this temperature, the last that is tried, can mend"
        advice = (
            '<p class="soft">Dividing the logits by the best temperature, which is found on these '
            f"images, gives the least loss: {gain}.</p>"
        )
    numbers = "".join(
        f'<tr><td>{name}</td><td class="number">{value}</td></tr>' for name, value in rows
    )
    return _section(
        "Can its probabilities be believed?",
        "Answers sorted by their probability into bins. Where a bar ends at its diamond, answers "
        "are right as often as their probability says; a bar below it means too sure, above it "
        "not sure enough. The expected calibration error is the mean distance of the two, "
        "weighted by images. Whiskers, cards and bars have 95 % intervals (Wilson).",
        '<div class="side"><div>',
        _picture(
            plots.reliability(bins, "light"), plots.reliability(bins, "dark"), "reliability diagram"
        ),
        f"</div><div><table>{numbers}</table>{advice}</div></div>\n",
    )


def _confusions(
    document: Mapping[str, Any], matrix: NDArray[np.int64], names: Sequence[str]
) -> str:
    totals = np.array([row["n"] for row in document["classes"]], np.int64)
    pictured, layout = "", ""
    if len(names):
        light = plots.confusion(matrix, totals, names, "light")
        dark = plots.confusion(matrix, totals, names, "dark")
        pictured = _picture(light, dark, "confusion matrix")
        layout = ' class="side"' if _width(light) <= _HALF_PAGE else ""
    explained = "Colours are shares of the true class's images, on a scale that shows the rare ones"
    if len(names) <= plots.READABLE_CLASSES:
        explained += "; numbers are images. The diagonal is what is right."
    else:
        explained += ". The diagonal is what is right; classes are in the model's order."
        if (together := plots.classes_per_cell(len(names))) > 1:
            explained += f" Each cell is {together} x {together} neighbouring classes."
    answered = document["n"] - (0 if document["n_skipped"] else document["n_failed"])
    if (outside := answered - int(matrix.sum())) > 0:
        explained += f" {_images(outside)} taken for a class that the data lacks are not in it."
    rows = "".join(
        f"<tr><td>{_text(row['label'])}</td><td>{_text(row['predicted'])}</td>"
        f'<td class="number">{row["n"]:,}</td></tr>'
        for row in document["confusions"]
    )
    table = (
        "<h3>Most confused</h3>\n<table><tr><th>true class</th><th>taken for</th>"
        f'<th class="number">images</th></tr>{rows}</table>\n'
        if rows
        else '<p class="soft">No image is taken for another class.</p>\n'
    )
    return _section(
        "What is taken for what?",
        explained,
        f"<div{layout}><div>{pictured}</div><div>{table}</div></div>\n",
    )


def _classes(document: Mapping[str, Any]) -> str:
    rows = [row for row in document["classes"] if row["n"]]
    if not rows:
        return ""
    ordered = sorted(rows, key=lambda row: row["accuracy"])
    named = [(row["label"], row) for row in ordered]
    average = document["top1"]
    explained = (
        "Share of each class's images that is right, with 95 % intervals; the upright line is the "
        f"accuracy over all images, {_percent(average)}."
    )
    if len(named) <= plots.READABLE_CLASSES:
        return _section("Which classes are hard?", explained, _bars(named, average))
    return _section(
        "Which classes are hard?",
        explained,
        f'<div class="side"><div><h3>The {_EXTREMES} worst</h3>',
        _bars(named[:_EXTREMES], average),
        f"</div><div><h3>The {_EXTREMES} best</h3>",
        _bars(named[: -_EXTREMES - 1 : -1], average),
        f"</div></div>\n<details><summary>all {len(named):,} classes, worst first</summary>",
        _bars(named, average),
        "</details>\n",
    )


def _groups(document: Mapping[str, Any]) -> str:
    found = document.get("groups")
    if not found:
        return ""
    explained = (
        "Share of each group's images that is right, with 95 % intervals; the upright line is the "
        "accuracy over all images."
    )
    if (gap := found["largest_gap"])["gap"]:
        explained += (
            f" The largest gap is {100 * gap['gap']:.2f} points, between {gap['best']} and "
            f"{gap['worst']}."
        )
    return _section(
        "Does it treat groups alike?",
        explained,
        _bars([(row["group"], row) for row in found["groups"]], document["top1"]),
    )


def _bars(rows: Sequence[tuple[str, Mapping[str, Any]]], average: float) -> str:
    """A bar for each name; real text, so that it can be searched for and is in any script."""
    return "".join(
        f'<div class="bar"><span class="name">{_text(name)}</span><span class="track">'
        f'<span class="share" style="width: {100 * row["accuracy"]:.2f}%"></span>'
        f'<span class="range" style="left: {100 * row["interval"][0]:.2f}%; '
        f'right: {100 - 100 * row["interval"][1]:.2f}%"></span>'
        f'<span class="all" style="left: {100 * average:.2f}%"></span></span>'
        f'<span class="count">{100 * row["accuracy"]:.1f} % '
        f'<span class="soft">of {row["n"]:,}</span></span></div>\n'
        for name, row in rows
    )


def _mistakes(mistakes: Sequence[Mistake]) -> str:
    if not mistakes:
        return ""
    cards = "".join(
        f'<figure><div class="thumbnail"><img alt="" src="{_uri(found.thumbnail, "jpeg")}"></div>'
        f"<figcaption><b>{_text(found.predicted)}</b> {100 * found.score:.1f} %<br>"
        f"<span>is</span> {_text(found.label)}"
        f'<div class="soft">{_text(found.path)}</div></figcaption></figure>\n'
        for found in mistakes
    )
    return _section(
        "Where is it surely wrong?",
        "The wrong answers with the highest probability. Some are the model's mistakes, some are "
        "the labels'.",
        f'<div class="mistakes">\n{cards}</div>\n',
    )
