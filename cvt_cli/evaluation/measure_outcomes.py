"""What follows from each image's outcome, with 95 % intervals, as values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvt_cli.evaluation import count_measures, intervals, ranking_measures
from cvt_cli.evaluation.coverage import RiskCoverage, risk_coverage
from cvt_cli.evaluation.metrics import Metrics
from cvt_cli.evaluation.outcomes import MOST_SCORES, Outcomes
from cvt_cli.evaluation.ranking_measures import RankedClasses
from cvt_cli.spec.labels import Labels


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval; None where there is none."""

    value: float | None
    interval: tuple[float, float] | None

    def to_json(self) -> dict[str, Any]:
        """The documented keys."""
        return {"value": self.value, "interval": self.interval and list(self.interval)}


@dataclass(frozen=True)
class ClassMeasures:
    """How well one class is told from the others; fractions, None where there is none."""

    answered: float  # images that were answered with it, or their weight
    precision: float | None
    recall: float | None
    specificity: float | None
    f1: float | None
    roc_auc: float | None
    average_precision: float | None


@dataclass(frozen=True)
class Cell:
    """Images of one class that were answered with a class; None is no answer."""

    label: int  # the model's class
    answered: int | None
    n: int


@dataclass(frozen=True)
class Measures:
    """What is measured beside the shares that `Metrics` has."""

    numbers: dict[str, Estimate]
    classes: dict[int, ClassMeasures] = field(repr=False)  # of the model's, those that the data has
    curve: RiskCoverage | None
    cells: tuple[Cell, ...] = field(repr=False)  # of the confusion matrix, those that are not 0
    weighted: bool  # the data's weights are in `numbers` and `classes`
    by_groups: int | None  # groups that were drawn again for the intervals; None draws images
    not_ranked: str | None  # why there is no area under a curve

    def to_json(self) -> dict[str, Any]:
        """The documented keys of ``measures``."""
        common = numbers_json(self.numbers, self.weighted, self.by_groups)
        return {**common, "not_ranked": self.not_ranked}

    def matrix_json(self, labels: Labels) -> dict[str, Any]:
        """The whole confusion matrix: its classes, and by their places what is not 0 in it."""
        said = {cell.answered for cell in self.cells if cell.answered is not None}
        used = sorted(said | {cell.label for cell in self.cells})
        place = {label: number for number, label in enumerate(used)}
        return {
            "classes": [labels.names[label] for label in used],
            "indices": used,
            "cells": [
                [place[cell.label], None if cell.answered is None else place[cell.answered], cell.n]
                for cell in self.cells
            ],
        }


def measure(
    outcomes: Outcomes,
    right: NDArray[np.int64],
    classes: int,
    *,
    groups: Sequence[str] = (),
    weights: NDArray[np.float64] | None = None,
    threads: int = 1,
    intervals_too: bool = True,
) -> Measures | None:
    """All that follows; None of no image.

    Args:
        outcomes: what was said of each of n images.
        right: their classes (n,).
        classes: of the model.
        groups: of each image, or none; from `intervals.FEWEST_GROUPS` on they are drawn as wholes.
        weights: of each image.
        threads: that compute at the same time.
        intervals_too: leave them out where only the numbers are wanted.
    """
    rows = outcomes.counted
    if not len(rows):
        return None
    actual, answered = right[rows], outcomes.answered[rows].astype(np.int64)
    weight = None if weights is None else weights[rows]
    drawn, count = drawn_together(groups, rows)
    of = count_measures.margins(actual, answered, classes, weight)
    found = {name: float(value) for name, value in count_measures.summary(of).items()}
    ranges = intervals.bootstrap(actual, answered, weight, drawn) if intervals_too else {}
    numbers = {name: estimate(value, ranges.get(name)) for name, value in found.items()}

    present = np.flatnonzero(of.actual)
    readable = answered != count_measures.NO_ANSWER
    ranked, why = _ranked(outcomes, rows[readable], actual[readable], present, weights, threads)
    for name in ("roc_auc", "average_precision"):
        numbers[name] = Estimate(None, None)
        if ranked is not None:
            each, by = getattr(ranked, name), getattr(ranked, f"{name}_by")
            of_groups = None if drawn is None else drawn[readable]
            numbers[name] = mean_over_classes(each, by, of_groups, intervals_too)
    return Measures(
        numbers,
        _of_classes(of, present, ranked),
        risk_coverage(
            outcomes.confidence[rows][readable], (actual == answered)[readable], len(rows)
        ),
        _cells(actual, answered, classes),
        weights is not None,
        count,
        why,
    )


