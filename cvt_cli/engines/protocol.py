"""What turns ready arrays into logits. Everything above an engine neither knows nor asks which."""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cvt_cli.base.errors import CheckpointError
from cvt_cli.images import transform
from cvt_cli.spec.preprocessing import Preprocessing


class Engine(Protocol):
    """A model on a runtime."""

    @property
    def name(self) -> str:
        """The runtime's name, such as "torch"."""
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
        """The one that really runs: "fp32", "bf16", "fp16" or "int8"."""
        ...

    @property
    def transfer_sec(self) -> float:
        """Time spent so far in moving images to the device; 0 where they stay in memory."""
        ...

    @property
    def takes_pixels(self) -> bool:
        """Whether it prepares images itself: uint8 RGB (B, H, W, 3) in place of (B, 3, H, W)."""
        ...

    def __call__(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """Images (B, 3, H, W), normalised, to logits (B, classes)."""
        ...

    def features(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """Such images to what the head reads: the class token after the last LayerNorm (B, C)."""
        ...


def prepared(engine: Engine, image: Image.Image, preprocessing: Preprocessing) -> NDArray[Any]:
    """An RGB image as an engine takes it: float32 (3, H, W), or its pixels, uint8 (H, W, 3)."""
    return np.asarray(image) if engine.takes_pixels else transform.preprocess(image, preprocessing)


def logits_of(engine: Engine, arrays: list[NDArray[Any]]) -> NDArray[np.float32]:
    """Images as `prepared` gives them, to logits (B, classes).

    Raises:
        CheckpointError: a logit is infinite or not a number, so that no answer would be true.
    """
    return _finite(engine, _in_batches(engine, arrays))


def features_of(engine: Engine, arrays: list[NDArray[Any]]) -> NDArray[np.float32]:
    """Images as `prepared` gives them, to features (B, C).

    Raises:
        CheckpointError: a feature is infinite or not a number.
    """
    return _finite(engine, _in_batches(engine.features, arrays))


def _in_batches(
    compute: Callable[[NDArray[Any]], NDArray[np.float32]], arrays: list[NDArray[Any]]
) -> NDArray[np.float32]:
    """All in one batch, or one by one if they are of several sizes."""
    if len({array.shape for array in arrays}) == 1:
        return compute(np.stack(arrays))
    return np.concatenate([compute(array[None]) for array in arrays])


def _finite(engine: Engine, values: NDArray[np.float32]) -> NDArray[np.float32]:
    if not np.isfinite(values).all():
        raise CheckpointError(
            f"the model's outputs are not finite numbers, in {engine.precision} on {engine.device}",
            hint="its weights are damaged, or its training diverged"
            + ("; it may work with --precision fp32" * (engine.precision != "fp32")),
        )
    return values
