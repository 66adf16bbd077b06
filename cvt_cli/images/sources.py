"""What stands on the command line of ``cvt predict``, to a stream of images.

Nothing is unpacked to disk, no archive member is trusted to be as small as it says, and whatever
cannot be read is an image whose loading fails, so that the others are answered.
"""

import glob
import io
import os
import re
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from cvt_cli.base import limits, text
from cvt_cli.base.errors import DataError, ImageError
from cvt_cli.images import archives, decode, finding, patterns, remote
from cvt_cli.images.archives import ARCHIVE_ERRORS
from cvt_cli.images.columns import choose
from cvt_cli.images.decode import Colour
from cvt_cli.images.finding import Passed
from cvt_cli.images.parquet import Parquet
from cvt_cli.images.table_files import Table, is_table, open_table
from cvt_cli.spec.config import Size

_NETPBM = re.compile(rb"P[1-6Ff](?:\s+(?:#[^\n]*\n\s*)*\d+){2}\s")
"""How a PPM, PGM, PBM or PFM begins: with text, after which nothing may say that it is none."""

_TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")


@dataclass(frozen=True)
class Source:
    """One image, not read yet; its name holds no password of its address."""

    name: str
    open: Callable[[], BinaryIO]  # raises OSError or ImageError
    missing: str = ""  # why it stands for an input that names no image; empty for an image

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", text.without_password(self.name))

    def load(
        self,
        exif: bool,
        at_least: Size | None = None,
        background: Colour | None = None,
    ) -> Image.Image:
        """Decode it to RGB; `decode.decode` has the arguments and the errors.

        One of a tar archive can be loaded once.
        """
        return decode.decode(self.open, exif, at_least, background)


def sources(inputs: Sequence[str], passed: Passed | None = None) -> Iterator[Source]:
    """The images that each input names, in order, listed as they are needed.

    Whoever takes a source of a tar archive must load or drop it before he takes many more: what
    has been read of the archive and not been decoded counts among the bytes in flight.

    Args:
        inputs: a file; a folder, searched at any depth in natural order; a pattern with ``*``,
            ``?`` or ``[…]`` (``**`` for any depth); a .zip or .tar, read in place and in its own
            order; an http(s) address; any other address that fsspec opens; ``@FILE``, a list of
            these, one a line, or a table (`tables`), whose paths start from its folder; ``-``, such
            a list or one image on stdin.
        passed: learns what was passed over.

    Raises:
        UsageError: what opens an address is not installed.
    """
    return (found for found in _Search(passed or Passed()).all_of(inputs) if found is not None)


class Listing:
    """The images that inputs name, counted before the first of them is read where that is possible.

    Iterating gives the `Source`s in order, once. As long as there are few they are held from the
    counting on, so that a folder or a server is asked for its list once; of more than `MOST_HELD`
    the inputs are gone through again.

    Args:
        inputs: what `sources` takes.
        is_wanted: whether a source of this name is one of them; by default all are.

    Attributes:
        total: how many there are; None where only reading tells (stdin, a list in a pipe, a tar).
        is_empty: whether no input names any image, as far as that is known before reading.
        missing: the inputs that name none, and why.
        passed: what was passed over, whole once all sources were given.

    Raises:
        UsageError: what opens an address is not installed.
    """

    def __init__(
        self, inputs: Sequence[str], is_wanted: Callable[[str], bool] | None = None
    ) -> None:
        self.passed = Passed()
        self.total: int | None = None
        self.is_empty = True
        self.missing: dict[str, str] = {}
        self._inputs, self._is_wanted = inputs, is_wanted
        self._walk = _Search(self.passed).all_of(inputs)
        self._held: list[Source] | None = []  # None: there are too many
        counted = 0
        for found in self._walk:
            if found is None:
                self.is_empty = False
                break
            if found.missing:
                self.missing[found.name] = found.missing
            self.is_empty = self.is_empty and bool(found.missing)
            if is_wanted is None or is_wanted(found.name):
                counted += 1
                if self._held is not None:
                    self._held.append(found)
                if counted > MOST_HELD:
                    self._held = None
        else:
            self.total = counted

    def __iter__(self) -> Iterator[Source]:
        if self._held is None:
            self._walk.close()
            self.passed = Passed()
            self._held, self._walk = [], _Search(self.passed).all_of(self._inputs)
        held = deque(self._held)
        self._held = []
        while held:
            yield held.popleft()
        for found in self._walk:
            if found is not None and (self._is_wanted is None or self._is_wanted(found.name)):
                yield found


