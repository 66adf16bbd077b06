"""How long work reports that it advances; the front draws it, the layers below only count."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

Advance = Callable[[int, str], None]
"""Called with the number of items done since the last call, and a note such as "loss 0.52"."""

Progress = Callable[[str, int], AbstractContextManager[Advance]]
"""Opened with what is being done and the number of items in all."""


@contextmanager
def silent(what: str, total: int) -> Iterator[Advance]:
    """Report to nobody."""
    yield lambda items, note: None
