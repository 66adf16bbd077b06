"""Risk against coverage: which threshold answers what share of the images, at what error."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvt_cli.base import text
from cvt_cli.evaluation.metrics import wilson

TARGETS = (0.01, 0.02, 0.05, 0.1)
"""Shares of wrong answers for which a threshold is told."""

_POINTS = 100


@dataclass(frozen=True)
class Point:
    """What comes of answering only where the likeliest class is at least so likely."""

    threshold: float  # probability, 0 … 1
    coverage: float  # share of the images that are answered; those that cannot be read are not
    risk: float  # share of the answers that are wrong
    n: int  # answers
    wrong: int

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the risk."""
        return wilson(self.wrong, self.n)


@dataclass(frozen=True)
class RiskCoverage:
    """The curve, thinned to a point for each hundredth of the images."""

    area: float  # mean risk over the images that have an answer, the surest first
    points: tuple[Point, ...] = field(repr=False)  # from the surest answers alone to all
    # The most answers at each of `TARGETS`, of thresholds with as few digits as are printed.
    at_risk: tuple[tuple[float, Point | None], ...]

    def to_json(self) -> dict[str, Any]:
        """The documented keys."""
        return {
            "area": self.area,
            "points": [asdict(one) for one in self.points],
            "at_risk": [
                {
                    "at_most": most,
                    **(
                        dict.fromkeys(("threshold", "coverage", "risk", "n", "wrong", "interval"))
                        if one is None
                        else {**asdict(one), "interval": list(one.interval)}
                    ),
                }
                for most, one in self.at_risk
            ],
        }


def risk_coverage(
    confidence: NDArray[Any],
    right: NDArray[np.bool_],
    total: int,
    targets: Sequence[float] = TARGETS,
) -> RiskCoverage | None:
    """The curve of the images that have an answer (n,); None if none has.

    Args:
        confidence: probability of the likeliest class; equal ones are answered together.
        right: whether it is right.
        total: images, those without an answer included.
        targets: see `RiskCoverage.at_risk`.
    """
    if not len(confidence):
        return None
    order = np.argsort(-confidence, kind="stable")
    value = confidence[order]
    wrong = np.cumsum(~right[order])
    ends = np.flatnonzero(np.append(value[1:] != value[:-1], True))  # of equal ones
    answers, errors = ends + 1, wrong[ends]
    risk = errors / answers
    area = float((risk * np.diff(answers, prepend=0)).sum() / len(value))

    def point(place: int) -> Point:
        n, bad = int(answers[place]), int(errors[place])
        return Point(float(value[ends[place]]), n / total, bad / n, n, bad)

    wanted = np.arange(1, _POINTS + 1) * len(value) / _POINTS
    places = np.unique(np.minimum(np.searchsorted(answers, wanted), len(answers) - 1))
    at_risk = []
    shown = _at_thresholds_as_printed(value, wrong, total)
    for most in targets:
        low_enough = [one for one in shown if one.risk <= most]
        at_risk.append((most, low_enough[-1] if low_enough else None))
    return RiskCoverage(area, tuple(map(point, places.tolist())), tuple(at_risk))


def _at_thresholds_as_printed(value: NDArray[Any], wrong: NDArray[Any], total: int) -> list[Point]:
    """What comes of the thresholds that a person reads and gives back, with ever more answers.

    Args:
        value: confidences (n,), the surest first.
        wrong: answers that are wrong (n,), of the first so many.
        total: images.
    """
    found = set()
    for one in np.unique(value).tolist():
        printed = text.threshold(one)
        digits = len(printed) - len("0.")
        found.add(float(printed))  # above it, and may leave it out; the one before lets it in
        found.add(round(float(printed) - 10**-digits, digits))
    thresholds = sorted(found - {0.0}, reverse=True)
    answers = len(value) - np.searchsorted(value[::-1], thresholds, side="left")
    points: list[Point] = []
    for least, n in zip(thresholds, answers.tolist(), strict=True):
        if n > (points[-1].n if points else 0):  # a lower one that lets no more in says less
            bad = int(wrong[n - 1])
            points.append(Point(least, n / total, bad / n, n, bad))
    return points
