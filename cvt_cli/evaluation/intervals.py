"""95 % intervals: bootstrap over images or whole groups, from each image's part, of a gap."""

from collections.abc import Callable, Iterable, Iterator
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from cvt_cli.evaluation.count_measures import Margins, summary
from cvt_cli.evaluation.metrics import wilson

RESAMPLES = 1000
"""How often images, or groups, are drawn again."""

FEWEST_GROUPS = 20
"""From here up whole groups are drawn; of fewer, a bootstrap says too little."""

_VALUES_AT_ONCE = 1 << 20

Interval = tuple[float, float]


def bootstrap(
    actual: NDArray[np.int64],
    answered: NDArray[np.int64],
    weights: NDArray[np.float64] | None = None,
    groups: NDArray[np.int64] | None = None,
) -> dict[str, Interval]:
    """Percentile intervals of what `measures.summary` gives. The same input gives the same ones.

    Args:
        actual: right classes (n,).
        answered: classes answered with (n,), or `NO_ANSWER`.
        weights: of the images (n,).
        groups: of each image (n,), counted from 0, to be drawn as wholes; None draws images.
    """
    # Only the classes that occur, so that 22,000 take no more than those.
    known, places = np.unique(
        np.concatenate([actual, answered[answered >= 0]]), return_inverse=True
    )
    right = places[: len(actual)]
    said = np.full(len(actual), len(known))
    said[answered >= 0] = places[len(actual) :]
    cells, of_cell = np.unique(right * (len(known) + 1) + said, return_inverse=True)
    parts = draws(of_cell, len(cells), weights, groups, len(known))
    return of_draws(parts, lambda drawn: summary(margins_of(cells, drawn, len(known))))


def of_draws(
    parts: Iterable[NDArray[np.float64]],
    numbers: Callable[[NDArray[np.float64]], dict[str, NDArray[np.float64]]],
) -> dict[str, Interval]:
    """Percentile intervals of numbers that follow from draws.

    Args:
        parts: of `draws`.
        numbers: gives them by name, each (R,), of what each cell has (R, cells).
    """
    found: dict[str, list[NDArray[np.float64]]] = {}
    for drawn in parts:
        for name, values in numbers(drawn).items():
            found.setdefault(name, []).append(values)
    return {name: _percentiles(np.concatenate(values)) for name, values in found.items()}


def draws(
    of_cell: NDArray[np.int64],
    cells: int,
    weights: NDArray[np.float64] | None,
    groups: NDArray[np.int64] | None,
    classes: int,
) -> Iterator[NDArray[np.float64]]:
    """How many images (or what weight) each cell has when they are drawn again: (R, cells) parts.

    Args:
        of_cell: the cell (right class, answered class) of each image (n,).
        cells: how many there are.
        weights: as of `bootstrap`, like the next.
        groups: see there.
        classes: how many there are, which decides how large a part is.
    """
    generator, n = np.random.default_rng(0), len(of_cell)
    at_once = max(1, _VALUES_AT_ONCE // max(cells, classes, 1))
    counts = np.bincount(of_cell, minlength=cells)
    count = 0 if groups is None else int(groups.max()) + 1
    for first in range(0, RESAMPLES, at_once):
        rows = min(at_once, RESAMPLES - first)
        if weights is None and groups is None:
            # Drawing n of n images again is a draw of each cell's count.
            yield generator.multinomial(n, counts / n, size=rows).astype(np.float64)
            continue
        drawn = np.empty((rows, cells))
        for row in drawn:
            if groups is None:
                times = np.bincount(generator.integers(0, n, n), minlength=n)
            else:
                times = np.bincount(generator.integers(0, count, count), minlength=count)[groups]
            row[:] = np.bincount(of_cell, times if weights is None else times * weights, cells)
        yield drawn


def margins_of(cells: NDArray[np.int64], drawn: NDArray[np.float64], classes: int) -> Margins:
    """The counts of each class from those of the cells (R, cells), whose answer may be none."""
    actual, answered = np.divmod(cells, classes + 1)
    shape = (len(drawn), classes)
    right, of_class, said = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    hit, answer = actual == answered, answered < classes
    for row, values in enumerate(drawn):
        right[row] = np.bincount(actual[hit], values[hit], classes)
        of_class[row] = np.bincount(actual, values, classes)
        said[row] = np.bincount(answered[answer], values[answer], classes)
    return Margins(right, of_class, said, drawn.sum(axis=1))


def _percentiles(values: NDArray[np.float64]) -> Interval:
    finite = values[np.isfinite(values)]
    if not len(finite):
        return float("nan"), float("nan")
    low, high = np.percentile(finite, (2.5, 97.5))
    return float(low), float(high)


def by_influence(
    value: float, by: NDArray[np.float64], groups: NDArray[np.int64] | None = None
) -> Interval:
    """The interval that a bootstrap tends to, from how a share changes with each image's weight.

    Args:
        value: the share, 0 … 1.
        by: (n,) see `ranking.Ranked`.
        groups: as of `bootstrap`.
    """
    parts = by if groups is None else np.bincount(groups, by)
    half = NormalDist().inv_cdf(0.975) * float(np.sqrt((parts**2).sum()))
    return max(0.0, value - half), min(1.0, value + half)


def gap_interval(low: tuple[int, int], high: tuple[int, int], groups: int) -> Interval | None:
    """95 % interval of the largest difference of two shares among several (Newcombe 1998).

    It is as wide as all pairs of groups together need (Bonferroni), since the largest gap is picked
    after looking.

    Args:
        low: how many are right, of how many, in the worst group.
        high: likewise in the best.
        groups: how many there are.
    """
    if groups < 2:
        return None
    z = NormalDist().inv_cdf(1 - 0.025 / (groups * (groups - 1) / 2))
    (a, of_a), (b, of_b) = high, low
    (a_low, a_high), (b_low, b_high) = wilson(a, of_a, z), wilson(b, of_b, z)
    best, worst = a / of_a, b / of_b
    down = ((best - a_low) ** 2 + (b_high - worst) ** 2) ** 0.5
    up = ((a_high - best) ** 2 + (worst - b_low) ** 2) ** 0.5
    return best - worst - down, best - worst + up
