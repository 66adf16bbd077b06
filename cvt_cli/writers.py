"""Answers to files, one by one and in constant memory.

A file appears whole or not at all, but for JSON lines, which are appended to and gone on with.
"""

import csv
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from cvt_cli import files, gallery
from cvt_cli.errors import CvtError, UsageError
from cvt_cli.inference import Answer, Prediction

FEATURE_SUFFIXES = (".npz", ".safetensors")

SAVE_EVERY_SEC = 5.0
"""Of an evaluation: what a kill can cost."""

_ROWS_AT_ONCE = 4096


def flat_row(answer: Answer, top_k: int, threshold: bool) -> dict[str, Any]:
    """One row of a table with the same columns for every image; what there is not is None.

    Args:
        answer: of the image.
        top_k: classes that have columns: ``label_1``, ``score_1``, ``index_1``, ``wnid_1``, ….
        threshold: whether there is a column ``answer``.
    """
    row: dict[str, Any] = {"path": as_text(answer.path), "error": answer.error}
    if threshold:
        row["answer"] = answer.answer
    return {**row, **prediction_columns(answer.predictions, top_k)}


def prediction_columns(predictions: Sequence[Prediction], top_k: int) -> dict[str, Any]:
    """``label_1``, ``score_1``, ``index_1``, ``wnid_1``, ``label_2``, …, None beyond the last."""
    row: dict[str, Any] = {}
    for k in range(top_k):
        found = predictions[k] if k < len(predictions) else None
        row[f"label_{k + 1}"] = found and found.label
        row[f"score_{k + 1}"] = found and found.score
        row[f"index_{k + 1}"] = found and found.index
        row[f"wnid_{k + 1}"] = found and found.wnid
    return row


def as_text(name: str) -> str:
    """A file name as text that UTF-8 can hold."""
    return name.encode("utf-8", "backslashreplace").decode()


# --- JSON lines that can be gone on with


