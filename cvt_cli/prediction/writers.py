"""Answers to files, one by one and in constant memory.

A file appears whole or not at all, but for JSON lines, which are appended to and gone on with.
"""

import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from cvt_cli.base import conditions, files, text, torchrun
from cvt_cli.base.conditions import Conditions
from cvt_cli.base.errors import CvtError, ImageError, UsageError
from cvt_cli.base.package import __version__
from cvt_cli.base.progress import Say
from cvt_cli.images import decode, sources
from cvt_cli.images.sources import Source
from cvt_cli.prediction import gallery
from cvt_cli.prediction.classify import Answer, Prediction

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

    Its lock is held from before anything of it is read until the context ends, so that of several
    processes one answers and the others wait. A line that a killed process left unfinished is cut
    off. Images that have a line, an error included, are done; each line holds the SHA-256 of its
    image's file.

    Args:
        path: of the lines.
        say: told if another process has to be waited for.

    Raises:
        CvtError: it cannot be written, is something else, or does not say how it was made.
    """

    def __init__(self, path: Path, say: Say) -> None:
        self.path = path
        self.done = 0
        self.failed = 0  # of those that are done
        self.made: dict[str, Any] | None = None  # the conditions that it was begun under
        self._hashes: dict[str, bytes] = {}  # of each name's lines, in their order
        self._say = say
        self._stack = ExitStack()
        what = f"answering into `{path}`"
        self._file = self._stack.enter_context(files.growing(path, what, say))
        try:
            if path.is_file() and path.stat().st_size:
                if not conditions.beside(path).exists():
                    raise UsageError(
                        f"`{path}` exists, but not `{conditions.beside(path)}`, which says how it "
                        "was made",
                        hint="give another file, or move this one away",
                    )
                self.made = conditions.read(path)
                self._read()
        except BaseException:
            self._stack.close()
            raise

    def _read(self) -> None:
        """Note what is done, and cut off an unfinished last line."""
        end = 0
        try:
            with self.path.open("rb") as file:
                for line in file:
                    try:
                        document: Any = json.loads(line) if line.endswith(b"\n") else None
                        path, failed = document["path"], "error" in document
                        found = bytes.fromhex(document.get("sha256") or "")
                        os.fsencode(path)  # TypeError for what is no name
                        known = self._hashes.get(path, b"")
                    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                        if file.read(1):
                            raise CvtError(
                                f"`{self.path}` is damaged: byte {end:,} begins a line that is no "
                                "result",
                                hint="remove that line, or give another file",
                            ) from None
                        break
                    _refuse_other_shares(self.path, path)
                    self._hashes[path] = known + (found or _NO_HASH)[:_HASH_BYTES]
                    self.done += 1
                    self.failed += failed
                    end += len(line)
            os.truncate(self.path, end)
        except OSError as error:
            raise files.unwritable(self.path, error) from error

    def begin(self, wanted: Conditions) -> None:
        """Go on under these conditions.

        Raises:
            UsageError: what is there was made under others.
        """
        noted = self.made is not None and _are_noted(self.path, self.made, wanted, self._say)
        if self.path.is_file() and not noted:  # a device or a pipe is not gone on with
            _with_version(wanted).write(self.path)

    def answered(self, name: str) -> bytes | None:
        """The hash, empty if unknown, that an image of this name was answered with; None if not.

        Of several images with one name, as many are done as have a line.
        """
        known = self._hashes.get(name)
        if not known:
            return None
        self._hashes[name] = known[_HASH_BYTES:]
        found = known[:_HASH_BYTES]
        return b"" if found == _NO_HASH else found

    def write(self, answer: Answer, sha256: str | None) -> None:
        """Append one line.

        Args:
            answer: of an image.
            sha256: of its file; None where that could not be read.
        """
        try:
            files.write_all(self._file, _line({**answer.to_json(), "sha256": sha256}))
        except OSError as error:
            raise files.unwritable(self.path, error) from error

    def __enter__(self) -> "JsonLines":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


_HASH_BYTES = 16
"""Of a hash that are kept in memory for each line."""
_NO_HASH = bytes(_HASH_BYTES)


def not_answered(
    lines: JsonLines, found: Iterable[Source], workers: int, hashes: deque[list[str]]
) -> Iterator[Source]:
    """The images that have no line, each of which tells the SHA-256 of its file when it is read.

    Files on this machine that have a line are read again: what they were answered by must be what
    they hold. What an address leads to is not fetched again.

    Args:
        lines: of those that are answered.
        found: all images.
        workers: threads that read.
        hashes: gets a list for each image that is given, in order, which will hold the hash.

    Raises:
        UsageError: an image that is answered has changed.
    """

    def check(source: Source, known: bytes) -> None:
        try:
            if bytes.fromhex(decode.content_hash(source.open))[:_HASH_BYTES] == known:
                return
        except ImageError:
            pass
        raise UsageError(
            f"`{source.name}` has changed since `{lines.path}` answered it",
            hint="remove its line, or give another file",
        )

    checks: deque[Future[None]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for source in found:
                known = lines.answered(source.name)
                if known is None:
                    told: list[str] = []
                    hashes.append(told)
                    yield replace(source, open=decode.hashed(source.open, told.append))
                elif known and not sources.is_remote(source.name):
                    checks.append(pool.submit(check, source, known))
                while checks and (len(checks) > 2 * workers or checks[0].done()):
                    checks.popleft().result()
            while checks:
                checks.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


class Line(NamedTuple):
    """What a line says of its image."""

    path: str
    label: str  # the right class
    sha256: str | None  # of its file; None if that could not be read, empty if it is not said


class Checkpointed:
    """JSON lines with what was counted so far beside them, so that counting can go on.

    Its lock is held as that of `JsonLines`.

    Args:
        path: of the lines; ``FILE.state.json`` lies beside it.
        resume: go on with what is there; else begin anew.
        say: told if another process has to be waited for.

    Raises:
        UsageError: what is there is something else.
        CvtError: the files cannot be written.
    """

    def __init__(self, path: Path, resume: bool, say: Say) -> None:
        self.path = path
        self.lines: list[Line] = []  # that are there
        self.counted: dict[str, Any] | None = None
        self.truth: dict[str, str] | None = None  # hashes of what they were judged by
        self.made: dict[str, Any] | None = None  # the conditions that it was begun under
        self._state_path = path.with_name(path.name + ".state.json")
        self._conditions = Conditions({})
        self._say = say
        self._saved = time.monotonic()
        self._stack = ExitStack()
        what = f"writing predictions to `{path}`"
        self._file = self._stack.enter_context(files.growing(path, what, say))
        try:
            if path.is_file():
                if resume and path.stat().st_size:
                    self._read()
                else:
                    self._state_path.unlink(missing_ok=True)
                    self._file.truncate(0)
        except OSError as error:
            self._stack.close()
            raise files.unwritable(path, error) from error
        except BaseException:
            self._stack.close()
            raise

    def _read(self) -> None:
        """Note what is done, and cut off the lines that were not counted any more."""
        try:
            state = text.read_json(self._state_path)
            noted = state.pop("sha256", None)
            self.made, self.counted = dict(state["conditions"]), state["counted"]
            # Version 0.1 noted no hash, and no version among the conditions.
            if noted != conditions.json_hash(state) and (noted or "version" in self.made):
                raise ValueError("it is damaged")
            self.truth = state.get("truth")
            end = 0
            with self.path.open("rb") as file:
                while end < state["bytes"] and (line := file.readline()):
                    end += len(line)
                    said = json.loads(line)
                    self.lines.append(Line(said["path"], said["label"], said.get("sha256", "")))
            if end != state["bytes"] or len(self.lines) != state["done"]:
                raise ValueError(f"it is of {state['done']} images, {len(self.lines)} have a line")
        except FileNotFoundError:
            raise UsageError(
                f"`{self.path}` exists, but not `{self._state_path}`, which says how it was made",
                hint="give another file, or move this one away; without --resume it is replaced",
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self.unfit(error) from None
        for known in self.lines:
            _refuse_other_shares(self.path, known.path)
        os.truncate(self.path, end)

    def unfit(self, error: Exception) -> UsageError:
        """What to tell the user of a state that cannot be gone on from."""
        return UsageError(
            f"`{self._state_path}` does not fit `{self.path}`: {error}",
            hint="without --resume the evaluation begins anew",
        )

    def begin(self, wanted: Conditions) -> None:
        """Go on under these conditions, which the next `save` notes.

        Raises:
            UsageError: what is there was made under others.
        """
        if self.made is not None:
            _are_noted(self.path, self.made, wanted, self._say)
        self._conditions = _with_version(wanted)

    def write(self, item: Any, sha256: str | None) -> None:
        """Append one line; ``sha256`` of the image, None where it could not be read."""
        try:
            files.write_all(self._file, _line({**item.to_json(), "sha256": sha256}))
        except OSError as error:
            raise files.unwritable(self.path, error) from error

    def save(
        self, done: int, counted: Callable[[], Any], truth: Mapping[str, str], at_once: bool = False
    ) -> None:
        """Note that so many items are done, unless that was noted a moment ago."""
        if not at_once and time.monotonic() - self._saved < SAVE_EVERY_SEC:
            return
        if not self.path.is_file():  # a device or a pipe is not gone on with
            return
        try:
            size = self._file.seek(0, os.SEEK_END)
            os.fsync(self._file.fileno())
        except OSError as error:
            raise files.unwritable(self.path, error) from error
        state = {
            "conditions": self._conditions.values,
            "done": done,
            "bytes": size,
            "counted": counted(),
            "truth": truth,
        }
        files.write_text(
            self._state_path, json.dumps({**state, "sha256": conditions.json_hash(state)})
        )
        self._saved = time.monotonic()

    def __enter__(self) -> "Checkpointed":
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # said before, if it failed
            self._stack.close()


def _line(document: dict[str, Any]) -> bytes:
    return json.dumps(document, allow_nan=False).encode() + b"\n"


def _with_version(wanted: Conditions) -> Conditions:
    """With our version, which is said and not refused."""
    return Conditions({**wanted.values, "version": __version__})


def _refuse_other_shares(path: Path, name: str) -> None:
    """Raises UsageError if an image that a file has is another process's."""
    if not torchrun.is_mine(name):
        raise UsageError(
            f"`{path}` has images that are another process's, such as `{name}`: an earlier version "
            "shared them out by their place",
            hint="give another file",
        )


