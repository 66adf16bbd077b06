"""Files in a folder, a .zip or an uncompressed .tar: listed, and opened in any order.

An archive is read in place: its table of members once, then each member where it lies. Nothing is
unpacked to disk and no member is trusted to be as small as it says. `Tree.open` may be called from
several threads, and from processes that were forked or to which a tree was sent.
"""

import bz2
import lzma
import os
import posixpath
import shlex
import tarfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, cast

from cvt_cli.base import limits
from cvt_cli.base.errors import DataError, ImageError
from cvt_cli.images import decode
from cvt_cli.images.decode import Passed

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

# How such files begin, and what undoes the compression alone.
_COMPRESSED = {
    b"\x1f\x8b": "gunzip -k",
    b"BZh": "bunzip2 -k",
    b"\xfd7zXZ\x00": "unxz -k",
    b"\x28\xb5\x2f\xfd": "unzstd",
}


class Tree(ABC):
    """Files below one place. Names are paths below it, with slashes.

    What is hidden, and folders that systems make (`images.is_passed_over`), are not listed.
    """

    @property
    @abstractmethod
    def root(self) -> Path:
        """The place, for messages: of an archive its path and the folder in it."""

    @property
    @abstractmethod
    def kind(self) -> str:
        """One of "folder", "zip archive" and "tar archive"."""

    @abstractmethod
    def listing(
        self, folder: str = "", passed: Passed | None = None
    ) -> tuple[list[str], list[str]]:
        """Names of the folders and of the files directly in a folder, unsorted.

        Args:
            folder: in this tree.
            passed: learns which folders are passed over.

        Raises:
            DataError: the folder cannot be read.
        """

    @abstractmethod
    def has(self, file: str) -> bool:
        """Whether there is such a file."""

    @abstractmethod
    def has_folder(self, folder: str) -> bool:
        """Whether there is such a folder."""

    @abstractmethod
    def below(self, folder: str) -> "Tree":
        """The tree of a folder in this one."""

    @abstractmethod
    def parent(self) -> "Tree":
        """The tree around this one; around an archive lies the folder that it is in."""

    @abstractmethod
    def open(self, file: str) -> BinaryIO:
        """An image file.

        Raises:
            ImageError: it is empty, missing from an archive, too large or damaged there.
            OSError: the system cannot open it.
        """

    @abstractmethod
    def size(self, file: str) -> int | None:
        """Bytes of a file, as the system or the archive says; None if it is not there."""

    @abstractmethod
    def read(self, file: str) -> bytes:
        """All of a file that is no image.

        Raises:
            DataError: it cannot be read or has more than `limits.LARGEST_TABLE` bytes.
        """

    def images(self, folder: str = "", passed: Passed | None = None) -> Iterator[str]:
        """Image files in a folder at any depth, in the order of `images.images_in`.

        Raises:
            DataError: a folder cannot be read.
        """
        folders, files = self.listing(folder, passed)
        for name in sorted(files, key=decode.natural_key):
            if decode.is_image_name(name):
                yield posixpath.join(folder, name)
            elif passed is not None:
                passed.add_file(name)
        for name in sorted(folders, key=decode.natural_key):
            yield from self.images(posixpath.join(folder, name), passed)

    def has_images(self, folder: str = "") -> bool:
        """Whether there is an image file in a folder, at any depth."""
        return any(True for _ in self.images(folder))


def open_tree(path: Path) -> Tree:
    """The files of a folder or an archive.

    Raises:
        DataError: neither, a damaged archive, or one that must be decompressed first.
    """
    if os.path.isdir(path):
        return Folder(path)
    if not os.path.isfile(path):  # a pipe would block for ever
        raise DataError(f"`{path}` is not a folder, a .zip or a .tar")
    try:
        with path.open("rb") as file:
            start = file.read(8)
        for magic, command in _COMPRESSED.items():
            if start.startswith(magic):
                quoted = shlex.quote(str(path))
                raise DataError(
                    f"`{path}` cannot be read in place: it is compressed as a whole, so that each "
                    "image is reached only through all that lie before it",
                    hint=f"decompress it once with `{command} {quoted}` and name the .tar that "
                    f"this leaves, or unpack it with `tar -xf {quoted}`",
                )
        if path.suffix.lower() == ".zip":
            return Archive(zip_index(path))
        if path.suffix.lower() == ".tar":
            return Archive(_tar_index(path))
    except OSError as error:
        raise DataError(f"cannot read `{path}`: {error.strerror or error}") from None
    except ARCHIVE_ERRORS as error:
        raise DataError(f"`{path}` is damaged: {error}", hint="copy or fetch it again") from None
    raise DataError(f"`{path}` is not a folder, a .zip or a .tar")


# --- folders


