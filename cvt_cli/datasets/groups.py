"""Groups of images that belong together, such as a patient's or a video's, and how they are parted.

What is learnt of one image of a group is known of the others, so that no group may lie on both
sides of a split.
"""

import re
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvt_cli.base.errors import DataError, UsageError
from cvt_cli.base.package import installing
from cvt_cli.base.text import counted
from cvt_cli.datasets import several_labels

_MOST_FOLDS = 20
"""Folds of which some are set aside together, where a fraction is none of one in so many."""


def members_of_each(labels: NDArray[np.int64], classes: int) -> list[NDArray[np.int64]]:
    """The positions of the images of each class, in order."""
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.cumsum(np.bincount(labels, minlength=classes))[:-1])


def from_paths(
    names: Sequence[str], pattern: str
) -> tuple[NDArray[np.int64], tuple[str, ...], list[tuple[str, str]]]:
    """The group of each image by its path.

    Args:
        names: paths of the images.
        pattern: a regular expression that is looked for in each path; its first group, or all that
            it matches where it has none, is the image's.

    Returns:
        The index (n,) into the groups' names, these names, and the first path of some groups.

    Raises:
        UsageError: it is no regular expression.
        DataError: a path does not match.
    """
    try:
        search = re.compile(pattern).search
    except re.error as error:
        raise UsageError(
            f"--group-by `{pattern}` is no regular expression: {error}",
            hint="such as --group-by '(video\\d+)_', whose part in parentheses names the group",
        ) from None
    index: dict[str, int] = {}
    first: list[tuple[str, str]] = []
    found = np.empty(len(names), np.int64)
    missing: list[str] = []
    for place, name in enumerate(names):
        match = search(name)
        group = match and (match[1] if match.re.groups else match[0])
        if not group:
            missing.append(name)
            continue
        if group not in index and len(index) < 3:
            first.append((name, group))
        found[place] = index.setdefault(group, len(index))
    if missing:
        raise DataError(
            f"--group-by `{pattern}` finds no group in the paths of {len(missing)} of "
            f"{counted(len(names), 'image')}, such as `{missing[0]}`",
            hint="it is a regular expression, looked for in the path below the data's folder"
            " or the name of a table's column",
        )
    return found, tuple(index), first


def set_aside(
    labels: NDArray[np.int64], groups: NDArray[np.int64], fraction: float, seed: int
) -> NDArray[np.bool_] | None:
    """Which images are set aside, (n,): whole groups, about this part of every class.

    Every class keeps a group to train on, and has one that is set aside where that can be. None
    where nothing can be set aside so.

    Raises:
        UsageError: scikit-learn is not installed.
    """
    for aside in _parts(labels, groups, fraction, seed):  # of those that cannot be, the next
        # Nothing of some classes is left to train on; a group may have several of them.
        while (lacking := np.setdiff1d(labels, labels[~aside])).size:
            own, sizes = np.unique(groups[aside & (labels == lacking[0])], return_counts=True)
            aside &= groups != own[sizes.argmin()]
        for label in np.setdiff1d(labels, labels[aside]):  # nothing of it is there to choose by
            own, sizes = np.unique(groups[labels == label], return_counts=True)
            for group in own[np.argsort(sizes, kind="stable")]:
                more = aside | (groups == group)
                if not np.setdiff1d(labels, labels[~more]).size:
                    aside = more
                    break
        if aside.any():
            return aside
    return None


