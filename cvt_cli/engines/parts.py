"""How many images a call of an engine has on a CPU, whatever the size of the batch."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cvt_cli.base import machine

_PART_MACS = 20 * 10**9
"""MACs of each thread in a call that are enough for its speed: two threads' are 8 images of CvT-13
at 224."""

_PARTS_OF_A_LONG_JOB = 32
"""Of fewer, the last one's empty places and the compilation cost what it saves."""


class Part(NamedTuple):
    """How a batch is computed: in calls of so many images."""

    images: int
    fixed: bool  # the graph is compiled for exactly so many, and the last call is filled up


def part_of(together: int, images: int, macs: int) -> Part:
    """How many images a call shall have, whatever the size of the batch.

    More are no faster, and take memory: 10 to 20 MB each of CvT-13 at 224. For a fixed number a
    runtime chooses layouts beforehand, which saves some 5 % of the time of a long job.

    Args:
        together: images of a batch.
        images: of the whole job.
        macs: of one image.
    """
    enough = max(1, round(_PART_MACS * machine.threads_for(macs * together) / macs))
    parts = [number for number in range(1, together + 1) if together % number == 0]
    part = max([number for number in parts if number <= enough], default=1)
    if 2 * part < min(enough, together):  # a prime number of images, say
        part = min(number for number in parts if number > part)
    long = images >= _PARTS_OF_A_LONG_JOB * part
    return Part(part if long else enough, fixed=long)


def by_parts(
    run: Callable[[NDArray[Any]], NDArray[np.float32]], batch: NDArray[Any], part: Part | None
) -> NDArray[np.float32]:
    """A batch computed in calls of so many images; None is one call of all.

    Args:
        run: one call: images (B, …) to rows (B, classes).
        batch: images.
        part: as `part_of` says.
    """
    if part is None:
        return run(batch)
    found = []
    for start in range(0, len(batch), part.images):
        some = batch[start : start + part.images]
        if part.fixed and len(some) < part.images:
            empty = np.zeros((part.images - len(some), *some.shape[1:]), some.dtype)
            some = np.concatenate([some, empty])
        found.append(run(some))
    return np.concatenate(found)[: len(batch)]
