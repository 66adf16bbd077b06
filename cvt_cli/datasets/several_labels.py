"""Several classes an image: a table's labels taken apart, and how such images are parted.

Where a label is a text with `SIGN` in it, as "cat|dog", it may be the name of one class, or name
two. It names several if the user says so (``--separator``), or if one of the names between the
signs stands in another label of the table too, alone or beside others. An empty label is then an
image of no class.
"""

import ast
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from cvt_cli.base.errors import DataError, UsageError
from cvt_cli.base.progress import Say
from cvt_cli.datasets.table_rows import BETWEEN, Coded, Rows
from cvt_cli.prediction import answers

SIGN = answers.BETWEEN
"""Between the classes of an image, as cvt writes them, and unless something else is told."""


_NO_COMMA = re.compile(r"""['"]\s+['"]""")

_OTHER_SIGNS = (";", ",", " ")
"""That other tools write between them. Names of one class have them too, so that they are not
taken as such unless the user says so."""

_ENTRIES = 1_000_000
"""Of a table of images and classes, that are computed with at once."""

NO_SIGN = "none"
"""What the user says where each label is one class, whatever is in it."""


@dataclass(frozen=True)
class Sets:
    """The different sets of classes that a table's images have."""

    classes: tuple[str, ...]  # sorted by name
    marks: NDArray[np.uint8]  # (sets, classes): 1 where a set has a class
    how: str  # they were told, in words
    listed: bool  # as lists, or in a column of each class


def joined(names: Sequence[str]) -> str:
    """The classes of an image in one text; empty of none."""
    return SIGN.join(names)


def with_lists(rows: Rows) -> Rows:
    """The rows, as of lists where labels are the text of lists of names, as pandas writes these
    into a .csv: ``['cat', 'dog']``; a label beside such is the one name of its list."""
    labels = rows.coded["label"]
    lists = {name: _listed(name) for name in labels.names if name.lstrip()[:1] in ("[", "{")}
    if rows.listed or not any(lists.values()):
        return rows
    texts = [name if (of := lists.get(name)) is None else BETWEEN.join(of) for name in labels.names]
    place = {text: code for code, text in enumerate(dict.fromkeys(texts))}
    codes = np.array([place[text] for text in texts], np.int32)[labels.codes]
    coded = {**rows.coded, "label": Coded(tuple(place), codes)}
    return replace(rows, coded=coded, listed=True)


