"""Labelled images that a table names: .csv, .tsv, .jsonl or .parquet.

A row is an image: its path below the table's folder or another, its address, or in Parquet its
file itself; its class; perhaps the part of the set, the group and the weight that it has.
"""

import gc
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from cvt_cli.base import text
from cvt_cli.base.errors import DataError, UsageError
from cvt_cli.base.progress import Progress, Say, silent
from cvt_cli.base.text import counted
from cvt_cli.datasets import several_labels
from cvt_cli.datasets import table_checks as checks
from cvt_cli.datasets.labelled import LabelledImages
from cvt_cli.datasets.parts import PARTS
from cvt_cli.datasets.several_labels import Sets
from cvt_cli.datasets.table_rows import SHOWN, Reading
from cvt_cli.images import columns as choosing
from cvt_cli.images import sources
from cvt_cli.images.columns import Columns
from cvt_cli.images.packed import Packed, Packing
from cvt_cli.images.parquet import Parquet, Pictures
from cvt_cli.images.table_files import open_table


@dataclass(frozen=True)
class Told:
    """What the user says of how the data are to be read."""

    columns: str | None = None  # which column has which part
    images: Path | None = None  # the folder that paths start from
    group_by: str | None = None  # a column, or a pattern of the images' paths
    separator: str | None = None  # between the classes of an image, or "none"


@dataclass(frozen=True)
class TableFiles:
    """What opens the pictures of a table's rows."""

    root: Path
    table: Path
    where: str  # "line" or "row"
    lines: NDArray[np.int32]  # of each row
    secret: Mapping[int, str]  # addresses by row, whose names hide their passwords
    pictures: Pictures | None = None  # where the table holds them itself

    def open(self, name: str, row: int) -> BinaryIO:
        """The file of a picture; raises OSError or ImageError."""
        if self.pictures is not None:
            if not (name := self.pictures.elsewhere(row)):
                return self.pictures.open(row)
        return sources.open_row(self.root, self.secret.get(row, name), self.place(row))

    def place(self, row: int) -> str:
        """Where a row is, for a message."""
        return f"{self.where} {self.lines[row]} of `{self.table}`"

    def size(self, name: str, row: int) -> int | None:
        """Bytes of it; None where that is not known without opening it."""
        if self.pictures is not None:
            if not (name := self.pictures.elsewhere(row)):
                return self.pictures.size(row)
        try:
            return os.stat(self.root / name).st_size
        except OSError:
            return None


