"""Work on a thread of its own, for what would leave its traces on the one that calls."""

import ctypes
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

_Found = TypeVar("_Found")


def aside(work: Callable[[], _Found]) -> _Found:
    """What a call gives, or raises, on a thread that is waited for.

    Ctrl-C, which Python hears on its main thread only, ends the work as it would here.
    """
    found: Future[_Found] = Future()

    def run() -> None:
        try:
            found.set_result(work())
        except BaseException as error:  # raised below, in the thread that asked
            found.set_exception(error)

    thread = threading.Thread(target=run)
    try:
        thread.start()
        while not found.done():  # a signal that another thread got is looked at in between
            wait([found], 0.1)
    except BaseException:
        if thread.ident is not None:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(thread.ident), ctypes.py_object(KeyboardInterrupt)
            )
            wait([found])  # `Thread.join` may come back at once, having been interrupted
        raise
    return found.result()
