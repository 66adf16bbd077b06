"""Parquet as a table of images, whose pictures may lie in the file itself."""

import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from cvt_cli.base import files, limits
from cvt_cli.base.errors import CvtError, DataError, ImageError
from cvt_cli.base.text import human_bytes
from cvt_cli.images import decode, parquet_pages
from cvt_cli.images.packed import Packed, Packing
from cvt_cli.images.table_files import (
    ROWS,
    Piece,
    Table,
    refuse_repeated,
    repeated,
    require_pyarrow,
)


class Parquet(Table):
    """The rows of a Parquet file.

    A column of bytes, or of objects with ``bytes`` and ``path`` as the library `datasets` writes
    them, holds pictures; its values in a `Piece` are then their names, None where they have none.
    Where ``bytes`` is null, ``path`` is where the picture is.
    """

    where = "row"

    def __init__(self, path: Path) -> None:
        require_pyarrow()
        super().__init__(path)

    @contextmanager
    def _opened(self, columns: Sequence[str] = (), shared: bool = True) -> Iterator[Any]:
        """The file, to read these columns; see `parquet_pages.opened`."""
        import pyarrow

        try:
            with parquet_pages.opened(self.path, columns, shared) as file:
                yield file
        except OSError as error:
            raise DataError(f"cannot read `{self.path}`: {error.strerror or error}") from None
        except pyarrow.ArrowException as error:
            raise DataError(f"`{self.path}` cannot be read as Parquet: {error}") from None

    @cached_property
    def _schema(self) -> Any:
        with self._opened() as file:
            return file.schema_arrow

    @cached_property
    def columns(self) -> tuple[str, ...]:
        names = tuple(self._schema.names)
        refuse_repeated(names, self.path)
        return names

    @cached_property
    def holding_bytes(self) -> frozenset[str]:
        from pyarrow import types

        def holds_bytes(kind: Any) -> bool:
            if not _is_struct(kind):
                return is_bytes(kind)
            parts = {part.name: part.type for part in kind}
            if "bytes" not in parts:
                return False
            # Of a file in which no picture has its bytes a writer may know no other type.
            of_none = "path" in parts and types.is_null(parts["bytes"])
            return of_none or is_bytes(parts["bytes"])

        def is_bytes(kind: Any) -> bool:
            return str(kind).startswith(("binary", "large_binary", "fixed_size_binary"))

        return frozenset(field.name for field in self._schema if holds_bytes(field.type))

    def class_names(self, column: str) -> tuple[str, ...] | None:
        """As the library `datasets` writes them beside the schema."""
        try:
            about = json.loads((self._schema.metadata or {})[b"huggingface"])
            feature = about["info"]["features"][column]
            if isinstance(feature, list):  # of lists, as older versions write it
                feature = feature[0]
            names = feature.get("feature", feature)["names"]
        except (LookupError, ValueError, TypeError, AttributeError):
            return None
        if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            return None
        if twice := repeated(names):
            raise DataError(
                f"`{self.path}` calls two classes of its column `{column}` `{twice}`",
                hint="give each class a name of its own",
            )
        return tuple(names)

    def pieces(
        self,
        wanted: Sequence[str],
        advance: Callable[[int], None] = lambda read: None,
        most: int = ROWS,
    ) -> Iterator[Piece]:
        leaves = {name: name for name in wanted}
        for name in self.holding_bytes & set(wanted):  # what names the pictures, not these
            kind = self._schema.field(name).type
            named = _is_struct(kind) and kind.get_field_index("path") >= 0
            leaves[name] = f"{name}.path" if named else ""
        asked = [leaf for leaf in leaves.values() if leaf]
        number, told, size = 0, 0, self.path.stat().st_size
        with self._opened(asked) as file:
            rows = file.metadata.num_rows
            batches = file.iter_batches(most, columns=asked) if asked else _without_columns(rows)
            batch: Any
            for batch in batches:
                n = batch.num_rows if asked else batch
                values: dict[str, Sequence[Any]] = {}
                for name, leaf in leaves.items():
                    if not leaf:
                        values[name] = [None] * n
                        continue
                    found = batch.column(name)
                    found = found if leaf == name else found.flatten()[0]
                    parquet_pages.refuse_long_texts(self.path, found)
                    values[name] = parquet_pages.values(found)
                yield Piece(np.arange(number + 1, number + n + 1), values)
                number += n
                now = size * number // max(rows, 1)
                advance(now - told)
                told = now

    def pictures(self, column: str) -> "Pictures":
        """The pictures in a column, copied to where each can be read by itself.

        Raises:
            CvtError: there is no room for them.
        """
        of_struct = _is_struct(self._schema.field(column).type)
        leaf = f"{column}.bytes" if of_struct else column
        with self._opened([leaf], shared=False) as file:
            room = shutil.disk_usage(tempfile.gettempdir()).free
            needed = _bytes_of(file.metadata, column)
            if needed > room:
                raise CvtError(
                    f"the pictures in `{self.path}` take {human_bytes(needed)} beside it, and "
                    f"`{tempfile.gettempdir()}` has {human_bytes(room)} free",
                    hint="name a roomier folder with TMPDIR=FOLDER, or write the pictures into "
                    "files, and their paths into the table",
                )

            def each() -> Iterator[Any]:
                for batch in file.iter_batches(parquet_pages.ROWS_OF_PICTURES, columns=[leaf]):
                    found = batch.column(column)
                    for one in found.flatten()[0] if of_struct else found:
                        yield one.as_buffer() if one.is_valid else None

            size = self.path.stat().st_size
            most = max(parquet_pages.LARGEST_PAGE, parquet_pages.MOST_UNPACKED * size)
            made = Pictures(each(), most, self.path)
        if of_struct and made.absent.any():
            made.paths = self._paths(column, made.absent)
        return made

    def _paths(self, column: str, wanted: NDArray[np.bool_]) -> Packed:
        """Where the pictures of some rows (n,) are; empty of the others, and where none is told."""
        packing = Packing()
        for piece in self.pieces([column]):
            rows = zip(piece.columns[column], wanted[piece.lines - 1].tolist(), strict=True)
            packing.add([name if one and isinstance(name, str) else "" for name, one in rows])
        return packing.packed()


