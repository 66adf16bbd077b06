"""Work that threads do ahead of who asks for it stays in order and within bounds."""

import threading
from collections.abc import Generator, Iterator

import pytest

from cvt_cli.base import limits
from cvt_cli.base.ahead import ahead, batches, ended_by


def test_large_results_are_not_made_far_ahead_and_stay_in_order() -> None:
    made: list[int] = []
    furthest = 0

    def work(number: int) -> int:
        made.append(number)
        return number

    def size(result: int) -> int:
        return limits.LARGEST_WAITING // 2

    ready = ahead(work, range(50), 2, 40, size)
    given = []
    for batch in batches(ready, 16, size):
        furthest = max(furthest, len(made) - len(given))
        given += [number for number, _ in batch]
        assert len(batch) <= 3

    assert given == list(range(50))
    assert furthest <= 10  # of small ones there would be 56


def test_one_picture_that_takes_long_does_not_stop_the_decoding_of_hundreds_after_it() -> None:
    a_long_way_on = threading.Event()

    def work(number: int) -> int:
        if number == 3:
            assert a_long_way_on.wait(20)
        elif number == 500:
            a_long_way_on.set()
        return number

    ready = ahead(work, range(600), 2, 32, lambda result: 100_000)

    assert [number for number, _ in ready] == list(range(600))


def test_what_waits_for_one_picture_has_a_bounded_size() -> None:
    made, too_many = 0, threading.Event()

    def work(number: int) -> int:
        nonlocal made
        if number == 0:
            too_many.wait(0.4)
        made += 1
        if made > 12 and number < 60:
            too_many.set()
        return number

    ready = ahead(work, range(600), 2, 4, lambda result: limits.LARGEST_AHEAD // 8)

    assert next(ready) == (0, 0)
    assert not too_many.is_set()


def test_whoever_waits_for_room_among_the_contents_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As of a tar archive, whose members are read by who gives them to the threads."""
    monkeypatch.setattr(limits, "contents", limits.Budget(100))
    monkeypatch.setattr(limits, "LARGEST_WAITING", 40 * 1024**2)

    def members() -> Iterator[tuple[int, limits.Share]]:
        for number in range(30):
            yield number, limits.contents.take(30)

    def work(member: tuple[int, limits.Share]) -> int:
        number, share = member
        share.release()
        return number

    given: list[int] = []

    def go_through() -> None:
        for _, number in ahead(work, members(), 2, 20, lambda result: 20 * 1024**2):
            given.append(number)

    thread = threading.Thread(target=go_through, daemon=True)
    thread.start()
    thread.join(20)

    assert given == list(range(30))


def test_what_threads_wait_for_ends_where_nobody_asks_any_more() -> None:
    never, waiting, ended = threading.Event(), threading.Event(), threading.Event()

    def work(number: int) -> int:
        if number == 1:
            with ended_by(never.set):
                waiting.set()
                never.wait(30)
            ended.set()
        return number

    ready = ahead(work, range(9), 2, 4)
    assert next(ready) == (0, 0)
    assert waiting.wait(20)
    assert isinstance(ready, Generator)
    ready.close()

    assert ended.wait(5)
