"""What stands on the command line of ``cvt predict``, to a stream of images.

Nothing is unpacked to disk, no archive member is trusted to be as small as it says, and whatever
cannot be read is an image whose loading fails, so that the others are answered.
"""

import codecs
import glob
import io
import os
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from PIL import Image

from cvt_cli.base import limits, text
from cvt_cli.base.errors import ImageError, UsageError
from cvt_cli.images import archives, decode
from cvt_cli.images.archives import ARCHIVE_ERRORS
from cvt_cli.images.decode import Colour, Passed

if TYPE_CHECKING:
    import fsspec

_TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
_WIDE_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
"""How a list in UTF-16 begins (in UTF-32 too)."""


@dataclass(frozen=True)
class Source:
    """One image, not read yet."""

    name: str
    open: Callable[[], BinaryIO]  # raises OSError or ImageError
    missing: bool = False  # it stands for an input in which there are no images

    def load(
        self,
        exif: bool,
        at_least: tuple[int, int] | None = None,
        background: Colour | None = None,
    ) -> Image.Image:
        """Decode it; as `images.decode`, which see for the arguments and errors.

        One of a tar archive can be loaded once.
        """
        return decode.decode(self.open, exif, at_least, background)


class _Uncountable(Exception):
    """Only reading tells how many images there are."""


def sources(inputs: Sequence[str], passed: Passed | None = None) -> Iterator[Source]:
    """The images that each input names, in order, listed as they are needed.

    Whoever takes a source of a tar archive must load or drop it before he takes many more: what
    has been read of the archive and not been decoded counts among the bytes in flight.

    Args:
        inputs: a file; a folder, searched at any depth in natural order; a pattern with ``*``,
            ``?`` or ``[…]`` (``**`` for any depth); a .zip or .tar, read in place and in its own
            order; an http(s) address; any other address that fsspec opens; ``@FILE``, a list of
            these, one a line; ``-``, such a list or one image on stdin.
        passed: learns what was passed over.

    Raises:
        UsageError: what opens an address is not installed.
    """
    return _Search(passed or Passed()).all_of(inputs)


def count(inputs: Sequence[str], passed: Passed | None = None) -> int | None:
    """How many `sources` gives, which are listed for it; 0 where all that they say is "none".

    None where only reading tells (stdin, a list in a pipe, tar archives). Arguments and errors are
    those of `sources`.
    """
    total, found = 0, False
    try:
        for source in _Search(passed or Passed(), counting=True).all_of(inputs):
            total += 1
            found = found or not source.missing
    except _Uncountable:
        return None
    return total if found else 0


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
            return Source(text, partial(_open_remote, *_file_system(text)))
        except ImageError as error:
            return _unreadable(text, str(error))
    return _file(Path(text))


def _file(path: Path, name: str | None = None) -> Source:
    return Source(name or str(path), partial(decode.open_regular, path))


def _unreadable(name: str, reason: str, missing: bool = False) -> Source:
    def fail() -> BinaryIO:
        raise ImageError(reason)

    return Source(name, fail, missing)


def _closed(error: OSError) -> Source:
    """A folder that cannot be read, whose images are missed."""
    return _unreadable(os.fsdecode(error.filename or ""), _reason(error))


def _list_name(one: str) -> str | None:
    """The file that ``@FILE`` names; None for another input, also a file whose name begins so."""
    return one[1:] if one.startswith("@") and not os.path.exists(one) else None


def _is_local_address(text: str) -> bool:
    return text[:8].lower() == "file:///" and os.sep == "/"


