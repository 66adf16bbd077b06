"""How long work reports that it advances; the front draws it, the layers below only count."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Literal, Protocol

Advance = Callable[[int, str], None]
"""Called with the number of items done since the last call, and a note such as "loss 0.52"."""

Unit = Literal["images", "bytes", "turns"]

Say = Callable[[str], None]
"""Takes a sentence for the user that is no result."""


class Progress(Protocol):
    """Opened with what is being done, how much of it there is (None if nobody knows), and how much
    of that is done."""

    def __call__(
        self, what: str, total: int | None, *, unit: Unit = "images", done: int = 0
    ) -> AbstractContextManager[Advance]: ...


@contextmanager
def silent(
    what: str, total: int | None, *, unit: Unit = "images", done: int = 0
) -> Iterator[Advance]:
    """Report to nobody."""
    yield lambda items, note: None


def unheard(message: str) -> None:
    """Say it to nobody."""
