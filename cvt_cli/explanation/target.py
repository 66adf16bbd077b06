"""What of the logits is explained: a class, or why one class and not another."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Target:
    """A class, by its index among the model's, and another one that it is held against."""

    index: int
    against: int | None = None
    several: bool = False  # an image may have several classes

    def logit(self, logits: Tensor) -> Tensor:
        """The number that is explained, (B,), of logits (B, classes)."""
        found = logits[:, self.index]
        return found if self.against is None else found - logits[:, self.against]

    def probability(self, logits: Tensor) -> Tensor:
        """How likely it is, 0 … 1, (B,); against another class: of these two alone."""
        if self.against is not None or self.several:
            return torch.sigmoid(self.logit(logits))
        return logits.softmax(-1)[:, self.index]
