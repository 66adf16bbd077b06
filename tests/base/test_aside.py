"""Work on a thread of its own: what it gives, what it raises, and Ctrl-C."""

import signal
import threading
import time

import pytest

from cvt_cli.base.aside import aside


def test_it_gives_and_raises_what_the_work_does_on_another_thread() -> None:
    def fails() -> None:
        raise ValueError("of the work")

    assert aside(threading.current_thread) is not threading.current_thread()
    with pytest.raises(ValueError, match="of the work"):
        aside(fails)


def test_ctrl_c_ends_the_work_before_it_is_passed_on() -> None:
    ended = []
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored under nohup

    def works() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
            while True:
                time.sleep(0.01)
        finally:
            ended.append(True)

    try:
        with pytest.raises(KeyboardInterrupt):
            aside(works)
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended
