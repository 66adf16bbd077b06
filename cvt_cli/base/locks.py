"""Work that one of several processes does while the others wait, and say so."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from cvt_cli.base import files
from cvt_cli.base.progress import Say

try:
    import fcntl
except ImportError:  # not a POSIX system: a file that grows has no lock there
    fcntl = None  # type: ignore[assignment]


@contextmanager
def growing(path: Path, what: str, say: Say) -> Iterator[BinaryIO]:
    """Open a file that is appended to, and hold its lock before anything of it is read.

    Args:
        path: of the file, which is made if it is not there; unbuffered, at its end.
        what: is being done with it, for the message to who has to wait.
        say: called once with that message.

    Raises:
        CvtError: it cannot be opened for writing.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            # Nothing is read of a pipe or a device; and who opens a pipe for both waits for nobody
            # to read it, and is not told that nobody does any more.
            mode = "ab" if os.path.exists(path) and not os.path.isfile(path) else "a+b"
            file = cast("BinaryIO", path.open(mode, buffering=0))
            try:
                if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    _hold(file.fileno(), what, say)
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode) or files.is_still(
                    path, file.fileno()
                ):
                    break
            except BaseException:
                file.close()
                raise
            file.close()  # somebody put another file there while this one was waited for
    except OSError as error:
        raise files.unwritable(path, error) from error
    with file:
        yield file


@contextmanager
def folder(path: Path, what: str, say: Say) -> Iterator[None]:
    """Hold the lock of a folder that is there, which leaves no file behind; see `locked`.

    Args:
        path: of the folder.
        what: is being done in it, for the message to who has to wait.
        say: called once with that message.

    Raises:
        CvtError: it cannot be opened.
    """
    if fcntl is None:  # and no folder can be opened
        yield
        return
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise files.unwritable(path, error) from error
    try:
        _hold(descriptor, what, say)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path, what: str, say: Say) -> Iterator[None]:
    """Hold a lock file, so that of several processes one does the work and the others wait.

    The system releases it when the process ends, however that comes about. A file system without
    locks counts as if it could be had, as for `files.hold`.

    Args:
        path: of the lock file; it stays.
        what: is being done, for the message to who has to wait.
        say: called once with that message.

    Raises:
        CvtError: the folder cannot be written to.
    """
    import filelock

    lock = filelock.FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0.3)
        except filelock.Timeout:
            say(_waiting(what))
            lock.acquire()
    except NotImplementedError:  # of older versions, where the file system has no locks
        pass
    except OSError as error:
        raise files.unwritable(path, error) from error
    try:
        yield
    finally:
        lock.release()


def _hold(descriptor: int, what: str, say: Say) -> None:
    """Get the lock of an open file or folder, and say so if that has to be waited for."""
    if fcntl is not None and not files.hold(descriptor):
        say(_waiting(what))
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def _waiting(what: str) -> str:
    return f"another process is {what}; waiting for it"
