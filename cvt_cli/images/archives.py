"""Archives read in place: a table of members once, then each member where it lies.

Nothing is unpacked to disk and no member is trusted to be as small as it says.
"""

import bz2
import lzma
import os
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from cvt_cli.base import limits, zips
from cvt_cli.base.errors import ImageError
from cvt_cli.images import decode, finding
from cvt_cli.images.finding import Passed
from cvt_cli.images.tars import Tar, read_through, read_to_the_end

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

_NOT_FOLLOWED = "a link or device in an archive, which is not followed"


@dataclass(frozen=True)
class _Span:
    """Where a tar member's bytes lie; None for a link or device, which is not followed."""

    offset: int
    size: int


@dataclass
class Index:
    """What an archive holds, by full name. Of two members of one name the later counts."""

    path: Path
    kind: str
    members: dict[str, zipfile.ZipInfo | _Span | None] = field(default_factory=dict)
    folders: dict[str, set[str]] = field(default_factory=lambda: {"": set()})
    files: dict[str, set[str]] = field(default_factory=dict)
    passed: Passed = field(default_factory=Passed)
    state: tuple[int, ...] = ()  # of the archive when it was listed

    def add(self, name: str, member: zipfile.ZipInfo | _Span | None, is_folder: bool) -> None:
        parts = finding.member_parts(name, self.passed)
        if not parts:
            return
        depth = len(parts) if is_folder else len(parts) - 1
        if depth > limits.MOST_FOLDERS:
            raise ValueError(
                f"a member lies {depth:,} folders deep; at most {limits.MOST_FOLDERS} are accepted"
            )
        for level in range(depth):
            self.folders.setdefault("/".join(parts[:level]), set()).add(parts[level])
        self.folders.setdefault("/".join(parts[:depth]), set())
        if not is_folder:
            self.files.setdefault("/".join(parts[:-1]), set()).add(parts[-1])
            full = "/".join(parts)
            if full in self.members and finding.is_image_name(parts[-1]):
                self.passed.replaced.add(f"{self.path}/{full}")
            self.members[full] = member

    def is_of_runs(self, folder: str) -> bool:
        """As `finding.is_of_runs`, by the full name."""
        files, folders = self.files.get(folder, set()), self.folders[folder]
        if files.issuperset(finding.RUN_FILES):
            return True
        inner = [self.files.get(f"{folder}/{name}", set()) for name in folders]
        return not files and bool(inner) and all(f.issuperset(finding.RUN_FILES) for f in inner)

    def all_of_runs(self) -> set[str]:
        """The folders of runs, and all that lies below them."""
        found: set[str] = set()
        for folder in self.folders:  # one comes before what lies in it
            if folder and (folder.rpartition("/")[0] in found or self.is_of_runs(folder)):
                found.add(folder)
        return found

    def open(self, name: str) -> BinaryIO:
        """An image; raises as `Tree.open`."""
        member = self._member(name)
        return decode.read(min(bytes_of(member), limits.LARGEST_FILE), self._image, member)

    def _image(self, member: zipfile.ZipInfo | _Span) -> bytes:
        content = self._bytes(member, limits.LARGEST_FILE)
        if not content:
            raise ImageError("empty file (0 bytes)")
        return content

    def read(self, name: str, limit: int) -> bytes:
        """A member's bytes. Raises ImageError, or OSError where the archive has gone."""
        return self._bytes(self._member(name), limit)

    def _member(self, name: str) -> zipfile.ZipInfo | _Span:
        if name not in self.members:
            raise ImageError("not in the archive")
        member = self.members[name]
        if member is None:
            raise ImageError(_NOT_FOLLOWED)
        return member

    def _bytes(self, member: zipfile.ZipInfo | _Span, limit: int) -> bytes:
        if bytes_of(member) <= limit:
            if isinstance(member, _Span):
                return self._from_tar(member)
            content = self._from_zip(member, limit)
            if len(content) <= limit:
                return content
        raise ImageError(f"too large: more than {limit:,} bytes")

    def _from_tar(self, span: _Span) -> bytes:
        # A file of its own for every read: threads and forked processes would move each other's.
        with self.path.open("rb") as file:
            if _state_of(file) != self.state:  # what stands there may be another picture's
                raise ImageError("the archive was replaced or changed while it was read")
            file.seek(span.offset)
            content = file.read(span.size)
        if len(content) < span.size:
            raise ImageError("the archive ends before this file does")
        return content

    def _from_zip(self, info: zipfile.ZipInfo, limit: int) -> bytes:
        try:
            with _opened_zip(str(self.path), self.state, os.getpid()).open(info) as file:
                if info.compress_type == zipfile.ZIP_BZIP2:
                    return _unpacked_bzip2(self.path, info, limit)
                if info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    return file.read(limit + 1)
                # Of other kinds zipfile unpacks all that it has read: of few bytes, some megabytes.
                pieces = iter(partial(file.read, _PIECE), b"")
                return b"".join(islice(pieces, limit // _PIECE + 1))
        except ARCHIVE_ERRORS as error:
            raise ImageError(f"damaged in the archive: {error}") from None


_PIECE = 4096
"""Bytes, as few as zipfile reads at once."""

_ZIP_LENGTHS = 26
"""Where in a member's header the lengths of its name and its extra field are, two bytes each."""


def _unpacked_bzip2(path: Path, info: zipfile.ZipInfo, limit: int) -> bytes:
    """A member that zipfile has found sound in its headers, up to one byte more than a limit.

    Unlike what deflate packs, zipfile unpacks all that 4096 bytes of bzip2 hold at once, which may
    be gigabytes.
    """
    with path.open("rb") as file:
        file.seek(info.header_offset + _ZIP_LENGTHS)
        lengths = file.read(4)  # of the name and what else stands before the content
        file.seek(sum(int.from_bytes(lengths[i : i + 2], "little") for i in (0, 2)), os.SEEK_CUR)
        packed = file.read(min(info.compress_size, 2 * limit))
    content = bz2.BZ2Decompressor().decompress(packed, min(info.file_size, limit) + 1)
    if len(content) != info.file_size or zlib.crc32(content) != info.CRC:
        raise zipfile.BadZipFile(f"Bad CRC-32 for file {info.filename!r}")
    return content


def bytes_of(member: zipfile.ZipInfo | _Span) -> int:
    """As the archive's table says, unpacked."""
    return member.size if isinstance(member, _Span) else member.file_size


@lru_cache(maxsize=4)
def _opened_zip(path: str, state: tuple[int, ...], process: int) -> zipfile.ZipFile:
    """A few open files per process: threads may share one, forked processes may not; nor is one
    asked for what stands in another that has its name now."""
    return zipfile.ZipFile(path)


def _state_of(file: BinaryIO) -> tuple[int, ...]:
    """What tells whether an open file is another one, or has changed."""
    found = os.fstat(file.fileno())
    return found.st_ino, found.st_mtime_ns, found.st_size


def zip_index(path: Path) -> Index:
    """The members of a .zip; no file stays open.

    Raises:
        OSError: it cannot be read.
        zipfile.BadZipFile: it is damaged, or another of `ARCHIVE_ERRORS`.
    """
    state = path.stat()
    with _INDEXING:
        return _zip_index(path, state.st_mtime_ns, state.st_size)


_INDEXING = threading.Lock()
"""Of several threads that ask for one table, the first reads it."""


@lru_cache(maxsize=2)  # the images of one archive are still being read when the next one's begin
def _zip_index(path: Path, changed: int, size: int) -> Index:
    index = Index(path, "zip archive", state=(changed, size))
    with zipfile.ZipFile(path) as archive:
        for info in zips.named(archive).infolist():
            index.add(info.filename, info, info.filename.endswith("/"))  # it may be empty
            if zips.is_guessed(info):
                index.passed.guessed.add(f"{path}/{info.filename}")
    return index


def tar_index(path: Path) -> Index:
    index = Index(path, "tar archive")
    with path.open("rb") as file, Tar.open(fileobj=file, mode="r:") as archive:
        index.state = _state_of(file)
        for member in archive:
            regular = member.isreg() and not member.issparse()
            span = _Span(member.offset_data, member.size) if regular else None
            index.add(member.name, span, member.isdir())
    return index


# --- every image of an archive, in the archive's order


def images_in_zip(path: Path, passed: Passed) -> Iterator[tuple[str, Callable[[], BinaryIO]]]:
    """The name of each image as a .zip writes it, and what opens it whenever it is asked.

    Args:
        path: of the archive.
        passed: learns what was passed over.

    Raises:
        OSError: the archive cannot be read.
        zipfile.BadZipFile: it is damaged, or another of `ARCHIVE_ERRORS`.
    """
    index = zip_index(path)
    runs = index.all_of_runs()
    passed.folders |= {
        f"{path}/{folder}" for folder in runs if folder.rpartition("/")[0] not in runs
    }
    for name, member in index.members.items():
        if name.rpartition("/")[0] in runs:
            continue
        written = member.filename if isinstance(member, zipfile.ZipInfo) else name
        if finding.is_image_member(name, passed):
            yield written, partial(_open_in_zip, path, name)
    passed.add(index.passed)


def _open_in_zip(path: Path, name: str) -> BinaryIO:
    """An image by the archive's path, so that whoever lists many archives holds few tables."""
    return zip_index(path).open(name)


def images_in_tar(path: Path, passed: Passed) -> Iterator[tuple[str, Callable[[], BinaryIO]]]:
    """The name of each image as a .tar writes it, and what gives its content.

    A compressed archive can be read in one direction only, so that a member is read at once, before
    it is given; one that is not followed or too large to be read fails when it is opened.

    Args:
        path: of the archive, compressed or not.
        passed: learns what was passed over.

    Raises:
        OSError: the archive cannot be read, or not further.
        tarfile.TarError: it is damaged, or another of `ARCHIVE_ERRORS`.
    """
    names = _names_in_place(path)
    runs = finding.Runs(names or ())
    waiting: list[tuple[str, Callable[[], BinaryIO]]] = []
    try:
        for name, opened in _images_passing_by(path, passed, runs):
            # In one direction, what says that it is a run's picture may come after it.
            is_curves = name.rpartition("/")[2] == finding.RUN_PICTURE
            if names is None and is_curves and len(waiting) < _MOST_WAITING:
                waiting.append((name, opened))
            else:
                yield name, opened
    except (OSError, *ARCHIVE_ERRORS):
        yield from _of_no_run(waiting, runs, passed)
        raise
    yield from _of_no_run(waiting, runs, passed)


_MOST_WAITING = 64
"""Pictures, named as a run's, that wait for the end of a compressed archive."""


def _of_no_run(
    found: list[tuple[str, Callable[[], BinaryIO]]], runs: finding.Runs, passed: Passed
) -> Iterator[tuple[str, Callable[[], BinaryIO]]]:
    return (one for one in found if not runs.hold(_full(one[0]), passed))


def _full(name: str) -> str:
    return "/".join(finding.member_parts(name))


def _names_in_place(path: Path) -> list[str] | None:
    """Files that say what a run is, of a .tar whose headers can be read alone; None of others."""
    names = []
    try:
        with path.open("rb") as file, Tar.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                if member.name.endswith(finding.RUN_FILES):
                    names.append(_full(member.name))
    except (OSError, *ARCHIVE_ERRORS):  # which is told to who reads the images
        return names or None
    return names


def _images_passing_by(
    path: Path, passed: Passed, runs: finding.Runs
) -> Iterator[tuple[str, Callable[[], BinaryIO]]]:
    """As `images_in_tar`, but for what lies in runs that are not known yet."""
    with read_through(path) as archive:
        for member in archive:
            if member.isdir():
                continue
            runs.learn(_full(member.name))
            if not finding.is_image_member(member.name, passed):
                continue
            if runs.hold(_full(member.name), passed):
                continue
            if not member.isreg():
                yield member.name, partial(_fail, _NOT_FOLLOWED)
            elif member.size > limits.LARGEST_FILE:
                reason = f"{decode.too_large()}; the archive is not read further"
                yield member.name, partial(_fail, reason)
                return
            else:
                yield member.name, partial(_itself, _content(archive, member))
        read_to_the_end(archive)


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> BinaryIO:
    file = archive.extractfile(member)
    assert file is not None  # of a regular file
    return decode.read(member.size, lambda whole: whole.read(), file)


def _fail(reason: str) -> BinaryIO:
    raise ImageError(reason)


def _itself(content: BinaryIO) -> BinaryIO:
    return content
