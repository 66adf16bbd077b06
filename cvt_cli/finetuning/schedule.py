"""The learning rate of every step."""

import math
from dataclasses import dataclass

from cvt_cli.base.errors import UsageError
from cvt_cli.base.text import counted
from cvt_cli.spec.recipes import Recipe

LOWEST_RATE = 1e-5
"""Learning rate at the end of the cosine (reference files); a hundredth of a peak below 1e-3."""

WARMUP_RATE = 1e-6
"""Learning rate at the first step of the warm-up (reference files)."""


@dataclass(frozen=True)
class Schedule:
    """The learning rate of every step: linear warm-up, then a cosine."""

    peak: float
    steps: int
    warmup_steps: float

    def __call__(self, step: int) -> float:
        """The rate at a step, from 0."""
        if step < self.warmup_steps:
            first = min(WARMUP_RATE, self.peak)
            return first + (self.peak - first) * step / self.warmup_steps
        lowest = min(LOWEST_RATE, self.peak / 100)
        done = (step - self.warmup_steps) / max(self.steps - self.warmup_steps, 1)
        return lowest + (self.peak - lowest) * (1 + math.cos(math.pi * min(done, 1.0))) / 2


def schedule_of(recipe: Recipe, steps_per_epoch: int) -> Schedule:
    """The schedule of a recipe on data of so many steps.

    Raises:
        UsageError: it ends before the learning rate has reached its peak.
    """
    steps = recipe.steps if recipe.steps is not None else recipe.epochs * steps_per_epoch
    warmup = recipe.warmup_epochs * steps_per_epoch
    if warmup >= steps:
        raise UsageError(
            f"a warm-up of {counted(recipe.warmup_epochs, 'epoch')} ({counted(warmup, 'step')}) is "
            f"longer than the training ({counted(steps, 'step')})",
            hint="use a smaller --warmup-epochs, or more --epochs",
        )
    return Schedule(recipe.learning_rate, steps, warmup)
