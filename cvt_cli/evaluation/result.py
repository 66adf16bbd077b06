"""What an evaluation of one model gives, and what is published of that model beside it."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from cvt_cli.base.errors import CvtError
from cvt_cli.evaluation.metrics import Metrics
from cvt_cli.evaluation.several_measures import SetMetrics
from cvt_cli.spec import published
from cvt_cli.spec.preprocessing import Preprocessing

Part = Literal["val", "test"]


@dataclass(frozen=True)
class PublishedScores:
    """What is published of a checkpoint, where the same was measured here; as fractions."""

    paper_top1: float
    top1: float  # as `published.MEASURED_BY` measured it
    verdict: str


@dataclass(frozen=True)
class Result:
    """What was measured of one model, and under which conditions."""

    data: str  # as it was named
    root: Path  # of the images
    metrics: Metrics | SetMetrics
    conditions: dict[str, Any]  # what the metrics depend on, as the documented JSON keys
    exif: bool
    published: PublishedScores | None
    split: Part | None
    n_trained_on: int | None  # images that the model was trained on; None if that is not known
    date: str  # when it was measured
    fingerprint: str | None = None  # of the images, where a card asked for it
    energy: dict[str, Any] | None = None  # that all of it took, as the documented keys
    n_chosen_on: int | None = None  # images that the run chose its best epoch by, likewise

    @property
    def model(self) -> str:
        """The model's name."""
        return str(self.conditions["model"])

    def __repr__(self) -> str:
        from cvt_cli.evaluation import printed_lines

        told = printed_lines.of_unreadable(self.metrics)
        told += printed_lines.lines(self.metrics, self)
        return "\n".join([f"{self.model} on {self.data}", *told])

    def to_json(self) -> dict[str, Any]:
        """The documented keys of ``--json``."""
        return {
            "data": self.data,
            **self.metrics.to_json(),
            **self.conditions,
            "exif": self.exif,
            "record": self.published and asdict(self.published),
            "split": self.split,
            "n_trained_on": self.n_trained_on,
            "n_chosen_on": self.n_chosen_on,
            "date": self.date,
            "fingerprint": self.fingerprint,
            "energy": self.energy,
        }


def published_beside(
    model: str, preprocessing: Preprocessing, metrics: Metrics | SetMetrics
) -> PublishedScores | None:
    """What is published of a checkpoint, where this was measured on the same images."""
    known = published.CHECKPOINTS.get(model)
    if known is None or known.scores is None or isinstance(metrics, SetMetrics):
        return None
    if metrics.n != published.IMAGENET_VALIDATION:
        return None
    if len(metrics.classes) != known.num_classes or preprocessing.size != (known.size, known.size):
        return None
    paper, third = known.scores.paper_top1 / 100, known.scores.top1 / 100
    apart, most = metrics.top1 - third, published.AGREEMENT
    verdict = "agrees with" if abs(apart) <= most else "does not agree with"
    return PublishedScores(
        paper_top1=paper,
        top1=third,
        verdict=f"{verdict} the third-party measurement: {100 * apart:+.2f} points, "
        f"where {100 * most:.1f} count as the same",
    )


class NotWritten(CvtError):
    """A file of an evaluation could not be written.

    Args:
        why: what failed.
        results: what was measured all the same.
    """

    def __init__(self, why: CvtError, results: list[Result]) -> None:
        super().__init__(str(why), why.hint)
        self.exit_code, self.results = why.exit_code, results


class WritingInterrupted(KeyboardInterrupt):
    """Ctrl-C came while the files of an evaluation were written; ``results`` were measured."""

    def __init__(self, results: list[Result]) -> None:
        super().__init__()
        self.results = results
