"""An evaluation as a page for people: one HTML file that needs nothing else."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvt_cli.base import files
from cvt_cli.base.text import WEIGHTED
from cvt_cli.datasets.labelled import LabelledImages
from cvt_cli.evaluation import mistakes, report_charts
from cvt_cli.evaluation.mistakes import Mistake
from cvt_cli.evaluation.report_charts import ClassScore
from cvt_cli.evaluation.run_models import Subject
from cvt_cli.explanation import drawing
from cvt_cli.prediction import pages, shareable
from cvt_cli.spec.published import MEASURED_BY

_EXTREMES = 15
"""Hardest and easiest classes that are shown where there are too many for all."""

_MOST_CONFUSED = 10
"""Pairs of classes that are shown."""

_FEW = 12
"""Classes up to which the confusion matrix has large cells, and room beside it."""

_CALIBRATED = 0.02
"""How far mean probability and accuracy may be apart to be called the same."""


def check(folder: Path) -> None:
    """Make sure that a report can be written there, before the work that it shows.

    Raises:
        CvtError: the folder cannot be written to.
    """
    files.refuse_unwritable(folder / "index.html")


def write_report(
    folder: Path,
    document: dict[str, Any],
    matrix: NDArray[np.int64],
    names: Sequence[str],
    wrong: Sequence[Mistake],
    num_classes: int | None = None,
) -> Path:
    """Write ``index.html`` into a folder, which is made if need be.

    Args:
        folder: other files in it stay.
        document: what ``cvt evaluate --json`` prints.
        matrix: images (C, C), row = true class, column = predicted class; answers that are none
            of these classes are in no column.
        names: of the C classes, in the order of the document's ``classes``.
        wrong: the surest wrong answers first.
        num_classes: of the model, which may know more than the data has; by default C.

    Returns:
        The path of the page.

    Raises:
        CvtError: the file cannot be written.
    """
    weighted = is_weighted(document)
    scores = report_charts.class_scores(document["classes"], matrix, weighted)
    return write_page(
        folder,
        "report.html",
        document,
        chosen="its best epoch",
        top1=_top1(document),
        figures=list(_figures(document, scores, num_classes or len(names))),
        average=100 * document["top1"],
        confusions=_confusions(document, matrix, names),
        classes={**_classes(scores), "weighted": weighted},
        calibration=_calibration(document),
        alone=report_charts.alone(document.get("risk_coverage")),
        mistakes=wrong,
        ramp=drawing.ramp(True) if any(one.overlay for one in wrong) else None,
    )


def is_weighted(document: Mapping[str, Any]) -> bool:
    """Whether the data's weights are in what was measured of the classes."""
    return bool((document.get("measures") or {}).get("weighted"))


def write_page(
    folder: Path, template: str, document: Mapping[str, Any], chosen: str, **parts: Any
) -> Path:
    """Write ``index.html`` with what every page of an evaluation has.

    Args:
        folder: as of `write_report`.
        template: its name.
        document: what ``cvt evaluate --json`` prints.
        chosen: by the run, on the images that it held out.
        parts: what this kind of page has besides.

    Returns:
        The path of the page.
    """
    page = pages.template(template).render(
        title=f"{shareable.title(document['model'])} on {shareable.title(document['data'])}",
        subtitle=f"{pages.images(document['n'])} in {pages.classes(len(document['classes']))}",
        day=f"{pages.now():%Y-%m-%d}",
        warnings=list(_warnings(document)),
        groups=_groups(document),
        about=pages.about(
            document,
            data=f"{shareable.shown(document['data'])}, {pages.images(document['n'])}",
            part={
                "val": f"the images that the run held out to choose {chosen}",
                "test": "the data's own test images",
            }.get(document.get("split") or ""),
            speed=None
            if document["images_per_sec"] is None
            else f"{document['images_per_sec']:,.0f} images/s, decoding included",
        ),
        **parts,
    )
    path = folder / "index.html"
    files.write_text(path, page)
    return path


def report_on(
    folder: Path,
    document: dict[str, Any],
    one: Subject,
    data: LabelledImages,
    exif: bool,
    overlays: Mapping[str, bytes] | None = None,
) -> Path:
    """Write the page of a model that was evaluated, with its surest mistakes.

    Args:
        folder: as of `write_report`.
        document: as of `write_report`.
        one: the model, with what was counted.
        data: the images.
        exif: whether they were turned upright.
        overlays: of `mistakes.explain`, if that was asked for.

    Returns:
        The path of the page.
    """
    found = mistakes.gather(folder, one, data, exif, overlays or {})
    present, matrix = one.result.matrix()
    names = one.labels.names
    labels = [names[label] for label in present]
    return write_report(folder, document, matrix, labels, found, len(names))


