"""Whether the loss of a run still makes sense."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from cvt_cli.base.errors import CvtError
from cvt_cli.base.text import counted
from cvt_cli.spec.formats import Precision
from cvt_cli.spec.recipes import Recipe

RUNAWAY = 3.0
"""Times the loss of a guess, beyond which the smoothed loss stops a run."""


class Watch:
    """Stops a run whose loss is no number any more, or has run away from that of a guess.

    A loss is looked at one step late, so that a GPU need not be waited for.

    Args:
        num_classes: of the model.
        recipe: that it is trained by.
        precision: that is computed in.
        heaviest: the largest weight of an image, by its class and its own: so much above a guess a
            step may be that has this image.
    """

    def __init__(
        self, num_classes: int, recipe: Recipe, precision: Precision, heaviest: float = 1.0
    ) -> None:
        self._guess = max(math.log(num_classes), 1.0)
        self._limit = RUNAWAY * self._guess * heaviest
        self._recipe, self._precision = recipe, precision
        self._smooth: float | None = None
        self._before: tuple[Tensor, int, float] | None = None

    def __call__(self, loss: Tensor, step: int, rate: float) -> None:
        """Look at a step's loss.

        Raises:
            CvtError: the run is lost.
        """
        if self._before is not None:
            self._look(*self._before)
        self._before = loss, step, rate

    def all_good(self, weights: Iterable[Tensor]) -> None:
        """Look at the last loss too, and at the weights, before what was learnt from it is kept.

        Args:
            weights: as the last step has left them.

        Raises:
            CvtError: the run is lost.
        """
        if self._before is None:
            return
        self._look(*self._before)
        _, step, rate = self._before
        self._before = None
        if not torch.stack([tensor.isfinite().all() for tensor in weights]).all():
            raise self._lost("the weights are not finite any more", step, rate)

    def _look(self, loss: Tensor, step: int, rate: float) -> None:
        value = loss.item()
        if self._smooth is None:  # of the start, which may be sure and wrong on augmented images
            self._smooth = value
            self._limit *= max(1.0, value / self._guess)
        self._smooth = 0.9 * self._smooth + 0.1 * value
        if math.isfinite(value) and self._smooth <= self._limit:
            return
        what = (
            f"the loss has diverged to {self._smooth:.3g} (guessing gives {self._guess:.3g})"
            if math.isfinite(value)
            else f"the loss is {value}"
        )
        raise self._lost(what, step, rate)

    def _lost(self, what: str, step: int, rate: float) -> CvtError:
        hints = [f"a tenth of the learning rate (--lr {self._recipe.learning_rate / 10:.1e})"]
        warmup = counted(self._recipe.warmup_epochs, "epoch")
        hints.append(f"a longer warm-up than {warmup} (--warmup-epochs)")
        if self._precision != "fp32":
            hints.append(f"--precision fp32 instead of {self._precision}")
        return CvtError(
            f"{what} at step {step + 1}, with a learning rate of {rate:.2e}",
            hint=f"try {', '.join(hints[:-1])} or {hints[-1]}; the last good state is kept",
        )
