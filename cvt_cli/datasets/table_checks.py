"""What is wrong with the rows of a table of labelled images, before any image is read.

Each check raises DataError, or gives what the user should know and returns what is left.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvt_cli.base import text
from cvt_cli.base.errors import DataError
from cvt_cli.base.progress import Say
from cvt_cli.base.text import counted
from cvt_cli.datasets.parts import PART_OF, PARTS
from cvt_cli.datasets.several_labels import Sets
from cvt_cli.datasets.table_rows import SHOWN, Rows
from cvt_cli.images import finding
from cvt_cli.images.columns import Columns, Role, mark, part_flagged
from cvt_cli.images.packed import Packed, Packing
from cvt_cli.images.table_files import Piece, Table

_TRIED = 20
"""Rows of which one must be there, or the folder is taken to be wrong."""


def check_labels(rows: Rows, say: Say) -> None:
    """Refuse rows without a label and labels of unknown letters; tell of such as are alike."""
    labels = rows.coded["label"]
    where = f"`{rows.columns.label}` of `{rows.table.path}`"
    if empty := [name for name in labels.names if not name.strip()]:
        raise DataError(
            f"no label in {where} for {rows.marked(labels.are(empty))}",
            hint="leave such rows out of the table, also those of `test`, or give them their class",
        )
    _check_names(labels.names, rows, lambda name: labels.are([name]), say)


def check_sets(rows: Rows, sets: Sets, say: Say) -> None:
    """The same where the label of each row is a set of classes; it may be empty."""

    def having(name: str) -> NDArray[np.bool_]:
        return sets.marks[:, sets.classes.index(name)][rows.coded["label"].codes] > 0

    _check_names(sets.classes, rows, having, say)


def _check_names(
    names: Sequence[str], rows: Rows, having: Callable[[str], NDArray[np.bool_]], say: Say
) -> None:
    """The same of the names of the classes; ``having`` tells the rows (n,) that have one."""
    where = f"`{rows.columns.label}` of `{rows.table.path}`"
    if rows.columns.classes:
        where = f"`{rows.table.path}`"
    for name in names:
        if text.as_utf8(name) != name:
            raise DataError(
                f"the label `{text.as_utf8(name)}` in {where} is not in UTF-8: "
                f"{rows.places(having(name))}",
                hint="save the table as UTF-8, for example with "
                "`iconv -f latin1 -t utf-8 TABLE > NEW`",
            )
    for alike in text.alike(names):
        sizes = [int(having(name).sum()) for name in alike]
        named = " and ".join(f"`{n}` ({m})" for n, m in zip(alike, sizes, strict=True))
        say(f"{named} in {where} differ in {text.LOOKS} alone, and are taken as different classes")


def with_split_by_content(table: Table, columns: Columns) -> Columns:
    """The columns, with the one as the split that holds nothing but names of parts, or says of one
    whether an image is of it, as far as the first rows tell: else images to test on would be
    trained on, whatever it is called."""
    others = [n for n in table.columns if n not in columns.wanted and n not in table.holding_bytes]
    first = next(table.pieces(others), None) if others else None
    if first is None:
        return columns
    found = [name for name in others if _tells_parts(name, first.columns[name])]
    if not found:
        return replace(columns, notes=(*columns.notes, *_nearly_parts(table, first)))
    these = " and ".join(f"`{name}`" for name in found)
    if len(found) > 1:
        note = (
            f"{these} of `{table.path}` could be the split, and none is taken; --columns "
            f"split={found[0]} takes the first"
        )
        return replace(columns, notes=(*columns.notes, note))
    what = "says who is in a part" if part_flagged(found[0]) else "holds names of parts"
    note = (
        f"{these} of `{table.path}` {what}, and is taken as the split; --columns split= takes all "
        "rows together"
    )
    guessed: tuple[Role, ...] = (*columns.guessed, "split")
    return replace(columns, split=found[0], guessed=guessed, notes=(*columns.notes, note))


def _tells_parts(name: str, values: Sequence[object]) -> bool:
    if part_flagged(name) and {mark(one) for one in set(map(str, values))} <= {0, 1}:
        return True
    return all(isinstance(one, str) and one.strip().casefold() in PART_OF for one in values)


def _nearly_parts(table: Table, first: Piece) -> Iterator[str]:
    """Which columns hold names of parts in most rows alone, as a message says it."""
    for name, values in first.columns.items():
        small = [str(one).strip().casefold() for one in values]
        known = [one for one in small if one in PART_OF]
        if len(set(known)) > 1 and 2 * len(known) > len(small):
            place = next(i for i, one in enumerate(small) if one not in PART_OF)
            yield (
                f"`{name}` of `{table.path}` holds names of parts, but not in each row "
                f"({table.where} {first.lines[place]} has {values[place]!r}): it is not taken as "
                "the split"
            )


def known_parts(rows: Rows, say: Say) -> NDArray[np.int32] | None:
    """The part of each row (n,), an index into `PARTS`; None where the table says none."""
    if (split := rows.coded.get("split")) is None:
        return None
    known = [PART_OF.get(name.strip().casefold()) for name in split.names]
    if (flagged := part_flagged(rows.columns.split or "")) and None in known:
        part = PART_OF[flagged]
        of_marks = {1: part, 0: "test" if part == "train" else "train", None: None}
        known = [of_marks[mark(name)] for name in split.names]
    if unknown := [name for name, part in zip(split.names, known, strict=True) if part is None]:
        if len(unknown) == len(known) and "split" in rows.columns.guessed:
            say(
                f"`{rows.columns.split}` of `{rows.table.path}` holds "
                f"{text.some(name or 'nothing' for name in unknown)}, which "
                "name no parts of a set: the column is not taken as the split"
            )
            return None
        accepted = ", ".join(f"`{name}`" for name in PART_OF)
        raise DataError(
            f"{text.some(f'`{name}`' for name in unknown)} in `{rows.columns.split}` of "
            f"`{rows.table.path}` names no part of a set: {rows.marked(split.are(unknown))}; "
            f"accepted are {accepted}",
            hint="--columns split= takes all rows together",
        )
    order = list(PARTS)
    places = [order.index(part) for part in known if part is not None]
    parts = np.array(places, np.int32)[split.codes]
    if flagged and "split" in rows.columns.guessed and 2 * (parts == 0).sum() < len(parts):
        say(
            f"`{rows.columns.split}` of `{rows.table.path}` would leave less than half of the "
            "images to train on: it is not taken as the split"
        )
        return None
    return parts


def known_groups(rows: Rows, say: Say) -> NDArray[np.int32] | None:
    """The group of each row (n,), an index into their names; None where there are none."""
    groups = rows.coded.get("group")
    if groups is None or "" not in groups.names:
        return None if groups is None else groups.codes
    what = (
        f"no group in `{rows.columns.group}` of `{rows.table.path}` for "
        f"{rows.marked(groups.are(['']))}"
    )
    if "group" not in rows.columns.guessed:
        raise DataError(what)
    say(f"{what}: the column is not taken as the group")
    return None


def as_here(names: Packed, root: Path, say: Say) -> bool:
    """Write paths with this system's slashes where they are with those of Windows; whether so."""
    at = names.content.find(b"\\")
    if os.sep == "\\" or at < 0:
        return False
    first = names[int(np.searchsorted(names.starts, at, side="right")) - 1]
    if os.path.lexists(root / first):
        return False
    names.content[:] = names.content.replace(b"\\", b"/")
    say(f"paths such as `{first}` are read as Windows writes them")
    return True


