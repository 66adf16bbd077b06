"""Images in, answers out: decoded by threads ahead of the model, in order, in constant memory."""

import io
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter
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
"""Bytes up to which a prepared image is not large; 384x384 has 1.8 million."""

_ANY_RESULT = 32 * 1024
"""Bytes that are counted for any result that waits, for what its making has left around it."""

_LONG_SEC = 0.1
"""From so long a wait for the next result on, more are begun after it; a thread whose processor
somebody else has got is back before."""

_FORGOTTEN_AFTER = 8
"""Results that are given without such a wait, for each that waits no more."""


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


def ahead(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int,
    most: int,
    size: Callable[[Result], int] | None = None,
) -> Iterator[tuple[Item, Result]]:
    """Every item with what ``work`` makes of it, in order; threads work ahead of who asks.

    Args:
        work: called in a thread for every item.
        items: taken one by one, no more than ``most`` ahead. If ``size`` is known, more are taken
            where threads would have nothing to do while one makes the next result to be given, as
            of a picture that is a hundred times as large as others.
        workers: threads.
        most: results that wait at the same time; more as long as they have fewer bytes than
            `limits.LARGEST_AHEAD`.
        size: of a result, in bytes; work is begun on no other item but the next to be given while
            large ones of more than `limits.LARGEST_WAITING` wait.
    """
    changed = threading.Condition()
    done: dict[int, int] = {}  # bytes of the results that were not given yet, by their numbers
    held = large = 0  # bytes of them, and of those of them that are large
    given = 0  # results; the next one is made in any case, since it is waited for
    ended = False
    furthest = most  # so many may wait, since threads had nothing to do
    asked = (-1, 0.0)  # which one was asked for last, and when first

    def in_turn(number: int, item: Item) -> Result:
        nonlocal held, large
        if large > limits.LARGEST_WAITING:
            with changed:
                changed.wait_for(
                    lambda: large <= limits.LARGEST_WAITING or number == given or ended
                )
        made = 0
        try:
            result = work(item)
            made = 0 if size is None else size(result)
            return result
        finally:
            with changed:
                done[number] = made
                held += made + _ANY_RESULT
                large += _counted(made)
                changed.notify_all()

    def next_one() -> tuple[Item, Result]:
        nonlocal held, large, given
        item, future = waiting.popleft()
        result = future.result()
        with changed:
            made = done.pop(given)
            held -= made + _ANY_RESULT
            large -= _counted(made)
            given += 1
            changed.notify_all()
        return item, result

    def refills() -> bool:
        """Whether one more is begun, since as many were needed before."""
        undone = len(waiting) - len(done)
        return held < limits.LARGEST_AHEAD and len(waiting) <= furthest and undone <= most

    def widens() -> bool:
        """Whether one more is begun, since a thread has nothing to do."""
        return held < limits.LARGEST_AHEAD and len(waiting) - len(done) <= workers

    def goes_further() -> bool:
        """Whether one more is begun before the next is given; waits until that is clear."""
        nonlocal asked
        if size is None:
            return False
        with changed:
            if asked[0] != given:
                asked = given, perf_counter()
            patience = asked[1] + _LONG_SEC - perf_counter()
            if refills():
                return True
            if changed.wait_for(lambda: given in done, max(0.0, patience)):
                return False
            changed.wait_for(lambda: given in done or widens())
            return given not in done

    pool = ThreadPoolExecutor(workers)
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    try:
        for number, item in enumerate(items):
            waiting.append((item, pool.submit(in_turn, number, item)))
            while len(waiting) > most and not goes_further():
                yield next_one()
                if given % _FORGOTTEN_AFTER == 0:
                    furthest = max(most, furthest - 1)
            furthest = max(furthest, len(waiting))
        while waiting:
            yield next_one()
    finally:
        with changed:
            ended = True
            changed.notify_all()
        pool.shutdown(wait=False, cancel_futures=True)


def _counted(size: int) -> int:
    """What a result counts towards `limits.LARGEST_WAITING`: none but a large picture whole."""
    return size if size > _SMALL else 0


def batches(
    ready: Iterable[tuple[Item, Result]], count: int, size: Callable[[Result], int]
) -> Iterator[list[tuple[Item, Result]]]:
    """Lists of ``count``, or of fewer large ones that have over `limits.LARGEST_WAITING` bytes."""
    batch: list[tuple[Item, Result]] = []
    total = 0
    for item, result in ready:
        batch.append((item, result))
        total += _counted(size(result))
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
