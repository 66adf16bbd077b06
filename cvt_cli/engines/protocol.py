"""What turns ready arrays into logits. Everything above an engine neither knows nor asks which."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cvt_cli.base.errors import CheckpointError
from cvt_cli.images import transform
from cvt_cli.spec.preprocessing import Preprocessing

_PIXELS_TOGETHER = 64 * 1024**2
"""Bytes of whole pictures in one call of an engine that prepares them itself, unless one alone has
more: a runtime takes ten times as much for them."""

Chunk = TypeVar("Chunk")
Begun = TypeVar("Begun")


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
    def floats(self) -> str | None:
        """In int8 "bf16" where that computes what is left in floating point; None: fp32."""
        ...

    @property
    def transfer_sec(self) -> float:
        """Time spent so far in moving images to the device; 0 where they stay in memory."""
        ...

    @property
    def takes_pixels(self) -> bool:
        """Whether it prepares images itself: uint8 RGB (B, H, W, 3) in place of (B, 3, H, W)."""
        ...

    @property
    def takes_crops(self) -> bool:
        """Whether it normalises images itself: uint8 RGB (B, H, W, 3), resized and cropped."""
        ...

    def __call__(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """Images (B, 3, H, W), normalised, to logits (B, classes)."""
        ...

    def features(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """Such images to what the head reads: the class token after the last LayerNorm (B, C)."""
        ...


@runtime_checkable
class Apart(Protocol):
    """An engine whose device computes while this process does something else."""

    @property
    def busy_sec(self) -> float:
        """Time that the device has computed so far, and moved answers; images travel meanwhile."""
        ...

    def begin(
        self, arrays: list[NDArray[Any]], features: bool = False
    ) -> Callable[[], NDArray[np.float32]]:
        """Begin to compute images of one size; what comes back waits for the results."""
        ...


def prepared(engine: Engine, image: Image.Image, preprocessing: Preprocessing) -> NDArray[Any]:
    """An RGB image as an engine takes it: float32 (3, H, W), or its pixels, uint8 (H, W, 3)."""
    if engine.takes_pixels:
        return np.asarray(image)
    if engine.takes_crops:
        return np.asarray(transform.resize(image, preprocessing))
    return transform.preprocess(image, preprocessing)


def begun(
    engine: Engine, arrays: list[NDArray[Any]], features: bool = False
) -> Callable[[], NDArray[np.float32]]:
    """Begin to compute images as `prepared` gives them; what comes back gives the results.

    Engines that are not `Apart` are done when this returns. Raises as `logits_of`, here or there.
    """
    if isinstance(engine, Apart) and len({array.shape for array in arrays}) == 1:
        finish = engine.begin(arrays, features)
        return lambda: _finite(engine, finish())
    values = (features_of if features else logits_of)(engine, arrays)
    return lambda: values


def with_begun(
    chunks: Iterable[Chunk], begin: Callable[[Chunk], Begun], apart: bool
) -> Iterator[tuple[Chunk, Begun]]:
    """Every chunk with what it began; where devices compute ``apart``, the next is begun first."""
    waiting: tuple[Chunk, Begun] | None = None
    for chunk in chunks:
        begun = chunk, begin(chunk)
        if not apart:
            yield begun
            continue
        if waiting is not None:
            yield waiting
        waiting = begun
    if waiting is not None:
        yield waiting


def logits_of(engine: Engine, arrays: list[NDArray[Any]]) -> NDArray[np.float32]:
    """Images as `prepared` gives them, to logits (B, classes).

    Raises:
        CheckpointError: a logit is infinite or not a number, so that no answer would be true.
    """
    return _finite(engine, _in_batches(engine, arrays, engine.takes_pixels))


def features_of(engine: Engine, arrays: list[NDArray[Any]]) -> NDArray[np.float32]:
    """Images as `prepared` gives them, to features (B, C).

    Raises:
        CheckpointError: a feature is infinite or not a number.
    """
    return _finite(engine, _in_batches(engine.features, arrays, engine.takes_pixels))


def _in_batches(
    compute: Callable[[NDArray[Any]], NDArray[np.float32]],
    arrays: list[NDArray[Any]],
    are_pictures: bool,
) -> NDArray[np.float32]:
    """All in one batch; one by one if they are of several sizes, a few together if they are large
    pictures."""
    together = len(arrays)
    if len({array.shape for array in arrays}) > 1:
        together = 1
    elif are_pictures:
        together = max(1, _PIXELS_TOGETHER // arrays[0].nbytes)
    starts = range(0, len(arrays), together)
    return np.concatenate([compute(np.stack(arrays[i : i + together])) for i in starts])


def _finite(engine: Engine, values: NDArray[np.float32]) -> NDArray[np.float32]:
    if not np.isfinite(values).all():
        raise CheckpointError(
            f"the model's outputs are not finite numbers, in {engine.precision} on {engine.device}",
            hint="its weights are damaged, or its training diverged"
            + ("; it may work with --precision fp32" * (engine.precision != "fp32")),
        )
    return values
