"""Where files live, and how they are put there.

``CVT_CACHE`` names the folder for what this tool makes or fetches; without it, the platform's cache
folder is used. A file is written beside its place under a temporary name and then renamed, so that
nobody ever finds half of one.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cvt_cli.errors import CvtError


def cache_dir() -> Path:
    """The folder for what is made or fetched; it need not exist yet."""
    if chosen := os.environ.get("CVT_CACHE"):
        return Path(chosen).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("cvt"))


def data_dir() -> Path:
    """The folder that known data sets are looked for in when ``--data-dir`` does not say."""
    return cache_dir() / "data"


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
        raise CvtError(
            f"cannot write `{path}`: {error.strerror or error}",
            hint="choose another folder, or make room on this disk",
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
