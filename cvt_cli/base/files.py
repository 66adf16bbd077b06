"""How files are put in their places: whole, synced, one writer at a time.

A file is written beside its place under a temporary name and then renamed, so that nobody ever
finds half of one. Who writes it holds a lock on it meanwhile, which the system releases however the
process ends: so a later process knows which temporary files nobody will finish (`swept`).
"""

import errno
import hashlib
import os
import platform
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from cvt_cli.base.errors import CvtError, UsageError

try:
    import fcntl
except ImportError:  # not a POSIX system: nothing is swept there
    fcntl = None  # type: ignore[assignment]

SUFFIX = ".cvt.tmp"
"""How the name of every temporary file and folder of ours ends."""
_ELSEWHERE_SEC = 24 * 3600.0
"""Age at which another machine's temporary files count as left: not every network file system
passes locks on."""

NOWHERE = Path(os.devnull, "no-home-folder")
"""Stands for the cache where there is no home folder: it holds nothing, and nothing can be made
there."""

chosen_by: dict[Path, str] = {}
"""Folders that nobody names on a command line, and the environment variable for each."""

_swept: set[Path] = set()

_not_to_be_replaced: set[Path] = set()
"""Places that were free when `refuse_replacing` was asked of them."""


def content_hash(path: Path) -> str:
    """The SHA-256 of a file.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unwritable(path: Path, error: OSError) -> CvtError:
    """What to tell the user of a file that could not be written."""
    if path.is_relative_to(NOWHERE):
        return CvtError(
            "no folder to store files in: HOME is not set, and the system knows no home "
            "folder of this user",
            hint="set CVT_CACHE to a folder, and HF_HOME to one for downloads",
        )
    reason, more = error.strerror or str(error), "free space on this disk"
    for place in path.parents:
        if os.path.lexists(place) and not os.path.isdir(place):
            reason, more = f"`{place}` is not a folder", "move that file away"
    other = "choose another folder"
    for folder, variable in chosen_by.items():
        if path.is_relative_to(folder):
            other = f"set {variable} to another folder"
    return CvtError(f"cannot write `{path}`: {reason}", hint=f"{other}, or {more}")


def no_temporary_folder(error: Exception) -> CvtError | None:
    """What to tell the user where nobody can have a temporary file, as in a read-only container;
    None of another error."""
    if isinstance(error, FileNotFoundError) and "No usable temporary directory" in str(error):
        return CvtError(
            "no folder for temporary files can be written to",
            hint="set TMPDIR to one that can",
        )
    return None


# --- whole files


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path in the folder of ``path``, and rename it to ``path`` at the end.

    A link is followed, so that it stays one. What is no regular file (a device, a pipe) is written
    to at the end. On an error the temporary file is removed and whatever stood at ``path`` stays.

    Raises:
        CvtError: the folder cannot be written to, or the disk is full.
    """
    _refuse_folder(path)  # before the work, not when it is to get its name
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            with _poured_into(path) as temporary:  # which may have no path, as /dev/stdout in a |
                yield temporary
            return
        place = _place_of(path)
        temporary, descriptor = _claimed_file(place)
        try:
            yield temporary
            _synced(temporary)
            try:
                refuse_replaced(path)
            except CvtError as error:
                kept = beside(place)
                os.replace(temporary, kept)
                raise CvtError(
                    f"{error}; what was made here is kept as `{kept}`", error.hint
                ) from None
            os.replace(temporary, place)
            _synced(place.parent)
        finally:
            with suppress(OSError):
                temporary.unlink()
            os.close(descriptor)
    except OSError as error:
        raise unwritable(path, error) from error


@contextmanager
def workplace(path: Path) -> Iterator[Path]:
    """Give a folder beside ``path``, for what is to be renamed to it; it is removed at the end.

    Raises:
        CvtError: the folder of ``path`` cannot be written to.
    """
    try:
        folder, descriptor = _claimed_folder(_place_of(path))
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


