"""What is measured of images that may have several classes, with 95 % intervals, as values."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvt_cli.evaluation import count_measures, intervals, ranking_measures
from cvt_cli.evaluation.count_measures import NO_ANSWER, Margins
from cvt_cli.evaluation.counts import per_sec
from cvt_cli.evaluation.measure_outcomes import (
    Estimate,
    drawn_together,
    estimate,
    mean_over_classes,
    numbers_json,
)
from cvt_cli.evaluation.metrics import Failure, Groups, Rate
from cvt_cli.evaluation.several_labels import SetCounts, SetOutcomes
from cvt_cli.spec.labels import Labels


def set_summary(of: Margins) -> dict[str, NDArray[np.float64]]:
    """Precision, recall and F1 of all classes together, each (…); NaN where there is none.

    Macro and weighted means are over the classes that have images; micro counts an answer with any
    class of the model. A class that nothing was answered with has a precision of 0 in the means.
    """
    found, there = count_measures.shares(of), of.actual > 0
    sums = [one.sum(axis=-1, keepdims=True) for one in (of.right, of.actual, of.answered)]
    together = Margins(sums[0], sums[1], sums[2], of.total)
    micro = count_measures.shares(together)
    support = of.actual.sum(axis=-1)
    numbers: dict[str, NDArray[np.float64]] = {}
    for name in ("precision", "recall", "f1"):
        numbers[f"micro_{name}"] = np.nan_to_num(getattr(micro, name)[..., 0])
        share = np.where(there, np.nan_to_num(getattr(found, name)), 0.0)
        numbers[f"macro_{name}"] = count_measures.divided(share.sum(axis=-1), there.sum(axis=-1))
        numbers[f"weighted_{name}"] = count_measures.divided(
            (share * of.actual).sum(axis=-1), support
        )
    return numbers


@dataclass(frozen=True)
class Cells:
    """The different pairs of right and answered classes, of which there are fewer than images."""

    truth: NDArray[np.float64]  # (K, C)
    said: NDArray[np.float64]  # (K, C)
    f1: NDArray[np.float64]  # (K,) of an image with these
    exact: NDArray[np.float64]  # (K,)
    of: NDArray[np.int64]  # (n,) the pair of each image

    def take(self, places: NDArray[np.int64]) -> "Cells":
        """The pairs at some places, which no image is asked for."""
        of = (self.truth[places], self.said[places], self.f1[places], self.exact[places])
        return Cells(*of, places)

    def numbers(self, drawn: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        """All numbers, each (R,), where each pair counts so much (R, K)."""
        total = drawn.sum(axis=1)
        margins = Margins(
            drawn @ (self.truth * self.said), drawn @ self.truth, drawn @ self.said, total
        )
        return {
            **set_summary(margins),
            "sample_f1": count_measures.divided(drawn @ self.f1, total),
            "exact_match": count_measures.divided(drawn @ self.exact, total),
        }


def cells_of(
    truth: NDArray[np.bool_], said: NDArray[np.bool_], readable: NDArray[np.bool_]
) -> Cells:
    """An image without a class that is answered with none is right; an unreadable one never is."""
    bits = np.packbits(np.column_stack([truth, said, readable]), axis=1)
    rows = np.ascontiguousarray(bits).view(np.dtype((np.void, bits.shape[1]))).reshape(-1)
    _, first, of = np.unique(rows, return_index=True, return_inverse=True)
    right, answered, seen = truth[first], said[first], readable[first]
    both = (right & answered).sum(axis=1)
    sizes = right.sum(axis=1) + answered.sum(axis=1)
    f1 = np.where(sizes == 0, 1.0, 2 * both / np.maximum(sizes, 1)) * seen
    exact = (right == answered).all(axis=1) & seen
    return Cells(
        right.astype(np.float64), answered.astype(np.float64), f1, exact.astype(np.float64),
        of.reshape(-1),
    )  # fmt: skip


@dataclass(frozen=True)
class SetClass:
    """How well one class is told from its absence; fractions, None where there is none."""

    label: str
    wnid: str | None
    threshold: float
    recalled: Rate  # of the images of the class, those that are answered with it
    answered: float  # images that were answered with it, or their weight
    precision: float | None
    recall: float | None
    specificity: float | None
    f1: float | None
    roc_auc: float | None
    average_precision: float | None

    def to_json(self) -> dict[str, Any]:
        """The documented keys."""
        more = {k: v for k, v in asdict(self).items() if k != "recalled"}
        rate = self.recalled.to_json()
        return {**more, "n": rate["n"], "correct": rate["correct"], "interval": rate["interval"]}


@dataclass(frozen=True)
class SetMeasures:
    """What is measured of the classes together, and of each."""

    numbers: dict[str, Estimate]
    classes: tuple[SetClass, ...] = field(repr=False)  # which the data has, in the model's order
    weighted: bool
    by_groups: int | None  # groups that were drawn again for the intervals; None draws images

    def to_json(self) -> dict[str, Any]:
        """The documented keys of ``measures``."""
        return numbers_json(self.numbers, self.weighted, self.by_groups)


def measure(
    outcomes: SetOutcomes,
    truth: NDArray[np.uint8],
    labels: Labels,
    *,
    groups: Sequence[str] = (),
    weights: NDArray[np.float64] | None = None,
    threads: int = 1,
    intervals_too: bool = True,
) -> SetMeasures | None:
    """All that follows; None of no image. See `measure_outcomes.measure`.

    Args:
        outcomes: what was said of each of n images.
        truth: (n, classes) 1 where an image has a class.
        labels: of the model.
        groups: see there, as for the next three.
        weights: see there.
        threads: see there.
        intervals_too: see there.
    """
    rows = outcomes.counted
    if not len(rows):
        return None
    right, said = truth[rows] > 0, outcomes.said[rows]
    readable = outcomes.answered[rows] != NO_ANSWER
    weight = None if weights is None else weights[rows]
    drawn, count = drawn_together(groups, rows)
    cells = cells_of(right, said, readable)
    of_cells = np.bincount(cells.of, weight, len(cells.f1))[None].astype(np.float64)
    found = {name: float(value[0]) for name, value in cells.numbers(of_cells).items()}
    ranges = {}
    if intervals_too:
        ranges = intervals.of_draws(
            intervals.draws(cells.of, len(cells.f1), weight, drawn, len(labels)), cells.numbers
        )
    ranked = _ranked(outcomes, rows[readable], right[readable], weights, threads)
    of_groups = None if drawn is None else drawn[readable]
    numbers = {
        name: mean_over_classes(each, by, of_groups, intervals_too)
        for name, each, by in (
            ("map", ranked.average_precision, ranked.average_precision_by),
            ("roc_auc", ranked.roc_auc, ranked.roc_auc_by),
        )
    }
    numbers |= {name: estimate(value, ranges.get(name)) for name, value in found.items()}
    return SetMeasures(
        numbers,
        _of_classes(right, said, weight, ranked, labels),
        weights is not None,
        count,
    )


def _ranked(
    outcomes: SetOutcomes,
    rows: NDArray[np.int64],
    right: NDArray[np.bool_],
    weights: NDArray[np.float64] | None,
    threads: int,
) -> ranking_measures.RankedClasses:
    """How well each class is ranked before its absence; a class that all have has a precision of 1,
    and no area."""
    scores = outcomes.scores_of(rows)
    classes = np.arange(scores.shape[1])
    weight = None if weights is None else weights[rows]
    found = ranking_measures.ranked_classes(scores, right, classes, weight, threads)
    all_have = right.all(axis=0) & bool(len(right))
    precision = np.where(all_have, 1.0, found.average_precision)
    # The mean of all classes has those of which the precision is 1 whatever the images weigh.
    share = np.isfinite(found.average_precision).sum() / max(1, np.isfinite(precision).sum())
    return found._replace(
        average_precision=precision, average_precision_by=found.average_precision_by * share
    )


def _of_classes(
    right: NDArray[np.bool_],
    said: NDArray[np.bool_],
    weight: NDArray[np.float64] | None,
    ranked: ranking_measures.RankedClasses,
    labels: Labels,
) -> tuple[SetClass, ...]:
    def known(value: Any) -> float | None:
        return float(value) if np.isfinite(value) else None

    counts = [np.asarray(one.sum(axis=0)) for one in (right & said, right, said)]
    heavy, total = counts, np.asarray(len(right))
    if weight is not None:
        heavy = [weight @ one for one in (right & said, right, said)]
        total = np.asarray(weight.sum())
    of = Margins(heavy[0], heavy[1], heavy[2], total)
    shares = count_measures.shares(of)
    assert labels.thresholds is not None
    return tuple(
        SetClass(
            labels.names[place],
            labels.wnid(place),
            labels.thresholds[place],
            Rate(int(counts[1][place]), int(counts[0][place])),
            of.answered[place].item(),
            **{name: known(getattr(shares, name)[place]) for name in count_measures.SHARES},
            roc_auc=known(ranked.roc_auc[place]),
            average_precision=known(ranked.average_precision[place]),
        )
        for place in np.flatnonzero(counts[1]).tolist()
    )


@dataclass(frozen=True)
class SetMetrics:
    """What follows from all images; shares are fractions, times are in seconds."""

    n: int  # images; unreadable ones count as wrong, unless they are left out
    failures: tuple[Failure, ...]
    left_out: bool
    num_classes: int
    exact: Rate  # images whose classes are exactly the answered ones
    loss: float | None  # mean binary cross-entropy in nats over images and classes
    groups: Groups | None  # by exact matches
    measures: SetMeasures | None
    images_per_sec: float | None
    decode_images_per_sec: float | None
    model_images_per_sec: float | None
    transfer_sec: float

    @property
    def headline(self) -> tuple[str, float]:
        """What ``--expect`` is compared with."""
        found = self.measures and self.measures.numbers["map"].value
        return "mAP", found or 0.0

    def __repr__(self) -> str:
        from cvt_cli.evaluation import printed_lines  # which needs what is here

        return "\n".join(printed_lines.of_unreadable(self) + printed_lines.lines(self))

    def to_json(self) -> dict[str, Any]:
        """The documented keys."""
        found = self.measures
        return {
            "n": self.n,
            "n_failed": len(self.failures),
            "n_skipped": len(self.failures) if self.left_out else 0,
            "map": found and found.numbers["map"].value,
            "num_classes": self.num_classes,
            "exact_match": self.exact.accuracy,
            "exact_match_correct": self.exact.correct,
            "measures": found and found.to_json(),
            "loss": self.loss,
            "groups": self.groups and self.groups.to_json(),
            "classes": [one.to_json() for one in found.classes] if found else [],
            "images_per_sec": self.images_per_sec,
            "decode_images_per_sec": self.decode_images_per_sec,
            "model_images_per_sec": self.model_images_per_sec,
            "transfer_sec": self.transfer_sec,
        }


def metrics_of(counts: SetCounts, measures: SetMeasures | None) -> SetMetrics:
    """All that follows from the sums, and what was measured beside them."""
    return SetMetrics(
        n=counts.n,
        failures=tuple(Failure(name, reason) for name, reason in counts.failures),
        left_out=counts.skipped,
        num_classes=counts.num_classes,
        exact=Rate(counts.n, counts.correct_top1),
        loss=counts.loss,
        groups=counts.by_groups(),
        measures=measures,
        images_per_sec=per_sec(counts.n, counts.seconds),
        decode_images_per_sec=per_sec(counts.readable, counts.decode_sec),
        model_images_per_sec=per_sec(counts.readable, counts.model_sec),
        transfer_sec=counts.transfer_sec,
    )
