"""Logits and right classes in, metrics out, by sums over batches, runs and processes."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvt_cli.evaluation.calibration import CalibrationSums, added
from cvt_cli.evaluation.metrics import (
    ClassRate,
    Confusion,
    Failure,
    GroupRate,
    Groups,
    Metrics,
    PresentClasses,
    Rate,
)
from cvt_cli.spec.labels import Labels

MISTAKES = 24
"""Surest wrong answers that are kept."""

MOST_CONFUSED = 20
"""Pairs of classes that are told."""

_SCALARS = (
    *("n", "readable", "correct_top1", "correct_topk", "correct_present"),
    *("loss_sum", "real_n", "real_correct"),
)
_ARRAYS = ("class_n", "class_correct")


@dataclass
class Counts:
    """Sums over a labelled set. An unreadable image counts as wrong, unless it is left out.

    Args:
        num_classes: of the model.
        present: the model's classes (P,) that the data has, for the second number of a subset.
        k: of top-k.
    """

    num_classes: int
    present: NDArray[np.int64] | None = None
    k: int = 5
    n: int = 0  # images, unreadable ones included unless they are left out
    readable: int = 0
    correct_top1: int = 0
    correct_topk: int = 0
    correct_present: int = 0  # argmax over the classes present only
    loss_sum: float = 0.0  # cross-entropy in nats, over the readable images
    real_n: int = 0  # images with ReaL labels
    real_correct: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)  # (image, reason)
    skipped: bool = False  # the failures are not in `n`
    confusions: Counter[tuple[int, int]] = field(default_factory=Counter)  # (right, answered)
    groups: dict[str, list[int]] = field(default_factory=dict)  # images, right ones
    mistakes: list[tuple[float, str, int, int]] = field(default_factory=list)
    seconds: float = 0.0  # wall time
    decode_sec: float = 0.0  # summed over the threads that decode
    model_sec: float = 0.0
    transfer_sec: float = 0.0  # of it, to the device

    def __post_init__(self) -> None:
        self.class_n = np.zeros(self.num_classes, np.int64)
        self.class_correct = np.zeros(self.num_classes, np.int64)
        self.calibration = CalibrationSums()

    def add(
        self,
        logits: NDArray[np.float32],
        labels: NDArray[np.int64],
        names: Sequence[str] = (),
        groups: Sequence[str] = (),
        real: Sequence[Sequence[int]] = (),
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Count a batch.

        Args:
            logits: (B, classes).
            labels: the right classes (B,).
            names: of the images, for the worst mistakes.
            groups: of the images.
            real: ReaL's labels of each, perhaps none.

        Returns:
            The likeliest class of each image (B,), and the probabilities of all (B, classes).
        """
        order = np.argsort(-logits, axis=1, kind="stable")  # a tie goes to the lower index
        best = order[:, 0]
        right = best == labels
        self._count_right(right, groups)
        self.correct_topk += int((order[:, : self.k] == labels[:, None]).sum())
        if self.present is not None:
            among = self.present[np.argmax(logits[:, self.present], axis=1)]
            self.correct_present += int((among == labels).sum())
        np.add.at(self.class_n, labels, 1)
        np.add.at(self.class_correct, labels, right)
        wrong = np.flatnonzero(~right).tolist()
        self.confusions.update(zip(labels[wrong].tolist(), best[wrong].tolist(), strict=True))

        wide = logits.astype(np.float64)
        wide -= wide.max(axis=1, keepdims=True)
        self.loss_sum += float(_losses(wide, labels).sum())
        probabilities = self.calibration.add(wide, labels, right)
        for answer, accepted in zip(best.tolist(), real, strict=bool(real)):
            self.real_n += bool(accepted)
            self.real_correct += answer in accepted
        if names and wrong:
            confidence = probabilities.max(axis=1)
            found = [(float(confidence[i]), names[i], int(labels[i]), int(best[i])) for i in wrong]
            self.mistakes = sorted([*self.mistakes, *found], key=_surest_first)[:MISTAKES]
        return best, probabilities

    def _count_right(self, right: NDArray[np.bool_], groups: Sequence[str]) -> None:
        """Count images that could be read (B,), and their groups if they have some."""
        self.n += len(right)
        self.readable += len(right)
        self.correct_top1 += int(right.sum())
        for hit, group in zip(right.tolist(), groups, strict=bool(groups)):
            self._count_group(group, hit)

    def _count_failure(self, name: str, reason: str, group: str | None) -> bool:
        """Note an image that cannot be read; whether it counts, as wrong."""
        self.failures.append((name, reason))
        if self.skipped:
            return False
        self.n += 1
        if group is not None:
            self._count_group(group, False)
        return True

    def _count_group(self, group: str, hit: bool) -> None:
        counts = self.groups.setdefault(group, [0, 0])
        counts[0] += 1
        counts[1] += hit

    def add_failure(
        self,
        name: str,
        reason: str,
        label: int,
        group: str | None = None,
        real: Sequence[int] = (),
    ) -> None:
        """Count an image that cannot be read: as wrong in every accuracy, unless it is left out."""
        if self._count_failure(name, reason, group):
            self.class_n[label] += 1
            self.real_n += bool(real)

    # --- adding up, and going on later

    def state(self) -> dict[str, Any]:
        """Everything that was counted, for JSON."""
        return {
            **{name: getattr(self, name) for name in _SCALARS},
            **{name: getattr(self, name).tolist() for name in _ARRAYS},
            **self.calibration.state(),
            "failures": self.failures,
            "confusions": [[*pair, n] for pair, n in sorted(self.confusions.items())],
            "groups": self.groups,
            "mistakes": self.mistakes,
            "times": [self.seconds, self.decode_sec, self.model_sec, self.transfer_sec],
        }

    def add_state(self, state: dict[str, Any], at_once: bool = False) -> None:
        """Add what another evaluation counted.

        Args:
            state: its `state`.
            at_once: it ran at the same time, so that wall times are not added.

        Raises:
            ValueError, KeyError, TypeError: it is none of an evaluation of so many classes.
        """
        for name in (*_SCALARS, *_ARRAYS):
            setattr(self, name, added(name, getattr(self, name), state))
        self.calibration.add_state(state)
        self.failures += [(name, reason) for name, reason in state["failures"]]
        for right, answered, n in state["confusions"]:
            self.confusions[right, answered] += n
        for group, (n, correct) in state["groups"].items():
            counts = self.groups.setdefault(group, [0, 0])
            counts[0] += n
            counts[1] += correct
        mistakes = [(s, n, right, answered) for s, n, right, answered in state["mistakes"]]
        self.mistakes = sorted([*self.mistakes, *mistakes], key=_surest_first)[:MISTAKES]
        seconds, decode, model, transfer = state["times"]
        self.seconds = max(self.seconds, seconds) if at_once else self.seconds + seconds
        self.decode_sec += decode
        self.model_sec += model
        self.transfer_sec += transfer

    # --- what follows from the sums

    @property
    def top1(self) -> float:
        """Fraction of all images whose likeliest class is right."""
        return self.correct_top1 / self.n if self.n else 0.0

    @property
    def topk(self) -> float:
        """Fraction of all images whose class is among the k likeliest."""
        return self.correct_topk / self.n if self.n else 0.0

    @property
    def loss(self) -> float | None:
        """Mean cross-entropy in nats over the readable images; None if there are none."""
        return self.loss_sum / self.readable if self.readable else None

    def matrix(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Right by answered class, over the classes that the data has: (P,) and (P, P)."""
        present = np.flatnonzero(self.class_n)
        place = {int(label): i for i, label in enumerate(present)}
        matrix = np.diag(self.class_correct[present])
        for (right, answered), n in self.confusions.items():
            if answered in place:
                matrix[place[right], place[answered]] += n
        return present, matrix

    def metrics(self, labels: Labels) -> Metrics:
        """All that follows, with the model's names of the classes."""
        names, loss, present = labels.names, self.loss, self.present
        return Metrics(
            n=self.n,
            failures=tuple(Failure(name, reason) for name, reason in self.failures),
            left_out=self.skipped,
            k=self.k,
            num_classes=len(labels),
            top1_correct=self.correct_top1,
            topk_correct=self.correct_topk,
            loss=loss,
            present_classes=None
            if present is None
            else PresentClasses(len(present), Rate(self.n, self.correct_present)),
            real=Rate(self.real_n, self.real_correct) if self.real_n else None,
            calibration=None if loss is None else self.calibration.result(self.readable, loss),
            groups=self.by_groups(),
            classes=tuple(
                ClassRate(
                    names[i],
                    labels.wnid(int(i)),
                    Rate(int(self.class_n[i]), int(self.class_correct[i])),
                )
                for i in np.flatnonzero(self.class_n)
            ),
            confusions=self._most_confused(labels),
            images_per_sec=per_sec(self.n, self.seconds),
            decode_images_per_sec=per_sec(self.readable, self.decode_sec),
            model_images_per_sec=per_sec(self.readable, self.model_sec),
            transfer_sec=self.transfer_sec,
        )

    def by_groups(self) -> Groups | None:
        """The accuracy on each group; None where there are none."""
        found = sorted(self.groups.items())
        rates = tuple(GroupRate(name, Rate(n, correct)) for name, (n, correct) in found)
        return Groups(rates) if rates else None

    def _most_confused(self, labels: Labels) -> tuple[Confusion, ...]:
        """The commonest pairs of right and answered class."""
        pairs = sorted(self.confusions.items(), key=lambda item: (-item[1], item[0]))
        names = labels.names
        return tuple(Confusion(names[a], names[b], n) for (a, b), n in pairs[:MOST_CONFUSED])


def per_sec(n: int, seconds: float) -> float | None:
    """A rate; None in no time."""
    return n / seconds if seconds else None


def _surest_first(mistake: tuple[float, str, int, int]) -> tuple[float, str]:
    return -mistake[0], mistake[1]


def _losses(wide: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Cross-entropy of each row of logits, whose largest is 0."""
    log_sum = np.log(np.exp(wide).sum(axis=1))
    return np.asarray(log_sum - wide[np.arange(len(labels)), labels])
