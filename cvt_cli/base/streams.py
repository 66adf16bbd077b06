"""stdin, stdout and stderr as they are found: closed, full, unread, of any encoding.

What is lost of stdout are results, so that it ends the command with a sentence. What is lost of
stderr are messages: they are dropped, and the work goes on.
"""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from cvt_cli.base.errors import CvtError
from cvt_cli.base.text import printable


class _Stream:
    """A standard stream in its place; what this does not define is the stream's own.

    After a failure its descriptor leads to the null device: what is buffered would be tried again
    when the process ends, and other libraries write there too.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return int(self._stream.write(text) or 0)
        except (OSError, ValueError) as error:  # ValueError: it has been closed
            self._lost(error)
            return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._lost(error)

    def _lost(self, error: Exception) -> None:
        with suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Unread(BrokenPipeError):
    """Nobody reads stdout any more, as of ``cvt --help | head -1``."""


class _Results(_Stream):
    """stdout.

    Raises:
        Unread: nobody reads it any more.
        CvtError: it cannot be written, as where the disk is full.
    """

    def _lost(self, error: Exception) -> None:
        super()._lost(error)
        if isinstance(error, BrokenPipeError):
            raise Unread from error
        reason = getattr(error, "strerror", None) or error
        raise CvtError(f"cannot write the results: {reason}") from error


@contextmanager
def prepared() -> Iterator[None]:
    """Have all three, whatever the process was started with, while a command runs.

    A closed one leads to the null device; else the next file that is opened would take its number,
    and with it what other libraries write there.

    Raises:
        Unread, CvtError: at the end, as `_Results`.
    """
    before = sys.stdin, sys.stdout, sys.stderr
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this
        if getattr(sys, name) is None:
            mode = "w" if descriptor else "r"
            opened = open(descriptor, mode, encoding="utf-8", closefd=False)
            setattr(sys, name, opened)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that its encoding lacks is escaped
            stream.reconfigure(errors="backslashreplace")
    sys.stdout, sys.stderr = _Results(_buffered(sys.stdout)), _Stream(_buffered(sys.stderr))
    try:
        with _waited_for():
            try:
                yield
            finally:
                sys.stdout.flush()
    finally:
        sys.stdin, sys.stdout, sys.stderr = before


def _buffered(stream: Any) -> Any:
    """The stream with a buffer, which ``PYTHONUNBUFFERED`` takes from it.

    Without one a text is written by one call, and what the system does not take of it is lost.
    """
    if not isinstance(getattr(stream, "buffer", None), io.RawIOBase):
        return stream
    file = open(stream.fileno(), "wb", closefd=False)  # the stream itself stays as it is
    return io.TextIOWrapper(file, stream.encoding, "backslashreplace", line_buffering=True)


@contextmanager
def _waited_for() -> Iterator[None]:
    """Inside of it who reads or writes the standard streams waits for them.

    Another program that has the same pipe or terminal may have set them otherwise: what is not
    there at once would be taken for the end, and what is not read at once would be lost.
    """
    changed = []
    for descriptor in range(3):
        with suppress(OSError):
            if not os.get_blocking(descriptor):
                os.set_blocking(descriptor, True)
                changed.append(descriptor)
    try:
        yield
    finally:
        for descriptor in changed:
            with suppress(OSError):
                os.set_blocking(descriptor, False)


def say(message: str) -> None:
    """A line on stderr, at once; dropped where it cannot be written."""
    if sys.stderr is not None:  # as it is in programs without a console
        _Stream(sys.stderr).write(printable(message) + "\n")
        _Stream(sys.stderr).flush()


def is_unicode(stream: Any) -> bool:
    """Whether a stream takes every character."""
    return str(getattr(stream, "encoding", None) or "").lower().replace("-", "").startswith("utf")


@contextmanager
def results_alone() -> Iterator[None]:
    """What a library prints to stdout meanwhile goes to stderr: gloo greets there (torch 2.10)."""
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    try:
        stdout = os.dup(1)
    except OSError:  # it is closed
        yield
        return
    try:
        with suppress(OSError):
            os.dup2(2, 1)
        yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)
