"""Files that a pattern matches, as a shell would find them, and folders that were closed to it."""

import contextlib
import glob
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from cvt_cli.images import finding
from cvt_cli.images.finding import Passed


def matches(pattern: str, passed: Passed) -> Iterator[str | OSError]:
    """Files that match, in natural order, and then an error for each folder that cannot be read.

    Args:
        pattern: with ``*``, ``?``, ``[…]``, or ``**`` for any depth.
        passed: learns which folders are passed over.
    """
    search = partial(_search, passed=passed)
    found = sorted(search(pattern), key=finding.natural_key)
    runs = finding.Runs(run_files(pattern, search))
    closed = list(_closed_to(pattern, passed))
    for name in found:
        if not os.path.isdir(name) and is_meant(name, pattern, passed):
            if not runs.hold(name, passed):
                yield name
    yield from closed


def _search(pattern: str, passed: Passed) -> list[str]:
    """As `glob.glob`, whose ``**`` also follows links to folders, in circles where they lead so."""
    parts = pattern.split("/")
    if "**" not in parts:
        return glob.glob(pattern)
    place = parts.index("**")
    above, below = "/".join([*parts[:place], ""]), "/".join(parts[place + 1 :] or ["*"])
    left = glob.glob(above) if above else [""]
    found: dict[str, None] = {}
    while left:
        folder = left.pop()
        found |= dict.fromkeys(_search(os.path.join(glob.escape(folder), below), passed))
        with contextlib.suppress(OSError), os.scandir(folder or ".") as entries:
            for entry in entries:
                if not finding.is_folder(entry) or entry.name.startswith("."):
                    continue
                inner = os.path.join(folder, entry.name)
                passed.links.add(inner) if entry.is_symlink() else left.append(inner)
    return list(found)


def run_files(pattern: str, search: Callable[[str], Iterable[str]]) -> list[str]:
    """Files that say which folders are runs, of those folders that a pattern finds, not names.

    Args:
        pattern: as for `matches`; one that names the picture means it wherever it lies.
        search: gives what a pattern matches.
    """
    *folders, last = pattern.split("/")
    folders += [last] if last == "**" else []
    magic = [depth for depth, folder in enumerate(folders) if glob.has_magic(folder)]
    if not magic or not glob.has_magic(last):
        return []
    named = "/".join(folders[: magic[0]])  # which `**` matches too
    found: list[str] = []
    for depth in magic:
        for file in finding.RUN_FILES:
            found += search("/".join([*folders[: depth + 1], file]))
    return [name for name in found if name.rpartition("/")[0] != named]


def is_meant(name: str, pattern: str, passed: Passed) -> bool:
    """Whether what a pattern matches is hidden nowhere but where the pattern says so."""
    written = {".", "..", "", *pattern.split("/")}
    shows_hidden = any(part.startswith(".") for part in written - {".", ".."})
    parts = name.split("/")
    for depth, part in enumerate(parts, start=1):
        if part in written:
            continue
        if part.startswith(".") and not shows_hidden:
            return False
        if depth < len(parts) and finding.is_no_pictures(part):
            passed.folders.add("/".join(parts[:depth]))
            return False
    return True


def _closed_to(pattern: str, passed: Passed) -> Iterator[OSError]:
    """The folders that a pattern is to be searched for in, and that cannot be read.

    `glob` passes over these in silence.
    """
    parts, seen = pattern.split("/"), set()
    for depth in range(1, len(parts)):
        above, listed = "/".join(parts[:depth]), glob.has_magic(parts[depth])
        if not listed and not glob.has_magic(above):
            continue
        for folder in sorted(_search(f"{above}/", passed)):
            if folder in seen or not is_meant(folder, pattern, passed):
                continue
            seen.add(folder)
            try:
                if listed:
                    os.scandir(folder).close()
                else:
                    os.stat(os.path.join(folder, "."))
            except OSError as error:
                yield OSError(error.errno, error.strerror, folder.rstrip("/"))