# --- the headline numbers


@dataclass(frozen=True)
class _Warning:
    """A sentence, and the option that it ends with."""

    text: str
    option: str = ""


def _warnings(document: Mapping[str, Any]) -> Iterator[_Warning]:
    """What makes the numbers mean less than they seem to."""
    n = document["n"]
    if trained := document.get("n_trained_on"):
        verb = "was" if trained == 1 else "were"
        said = f"{trained:,} of these {pages.images(n)} {verb} used in training"
        said += ", so the accuracy is too high."
        if document.get("split") == "val":  # what the run started from was trained on them
            yield _Warning(said)
        else:
            yield _Warning(f"{said} To measure on the held-out images:", "--split val")
    elif (chosen := document.get("n_chosen_on")) and document.get("split") != "val":
        yield _Warning(
            f"By {chosen:,} of these {pages.images(n)} the run chose its best epoch, so expect a "
            "little less on new ones."
        )
    if failed := document["n_failed"]:
        what = f"{pages.images(failed)} could not be read and "
        if document["n_skipped"]:
            yield _Warning(what + ("is left out." if failed == 1 else "are left out."))
        else:
            yield _Warning(what + ("counts as wrong." if failed == 1 else "count as wrong."))


@dataclass(frozen=True)
class Figure:
    """A number with its name."""

    name: str
    value: str
    notes: tuple[str, ...] = ()


def _top1(document: Mapping[str, Any]) -> dict[str, Any]:
    """The number that matters most."""
    low, high = document["top1_interval"]
    return {
        "value": document["top1"],
        "correct": document["top1_correct"],
        "images": pages.images(document["n"]),
        "low": 100 * low,
        "high": 100 * high,
    }


def _figures(
    document: Mapping[str, Any], scores: Sequence[ClassScore], num_classes: int
) -> Iterator[Figure]:
    """The others."""
    n = document["n"]
    for key in document:  # top5, or another k
        if (found := re.fullmatch(r"top(\d+)", key)) and 1 < int(found[1]) < num_classes:
            correct = document[f"{key}_correct"]
            yield Figure(
                f"Top-{found[1]} accuracy",
                pages.percent(document[key], 2),
                (f"{correct:,} of {pages.images(n)}",),
            )
    if subset := document.get("present_classes"):
        yield Figure(
            f"Top-1 among the {pages.classes(subset['n'])} of the data",
            pages.percent(subset["top1"], 2),
            (f"{subset['top1_correct']:,} of {pages.images(n)}", between(subset["top1_interval"])),
        )
    if real := document.get("real"):
        yield Figure(
            "ReaL accuracy",
            pages.percent(real["accuracy"], 2),
            (
                f"{real['correct']:,} of the {pages.images(real['n'])} with ReaL labels",
                between(real["interval"]),
            ),
        )
    if record := document.get("record"):
        yield Figure(
            "Published top-1",
            pages.percent(record["paper_top1"], 2),
            (f"measured by {MEASURED_BY}: {pages.percent(record['top1'], 2)}", record["verdict"]),
        )
    yield from _of_all_classes(document.get("measures") or {})
    if scores and not document.get("measures"):
        yield Figure(
            "Macro F1", pages.percent(float(np.mean([row.f1 or 0.0 for row in scores])), 2)
        )
    if calibration := document.get("calibration"):
        yield Figure("Calibration error", pages.percent(calibration["ece"], 2))
    if document["loss"] is not None:
        yield Figure("Loss", f"{document['loss']:.4f}", ("cross-entropy in nats",))


_OF_ALL_CLASSES = (
    ("balanced_accuracy", "Balanced accuracy", "mean recall of the classes"),
    ("macro_f1", "Macro F1", "mean of the classes"),
    ("roc_auc", "AUC", "one class against the rest, mean"),
    ("average_precision", "Average precision", "mean of the classes"),
    ("matthews", "Matthews' correlation", "0 is chance, 1 is perfect"),
    ("kappa", "Cohen's kappa", "agreement beyond chance"),
)


def _of_all_classes(found: Mapping[str, Any]) -> Iterator[Figure]:
    """What is measured over the classes together."""
    for key, name, note in _OF_ALL_CLASSES:
        one = found.get(key)
        if one is None or one["value"] is None:
            continue
        share = key in ("balanced_accuracy", "macro_f1")
        value = pages.percent(one["value"], 2) if share else f"{one['value']:.4f}"
        notes = [note] if note else []
        if found.get("weighted"):
            notes.append(WEIGHTED)
        if one["interval"] is not None:
            low, high = one["interval"]
            notes.append(
                between((low, high)) if share else f"95 % interval {low:.4f} to {high:.4f}"
            )
        yield Figure(name, value, tuple(notes))


