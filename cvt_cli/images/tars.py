"""Tar archives gone through member after member, whatever their headers say."""

import bz2
import gzip
import lzma
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from cvt_cli.base import limits


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
            raise tarfile.ReadError(f"the headers of a member have more than {most:,} bytes")
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


# By how such a file begins. tarfile itself unpacks at once all that 10 kB hold, which may be
# gigabytes, looks at no checksum of gzip, and takes the first of several gzip files for all.
_UNPACKING: dict[bytes, Callable[[BinaryIO], Any]] = {
    b"BZh": bz2.open,
    b"\x1f\x8b": gzip.open,
    b"\xfd7zXZ": lzma.open,
}


@contextmanager
def read_through(path: Path) -> Iterator[tarfile.TarFile]:
    """A .tar, compressed or not, whose members are read one after another.

    Raises:
        OSError: it cannot be read.
        tarfile.TarError: it is damaged, or another of `archives.ARCHIVE_ERRORS`.
    """
    with path.open("rb") as file:
        start = file.read(5)
        file.seek(0)
        unpacking = next(
            (how for magic, how in _UNPACKING.items() if start.startswith(magic)), None
        )
        if unpacking is None:
            with Tar.open(fileobj=file, mode="r|*") as archive:
                yield archive
            return
        with unpacking(file) as unpacked, Tar.open(fileobj=unpacked, mode="r|") as archive:
            yield archive


def read_to_the_end(archive: tarfile.TarFile) -> None:
    """Read what is behind the last member, where compression has its checksums; raises as
    `read_through`."""
    assert archive.fileobj is not None
    while archive.fileobj.read(64 * 1024):
        pass
