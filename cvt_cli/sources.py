"""What stands on the command line of ``cvt predict``, to a stream of images.

Nothing is unpacked to disk, no archive member is trusted to be as small as it says, and whatever
cannot be read is an image whose loading fails, so that the others are answered.
"""

import glob
import io
import lzma
import os
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO

from PIL import Image

from cvt_cli import __version__, images
from cvt_cli.errors import ImageError, UsageError

if TYPE_CHECKING:
    import fsspec

LARGEST_FILE = 128 * 1024**2
"""Bytes that are read at most of a member of an archive or of a URL."""

URL_TIMEOUT_SEC = 10.0
"""For which a server may be silent."""

URL_DEADLINE_SEC = 60.0
"""For one image, however slowly its bytes come."""

_CHUNK = 1024**2
_TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
ARCHIVE_ERRORS = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    ValueError,
    NotImplementedError,  # a compression that Python does not know
    RuntimeError,  # an encrypted member
)
"""What Python's archive readers raise for damaged content, besides OSError."""


@dataclass(frozen=True)
class Source:
    """One image, not read yet."""

    name: str
    open: Callable[[], BinaryIO]  # raises OSError or ImageError

    def load(self, exif: bool, at_least: tuple[int, int] | None = None) -> Image.Image:
        """Decode it; as `images.decode`, which see for the arguments and errors."""
        return images.decode(self.open, exif, at_least)


def sources(inputs: Sequence[str]) -> Iterator[Source]:
    """The images that each input names, in order, listed as they are needed.

    Args:
        inputs: a file; a folder, searched at any depth in natural order; a pattern with ``*``,
            ``?`` or ``[…]`` (``**`` for any depth); a .zip or .tar, read in place and in its own
            order; an http(s) address; any other address that fsspec opens; ``@FILE``, a list of
            these, one a line; ``-``, such a list or one image on stdin.

    Raises:
        UsageError: what opens an address is not installed.
    """
    for text in inputs:
        if text == "-":
            yield from _from_stdin()
        elif text.startswith("@") and not os.path.exists(text):
            yield from _from_list(text[1:])
        else:
            yield from _some_from_one(text)


def count(inputs: Sequence[str]) -> int | None:
    """How many images there are; None where only reading them tells (stdin, tar archives)."""
    total = 0
    for text in inputs:
        if text == "-" or (text.lower().endswith(_TAR_SUFFIXES) and not os.path.isdir(text)):
            return None
        if text.startswith("@") and not os.path.exists(text):
            if readable_once([text]) is not None:
                return None
            try:
                with open(text[1:], encoding="utf-8", errors="surrogateescape") as file:
                    inner = count([line.rstrip("\r\n") for line in file if line.strip()])
            except OSError:
                inner = 1  # reported where it is read
            if inner is None:
                return None
            total += inner
        else:
            total += sum(1 for _ in _from_one(text))
    return total


def readable_once(inputs: Sequence[str]) -> str | None:
    """The first input that gives what it has to one reader and once: stdin, or a list in a pipe.

    None where there is none. What several processes share must be readable by each.
    """
    for text in inputs:
        if text == "-":
            return text
        if text.startswith("@") and not os.path.exists(text):
            name = text[1:]
            if os.path.exists(name) and not os.path.isfile(name):
                return text
    return None


def _some_from_one(text: str) -> Iterator[Source]:
    """`_from_one`, where an input that names no image is an unreadable one."""
    found = _from_one(text)
    yield next(found, None) or _unreadable(text, "no images there")
    yield from found


def _from_one(text: str) -> Iterator[Source]:
    if "://" in text:
        yield from _from_address(text)
        return
    path = Path(text)
    name = text.lower()
    if path.is_dir():
        yield from (_file(found) for found in images.images_in(path))
    elif path.is_file() and name.endswith(".zip"):
        yield from _from_zip(path)
    elif path.is_file() and name.endswith(_TAR_SUFFIXES):
        yield from _from_tar(path)
    elif glob.has_magic(text) and not path.exists():
        found = sorted(glob.glob(text, recursive=True), key=images.natural_key)
        yield from (_file(Path(name)) for name in found if not os.path.isdir(name))
    else:
        yield _file(path)


