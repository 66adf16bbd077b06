"""Two models' measures on the same images, and the 95 % intervals of their differences."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cvt_cli.evaluation import intervals
from cvt_cli.evaluation.count_measures import NO_ANSWER, summary
from cvt_cli.evaluation.several_measures import Cells, cells_of
from cvt_cli.prediction.answers import BETWEEN

Numbers = Callable[[NDArray[np.float64]], Mapping[str, NDArray[np.float64]]]
"""Gives numbers by name, each (R,), of how often each pair of answers was drawn (R, K)."""


class Answered(Protocol):
    """What one model says of one image."""

    @property
    def label(self) -> str:
        """The right class; of several those, joined by `BETWEEN`, empty where there is none."""

    @property
    def correct(self) -> bool:
        """Whether the answer is right."""

    @property
    def predicted(self) -> str | None:
        """What it was answered with; None if the image could not be read."""

    @property
    def several(self) -> bool:
        """Whether an image may have several classes."""


@dataclass(frozen=True)
class Difference:
    """A measure of both, and B's minus A's; None where there is none."""

    a: float | None
    b: float | None
    interval: tuple[float, float] | None  # 95 %, paired, of `difference`

    @property
    def difference(self) -> float | None:
        """B's minus A's."""
        return None if self.a is None or self.b is None else self.b - self.a

    def to_json(self) -> dict[str, Any]:
        """The documented keys."""
        interval = self.interval and list(self.interval)
        return {"a": self.a, "b": self.b, "difference": self.difference, "interval": interval}


def measure(
    pairs: Sequence[tuple[Answered, Answered]], weights: NDArray[np.float64] | None = None
) -> dict[str, Difference]:
    """What both models' answers come to beside accuracy, by the names of `cvt evaluate --json`.

    Args:
        pairs: A's and B's answer to each image.
        weights: of the images; None counts each as 1.

    Returns:
        Nothing where one model gives an image one class and the other several, or two classes
        have one name, so that the names do not say which was meant.
    """
    kinds = {one.several for pair in pairs for one in pair}
    if len(kinds) != 1:
        return {}
    if kinds == {True}:
        of_pair, a, b, classes = _of_sets(pairs)
    else:
        if any(one.predicted == one.label and not one.correct for pair in pairs for one in pair):
            return {}
        of_pair, a, b, classes = _of_classes(pairs)

    def apart(drawn: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        ours, theirs = a(drawn), b(drawn)
        return {name: theirs[name] - values for name, values in ours.items()}

    count = int(of_pair.max()) + 1
    once = np.bincount(of_pair, weights, count).astype(np.float64)[None]
    ours, theirs = a(once), b(once)
    drawn = intervals.draws(of_pair, count, weights, None, classes)
    ranges = intervals.of_draws(drawn, apart)
    return {
        name: Difference(_known(ours[name]), _known(theirs[name]), _range(ranges[name]))
        for name in ours
        if name not in ("accuracy", "exact_match")  # which the comparison begins with
    }


def _known(value: NDArray[np.float64]) -> float | None:
    return None if np.isnan(value[0]) else float(value[0])


def _range(found: tuple[float, float]) -> tuple[float, float] | None:
    return None if np.isnan(found[0]) else found


def _of_classes(
    pairs: Sequence[tuple[Answered, Answered]],
) -> tuple[NDArray[np.int64], Numbers, Numbers, int]:
    """Which pair of answers each image has (n,), each model's numbers, and how many classes."""
    place: dict[str, int] = {}
    right = np.array([place.setdefault(one.label, len(place)) for one, _ in pairs])
    said = [
        np.array(
            [
                NO_ANSWER
                if one.predicted is None
                else right[number]
                if one.correct
                else place.setdefault(one.predicted, len(place))
                for number, one in enumerate(of_model)
            ]
        )
        for of_model in zip(*pairs, strict=True)
    ]
    classes = len(place)
    cells, of_pair = np.unique(np.stack([right, *said]), axis=1, return_inverse=True)

    def numbers(answered: NDArray[np.int64]) -> Numbers:
        codes = cells[0] * (classes + 1) + np.where(answered == NO_ANSWER, classes, answered)
        return lambda drawn: summary(intervals.margins_of(codes, drawn, classes))

    return of_pair.reshape(-1), numbers(cells[1]), numbers(cells[2]), classes


def _of_sets(
    pairs: Sequence[tuple[Answered, Answered]],
) -> tuple[NDArray[np.int64], Numbers, Numbers, int]:
    """The same where an image may have several classes."""
    place: dict[str, int] = {}
    texts = [(one.label, one.predicted, other.predicted) for one, other in pairs]
    sets = [
        [
            [place.setdefault(name, len(place)) for name in text.split(BETWEEN)] if text else []
            for text in of_model
        ]
        for of_model in zip(*texts, strict=True)
    ]
    marks = np.zeros((3, len(pairs), max(1, len(place))), bool)
    for of_model, rows in zip(marks, sets, strict=True):
        for row, members in zip(of_model, rows, strict=True):
            row[members] = True
    seen = [np.array([one.predicted is not None for one in of]) for of in zip(*pairs, strict=True)]
    ours, theirs = (
        cells_of(marks[0], said, read) for said, read in zip(marks[1:], seen, strict=True)
    )
    both, of_pair = np.unique(np.stack([ours.of, theirs.of]), axis=1, return_inverse=True)

    def numbers(cells: Cells, chosen: NDArray[np.int64]) -> Numbers:
        return cells.take(chosen).numbers

    return of_pair.reshape(-1), numbers(ours, both[0]), numbers(theirs, both[1]), len(place)
