"""Images in, predictions out, a batch at a time and in order."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvt_cli import images
from cvt_cli.engine import Engine, logits_of
from cvt_cli.errors import ImageError
from cvt_cli.labels import Labels
from cvt_cli.preprocessing import Preprocessing


@dataclass(frozen=True)
class Prediction:
    """One class and how likely it is."""

    index: int  # of the class among the model's
    wnid: str | None  # WordNet identifier, for ImageNet's classes
    label: str
    score: float  # probability, 0 … 1, of all the model's classes


@dataclass(frozen=True)
class Answer:
    """What the model says of one image, or why it cannot."""

    path: str
    predictions: tuple[Prediction, ...] = ()  # the likeliest first
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The documented keys: ``predictions``, or ``error`` in its place."""
        if self.error is not None:
            return {"path": self.path, "error": self.error}
        return {"path": self.path, "predictions": [vars(p) for p in self.predictions]}


def classify(
    engine: Engine,
    paths: Iterable[Path],
    preprocessing: Preprocessing,
    labels: Labels,
    *,
    top_k: int = 5,
    batch_size: int = 16,
    exif: bool = True,
) -> Iterator[Answer]:
    """Answer for every path, in order; an image that cannot be read is answered with the reason.

    Args:
        engine: the model.
        paths: image files; read when their batch's turn has come.
        preprocessing: the model's.
        labels: the model's.
        top_k: how many classes to name.
        batch_size: images per call of the engine.
        exif: turn pictures upright first.
    """
    remaining = iter(paths)
    while chunk := list(islice(remaining, batch_size)):
        arrays: list[NDArray[np.float32]] = []
        errors: dict[int, str] = {}
        for position, path in enumerate(chunk):
            try:
                arrays.append(images.preprocess(images.load(path, exif), preprocessing))
            except ImageError as error:
                errors[position] = str(error)
        logits = iter(logits_of(engine, arrays) if arrays else ())
        for position, path in enumerate(chunk):
            if position in errors:
                yield Answer(str(path), error=errors[position])
            else:
                yield Answer(str(path), top_predictions(next(logits), labels, top_k))


def top_predictions(
    logits: NDArray[np.float32], labels: Labels, top_k: int
) -> tuple[Prediction, ...]:
    """The likeliest classes of one image's logits (classes,), with softmax probabilities."""
    wide = logits.astype(np.float64)
    exponentials = np.exp(wide - wide.max())
    scores = exponentials / exponentials.sum()
    order = np.argsort(-wide, kind="stable")[:top_k]  # a tie goes to the lower index
    return tuple(
        Prediction(int(i), labels.wnid(int(i)), labels.names[i], float(scores[i])) for i in order
    )
