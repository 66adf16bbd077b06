"""What a model says of an image: as values, as JSON, and as a row of a table."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvt_cli.base import text

NONE = "(none)"
"""What is shown in place of a class, for an image that has none of several; a class may be called
none."""

BETWEEN = "|"
"""Between the classes of an image that may have several, in one text."""

UNKNOWN = "unknown"
"""The answer where no class is as likely as the threshold asks; see `apart`."""


def apart(word: str, names: Collection[str]) -> str:
    """A word that stands in place of a class, in parentheses where a class is called so."""
    while word in names:
        word = f"({word})"
    return word


@dataclass(frozen=True)
class Prediction:
    """One class and how likely it is."""

    index: int  # of the class among the model's
    wnid: str | None  # WordNet identifier, for ImageNet's classes
    label: str
    score: float  # probability, 0 … 1, of all the model's classes


class Predictions(list[Prediction]):
    """The predictions of one image, the likeliest first; a notebook shows them as a table."""

    def _repr_html_(self) -> str:
        from cvt_cli.prediction import pages

        return pages.template("predictions.html").render(predictions=list(self))


@dataclass(frozen=True)
class Answer:
    """What the model says of one image, or why it cannot."""

    path: str
    predictions: tuple[Prediction, ...] = ()  # the likeliest first
    error: str | None = None
    answer: str | None = None  # with a threshold: the likeliest class, or UNKNOWN, `apart` from all
    several: bool = False  # it may have any number of classes, and all of them are there
    features: NDArray[np.float32] | None = None  # (C,), where they were asked for
    thumbnail: bytes | None = None  # a small JPEG, where it was asked for

    def to_json(self) -> dict[str, Any]:
        """The documented keys: ``predictions``, or ``error`` in its place."""
        if self.error is not None:
            return {"path": self.path, "error": self.error}
        given = {} if self.answer is None else {"answer": self.answer}
        return {"path": self.path, **given, "predictions": [vars(p) for p in self.predictions]}


def flat_row(answer: Answer, top_k: int, threshold: bool, several: bool = False) -> dict[str, Any]:
    """One row of a table with the same columns for every image; what there is not is None.

    Args:
        answer: of the image.
        top_k: classes that have columns: ``label_1``, ``score_1``, ``index_1``, ``wnid_1``, ….
        threshold: whether there is a column ``answer``.
        several: the model's classes do not exclude each other: ``labels`` and ``scores`` take the
            place of these columns.
    """
    row: dict[str, Any] = {"path": text.as_utf8(answer.path), "error": answer.error}
    if several:
        empty = {"labels": None, "scores": None}
        return row | (empty if answer.error else several_columns(answer.predictions))
    if threshold:
        row["answer"] = answer.answer
    return {**row, **prediction_columns(answer.predictions, top_k)}


def several_columns(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """``labels`` and ``scores`` of all classes that an image has, with `BETWEEN` in the middle.

    No class that was trained on here has it in its name.
    """
    return {
        "labels": BETWEEN.join(one.label for one in predictions),
        "scores": BETWEEN.join(repr(one.score) for one in predictions),
    }


def prediction_columns(predictions: Sequence[Prediction], top_k: int) -> dict[str, Any]:
    """``label_1``, ``score_1``, ``index_1``, ``wnid_1``, ``label_2``, …, None beyond the last."""
    row: dict[str, Any] = {}
    for k in range(top_k):
        found = predictions[k] if k < len(predictions) else None
        row[f"label_{k + 1}"] = found and found.label
        row[f"score_{k + 1}"] = found and found.score
        row[f"index_{k + 1}"] = found and found.index
        row[f"wnid_{k + 1}"] = found and found.wnid
    return row
