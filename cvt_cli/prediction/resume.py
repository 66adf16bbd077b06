"""The file of ``cvt predict --resume``: which images are answered, and still the same."""

import json
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from cvt_cli.base import conditions, files
from cvt_cli.base.conditions import Conditions
from cvt_cli.base.errors import CvtError, ImageError, UsageError
from cvt_cli.base.progress import Say
from cvt_cli.images import decode, sources
from cvt_cli.images.sources import Source
from cvt_cli.prediction.json_lines import ResumableLines, with_version

_HASH_BYTES = 16
"""Bytes of each image's hash that are kept in memory."""
_NO_HASH = bytes(_HASH_BYTES)


class Answered(ResumableLines):
    """JSON lines of answers, and beside them ``FILE.conditions.json``, what they depend on.

    Images that have a line, an error included, are done. A line that a killed process left
    unfinished is cut off.

    Args:
        path: of the lines.
        say: told what `ResumableLines` says; its errors are raised here too.
        anew: replace what is there.
    """

    def __init__(self, path: Path, say: Say, anew: bool = False) -> None:
        self._anew = anew
        self.done = 0
        self.failed = 0  # of those that are done
        self.remote = 0  # of them too: what is behind these addresses is not fetched again
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
                self._hashes[path] = known + (found or _NO_HASH)[:_HASH_BYTES]
                self.done += 1
                self.failed += failed
                self.remote += sources.is_remote(path)
                end += len(line)
        self.cut(end)

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


def not_answered(
    lines: Answered, found: Iterable[Source], workers: int, hashes: deque[list[str]]
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
