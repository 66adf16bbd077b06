"""Paths, addresses and the command as a page shows them that may be shared.

Whoever reads a page learns what its images and models are called, not in which folders of this
machine they are, and no password or token that an address holds.
"""

import os
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

_SAY_LITTLE = frozenset(
    ("best", "last", "train", "val", "valid", "validation", "test", "images", "data")
)
"""Names of folders that say too little without the folder around them."""


def shown(text: str) -> str:
    """A path or an address without what is private in it; any other text as it is.

    What is below the folder of work is shown from there on. Of what is elsewhere the last two parts
    are left: "…/pets/cat.jpg".
    """
    if "://" in text and not text.lower().startswith("file:///"):
        return _shown_address(text)
    path = text[len("file://") :] if "://" in text else text
    here, there = _here(), _absolute(path)
    if _is_inside(there, here):
        return os.path.relpath(there, here) if os.path.isabs(path) else path
    if not os.path.isabs(path) and _is_close(there, here):
        return path
    return os.path.join("…", *Path(there).parts[1:][-2:])


def title(text: str) -> str:
    """A model or a data set, as a heading names it: "run-3/best", "pets/test", "microsoft/cvt-13".

    Args:
        text: its name, its repository or its path.
    """
    if not (os.path.isabs(text) or os.path.lexists(text)):
        return shown(text)
    parts = Path(_absolute(text)).parts[1:]
    return "/".join(parts[-2:] if parts and parts[-1].lower() in _SAY_LITTLE else parts[-1:])


def distinct(paths: Sequence[str]) -> dict[str, str]:
    """Each path with as much of its end as tells it from the others."""
    split = {path: Path(path).parts or (path,) for path in paths}
    found = {}
    for path, parts in split.items():
        others = [other for name, other in split.items() if name != path]
        count = 2 if parts[-1].lower() in _SAY_LITTLE else 1
        while count < len(parts) and any(other[-count:] == parts[-count:] for other in others):
            count += 1
        found[path] = os.path.join(*parts[-count:])
    return found


def command() -> str | None:
    """The command line of this process; None where it is not one of ``cvt``."""
    started = Path(sys.argv[0])
    if started.stem != "cvt" and started.parts[-2:] != ("cvt_cli", "__main__.py"):
        return None
    return command_of(sys.argv[1:])


def command_of(words: Iterable[str]) -> str:
    """A command line of ``cvt``, as it can be typed, of what stands behind ``cvt``."""
    return " ".join(["cvt", *map(_argument, words)])


def call(text: str) -> str:
    """A call from Python, whose arguments are written as Python writes them."""
    path = r"""(?<==)(['"])((?:/|\.\.).*?)\1(?=[,)])"""
    return re.sub(path, lambda found: repr(shown(found[2])), text)


def link(target: str, folder: Path) -> str | None:
    """A relative address of an image from a page in ``folder``.

    An http(s) address is its own. None where there is no such file, where the way to it would begin
    at the root of this machine and so tell all its folders, and where an address holds a secret.
    """
    if "://" in target and not target.lower().startswith("file:///"):
        is_web = target.lower().startswith(("http://", "https://"))
        return target if is_web and _shown_address(target) == target else None
    path = _absolute(target[len("file://") :] if "://" in target else target)
    here = _absolute(str(folder))
    if not os.path.isfile(path) or not _is_close(path, here):
        return None
    return quote(os.fsencode(os.path.relpath(path, here).replace(os.sep, "/")))


def _here() -> str:
    """The folder of work; the root where it was removed meanwhile."""
    try:
        return os.getcwd()
    except OSError:
        return os.path.abspath(os.sep)


def _absolute(path: str) -> str:
    return os.path.normpath(os.path.join(_here(), path))


def _is_inside(path: str, folder: str) -> bool:
    return _is_close(path, folder) and (path + os.sep).startswith(folder + os.sep)


def _is_close(path: str, folder: str) -> bool:
    """Whether the way from the one to the other does not lead through the root."""
    first = path.split(os.sep, 2)[:2]  # the root, or the drive, and the folder in it
    return first == folder.split(os.sep, 2)[:2] and first[-1] != ""


def _shown_address(address: str) -> str:
    """An address without user, password and query, each of which may be a secret."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return address
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "…" if parts.query else "", ""))


def _argument(text: str) -> str:
    """One argument of a command line, quoted where a shell needs it."""
    found = re.fullmatch(r"(--[^=]+=|-\w(?=.)|)(.*)", text, re.DOTALL)
    option, value = found.groups() if found else ("", text)
    at, value = ("@", value[1:]) if value.startswith("@") else ("", value)
    if os.path.isabs(value) or "://" in value or value.startswith(".."):
        value = shown(value)
    value = at + value
    plain = value.replace("…", "")
    quoted = value if plain and shlex.quote(plain) == plain else shlex.quote(value)
    return f"{option}{quoted}"
