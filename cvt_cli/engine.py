"""What turns ready arrays into logits. Everything above an engine neither knows nor asks which."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cvt_cli.errors import CheckpointError


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

    @property
    def transfer_sec(self) -> float:
        """Time spent so far in moving images to the device; 0 where they stay in memory."""
        ...

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Images (B, 3, H, W), normalised, to logits (B, classes)."""
        ...

    def features(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Likewise to what the head reads: the class token after the last LayerNorm (B, C)."""
        ...


def logits_of(engine: Engine, images: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Images (3, H, W) through an engine as one batch, to logits (B, classes).

    Raises:
        CheckpointError: a logit is infinite or not a number, so that no answer would be true.
    """
    return _finite(engine, engine(np.stack(images)))


def features_of(engine: Engine, images: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Images (3, H, W) through an engine as one batch, to features (B, C); raises likewise."""
    return _finite(engine, engine.features(np.stack(images)))


def _finite(engine: Engine, values: NDArray[np.float32]) -> NDArray[np.float32]:
    if not np.isfinite(values).all():
        raise CheckpointError(
            f"the model answers with values that are not finite, in {engine.precision} on "
            f"{engine.device}",
            hint="its weights are damaged or its training diverged; "
            "if it is sound in another precision, try --precision fp32",
        )
    return values