def between(interval: Sequence[float]) -> str:
    """An interval of a share, in words."""
    low, high = interval
    return f"95 % interval {100 * low:.2f} to {100 * high:.2f} %"


# --- the sections


def _confusions(
    document: Mapping[str, Any], matrix: NDArray[np.int64], names: Sequence[str]
) -> dict[str, Any]:
    """The matrix and the commonest confusions."""
    totals = np.array([row["n"] for row in document["classes"]], np.int64)
    count = len(names)
    named = count <= report_charts.READABLE_CLASSES
    together = report_charts.classes_per_cell(count)
    rows, light, dark = None, None, None
    if named and count:
        rows = report_charts.matrix_rows(matrix, totals, names)
    elif count:
        light, dark = (report_charts.heat_map(matrix, totals, t) for t in ("light", "dark"))
    answered = document["n"] - (0 if document["n_skipped"] else document["n_failed"])
    of_class = {row["label"]: row["n"] for row in document["classes"]}
    pairs = [
        {**row, "share": row["n"] / of_class[row["label"]]}
        for row in document["confusions"][:_MOST_CONFUSED]
        if row["n"] > 1
    ]
    return {
        "rows": rows,
        "light": light,
        "dark": dark,
        "count": count,
        "together": together,
        "outside": answered - int(matrix.sum()),
        "right": int(np.trace(matrix)),
        "few": count <= _FEW,
        "beside": not named or count <= _FEW,
        "pairs": pairs,
        "any": bool(document["confusions"]),
    }


def _classes(scores: Sequence[ClassScore]) -> dict[str, Any]:
    """The classes, the hardest first, and their averages."""
    ordered = sorted(scores, key=lambda row: row.recall)
    return {
        "all": ordered,
        "few": len(ordered) <= report_charts.READABLE_CLASSES,
        "hardest": ordered[:_EXTREMES],
        "easiest": ordered[::-1][:_EXTREMES],
        "recall": float(np.mean([row.recall for row in scores])) if scores else None,
        "precision": float(np.mean([row.precision or 0.0 for row in scores])) if scores else None,
        "f1": float(np.mean([row.f1 or 0.0 for row in scores])) if scores else None,
    }


def _calibration(document: Mapping[str, Any]) -> dict[str, Any] | None:
    """How probabilities and rates compare."""
    found = document["calibration"]
    if not found:
        return None
    columns = report_charts.columns(found["bins"])
    n = sum(column.n for column in columns)
    confidence = sum(column.n * column.confidence for column in columns) / n / 100
    accuracy = sum(column.n * column.accuracy for column in columns) / n / 100
    apart = confidence - accuracy
    if abs(apart) >= _CALIBRATED:
        verdict = f"{'over' if apart > 0 else 'under'}confident by {100 * abs(apart):.1f} points"
    elif found["ece"] < 2 * _CALIBRATED:
        verdict = "well calibrated"
    else:
        verdict = "right on average, but not at each probability"
    numbers = [
        ("Expected calibration error", pages.percent(found["ece"], 2)),
        ("Brier score", f"{found['brier']:.4f}"),
        ("Loss", f"{found['nll']:.4f} nats"),
    ]
    if (temperature := found["temperature"]) is not None:
        beyond = ""
        if found["temperature_at_bound"]:
            beyond = " or more" if temperature > 1 else " or less"
        numbers += [
            ("Best temperature", f"{temperature:.3f}{beyond}"),
            ("Loss at that temperature", f"{found['nll_at_temperature']:.4f} nats"),
        ]
    return {
        "numbers": numbers,
        "confidence": confidence,
        "accuracy": accuracy,
        "verdict": verdict,
        "columns": columns,
        "fullest": max(column.n for column in columns),
        "has_temperature": temperature is not None,
    }


def _groups(document: Mapping[str, Any]) -> dict[str, Any] | None:
    """The accuracy of each group, as it is in the document."""
    found = document["groups"]
    if not found:
        return None
    gap = found["largest_gap"]
    interval = gap.get("interval")
    return {
        "rows": found["groups"],
        "gap": gap,
        "between": interval and between(interval).removesuffix(" %"),
        "may_be_chance": interval is not None and interval[0] <= 0,
    }