def with_measures(metrics: Metrics, found: Measures | None, labels: Labels) -> Metrics:
    """The metrics with these, in their classes too."""
    if found is None:
        return metrics
    of = {labels.names[label]: one for label, one in found.classes.items()}
    if len(of) < len(found.classes):  # two classes of one name
        ordered = iter(found.classes.values())
        classes = tuple(replace(one, measures=next(ordered)) for one in metrics.classes)
    else:
        classes = tuple(replace(one, measures=of.get(one.label)) for one in metrics.classes)
    return replace(metrics, classes=classes, measures=found, labels=labels)


def numbers_json(
    numbers: Mapping[str, Estimate], weighted: bool, by_groups: int | None
) -> dict[str, Any]:
    """The keys of ``measures`` that all kinds of labels have."""
    return {
        **{name: one.to_json() for name, one in numbers.items()},
        "weighted": weighted,
        "resamples": intervals.RESAMPLES,
        "resampled": "images" if by_groups is None else "groups",
    }


def drawn_together(
    groups: Sequence[str], rows: NDArray[np.int64]
) -> tuple[NDArray[np.int64] | None, int | None]:
    """Each image's group as a number, and how many there are; None where images are drawn one by
    one, for there are too few groups."""
    names = [groups[row] for row in rows] if len(groups) else []
    known = {name: number for number, name in enumerate(dict.fromkeys(names))}
    if len(known) < intervals.FEWEST_GROUPS:
        return None, None
    return np.array([known[name] for name in names], np.int64), len(known)


def mean_over_classes(
    each: NDArray[np.float64],
    by: NDArray[np.float64],
    groups: NDArray[np.int64] | None,
    interval_too: bool,
) -> Estimate:
    """The mean of what ranking says of each class, with its interval; see `intervals.by_influence`.

    Args:
        each: (classes,), NaN where there is none.
        by: what each image moves the mean by.
        groups: of the images, where they are drawn together.
        interval_too: leave it out where only the number is wanted.
    """
    if not np.isfinite(each).any():
        return Estimate(None, None)
    value = float(np.nanmean(each))
    return Estimate(value, intervals.by_influence(value, by, groups) if interval_too else None)


def estimate(value: float, interval: tuple[float, float] | None) -> Estimate:
    """A number with its interval, where they are finite."""
    if not np.isfinite(value):
        return Estimate(None, None)
    return Estimate(value, interval if interval and np.isfinite(interval).all() else None)


def _ranked(
    outcomes: Outcomes,
    rows: NDArray[np.int64],
    actual: NDArray[np.int64],
    present: NDArray[np.int64],
    weights: NDArray[np.float64] | None,
    threads: int,
) -> tuple[RankedClasses | None, str | None]:
    """How well classes are ranked, or why that is not known."""
    if outcomes.scores is None:
        return None, (
            f"the probabilities of all classes were not kept: more than {MOST_SCORES:,} of them "
            "are with --scores, and those that a resumed file is of are not in it"
        )
    if not len(rows):
        return None, "no image can be read"
    weight = None if weights is None else weights[rows]
    scores = outcomes.scores_of(rows)
    found = ranking_measures.ranked_classes(scores, actual, present, weight, threads)
    if not np.isfinite(found.roc_auc).any():
        return found, "all images are of one class"
    return found, None


def _of_classes(
    of: count_measures.Margins, present: NDArray[np.int64], ranked: RankedClasses | None
) -> dict[int, ClassMeasures]:
    found = count_measures.shares(of)

    def known(value: Any) -> float | None:
        return float(value) if np.isfinite(value) else None

    return {
        int(label): ClassMeasures(
            of.answered[label].item(),
            **{name: known(getattr(found, name)[label]) for name in count_measures.SHARES},
            roc_auc=None if ranked is None else known(ranked.roc_auc[place]),
            average_precision=None if ranked is None else known(ranked.average_precision[place]),
        )
        for place, label in enumerate(present)
    }


def _cells(
    actual: NDArray[np.int64], answered: NDArray[np.int64], classes: int
) -> tuple[Cell, ...]:
    pairs, counts = np.unique(actual * (classes + 1) + answered + 1, return_counts=True)
    labels, said = np.divmod(pairs, classes + 1)
    return tuple(
        Cell(label, answer - 1 if answer else None, n)
        for label, answer, n in zip(labels.tolist(), said.tolist(), counts.tolist(), strict=True)
    )
