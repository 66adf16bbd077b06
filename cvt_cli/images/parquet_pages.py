"""Parquet files opened so that a small one does not unpack to more than memory holds.

A page, which is unpacked as a whole, says in its header how large it will be; the headers lie
between the pages, in Thrift's compact form. A text that many rows share is held once.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from cvt_cli.base.errors import DataError
from cvt_cli.base.text import human_bytes
from cvt_cli.images.table_files import ROWS

LARGEST_PAGE = 256 * 1024**2
"""Bytes that a page may unpack to, however few it has in the file."""

MOST_UNPACKED = 16
"""Bytes that each byte of a larger page may unpack to: pictures are packed already."""

ROWS_OF_PICTURES = 8
"""Rows that are held at once where each has a picture, which may be large, whatever is said of it
in the file: one picture may stand there for many rows."""

_MOST_VALUES = 16
"""Values of a column for each byte of the file: few texts that many rows share take little."""

LARGEST_TEXTS = 256 * 1024**2
"""Bytes of the texts of some rows that are held together, had each row its own."""

_LONG = LARGEST_TEXTS // ROWS
"""Bytes of a text that so many rows may not each have for themselves."""

_DEEPEST = 32
"""Of structures in one another; a header has three."""

_MOST_ELEMENTS = 1_000
"""Of a collection; a header has none."""

_TYPE, _UNPACKED, _PACKED = 1, 2, 3
"""Fields of a page's header."""

_DICTIONARY = 2
"""Type of the page with the values that rows share."""

_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 11, 12
"""Kinds of a field; those between `_BYTE` and `_DOUBLE` are whole numbers."""


@contextmanager
def opened(path: Path, columns: Collection[str], shared: bool = True) -> Iterator[Any]:
    """A Parquet file, to read some of its columns.

    Args:
        path: of it.
        columns: their names; "image.path" for a part of one.
        shared: texts that many rows share may be read as dictionaries, for `values`.

    Raises:
        OSError: it cannot be read.
        pyarrow.ArrowException: it is none, or damaged.
        DataError: it says that it has more rows or values than so many bytes can, or a page unpacks
            to far more than it takes in the file.
    """
    from pyarrow import parquet

    metadata, size = parquet.read_metadata(path), path.stat().st_size
    if metadata.num_rows > size:
        raise DataError(
            f"`{path}` claims {metadata.num_rows:,} rows in {size:,} bytes, which is too short for "
            "so many"
        )
    leaves = [metadata.schema.column(place) for place in range(metadata.num_columns)]
    asked = set(columns)
    wanted = {
        place: leaf.path
        for place, leaf in enumerate(leaves)
        if asked.intersection(_around(leaf.path))
    }
    texts = set()
    with path.open("rb") as file:
        for group in range(metadata.num_row_groups):
            about = metadata.row_group(group)
            for place, name in wanted.items():
                dictionary = _refuse_bomb(path, file, about.column(place), name, size)
                if not shared or name in texts or leaves[place].physical_type != "BYTE_ARRAY":
                    continue
                if leaves[place].max_repetition_level or (
                    dictionary > _LONG and _longest(path, name, group) > _LONG
                ):
                    texts.add(name)
    # Where the texts are short it is several times as quick to give each row its own.
    with parquet.ParquetFile(path, read_dictionary=sorted(texts)) as table:
        yield table


def _around(path: str) -> Iterator[str]:
    """A leaf's name, and those of what it is a part of: "a.b" and "a"."""
    parts = path.split(".")
    return (".".join(parts[:count]) for count in range(len(parts), 0, -1))


def _longest(path: Path, name: str, group: int) -> int:
    """Bytes of the longest text that rows of a group share."""
    from pyarrow import compute, parquet

    with parquet.ParquetFile(path, read_dictionary=[name]) as table:
        for batch in table.iter_batches(1, row_groups=[group], columns=[name]):
            found = batch.column(0)
            while hasattr(found, "flatten") and not hasattr(found, "dictionary"):
                found = found.flatten()[0]
            return int(compute.max(compute.binary_length(found.dictionary)).as_py() or 0)
    return 0


def _refuse_bomb(path: Path, file: BinaryIO, column: Any, name: str, size: int) -> int:
    """Bytes of the texts that rows share in a group's part of a column.

    Raises:
        DataError: it unpacks to far more than it takes.
    """
    if column.num_values > _MOST_VALUES * size:
        raise DataError(
            f"`{path}` claims {column.num_values:,} values of its column `{name}` in {size:,} "
            "bytes, which is too short for so many"
        )
    dictionary = 0
    for header in _pages(path, file, column):
        packed, unpacked = header[_PACKED], header[_UNPACKED]
        most, times = LARGEST_PAGE, MOST_UNPACKED
        if header.get(_TYPE) == _DICTIONARY:  # some rows have each a copy of one of its values
            most, times = LARGEST_PAGE // ROWS_OF_PICTURES, MOST_UNPACKED // ROWS_OF_PICTURES
            dictionary = max(dictionary, unpacked)
        if unpacked > max(most, times * packed):
            raise DataError(
                f"`{path}`: a page of its column `{name}` unpacks from {human_bytes(packed)} to "
                f"{human_bytes(unpacked)}, which would be held in memory at once; accepted are "
                f"{human_bytes(most)}",
                hint="write it again with smaller pages; in pyarrow: "
                "write_table(…, row_group_size=100)",
            )
    return dictionary