class _Search:
    """What inputs name.

    Args:
        passed: learns what was passed over.
        counting: nothing is read but what must be for a listing; `_Uncountable` if that is not
            enough.
    """

    def __init__(self, passed: Passed, counting: bool = False) -> None:
        self.passed, self.counting = passed, counting

    def all_of(self, inputs: Sequence[str]) -> Iterator[Source]:
        for one in inputs:
            if self.counting and readable_once([one]) is not None:
                raise _Uncountable
            if one == "-":
                yield from self._from_stdin()
            elif name := _list_name(one):
                yield from self._from_list(name)
            else:
                yield from self._some_from_one(one)

    def _some_from_one(self, one: str) -> Iterator[Source]:
        """`_from_one`, where an input that names no image is an unreadable one."""
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
        path, name = Path(text), text.lower()
        if os.path.isdir(text):
            for found in decode.walk(path, self.passed):
                yield _closed(found) if isinstance(found, OSError) else _file(found)
        elif os.path.isfile(text) and name.endswith(".zip"):
            yield from self._from_zip(path)
        elif os.path.isfile(text) and name.endswith(_TAR_SUFFIXES):
            if self.counting:
                raise _Uncountable
            yield from self._from_tar(path)
        elif glob.has_magic(text) and not os.path.lexists(text):
            yield from self._from_pattern(text)
        else:
            yield _file(path)

    # --- patterns

    def _from_pattern(self, pattern: str) -> Iterator[Source]:
        try:
            found = sorted(glob.glob(pattern, recursive=True), key=decode.natural_key)
            closed = list(self._closed_to(pattern))
        except RecursionError:  # `**` goes down by calling itself
            yield _unreadable(pattern, "there are too many folders there, one in another")
            return
        for name in found:
            if not os.path.isdir(name) and self._is_meant(name, pattern):
                yield _file(Path(name))
        yield from map(_closed, closed)

    def _is_meant(self, name: str, pattern: str) -> bool:
        """Whether what a pattern matches is hidden nowhere but where the pattern says so."""
        written = {".", "..", "", *pattern.split("/")}
        shows_hidden = any(part.startswith(".") for part in written - {".", ".."})
        parts = name.split("/")
        for depth, part in enumerate(parts, start=1):
            if part in written:
                continue
            if part.startswith(".") and not shows_hidden:
                return False
            if depth < len(parts) and decode.is_no_pictures(part):
                self.passed.folders.add("/".join(parts[:depth]))
                return False
        return True

    def _closed_to(self, pattern: str) -> Iterator[OSError]:
        """The folders that a pattern is to be searched for in, and that cannot be read.

        `glob` passes over these in silence.
        """
        parts, seen = pattern.split("/"), set()
        for depth in range(1, len(parts)):
            above, listed = "/".join(parts[:depth]), glob.has_magic(parts[depth])
            if not listed and not glob.has_magic(above):
                continue
            for folder in sorted(glob.glob(f"{above}/", recursive=True)):
                if folder in seen or not self._is_meant(folder, pattern):
                    continue
                seen.add(folder)
                try:
                    if listed:
                        os.scandir(folder).close()
                    else:
                        os.stat(os.path.join(folder, "."))
                except OSError as error:
                    yield OSError(error.errno, error.strerror, folder.rstrip("/"))

    # --- lists

    def _from_lines(self, lines: Iterator[str]) -> Iterator[Source]:
        for line in lines:
            if line := line.rstrip("\r\n"):
                yield from self._some_from_one(line)

    def _from_list(self, name: str) -> Iterator[Source]:
        try:
            with open(name, "rb") as file:
                yield from self._from_lines(_lines(file))
        except OSError as error:
            yield _unreadable(f"@{name}", _reason(error))
        except ValueError as error:
            yield _unreadable(f"@{name}", str(error))

    def _from_stdin(self) -> Iterator[Source]:
        stream = sys.stdin.buffer
        start = stream.peek(512)[:512] if isinstance(stream, io.BufferedReader) else b""
        is_text = start.startswith(_WIDE_MARKS)
        if not is_text and any(byte < 32 and byte not in b"\t\r\n" for byte in start):
            content = stream.read(limits.LARGEST_FILE + 1)
            if len(content) > limits.LARGEST_FILE:
                yield _unreadable("-", str(decode.too_large()))
            else:
                yield Source("-", partial(decode.Content, content))
            return
        try:
            yield from self._from_lines(_lines(stream))
        except ValueError as error:
            yield _unreadable("-", str(error))

    # --- archives

    def _from_zip(self, path: Path) -> Iterator[Source]:
        try:
            index = archives.zip_index(path)
        except (OSError, *ARCHIVE_ERRORS) as error:
            yield _unreadable(str(path), f"damaged archive: {error}")
            return
        for name, member in index.members.items():
            written = member.filename if isinstance(member, zipfile.ZipInfo) else name
            if decode.is_image_member(name, self.passed):
                yield Source(f"{path}/{written}", partial(index.open, name))
        self.passed.add(index.passed)

    def _from_tar(self, path: Path) -> Iterator[Source]:
        """Member after member, since a compressed archive can be read in one direction only."""
        try:
            with archives.read_through(path) as archive:
                for member in archive:
                    if member.isdir() or not decode.is_image_member(member.name, self.passed):
                        continue
                    name = f"{path}/{member.name}"
                    if not member.isreg():
                        reason = "a link or device in an archive, which is not followed"
                        yield _unreadable(name, reason)
                    elif member.size > limits.LARGEST_FILE:
                        reason = f"{decode.too_large()}; the archive is not read further"
                        yield _unreadable(name, reason)
                        return
                    else:
                        yield _of_tar(name, archive, member)
        except (OSError, *ARCHIVE_ERRORS) as error:
            yield _unreadable(str(path), f"damaged archive, not read further: {error}")

    # --- addresses

    def _from_address(self, address: str) -> Iterator[Source]:
        try:
            system, path = _file_system(address)
        except ImageError as error:
            yield _unreadable(address, str(error))
            return
        try:
            if glob.has_magic(path):
                found = [name for name in system.glob(path) if self._is_meant(name, path)]
            elif system.isdir(path):
                # Hidden is what is so below the folder that was named.
                found = [
                    name
                    for name in system.find(path)
                    if decode.is_image_member(name.removeprefix(path), self.passed)
                ]
            else:
                found = [path]
        except Exception as error:  # every file system has its own kinds
            yield _unreadable(address, _reason(error))
            return
        # Of `simplecache::zip://*.png::s3://bucket/a.zip` the found lie in `zip://`.
        before, _, rest = address.partition("://")
        _, colons, around = rest.partition("::")
        # Of the local one a path without its first slash would be another.
        local = before.rpartition("::")[2].lower() in ("file", "local")
        for name in sorted(found, key=decode.natural_key):
            place = ("/" if local else "") + name.lstrip("/")
            written = f"{before}://{place}{colons}{around}"
            yield Source(written, partial(_open_remote, system, name))


