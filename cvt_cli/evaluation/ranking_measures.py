"""How well scores put the images of a class before all others; pure functions of arrays."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_CLASSES_AT_ONCE = 16


class Ranked(NamedTuple):
    """How well one class is told from the others.

    The last two say how the numbers change with the weight of each image (n,). Their squares sum up
    to the variance that a bootstrap over the images tends to: for the area it is DeLong's.
    """

    roc_auc: float
    average_precision: float
    roc_auc_by: NDArray[np.float64]
    average_precision_by: NDArray[np.float64]


class RankedClasses(NamedTuple):
    """The same for several classes, one against the rest; NaN where a class has all or none."""

    roc_auc: NDArray[np.float64]  # (C,)
    average_precision: NDArray[np.float64]  # (C,)
    roc_auc_by: NDArray[np.float64]  # (n,) of the mean over the classes that have a number
    average_precision_by: NDArray[np.float64]  # (n,)


def ranked(
    scores: NDArray[Any], positive: NDArray[np.bool_], weights: NDArray[Any] | None = None
) -> Ranked | None:
    """The area under the ROC curve and the average precision; equal scores count half, as one step.

    Args:
        scores: (n,) higher for what is likelier of the class.
        positive: (n,) what is of the class.
        weights: (n,) above 0; None counts each image as 1, in integers.

    Returns:
        The numbers; None if all or none are of the class.
    """
    count = int(positive.sum())
    if count in (0, len(positive)):
        return None
    order = np.argsort(scores)
    value, of_class = scores[order], positive[order]
    weight = np.ones(len(order), np.int64) if weights is None else weights[order]
    ends = np.flatnonzero(np.append(value[1:] != value[:-1], True)) + 1  # of equal scores
    step = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))

    def upto(of: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """The sum below each image's score, and that up to it."""
        sums = np.append(np.zeros(1, of.dtype), np.cumsum(of))[np.append(0, ends)]
        return sums[step], sums[step + 1]

    def from_(of: NDArray[Any]) -> NDArray[Any]:
        """The sum from each image's score upward; added up from there, so that light images above
        heavy ones are not lost."""
        sums = np.cumsum(of[::-1])[::-1]
        return np.asarray(sums[np.append(0, ends[:-1])][step])

    ours = np.where(of_class, weight, 0)
    ours_below, ours_upto = upto(ours)
    all_below, all_upto = upto(weight)
    total = ours.sum()
    rest = weight.sum() - total
    # Twice what each image is better than (of the class), or worse than (of the others).
    better = (all_below - ours_below) + (all_upto - ours_upto)
    worse = (total - ours_below) + (total - ours_upto)
    pairs = (ours * better).sum()  # Twice those that are in order: integers, so exact.
    auc = float(pairs / (2 * total * rest))
    answered = from_(weight)
    precision = from_(ours) / answered
    mean = float((ours * precision).sum() / total)

    by_auc, by_mean = np.empty(len(order)), np.empty(len(order))
    by_auc[order] = weight * np.where(
        of_class, (better / (2 * rest) - auc) / total, (worse / (2 * total) - auc) / rest
    )
    each = ours / answered
    gained, lost = upto(each)[1], upto(each * precision)[1]
    own = np.where(of_class, precision - mean + gained, 0.0)
    by_mean[order] = weight * (own - lost) / total
    return Ranked(auc, mean, by_auc, by_mean)


def ranked_classes(
    scores: NDArray[np.float32],
    positive: NDArray[Any],
    classes: NDArray[np.int64],
    weights: NDArray[Any] | None = None,
    threads: int = 1,
) -> RankedClasses:
    """Each class against the rest.

    Args:
        scores: (n, all classes).
        positive: the right class of each image (n,); or, with several, (n, all classes) of 0 and 1.
        classes: (C,) those to look at.
        weights: (n,) of the images.
        threads: that sort at the same time.
    """
    n = len(scores)

    def of_some(some: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any]]:
        numbers, by = np.full((len(some), 2), np.nan), np.zeros((2, n))
        columns = np.ascontiguousarray(scores[:, some].T)
        for place, column in enumerate(some):
            right = positive == column if positive.ndim == 1 else positive[:, column] > 0
            if (found := ranked(columns[place], right, weights)) is not None:
                numbers[place] = found.roc_auc, found.average_precision
                by[0] += found.roc_auc_by
                by[1] += found.average_precision_by
        return numbers, by

    parts = [classes[i : i + _CLASSES_AT_ONCE] for i in range(0, len(classes), _CLASSES_AT_ONCE)]
    numbers, by = np.empty((0, 2)), np.zeros((2, n))
    with ThreadPoolExecutor(max(1, threads)) as pool:
        for some, by_some in pool.map(of_some, parts):  # in order, so that sums are the same
            numbers, by = np.concatenate([numbers, some]), by + by_some
    by /= max(1, int(np.isfinite(numbers[:, 0]).sum()))
    return RankedClasses(numbers[:, 0], numbers[:, 1], by[0], by[1])
