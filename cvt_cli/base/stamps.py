"""Stamps: what a file that we made held when it was made, and under which conditions.

What was made from verified things is verified too. Beside such a file lies ``FILE.stamp.json`` with
its SHA-256, its size and time, and the conditions (see `conditions`). Asked before every use, it
costs a `stat`: a file that was found right is not read again while size and time stay the same. A
file without a stamp was not finished, or is not ours.

The hash of a file that somebody else made is remembered likewise, in the cache (`hash_of`).
"""

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_ISREG
from typing import Any

from cvt_cli.base import files, places, text
from cvt_cli.base.conditions import Conditions
from cvt_cli.base.errors import CvtError

SUFFIX = ".stamp.json"
"""What the name of a stamp adds to that of its file."""

_LARGEST = 1024**2
"""Bytes of a stamp that are read; ours have some hundred."""

_SETTLED_SEC = 2.0
"""A file that was changed within this time may be changed again without its time showing it."""


def beside(path: Path) -> Path:
    """Where the stamp of a file is."""
    return path.with_name(path.name + SUFFIX)


@contextmanager
def making(path: Path, conditions: Mapping[str, Any]) -> Iterator[Path]:
    """Give a temporary path; at the end what was written there has its name, and then its stamp.

    Killed in between, the file is without a stamp and will be made again.

    Args:
        path: of the file; one that is there is replaced.
        conditions: that it is made under: versions, precision, processor, where they matter.

    Raises:
        CvtError: the folder cannot be written to, or the disk is full.
    """
    with suppress(OSError):
        beside(path).unlink()
        if path.is_symlink():  # not of ours, and what it leads to is somebody's
            path.unlink()
    with files.replacing(path) as temporary:
        yield temporary
        # Before it is renamed: afterwards another process may put its own there.
        sha256, stat = files.content_hash(temporary), temporary.stat()
    _write(path, stat, sha256, conditions)


def is_right(path: Path, conditions: Mapping[str, Any] | None = None) -> bool:
    """Whether a file is here and is what we made, as far as a `stat` tells.

    One whose size or time has changed, as that of a copy, is read and stamped anew.

    Args:
        path: of the file.
        conditions: that it must have been made under; None for any.
    """
    stamp = read(path)
    if stamp is None:
        return False
    if conditions is not None and Conditions(conditions).differences(stamp["conditions"]):
        return False
    try:
        stat = path.stat()
        if stamp["size"] == stat.st_size and stamp["mtime_ns"] == stat.st_mtime_ns:
            return True
        if stamp["size"] != stat.st_size or stamp["sha256"] != files.content_hash(path):
            return False
    except OSError:
        return False
    with suppress(CvtError):  # a cache that cannot be written costs the reading each time
        _write(path, stat, stamp["sha256"], stamp["conditions"])
    return True


def verify(path: Path) -> bool | None:
    """Whether a file has the hash of its stamp, by reading all of it; None without a stamp.

    A damaged one loses its stamp, so that it is made again before it is used.
    """
    stamp = read(path)
    if stamp is None:
        return None
    try:
        right: bool = stamp["sha256"] == files.content_hash(path)
    except OSError:
        right = False
    if not right:
        with suppress(OSError):
            beside(path).unlink()
    return right


def read(path: Path) -> dict[str, Any] | None:
    """The stamp of a file: `sha256`, `size`, `mtime_ns`, `conditions`; None where there is none."""
    try:
        stamp = text.read_json(beside(path), most=_LARGEST)
    except (OSError, ValueError):
        return None
    known = isinstance(stamp, dict) and stamp.keys() >= {"sha256", "size", "mtime_ns", "conditions"}
    return stamp if known and isinstance(stamp["conditions"], dict) else None


def stamped_below(folder: Path) -> Iterator[Path]:
    """The files below a folder that have a stamp, whether they are there or not.

    Raises:
        OSError: a folder cannot be read.
    """
    for stamp in files.below(folder):
        if stamp.name.endswith(SUFFIX):
            yield stamp.with_name(stamp.name.removesuffix(SUFFIX))


def remove(path: Path) -> None:
    """Remove a file and its stamp, the stamp first; neither needs to be there."""
    for one in (beside(path), path):
        with suppress(OSError):
            one.unlink()


def hash_of(path: Path) -> str:
    """The SHA-256 of somebody else's file, read again only if it may have changed.

    What tells is its place, size and times, that of its last change of any kind included, which
    nobody can set back.

    Raises:
        OSError: it cannot be read.
    """
    stat, place = path.stat(), os.path.realpath(path)
    if not S_ISREG(stat.st_mode):  # a pipe would be waited for
        raise OSError("not a regular file")
    known = {
        "path": place,
        "device": stat.st_dev,
        "inode": stat.st_ino,
        "size": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
        "ctime_ns": stat.st_ctime_ns,
    }
    name = hashlib.sha256(os.fsencode(place)).hexdigest()
    try:
        memory = places.cache_dir() / "hashes" / f"{name}.json"
    except CvtError:  # there is no place for a cache
        return files.content_hash(path)
    with suppress(OSError, ValueError, AttributeError):
        found = text.read_json(memory, most=_LARGEST)
        sha256 = found.pop("sha256", None)
        if found == known and isinstance(sha256, str):
            return sha256
    sha256 = files.content_hash(path)
    settled = time.time() - max(stat.st_mtime, stat.st_ctime) > _SETTLED_SEC
    if settled and path.stat().st_ctime_ns == stat.st_ctime_ns:
        with suppress(CvtError):
            files.write_text(memory, json.dumps({**known, "sha256": sha256}))
    return sha256


def _write(path: Path, stat: os.stat_result, sha256: str, conditions: Mapping[str, Any]) -> None:
    stamp = {
        "sha256": sha256,
        "size": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
        "conditions": dict(conditions),
    }
    files.write_text(beside(path), json.dumps(stamp, indent=1) + "\n")