def local(names: Packed) -> Packed:
    """The paths, also of those that are written as addresses of files on this machine."""
    if os.sep == "\\" or not re.search(b"(?i)file:///", names.content):
        return names
    written = (name[:8].lower() == b"file:///" for name in names.encoded())
    before = np.fromiter(written, bool, len(names)) * np.int32(len("file://"))
    return Packed(names.content, names.starts + before, names.lengths - before)


def completed(names: Packed, root: Path, say: Say) -> Packed:
    """The paths, or where none of the first is there those of the images that have these names in
    the folder or below: tables of competitions leave out suffixes, folders, or both.

    Raises:
        DataError: two images have one of the names.
    """
    first = list(names[:_TRIED])
    with_suffix = any(finding.is_image_name(os.path.basename(name)) for name in first)
    with_folders = any("/" in name for name in first)
    if (with_suffix and with_folders) or _some_there(first, root):
        return names
    found: dict[str, str] = {}
    twice: dict[str, str] = {}
    with suppress(OSError):
        for image in finding.images_in(root):
            path = image.relative_to(root).as_posix()
            name = path if with_folders else image.name
            name = name if with_suffix else os.path.splitext(name)[0]
            if found.setdefault(name, path) is not path:
                twice[name] = path
    shown = next((name for name in first if name in found), None)
    if shown is None:
        return names
    if (both := next((name for name in names if name in twice), None)) is not None:
        raise DataError(
            f"the path `{both}` is not there in `{root}`, and may be `{found[both]}` or "
            f"`{twice[both]}`",
            hint="write the paths as they are, with folders and suffixes, or say with --images "
            "FOLDER which folder they start from",
        )
    say(f"paths are completed by the images in `{root}`: `{shown}` is `{found[shown]}` there")
    packing = Packing()
    for start in range(0, len(names), 65536):
        packing.add([found.get(name, name) for name in names[start : start + 65536]])
    return packing.packed()


def as_files(names: Packed, root: Path) -> Packed:
    """What tells the files of these paths apart: the paths themselves, but where one file may be
    written in two ways, from the folder and from the system's root, or up and down again."""
    absolute = np.frombuffer(names.content, np.uint8)[names.starts] == ord("/")
    if (absolute.all() or not absolute.any()) and b"../" not in names.content:
        return names

    @cache
    def place(folder: str) -> str:
        return os.path.realpath(root / folder)

    def file(name: str) -> str:
        folder, base = os.path.split(name)
        return name if "://" in name else f"{place(folder)}/{base}"

    packing = Packing()
    for first in range(0, len(names), 65536):
        packing.add(list(map(file, names[first : first + 65536])))
    return packing.packed()


