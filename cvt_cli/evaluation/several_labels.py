"""Images that may have several classes, or none: what was said of each, and what is counted.

A class is answered where its sigmoid is at least the class's threshold. An image is right where the
answered classes are exactly its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvt_cli.evaluation.counts import Counts
from cvt_cli.evaluation.outcomes import Outcomes
from cvt_cli.prediction.answers import BETWEEN, Prediction
from cvt_cli.prediction.classify import several_predictions, sigmoid
from cvt_cli.spec.labels import Labels


@dataclass(frozen=True)
class JudgedSet:
    """What a model said of one image that may have several classes."""

    path: str
    labels: tuple[str, ...]  # the right classes, by the model's names
    correct: bool = False  # they are the answered ones
    predictions: tuple[Prediction, ...] = ()  # all that are answered
    scores: tuple[float, ...] = ()  # the probability of every class
    error: str | None = None
    weight: float | None = None  # how much it counts; None where all count the same

    def to_json(self) -> dict[str, Any]:
        """The documented keys: ``predictions`` and ``scores``, or ``error`` in their place."""
        start = {"path": self.path, "labels": list(self.labels), "correct": self.correct}
        if self.weight is not None:
            start["weight"] = self.weight
        if self.error is not None:
            return {**start, "error": self.error}
        given = [vars(one) for one in self.predictions]
        return {**start, "predictions": given, "scores": list(self.scores)}

    def row(self) -> dict[str, Any]:
        """The same as a row of a table, but for the path."""
        unknown = self.error is not None
        predicted = BETWEEN.join(one.label for one in self.predictions)
        scores = BETWEEN.join(repr(one.score) for one in self.predictions)
        return {
            "labels": BETWEEN.join(self.labels),
            "correct": self.correct,
            "error": self.error,
            "predicted": None if unknown else predicted,
            "scores": None if unknown else scores,
        }


class SetCounts(Counts):
    """Sums over images that may have several classes.

    ``correct_top1`` is of images whose classes are exactly the answered ones, ``loss_sum`` of the
    mean binary cross-entropy over the classes. See `Counts` for the rest.
    """

    def __init__(self, labels: Labels) -> None:
        super().__init__(len(labels))
        self._thresholds = np.asarray(labels.thresholds)

    def add(  # type: ignore[override]
        self,
        logits: NDArray[np.float32],
        labels: NDArray[np.uint8],
        names: Sequence[str] = (),
        groups: Sequence[str] = (),
        real: Sequence[Sequence[int]] = (),
    ) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        """Count a batch.

        Args:
            logits: (B, classes).
            labels: (B, classes), 1 where an image has a class.
            names: of no use.
            groups: of the images.
            real: of no use.

        Returns:
            What is answered, and the probabilities, both (B, classes).
        """
        probabilities = sigmoid(logits)
        said, truth = probabilities >= self._thresholds, labels > 0
        right = (said == truth).all(axis=1)
        self._count_right(right, groups)
        self.class_n += truth.sum(axis=0)
        self.class_correct += (said & truth).sum(axis=0)
        wide = logits.astype(np.float64)
        losses = np.maximum(wide, 0) - wide * truth + np.log1p(np.exp(-np.abs(wide)))
        self.loss_sum += float(losses.mean(axis=1).sum())
        return said, probabilities

    def add_failure(  # type: ignore[override]
        self,
        name: str,
        reason: str,
        label: NDArray[np.uint8],
        group: str | None = None,
        real: Sequence[int] = (),
    ) -> None:
        """Count an image that cannot be read: as wrong, unless it is left out."""
        if self._count_failure(name, reason, group):
            self.class_n += label


class SetOutcomes(Outcomes):
    """What was said of each image: all probabilities, on disk where they are many.

    Attributes:
        said: (n, C) whether a class was answered.
    """

    def __init__(self, images: int, classes: int, folder: Path | None = None) -> None:
        super().__init__(images, classes, keep=True, folder=folder)
        self.said = np.zeros((images, classes), bool)

    def add(
        self, indices: Sequence[int], answered: NDArray[Any], probabilities: NDArray[np.float64]
    ) -> None:
        """Note what was said of images: which classes (B, C), and all probabilities."""
        super().add(indices, np.zeros(len(indices), np.int32), probabilities)
        self.said[np.asarray(indices, np.int64)] = answered

    def add_earlier_set(self, index: int, said: Sequence[int], scores: Sequence[float]) -> None:
        """Note what a file says of an image: the classes that are answered, and all scores."""
        assert self.scores is not None
        self.add_earlier(index, 0, max(scores))
        self.scores[index] = scores
        self.said[index, list(said)] = True

    def arrays(self) -> tuple[NDArray[Any] | None, ...]:
        """All that is noted."""
        return (*super().arrays(), self.said)


def judged(
    name: str, truth: NDArray[np.uint8], logits: NDArray[np.float32] | str, labels: Labels
) -> JudgedSet:
    """What was said of an image, or why it cannot be read."""
    right = tuple(labels.names[place] for place in np.flatnonzero(truth).tolist())
    if isinstance(logits, str):
        return JudgedSet(name, right, error=logits)
    found = several_predictions(logits, labels, None)
    correct = {one.index for one in found} == set(np.flatnonzero(truth).tolist())
    # As the outcomes hold them, so that who goes on with a file has the same numbers.
    scores = tuple(sigmoid(logits).astype(np.float32).astype(np.float64).tolist())
    return JudgedSet(name, right, correct, found, scores)
