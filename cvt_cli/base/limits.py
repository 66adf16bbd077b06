"""What comes from outside may ask for and be no more than this, and be held no more at once.

What a file that a stranger wrote may ask for is far above what any CvT has or needs, and low enough
that a number in a small file cannot take the machine's memory or its time.
"""

import os
import threading
from collections import Counter, deque

from cvt_cli.base import machine

# --- what a config may ask for

LARGEST_SIZE = 2048
"""Height and width in pixels of the network's input; published models take 224 and 384."""

LARGEST_SHORTER_SIDE = 4 * LARGEST_SIZE
"""Pixels that an image's shorter side is resized to before the crop."""

LARGEST_MEAN = 100.0
LARGEST_STD, SMALLEST_STD = 100.0, 1e-3
"""Of pixels that go from 0 to 1, per channel; ImageNet's are 0.4 to 0.5 and 0.2."""

MOST_CLASSES = 1_000_000
"""Of the head; ImageNet-22k has 21,841 classes."""

MOST_STAGES = 8
MOST_BLOCKS = 1_000
"""Of a stage; CvT-W24's last one has 20."""

LARGEST_WIDTH = 16_384
"""Channels of a token; CvT-W24's last stage has 1024."""

LARGEST_KERNEL = 64
"""Kernel and stride of a token embedding; published are 7 and 4."""

LARGEST_MLP_RATIO = 64

LARGEST_CONFIG_BYTES = 64 * 1024**2
"""Of `config.json` and `preprocessor_config.json`; one with 21,841 class names has 2 MB."""

LARGEST_HEADER_BYTES = 100_000_000
"""Of a safetensors file, as its own library has it."""

# --- images and data

LARGEST_FILE = 128 * 1024**2
"""Bytes that are read at most of an image in an archive, of an address or on stdin."""

LARGEST_ON_DISK = 4 * 1024**3
"""Likewise of an image's own file: more than the largest picture that Pillow decodes has."""

MOST_SCANS = 500
"""Of a progressive JPEG, each of which decodes all of its picture; there are ten as a rule."""

MOST_FOLDERS = 256
"""One in another, around a member of an archive; file systems allow no more than some thousands."""

LARGEST_TAR_HEADER = 1024**2
"""Bytes of a long name, and of what else headers of a tar archive say of the next member."""

LARGEST_TABLE = 512 * 1024**2
"""Bytes that are read at most of a file that is no image; CIFAR-100's largest has over 153 MB."""

LIGHTEST_WEIGHT, HEAVIEST_WEIGHT = 1e-12, 1e12
"""Of an image, or of a class: sums of them, and their squares, stay numbers, also in float32."""

_MIB = 1024**2
_PROCESSORS = machine.processors()

LARGEST_WAITING = max(512, 64 * _PROCESSORS) * _MIB
"""Bytes of whole pictures that wait together for a model that prepares them itself."""

LARGEST_AHEAD = max(256, 32 * _PROCESSORS) * _MIB
"""Bytes of prepared images that wait while one that comes before them takes long to decode."""


class Budget:
    """Bytes that the threads of this process may hold together; who wants more waits for room.

    What is larger than the whole budget has room while nobody holds anything.

    Args:
        most: bytes.
        own: a thread that holds some may have more without waiting, since it might be itself that
            it waits for.
    """

    def __init__(self, most: int, own: bool = False) -> None:
        self.most, self.own = most, own
        self._start()
        if hasattr(os, "register_at_fork"):  # those who would give back stay in the parent
            os.register_at_fork(after_in_child=self._start)

    def _start(self) -> None:
        self._changed = threading.Condition()
        self._held = 0
        self._waiting: set[int] = set()  # threads that have no room
        self._of_thread: Counter[int] = Counter()
        # Not counted where they are given back: the garbage collector does so too, anywhere.
        self._returned: deque[tuple[int, int]] = deque()

    def take(self, size: int) -> "Share":
        """Hold some bytes, from when there is room for them."""
        thread = threading.get_ident()
        with self._changed:
            try:
                while not self._has_room(size, thread):
                    self._waiting.add(thread)
                    self._changed.wait(0.1)
            finally:
                self._waiting.discard(thread)
            self._held += size
            self._of_thread[thread] += size
        return Share(self, size, thread)

    def is_waited_for(self, thread: int) -> bool:
        """Whether this thread waits for room."""
        return thread in self._waiting

    def _has_room(self, size: int, thread: int) -> bool:
        while self._returned:
            given, by = self._returned.popleft()
            self._held = max(0, self._held - given)
            self._of_thread[by] -= given
            if self._of_thread[by] <= 0:
                del self._of_thread[by]
        own = self.own and thread in self._of_thread
        return not self._held or self._held + size <= self.most or own

    def give_back(self, size: int, thread: int) -> None:
        """Hold them no more; ``thread`` is the one that took them."""
        self._returned.append((size, thread))
        if self._changed.acquire(blocking=False):
            self._changed.notify_all()
            self._changed.release()


class Share:
    """What was taken of a budget."""

    def __init__(self, budget: Budget, size: int, thread: int) -> None:
        self._budget, self._size, self._thread = budget, size, thread

    def release(self, keep: int = 0) -> None:
        """Give back all but ``keep`` bytes; again is harmless."""
        if self._size > keep:
            size, self._size = self._size - keep, keep
            self._budget.give_back(size, self._thread)


contents = Budget(max(512, 32 * _PROCESSORS) * _MIB)
"""Images as archives and addresses give them, from their reading to the end of their decoding."""

pictures = Budget(max(1024, 128 * _PROCESSORS) * _MIB, own=True)
"""Decoded pictures, those alone that are large, until they are prepared for the model."""

LARGEST_DESCRIPTION_BYTES = 256 * 1024**2
"""Of what an exported file says of itself and of its graph, weights apart; CvT-W24's has 5 MB."""