def refuse_unwritable(path: Path) -> None:
    """Raises CvtError if no file can be made there; its folder is made if need be."""
    _refuse_folder(path)
    if not os.path.exists(path) or os.path.isfile(path):  # a device or a pipe is written in place
        with workplace(path):
            pass


def _refuse_folder(path: Path) -> None:
    if os.path.isdir(path):
        raise unwritable(path, IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)))


def refuse_unwritable_place(path: Path) -> None:
    """Raises CvtError if no file could be made there, once its folder is; nothing is made."""
    place = path.parent
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    if not os.path.isdir(place):
        raise unwritable(path, NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)))
    if not os.access(place, os.W_OK | os.X_OK):
        raise unwritable(path, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))


def refuse_overwriting(written: Sequence[Path], read: Iterable[str]) -> None:
    """Refuse to write a file that is read, or two things to one place; devices may be shared.

    Raises:
        UsageError: one of ``written`` is another of them, or one of ``read``.
    """
    places = [
        path.resolve() for path in written if os.path.isfile(path) or not os.path.exists(path)
    ]
    if twice := next((path for path in places if places.count(path) > 1), None):
        raise UsageError(f"`{twice}` is named for two outputs; the second would replace the first")
    for name in read:
        if os.path.isfile(name) and Path(name).resolve() in places:
            raise UsageError(f"`{name}` is an input, and the output would replace it")


def refuse_replacing(written: Iterable[Path], overwrite: bool) -> None:
    """Refuse to replace what somebody may still need; empty files, devices and pipes are free.

    The one rule of every command that writes files, asked before it works; `refuse_replaced` asks
    again where it writes.

    Args:
        written: files, and folders that get files.
        overwrite: the user said that they may be replaced.

    Raises:
        CvtError: one of them exists.
    """
    written = list(written)
    for path in written if not overwrite else ():
        if _holds_something(path):
            raise CvtError(
                f"`{path}` exists and was not replaced",
                hint="name another file, or replace this one with --overwrite",
            )
    places = {Path(os.path.realpath(path)) for path in written}
    _not_to_be_replaced.difference_update(places)
    _not_to_be_replaced.update(() if overwrite else places)


def refuse_replaced(path: Path) -> None:
    """Refuse to replace what another process has made since `refuse_replacing` was asked.

    Asked once for every place, before the first that is written there.

    Raises:
        CvtError: there is something now.
    """
    place = Path(os.path.realpath(path))
    if place in _not_to_be_replaced:
        _not_to_be_replaced.discard(place)
        if _holds_something(place):
            raise CvtError(
                f"`{path}` was made by another process in the meantime, and was not replaced",
                hint="--overwrite replaces it, or give another name",
            )


def _holds_something(path: Path) -> bool:
    """Whether there is a file that is not empty, or a folder that is not."""
    if os.path.isfile(path):
        return path.stat().st_size > 0
    return os.path.isdir(path) and any(path.iterdir())


def beside(place: Path) -> Path:
    """A name like this one that nothing has."""
    number = 2
    while os.path.lexists(kept := place.with_name(f"{place.stem}-{number}{place.suffix}")):
        number += 1
    return kept


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all; what UTF-8 has not is escaped."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def permit(temporary: Path, mode: int) -> None:
    """Give a file these permissions, where they can be set: on a share that another user has
    mounted its files have those of the share, and only that user may."""
    with suppress(OSError):
        temporary.chmod(mode)


def rename(temporary: Path, path: Path) -> None:
    """Put a file of a `workplace` in its place, with its content on the disk before its name; into
    a device or a pipe its content.

    Raises:
        OSError: it cannot be written.
        CvtError: as of `refuse_replaced`.
    """
    refuse_replaced(path)
    if os.path.exists(path) and not os.path.isfile(path):
        _pour(temporary, path)
        return
    _synced(temporary)
    os.replace(temporary, os.path.realpath(path))
    _synced(Path(os.path.realpath(path)).parent)


def _place_of(path: Path) -> Path:
    """Where a path leads; its folder is made, and what killed processes left there is removed."""
    place = Path(os.path.realpath(path))
    place.parent.mkdir(parents=True, exist_ok=True)
    swept(place.parent, once=True)
    return place