@dataclass(frozen=True)
class Folder(Tree):
    """A folder on disk; see `Tree`."""

    path: Path

    @property
    def root(self) -> Path:
        return self.path

    @property
    def kind(self) -> str:
        return "folder"

    def listing(
        self, folder: str = "", passed: Passed | None = None
    ) -> tuple[list[str], list[str]]:
        folders: list[str] = []
        files: list[str] = []
        try:
            with os.scandir(self.path / folder) as entries:
                for entry in entries:
                    if not decode.is_folder(entry):
                        if not entry.name.startswith("."):
                            files.append(entry.name)
                    elif not decode.is_passed_over(entry.name):
                        folders.append(entry.name)
                    elif passed is not None and decode.is_no_pictures(entry.name):
                        passed.folders.add(entry.path)
        except OSError as error:
            raise _closed_folder(error) from None
        return folders, files

    def has(self, file: str) -> bool:
        return os.path.isfile(self.path / file)

    def has_folder(self, folder: str) -> bool:
        return os.path.isdir(self.path / folder)

    def below(self, folder: str) -> Tree:
        return Folder(self.path / folder)

    def parent(self) -> Tree:
        return Folder(self.path.absolute().parent)

    def open(self, file: str) -> BinaryIO:
        return decode.open_regular(self.path / file)

    def size(self, file: str) -> int | None:
        try:
            return (self.path / file).stat().st_size
        except OSError:
            return None

    def read(self, file: str) -> bytes:
        try:
            with (self.path / file).open("rb") as opened:
                content = opened.read(limits.LARGEST_TABLE + 1)
        except OSError as error:
            raise DataError(f"cannot read `{self.path / file}`: {error.strerror}") from None
        return _not_too_large(self.path / file, content)

    def images(self, folder: str = "", passed: Passed | None = None) -> Iterator[str]:
        # Not by `listing`, which follows links to folders, in circles where they lead so.
        try:
            for path in decode.images_in(self.path / folder, passed):
                yield path.relative_to(self.path).as_posix()
        except OSError as error:
            raise _closed_folder(error) from None


def _closed_folder(error: OSError) -> DataError:
    return DataError(
        f"cannot read `{error.filename}`: {error.strerror}",
        hint="nothing is done with a part of the images; make the folder readable, or move it away",
    )


def _not_too_large(path: Path, content: bytes) -> bytes:
    if len(content) > limits.LARGEST_TABLE:
        raise DataError(f"`{path}` has more than {limits.LARGEST_TABLE:,} bytes")
    return content


# --- archives


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

    def add(self, name: str, member: zipfile.ZipInfo | _Span | None, is_folder: bool) -> None:
        parts = decode.member_parts(name, self.passed)
        if not parts:
            return
        depth = len(parts) if is_folder else len(parts) - 1
        if depth > limits.MOST_FOLDERS:
            raise ValueError(
                f"a member lies in {depth:,} folders, one in another; {limits.MOST_FOLDERS} are "
                "the most"
            )
        for level in range(depth):
            self.folders.setdefault("/".join(parts[:level]), set()).add(parts[level])
        self.folders.setdefault("/".join(parts[:depth]), set())
        if not is_folder:
            self.files.setdefault("/".join(parts[:-1]), set()).add(parts[-1])
            full = "/".join(parts)
            if full in self.members and decode.is_image_name(parts[-1]):
                self.passed.replaced.add(f"{self.path}/{full}")
            self.members[full] = member

    def open(self, name: str) -> BinaryIO:
        """An image; raises as `Tree.open`."""
        member = self._member(name)
        return decode.read(min(_bytes_of(member), limits.LARGEST_FILE), self._image, member)

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
            raise ImageError("a link or device in an archive, which is not followed")
        return member

    def _bytes(self, member: zipfile.ZipInfo | _Span, limit: int) -> bytes:
        if _bytes_of(member) <= limit:
            if isinstance(member, _Span):
                return self._from_tar(member)
            content = self._from_zip(member, limit)
            if len(content) <= limit:
                return content
        raise ImageError(f"too large: more than {limit:,} bytes")

    def _from_tar(self, span: _Span) -> bytes:
        # A file of its own for every read: threads and forked processes would move each other's.
        with self.path.open("rb") as file:
            file.seek(span.offset)
            content = file.read(span.size)
        if len(content) < span.size:
            raise ImageError("the archive ends within it")
        return content

    def _from_zip(self, info: zipfile.ZipInfo, limit: int) -> bytes:
        try:
            with _opened_zip(str(self.path), os.getpid()).open(info) as file:
                if info.compress_type == zipfile.ZIP_BZIP2:
                    return _unpacked_bzip2(self.path, info, limit)
                return file.read(limit + 1)
        except ARCHIVE_ERRORS as error:
            raise ImageError(f"damaged in the archive: {error}") from None