def _are_noted(path: Path, found: dict[str, Any], wanted: Conditions, say: Say) -> bool:
    """Whether all conditions that a file shall have are noted for it.

    Raises:
        UsageError: it was begun under others.
    """
    hint = "give the same model, data and options, or another file"
    version = found.get("version")
    told = {name: value for name, value in found.items() if name != "version"}
    if version is None:  # 0.1 did not note all of them
        common = [name for name in wanted.values if name in told]
        Conditions({name: wanted.values[name] for name in common}).refuse_other(
            path, {name: told[name] for name in common}, hint
        )
        missing = ", ".join(name for name in wanted.values if name not in told)
        say(
            f"`{path}` was begun by an earlier version, which did not note {missing}: "
            "these are taken to be the same"
        )
        return False
    wanted.refuse_other(path, told, hint)
    if version != __version__:
        say(f"`{path}` was begun by version {version}; this is {__version__}")
    return True


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
        try:
            self._begin()
        except BaseException as error:
            self._stack.close()
            if isinstance(error, OSError):
                raise files.unwritable(path, error) from error
            raise

    def _begin(self) -> None:
        raise NotImplementedError

    def _add(self, item: Any) -> None:
        raise NotImplementedError

    def _finish(self) -> None:
        raise NotImplementedError

    def write(self, item: Any, sha256: str | None = None) -> None:
        """Add the next answer; the hash of its image's file has no place here."""
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
        self._start = gallery.start(str(conditions["model"]), describe)
        super().__init__(path)

    def _begin(self) -> None:
        self._file: IO[str] = self._stack.enter_context(
            self._temporary.open("w", encoding="utf-8", errors="backslashreplace")
        )
        self._file.write(self._start)

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
        import pyarrow

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


class Features(_Whole):
    """``features`` (n, C) in float32 with the images' ``paths``, as .npz or .safetensors.

    The rows wait in a file beside it, so that memory does not grow with them. Safetensors hold no
    text: there the paths are JSON in the metadata.
    """

    def __init__(self, path: Path, conditions: Mapping[str, Any]) -> None:
        self._safetensors = path.suffix.lower() == ".safetensors"
        self._conditions = conditions
        self._paths: list[str] = []
        self._width = 0
        super().__init__(path)

    def _begin(self) -> None:
        self._rows_path = self._stack.enter_context(files.workplace(self._path)) / "rows"
        self._rows = self._stack.enter_context(self._rows_path.open("wb"))

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
            mode = self._temporary.stat().st_mode  # as the umask says; save_file takes 0600
            save_file({"features": features}, self._temporary, metadata)
            self._temporary.chmod(mode)
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
