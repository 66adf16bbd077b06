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
        """As a person names it, such as "cpu, 2 threads"."""
        ...

    @property
    def precision(self) -> str:
        """The one that really runs: "fp32", "bf16" or "fp16"."""
        ...

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Images (B, 3, H, W), normalised, to logits (B, classes)."""
        ...