def values(column: Any) -> list[Any]:
    """Of an Arrow array, each with the text that it shares with others."""
    import pyarrow

    if isinstance(column, pyarrow.ListArray | pyarrow.LargeListArray):
        every = iter(values(column.flatten()))
        counts = column.value_lengths().to_pylist()
        return [None if n is None else [next(every) for _ in range(n)] for n in counts]
    if not isinstance(column, pyarrow.DictionaryArray):
        return column.to_pylist()  # type: ignore[no-any-return]
    held = column.dictionary.to_pylist()
    return [None if place is None else held[place] for place in column.indices.to_pylist()]


def refuse_long_texts(path: Path, column: Any) -> None:
    """Raises DataError if the texts of an array were too much, had each of its values its own."""
    import pyarrow
    from pyarrow import compute

    if isinstance(column, pyarrow.ListArray | pyarrow.LargeListArray):
        refuse_long_texts(path, column.flatten())
    elif isinstance(column, pyarrow.DictionaryArray):
        lengths = compute.binary_length(column.dictionary).fill_null(0).to_numpy().astype(np.int64)
        needed = int(lengths[column.indices.drop_null().to_numpy()].sum())
        if needed > LARGEST_TEXTS:
            raise DataError(
                f"`{path}`: {len(column):,} values of its rows have texts of {human_bytes(needed)};"
                f" accepted are {human_bytes(LARGEST_TEXTS)}"
            )


def _pages(path: Path, file: BinaryIO, column: Any) -> Iterator[dict[int, int]]:
    """The header of each page of a column."""
    begin, first = column.data_page_offset, column.dictionary_page_offset
    if column.has_dictionary_page and first:
        begin = min(begin, first)
    end = begin + column.total_compressed_size
    file.seek(begin)
    while file.tell() < end:
        try:
            header = _struct(file, 0)
            file.seek(header[_PACKED], 1)
            header[_UNPACKED]
        except (ValueError, KeyError, OverflowError):
            raise DataError(
                f"`{path}` cannot be read as Parquet: the header of a page is damaged"
            ) from None
        yield header


def _struct(file: BinaryIO, depth: int) -> dict[int, int]:
    """The whole numbers of a structure by their fields' identifiers; what else it has is skipped.

    Raises:
        ValueError: it is none.
    """
    found: dict[int, int] = {}
    field = 0
    while (head := _byte(file)) != 0:
        kind = head & 15
        field = field + (head >> 4) if head >> 4 else _signed(file)
        value = _value(file, kind, depth)
        if value is not None:
            found[field] = value
    return found


def _value(file: BinaryIO, kind: int, depth: int) -> int | None:
    """A whole number; None of another value, which is skipped."""
    if depth > _DEEPEST:
        raise ValueError("too deep")
    if kind in (_TRUE, _FALSE):
        return None
    if kind == _BYTE:
        _byte(file)
    elif _BYTE < kind < _DOUBLE:
        return _signed(file)
    elif kind == _DOUBLE:
        file.seek(8, 1)
    elif kind == _BINARY:
        file.seek(_unsigned(file), 1)
    elif kind in (_LIST, _SET):
        head = _byte(file)
        count = head >> 4 if head >> 4 < 15 else _unsigned(file)
        for _ in range(_few(count)):
            _element(file, head & 15, depth)
    elif kind == _MAP:
        count = _unsigned(file)
        kinds = _byte(file) if count else 0
        for _ in range(_few(count)):
            _element(file, kinds >> 4, depth)
            _element(file, kinds & 15, depth)
    elif kind == _STRUCT:
        _struct(file, depth + 1)
    else:
        raise ValueError(f"no kind {kind}")
    return None


def _element(file: BinaryIO, kind: int, depth: int) -> None:
    """One of a collection, where truth takes a byte."""
    _value(file, _BYTE if kind in (_TRUE, _FALSE) else kind, depth + 1)


def _few(count: int) -> int:
    if count > _MOST_ELEMENTS:
        raise ValueError(f"a collection of {count}")
    return count


def _signed(file: BinaryIO) -> int:
    """A whole number, whose lowest bit is its sign."""
    value = _unsigned(file)
    return (value >> 1) ^ -(value & 1)


def _unsigned(file: BinaryIO) -> int:
    """A whole number, seven bits a byte, the lowest first."""
    value = 0
    for shift in range(0, 70, 7):
        byte = _byte(file)
        value |= (byte & 127) << shift
        if byte < 128:
            return value
    raise ValueError("a number without an end")


def _byte(file: BinaryIO) -> int:
    found = file.read(1)
    if not found:
        raise ValueError("it ends too soon")
    return found[0]
