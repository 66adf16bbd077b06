"""Tables of a row for each image: CSV, and Apache Parquet (extra ``parquet``)."""

import json
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from cvt_cli.base import text
from cvt_cli.base.errors import UsageError
from cvt_cli.base.package import installing
from cvt_cli.prediction.whole_files import WholeFile

_ROWS_AT_ONCE = 4096


class Csv(WholeFile):
    """A table in CSV (RFC 4180).

    Args:
        path: of the file.
        row: an item's columns, the same for every item.
        empty: an item without content, for the header.
    """

    def __init__(self, path: Path, row: Callable[[Any], dict[str, Any]], empty: Any) -> None:
        self._row = row
        self._header = row(empty)
        super().__init__(path)

    def _begin(self) -> None:
        self._file: IO[str] = self._stack.enter_context(
            self._temporary.open("w", encoding="utf-8", newline="")
        )
        self._file.write(text.csv_row(self._header) + "\n")

    def _add(self, item: Any) -> None:
        self._file.write(text.csv_row(self._row(item).values()) + "\n")

    def _finish(self) -> None:
        """The context closes the file."""


class Json(WholeFile):
    """One JSON document: the conditions, and ``results``.

    Args:
        path: of the file.
        conditions: what its content depends on.
    """

    def __init__(self, path: Path, conditions: Mapping[str, Any]) -> None:
        self._document = {**conditions, "results": []}
        super().__init__(path)

    def _begin(self) -> None:
        """All is written at the end."""

    def _add(self, item: Any) -> None:
        self._document["results"].append(item.to_json())

    def _finish(self) -> None:
        self._temporary.write_text(
            json.dumps(self._document, indent=2, allow_nan=False) + "\n", encoding="utf-8"
        )


class Parquet(WholeFile):
    """An Apache Parquet table, the conditions in its metadata (extra ``parquet``).

    Args:
        path: of the file.
        conditions: what its content depends on.
        row: an item's columns, the same for every item.
        empty: an item without content, for the names of the columns.
    """

    def __init__(
        self,
        path: Path,
        conditions: Mapping[str, Any],
        row: Callable[[Any], dict[str, Any]],
        empty: Any,
    ) -> None:
        import pyarrow

        kinds = {
            "score": pyarrow.float64(),
            "weight": pyarrow.float64(),
            "index": pyarrow.int32(),
            "correct": pyarrow.bool_(),
        }
        self._row = row
        self._schema = pyarrow.schema(
            [(name, kinds.get(name.partition("_")[0], pyarrow.string())) for name in row(empty)],
            metadata={"cvt": json.dumps(conditions)},
        )
        self._rows: list[dict[str, Any]] = []
        super().__init__(path)

    def _begin(self) -> None:
        from pyarrow import parquet

        self._table = self._stack.enter_context(
            parquet.ParquetWriter(self._temporary, self._schema)
        )

    def _add(self, item: Any) -> None:
        self._rows.append(self._row(item))
        if len(self._rows) == _ROWS_AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        import pyarrow

        self._table.write_table(pyarrow.Table.from_pylist(self._rows, self._schema))
        self._rows = []

    def _finish(self) -> None:
        self._flush()


def require_parquet() -> None:
    """Raises UsageError, with the command that installs it, if pyarrow is not there."""
    if find_spec("pyarrow") is None:
        raise UsageError(
            "Parquet needs pyarrow, which is not installed", hint=installing("parquet")
        )
