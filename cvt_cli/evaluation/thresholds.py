"""From which probability on a class is answered, where an image may have several."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cvt_cli.evaluation.several_labels import SetOutcomes
from cvt_cli.spec.labels import Labels


def best_threshold(
    scores: NDArray[Any],
    positive: NDArray[np.bool_],
    weights: NDArray[Any] | None,
    precision: float | None,
) -> float | None:
    """The threshold of a class with the best F1, or with the most recall at a precision.

    It is midway between two scores, so that rounding does not decide an answer; the highest of
    equally good ones.

    Args:
        scores: (n,) probabilities.
        positive: (n,) which images have the class.
        weights: (n,) of the images.
        precision: that is wished for; None looks for the best F1.

    Returns:
        None where no image has the class; where the precision is reached nowhere, one that is
        above all scores.
    """
    if not positive.any():
        return None
    order = np.argsort(-scores, kind="stable")
    value = scores[order].astype(np.float64)
    weight = np.ones(len(order)) if weights is None else weights[order]
    ends = np.flatnonzero(np.append(value[1:] != value[:-1], True))  # of equal scores
    right = np.cumsum(np.where(positive[order], weight, 0))[ends]
    answered = np.cumsum(weight)[ends]
    shares = right / answered
    if precision is None:
        best = int(np.argmax(2 * right / (answered + right[-1])))
    elif (reached := np.flatnonzero((shares >= precision) & (right > 0))).size:
        best = int(reached[np.argmax(right[reached])])
    else:
        return float((value[0] + 1) / 2)
    lowest = value[ends[best]]
    below = value[ends[best] + 1] if ends[best] + 1 < len(value) else 0.0
    return float((lowest + below) / 2)


class Chosen(NamedTuple):
    """Thresholds, and the classes, by their places, that have them for want of better ones."""

    thresholds: tuple[float, ...]
    unreached: tuple[int, ...]  # the precision, on all images
    absent: tuple[int, ...]  # no image has the class


def best_thresholds(
    outcomes: SetOutcomes,
    truth: NDArray[np.uint8],
    before: Sequence[float],
    weights: NDArray[np.float64] | None,
    precision: float | None,
) -> Chosen:
    """`best_threshold` of every class by the images that can be read; where none has a class, the
    one before."""
    assert outcomes.scores is not None
    rows = np.flatnonzero(outcomes.answered >= 0)
    weight = None if weights is None else weights[rows]
    found, unreached, absent = [], [], []
    for place, default in enumerate(before):
        column, positive = outcomes.scores[rows, place], truth[rows, place] > 0
        best = best_threshold(column, positive, weight, precision)
        if best is None:
            absent.append(place)
        elif precision is not None and not (positive & (column >= best)).any():
            unreached.append(place)
        found.append(default if best is None else best)
    return Chosen(tuple(found), tuple(unreached), tuple(absent))


def answered_from(outcomes: SetOutcomes, labels: Labels) -> None:
    """Answer by other thresholds than those that the images were judged by."""
    assert outcomes.scores is not None
    outcomes.said = outcomes.scores >= np.asarray(labels.thresholds)  # NaN is never
