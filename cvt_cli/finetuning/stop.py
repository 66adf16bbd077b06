"""Who asks a run to stop, and when it does."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from types import FrameType

_SAME_SIGNAL_SEC = 1.0
"""In which a second signal is the first once more: `timeout` and Slurm tell a process by itself and
with its group, torchrun passes on what its processes got from the terminal too."""


class Stop:
    """Who asks a run to stop: Ctrl-C, SIGTERM (torchrun, `timeout`, Slurm), a closed terminal."""

    def __init__(self) -> None:
        self.asked = False
        self._since = 0.0
        self._deferred = 0

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Listen: outside of `later` KeyboardInterrupt is raised at once.

        What is ignored stays so: SIGHUP under nohup, SIGINT in a shell's background. Afterwards the
        caller's handlers are back, but inside of `for_good`.
        """
        before = {}
        try:
            for name in ("SIGINT", "SIGTERM", "SIGHUP"):
                which = getattr(signal, name, None)  # Windows has no SIGHUP
                if which is not None and signal.getsignal(which) is not signal.SIG_IGN:
                    before[which] = signal.signal(which, self._hear)
        except ValueError:  # not in the main thread, where nobody presses keys
            pass
        ending = False
        try:
            yield
        except KeyboardInterrupt:
            ending = True
            raise
        finally:
            for which, handler in before.items():
                # Where the process ends now, being asked once more is no reason for tracebacks out
                # of whatever is cleaned up.
                signal.signal(which, _deaf if ending and _is_for_good else handler)

    @contextmanager
    def later(self) -> Iterator[None]:
        """Let what is under way be finished first; being asked again by Ctrl-C stops at once."""
        self._deferred += 1
        try:
            yield
        finally:
            self._deferred -= 1

    def obey(self) -> None:
        """Raise the KeyboardInterrupt that `later` put off, unless it still does."""
        if self.asked and not self._deferred:
            raise KeyboardInterrupt

    def _hear(self, number: int, frame: FrameType | None) -> None:
        now = perf_counter()
        first = not self.asked
        if first:
            self.asked, self._since = True, now
        elif now - self._since < _SAME_SIGNAL_SEC or number != signal.SIGINT:
            return
        if not (first and self._deferred):
            raise KeyboardInterrupt


_is_for_good = False
"""Whether the process ends where a run was asked to stop."""


@contextmanager
def for_good() -> Iterator[None]:
    """Of a command: once a run in it was asked to stop, nothing more is heard until the process is
    over. A program that called `finetune` goes on, and must be stoppable."""
    global _is_for_good
    _is_for_good = True
    try:
        yield
    finally:
        _is_for_good = False


def _deaf(number: int, frame: FrameType | None) -> None:
    """Nothing more is to be asked of this process."""
