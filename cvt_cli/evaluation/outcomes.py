"""What a model said of each image, by its place in the data: what sums cannot tell."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvt_cli.base import files, torchrun
from cvt_cli.evaluation.count_measures import NO_ANSWER

MOST_SCORES = 1 << 26
"""Probabilities (images x classes) that are held unasked: 256 MiB, so ImageNet's 50,000 x 1,000."""

LEFT_OUT, _UNSEEN = -2, -3


class Outcomes:
    """Answers, and all probabilities where there is room for them or they are asked for.

    Args:
        images: n.
        classes: C, of the model.
        keep: probabilities that are kept: True all, False none, None if they are at most
            `MOST_SCORES`.
        folder: where the probabilities are held on disk if they are more than that.

    Attributes:
        answered: (n,) the likeliest class, `NO_ANSWER` for what cannot be read, or `LEFT_OUT`.
        confidence: (n,) its probability.
        scores: (n, C) all probabilities, NaN for what cannot be read; None if they are not kept.
    """

    def __init__(
        self, images: int, classes: int, keep: bool | None = None, folder: Path | None = None
    ) -> None:
        self.answered = np.full(images, _UNSEEN, np.int32)
        self.confidence = np.full(images, np.nan)  # as `cvt predict` compares it with a threshold
        self.scores: NDArray[np.float32] | None = None
        fits = images * classes <= MOST_SCORES
        if keep and not fits:
            shape = (images, classes)
            try:
                with tempfile.TemporaryFile(dir=folder) as file:
                    self.scores = np.memmap(file, np.float32, "w+", shape=shape)
            except OSError as error:
                raise files.unwritable(folder or Path(tempfile.gettempdir()), error) from error
        elif keep or keep is None and fits:
            self.scores = np.empty((images, classes), np.float32)

    def add(
        self, indices: Sequence[int], answered: NDArray[Any], probabilities: NDArray[np.float64]
    ) -> None:
        """Note what was said of images: their likeliest classes (B,), and all probabilities."""
        places = np.asarray(indices, np.int64)
        self.answered[places] = answered
        self.confidence[places] = probabilities.max(axis=1)
        if self.scores is not None:
            self.scores[places] = probabilities

    def add_failure(self, index: int, left_out: bool) -> None:
        """Note an image that cannot be read."""
        self.answered[index] = LEFT_OUT if left_out else NO_ANSWER
        if self.scores is not None:
            self.scores[index] = np.nan

    def add_earlier(self, index: int, answered: int, confidence: float) -> None:
        """Note what a file says of an image; it has not the other probabilities."""
        self.answered[index] = answered
        self.confidence[index] = confidence

    def gather(self, own: Sequence[int]) -> None:
        """Take over what the other processes noted.

        Args:
            own: the images of this one.
        """
        if torchrun.count() == 1:
            return
        mine = np.asarray(own, np.int64)
        places = [np.frombuffer(part, np.int64) for part in torchrun.gather_bytes(mine.tobytes())]
        if not all(torchrun.gather(self.scores is not None)):
            self.scores = None
        for array in self.arrays():
            if array is None:
                continue
            parts = torchrun.gather_bytes(np.ascontiguousarray(array[mine]).tobytes())
            for where, part in zip(places, parts, strict=True):
                array[where] = np.frombuffer(part, array.dtype).reshape(-1, *array.shape[1:])

    def arrays(self) -> tuple[NDArray[Any] | None, ...]:
        """All that is noted of each image."""
        return self.answered, self.confidence, self.scores

    def scores_of(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """The probabilities of some images, which must be kept; of all of them without a copy."""
        assert self.scores is not None
        return self.scores if len(rows) == len(self.scores) else self.scores[rows]

    @property
    def counted(self) -> NDArray[np.int64]:
        """The images that count: all but those left out. Every image must have been seen."""
        assert not (self.answered == _UNSEEN).any()
        return np.flatnonzero(self.answered != LEFT_OUT)
