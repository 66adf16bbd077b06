"""Logits and labels in, metrics out, by integer sums."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import sqrt
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvt_cli import images
from cvt_cli.datasets import LabelledImages
from cvt_cli.engine import Engine, logits_of
from cvt_cli.errors import ImageError
from cvt_cli.preprocessing import Preprocessing
from cvt_cli.progress import Progress, silent


@dataclass
class Evaluation:
    """Counts over a labelled set. An unreadable image counts as wrong and is listed."""

    n: int = 0  # images, unreadable ones included
    correct_top1: int = 0
    correct_top5: int = 0
    loss_sum: float = 0.0  # cross-entropy in nats, summed over the readable images
    failures: list[tuple[str, str]] = field(default_factory=list)  # (image, reason)
    seconds: float = 0.0  # wall time, decoding included

    @property
    def top1(self) -> float:
        """Fraction of all images whose likeliest class is right."""
        return self.correct_top1 / self.n

    @property
    def top5(self) -> float:
        """Fraction of all images whose class is among the 5 likeliest."""
        return self.correct_top5 / self.n

    @property
    def loss(self) -> float | None:
        """Mean cross-entropy in nats over the readable images; None if there are none."""
        readable = self.n - len(self.failures)
        return self.loss_sum / readable if readable else None

    @property
    def top1_interval(self) -> tuple[float, float]:
        """95 % Wilson score interval of `top1` (Wilson 1927)."""
        z = 1.959963984540054
        centre = self.top1 + z * z / (2 * self.n)
        half = z * sqrt(self.top1 * (1 - self.top1) / self.n + z * z / (4 * self.n**2))
        scale = 1 + z * z / self.n
        return (centre - half) / scale, (centre + half) / scale

    def to_json(self) -> dict[str, Any]:
        """The documented keys of ``--json``; shares are fractions."""
        return {
            "n": self.n,
            "n_failed": len(self.failures),
            "top1": self.top1,
            "top5": self.top5,
            "top1_correct": self.correct_top1,
            "top5_correct": self.correct_top5,
            "top1_interval": list(self.top1_interval),
            "loss": self.loss,
            "images_per_sec": self.n / self.seconds,
        }

    def add(self, logits: NDArray[np.float32], labels: NDArray[np.int64]) -> None:
        """Count a batch: logits (B, classes) and the right classes (B,)."""
        order = np.argsort(-logits, axis=1, kind="stable")  # a tie goes to the lower index
        hits = order[:, :5] == labels[:, None]
        self.n += len(labels)
        self.correct_top1 += int(hits[:, 0].sum())
        self.correct_top5 += int(hits.sum())
        wide = logits.astype(np.float64)
        wide -= wide.max(axis=1, keepdims=True)
        log_sum = np.log(np.exp(wide).sum(axis=1))
        self.loss_sum += float((log_sum - wide[np.arange(len(labels)), labels]).sum())


def evaluate(
    engine: Engine,
    data: LabelledImages,
    class_index: NDArray[np.int64],
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    exif: bool = False,
    progress: Progress = silent,
) -> Evaluation:
    """Run every image through the engine and count.

    Args:
        engine: the model.
        data: the images with their classes.
        class_index: the model's class of each of the data's classes (`datasets.match_classes`).
        preprocessing: the model's.
        batch_size: images per call of the engine; it does not change the counts.
        exif: turn pictures upright first; the published numbers were measured without.
        progress: told of every batch.
    """
    result = Evaluation()
    started = perf_counter()
    with progress("evaluating", len(data)) as advance:
        for batch, labels, failures in _batches(data, preprocessing, batch_size, exif):
            if len(batch):
                result.add(logits_of(engine, batch), class_index[labels])
            result.failures += failures
            result.n += len(failures)
            advance(len(batch) + len(failures), f"top-1 {result.top1:.4f}")
    result.seconds = perf_counter() - started
    return result


def _batches(
    data: LabelledImages, preprocessing: Preprocessing, batch_size: int, exif: bool
) -> Iterator[tuple[list[NDArray[np.float32]], list[int], list[tuple[str, str]]]]:
    for start in range(0, len(data), batch_size):
        batch, labels, failures = [], [], []
        for index in range(start, min(start + batch_size, len(data))):
            try:
                batch.append(images.preprocess(data.load(index, exif), preprocessing))
                labels.append(int(data.labels[index]))
            except ImageError as error:
                failures.append((data.names[index], str(error)))
        yield batch, labels, failures
