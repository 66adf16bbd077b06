"""A file of JSON lines that is appended to, and gone on with by a later process."""

import json
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from cvt_cli.base import files, locks, torchrun
from cvt_cli.base.conditions import Conditions
from cvt_cli.base.errors import UsageError
from cvt_cli.base.package import __version__
from cvt_cli.base.progress import Say


class Document(Protocol):
    """What has a line of its own."""

    @property
    def path(self) -> str:
        """The image's name."""
        ...

    def to_json(self) -> dict[str, Any]:
        """What the line says, but for the hash of the image's file."""
        ...


def line_of(item: Document, sha256: str | None) -> bytes:
    """The line of an image, whose file has this hash; None where that could not be read."""
    return json.dumps({**item.to_json(), "sha256": sha256}, allow_nan=False).encode() + b"\n"


class ResumableLines:
    """An append-only file of a line for each image, begun under conditions that are noted.

    Its lock is held from before anything of it is read until the context ends, so that of several
    processes one answers and the others wait. Each line holds the SHA-256 of its image's file.

    Args:
        path: of the lines.
        what: is being done, for the message to who has to wait.
        say: told if another process has to be waited for, what an earlier version did not note,
            and if the model had another name.
        read: called under the lock with a regular file that is there, to learn what it holds and to
            cut off what does not count; sets `made`.

    Attributes:
        made: the conditions that the file was begun under; None where it is new.

    Raises:
        UsageError: what is there is something else.
        CvtError: the file cannot be written.
    """

    def __init__(self, path: Path, what: str, say: Say, read: Callable[[], None]) -> None:
        self.path = path
        self.made: dict[str, Any] | None = None
        self._say = say
        self._stack = ExitStack()
        self._file = self._stack.enter_context(locks.growing(path, what, say))
        try:
            if path.is_file():
                read()
        except OSError as error:
            self._stack.close()
            raise files.unwritable(path, error) from error
        except BaseException:
            self._stack.close()
            raise

    def cut(self, end: int) -> None:
        """Cut off what stands from a byte on."""
        os.truncate(self.path, end)

    def refuse_other_shares(self, name: str) -> None:
        """Raises UsageError if an image that the file has is another process's."""
        if not torchrun.is_mine(name):
            raise UsageError(
                f"`{self.path}` has images that belong to another process, such as `{name}`: an "
                "earlier version divided them by position",
                hint="name another file",
            )

    def are_noted(self, wanted: Conditions) -> bool:
        """Whether the file was begun, and all conditions that it shall have are noted for it.

        Raises:
            UsageError: it was begun under others.
        """
        if self.made is None:
            return False
        hint = "give the same model, data and options, or another file"
        version = self.made.get("version")
        told = {name: value for name, value in self.made.items() if name != "version"}
        if version is None:  # 0.1 did not note all of them
            common = [name for name in wanted.values if name in told]
            Conditions({name: wanted.values[name] for name in common}).refuse_other(
                self.path, {name: told[name] for name in common}, hint
            )
            missing = ", ".join(name for name in wanted.values if name not in told)
            self._say(
                f"`{self.path}` was begun by an earlier version, which did not record {missing}: "
                "these are assumed to be the same"
            )
            return False
        wanted.refuse_other(self.path, told, hint)
        name, now = told.get("model"), wanted.values.get("model")
        if name != now:
            self._say(f"`{self.path}` is of `{name}`, which is the same model as `{now}`")
        if version != __version__:
            self._say(f"`{self.path}` was begun by version {version}; this is {__version__}")
        return True

    def write(self, item: Document, sha256: str | None) -> None:
        """Append one line.

        Args:
            item: what is said of an image.
            sha256: of its file; None where that could not be read.
        """
        self._append(line_of(item, sha256))

    def _append(self, line: bytes) -> None:
        try:
            files.write_all(self._file, line)
        except OSError as error:
            raise files.unwritable(self.path, error) from error

    def on_disk(self) -> int | None:
        """Bytes that the file has once all of them are on the disk; None of a device or a pipe."""
        if not self.path.is_file():
            return None
        try:
            size = self._file.seek(0, os.SEEK_END)
            os.fsync(self._file.fileno())
        except OSError as error:
            raise files.unwritable(self.path, error) from error
        return size

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._stack.close()
        except OSError as failure:
            if error is None:  # else it was said before
                raise files.unwritable(self.path, failure) from failure


def with_version(wanted: Conditions) -> Conditions:
    """Conditions with our version, which is said and not refused."""
    return Conditions({**wanted.values, "version": __version__})