@dataclass(frozen=True)
class Archive(Tree):
    """A folder in a .zip or .tar, "" for all of it; see `Tree`."""

    index: Index
    folder: str = ""

    @property
    def root(self) -> Path:
        return self.index.path / self.folder

    @property
    def kind(self) -> str:
        return self.index.kind

    def listing(
        self, folder: str = "", passed: Passed | None = None
    ) -> tuple[list[str], list[str]]:
        place = self._full(folder)
        if passed is not None:  # those of the whole archive, which are told once
            passed.add(self.index.passed)
        return list(self.index.folders.get(place, ())), list(self.index.files.get(place, ()))

    def has(self, file: str) -> bool:
        return self._full(file) in self.index.members

    def has_folder(self, folder: str) -> bool:
        return self._full(folder) in self.index.folders

    def below(self, folder: str) -> Tree:
        return Archive(self.index, self._full(folder))

    def parent(self) -> Tree:
        if self.folder:
            return Archive(self.index, posixpath.dirname(self.folder))
        return Folder(self.index.path.absolute().parent)

    def open(self, file: str) -> BinaryIO:
        return self.index.open(self._full(file))

    def size(self, file: str) -> int | None:
        member = self.index.members.get(self._full(file))
        return None if member is None else _bytes_of(member)

    def read(self, file: str) -> bytes:
        try:
            return self.index.read(self._full(file), limits.LARGEST_TABLE)
        except (ImageError, OSError) as error:
            raise DataError(f"cannot read `{self.root / file}`: {error}") from None

    def _full(self, name: str) -> str:
        return posixpath.normpath(posixpath.join("/", self.folder, name)).strip("/")


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


def _bytes_of(member: zipfile.ZipInfo | _Span) -> int:
    """As the archive's table says, unpacked."""
    return member.size if isinstance(member, _Span) else member.file_size


@lru_cache(maxsize=4)
def _opened_zip(path: str, process: int) -> zipfile.ZipFile:
    """A few open files per process: threads may share one, forked processes may not."""
    return zipfile.ZipFile(path)


def zip_index(path: Path) -> Index:
    """The members of a .zip; no file stays open.

    Raises:
        OSError: it cannot be read.
        zipfile.BadZipFile: it is damaged, or another of `ARCHIVE_ERRORS`.
    """
    state = path.stat()
    return _zip_index(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=1)  # for who counts the images first and then reads them
def _zip_index(path: Path, changed: int, size: int) -> Index:
    index = Index(path, "zip archive")
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            index.add(info.filename, info, info.is_dir())
    return index


class _Metered:
    """What a tar archive reads; of headers, which lie between two members, up to a limit."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.left: int | None = None  # bytes; None while no header is read
        self.last = b""

    def read(self, size: int) -> bytes:
        if self.left is None:
            return self._file.read(size)  # type: ignore[no-any-return]
        self.left -= size
        if self.left < 0:
            most = limits.LARGEST_TAR_HEADER
            raise tarfile.ReadError(f"headers say more than {most:,} bytes of a member")
        self.last = self._file.read(size)
        return self.last

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class Tar(tarfile.TarFile):
    """A tar archive to be gone through, member after member, none of which is remembered.

    What headers say (a long name, other texts, the table of a file with holes) is read up to a
    limit, and raises tarfile.ReadError beyond. So does a damaged header, at which tarfile itself
    ends in silence.
    """

    members: list[tarfile.TarInfo]  # which tarfile collects

    def __init__(self, name: Any, mode: Any, fileobj: BinaryIO, **options: Any) -> None:
        super().__init__(name, mode, cast(BinaryIO, _Metered(fileobj)), **options)

    def next(self) -> tarfile.TarInfo | None:
        """The member that follows, None at the end."""
        metered = cast(_Metered, self.fileobj)
        self.members.clear()
        metered.left = limits.LARGEST_TAR_HEADER
        try:
            member = super().next()
        finally:
            metered.left = None
        if member is None and metered.last.strip(b"\0"):  # zeros belong there, or the file's end
            raise tarfile.ReadError(f"no header of a member at byte {self.offset:,}")
        return member


@contextmanager
def read_through(path: Path) -> Iterator[tarfile.TarFile]:
    """A .tar, compressed or not, whose members are read one after another.

    Raises:
        OSError: it cannot be read.
        tarfile.TarError: it is damaged, or another of `ARCHIVE_ERRORS`.
    """
    with path.open("rb") as file:
        if file.read(3) == b"BZh":
            file.seek(0)
            # tarfile itself unpacks all that 10 kB of bzip2 hold at once, which may be gigabytes.
            with (
                bz2.open(file) as unpacked,
                Tar.open(fileobj=unpacked, mode="r|") as archive,
            ):
                yield archive
            return
    with Tar.open(path, mode="r|*") as archive:
        yield archive


def _tar_index(path: Path) -> Index:
    index = Index(path, "tar archive")
    with path.open("rb") as file, Tar.open(fileobj=file, mode="r:") as archive:
        for member in archive:
            regular = member.isreg() and not member.issparse()
            span = _Span(member.offset_data, member.size) if regular else None
            index.add(member.name, span, member.isdir())
    return index
