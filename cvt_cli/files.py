"""How files are put in their places: whole, one writer at a time.

A file is written beside its place under a temporary name and then renamed, so that nobody ever
finds half of one.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cvt_cli.errors import CvtError
from cvt_cli.progress import Say


@contextmanager
def locked(path: Path, what: str, say: Say) -> Iterator[None]:
    """Hold a lock file, so that of several processes one does the work and the others wait.

    The system releases it when the process ends, however that comes about.

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
            say(f"another process is {what}; waiting for it")
            lock.acquire()
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        yield
    finally:
        lock.release()


def unwritable(path: Path, error: OSError) -> CvtError:
    """What to tell the user of a file that could not be written."""
    return CvtError(
        f"cannot write `{path}`: {error.strerror or error}",
        hint="choose another folder, or make room on this disk",
    )


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path in the folder of ``path``, and rename it to ``path`` at the end.

    On an error the temporary file is removed and whatever stood at ``path`` stays.

    Raises:
        CvtError: the folder cannot be written to, or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def workplace(path: Path) -> Iterator[Path]:
    """Give a folder beside ``path``, for what is to be renamed to it; it is removed at the end.

    Raises:
        CvtError: the folder of ``path`` cannot be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
