"""What an evaluation measures, as values; each says what ``--json`` prints of it."""

from dataclasses import asdict, dataclass
from math import sqrt
from typing import TYPE_CHECKING, Any

from cvt_cli.evaluation.calibration import Calibration
from cvt_cli.spec.labels import Labels

if TYPE_CHECKING:
    from cvt_cli.evaluation.measure_outcomes import ClassMeasures, Measures


def wilson(correct: int, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Score interval of a share (Wilson 1927), of 95 % or by another quantile of the normal."""
    if n == 0:
        return 0.0, 1.0
    share = correct / n
    centre = share + z * z / (2 * n)
    half = z * sqrt(share * (1 - share) / n + z * z / (4 * n**2))
    scale = 1 + z * z / n
    # Of none and of all one bound is 0 or 1, from which rounding would differ.
    low = (centre - half) / scale if correct else 0.0
    return low, (centre + half) / scale if correct < n else 1.0


@dataclass(frozen=True)
class Rate:
    """How many of so many are right."""

    n: int
    correct: int

    @property
    def accuracy(self) -> float | None:
        """The share that is right; None of nothing."""
        return self.correct / self.n if self.n else None

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of `accuracy`."""
        return wilson(self.correct, self.n)

    def to_json(self) -> dict[str, Any]:
        """The documented keys."""
        return {
            "n": self.n,
            "correct": self.correct,
            "accuracy": self.accuracy,
            "interval": list(self.interval),
        }


@dataclass(frozen=True)
class ClassRate:
    """The accuracy on the images of one class."""

    label: str
    wnid: str | None
    rate: Rate
    measures: "ClassMeasures | None" = None

    def to_json(self) -> dict[str, Any]:
        """The documented keys."""
        more = asdict(self.measures) if self.measures else {}
        return {"label": self.label, "wnid": self.wnid, **self.rate.to_json(), **more}


@dataclass(frozen=True)
class GroupRate:
    """The accuracy on the images of one group."""

    group: str
    rate: Rate

    def to_json(self) -> dict[str, Any]:
        """The documented keys."""
        return {"group": self.group, **self.rate.to_json()}


@dataclass(frozen=True)
class Groups:
    """The accuracy on each group of images, of which there is at least one."""

    groups: tuple[GroupRate, ...]

    @property
    def best(self) -> GroupRate:
        """The group with the highest accuracy, the first of equals."""
        return max(self.groups, key=lambda one: one.rate.accuracy or 0.0)

    @property
    def worst(self) -> GroupRate:
        """The group with the lowest accuracy, the first of equals."""
        return min(self.groups, key=lambda one: one.rate.accuracy or 0.0)

    @property
    def gap_interval(self) -> tuple[float, float] | None:
        """95 % interval of `largest_gap`; None of one group. See `intervals.gap_interval`."""
        from cvt_cli.evaluation.intervals import gap_interval  # which needs what is above

        low, high = self.worst.rate, self.best.rate
        return gap_interval((low.correct, low.n), (high.correct, high.n), len(self.groups))

    @property
    def largest_gap(self) -> float:
        """The difference of accuracy between the best group and the worst."""
        return (self.best.rate.accuracy or 0.0) - (self.worst.rate.accuracy or 0.0)

    def to_json(self) -> dict[str, Any]:
        """The documented keys."""
        return {
            "groups": [one.to_json() for one in self.groups],
            "largest_gap": {
                "gap": self.largest_gap,
                "best": self.best.group,
                "worst": self.worst.group,
                "interval": (found := self.gap_interval) and list(found),
            },
        }


@dataclass(frozen=True)
class Confusion:
    """How many images of one class were taken for another."""

    label: str
    predicted: str
    n: int


@dataclass(frozen=True)
class PresentClasses:
    """The accuracy where only those classes compete that the data has."""

    n: int  # classes
    rate: Rate

    def to_json(self) -> dict[str, Any]:
        """The documented keys."""
        return {
            "n": self.n,
            "top1": self.rate.accuracy,
            "top1_correct": self.rate.correct,
            "top1_interval": list(self.rate.interval),
        }


@dataclass(frozen=True)
class Failure:
    """An image that cannot be read."""

    name: str
    reason: str


@dataclass(frozen=True)
class Metrics:
    """What follows from all images; shares are fractions, times are in seconds."""

    n: int  # images; unreadable ones count as wrong, unless they are left out
    failures: tuple[Failure, ...]
    left_out: bool  # the failures are not in `n`
    k: int  # of top-k
    num_classes: int  # of the model
    top1_correct: int
    topk_correct: int
    loss: float | None  # mean cross-entropy in nats over the readable images
    present_classes: PresentClasses | None  # where the data has not all classes of the model
    real: Rate | None  # by ReaL's labels, where these are known
    calibration: Calibration | None  # None if no image is readable
    groups: Groups | None
    classes: tuple[ClassRate, ...]  # which the data has, in the model's order
    confusions: tuple[Confusion, ...]  # the commonest first
    images_per_sec: float | None
    decode_images_per_sec: float | None  # of one thread
    model_images_per_sec: float | None
    transfer_sec: float  # of images to the device
    measures: "Measures | None" = None  # where the outcome of each image is known
    labels: Labels | None = None  # the model's

    @property
    def top1(self) -> float:
        """Fraction of all images whose likeliest class is right."""
        return self.top1_correct / self.n if self.n else 0.0

    @property
    def headline(self) -> tuple[str, float]:
        """What ``--expect`` is compared with."""
        return "top-1", self.top1

    @property
    def topk(self) -> float:
        """Fraction of all images whose class is among the k likeliest."""
        return self.topk_correct / self.n if self.n else 0.0

    @property
    def topk_is_certain(self) -> bool:
        """Whether every class is among the k likeliest, so that top-k says nothing."""
        return self.k >= self.num_classes

    @property
    def top1_interval(self) -> tuple[float, float]:
        """95 % Wilson interval of `top1`."""
        return wilson(self.top1_correct, self.n)

    @property
    def topk_interval(self) -> tuple[float, float]:
        """95 % Wilson interval of `topk`."""
        return wilson(self.topk_correct, self.n)

    def __repr__(self) -> str:
        from cvt_cli.evaluation import printed_lines  # which needs what is here

        return "\n".join(printed_lines.of_unreadable(self) + printed_lines.lines(self))

    def to_json(self) -> dict[str, Any]:
        """The documented keys."""
        found, curve = self.measures, self.measures and self.measures.curve
        return {
            "n": self.n,
            "n_failed": len(self.failures),
            "n_skipped": len(self.failures) if self.left_out else 0,
            "top1": self.top1,
            f"top{self.k}": self.topk,
            "top1_correct": self.top1_correct,
            f"top{self.k}_correct": self.topk_correct,
            "num_classes": self.num_classes,
            "top1_interval": list(self.top1_interval),
            f"top{self.k}_interval": list(self.topk_interval),
            "measures": found and found.to_json(),
            "loss": self.loss,
            "present_classes": self.present_classes and self.present_classes.to_json(),
            "real": self.real and self.real.to_json(),
            "calibration": self.calibration and asdict(self.calibration),
            "groups": self.groups and self.groups.to_json(),
            "classes": [one.to_json() for one in self.classes],
            "confusions": [asdict(one) for one in self.confusions],
            "confusion_matrix": found and self.labels and found.matrix_json(self.labels),
            "risk_coverage": curve and curve.to_json(),
            "images_per_sec": self.images_per_sec,
            "decode_images_per_sec": self.decode_images_per_sec,
            "model_images_per_sec": self.model_images_per_sec,
            "transfer_sec": self.transfer_sec,
        }