def set_aside_of_several(
    labels: NDArray[np.uint8], groups: NDArray[np.int64], fraction: float, seed: int
) -> NDArray[np.bool_] | None:
    """The same where an image may have several classes, by labels (n, classes) of 0 and 1.

    That each class is on both sides is asked of the classes, and not of the strata: for every
    stratum that a part lacks a whole group would be added, though its classes are there already.
    """
    order = np.argsort(groups, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
    of_classes = labels > 0
    for aside in _parts(several_labels.strata(labels), groups, fraction, seed):
        training = of_classes[~aside].sum(axis=0)
        for number in range(len(training)):  # nothing of it may be left to train on
            held = [m for m in members if aside[m[0]] and of_classes[m, number].any()]
            if held and not training[number]:
                fewest = min(held, key=lambda m: of_classes[m, number].sum())
                aside[fewest] = False
                training += of_classes[fewest].sum(axis=0)
        while (lacking := ~of_classes[aside].any(axis=0)).any():
            most, chosen = (0, 0), None  # of the lacking classes; of the fewest images
            for own in members:
                found = of_classes[own].sum(axis=0)
                gain = int((found[lacking] > 0).sum()), -len(own)
                if gain[0] and gain > most and not ((training == found) & (found > 0)).any():
                    most, chosen = gain, own
            if chosen is None:
                break
            aside[chosen] = True
            training -= of_classes[chosen].sum(axis=0)
        if aside.any():
            return aside
    return None


def _parts(
    strata: NDArray[np.int64], groups: NDArray[np.int64], fraction: float, seed: int
) -> Iterator[NDArray[np.bool_]]:
    """Ways to set about this part aside in whole groups (n,), about so much of every stratum; none
    where there is but one group, or one image of each."""
    groups_n, most = len(np.unique(groups)), int(np.bincount(strata).max())
    if min(groups_n, most) < 2:
        return
    count = min(range(2, _MOST_FOLDS + 1), key=lambda k: (_miss(fraction, k), k))
    count = min(count, groups_n, most)
    parts = max(1, round(fraction * count))
    fold = _grouped_folds(strata, groups, count, seed)
    for first in range(count):
        yield np.isin(fold, (first + np.arange(parts)) % count)


def _miss(fraction: float, folds: int) -> float:
    """How far the nearest part of so many folds is from a fraction."""
    return round(abs(max(1, round(fraction * folds)) / folds - fraction), 6)


def folds(
    labels: NDArray[Any],
    classes: Sequence[str],
    groups: NDArray[np.int64] | None,
    count: int,
    seed: int,
) -> NDArray[np.int64]:
    """The fold of each image (n,), from 0: about equally many of every class, groups whole.

    Args:
        labels: of the images (n,); of several classes, (n, classes) of 0 and 1.
        classes: their names.
        groups: of the images (n,), if there are any.
        count: of the folds.
        seed: that they are drawn by.

    Raises:
        DataError: a fold would hold all images of a class, or there are fewer images or groups
            than folds.
        UsageError: there are groups, and scikit-learn is not installed.
    """
    parts = len(labels) if groups is None else len(np.unique(groups))
    if parts < count:
        what = counted(parts, "image" if groups is None else "group")
        raise DataError(f"there {'is' if parts == 1 else 'are'} {what}, and --folds is {count}")
    if labels.ndim == 2:
        strata = several_labels.strata(labels)
        of_each = [np.flatnonzero(of_class) for of_class in labels.T]
    else:
        strata, of_each = labels, members_of_each(labels, len(classes))
    if groups is None:
        generator = np.random.default_rng(seed)
        found = np.empty(len(labels), np.int64)
        begun = 0
        for members in members_of_each(strata, len(classes) + labels.ndim - 1):
            found[generator.permutation(members)] = (begun + np.arange(len(members))) % count
            begun += len(members)
    else:
        found = _grouped_folds(strata, groups, count, seed)
    alone = [
        f"`{name}`"
        for name, members in zip(classes, of_each, strict=True)
        if len(members) and len(np.unique(found[members])) < 2
    ]
    if alone:
        why = "one image" if groups is None else "one group, or in groups that cannot be parted"
        raise DataError(
            f"--folds {count}: all images of {', '.join(alone[:5])} would lie in one fold, and "
            f"nothing of them in the others to train on: they are in {why}",
            hint="take the class out, or add images of it",
        )
    return found


def _grouped_folds(
    labels: NDArray[np.int64], groups: NDArray[np.int64], count: int, seed: int
) -> NDArray[np.int64]:
    """The fold of each image (n,), by scikit-learn's StratifiedGroupKFold."""
    try:
        from sklearn.model_selection import (
            StratifiedGroupKFold,
        )
    except ImportError:
        raise UsageError(
            "parting groups needs scikit-learn, which is not installed", hint=installing("groups")
        ) from None
    if np.bincount(labels).max() < count:
        raise DataError(f"no class has as many as {count} images, one for each fold")
    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed % 2**32)
    found = np.empty(len(labels), np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a class that is in fewer than all folds
        for number, (_, members) in enumerate(splitter.split(labels, labels, groups)):
            found[members] = number
    return found
