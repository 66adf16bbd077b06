"""Where files live, and how they are put there.

``CVT_CACHE`` names the folder for what this tool makes or fetches; without it, the platform's cache
folder is used. A file is written beside its place under a temporary name and then renamed, so that
nobody ever finds half of one.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cvt_cli import __version__
from cvt_cli.errors import CvtError
from cvt_cli.progress import Say

_GRAPH_OUTPUTS = "logits features"
"""What a prepared graph gives; another kind of graph is another file."""


def cache_dir() -> Path:
    """The folder for what is made or fetched; it need not exist yet."""
    if chosen := os.environ.get("CVT_CACHE"):
        return Path(chosen).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("cvt"))


def data_dir() -> Path:
    """The folder that known data sets are looked for in when ``--data-dir`` does not say."""
    return cache_dir() / "data"


def graph_path(weights_hash: str, config: str, height: int, width: int) -> Path:
    """Where the prepared graph of a checkpoint is kept; it need not exist.

    Args:
        weights_hash: of the file with the tensors.
        config: all that the graph depends on beside them, as text.
        height: of the images in pixels.
        width: likewise.
    """
    everything = f"{weights_hash} {config} {height}x{width} {__version__} {_GRAPH_OUTPUTS}"
    key = hashlib.sha256(everything.encode()).hexdigest()
    return graphs_of(weights_hash) / key / "model.onnx"


def graphs_of(weights_hash: str) -> Path:
    """The folder of all graphs that were prepared from one file of tensors."""
    return cache_dir() / "graphs" / weights_hash


def hub_dir() -> Path:
    """The hub client's own cache, which other tools share: ``HF_HUB_CACHE``, ``HF_HOME``."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


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


def human_bytes(size: float) -> str:
    """A size as "80.1 MB" (1 MB is 1,000,000 bytes, as downloads are counted)."""
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} bytes" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"