@dataclass(frozen=True)
class _Whole:
    """All rows of a table that are images."""

    columns: Columns
    files: TableFiles
    names: Packed
    rows: NDArray[np.int32]  # (n,) of the table
    classes: tuple[str, ...]
    labels: NDArray[np.int32]  # (n,) index into `classes`; of several labels into `sets.marks`
    sets: Sets | None  # of classes that images have, where they may have several
    parts: NDArray[np.int32] | None  # (n,) index into `PARTS`
    groups: NDArray[np.int32] | None
    group_names: tuple[str, ...]
    weights: NDArray[np.float64] | None
    notes: tuple[str, ...]  # what was found that the user should know

    def part(self, name: str | None) -> LabelledImages:
        """The images of a part, or all, with the classes that these have, sorted by name."""
        chosen = np.arange(len(self.names))
        if name is not None:
            assert self.parts is not None
            chosen = np.flatnonzero(self.parts == list(PARTS).index(name))
        labels: NDArray[Any] = self.labels[chosen]
        if self.sets is not None:
            there = np.unique(labels)
            used = np.flatnonzero(self.sets.marks[there].any(axis=0)).tolist()
            if name == "test" and len(chosen) and not used:  # as of competitions
                raise DataError(
                    f"no image of the part `test` in `{self.files.table.name}` has a class: its "
                    f"{counted(len(chosen), 'label')} are all empty",
                    hint="leave its rows out of the table, or give them their classes",
                )
            labels = self.sets.marks[:, used][labels]
        else:
            used = sorted(np.unique(labels).tolist(), key=lambda code: self.classes[code])
            place = np.zeros(len(self.classes), np.int64)
            place[used] = np.arange(len(used))
            labels = place[labels]
        return LabelledImages(
            self.files.root,
            tuple(self.classes[code] for code in used),
            self.names if name is None else self.names.take(chosen),
            labels,
            layout=f"table `{self.files.table.name}`",
            table=self.files,
            rows=self.rows if name is None else self.rows[chosen],
            groups=None if self.groups is None else self.groups[chosen].astype(np.int64),
            group_names=self.group_names,
            grouped_by=self.columns.group,
            weights=None if self.weights is None else self.weights[chosen],
            weighed_by=self.columns.weight,
        )

    @property
    def there(self) -> list[str]:
        """The parts that there are rows of."""
        if self.parts is None:
            return []
        codes = np.unique(self.parts)
        return [part for code, part in enumerate(PARTS) if code in codes]

    def describe(self) -> list[str]:
        """What was understood, in sentences."""
        lines = [
            f"`{self.files.table}`: {counted(len(self.names), 'image')} in "
            f"{counted(len(self.classes), 'class')}; columns: {self.columns.describe()}"
        ]
        if self.parts is not None:
            of_parts = np.bincount(self.parts, minlength=len(PARTS)).tolist()
            named = ", ".join(f"{part} {n}" for part, n in zip(PARTS, of_parts, strict=True) if n)
            lines[0] += f"; parts: {named}"
        if self.groups is not None:
            lines[0] += f"; {counted(len(np.unique(self.groups)), 'group')}"
        if self.sets is None:
            sizes = np.bincount(self.labels, minlength=len(self.classes)).tolist()
        else:
            lines.append(several_labels.described(self.sets, self.labels))
            counts = np.bincount(self.labels, minlength=len(self.sets.marks))
            sizes = several_labels.of_each_class(self.sets.marks, counts).tolist()
        ordered = sorted(zip(sizes, self.classes, strict=True), key=lambda one: (-one[0], one[1]))
        named = ", ".join(f"`{name}` {n}" for n, name in ordered[: 2 * SHOWN])
        if len(ordered) > 2 * SHOWN:
            n, smallest = ordered[-1]
            named += f", … `{smallest}` {n}"
        return [*lines, f"images of each class: {named}", *self.notes]


_kept: tuple[object, _Whole] | None = None
"""The table that was read last: its parts are opened one after another."""


def open_part(
    path: Path,
    wanted: Sequence[str],
    told: Told,
    say: Say,
    progress: Progress = silent,
) -> LabelledImages | None:
    """The images of the first of some parts that a table has rows of; all where it names no parts.

    Args:
        path: of the table.
        wanted: parts, as `PARTS` calls them.
        told: how it is to be read.
        say: told what was understood.
        progress: told how far it is read.

    Returns:
        None where it has other parts only.

    Raises:
        DataError: it cannot be read, or a row has no class, two, or one that cannot be.
        UsageError: what the user says of it cannot be, or what reads it is not installed.
    """
    whole = _whole(path, told, progress)
    pictures = whole.files.pictures
    if (paths := whole.names if pictures is None else pictures.paths) is not None:
        first = whole.files.place(int(whole.rows[0]))
        checks.refuse_wrong_folder(paths, whole.files.root, first)
    for line in whole.describe():
        say(line)
    if whole.parts is None:
        return whole.part(None)
    for part in wanted:
        if part in whole.there:
            return whole.part(part)
    return None


def parts_of_table(path: Path, told: Told) -> list[str]:
    """The parts that a table has rows of; none where it names no parts. Raises as `open_part`."""
    return _whole(path, told, silent).there


