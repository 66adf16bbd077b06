"""What turns ready arrays into logits. Everything above an engine neither knows nor asks which."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Engine(Protocol):
    """A model on a runtime."""

    @property
    def name(self) -> str:
        """Of the runtime, such as "torch"."""
        ...

    @property
    def device(self) -> str:
        """Such as "cpu" or "cuda:0"."""
        ...

    @property
    def hardware(self) -> str:
        """What computes there, such as "2 threads"."""
        ...

    @property
    def precision(self) -> str:
        """The one that really runs: "fp32", "bf16" or "fp16"."""
        ...

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Images (B, 3, H, W), normalised, to logits (B, classes)."""
        ...
