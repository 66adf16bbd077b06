"""Tables of images (.csv, .tsv, .jsonl, .parquet), read in pieces so that memory is bounded."""

import csv
import io
import json
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np
from numpy.typing import NDArray

from cvt_cli.base import text
from cvt_cli.base.errors import DataError, UsageError
from cvt_cli.base.package import installing

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
"""Of the tables that are read."""

ROWS = 32_768
"""Rows that are held at once while a table is read."""


@dataclass(frozen=True)
class Piece:
    """Some rows of a table, one after another."""

    lines: NDArray[np.int64]  # (n,) the line that each begins in; of Parquet its number, from 1
    columns: Mapping[str, Sequence[Any]]  # the values of those columns that were asked for

    def __len__(self) -> int:
        return len(self.lines)


class Table(ABC):
    """A table on disk.

    Attributes:
        path: of it.
        where: what tells a row in a message, "line" or "row".
    """

    where = "line"

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    @abstractmethod
    def columns(self) -> tuple[str, ...]:
        """Names of the columns.

        Raises:
            DataError: the file cannot be read, has no row, or two columns of one name.
        """

    @property
    def holding_bytes(self) -> frozenset[str]:
        """Those of the columns that hold pictures themselves."""
        return frozenset()

    @property
    def late(self) -> Mapping[str, int]:
        """Names that are in none of the rows that told the columns, each with the line near which
        it is first; of the rows that were read so far."""
        return {}

    def class_names(self, column: str) -> tuple[str, ...] | None:
        """What the whole numbers in a column stand for, where the file says it."""
        return None

    @abstractmethod
    def pieces(
        self,
        wanted: Sequence[str],
        advance: Callable[[int], None] = lambda read: None,
        most: int = ROWS,
    ) -> Iterator[Piece]:
        """All rows.

        Args:
            wanted: names of the columns that are read.
            advance: told how many bytes of the file were read since the last call.
            most: rows at a time.

        Raises:
            DataError: the table is damaged; the message says in which line.
        """


def is_table(name: str) -> bool:
    """Whether a file is a table by its suffix."""
    return name.lower().endswith(SUFFIXES)


def open_table(path: Path) -> Table:
    """The table in a file.

    Raises:
        UsageError: it is Parquet, and pyarrow is not installed; or what can be read once only.
    """
    if path.exists() and not path.is_file():
        raise UsageError(
            f"`{path}` is no regular file, and a table is read more than once",
            hint="write it into a file",
        )
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        from cvt_cli.images.parquet import Parquet

        return Parquet(path)
    return JsonLines(path) if suffix == ".jsonl" else Csv(path)


def require_pyarrow() -> None:
    """Raises UsageError if pyarrow is missing, which reads Parquet."""
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise UsageError(
            "reading Parquet needs pyarrow, which is not installed", hint=installing("parquet")
        ) from None


@contextmanager
def _opened(path: Path) -> Iterator[tuple[TextIO, BinaryIO]]:
    """A text file, and the same as bytes, by which one sees how far it is read.

    It is in UTF-8, or in what its byte order mark says; what is no UTF-8 is kept as the system
    has it in file names.

    Raises:
        DataError: it cannot be read, or is not in the encoding that it says.
    """
    try:
        with path.open("rb") as raw:
            encoding, mark = text.encoding_of(raw.read(4))
            raw.seek(mark)
            yield io.TextIOWrapper(raw, encoding, "surrogateescape", newline=""), raw
    except OSError as error:
        raise DataError(f"cannot read `{path}`: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"`{path}` is not {error.encoding.upper()}, as its first bytes say",
            hint="save it as UTF-8",
        ) from None


class _Meter:
    """Tells how far a file is read."""

    def __init__(self, raw: BinaryIO, advance: Callable[[int], None]) -> None:
        self._raw, self._advance, self._told = raw, advance, 0

    def __call__(self) -> None:
        now = self._raw.tell()
        self._advance(now - self._told)
        self._told = now


def refuse_repeated(columns: Sequence[str], path: Path) -> None:
    """Raises DataError if there are no columns, or two of one name."""
    if not columns:
        raise DataError(f"`{path}` is empty: its first line must name its columns")
    if twice := repeated(columns):
        raise DataError(f"`{path}` has two columns that are called `{twice}`")


def repeated(names: Sequence[str]) -> str | None:
    """The first name that stands there more than once; there may be tens of thousands."""
    return next((name for name, count in Counter(names).items() if count > 1), None)


_OPEN_QUOTE = (
    "a value that begins with a quotation mark ends with one; take a mark out that is none"
)

_LINE_ENDS = re.compile("\r\n|\r|\n")


