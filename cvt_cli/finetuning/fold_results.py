"""What came of a cross-validation: each fold's accuracy, and that of all images with intervals."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvt_cli.base.text import counted

OUT_OF_FOLD = "out_of_fold.jsonl"

_RESAMPLES = 10_000

_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160),
    *(2.145, 2.131, 2.120, 2.110, 2.101, 2.093),
)
"""The 97.5 % quantile of Student's distribution, of 1 to 19 degrees of freedom."""


@dataclass(frozen=True)
class Fold:
    """What came of one."""

    fold: int  # its number, from 1
    n: int  # images in it
    correct: int
    top1: float
    train_n: int
    val_n: int
    best_epoch: int
    trained_before: int | None  # images in it that the start was trained on; None if unknown


@dataclass(frozen=True)
class Result:
    """What came of a cross-validation."""

    run: Path
    folds: tuple[Fold, ...]
    n: int  # images, each judged by the run that did not see it
    correct: int
    top1: float  # of all of them
    top1_interval: tuple[float, float]  # 95 %, by Wilson, or by drawing whole groups again
    mean: float  # of the folds' top-1
    mean_interval: tuple[float, float]  # 95 %, by Student's distribution over the folds
    groups: int | None
    classes: int
    n_unreadable: int
    seed: int
    seconds: float
    fingerprint: str
    command: str
    version: str
    trained_before: int | None  # of all images, as of `Fold`
    several: bool = False  # an image may have several classes: what is right is right exactly

    @property
    def out_of_fold(self) -> Path:
        """The file with what is said of every image."""
        return self.run / OUT_OF_FOLD

    def to_json(self) -> dict[str, Any]:
        """The documented keys, as results.json has them."""
        found = asdict(self) | {
            "run": str(self.run),
            "out_of_fold": str(self.out_of_fold),
            "top1_interval": list(self.top1_interval),
            "mean_interval": list(self.mean_interval),
        }
        if not found.pop("several"):
            return found
        of_folds = [_exact(fold) for fold in found["folds"]]
        return _exact(found) | {"folds": of_folds}

    def lines(self) -> list[str]:
        """The result for a person; the last line is the file with what is said of every image."""
        what = "exact" if self.several else "top-1"
        lines = [
            f"fold {one.fold}  {what} {one.top1:.4f}  ({one.correct} of {one.n}; trained on "
            f"{one.train_n}, best epoch {one.best_epoch})"
            for one in self.folds
        ]
        low, high = self.mean_interval
        lines.append(
            f"mean    {what} {self.mean:.4f}  (95 % interval {low:.4f} to {high:.4f}, over the "
            "folds)"
        )
        low, high = self.top1_interval
        by = "" if self.groups is None else f", over {counted(self.groups, 'group')}"
        lines.append(
            f"all     {what} {self.top1:.4f}  ({self.correct} of {self.n}; 95 % interval "
            f"{low:.4f} to {high:.4f}{by})"
        )
        if self.trained_before:
            lines.append(
                f"trained the start was trained on {self.trained_before} of these {self.n} images: "
                "what is measured on them is too good"
            )
        return [*lines, str(self.out_of_fold)]

    def __repr__(self) -> str:
        return "\n".join(self.lines())


def _exact(values: dict[str, Any]) -> dict[str, Any]:
    """The values by the names that they have where an image may have several classes."""
    return {name.replace("top1", "exact_match"): value for name, value in values.items()}


def table(found: Sequence[Fold], several: bool) -> str:
    """A line of CSV for each fold, below their names; ``several`` as of `Result`."""
    rows = [_exact(asdict(fold)) if several else asdict(fold) for fold in found]
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(rows[0])
    writer.writerows(row.values() for row in rows)
    return content.getvalue()


def of_mean(rates: Sequence[float], wilson: tuple[float, float]) -> tuple[float, float]:
    """95 % interval of the mean of the folds, by Student's distribution.

    It is no narrower than Wilson's of all images, so that folds that happen to agree prove nothing.
    """
    mean = float(np.mean(rates))
    reach = _T[len(rates) - 2] * float(np.std(rates, ddof=1)) / len(rates) ** 0.5
    return max(0.0, min(mean - reach, wilson[0])), min(1.0, max(mean + reach, wilson[1]))


def by_groups(
    right: NDArray[np.int64], groups: NDArray[np.int64], wilson: tuple[float, float]
) -> tuple[float, float]:
    """95 % interval of a share of images, by drawing whole groups again; no narrower than Wilson's
    of the images."""
    _, index = np.unique(groups, return_inverse=True)
    sizes, correct = np.bincount(index), np.bincount(index, weights=right)
    generator, rates = np.random.default_rng(0), []
    for _ in range(_RESAMPLES):
        drawn = generator.integers(0, len(sizes), len(sizes))
        rates.append(correct[drawn].sum() / sizes[drawn].sum())
    low, high = (float(bound) for bound in np.percentile(rates, (2.5, 97.5)))
    return min(low, wilson[0]), max(high, wilson[1])
