"""Logits and right classes in, metrics out, by sums over batches, runs and processes."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import sqrt
from typing import Any

import numpy as np
from numpy.polynomial import Polynomial
from numpy.typing import NDArray

from cvt_cli.spec.labels import Labels

BINS = 15
"""Of equal width, for the calibration error (Guo et al. 2017, arXiv 1706.04599)."""

MISTAKES = 24
"""Surest wrong answers that are kept."""

_STEPS = 4
"""Inverse temperatures for each doubling."""
_INVERSE = 2.0 ** (np.arange(-4 * _STEPS, 4 * _STEPS + 1) / _STEPS)
"""Where the loss and its slopes are summed: temperatures from 16 down to 1/16."""
_SCALARS = (
    *("n", "readable", "correct_top1", "correct_topk", "correct_present"),
    *("loss_sum", "brier_sum", "real_n", "real_correct"),
)
_ARRAYS = ("class_n", "class_correct", "bin_n", "bin_correct", "bin_confidence")
_CURVE = ("loss_at", "slope_at", "bend_at")


def wilson(correct: int, n: int) -> tuple[float, float]:
    """95 % score interval of a share (Wilson 1927)."""
    if n == 0:
        return 0.0, 1.0
    z, share = 1.959963984540054, correct / n
    centre = share + z * z / (2 * n)
    half = z * sqrt(share * (1 - share) / n + z * z / (4 * n**2))
    scale = 1 + z * z / n
    return (centre - half) / scale, (centre + half) / scale


def rate(correct: int, n: int) -> dict[str, Any]:
    """Counts, their share (None of nothing) and its interval, as documented JSON keys."""
    share = correct / n if n else None
    return {"n": n, "correct": correct, "accuracy": share, "interval": list(wilson(correct, n))}


@dataclass
class Evaluation:
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
    brier_sum: float = 0.0  # squared error of the probabilities, likewise
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
        self.bin_n = np.zeros(BINS + 1, np.int64)  # the last holds a confidence of 1 alone
        self.bin_correct = np.zeros(BINS + 1, np.int64)
        self.bin_confidence = np.zeros(BINS + 1)
        self.loss_at = np.zeros(len(_INVERSE))  # loss_sum at each inverse temperature,
        self.slope_at = np.zeros(len(_INVERSE))  # and its derivatives by that, first
        self.bend_at = np.zeros(len(_INVERSE))  # and second
        self.has_curve = True  # they hold all images

    def add(
        self,
        logits: NDArray[np.float32],
        labels: NDArray[np.int64],
        names: Sequence[str] = (),
        groups: Sequence[str] = (),
        real: Sequence[Sequence[int]] = (),
    ) -> NDArray[np.int64]:
        """Count a batch.

        Args:
            logits: (B, classes).
            labels: the right classes (B,).
            names: of the images, for the worst mistakes.
            groups: of the images.
            real: ReaL's labels of each, perhaps none.

        Returns:
            The k likeliest classes of each image (B, k).
        """
        order = np.argsort(-logits, axis=1, kind="stable")  # a tie goes to the lower index
        best, rows = order[:, 0], np.arange(len(labels))
        right = best == labels
        self.n += len(labels)
        self.readable += len(labels)
        self.correct_top1 += int(right.sum())
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
        self._add_at_temperatures(wide, wide[rows, labels])
        self.loss_sum += float(_losses(wide, labels).sum())
        probabilities = np.exp(wide)
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        confidence = probabilities[rows, best]
        own = probabilities[rows, labels]
        self.brier_sum += float(((probabilities**2).sum(axis=1) - 2 * own + 1).sum())
        bins = np.searchsorted(np.linspace(0, 1, BINS + 1), confidence, side="right") - 1
        np.add.at(self.bin_n, bins, 1)
        np.add.at(self.bin_correct, bins, right)
        np.add.at(self.bin_confidence, bins, confidence)

        for hit, group in zip(right.tolist(), groups, strict=bool(groups)):
            self._count_group(group, hit)
        for answer, accepted in zip(best.tolist(), real, strict=bool(real)):
            self.real_n += bool(accepted)
            self.real_correct += answer in accepted
        if names:
            found = [(float(confidence[i]), names[i], int(labels[i]), int(best[i])) for i in wrong]
            self.mistakes = sorted([*self.mistakes, *found], key=_surest_first)[:MISTAKES]
        return order[:, : self.k]

    def _add_at_temperatures(self, wide: NDArray[np.float64], own: NDArray[np.float64]) -> None:
        """Sum the losses and their slopes.

        Args:
            wide: logits (B, classes) whose largest is 0.
            own: those of the right classes (B,).
        """
        squares = wide * wide
        for first in range(_STEPS):
            powers = np.exp(wide * _INVERSE[first])
            for place in range(first, len(_INVERSE), _STEPS):
                if place > first:  # twice the inverse temperature
                    powers *= powers
                total = powers.sum(axis=1)
                mean = np.einsum("ij,ij->i", powers, wide) / total
                square = np.einsum("ij,ij->i", powers, squares) / total
                self.loss_at[place] += (np.log(total) - _INVERSE[place] * own).sum()
                self.slope_at[place] += (mean - own).sum()
                self.bend_at[place] += (square - mean * mean).sum()

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
        self.failures.append((name, reason))
        if self.skipped:
            return
        self.n += 1
        self.class_n[label] += 1
        self.real_n += bool(real)
        if group is not None:
            self._count_group(group, False)

    # --- adding up, and going on later

    def state(self) -> dict[str, Any]:
        """Everything that was counted, for JSON."""
        return {
            **{name: getattr(self, name) for name in _SCALARS},
            **{name: getattr(self, name).tolist() for name in _ARRAYS},
            **{name: getattr(self, name).tolist() for name in _CURVE if self.has_curve},
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
        # Version 0.1 summed other losses, and no slopes, for the temperature.
        self.has_curve = self.has_curve and all(name in state for name in _CURVE)
        for name in (*_SCALARS, *_ARRAYS, *(_CURVE if self.has_curve else ())):
            own, other = getattr(self, name), np.asarray(state[name])
            if np.shape(own) != other.shape:
                raise ValueError(f"`{name}` has the shape {other.shape}, not {np.shape(own)}")
            setattr(self, name, own + other[()])
        for name in _SCALARS:
            setattr(self, name, getattr(self, name).item())
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

    @property
    def top1_interval(self) -> tuple[float, float]:
        """95 % Wilson interval of `top1`."""
        return wilson(self.correct_top1, self.n)

    def calibration(self) -> dict[str, Any] | None:
        """How far probabilities are to be believed, over the readable images; None if none.

        The temperature divides the logits so that their cross-entropy is least, between 1/16 and
        16 (`temperature_at_bound` says if one of these is the best, so that a lower or higher one
        would be better still); None for what version 0.1 began to count. The loss is convex in its
        inverse: where its summed slope changes sign, a polynomial through loss, slope and bend at
        both sides gives it to some 1e-7 nats.
        """
        if not self.readable:
            return None
        n = self.bin_n
        gaps = np.abs(self.bin_correct - self.bin_confidence)
        temperature, loss, at_bound = self._best_temperature()
        merged_n = [*n[: BINS - 1], n[BINS - 1] + n[BINS]]
        bins = []
        for i in range(BINS):
            last = slice(i, i + 2) if i == BINS - 1 else slice(i, i + 1)
            count = int(merged_n[i])
            bins.append(
                {
                    "low": i / BINS,
                    "high": (i + 1) / BINS,
                    "n": count,
                    "confidence": float(self.bin_confidence[last].sum() / count) if count else None,
                    "accuracy": float(self.bin_correct[last].sum() / count) if count else None,
                }
            )
        return {
            "ece": float(gaps.sum() / self.readable),
            "nll": self.loss,
            "brier": self.brier_sum / self.readable,
            "temperature": temperature,
            "temperature_at_bound": at_bound,
            "nll_at_temperature": loss,
            "bins": bins,
        }

    def _best_temperature(self) -> tuple[float | None, float | None, bool]:
        """The temperature, the mean loss at it, and whether it is the least or most allowed."""
        if not self.has_curve:
            return None, None, False
        sums = (self.loss_at, self.slope_at, self.bend_at)
        loss, slope, bend = (one / self.readable for one in sums)
        if not slope.any():  # all logits are equal
            return 1.0, float(loss[0]), False
        if slope[0] >= 0 or slope[-1] <= 0:
            bound = 0 if slope[0] >= 0 else -1
            return float(1 / _INVERSE[bound]), float(loss[bound]), True
        left = int(np.flatnonzero(slope <= 0)[-1])
        pair = slice(left, left + 2)
        # By the logarithm of the inverse temperature, from 0 to 1 between the two.
        width, inverse = np.log(2) / _STEPS, _INVERSE[pair]
        rise = width * inverse * slope[pair]
        curve = width**2 * (inverse**2 * bend[pair] + inverse * slope[pair])
        fit = _through(loss[pair], rise, curve)
        flat = np.asarray(fit.deriv().roots(), np.complex128)
        real = flat.real[np.abs(flat.imag) < 1e-9]
        inside = real[(real >= 0) & (real <= 1)].tolist()
        place = min([0.0, 1.0, *inside], key=fit)
        return float(np.exp(-width * place) / inverse[0]), float(fit(place)), False

    def per_class(self, labels: Labels) -> list[dict[str, Any]]:
        """The classes that the data has, in the model's order."""
        return [
            {
                "label": labels.names[i],
                "wnid": labels.wnid(int(i)),
                **rate(int(self.class_correct[i]), int(self.class_n[i])),
            }
            for i in np.flatnonzero(self.class_n)
        ]

    def most_confused(self, labels: Labels, most: int = 20) -> list[dict[str, Any]]:
        """The commonest pairs of right and answered class."""
        pairs = sorted(self.confusions.items(), key=lambda item: (-item[1], item[0]))[:most]
        names = labels.names
        return [{"label": names[a], "predicted": names[b], "n": n} for (a, b), n in pairs]

    def matrix(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Right by answered class, over the classes that the data has: (P,) and (P, P)."""
        present = np.flatnonzero(self.class_n)
        place = {int(label): i for i, label in enumerate(present)}
        matrix = np.diag(self.class_correct[present])
        for (right, answered), n in self.confusions.items():
            if answered in place:
                matrix[place[right], place[answered]] += n
        return present, matrix

    def per_group(self) -> dict[str, Any] | None:
        """Accuracy of each group, and the largest gap between two; None without groups."""
        if not self.groups:
            return None
        found = [
            {"group": name, **rate(correct, n)}
            for name, (n, correct) in sorted(self.groups.items())
        ]
        best, worst = (f(found, key=lambda g: g["accuracy"]) for f in (max, min))
        gap = {
            "gap": best["accuracy"] - worst["accuracy"],
            "best": best["group"],
            "worst": worst["group"],
        }
        return {"groups": found, "largest_gap": gap}

    def to_json(self, labels: Labels) -> dict[str, Any]:
        """The documented keys of ``--json``; shares are fractions, times are in seconds."""
        subset = None
        if self.present is not None:
            found = rate(self.correct_present, self.n)
            subset = {
                "n": len(self.present),
                "top1": found["accuracy"],
                "top1_correct": self.correct_present,
                "top1_interval": found["interval"],
            }
        return {
            "n": self.n,
            "n_failed": len(self.failures),
            "n_skipped": len(self.failures) if self.skipped else 0,
            "top1": self.top1,
            f"top{self.k}": self.topk,
            "top1_correct": self.correct_top1,
            f"top{self.k}_correct": self.correct_topk,
            "top1_interval": list(self.top1_interval),
            "loss": self.loss,
            "present_classes": subset,
            "real": rate(self.real_correct, self.real_n) if self.real_n else None,
            "calibration": self.calibration(),
            "groups": self.per_group(),
            "classes": self.per_class(labels),
            "confusions": self.most_confused(labels),
            "images_per_sec": _per_sec(self.n, self.seconds),
            "decode_images_per_sec": _per_sec(self.readable, self.decode_sec),
            "model_images_per_sec": _per_sec(self.readable, self.model_sec),
            "transfer_sec": self.transfer_sec,
        }


def _per_sec(n: int, seconds: float) -> float | None:
    return n / seconds if seconds else None


def _surest_first(mistake: tuple[float, str, int, int]) -> tuple[float, str]:
    return -mistake[0], mistake[1]


def _losses(wide: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Cross-entropy of each row of logits, whose largest is 0."""
    log_sum = np.log(np.exp(wide).sum(axis=1))
    return np.asarray(log_sum - wide[np.arange(len(labels)), labels])


def _through(
    values: NDArray[np.float64], slopes: NDArray[np.float64], bends: NDArray[np.float64]
) -> Polynomial:
    """The polynomial of degree 5 with these values and derivatives at 0 and 1 (Hermite's)."""
    a, b, c = values[0], slopes[0], bends[0] / 2
    value = values[1] - a - b - c
    slope = slopes[1] - b - 2 * c
    bend = bends[1] - 2 * c
    return Polynomial(
        [
            *(a, b, c),
            10 * value - 4 * slope + bend / 2,
            -15 * value + 7 * slope - bend,
            6 * value - 3 * slope + bend / 2,
        ]
    )