@contextmanager
def _poured_into(place: Path) -> Iterator[Path]:
    """A temporary file whose content is written into what stands there already."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder, place.name)
        yield temporary
        _pour(temporary, place)


def _pour(temporary: Path, place: Path) -> None:
    with temporary.open("rb") as source, place.open("wb") as target:
        shutil.copyfileobj(source, target)


def _temporary_name(place: Path) -> Path:
    # A name may have 255 bytes; the number tells this process's files from those of others, of
    # which containers that share a folder may have the same process number.
    start = os.fsdecode(os.fsencode(place.name)[:150])
    return place.with_name(f".{start}.{_machine()}.{os.urandom(4).hex()}{SUFFIX}")


def _machine() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:6]


def claimed(place: Path, *, private: bool = False) -> tuple[Path, int]:
    """A temporary file named like ``place``, and the lock on it; what killed processes left there
    is removed.

    Args:
        place: in whose folder it is.
        private: none but this user may read it.

    Raises:
        OSError: there can be none.
    """
    return _claimed_file(_place_of(place), 0o600 if private else 0o666)


def _claimed_file(place: Path, mode: int = 0o666) -> tuple[Path, int]:
    """A new empty file, with the permissions that the umask leaves, and the lock on it."""
    while True:
        temporary = _temporary_name(place)
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, mode)
        if hold(descriptor) and is_still(temporary, descriptor):
            return temporary, descriptor
        os.close(descriptor)  # swept in the moment before it was locked


def _claimed_folder(place: Path) -> tuple[Path, int | None]:
    while True:
        folder = _temporary_name(place)
        folder.mkdir(0o777)
        if fcntl is None:
            return folder, None
        descriptor = os.open(folder, os.O_RDONLY)
        if hold(descriptor) and is_still(folder, descriptor):
            return folder, descriptor
        os.close(descriptor)


def hold(descriptor: int) -> bool:
    """Whether the lock could be had; a file system without locks counts as if it could."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def is_still(path: Path, descriptor: int) -> bool:
    """Whether a path still leads to what was opened."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _synced(path: Path) -> None:
    """Have the content of a file, or a folder's names, on the disk."""
    if path.is_dir() and os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # which some file systems do not sync
            raise
    finally:
        os.close(descriptor)


def swept(folder: Path, *, deep: bool = False, once: bool = False) -> list[Path]:
    """Remove the temporary files and folders whose makers were killed, and give their paths.

    What another process is still writing stays: it holds the lock.

    Args:
        folder: that they lie in; it need not exist.
        deep: look in the folders below it too.
        once: do nothing if this process has done it.
    """
    if fcntl is None or (once and folder in _swept):
        return []
    _swept.add(folder)
    removed = []
    for directory, folders, names in os.walk(folder):
        for name in [*folders, *names]:
            path = Path(directory, name)
            if name.startswith(".") and name.endswith(SUFFIX) and _is_left(path):
                with suppress(OSError):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                    removed.append(path)
        folders[:] = [name for name in folders if deep and not name.endswith(SUFFIX)]
    return removed


def below(folder: Path) -> list[Path]:
    """The files below a folder, in order; nothing where there is no folder.

    Raises:
        OSError: a folder cannot be read, which `Path.rglob` would pass over.
    """

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise error

    walked = os.walk(folder, onerror=refuse)
    return sorted(Path(where, name) for where, _, names in walked for name in names)


def _is_left(path: Path) -> bool:
    """Whether nobody will finish it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        age = time.time() - os.fstat(descriptor).st_mtime
        return f".{_machine()}." in path.name or age > _ELSEWHERE_SEC
    except OSError:
        return False
    finally:
        os.close(descriptor)


def write_all(file: BinaryIO, content: bytes) -> None:
    """Write all of it: an unbuffered file may take a part and say so only in its answer.

    Raises:
        OSError: the disk is full, or nobody reads the pipe any more.
    """
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) or 0 :]