class Csv(Table):
    """Rows of values with commas between, in .tsv with tabs; the first row names the columns.

    Where a .csv has no comma in its first line, semicolons or tabs are between.
    """

    @cached_property
    def delimiter(self) -> str:
        """What is between two values."""
        if self.path.suffix.lower() == ".tsv":
            return "\t"
        with _opened(self.path) as (lines, _):
            first = lines.readline(1024 * 1024)
        return next((sign for sign in ",;\t" if sign in first), ",")

    @cached_property
    def columns(self) -> tuple[str, ...]:
        with _opened(self.path) as (lines, _):
            first = self._taken(csv.reader(lines, delimiter=self.delimiter, strict=True), 1)
        names = tuple(name.strip() for row in first for name in row)
        refuse_repeated(names, self.path)
        return names

    def _taken(self, reader: Any, count: int) -> list[list[str]]:
        """The next rows of a reader; an empty line is one of no values."""
        try:
            return list(islice(reader, count))
        except csv.Error as error:
            said, hint = str(error), None
            if said.startswith(("unexpected end of data", "field larger than field limit")):
                hint = "a quotation mark is not closed, in this line or one before it"
            elif "expected after" in said:
                hint = _OPEN_QUOTE
            raise DataError(f"`{self.path}`, line {reader.line_num}: {said}", hint=hint) from None

    def pieces(
        self,
        wanted: Sequence[str],
        advance: Callable[[int], None] = lambda read: None,
        most: int = ROWS,
    ) -> Iterator[Piece]:
        place = {name: number for number, name in enumerate(self.columns)}
        pick = [(name, itemgetter(place[name])) for name in wanted]
        with _opened(self.path) as (lines, raw):
            meter = _Meter(raw, advance)
            reader = csv.reader(lines, delimiter=self.delimiter, strict=True)
            self._taken(reader, 1)
            end = reader.line_num
            while rows := self._taken(reader, most):
                begins = np.arange(end + 1, end + 1 + len(rows))
                if reader.line_num - end != len(rows):  # some have several, in quotes
                    taken = [1 + sum(len(_LINE_ENDS.findall(v)) for v in row) for row in rows]
                    begins = end + 1 + np.cumsum([0, *taken[:-1]])
                    if self.delimiter == "\t":
                        self._refuse_swallowed(begins, rows)
                end = reader.line_num
                if set(map(len, rows)) != {len(self.columns)}:
                    begins, rows = self._whole(begins, rows)
                yield Piece(begins, {name: list(map(of, rows)) for name, of in pick})
                meter()

    def _refuse_swallowed(self, begins: NDArray[np.int64], rows: list[list[str]]) -> None:
        """Raises DataError for a value in quotes that has tabs and lines in it, so that rows are:
        what lies between tabs is often written without quotes, and may begin with one."""
        for line, row in zip(begins.tolist(), rows, strict=True):
            for value in row:
                if "\t" in value and "\n" in value:
                    raise DataError(
                        f"`{self.path}`, line {line}: a value in quotes has "
                        f"{len(value.splitlines())} lines, with tabs between values",
                        hint=_OPEN_QUOTE,
                    )

    def _whole(
        self, begins: NDArray[np.int64], rows: list[list[str]]
    ) -> tuple[NDArray[np.int64], list[list[str]]]:
        """The rows without the empty lines; raises DataError where a row is too short or long."""
        kept = [place for place, row in enumerate(rows) if row]
        for place in kept:
            if len(rows[place]) != len(self.columns):
                raise DataError(
                    f"`{self.path}`, line {begins[place]} has {len(rows[place])} values, the first "
                    f"line names {len(self.columns)} columns",
                    hint="a value with "
                    + ("a tab" if self.delimiter == "\t" else f"`{self.delimiter}`")
                    + ' in it is written in quotes, "…"',
                )
        return begins[kept], [rows[place] for place in kept]


class JsonLines(Table):
    """An object a line; the columns are the names in the first of them."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._late: dict[str, int] = {}

    @property
    def late(self) -> Mapping[str, int]:
        return self._late

    @cached_property
    def columns(self) -> tuple[str, ...]:
        with _opened(self.path) as (lines, _):
            found = dict.fromkeys(
                name for _, row in islice(self._rows(lines), ROWS) for name in row
            )
        refuse_repeated(tuple(found), self.path)
        return tuple(found)

    def _rows(self, lines: TextIO) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = text.parsed_json(line, unique=True)
            except ValueError as error:
                what = " is no JSON" if isinstance(error, json.JSONDecodeError) else ""
                raise DataError(f"`{self.path}`, line {number}{what}: {error}") from None
            if not isinstance(row, dict):
                raise DataError(
                    f"`{self.path}`, line {number} is no JSON object such as "
                    '{"path": "1.jpg", "label": "cat"}'
                )
            yield number, row

    def pieces(
        self,
        wanted: Sequence[str],
        advance: Callable[[int], None] = lambda read: None,
        most: int = ROWS,
    ) -> Iterator[Piece]:
        with _opened(self.path) as (lines, raw):
            meter = _Meter(raw, advance)
            every = self._rows(lines)
            while numbered := list(islice(every, most)):
                numbers, rows = zip(*numbered, strict=True)
                values = {name: [row.get(name) for row in rows] for name in wanted}
                for name in set().union(*rows).difference(self.columns):
                    self._late.setdefault(name, numbers[0])
                yield Piece(np.array(numbers, np.int64), values)
                meter()