class JsonLines:
    """An append-only file of a line for each image, and beside it what the lines depend on.

    A line that a killed process left unfinished is cut off. Images that have a line, an error
    included, are done.
    """

    def __init__(self, path: Path, conditions: Mapping[str, Any]) -> None:
        self.path = path
        self.done: Counter[str] = Counter()
        self.failed = 0  # of those that are done
        beside = path.with_name(path.name + ".conditions.json")
        wanted = json.loads(json.dumps(conditions))
        try:
            if path.exists() and path.stat().st_size:
                self._check(beside, wanted)
                self._read()
            else:
                files.write_text(beside, json.dumps(wanted, indent=1) + "\n")
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise files.unwritable(path, error) from error

    def _check(self, beside: Path, wanted: dict[str, Any]) -> None:
        try:
            found = json.loads(beside.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise UsageError(
                f"`{self.path}` exists, but not `{beside}`, which says how it was made",
                hint="give another file, or move this one away",
            ) from None
        _refuse_other_conditions(self.path, found, wanted)

    def _read(self) -> None:
        """Count what is done, and cut off an unfinished last line."""
        end = 0
        with self.path.open("rb") as file:
            for line in file:
                try:
                    document: Any = json.loads(line) if line.endswith(b"\n") else None
                    path, failed = document["path"], "error" in document
                except (ValueError, TypeError, KeyError):
                    if file.read(1):
                        raise CvtError(
                            f"`{self.path}` is damaged: byte {end:,} begins a line that is no "
                            "result",
                            hint="remove that line, or give another file",
                        ) from None
                    break
                self.done[path] += 1
                self.failed += failed
                end += len(line)
        os.truncate(self.path, end)

    def is_done(self, name: str) -> bool:
        """Whether this image has a line; of several with one name, as many as have one."""
        if self.done[name] == 0:
            return False
        self.done[name] -= 1
        return True

    def write(self, answer: Answer) -> None:
        """Append one line, in one call to the system."""
        line = json.dumps(answer.to_json(), allow_nan=False) + "\n"
        try:
            self._file.write(line.encode())
        except OSError as error:
            raise files.unwritable(self.path, error) from error

    def __enter__(self) -> "JsonLines":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


class Checkpointed:
    """JSON lines with what was counted so far beside them, so that counting can go on.

    Args:
        path: of the lines; ``FILE.state.json`` lies beside it.
        conditions: what the lines depend on.
        resume: go on with what is there; else begin anew.

    Raises:
        UsageError: what is there was made under other conditions, or is something else.
        CvtError: the files cannot be written.
    """

    def __init__(self, path: Path, conditions: Mapping[str, Any], resume: bool) -> None:
        self.path = path
        self.done = 0  # items, of which the file holds whole lines
        self.counted: dict[str, Any] | None = None
        self._state_path = path.with_name(path.name + ".state.json")
        self._conditions = json.loads(json.dumps(conditions))
        self._saved = time.monotonic()
        self._file: IO[bytes]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if resume and path.exists():
                self._read_state()
                self._file = path.open("r+b")
            else:
                self._state_path.unlink(missing_ok=True)
                self._file = path.open("wb")
        except OSError as error:
            raise files.unwritable(path, error) from error

    def _read_state(self) -> None:
        try:
            state = json.loads(self._state_path.read_text(encoding="utf-8"))
            if self.path.stat().st_size < state["bytes"]:
                raise ValueError("lines are missing")
        except FileNotFoundError:
            os.truncate(self.path, 0)  # it ended before anything was saved
            return
        except (ValueError, KeyError) as error:
            raise UsageError(
                f"`{self._state_path}` does not fit `{self.path}`: {error}",
                hint="without --resume the evaluation begins anew",
            ) from None
        _refuse_other_conditions(self.path, state["conditions"], self._conditions)
        self.done, self.counted = state["done"], state["counted"]
        os.truncate(self.path, state["bytes"])

    def write(self, item: Any) -> None:
        """Append one line."""
        try:
            self._file.write(json.dumps(item.to_json(), allow_nan=False).encode() + b"\n")
        except OSError as error:
            raise files.unwritable(self.path, error) from error

    def save(self, done: int, counted: Callable[[], Any], at_once: bool = False) -> None:
        """Note that so many items are done, unless that was noted a moment ago."""
        if not at_once and time.monotonic() - self._saved < SAVE_EVERY_SEC:
            return
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise files.unwritable(self.path, error) from error
        state = {
            "conditions": self._conditions,
            "done": done,
            "bytes": self._file.tell(),
            "counted": counted(),
        }
        files.write_text(self._state_path, json.dumps(state))
        self._saved = time.monotonic()

    def __enter__(self) -> "Checkpointed":
        self._file.seek(0, os.SEEK_END)
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # said before, if it failed
            self._file.close()


def _refuse_other_conditions(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    for key in wanted:
        if found.get(key) != wanted[key]:
            raise UsageError(
                f"`{path}` was made with {key} {json.dumps(found.get(key))}, "
                f"this run has {json.dumps(wanted[key])}",
                hint="give the same options, or another file",
            )


# --- whole files


class _Whole:
    """A file that is written beside its place and appears when its context ends without an error.

    Raises:
        CvtError: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stack = ExitStack()
        self._temporary = self._stack.enter_context(files.replacing(path))

    def _add(self, item: Any) -> None:
        raise NotImplementedError

    def _finish(self) -> None:
        raise NotImplementedError

    def write(self, item: Any) -> None:
        """Add the next answer."""
        try:
            self._add(item)
        except OSError as error:
            raise files.unwritable(self._path, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            try:
                self._finish()
            except OSError as failure:
                unwritable = files.unwritable(self._path, failure)
                self._stack.__exit__(CvtError, unwritable, None)
                raise unwritable from failure
        self._stack.__exit__(kind, error, trace)


class Page(_Whole):
    """A self-contained HTML page of thumbnails with their answers."""

    def __init__(self, path: Path, conditions: Mapping[str, Any], describe: str) -> None:
        super().__init__(path)
        self._file: IO[str] = self._stack.enter_context(
            self._temporary.open("w", encoding="utf-8", errors="backslashreplace")
        )
        self._file.write(gallery.start(str(conditions["model"]), describe))

    def _add(self, answer: Answer) -> None:
        self._file.write(gallery.card(answer))

    def _finish(self) -> None:
        self._file.write(gallery.END)


class Csv(_Whole):
    """A table in CSV (RFC 4180).

    Args:
        path: of the file.
        row: an item's columns, the same for every item.
        empty: an item without content, for the header.
    """

    def __init__(self, path: Path, row: Callable[[Any], dict[str, Any]], empty: Any) -> None:
        super().__init__(path)
        self._row = row
        file = self._stack.enter_context(self._temporary.open("w", encoding="utf-8", newline=""))
        self._writer = csv.writer(file, lineterminator="\n")
        self._writer.writerow(row(empty))

    def _add(self, item: Any) -> None:
        self._writer.writerow(self._row(item).values())

    def _finish(self) -> None:
        """The context closes the file."""


class Parquet(_Whole):
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
        super().__init__(path)
        import pyarrow
        from pyarrow import parquet

        kinds = {
            "score": pyarrow.float64(),
            "index": pyarrow.int32(),
            "correct": pyarrow.bool_(),
        }
        self._row = row
        self._schema = pyarrow.schema(
            [(name, kinds.get(name.partition("_")[0], pyarrow.string())) for name in row(empty)],
            metadata={"cvt": json.dumps(conditions)},
        )
        self._table = self._stack.enter_context(
            parquet.ParquetWriter(self._temporary, self._schema)
        )
        self._rows: list[dict[str, Any]] = []

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


class Features(_Whole):
    """``features`` (n, C) in float32 with the images' ``paths``, as .npz or .safetensors.

    The rows wait in a file beside it, so that memory does not grow with them. Safetensors hold no
    text: there the paths are JSON in the metadata.
    """

    def __init__(self, path: Path, conditions: Mapping[str, Any]) -> None:
        super().__init__(path)
        self._safetensors = path.suffix.lower() == ".safetensors"
        self._rows_path = self._temporary.with_suffix(".rows")
        self._stack.callback(self._rows_path.unlink, missing_ok=True)
        self._rows = self._stack.enter_context(self._rows_path.open("wb"))
        self._conditions = conditions
        self._paths: list[str] = []
        self._width = 0

    def _add(self, answer: Answer) -> None:  # an image that could not be read has no row
        if answer.features is not None:
            self._width = len(answer.features)
            self._rows.write(answer.features.tobytes())
            self._paths.append(as_text(answer.path))

    def _finish(self) -> None:
        self._rows.flush()
        shape = (len(self._paths), self._width)
        features: NDArray[np.float32] = np.zeros(shape, np.float32)
        if self._paths:
            features = np.memmap(self._rows_path, np.float32, "r", shape=shape)
        conditions = json.dumps(self._conditions)
        if self._safetensors:
            from safetensors.numpy import save_file

            metadata = {"paths": json.dumps(self._paths), "conditions": conditions}
            save_file({"features": features}, self._temporary, metadata)
        else:
            with self._temporary.open("wb") as file:  # savez adds a suffix to a name
                np.savez(
                    file, features=features, paths=np.array(self._paths), conditions=conditions
                )


def check(parquet: Path | None, features: Path | None) -> None:
    """Raises UsageError for what cannot be written, before the work that it would hold."""
    if features is not None and features.suffix.lower() not in FEATURE_SUFFIXES:
        accepted = " and ".join(f"`{suffix}`" for suffix in FEATURE_SUFFIXES)
        raise UsageError(f"features cannot be written as `{features}`; accepted are {accepted}")
    if parquet is not None:
        require_parquet()


def require_parquet() -> None:
    """Raises UsageError, with the command that installs it, if pyarrow is not there."""
    if find_spec("pyarrow") is None:
        raise UsageError(
            "Parquet needs pyarrow, which is not installed", hint="pip install 'cvt-cli[parquet]'"
        )
