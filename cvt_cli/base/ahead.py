"""Work that threads do ahead of who asks for it: in order, in bounded memory."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from time import perf_counter
from typing import Generic, TypeVar

from cvt_cli.base import limits

Item = TypeVar("Item")
Result = TypeVar("Result")

_SMALL = 16 * 1024**2
"""Bytes up to which a prepared image is not large; 384x384 has 1.8 million."""

_ANY_RESULT = 32 * 1024
"""Bytes that are counted for any result that waits, for what its making has left around it."""

_LONG_SEC = 0.1
"""From so long a wait for the next result on, more are begun after it; a thread whose processor
somebody else has got is back before."""

_FORGOTTEN_AFTER = 8
"""Results that are given without such a wait, for each that waits no more."""


def ahead(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int,
    most: int,
    size: Callable[[Result], int] | None = None,
) -> Iterator[tuple[Item, Result]]:
    """Every item with what ``work`` makes of it, in order; threads work ahead of who asks.

    Args:
        work: called in a thread for every item.
        items: taken one by one, no more than ``most`` ahead. If ``size`` is known, more are taken
            where threads would have nothing to do while one makes the next result to be given, as
            of a picture that is a hundred times as large as others.
        workers: threads.
        most: results that wait at the same time; more as long as they have fewer bytes than
            `limits.LARGEST_AHEAD`.
        size: of a result, in bytes; work is begun on no other item but the next to be given while
            large ones of more than `limits.LARGEST_WAITING` wait. It goes on where taking an item
            waits for room, which the items that were taken have.
    """
    window = _Window(work, workers, most, size)
    try:
        for item in items:
            window.begin(item)
            while window.is_full():
                yield window.give()
        while window.waiting:
            yield window.give()
    finally:
        window.close()


def batches(
    ready: Iterable[tuple[Item, Result]], count: int, size: Callable[[Result], int]
) -> Iterator[list[tuple[Item, Result]]]:
    """Lists of ``count``, or of fewer large ones that have over `limits.LARGEST_WAITING` bytes."""
    batch: list[tuple[Item, Result]] = []
    total = 0
    for item, result in ready:
        batch.append((item, result))
        total += _counted(size(result))
        if len(batch) == count or total > limits.LARGEST_WAITING:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch


_here = threading.local()
"""Of a thread: the `window` that it works for."""


@contextmanager
def ended_by(end: Callable[[], None]) -> Iterator[None]:
    """Inside of it ``end`` is called as soon as nobody asks any more for what this thread makes, as
    after Ctrl-C: the process waits for its threads before it is over."""
    window: _Window[object, object] | None = getattr(_here, "window", None)
    if window is None:
        yield
        return
    window.waits(end)
    try:
        yield
    finally:
        window.waits_no_more(end)


class _Window(Generic[Item, Result]):
    """The items that were begun and not given yet; its methods are called in one thread."""

    def __init__(
        self,
        work: Callable[[Item], Result],
        workers: int,
        most: int,
        size: Callable[[Result], int] | None,
    ) -> None:
        self.waiting: deque[tuple[Item, Future[Result]]] = deque()
        self._work, self._workers, self._most, self._size = work, workers, most, size
        self._pool = ThreadPoolExecutor(workers)
        self._begun = self._given = 0  # items; the next to be given is made in any case
        self._furthest = most  # so many may wait, since threads had nothing to do
        self._asked = (-1, 0.0)  # which one was asked for last, and when first
        self._taker = 0  # the thread that takes items
        # What threads change too, each time under this condition.
        self._changed = threading.Condition()
        self._done: dict[int, int] = {}  # bytes of the results that wait, by their numbers
        self._held = self._large = 0  # bytes of them, and of those of them that are large
        self._ended = False
        self._ends: list[Callable[[], None]] = []  # what ends the waiting of threads

    def begin(self, item: Item) -> None:
        """Hand one more to the threads."""
        self._taker = threading.get_ident()
        self.waiting.append((item, self._pool.submit(self._in_turn, self._begun, item)))
        self._begun += 1

    def is_full(self) -> bool:
        """Whether the next is given before one more is begun; waits until that is clear."""
        if self._large > limits.LARGEST_WAITING:
            return True
        if len(self.waiting) > self._most and not self._goes_further():
            return True
        self._furthest = max(self._furthest, len(self.waiting))
        return False

    def give(self) -> tuple[Item, Result]:
        """The next item and its result, which is waited for."""
        item, future = self.waiting.popleft()
        result = future.result()
        with self._changed:
            made = self._done.pop(self._given)
            self._held -= made + _ANY_RESULT
            self._large -= _counted(made)
            self._given += 1
            self._changed.notify_all()
        if self._given % _FORGOTTEN_AFTER == 0:
            self._furthest = max(self._most, self._furthest - 1)
        return item, result

    def close(self) -> None:
        """Begin nothing more, and wait for nothing."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
            ends = list(self._ends)
        for end in ends:
            end()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def waits(self, end: Callable[[], None]) -> None:
        """A thread begins to wait for something, which ``end`` ends."""
        with self._changed:
            self._ends.append(end)
        if self._ended:
            end()

    def waits_no_more(self, end: Callable[[], None]) -> None:
        with self._changed:
            self._ends.remove(end)

    def _in_turn(self, number: int, item: Item) -> Result:
        """What a thread does."""
        _here.window = self
        if not self._may_begin(number):
            with self._changed:
                while not self._may_begin(number):
                    self._changed.wait(0.1)  # of who waits for room nobody tells
        made = 0
        try:
            result = self._work(item)
            made = 0 if self._size is None else self._size(result)
            return result
        finally:
            with self._changed:
                self._done[number] = made
                self._held += made + _ANY_RESULT
                self._large += _counted(made)
                self._changed.notify_all()

    def _may_begin(self, number: int) -> bool:
        """Whether large results that wait leave room for one more."""
        return (
            self._large <= limits.LARGEST_WAITING
            or number == self._given
            or self._ended
            or limits.contents.is_waited_for(self._taker)
        )

    def _goes_further(self) -> bool:
        """Whether one more is begun before the next is given; waits until that is clear."""
        if self._size is None:
            return False
        with self._changed:
            if self._asked[0] != self._given:
                self._asked = self._given, perf_counter()
            patience = self._asked[1] + _LONG_SEC - perf_counter()
            if self._refills():
                return True
            if self._changed.wait_for(lambda: self._given in self._done, max(0.0, patience)):
                return False
            self._changed.wait_for(lambda: self._given in self._done or self._widens())
            return self._given not in self._done

    def _refills(self) -> bool:
        """Whether one more is begun, since as many were needed before."""
        undone = len(self.waiting) - len(self._done)
        near = len(self.waiting) <= self._furthest and undone <= self._most
        return self._held < limits.LARGEST_AHEAD and near

    def _widens(self) -> bool:
        """Whether one more is begun, since a thread has nothing to do."""
        undone = len(self.waiting) - len(self._done)
        return self._held < limits.LARGEST_AHEAD and undone <= self._workers


def _counted(size: int) -> int:
    """What a result counts towards `limits.LARGEST_WAITING`: none but a large picture whole."""
    return size if size > _SMALL else 0
