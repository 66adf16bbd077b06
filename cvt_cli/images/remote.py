"""Images at addresses that fsspec opens, such as ``s3://bucket/folder``: listed, and read whole."""

import glob
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, BinaryIO

from cvt_cli.base import limits, zips
from cvt_cli.base.errors import ImageError, UsageError
from cvt_cli.base.text import without_password
from cvt_cli.images import decode, finding, patterns
from cvt_cli.images.finding import Passed

if TYPE_CHECKING:
    import fsspec


def opener(address: str) -> Callable[[], BinaryIO]:
    """What opens the one file that has an address; raises as `images_at`."""
    return partial(_open, *_file_system(address))


def images_at(address: str, passed: Passed) -> Iterator[tuple[str, Callable[[], BinaryIO]]]:
    """The address of each image of a file, a folder or a pattern, in natural order, and its opener.

    Args:
        address: of a file, whatever its name, of a folder, or with ``*``, ``?`` or ``[…]``.
        passed: learns what was passed over.

    Raises:
        UsageError: there is no such protocol, or its package is not installed.
        ImageError: it cannot be opened or listed.
    """
    system, path = _file_system(address)
    try:
        with _guarded(system):
            found = _found(system, path, passed)
    except Exception as error:  # every file system has its own kinds
        raise ImageError(reason(error)) from None
    # Of `simplecache::zip://*.png::s3://bucket/a.zip` the found lie in `zip://`.
    before, _, rest = address.partition("://")
    _, colons, around = rest.partition("::")
    # Of the local one a path without its first slash would be another.
    local = before.rpartition("::")[2].lower() in ("file", "local")
    # Of `ftp://host/folder` the paths are those on the host.
    whole, inner = rest.strip("/"), path.strip("/")
    on_host = not inner or whole.endswith(f"/{inner}")
    host = whole.removesuffix(inner).rstrip("/") if on_host else ""
    start = "/" if local else f"{host}/" if host else ""
    for name in sorted(found, key=finding.natural_key):
        place = start + name.lstrip("/")
        yield f"{before}://{place}{colons}{around}", partial(_open, system, name)


def _found(system: "fsspec.AbstractFileSystem", path: str, passed: Passed) -> list[str]:
    """The images of a file, a folder or a pattern; raises what the file system does."""
    if glob.has_magic(path) and not system.exists(path):
        runs = finding.Runs(patterns.run_files(path, system.glob))
        return [
            name
            for name, about in system.glob(path, detail=True).items()
            if about["type"] != "directory"
            and patterns.is_meant(name, path, passed)
            and not runs.hold(name, passed)
        ]
    if system.isdir(path):
        # Hidden is what is so below the folder that was named.
        below = {name: name.removeprefix(path).lstrip("/") for name in system.find(path)}
        runs = finding.Runs(below.values())
        return [
            name
            for name, inner in below.items()
            if finding.is_image_member(inner, passed) and not runs.hold(inner, passed)
        ]
    return [path]


def _guarded(system: "fsspec.AbstractFileSystem") -> AbstractContextManager[object]:
    """Inside of it one thread at a time uses a file system whose files share one open file or one
    connection, which fsspec leaves to who reads them: a tar, for one; a ZipFile guards itself."""
    from fsspec import AbstractFileSystem
    from fsspec.archive import AbstractArchiveFileSystem

    while isinstance(inner := getattr(system, "fs", None), AbstractFileSystem):
        system = inner  # behind a cache
    is_archive = isinstance(system, AbstractArchiveFileSystem)
    guards_itself = isinstance(getattr(system, "zip", None), zipfile.ZipFile)
    if system.protocol == "ftp" or (is_archive and not guards_itself):
        return decode.alone.lock_of(system)
    return nullcontext()


def _file_system(address: str) -> tuple["fsspec.AbstractFileSystem", str]:
    """What opens an address, and the path in it.

    Raises:
        UsageError: there is no such protocol, or its package is not installed.
        ImageError: it cannot be opened, as where a server does not answer.
    """
    import fsspec

    protocol, colon, path = address.partition("://")
    if protocol.isalnum():  # not several, one in another
        address = protocol.lower() + colon + path
    shown = without_password(address)
    try:
        system, inner = fsspec.core.url_to_fs(address)
        if isinstance(archive := getattr(system, "zip", None), zipfile.ZipFile):
            zips.named(archive)
        return system, inner
    except ImportError as error:
        raise UsageError(f"`{shown}` needs a package that is not installed: {error}") from None
    except Exception as error:  # every file system has its own kinds
        if not (isinstance(error, ValueError) and "Protocol not known" in str(error)):
            raise ImageError(reason(error)) from None
        accepted = ", ".join(f"`{p}`" for p in ("http", "https", "s3", "gs", "hf", "file"))
        raise UsageError(
            f"`{shown}`: no such protocol; accepted are {accepted} and others that fsspec knows"
        ) from None


def _open(system: "fsspec.AbstractFileSystem", name: str) -> BinaryIO:
    try:
        with _guarded(system), system.open(name, "rb") as file:
            size = getattr(file, "size", None)
            known = isinstance(size, int) and 0 <= size <= limits.LARGEST_FILE
            most: int = size if known else limits.LARGEST_FILE  # type: ignore[assignment]
            return decode.read(most, _all_of, file)
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(reason(error)) from None


def _all_of(file: BinaryIO) -> bytes:
    """All of a file that may lie about its size."""
    content = file.read(limits.LARGEST_FILE + 1)
    if len(content) > limits.LARGEST_FILE:
        raise decode.too_large()
    return content


def reason(error: Exception) -> str:
    """One line of an error of a file system or the network."""
    if isinstance(error, KeyError):  # of a zip without such a member, in fsspec's versions before
        return "no such file or directory"
    text = decode.reason(error) if isinstance(error, OSError) else str(error)
    return without_password(text or type(error).__name__).splitlines()[0]  # of an address in it