MOST_HELD = 10_000
"""Sources that a `Listing` holds at most, some 7 MB."""


def readable_once(inputs: Sequence[str]) -> str | None:
    """The first input that gives what it has to one reader and once: stdin, or a list in a pipe.

    None where there is none. What several processes share must be readable by each.
    """
    for one in inputs:
        if one == "-":
            return one
        if (name := _list_name(one)) and os.path.exists(name) and not os.path.isfile(name):
            return one
    return None


def _is_image(path: Path) -> bool:
    try:
        decode.size(partial(decode.open_regular, path))
    except ImageError:
        return False
    return True


def is_address(text: str) -> bool:
    """Whether it is an http(s) address; the protocol may be written in any case."""
    protocol, separator, _ = text.partition("://")
    return bool(separator) and protocol.lower() in ("http", "https")


def is_remote(name: str) -> bool:
    """Whether what a source of this name reads may be elsewhere than on this machine."""
    return "://" in name and not _is_local_address(name)


def _fetched(address: str) -> BinaryIO:
    from cvt_cli.images import web  # whose http and ssl a start without addresses does not wait for

    return web.fetch(address)


def source(text: str) -> Source:
    """The one image with this path or address, which is searched for no others.

    Raises:
        UsageError: what opens an address is not installed.
    """
    if is_address(text):
        return Source(text, partial(_fetched, text))
    if _is_local_address(text):
        return _file(Path(text[len("file://") :]), text)
    if "://" in text:
        try:
            return Source(text, remote.opener(text))
        except ImageError as error:
            return _unreadable(text, str(error))
    return _file(Path(text))


def open_row(root: Path, name: str, place: str) -> BinaryIO:
    """The file that a row of a table names: a path below ``root``, or an address.

    Raises:
        ImageError: there is none, in which the place of the row is told, or it is no file.
        OSError: the system cannot open it.
    """
    if "://" in name:
        return source(name).open()
    try:
        return decode.open_regular(root / name)
    except FileNotFoundError:
        raise ImageError(f"no such file, {place}") from None


def _file(path: Path, name: str | None = None) -> Source:
    return Source(name or str(path), partial(decode.open_regular, path))


def _unreadable(name: str, reason: str, missing: bool = False) -> Source:
    def fail() -> BinaryIO:
        raise ImageError(reason)

    return Source(name, fail, reason if missing else "")


NO_SUCH_FILE = "no such file or directory"
"""As the system says it of a file that is opened."""


def _is_gone(path: Path) -> bool:
    try:
        path.lstat()
    except FileNotFoundError:
        return True
    except (OSError, ValueError):  # it says so itself when it is opened
        pass
    return False


def _closed(error: OSError) -> Source:
    """A folder that cannot be read, whose images are missed."""
    return _unreadable(os.fsdecode(error.filename or ""), remote.reason(error))


def _list_name(one: str) -> str | None:
    """The file that ``@FILE`` names; None for another input, also a file whose name begins so."""
    return one[1:] if one.startswith("@") and not os.path.exists(one) else None


def _is_local_address(text: str) -> bool:
    return text[:8].lower() == "file:///" and os.sep == "/"


