"""An evaluation of images that may have several classes, as a page for people."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cvt_cli.base.text import WEIGHTED
from cvt_cli.evaluation.report import Figure, between, is_weighted, write_page
from cvt_cli.prediction import pages

_FIGURES = (
    ("micro_f1", "F1, all answers together", "at the classes' thresholds"),
    ("macro_f1", "F1, mean over classes", ""),
    ("sample_f1", "F1, mean over images", ""),
    ("exact_match", "Exactly right", "all classes of the image and no other"),
    ("macro_precision", "Precision, mean over classes", ""),
    ("macro_recall", "Recall, mean over classes", ""),
    ("roc_auc", "AUC, mean over classes", "a class against its absence"),
)


def write_report(folder: Path, document: dict[str, Any]) -> Path:
    """Write ``index.html`` into a folder, which is made if need be.

    Args:
        folder: other files in it stay.
        document: what ``cvt evaluate --json`` prints.

    Returns:
        The path of the page.

    Raises:
        CvtError: the file cannot be written.
    """
    found = document["measures"] or {}
    precision = found.get("map") or {"value": None, "interval": None}
    hardest = sorted(document["classes"], key=lambda row: row["average_precision"] or 0.0)
    return write_page(
        folder,
        "report_several.html",
        document,
        chosen="its best epoch and its thresholds",
        map={
            "value": precision["value"],
            "between": precision["interval"] and between(precision["interval"]),
        },
        figures=list(_figures(document, found)),
        classes=hardest,
        weighted=is_weighted(document),
    )


def _figures(document: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[Figure]:
    """The numbers beside the first."""
    for key, name, note in _FIGURES:
        one = found.get(key)
        if one is None or one["value"] is None:
            continue
        notes = [note] if note else []
        if found.get("weighted"):
            notes.append(WEIGHTED)
        if one["interval"] is not None:
            notes.append(between(one["interval"]))
        yield Figure(name, pages.percent(one["value"], 2), tuple(notes))
    if document["loss"] is not None:
        yield Figure("Loss", f"{document['loss']:.4f}", ("binary cross-entropy in nats",))