def source(text: str) -> Source:
    """The one image with this path or address, which is searched for no others.

    Raises:
        UsageError: what opens an address is not installed.
    """
    if text.startswith(("http://", "https://")):
        return Source(text, partial(_fetch, text))
    if "://" in text:
        return Source(text, partial(_open_remote, *_file_system(text)))
    return _file(Path(text))


def _file(path: Path) -> Source:
    return Source(str(path), partial(images.open_regular, path))


def _unreadable(name: str, reason: str) -> Source:
    def fail() -> BinaryIO:
        raise ImageError(reason)

    return Source(name, fail)


def _bytes(name: str, content: bytes) -> Source:
    return Source(name, partial(io.BytesIO, content))


# --- lists


def _from_lines(lines: Iterator[str]) -> Iterator[Source]:
    for line in lines:
        if line := line.rstrip("\r\n"):
            yield from _some_from_one(line)


def _from_list(name: str) -> Iterator[Source]:
    try:
        file = open(name, encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        yield _unreadable(f"@{name}", (error.strerror or str(error)).lower())
        return
    with file:
        yield from _from_lines(file)


def _from_stdin() -> Iterator[Source]:
    stream = sys.stdin.buffer
    start = stream.peek(512)[:512] if isinstance(stream, io.BufferedReader) else b""
    if any(byte < 32 and byte not in b"\t\r\n" for byte in start):  # no text
        content = stream.read(LARGEST_FILE + 1)
        yield (
            _bytes("-", content) if len(content) <= LARGEST_FILE else _unreadable("-", _too_large())
        )
        return
    yield from _from_lines(
        io.TextIOWrapper(stream, encoding="utf-8", errors="surrogateescape", newline="\n")
    )


# --- archives


def _too_large() -> str:
    return f"too large: more than {LARGEST_FILE:,} bytes"


def _read(file: BinaryIO) -> bytes:
    """All of a file that may lie about its size."""
    content = file.read(LARGEST_FILE + 1)
    if len(content) > LARGEST_FILE:
        raise ImageError(_too_large())
    return content


def _member_name(archive: Path, member: str) -> str:
    return f"{archive}/{member}"


def _is_image(member: str) -> bool:
    """Whether a member is to be read: visible, as are its folders, and with an image's suffix."""
    path = PurePosixPath(member)
    hidden = any(part.startswith(".") and part not in (".", "..") for part in path.parts)
    return not hidden and "__MACOSX" not in path.parts and images.is_image_name(path.name)


def _from_zip(path: Path) -> Iterator[Source]:
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, *ARCHIVE_ERRORS) as error:
        yield _unreadable(str(path), f"damaged archive: {error}")
        return
    for member in archive.infolist():  # the file stays open while a member is still wanted
        if not member.is_dir() and _is_image(member.filename):
            name = _member_name(path, member.filename)
            yield Source(name, partial(_open_zip_member, archive, member))


def _open_zip_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> BinaryIO:
    if member.file_size > LARGEST_FILE:
        raise ImageError(_too_large())
    try:
        with archive.open(member) as file:
            return io.BytesIO(_read(file))  # type: ignore[arg-type]
    except ARCHIVE_ERRORS as error:
        raise ImageError(f"damaged in the archive: {error}") from None


