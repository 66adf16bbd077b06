"""Images in, answers out: decoded by threads ahead of the model, in order, in constant memory."""

import io
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cvt_cli.base import limits
from cvt_cli.base.errors import ImageError
from cvt_cli.base.machine import threads
from cvt_cli.engines.protocol import Apart, Engine, begun, prepared, with_begun
from cvt_cli.images.decode import Colour
from cvt_cli.prediction.answers import UNKNOWN, Answer, Prediction
from cvt_cli.spec.config import Size
from cvt_cli.spec.labels import Labels
from cvt_cli.spec.preprocessing import Preprocessing

Item = TypeVar("Item")
Result = TypeVar("Result")


THUMBNAIL_PIXELS = 224
"""Pixels of a thumbnail's longer side."""


_SMALL = 16 * 1024**2
"""Bytes up to which a prepared image may wait uncounted; 384x384 has 1.8 million."""


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
        return 0 if isinstance(ready, str) else waiting_bytes(ready[0])

    def begin(chunk: list[tuple[Loadable, Any]]) -> Callable[[], Iterable[NDArray[np.float32]]]:
        arrays = [ready[0] for _, ready in chunk if not isinstance(ready, str)]
        return begun(engine, arrays, wishes.features) if arrays else tuple

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
                    given = found[0].label if found[0].score >= wishes.threshold else UNKNOWN
                yield Answer(source.name, found, answer=given, thumbnail=ready[1])


def waiting_bytes(array: NDArray[Any]) -> int:
    """What an image counts towards `limits.LARGEST_WAITING`: none but a large picture whole."""
    return array.nbytes if array.nbytes > _SMALL else 0


def _nothing(result: object) -> int:
    return 0


def ahead(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int,
    most: int,
    size: Callable[[Result], int] = _nothing,
) -> Iterator[tuple[Item, Result]]:
    """Every item with what ``work`` makes of it, in order; threads work ahead of who asks.

    Args:
        work: called in a thread for every item.
        items: taken one by one, no more than ``most`` ahead.
        workers: threads.
        most: results that wait at the same time.
        size: of a result, in bytes; work is begun on no other item but the next to be given while
            results of more than `limits.LARGEST_WAITING` wait.
    """
    room = threading.Condition()
    made = 0  # bytes of results that were not given yet
    given = 0  # results; the next one is made in any case, since it is waited for
    ended = False

    def in_turn(number: int, item: Item) -> Result:
        nonlocal made
        if made > limits.LARGEST_WAITING:
            with room:
                room.wait_for(lambda: made <= limits.LARGEST_WAITING or number == given or ended)
        result = work(item)
        if bytes_made := size(result):
            with room:
                made += bytes_made
        return result

    def next_one() -> tuple[Item, Result]:
        nonlocal made, given
        item, future = waiting.popleft()
        result = future.result()
        with room:
            made -= size(result)
            given += 1
            room.notify_all()
        return item, result

    pool = ThreadPoolExecutor(workers)
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    try:
        for number, item in enumerate(items):
            waiting.append((item, pool.submit(in_turn, number, item)))
            if len(waiting) > most:
                yield next_one()
        while waiting:
            yield next_one()
    finally:
        with room:
            ended = True
            room.notify_all()
        pool.shutdown(wait=False, cancel_futures=True)


def batches(
    ready: Iterable[tuple[Item, Result]], count: int, size: Callable[[Result], int] = _nothing
) -> Iterator[list[tuple[Item, Result]]]:
    """Lists of ``count``, or of fewer that together are larger than `limits.LARGEST_WAITING`."""
    batch: list[tuple[Item, Result]] = []
    total = 0
    for item, result in ready:
        batch.append((item, result))
        total += size(result)
        if len(batch) == count or total > limits.LARGEST_WAITING:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch


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