def without_repeats(
    rows: Rows,
    names: Packed,
    hashes: NDArray[np.int64],
    parts: NDArray[np.int32] | None,
    groups: NDArray[np.int32] | None,
    say: Say,
) -> NDArray[np.int64]:
    """The rows but for those that repeat another one of their part.

    Args:
        rows: of the table.
        names: that tell their files apart.
        hashes: (n,) of these.
        parts: of each.
        groups: of each.
        say: told of what is left out.

    Raises:
        DataError: two rows give one image two classes or groups, or of one part two weights.
    """
    labels, weights = rows.coded["label"], rows.weights
    order = np.argsort(hashes, kind="stable").astype(np.int32)
    ordered = hashes[order]
    alike = ordered[1:] == ordered[:-1]
    one, other = order[:-1][alike], order[1:][alike]
    del order, alike, ordered  # which are large
    same = names.equal(one, other)
    one, other = one[same], other[same]
    _refuse_two(rows, "class", labels.codes, labels.names, one, other)
    if groups is not None:
        _refuse_two(rows, "group", groups, rows.coded["group"].names, one, other)
    if parts is not None:  # one image may be in one part twice, and in another one in between
        some = np.union1d(one, other)
        some = some[np.lexsort((some, parts[some], hashes[some]))]
        one, other = some[:-1], some[1:]
        same = (parts[one] == parts[other]) & names.equal(one, other)
        one, other = one[same], other[same]
    if weights is not None:
        _refuse_two(rows, "weight", weights, None, one, other)
    mask = np.zeros(len(rows), bool)
    mask[other] = True
    if not mask.any():
        return np.arange(len(rows))
    say(
        f"{counted(int(mask.sum()), 'row')} of `{rows.table.path}` repeat others and are left out: "
        f"{rows.places(mask)}"
    )
    return np.flatnonzero(~mask)


def _refuse_two(
    rows: Rows,
    what: str,
    values: NDArray[Any],
    named: Sequence[str] | None,
    one: NDArray[Any],
    other: NDArray[Any],
) -> None:
    """Raises DataError where one image has two values, in pairs of rows.

    Args:
        rows: of the table.
        what: the values are.
        values: (n,) of each row.
        named: what they are indices into; None says them themselves.
        one: rows.
        other: rows of the same images.
    """
    against = np.flatnonzero(values[one] != values[other])
    if not len(against):
        return

    def said(row: int) -> str:
        shown = f"{values[row]:g}" if named is None else named[values[row]]
        return f"`{shown}` in {rows.place(row)}"

    shown = against[np.argsort(one[against])[:SHOWN]]
    told = "; ".join(
        f"`{rows.names[a]}` is {said(a)} and {said(b)}"
        for a, b in zip(one[shown].tolist(), other[shown].tolist(), strict=True)
    )
    many = {"class": "classes"}.get(what, f"{what}s")
    leave = "" if what == "class" else f", or leave the column out with --columns {what}="
    raise DataError(
        f"`{rows.table.path}` gives {counted(len(against), 'image')} two {many}: {told}"
        + ("; …" if len(against) > SHOWN else ""),
        hint=f"take one of the rows out{leave}",
    )


def refuse_no_folder(images: Path) -> None:
    """Raises DataError for ``--images`` that is something else than a folder."""
    if os.path.isdir(images):
        return
    # Of an address `Path` leaves one of its two slashes.
    address = re.sub(r"^(\w{2,}):/+", r"\1://", str(images))
    shown, advice = str(images), "give --images FOLDER, from which the table's paths start"
    if address != shown:
        shown, what = address, "an address, and no folder"
        advice = "fetch the images, or write the address of each into the table, whole"
    elif os.path.exists(images):
        what = "a file, and no folder"
        advice = "unpack it, and name the folder"
    else:
        what = "not there"
    raise DataError(f"--images: `{text.as_utf8(shown)}` is {what}", hint=advice)


def _some_there(names: Sequence[str], root: Path) -> bool:
    return any("://" in name or os.path.lexists(root / name) for name in names)


def refuse_wrong_folder(names: Packed, root: Path, first_place: str) -> None:
    """Raises DataError if the folder that the paths start from has none of the first.

    Args:
        names: the paths.
        root: the folder.
        first_place: where the first stands, such as "line 2 of `t.csv`".
    """
    first = list(names[:_TRIED])
    if _some_there(first, root):
        return
    odd = any(text.as_utf8(name) != name for name in first)
    raise DataError(
        f"none of the first {counted(len(first), 'image')} of the table is there, such as "
        f"`{text.as_utf8(str(root / first[0]))}`, {first_place}",
        hint="say with --images FOLDER which folder the paths start from"
        + ("; the table is not in UTF-8, which letters in paths may need" if odd else ""),
    )
