"""How right answers are, from counts alone: pure functions that hold for any number of resamples.

All of them follow from three counts for each class, so that no confusion matrix is held: for 22,000
classes it would take 4 GB. Several labels an image have the same counts, one class at a time.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

NO_ANSWER = -1
"""In place of a class, for an image that cannot be read: it counts as wrong."""

SHARES = ("precision", "recall", "specificity", "f1")


class Margins(NamedTuple):
    """Counts of images, or sums of their weights; every array may have axes in front of (C,)."""

    right: NDArray[Any]  # (…, C) images of a class that were answered with it
    actual: NDArray[Any]  # (…, C) images of a class
    answered: NDArray[Any]  # (…, C) images that were answered with a class
    total: NDArray[Any]  # (…) images; those without an answer included


class Shares(NamedTuple):
    """Fractions (…, C) for each class; NaN where nothing is divided by nothing."""

    precision: NDArray[np.float64]  # of the answers with a class, those that are right
    recall: NDArray[np.float64]  # of the images of a class, those that are answered with it
    specificity: NDArray[np.float64]  # of the other images, those that are not answered with it
    f1: NDArray[np.float64]  # the harmonic mean of precision and recall


def margins(
    actual: NDArray[Any], answered: NDArray[Any], classes: int, weights: NDArray[Any] | None = None
) -> Margins:
    """The counts of images, or the sums of their weights.

    Args:
        actual: the right class of each image (n,).
        answered: the class that it was answered with (n,), or `NO_ANSWER`.
        classes: C.
        weights: (n,) of the images; None counts each as 1, in integers.
    """

    def count(of: NDArray[Any], where: NDArray[np.bool_]) -> NDArray[Any]:
        weight = None if weights is None else weights[where]
        return np.bincount(of[where], weight, minlength=classes)

    total = np.asarray(len(actual) if weights is None else weights.sum())
    everything, said = np.ones(len(actual), bool), answered >= 0
    return Margins(
        count(actual, actual == answered), count(actual, everything), count(answered, said), total
    )


def shares(of: Margins) -> Shares:
    """What each class's counts come to."""
    total = of.total[..., None]
    return Shares(
        divided(of.right, of.answered),
        divided(of.right, of.actual),
        divided(total - of.actual - of.answered + of.right, total - of.actual),
        divided(2 * of.right, of.actual + of.answered),
    )


def summary(of: Margins) -> dict[str, NDArray[np.float64]]:
    """The numbers for all classes together, each (…); NaN where there is none.

    Means are over the classes that have images, as scikit-learn's are with these as ``labels``; a
    class that nothing was answered with has a precision of 0 in them. Images without an answer are
    one more answered class for Matthews' coefficient and Cohen's kappa.
    """
    found, there = shares(of), of.actual > 0
    support = of.actual.sum(axis=-1)
    numbers = {"accuracy": divided(of.right.sum(axis=-1), of.total)}
    for name in SHARES:
        share = np.where(there, np.nan_to_num(getattr(found, name)), 0.0)
        numbers[f"macro_{name}"] = divided(share.sum(axis=-1), there.sum(axis=-1))
        numbers[f"weighted_{name}"] = divided((share * of.actual).sum(axis=-1), support)
    numbers["balanced_accuracy"] = numbers["macro_recall"]
    none = of.total - of.answered.sum(axis=-1)
    squared = of.total * of.total
    by_chance = (of.actual * of.answered).sum(axis=-1)
    above = of.right.sum(axis=-1) * of.total - by_chance
    spread = np.sqrt(np.maximum(squared - (of.actual**2).sum(axis=-1), 0))
    answers = np.sqrt(np.maximum(squared - (of.answered**2).sum(axis=-1) - none * none, 0))
    matthews = divided(above, spread * answers)
    # As scikit-learn: with one class alone, or one answer, it says nothing, which is 0.
    numbers["matthews"] = np.where((spread * answers == 0) & (of.total > 0), 0.0, matthews)
    numbers["kappa"] = divided(above, squared - by_chance)
    return numbers


def divided(part: Any, whole: Any) -> NDArray[np.float64]:
    """The quotient; NaN where the divisor is 0."""
    part, whole = np.broadcast_arrays(part, whole)
    result = np.full(part.shape, np.nan)
    np.divide(part, whole, out=result, where=whole != 0)
    return result
