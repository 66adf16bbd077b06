"""Files in a folder, a .zip or an uncompressed .tar: listed, and opened in any order.

`Tree.open` may be called from several threads, and from processes that were forked or to which a
tree was sent.
"""

import os
import posixpath
import shlex
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from cvt_cli.base import limits
from cvt_cli.base.errors import DataError, ImageError
from cvt_cli.images import decode, finding
from cvt_cli.images.archives import ARCHIVE_ERRORS, Index, bytes_of, tar_index, zip_index
from cvt_cli.images.finding import Passed
from cvt_cli.images.table_files import SUFFIXES, is_table

# How such files begin, and what undoes the compression alone.
_COMPRESSED = {
    b"\x1f\x8b": "gunzip -k",
    b"BZh": "bunzip2 -k",
    b"\xfd7zXZ\x00": "unxz -k",
    b"\x28\xb5\x2f\xfd": "unzstd",
}


class Tree(ABC):
    """Files below one place. Names are paths below it, with slashes.

    What is hidden, and folders that systems make (`finding.is_passed_over`), are not listed.
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
        """Image files in a folder at any depth, in the order of `finding.images_in`.

        Raises:
            DataError: a folder cannot be read.
        """
        folders, files = self.listing(folder, passed)
        for name in sorted(files, key=finding.natural_key):
            if finding.is_image_name(name):
                yield posixpath.join(folder, name)
            elif passed is not None:
                passed.add_file(name)
        for name in sorted(folders, key=finding.natural_key):
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
                if is_table(path.stem):
                    raise DataError(
                        f"`{path}` is a table that is compressed",
                        hint=f"decompress it with `{command} {quoted}`, and name what this makes",
                    )
                raise DataError(
                    f"`{path}` cannot be read in place: it is compressed as a whole, so each "
                    "image can only be reached through all that come before it",
                    hint=f"decompress it with `{command} {quoted}` and name the .tar that "
                    f"this makes, or unpack it with `tar -xf {quoted}`",
                )
        if path.suffix.lower() == ".zip":
            return Archive(zip_index(path))
        if path.suffix.lower() == ".tar":
            return Archive(tar_index(path))
    except OSError as error:
        raise DataError(f"cannot read `{path}`: {error.strerror or error}") from None
    except ARCHIVE_ERRORS as error:
        raise DataError(f"`{path}` is damaged: {error}", hint="copy or download it again") from None
    raise DataError(
        f"`{path}` is not a folder, a .zip or a .tar",
        hint=f"a table of images ends in {', '.join(SUFFIXES)}: call it so, or save it as one",
    )


# --- folders


@dataclass(frozen=True)
class Folder(Tree):
    """The tree of a folder on disk."""

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
                    if not finding.is_folder(entry):
                        if not entry.name.startswith("."):
                            files.append(entry.name)
                    elif finding.is_of_runs(entry.path):
                        if passed is not None:
                            passed.folders.add(entry.path)
                    elif not finding.is_passed_over(entry.name):
                        folders.append(entry.name)
                    elif passed is not None and finding.is_no_pictures(entry.name):
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
            for path in finding.images_in(self.path / folder, passed):
                yield path.relative_to(self.path).as_posix()
        except OSError as error:
            raise _closed_folder(error) from None


def _closed_folder(error: OSError) -> DataError:
    return DataError(
        f"cannot read `{error.filename}`: {error.strerror}",
        hint="a result of only some of the images would mislead; make the folder readable, or "
        "move it away",
    )


def _not_too_large(path: Path, content: bytes) -> bytes:
    if len(content) > limits.LARGEST_TABLE:
        raise DataError(f"`{path}` is too large: more than {limits.LARGEST_TABLE:,} bytes")
    return content


@dataclass(frozen=True)
class Archive(Tree):
    """The tree of a folder in a .zip or .tar; the folder "" is all of it."""

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
        inner = self.index.folders.get(place, ())
        folders = [n for n in inner if not self.index.is_of_runs(posixpath.join(place, n))]
        return folders, list(self.index.files.get(place, ()))

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
        return None if member is None else bytes_of(member)

    def read(self, file: str) -> bytes:
        try:
            return self.index.read(self._full(file), limits.LARGEST_TABLE)
        except (ImageError, OSError) as error:
            raise DataError(f"cannot read `{self.root / file}`: {error}") from None

    def _full(self, name: str) -> str:
        return posixpath.normpath(posixpath.join("/", self.folder, name)).strip("/")
