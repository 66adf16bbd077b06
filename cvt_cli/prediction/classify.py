"""Images in, answers out: decoded by threads ahead of the model, in order, in constant memory."""

import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cvt_cli.base.ahead import ahead, batches
from cvt_cli.base.errors import ImageError
from cvt_cli.base.machine import threads
from cvt_cli.engines.protocol import Apart, Engine, begun, prepared, with_begun
from cvt_cli.images.decode import Colour
from cvt_cli.prediction.answers import UNKNOWN, Answer, Prediction, apart
from cvt_cli.spec.config import Size
from cvt_cli.spec.labels import Labels
from cvt_cli.spec.preprocessing import Preprocessing

THUMBNAIL_PIXELS = 224
"""Pixels of a thumbnail's longer side."""


class Loadable(Protocol):
    """An image that has not been read yet, such as a `sources.Source`."""

    @property
    def name(self) -> str:
        """As results call it."""
        ...

    def load(
        self,
        exif: bool,
        at_least: Size | None = None,
        background: Colour | None = None,
    ) -> Image.Image:
        """Decode it to RGB, as `decode.decode` does; raises ImageError."""
        ...


@dataclass(frozen=True)
class Wishes:
    """What is wanted of every image."""

    top_k: int | None = 5  # None is all, where an image may have several classes
    threshold: float | None = None  # probability below which the answer is UNKNOWN, or no class of
    #                                 several is given
    exif: bool = True  # turn pictures upright
    fast_decode: bool = False  # let large JPEGs be decoded at a part of their size
    features: bool = False  # the vector before the head instead of classes
    thumbnails: bool = False
    background: Colour | None = None  # shows through transparent pixels; None keeps their colours


def classify(
    engine: Engine,
    sources: Iterable[Loadable],
    preprocessing: Preprocessing,
    labels: Labels,
    wishes: Wishes,
    *,
    batch_size: int = 16,
    workers: int | None = None,
) -> Iterator[Answer]:
    """Answer for every image, in order; one that cannot be read is answered with the reason.

    Args:
        engine: the model.
        sources: the images; each is read when its turn is near.
        preprocessing: the model's.
        labels: the model's.
        wishes: what is wanted of them.
        batch_size: images per call of the engine.
        workers: threads that decode; by default one for each processor of this process.
    """

    def prepare(source: Loadable) -> tuple[NDArray[Any], bytes | None] | str:
        at_least = None
        if wishes.fast_decode:  # twice what the resize needs, so that it still averages pixels
            enough = 2 * max(preprocessing.resized(1, 1))
            at_least = Size.square(enough)
        try:
            image = source.load(wishes.exif, at_least, wishes.background)
            array = prepared(engine, image, preprocessing)
        except ImageError as error:
            return str(error)
        return array, thumbnail(image) if wishes.thumbnails else None

    def size(ready: tuple[NDArray[Any], bytes | None] | str) -> int:
        return 0 if isinstance(ready, str) else ready[0].nbytes

    def begin(chunk: list[tuple[Loadable, Any]]) -> Callable[[], Iterable[NDArray[np.float32]]]:
        arrays = [ready[0] for _, ready in chunk if not isinstance(ready, str)]
        return begun(engine, arrays, wishes.features) if arrays else tuple

    unknown = apart(UNKNOWN, labels.names)
    ready_images = ahead(prepare, sources, workers or threads(), 2 * batch_size, size)
    chunks = batches(ready_images, batch_size, size)
    for chunk, finish in with_begun(chunks, begin, isinstance(engine, Apart)):
        results = iter(finish())
        for source, ready in chunk:
            if isinstance(ready, str):
                yield Answer(source.name, error=ready)
            elif wishes.features:
                yield Answer(source.name, features=next(results))
            elif labels.several:
                found = several_predictions(next(results), labels, wishes.top_k, wishes.threshold)
                yield Answer(source.name, found, thumbnail=ready[1], several=True)
            else:
                found = top_predictions(next(results), labels, wishes.top_k or len(labels))
                given = None
                if wishes.threshold is not None:
                    given = found[0].label if found[0].score >= wishes.threshold else unknown
                yield Answer(source.name, found, answer=given, thumbnail=ready[1])


@np.errstate(under="ignore")  # whatever the program that calls has set
def top_predictions(
    logits: NDArray[np.float32], labels: Labels, top_k: int
) -> tuple[Prediction, ...]:
    """The likeliest classes of one image's logits (classes,), with softmax probabilities."""
    wide = logits.astype(np.float64)
    exponentials = np.exp(wide - wide.max())
    scores = exponentials / exponentials.sum()
    order = np.argsort(-wide, kind="stable")[:top_k]  # a tie goes to the lower index
    return tuple(
        Prediction(int(i), labels.wnid(int(i)), labels.names[i], float(scores[i])) for i in order
    )


@np.errstate(under="ignore")
def sigmoid(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Probabilities of classes that do not exclude each other, without overflow."""
    wide = np.asarray(logits, np.float64)
    small = np.exp(-np.abs(wide))  # of the less likely of the two
    return np.asarray(np.where(wide >= 0, 1, small) / (1 + small))


def several_predictions(
    logits: NDArray[np.float32], labels: Labels, most: int | None, threshold: float | None = None
) -> tuple[Prediction, ...]:
    """The classes of one image whose probability is at least their threshold, the likeliest first.

    Args:
        logits: (classes,).
        labels: which says the thresholds.
        most: how many to give; None gives all.
        threshold: of all classes, in place of their own.
    """
    scores = sigmoid(logits)
    least = np.asarray(labels.thresholds) if threshold is None else threshold
    order = np.argsort(-scores, kind="stable")  # a tie goes to the lower index
    chosen = order[(scores >= least)[order]][:most]
    return tuple(
        Prediction(int(i), labels.wnid(int(i)), labels.names[i], float(scores[i])) for i in chosen
    )


def thumbnail(image: Image.Image) -> bytes:
    """A small JPEG of an RGB image."""
    small = image.copy()
    small.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    buffer = io.BytesIO()
    # Pages enlarge small pictures, where the blocks of a weaker quality would be seen.
    few = max(small.size) <= THUMBNAIL_PIXELS // 2
    small.save(buffer, "JPEG", quality=95 if few else 80, subsampling=0 if few else 2)
    return buffer.getvalue()