def _is_struct(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_struct(kind))


def _without_columns(rows: int) -> Iterator[int]:
    for first in range(0, rows, ROWS):
        yield min(ROWS, rows - first)


def _bytes_of(metadata: Any, column: str) -> int:
    """Of a column, unpacked."""
    total = 0
    for group in range(metadata.num_row_groups):
        about = metadata.row_group(group)
        for place in range(about.num_columns):
            leaf = about.column(place)
            if leaf.path_in_schema in (column, f"{column}.bytes"):
                total += leaf.total_uncompressed_size
    return total


class Pictures:
    """Pictures one after another in a temporary file, which goes with the process that made it.

    A picture of a Parquet file is reached only through all that its group of rows holds, which may
    be all of the file; here each is read by itself, in any order, by any thread and process.

    Args:
        contents: of the pictures; None where there is none.
        most: bytes of all of them.
        source: the file that they are from.

    Raises:
        DataError: they have more.
        CvtError: there is no room for them.

    Attributes:
        absent: (n,) the rows that have none.
        paths: where the pictures of these rows are, by row; empty where that is not known.
    """

    paths: Packed | None = None

    def __init__(self, contents: Iterable[Any], most: int, source: Path) -> None:
        place = Path(tempfile.gettempdir(), "cvt-pictures")
        try:
            self.path, handle = files.claimed(place, private=True)
        except OSError as error:
            raise files.unwritable(place, error) from None
        weakref.finalize(self, _remove, self.path, handle, os.getpid())
        ends, absent = [0], bytearray()
        try:
            with open(self.path, "wb") as file:
                for content in contents:
                    file.write(content or b"")
                    absent.append(content is None)
                    ends.append(file.tell())
                    if ends[-1] > most:
                        raise DataError(
                            f"the pictures of the first {len(ends) - 1:,} rows of `{source}` have "
                            f"{human_bytes(ends[-1])} together, many times what the file has: so "
                            "many rows share one",
                            hint="leave the repetitions out",
                        )
        except OSError as error:
            raise CvtError(f"cannot write `{self.path}`: {error.strerror or error}") from None
        self.ends: NDArray[np.int64] = np.array(ends, np.int64)
        self.absent: NDArray[np.bool_] = np.frombuffer(absent, np.bool_)

    def __len__(self) -> int:
        return len(self.ends) - 1

    def elsewhere(self, row: int) -> str:
        """Where a picture is that the table names only; empty of one that it holds itself."""
        return "" if self.paths is None else self.paths[row]

    def size(self, row: int) -> int:
        """Bytes of a picture."""
        return int(self.ends[row + 1] - self.ends[row])

    def open(self, row: int) -> BinaryIO:
        """A picture; raises ImageError if there is none, or it is too large."""
        size = self.size(row)
        if not size:
            raise ImageError("empty (0 bytes)")
        if size > limits.LARGEST_FILE:
            raise decode.too_large()
        return decode.read(size, self._read, row)

    def _read(self, row: int) -> bytes:
        with open(self.path, "rb") as file:
            file.seek(int(self.ends[row]))
            return file.read(self.size(row))


def _remove(path: Path, handle: int, process: int) -> None:
    if os.getpid() == process:  # not by a process that was forked
        with suppress(OSError):
            path.unlink()
        with suppress(OSError):
            os.close(handle)
