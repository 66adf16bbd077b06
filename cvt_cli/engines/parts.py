"""How many images a call of an engine has on a CPU, whatever the size of the batch."""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cvt_cli.base import machine

_PART_MACS = 20 * 10**9
"""MACs of each thread in a call that are enough for its speed: 4 images of CvT-13 at 224."""

_PARTS_OF_A_LONG_JOB = 32
"""Of fewer, the last one's empty places and the compilation cost what it saves."""

_MOST_AT_ONCE = 16
"""Calls: between two operators each of torch's wants Python's lock, for some 2 % of its time."""

_COST_OF_A_CALL = 0.25
"""As many images' time, as OpenVINO's calls of 1 to 4 images of CvT-13 in one thread show."""


class Part(NamedTuple):
    """How a batch is computed: in calls of so many images."""

    images: int
    fixed: bool  # the graph is compiled for exactly so many, and the last call is filled up
    at_once: int = 1  # calls side by side, each in its share of the threads


def part_of(together: int, images: int, macs: int) -> Part:
    """How many images a call shall have, whatever the size of the batch.

    More are no faster, and take memory: 10 to 20 MB each of CvT-13 at 224. In a long job a runtime
    chooses layouts for a fixed number beforehand, which saves some 5 % of the time; and each thread
    computes images of its own, so that none waits for the others after every operator, which saves
    another 5 to 20 %. As many images are then computed at a time as otherwise.

    Args:
        together: images of a batch; none where a process of several has no share of them.
        images: of the whole job.
        macs: of one image.
    """
    together = max(1, together)
    threads = machine.threads_for(macs * together)
    enough = max(1, round(_PART_MACS * threads / macs))
    if images < _PARTS_OF_A_LONG_JOB * min(enough, together):
        return Part(enough, fixed=False)
    at_once = min(threads, enough, together, _MOST_AT_ONCE)

    def time(of_a_call: int) -> float:
        rounds = math.ceil(math.ceil(together / of_a_call) / at_once)
        return rounds * (of_a_call + _COST_OF_A_CALL)

    enough = max(1, round(_PART_MACS * threads / at_once / macs))
    most = min(enough * 5 // 4, together)  # a little more, where that fits the batch
    return Part(min(range(1, most + 1), key=time), True, at_once)


class Calls:
    """Computes batches in calls, as a `Part` says; None is one call of all."""

    def __init__(self, part: Part | None) -> None:
        self._part = part
        self._pool = ThreadPoolExecutor(part.at_once) if part and part.at_once > 1 else None

    def __call__(
        self, run: Callable[[NDArray[Any]], NDArray[np.float32]], batch: NDArray[Any]
    ) -> NDArray[np.float32]:
        """Images (B, …) to rows (B, classes).

        Args:
            run: one call, likewise; where they are side by side, on a thread of its own.
            batch: images.
        """
        part = self._part
        if part is None:
            return run(batch)
        calls = [batch[start : start + part.images] for start in range(0, len(batch), part.images)]
        if part.fixed and len(calls[-1]) < part.images:
            empty = np.zeros((part.images - len(calls[-1]), *batch.shape[1:]), batch.dtype)
            calls[-1] = np.concatenate([calls[-1], empty])
        found = map(run, calls) if self._pool is None else self._pool.map(run, calls)
        return np.concatenate(list(found))[: len(batch)]
