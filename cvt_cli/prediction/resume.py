"""The file of ``cvt predict --resume``: which images are answered, and still the same."""

import json
import os
import stat
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from cvt_cli.base import conditions, files
from cvt_cli.base.conditions import Conditions
from cvt_cli.base.errors import CvtError, ImageError, UsageError
from cvt_cli.base.progress import Say
from cvt_cli.images import decode, sources
from cvt_cli.images.sources import Source
from cvt_cli.prediction.json_lines import Document, ResumableLines, line_of, with_version

_HASH_BYTES = 16
"""Bytes of each image's hash that are kept in memory."""
_NO_HASH = bytes(_HASH_BYTES)


class _Error(NamedTuple):
    """A line that says why an image could not be read."""

    start: int  # its place in the file, in bytes
    line: bytes


class Answered(ResumableLines):
    """JSON lines of answers, and beside them ``FILE.conditions.json``, what they depend on.

    Images that have an answer are done. Those that have an error are tried again: what is said of
    them then takes the place of that line, which is gone once the context ends. A line that a
    killed process left unfinished is cut off.

    Args:
        path: of the lines.
        say: told what `ResumableLines` says; its errors are raised here too.
        anew: replace what is there.

    Attributes:
        done: images that are answered.
        failed: images that have an error.
        remote: of those that are answered: what is behind these addresses is not fetched again.
    """

    def __init__(self, path: Path, say: Say, anew: bool = False) -> None:
        self._anew = anew
        self.done = self.failed = self.remote = 0
        self._errors: dict[str, list[_Error]] = {}  # of each name, in their order
        self._readable: set[str] = set()  # of these names: there are images in them now
        self._superseded: set[int] = set()  # where errors begin that are true no more
        self._hashes: dict[str, bytes] = {}  # of each name's lines, in their order
        super().__init__(path, f"answering into `{path}`", say, self._read)

    def _read(self) -> None:
        """Note what is done, and cut off an unfinished last line."""
        if self._anew:
            files.refuse_replaced(self.path)
            conditions.beside(self.path).unlink(missing_ok=True)
            self.cut(0)
        if not self.path.stat().st_size:
            return
        if not conditions.beside(self.path).exists():
            raise UsageError(
                f"`{self.path}` exists, but not `{conditions.beside(self.path)}`, which says how "
                "it was made",
                hint="name another file, or move this one away",
            )
        self.made = conditions.read(self.path)
        end = 0
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
                            f"`{self.path}` is damaged: byte {end:,} begins a line that is not "
                            "a result",
                            hint="remove that line, or name another file",
                        ) from None
                    break
                self.refuse_other_shares(path)
                errors = self._of_killed(path, line)
                if failed:
                    self._errors[path] = [*errors, _Error(end, line)]
                else:
                    self._hashes[path] = known + (found or _NO_HASH)[:_HASH_BYTES]
                    self.done += 1
                    self.remote += sources.is_remote(path)
                end += len(line)
        self.failed = sum(map(len, self._errors.values()))
        self.cut(end)

    def _of_killed(self, name: str, line: bytes) -> list[_Error]:
        """The errors of a name but for those that this later line takes the place of: who wrote it
        was killed before they were gone. One that is listed twice has the same error twice."""
        errors = self._errors.pop(name, [])
        self._superseded.update(one.start for one in errors if one.line != line)
        return [one for one in errors if one.line == line]

    def begin(self, wanted: Conditions) -> None:
        """Go on under these conditions.

        Raises:
            UsageError: what is there was made under others.
        """
        noted = self.are_noted(wanted)
        if self.path.is_file() and not noted:  # a device or a pipe is not gone on with
            with_version(wanted).write(self.path)

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

    def write(self, item: Document, sha256: str | None) -> None:
        """Append one line, unless that of an image which was tried again says just this."""
        line = line_of(item, sha256)
        if errors := self._errors.get(item.path):
            earlier = errors.pop(0)
            if earlier.line == line:
                return
            self._superseded.add(earlier.start)
        self._append(line)

    def found(self, name: str) -> None:
        """Note that there is an image of this name: an archive or a folder that it lies in, of
        which an error stands there, is damaged, empty or closed no more, unless that is said again.
        """
        while self._errors and (name := name.rpartition("/")[0]):
            self._readable.update({name, f"{name}/"} & self._errors.keys())

    def _drop_superseded(self) -> None:
        """Replace the file by one without the errors that are true no more."""
        with files.replacing(self.path) as temporary, self.path.open("rb") as file:
            files.permit(temporary, stat.S_IMODE(os.fstat(file.fileno()).st_mode))
            start = 0
            with temporary.open("wb") as kept:
                for line in file:
                    if start not in self._superseded:
                        kept.write(line)
                    start += len(line)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for name in self._readable:
            self._superseded.update(one.start for one in self._errors[name])
        try:
            if self._superseded and (error is None or isinstance(error, KeyboardInterrupt)):
                self._drop_superseded()
        finally:
            super().__exit__(kind, error, trace)


def not_answered(
    lines: Answered, found: Iterable[Source], workers: int, hashes: deque[list[str]]
) -> Iterator[Source]:
    """The images that have no answer, each of which tells the SHA-256 of its file when it is read.

    Files on this machine that have one are read again: what they were answered by must be what
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
            problem = f"has changed since `{lines.path}` answered it"
        except ImageError as error:
            problem = f"could be read when `{lines.path}` answered it, and cannot now: {error}"
        raise UsageError(
            f"`{source.name}` {problem}",
            hint="bring the same file back, remove its line, or name another file",
        )

    checks: deque[Future[None]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for source in found:
                lines.found(source.name)
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