def _listed(label: str) -> list[str] | None:
    """The names in a list that is written as Python or JSON does, or as Label Studio's choices."""
    if _NO_COMMA.search(label):  # as NumPy writes them: Python would make one name of two
        return None
    try:
        found = ast.literal_eval(label.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    if isinstance(found, dict) and list(found) == ["choices"]:
        found = found["choices"]
    names = [name for name in found if isinstance(name, str)] if isinstance(found, list) else None
    if names is None or len(names) < len(found) or any(BETWEEN in name for name in names):
        return None
    return names if all(map(str.strip, names)) else None


def read(rows: Rows, separator: str | None, say: Say) -> tuple[Rows, Sets] | None:
    """The rows with the number of its set of classes as each one's label, and these sets.

    Args:
        rows: of a table.
        separator: what the user says is between the classes of an image, or `NO_SIGN`; None says
            nothing of it.
        say: told what is taken as it is though it looks otherwise.

    Returns:
        None where each image has one label.

    Raises:
        DataError: no image has a class, or the name of a class is empty or has the separator in it.
        UsageError: a separator is told, and there is none.
    """
    labels, where = rows.coded["label"], f"`{rows.columns.label}` of `{rows.table.path}`"
    if rows.listed:
        if separator == NO_SIGN:
            _refuse_not_one(rows)
            return None
        if separator is not None:
            kind = "a column for each class" if rows.columns.classes else f"lists in {where}"
            raise UsageError(f"--separator has no effect: the labels are {kind}, not texts")
        how = "a column of 0 and 1 for each class" if rows.columns.classes else "lists"
        parted = [_alone(name.split(BETWEEN)) for name in labels.names]
    else:
        sign = SIGN if separator is None else separator
        if separator is None and not _recur(labels.names, SIGN):
            if many := [name for name in labels.names if SIGN in name]:
                say(
                    f"`{many[0]}` in {where} is taken as the name of one class, since no part of "
                    f"it is in another label; --separator '{SIGN}' takes it as several"
                )
            if odd := [name for name in labels.names if re.fullmatch(r"\[.*[\s,].*\]", name)]:
                say(
                    f"`{odd[0]}` in {where} is taken as the name of one class, though it looks "
                    f"like a list; names in a list are written ['cat', 'dog'] or cat{SIGN}dog"
                )
                return None
            for other in _OTHER_SIGNS:
                many = [name for name in labels.names if other in name]
                recur = _are_of_words if other == " " else partial(_recur, sign=other)
                if many and recur(labels.names):
                    say(
                        f"`{many[0]}` in {where} is taken as the name of one class, though parts "
                        f"of such names recur; --separator '{other}' takes it as several"
                    )
            return None
        if sign == NO_SIGN:
            return None
        how = f"separated by `{sign}`"
        if separator is None:
            how += (
                f" (guessed, since names recur between them; --separator none takes each {where} "
            )
            how += "as one class)"
        parted = [_alone(name.split(sign)) for name in labels.names]
        for name, parts in zip(labels.names, parted, strict=True):
            if "" in parts:
                mask = labels.are([name])
                raise DataError(
                    f"`{name}` in {where} has an empty name beside `{sign}`: {rows.marked(mask)}"
                )
    classes = tuple(sorted({part for parts in parted for part in parts}))
    if not classes:
        raise DataError(f"no image of `{rows.table.path}` has a class")
    if odd := [name for name in classes if SIGN in name]:
        raise DataError(
            f"the class `{odd[0]}` of `{rows.table.path}` has `{SIGN}` in its name, which is "
            "written between the classes of an image that has several",
            hint="give the class another name",
        )
    place = {name: number for number, name in enumerate(classes)}
    sets: dict[tuple[int, ...], int] = {}
    of_text = np.empty(len(parted), np.int32)
    for number, parts in enumerate(parted):
        of_text[number] = sets.setdefault(tuple(sorted({place[p] for p in parts})), len(sets))
    marks = np.zeros((len(sets), len(classes)), np.uint8)
    for members, number in sets.items():
        marks[number, list(members)] = 1
    names = tuple(joined([classes[m] for m in members]) or answers.NONE for members in sets)
    coded = {**rows.coded, "label": Coded(names, of_text[labels.codes])}
    return replace(rows, coded=coded), Sets(classes, marks, how, rows.listed)


def _alone(parts: Sequence[str]) -> list[str]:
    """The names without the blanks around them; none of a text of blanks."""
    stripped = [part.strip() for part in parts]
    return [] if stripped == [""] else stripped


def _recur(labels: Sequence[str], sign: str) -> bool:
    """Whether a name between such signs is in another label too."""
    parted = [set(_alone(label.split(sign))) for label in dict.fromkeys(labels)]
    distinct = set(map(frozenset, parted))
    count = Counter(name for names in distinct for name in names)
    return any(count[name] > 1 for names in distinct if len(names) > 1 for name in names)


def _are_of_words(labels: Sequence[str]) -> bool:
    """Whether blanks seem to be between names: names of one class have some too, and share words.

    It is so where all words of a label are labels as well, or few words make many labels.
    """
    parted = [words for label in dict.fromkeys(labels) if len(words := label.split()) > 1]
    alone = set(labels)
    return any(alone.issuperset(words) for words in parted) or len(parted) > len(
        {word for words in parted for word in words}
    )


def _refuse_not_one(rows: Rows) -> None:
    """Raises DataError for a row that has no class or several, where each is to have one."""
    labels = rows.coded["label"]
    if odd := [name for name in labels.names if not name or BETWEEN in name]:
        raise DataError(
            f"--separator {NO_SIGN}: not one class of `{rows.table.path}` for "
            f"{rows.marked(labels.are(odd))}",
            hint="leave such rows out, or leave the option out: an image may have any number then",
        )


def described(sets: Sets, codes: NDArray[np.int32]) -> str:
    """How the classes of images are told, and how many have none, one and several."""
    counts = np.bincount(codes, minlength=len(sets.marks))
    per_set = sets.marks.sum(axis=1)
    none, one = (int(counts[per_set == number].sum()) for number in (0, 1))
    told = (
        f"several labels an image, {sets.how}: {none} have none, {one} have one, "
        f"{len(codes) - none - one} have several"
    )
    if sets.listed and one == len(codes):
        told += f"; --separator {NO_SIGN} takes the one of each as its class"
    return told


def of_each_class(marks: NDArray[np.uint8], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many images have each class, where so many (sets,) have each set."""
    found = np.zeros(marks.shape[1], np.int64)
    for part in _parts(marks):
        found += counts[part] @ marks[part].astype(np.int64)
    return found


def _parts(marks: NDArray[np.uint8]) -> Iterator[slice]:
    """Some rows after others, so that what is computed of each takes little memory."""
    rows = max(1, _ENTRIES // max(1, marks.shape[1]))
    yield from (slice(first, first + rows) for first in range(0, len(marks), rows))


# --- parting such images


def strata(labels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """For each image (n,) the rarest of its classes, or the number of classes where it has none.

    By these images are stratified: what is rare is so on both sides.

    Args:
        labels: (n, classes) of 0 and 1.
    """
    sizes = labels.sum(axis=0, dtype=np.int64)
    rank = np.empty(len(sizes), np.int64)
    order = np.argsort(sizes, kind="stable")
    rank[order] = np.arange(len(sizes))
    first = np.empty(len(labels), np.int64)
    for part in _parts(labels):
        ranks = np.where(labels[part] > 0, rank, len(sizes))
        first[part] = ranks.min(axis=1, initial=len(sizes))
    return np.asarray(np.append(order, len(sizes))[first], np.int64)


def on_both_sides(labels: NDArray[np.uint8], aside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which images are set aside (n,), so that each class with two images is on both sides.

    A class may never be the rarest of its images, so that strata alone do not see to it.
    """
    aside = aside.copy()
    for of_class in labels.T > 0:
        if of_class.any() and not (of_class & ~aside).any():
            aside[np.flatnonzero(of_class)[0]] = False
    training = labels[~aside].sum(axis=0, dtype=np.int64)
    for number, of_class in enumerate(labels.T > 0):
        if (of_class & aside).any() or training[number] < 2:
            continue
        for image in np.flatnonzero(of_class):
            if (training - labels[image] > 0)[labels[image] > 0].all():
                aside[image] = True
                training -= labels[image]
                break
    return aside
