"""How far probabilities are to be believed: their error in bins, and the best temperature.

All of it follows from sums over images, so that batches, runs and processes can be added up.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.polynomial import Polynomial
from numpy.typing import NDArray

BINS = 15
"""Number of bins, of equal width, for the calibration error (Guo et al. 2017, arXiv 1706.04599)."""

_STEPS = 4
"""Inverse temperatures for each doubling."""
_INVERSE = 2.0 ** (np.arange(-4 * _STEPS, 4 * _STEPS + 1) / _STEPS)
"""Where the loss and its slopes are summed: temperatures from 16 down to 1/16."""

_BINNED = ("bin_n", "bin_correct", "bin_confidence")
_CURVE = ("loss_at", "slope_at", "bend_at")


@dataclass(frozen=True)
class Bin:
    """The images whose likeliest class has a probability from ``low`` to ``high``."""

    low: float
    high: float
    n: int
    confidence: float | None  # mean probability of the likeliest class; None without images
    accuracy: float | None  # share of the images that is right; None without images


@dataclass(frozen=True)
class Calibration:
    """How far the probabilities of the readable images are to be believed."""

    ece: float  # expected calibration error, 0 … 1
    nll: float  # mean negative log-likelihood in nats
    brier: float
    temperature: float | None  # None for what version 0.1 began to count
    temperature_at_bound: bool
    nll_at_temperature: float | None
    bins: tuple[Bin, ...] = field(repr=False)


class CalibrationSums:
    """The sums over images from which a `Calibration` follows."""

    def __init__(self) -> None:
        self.brier_sum = 0.0  # squared error of the probabilities
        self.bin_n = np.zeros(BINS + 1, np.int64)  # the last holds a confidence of 1 alone
        self.bin_correct = np.zeros(BINS + 1, np.int64)
        self.bin_confidence = np.zeros(BINS + 1)
        self.loss_at = np.zeros(len(_INVERSE))  # the loss at each inverse temperature,
        self.slope_at = np.zeros(len(_INVERSE))  # and its derivatives by that, first
        self.bend_at = np.zeros(len(_INVERSE))  # and second
        self.has_curve = True  # these three hold all images

    def add(
        self, wide: NDArray[np.float64], labels: NDArray[np.int64], right: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        """Count a batch.

        Args:
            wide: logits (B, classes) whose largest is 0.
            labels: the right classes (B,).
            right: whether the likeliest class is the right one (B,).

        Returns:
            The probabilities (B, classes).
        """
        rows = np.arange(len(labels))
        self._add_at_temperatures(wide, wide[rows, labels])
        probabilities = np.exp(wide)
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        own = probabilities[rows, labels]
        self.brier_sum += float(((probabilities**2).sum(axis=1) - 2 * own + 1).sum())
        confidence: NDArray[np.float64] = probabilities.max(axis=1)
        bins = np.searchsorted(np.linspace(0, 1, BINS + 1), confidence, side="right") - 1
        np.add.at(self.bin_n, bins, 1)
        np.add.at(self.bin_correct, bins, right)
        np.add.at(self.bin_confidence, bins, confidence)
        return probabilities

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

    def state(self) -> dict[str, Any]:
        """Everything that was counted, for JSON."""
        arrays = (*_BINNED, *(_CURVE if self.has_curve else ()))
        return {
            "brier_sum": self.brier_sum,
            **{name: getattr(self, name).tolist() for name in arrays},
        }

    def add_state(self, state: Mapping[str, Any]) -> None:
        """Add what another evaluation counted.

        Raises:
            ValueError, KeyError, TypeError: it is no such state (`added`).
        """
        # Version 0.1 summed other losses, and no slopes, for the temperature.
        self.has_curve = self.has_curve and all(name in state for name in _CURVE)
        for name in ("brier_sum", *_BINNED, *(_CURVE if self.has_curve else ())):
            setattr(self, name, added(name, getattr(self, name), state))

    def result(self, n: int, loss: float) -> Calibration:
        """What follows from the sums.

        The temperature divides the logits so that their cross-entropy is least, between 1/16 and
        16 (`temperature_at_bound` says if one of these is the best, so that a lower or higher one
        would be better still). The loss is convex in its inverse: where its summed slope changes
        sign, a polynomial through loss, slope and bend at both sides gives it to some 1e-7 nats.

        Args:
            n: images, at least one.
            loss: their mean cross-entropy in nats.
        """
        gaps = np.abs(self.bin_correct - self.bin_confidence)
        temperature, at_best, at_bound = self._best_temperature(n)
        return Calibration(
            ece=float(gaps.sum() / n),
            nll=loss,
            brier=self.brier_sum / n,
            temperature=temperature,
            temperature_at_bound=at_bound,
            nll_at_temperature=at_best,
            bins=tuple(map(self._bin, range(BINS))),
        )

    def _bin(self, number: int) -> Bin:
        """One of the bins; the last has the images with a confidence of 1 too."""
        of_it = slice(number, number + 2) if number == BINS - 1 else slice(number, number + 1)
        count = int(self.bin_n[of_it].sum())
        return Bin(
            low=number / BINS,
            high=(number + 1) / BINS,
            n=count,
            confidence=float(self.bin_confidence[of_it].sum() / count) if count else None,
            accuracy=float(self.bin_correct[of_it].sum() / count) if count else None,
        )

    def _best_temperature(self, n: int) -> tuple[float | None, float | None, bool]:
        """The temperature, the mean loss at it, and whether it is the least or most allowed."""
        if not self.has_curve:
            return None, None, False
        loss, slope, bend = (one / n for one in (self.loss_at, self.slope_at, self.bend_at))
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


def added(name: str, own: Any, state: Mapping[str, Any]) -> Any:
    """A number or an array of ours plus that of the same name in a state.

    Raises:
        ValueError, KeyError, TypeError: it has none, or one of another shape.
    """
    other = np.asarray(state[name])
    if np.shape(own) != other.shape:
        raise ValueError(f"`{name}` has the shape {other.shape}, not {np.shape(own)}")
    total = own + other[()]
    return total if isinstance(own, np.ndarray) else total.item()


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