def _lines(file: BinaryIO) -> Iterator[str]:
    """The lines of a list of file names, as they come; it may begin with a byte order mark.

    Raises:
        ValueError: it is in UTF-16, and not right.
    """
    start = file.peek(4) if isinstance(file, io.BufferedReader) else b""
    if start.startswith(_WIDE_MARKS):
        yield from text.decoded(file.read(), names=True).split("\n")
        return
    for number, line in enumerate(file):
        content = line if number else line.removeprefix(codecs.BOM_UTF8)
        yield content.decode("utf-8", "surrogateescape")


def _of_tar(name: str, archive: tarfile.TarFile, member: tarfile.TarInfo) -> Source:
    """A member where the archive stands, read at once, since it goes on after it."""
    file = archive.extractfile(member)
    assert file is not None  # of a regular file
    content = decode.read(member.size, lambda whole: whole.read(), file)
    return Source(name, lambda: content)


def _file_system(address: str) -> tuple["fsspec.AbstractFileSystem", str]:
    """What opens an address, and the path in it.

    Raises:
        UsageError: there is no such protocol, or its package is not installed.
        ImageError: it cannot be opened, as where a server does not answer.
    """
    import fsspec

    protocol, colon, path = address.partition("://")
    if protocol.isalnum():  # not several, one in another
        address = protocol.lower() + colon + path
    try:
        return fsspec.core.url_to_fs(address)  # type: ignore[no-any-return]
    except ImportError as error:
        raise UsageError(f"`{address}` needs a package that is not installed: {error}") from None
    except Exception as error:  # every file system has its own kinds
        if not (isinstance(error, ValueError) and "Protocol not known" in str(error)):
            raise ImageError(_reason(error)) from None
        accepted = ", ".join(f"`{p}`" for p in ("http", "https", "s3", "gs", "hf", "file"))
        raise UsageError(
            f"`{address}`: no such protocol; accepted are {accepted} and what else fsspec knows"
        ) from None


def _open_remote(system: "fsspec.AbstractFileSystem", name: str) -> BinaryIO:
    try:
        with system.open(name, "rb") as file:
            size = getattr(file, "size", None)
            known = isinstance(size, int) and 0 <= size <= limits.LARGEST_FILE
            most: int = size if known else limits.LARGEST_FILE  # type: ignore[assignment]
            return decode.read(most, _all_of, file)
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(_reason(error)) from None


def _all_of(file: BinaryIO) -> bytes:
    """All of a file that may lie about its size."""
    content = file.read(limits.LARGEST_FILE + 1)
    if len(content) > limits.LARGEST_FILE:
        raise decode.too_large()
    return content


def _reason(error: Exception) -> str:
    """One line of an error of a file system or the network."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.splitlines()[0].lower() if isinstance(error, OSError) else text.splitlines()[0]
