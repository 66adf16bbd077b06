"""Files that appear when all of them is written, and not at all where that fails."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from cvt_cli.base import files
from cvt_cli.base.errors import CvtError


class _Unfinished(CvtError):
    """All answers were there, and the file of them could not be finished: others of them can."""


class WholeFile:
    """A file that is written beside its place and appears when its context ends without an error.

    Raises:
        CvtError: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stack = ExitStack()
        self._temporary = self._stack.enter_context(files.replacing(path))
        try:
            self._begin()
        except OSError as error:
            unwritable = files.unwritable(path, error)
            self._stack.__exit__(CvtError, unwritable, None)
            raise unwritable from error
        except BaseException as error:
            self._stack.__exit__(type(error), error, error.__traceback__)
            raise

    def _begin(self) -> None:
        raise NotImplementedError

    def _add(self, item: Any) -> None:
        raise NotImplementedError

    def _finish(self) -> None:
        raise NotImplementedError

    def write(self, item: Any, sha256: str | None = None) -> None:
        """Add the next answer; the hash of its image's file has no place here."""
        try:
            self._add(item)
        except OSError as error:
            raise files.unwritable(self._path, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None and not isinstance(error, _Unfinished):
            self._stack.__exit__(kind, error, trace)
            return
        try:
            with self._stack:
                self._finish()
        except CvtError as failure:
            raise _Unfinished(str(failure), failure.hint) from failure.__cause__


CARDS = "<!-- cards -->\n"
"""Where they stand in a page's template; no text that is put into it can hold this unescaped."""


class CardsPage(WholeFile):
    """An HTML page of cards. What stands above them is known with the last item: until then they
    wait in a file without a name.

    Args:
        conditions: of what is shown.
    """

    def __init__(self, path: Path, conditions: Mapping[str, Any]) -> None:
        self._conditions, self._folder = conditions, path.parent
        super().__init__(path)

    def _begin(self) -> None:
        self._file: IO[bytes] = self._stack.enter_context(self._temporary.open("wb"))
        folder = self._temporary.parent
        self._cards: IO[bytes] = self._stack.enter_context(tempfile.TemporaryFile(dir=folder))

    def _finish(self) -> None:
        start, _, end = self._page().partition(CARDS)
        self._file.write(start.encode())
        for part in self._in_order():
            self._file.write(part)
        self._file.write(end.encode())

    def _page(self) -> str:
        """The page without its cards."""
        raise NotImplementedError

    def _in_order(self) -> Iterator[bytes]:
        """The cards, as they come on the page: as they were written."""
        self._cards.seek(0)
        while part := self._cards.read(2**20):
            yield part
