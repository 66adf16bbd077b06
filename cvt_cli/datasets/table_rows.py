"""The rows of a table of labelled images, taken piece after piece into a few bytes each."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvt_cli.base.errors import DataError
from cvt_cli.base.limits import HEAVIEST_WEIGHT, LIGHTEST_WEIGHT
from cvt_cli.base.text import counted, without_password
from cvt_cli.images.columns import Columns, mark
from cvt_cli.images.packed import Packed, Packing
from cvt_cli.images.table_files import Piece, Table

BETWEEN = "\x1f"
"""Between the classes of an image, where a table does not have them as one text."""

_NOTHING = re.compile(r"^(?:\./+)+|(?<=[^/]/)(?:\./|/)+")
"""Parts of a path that lead nowhere: "./" at its start, and "//" or "/./" in it."""

SHOWN = 5
"""Rows or classes that a message names."""


@dataclass(frozen=True)
class Coded:
    """A column of few different texts."""

    names: tuple[str, ...]
    codes: NDArray[np.int32]  # (n,) index into `names`

    def are(self, names: Sequence[str]) -> NDArray[np.bool_]:
        """Which rows (n,) have one of these."""
        return np.isin(self.codes, [self.names.index(name) for name in names])


@dataclass(frozen=True)
class Rows:
    """What stands in all rows of a table."""

    table: Table
    columns: Columns
    names: Packed
    unnamed: bool  # these are pictures, and not all have a name
    hashes: NDArray[np.int64]  # (n,) of the names; equal ones have one hash
    lines: NDArray[np.int32]  # (n,) in which each begins
    coded: Mapping[str, Coded]  # by role: "label", "split", "group"
    weights: NDArray[np.float64] | None
    secret: Mapping[int, str]  # addresses by row, whose names in `names` hide their passwords
    listed: bool = False  # labels are lists, or a column for each class: texts with `BETWEEN`

    def __len__(self) -> int:
        return len(self.lines)

    def place(self, row: int) -> str:
        """Where a row is, such as "line 7"."""
        return f"{self.table.where} {self.lines[row]}"

    def places(self, mask: NDArray[np.bool_]) -> str:
        """The lines of the rows (n,) that are marked, the first of them, as words."""
        found = self.lines[mask]
        shown = ", ".join(map(str, found[:SHOWN].tolist())) + (", …" if len(found) > SHOWN else "")
        return f"{self.table.where}{'' if len(found) == 1 else 's'} {shown}"

    def marked(self, mask: NDArray[np.bool_]) -> str:
        """How many rows (n,) are marked, and where they are."""
        return f"{counted(int(mask.sum()), 'image')}, {self.places(mask)}"


class _Codes(dict[str, int]):
    """Numbers texts in the order in which they come."""

    def __missing__(self, key: str) -> int:
        self[key] = code = len(self)
        return code

    def of(self, values: Sequence[str]) -> NDArray[np.int32]:
        return np.fromiter(map(self.__getitem__, values), np.int32, len(values))


def _joined(values: Sequence[Any]) -> str | None:
    """Texts one after another, which is quicker to ask than each; None if not all are texts."""
    try:
        return "".join(values)
    except TypeError:
        return None


def _shown(value: Any) -> str:
    """A value as a message has it: a picture may be in the place of a label."""
    shown = repr(value)
    return shown if len(shown) <= 100 else f"{shown[:99]}…"


def _is_name(path: str) -> bool:
    """Whether it can be a file's: JSON can hold half of a character beyond 16 bits."""
    try:
        path.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