def _whole(path: Path, told: Told, progress: Progress) -> _Whole:
    global _kept
    try:
        state = path.stat()
    except OSError as error:
        raise DataError(f"cannot read `{path}`: {error.strerror}") from None
    places = [(one, one.absolute()) for one in (path, told.images) if one is not None]
    changed = state.st_ino, state.st_ctime_ns, state.st_mtime_ns, state.st_size
    key, found = (places, changed, told), _kept  # which another thread may replace meanwhile
    if found is None or found[0] != key:
        found = _kept = None  # before the next one takes memory
        found = _kept = key, _read(path, told, state.st_size, progress)
    return found[1]


@contextmanager
def _not_collecting() -> Iterator[None]:
    """Without the search for cycles, which every few hundred rows goes through rows that have none:
    it takes two thirds of the time in which a table is read."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _read(path: Path, told: Told, size: int, progress: Progress) -> _Whole:
    if told.images is not None:
        checks.refuse_no_folder(told.images)
    table = open_table(path)
    roles = choosing.parse(told.columns)
    if told.group_by is not None:
        if roles.get("group"):
            raise UsageError(
                "--group-by and --columns group=… both define groups; give one of them"
            )
        # A pattern is told, and goes before a column that is known by its name.
        roles["group"] = told.group_by if told.group_by in table.columns else ""
    chosen = choosing.choose(table, roles)
    if chosen.split is None and "split" not in roles:
        chosen = checks.with_split_by_content(table, chosen)
    reading = Reading(table, chosen)
    with progress(f"reading {path.name}", size, unit="bytes") as advance, _not_collecting():
        for piece in table.pieces(chosen.wanted, lambda read: advance(read, "")):
            reading.add(piece)
    choosing.refuse_late(table, roles)
    rows, root = several_labels.with_lists(reading.rows()), told.images or path.parent
    notes = list(chosen.notes)
    sets: Sets | None = None
    if (found := several_labels.read(rows, told.separator, notes.append)) is None:
        checks.check_labels(rows, notes.append)
    else:
        rows, sets = found
        checks.check_sets(rows, sets, notes.append)
    of_rows = rows.coded["label"].names if sets is None else sets.classes
    there = set(of_rows)
    if absent := [f"`{name}`" for name in chosen.classes if name not in there]:
        notes.append(f"no image is of {text.some(absent)}: left out of the classes")
    parts = checks.known_parts(rows, notes.append)
    groups = checks.known_groups(rows, notes.append)
    names, hashes, kept, pictures = rows.names, rows.hashes, np.arange(len(rows)), None
    if chosen.picture is not None:
        assert isinstance(table, Parquet)
        pictures = table.pictures(chosen.picture)
        if pictures.paths is not None:
            checks.as_here(pictures.paths, root, notes.append)
        elif told.images is not None:
            raise UsageError(f"--images: `{path}` holds the pictures themselves, and no paths")
        if rows.unnamed or len(np.unique(hashes)) < len(rows):
            packing = Packing()
            packing.add([f"row {line}" for line in rows.lines.tolist()])
            names = packing.packed()
    else:
        names = checks.local(rows.names)
        rewritten = checks.as_here(names, root, notes.append)
        names = checks.completed(names, root, notes.append)
        rewritten = rewritten or names is not rows.names
        if (files := checks.as_files(names, root)) is not names or rewritten:
            hashes = np.fromiter(map(hash, files), np.int64, len(files))
        kept = checks.without_repeats(rows, files, hashes, parts, groups, notes.append)
    labels, weights = rows.coded["label"], rows.weights
    if len(kept) < len(rows):
        names = names.take(kept).alone()
        parts, groups = (of if of is None else of[kept] for of in (parts, groups))
        weights = weights if weights is None else weights[kept]
    return _Whole(
        chosen,
        TableFiles(root, path, table.where, rows.lines, rows.secret, pictures),
        names,
        kept.astype(np.int32),
        of_rows,
        labels.codes if len(kept) == len(rows) else labels.codes[kept],
        sets,
        parts,
        groups,
        () if groups is None else rows.coded["group"].names,
        weights,
        tuple(notes),
    )