def _from_tar(path: Path) -> Iterator[Source]:
    """Member after member, since a compressed archive can be read in one direction only."""
    try:
        with tarfile.open(path, mode="r|*") as archive:
            for member in archive:
                if not _is_image(member.name):
                    continue
                name = _member_name(path, member.name)
                if not member.isreg():
                    yield _unreadable(name, "a link or device in an archive, which is not followed")
                elif member.size > LARGEST_FILE:
                    yield _unreadable(name, f"{_too_large()}; the archive is not read further")
                    return
                else:
                    file = archive.extractfile(member)
                    assert file is not None  # of a regular file
                    yield _bytes(name, file.read())
    except (OSError, *ARCHIVE_ERRORS) as error:
        yield _unreadable(str(path), f"damaged archive, not read further: {error}")


# --- addresses


def _from_address(address: str) -> Iterator[Source]:
    if address.startswith(("http://", "https://")):
        yield source(address)
        return
    system, path = _file_system(address)
    protocol = address.partition("://")[0]
    try:
        if glob.has_magic(path):
            found = system.glob(path)
        elif system.isdir(path):
            found = [name for name in system.find(path) if _is_image(name.rpartition("/")[2])]
        else:
            found = [path]
    except Exception as error:  # every file system has its own kinds
        yield _unreadable(address, _reason(error))
        return
    for name in sorted(found, key=images.natural_key):
        yield Source(f"{protocol}://{name.lstrip('/')}", partial(_open_remote, system, name))


def _file_system(address: str) -> tuple["fsspec.AbstractFileSystem", str]:
    """What opens an address, and the path in it."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(address)  # type: ignore[no-any-return]
    except ImportError as error:
        raise UsageError(f"`{address}` needs a package that is not installed: {error}") from None
    except ValueError:
        accepted = ", ".join(f"`{p}`" for p in ("http", "https", "s3", "gs", "hf", "file"))
        raise UsageError(
            f"`{address}`: no such protocol; accepted are {accepted} and what else fsspec knows"
        ) from None


def _open_remote(system: "fsspec.AbstractFileSystem", name: str) -> BinaryIO:
    try:
        with system.open(name, "rb") as file:
            return io.BytesIO(_read(file))
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(_reason(error)) from None


def _reason(error: Exception) -> str:
    """One line of an error of a file system or the network."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.splitlines()[0].lower() if isinstance(error, OSError) else text.splitlines()[0]


def _fetch(address: str) -> BinaryIO:
    """An image from the web, whole and within limits of size and time.

    Raises:
        ImageError: it cannot be had.
    """
    import http.client
    import time
    import urllib.error
    import urllib.request

    # Not urlopen, which also opens file: and ftp: addresses that a server redirects to.
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.UnknownHandler,
    ):
        opener.add_handler(handler())
    deadline = time.monotonic() + URL_DEADLINE_SEC
    content = io.BytesIO()
    try:
        request = urllib.request.Request(address, headers={"User-Agent": f"cvt-cli/{__version__}"})
        with opener.open(request, timeout=URL_TIMEOUT_SEC) as response:
            announced = response.headers.get("Content-Length")
            if announced and announced.isdigit() and int(announced) > LARGEST_FILE:
                raise ImageError(_too_large())
            while chunk := response.read1(_CHUNK):
                content.write(chunk)
                if content.tell() > LARGEST_FILE:
                    raise ImageError(_too_large())
                if time.monotonic() > deadline:
                    raise ImageError(f"not here after {URL_DEADLINE_SEC:.0f} s")
    except urllib.error.HTTPError as error:
        error.close()
        loops = "redirects without end" if "infinite loop" in str(error.msg) else error.reason
        raise ImageError(f"the server answered {error.code}: {loops}") from None
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
        cause = getattr(error, "reason", error)
        if isinstance(cause, TimeoutError):
            raise ImageError(f"no answer within {URL_TIMEOUT_SEC:.0f} s") from None
        raise ImageError(f"cannot be fetched: {cause or type(cause).__name__}") from None
    if announced and announced.isdigit() and content.tell() != int(announced):
        raise ImageError(f"ended after {content.tell():,} of {int(announced):,} bytes")
    content.seek(0)
    return content
