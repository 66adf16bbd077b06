"""What turns ready arrays into logits. Everything above an engine neither knows nor asks which."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Engine(Protocol):
    """A model on a runtime."""

    name: str  # of the runtime: "torch"
    device: str  # as a person names it: "cpu, 2 threads"
    precision: str  # the one that really runs: "fp32", "bf16", "fp16"

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Images (B, 3, H, W), normalised, to logits (B, classes)."""
        ...