class _Search:
    """What inputs name; None stands before an input whose images only reading tells.

    Args:
        passed: learns what was passed over.
    """

    def __init__(self, passed: Passed) -> None:
        self.passed = passed

    def all_of(self, inputs: Sequence[str]) -> Generator[Source | None, None, None]:
        for one in inputs:
            if readable_once([one]) is not None:
                yield None
            if one == "-":
                yield from self._from_stdin()
            elif name := _list_name(one):
                yield from self._from_list(name)
            else:
                yield from self._some_from_one(one)

    def _some_from_one(self, one: str) -> Iterator[Source | None]:
        """`_from_one`, where an input that names no image is an unreadable one."""
        if _is_tar(one[len("file://") :] if _is_local_address(one) else one):
            yield None
        found = self._from_one(one)
        yield next(found, None) or _unreadable(one, "no images there", missing=True)
        yield from found

    def _from_one(self, one: str) -> Iterator[Source]:
        if is_address(one):
            yield source(one)
        elif _is_local_address(one):
            written, path = one[: len("file://")], one[len("file://") :]
            for found in self._from_path(path):
                yield replace(found, name=written + found.name)
        elif "://" in one:
            yield from self._from_address(one)
        else:
            yield from self._from_path(one)

    def _from_path(self, text: str) -> Iterator[Source]:
        path = Path(text)
        if os.path.isdir(text):
            for found in finding.walk(path, self.passed):
                yield _closed(found) if isinstance(found, OSError) else _file(found)
        elif os.path.isfile(text) and text.lower().endswith(".zip"):
            found_there = archives.images_in_zip(path, self.passed)
            yield from self._from_archive(path, found_there, "damaged archive")
        elif _is_tar(text):
            found_there = archives.images_in_tar(path, self.passed)
            yield from self._from_archive(path, found_there, "damaged archive, not read further")
        elif glob.has_magic(text) and not os.path.lexists(text):
            yield from self._from_pattern(text)
        elif is_table(text) and os.path.isfile(text) and not _is_image(path):
            yield _unreadable(text, f"a table, not an image; `@{text}` is the images that it lists")
        else:
            yield replace(_file(path), missing=NO_SUCH_FILE if _is_gone(path) else "")

    def _from_archive(
        self, path: Path, found: Iterator[tuple[str, Callable[[], BinaryIO]]], damaged: str
    ) -> Iterator[Source]:
        try:
            for name, opened in found:
                yield Source(f"{path}/{name}", opened)
        except (OSError, *ARCHIVE_ERRORS) as error:
            yield _unreadable(str(path), f"{damaged}: {error}")

    def _from_pattern(self, pattern: str) -> Iterator[Source]:
        for found in patterns.matches(pattern, self.passed):
            yield _closed(found) if isinstance(found, OSError) else _file(Path(found))

    def _from_address(self, address: str) -> Iterator[Source]:
        try:
            for name, opened in remote.images_at(address, self.passed):
                yield Source(name, opened)
        except ImageError as error:
            yield _unreadable(address, str(error))

    def _from_lines(self, lines: Iterator[str]) -> Iterator[Source | None]:
        for line in lines:
            if line := line.rstrip("\r\n"):
                yield from self._some_from_one(line)

    def _from_list(self, name: str) -> Iterator[Source | None]:
        try:
            if is_table(name) and os.path.isfile(name):
                table = open_table(Path(name))
                # A plain list may be called so too, whose first line is a file and no column.
                first = table.columns[0]
                if not (finding.is_image_name(os.path.basename(first)) or os.path.exists(first)):
                    yield from _from_table(table)
                    return
            with open(name, "rb") as file:
                yield from self._from_lines(text.lines_of(file))
        except OSError as error:
            is_gone = isinstance(error, FileNotFoundError)
            yield _unreadable(f"@{name}", remote.reason(error), missing=is_gone)
        except (ValueError, DataError) as error:
            yield _unreadable(f"@{name}", str(error))

    def _from_stdin(self) -> Iterator[Source | None]:
        stream = sys.stdin.buffer
        start = stream.peek(512)[:512] if isinstance(stream, io.BufferedReader) else b""
        is_text = start.startswith(text.WIDE_MARKS)
        has_bytes = any(byte < 32 and byte not in b"\t\r\n" for byte in start)
        if (has_bytes and not is_text) or _NETPBM.match(start):
            content = stream.read(limits.LARGEST_FILE + 1)
            if len(content) > limits.LARGEST_FILE:
                yield _unreadable("-", str(decode.too_large()))
            else:
                yield Source("-", partial(decode.Content, content))
            return
        try:
            yield from self._from_lines(text.lines_of(stream))
        except ValueError as error:
            yield _unreadable("-", str(error))


def _from_table(table: Table) -> Iterator[Source]:
    """The images of a table's rows, whose paths start from its folder."""
    columns = choose(table, {}, label=False)
    root, named = table.path.parent, columns.path or columns.picture or ""
    pictures = None
    if columns.picture is not None:
        assert isinstance(table, Parquet)
        pictures = table.pictures(columns.picture)
    row = 0
    for piece in table.pieces(columns.wanted):
        for line, name in zip(piece.lines.tolist(), piece.columns[named], strict=True):
            place = f"{table.where} {line} of `{table.path}`"
            elsewhere = "" if pictures is None else pictures.elsewhere(row)
            if pictures is not None and not elsewhere:
                shown = name if isinstance(name, str) and name else f"row {line}"
                yield Source(f"{table.path}/{shown}", partial(pictures.open, row))
            elif not isinstance(name := elsewhere or name, str) or not name:
                yield _unreadable(place, "no path")
            else:
                if "\\" in name and os.sep == "/" and not os.path.lexists(root / name):
                    name = name.replace("\\", "/")  # as Windows writes it
                where = name if "://" in name else str(root / name)
                yield Source(where, partial(open_row, root, name, place))
            row += 1


def _is_tar(path: str) -> bool:
    return path.lower().endswith(_TAR_SUFFIXES) and os.path.isfile(path)