class Reading:
    """Takes a table's pieces, and says what is wrong with their rows."""

    def __init__(self, table: Table, columns: Columns) -> None:
        self.table, self.columns = table, columns
        self._names = Packing()
        self._hashes: list[NDArray[np.int64]] = []
        self._lines: list[NDArray[np.int32]] = []
        of_roles = {"label": columns.label, "split": columns.split, "group": columns.group}
        self._columns = {role: name for role, name in of_roles.items() if name is not None}
        self._numbering = {role: _Codes() for role in self._columns}
        self._codes: dict[str, list[NDArray[np.int32]]] = {role: [] for role in self._columns}
        self._weights: list[NDArray[np.float64]] = []
        self._label_names = table.class_names(columns.label or "")
        self._secret: dict[int, str] = {}
        self._unnamed = False
        self._listed = bool(columns.classes)
        if columns.classes:
            self._numbering["label"], self._codes["label"] = _Codes(), []

    def add(self, piece: Piece) -> None:
        """Take some rows."""
        of, values = self.columns, piece.columns
        self._lines.append(piece.lines.astype(np.int32))
        named = values[of.path] if of.path else values[of.picture or ""]
        if of.picture is not None and not all(isinstance(name, str) and name for name in named):
            self._unnamed = True
        paths = self._paths(piece, named)
        try:
            self._names.add(paths)
        except UnicodeEncodeError:
            place = next(place for place, path in enumerate(paths) if not _is_name(path))
            raise self._wrong(piece, place, f"has {_shown(paths[place])} as its path") from None
        self._hashes.append(np.fromiter(map(hash, paths), np.int64, len(paths)))
        for role, column in self._columns.items():
            texts = self._texts(piece, values[column], role)
            self._codes[role].append(self._numbering[role].of(texts))
        if of.classes:
            self._codes["label"].append(self._numbering["label"].of(self._marked(piece)))
        if of.weight is not None:
            self._weights.append(self._numbers(piece, values[of.weight]))

    def _paths(self, piece: Piece, values: Sequence[Any]) -> Sequence[str]:
        if self.columns.picture is not None:
            return [without_password(name) if isinstance(name, str) else "" for name in values]
        joined = _joined(values)
        if joined is None or "" in values or "\0" in joined:
            for place, path in enumerate(values):
                if not isinstance(path, str) or not path or "\0" in path:
                    what = "no path" if path in (None, "") else f"{_shown(path)} as its path"
                    raise self._wrong(piece, place, f"has {what}")
        if joined is not None and ("./" in joined or "//" in joined):
            values = [p if "://" in p else _NOTHING.sub("", p) for p in values]
            first = sum(map(len, self._lines)) - len(piece)
            shown = list(map(without_password, values))
            both = enumerate(zip(values, shown, strict=True), first)
            self._secret |= {row: path for row, (path, name) in both if path != name}
            return shown
        return values

    def _texts(self, piece: Piece, values: Sequence[Any], role: str) -> Sequence[str]:
        if _joined(values) is not None:
            return values
        return [self._text(piece, place, value, role) for place, value in enumerate(values)]

    def _text(self, piece: Piece, place: int, value: Any, role: str) -> str:
        """A value as a table of texts would have it."""
        if isinstance(value, str):
            return value
        if value is None or value != value:  # NaN
            return ""
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # as a table has it in which others are missing
        if type(value) is int and role == "label" and self._label_names is not None:
            if not 0 <= value < len(self._label_names):
                raise self._wrong(
                    piece, place, f"has class {value}, and there are {len(self._label_names)}"
                )
            return self._label_names[value]
        if isinstance(value, int | float):
            return str(value)
        if isinstance(value, list) and role == "label":
            self._listed = True
            parts = [self._text(piece, place, one, role) for one in value]
            if any(not part.strip() or BETWEEN in part for part in parts):
                raise self._wrong(
                    piece, place, f"has {_shown(value)} as its labels, one of them empty"
                )
            return BETWEEN.join(parts)
        raise self._wrong(piece, place, f"has {_shown(value)} as its {role}")

    def _marked(self, piece: Piece) -> list[str]:
        """The classes of each row whose columns have a 1."""
        marks = np.empty((len(piece), len(self.columns.classes)), np.uint8)
        for number, name in enumerate(self.columns.classes):
            values = piece.columns[name]
            known = {text: mark(text) for text in dict.fromkeys(map(str, values))}
            if None in known.values():
                place = next(i for i, value in enumerate(values) if known[str(value)] is None)
                raise self._wrong(
                    piece,
                    place,
                    f"has {_shown(values[place])} for the class `{name}`; accepted are 0 and 1",
                )
            marks[:, number] = np.array([known[str(value)] for value in values], np.uint8)
        sets, of = np.unique(marks, axis=0, return_inverse=True)
        texts = [
            BETWEEN.join(name for name, has in zip(self.columns.classes, one, strict=True) if has)
            for one in sets.tolist()
        ]
        return [texts[place] for place in of.reshape(-1).tolist()]

    def _numbers(self, piece: Piece, values: Sequence[Any]) -> NDArray[np.float64]:
        found = np.empty(len(values))
        for place, value in enumerate(values):
            try:
                found[place] = math.nan if isinstance(value, bool) else float(value)
            except (TypeError, ValueError, OverflowError):
                found[place] = math.nan
            if not LIGHTEST_WEIGHT <= found[place] <= HEAVIEST_WEIGHT:  # so for NaN
                raise self._wrong(
                    piece,
                    place,
                    f"has the weight {_shown(value)}; accepted are numbers above 0, from "
                    f"{LIGHTEST_WEIGHT:g} to {HEAVIEST_WEIGHT:g}",
                )
        return found

    def _wrong(self, piece: Piece, place: int, what: str) -> DataError:
        where = f"{self.table.where} {piece.lines[place]}"
        return DataError(f"`{self.table.path}`, {where} {what}")

    def rows(self) -> Rows:
        """All that was taken; raises DataError if that is nothing."""
        if not self._lines:
            raise DataError(f"`{self.table.path}` has no row below the names of its columns")
        return Rows(
            self.table,
            self.columns,
            self._names.packed(),
            self._unnamed,
            np.concatenate(self._hashes),
            np.concatenate(self._lines),
            {
                role: Coded(tuple(self._numbering[role]), np.concatenate(codes))
                for role, codes in self._codes.items()
            },
            np.concatenate(self._weights) if self._weights else None,
            self._secret,
            self._listed,
        )
