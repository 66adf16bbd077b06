"""Labelled images through one model or several, each image read once."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cvt_cli.base.ahead import ahead, batches
from cvt_cli.base.errors import ImageError
from cvt_cli.base.progress import Progress, silent
from cvt_cli.datasets.labelled import LabelledImages
from cvt_cli.engines.protocol import Apart, Engine, begun, prepared, with_begun
from cvt_cli.evaluation.counts import Counts
from cvt_cli.evaluation.outcomes import Outcomes
from cvt_cli.evaluation.several_labels import JudgedSet, SetCounts, SetOutcomes, judged
from cvt_cli.prediction.answers import Prediction
from cvt_cli.prediction.classify import top_predictions
from cvt_cli.spec.labels import Labels
from cvt_cli.spec.preprocessing import Preprocessing


@dataclass(frozen=True)
class Judged:
    """What a model said of one labelled image."""

    path: str
    label: str  # the right class, by the model's name
    correct: bool = False
    predictions: tuple[Prediction, ...] = ()
    error: str | None = None
    weight: float | None = None  # how much it counts; None where all count the same

    def to_json(self) -> dict[str, Any]:
        """The documented keys: ``predictions``, or ``error`` in its place."""
        start: dict[str, Any] = {"path": self.path, "label": self.label, "correct": self.correct}
        if self.weight is not None:
            start["weight"] = self.weight
        if self.error is not None:
            return {**start, "error": self.error}
        return {**start, "predictions": [vars(p) for p in self.predictions]}


@dataclass
class Subject:
    """A model under evaluation, what it is judged by, and what was counted."""

    engine: Engine
    preprocessing: Preprocessing
    labels: Labels
    class_index: NDArray[np.int64]  # the model's class of each of the data's
    result: Counts
    groups: Mapping[str, str] = field(default_factory=dict)  # by image name
    real: Mapping[str, Sequence[int]] = field(default_factory=dict)  # ReaL's labels by image name
    judged: Callable[[Judged | JudgedSet, str | None], None] | None = (
        None  # told of every image, in order,
    )
    #                                                               and of its file's SHA-256
    outcomes: Outcomes | None = None  # of every image
    truth: "Truth" = field(default_factory=lambda: Truth())

    def right(self, data: LabelledImages, indices: Any = slice(None)) -> NDArray[Any]:
        """The right classes of some images, as the model's: (B,) indices; where an image may have
        several, (B, classes) uint8, 1 where it has one."""
        labels = data.labels[indices]
        if not data.several:
            return np.asarray(self.class_index[labels])
        found = np.zeros((len(labels), len(self.labels)), np.uint8)
        for place, of_class in zip(self.class_index.tolist(), labels.T, strict=True):
            found[:, place] |= of_class
        return found


class Truth:
    """Hashes of what images were judged by, over these in the order in which they were."""

    def __init__(self) -> None:
        self._hashes = {kind: hashlib.sha256() for kind in ("classes", "groups", "ReaL labels")}

    def add(self, one: Subject, name: str, right: Any) -> None:
        """Note an image, with the index of its right class; of several with 0 and 1 for each."""
        right = np.flatnonzero(right).tolist() if one.labels.several else int(right)
        for kind, value in (
            ("classes", right),
            ("groups", one.groups.get(name)),
            ("ReaL labels", one.real.get(name)),
        ):
            self._hashes[kind].update(json.dumps([name, value]).encode())

    def hashes(self) -> dict[str, str]:
        """A SHA-256 of each kind."""
        return {kind: found.hexdigest() for kind, found in self._hashes.items()}


def subject(
    engine: Engine,
    preprocessing: Preprocessing,
    labels: Labels,
    class_index: NDArray[np.int64],
    data: LabelledImages,
    k: int = 5,
    keep: bool | None = None,
    folder: Path | None = None,
) -> Subject:
    """A model with nothing counted yet; if the data has not all its classes, those that it has.

    Args:
        engine: that computes it.
        preprocessing: of the images.
        labels: its classes.
        class_index: its class for each of the data's.
        data: the images.
        k: of top-k.
        keep: as of `Outcomes`, like the next.
        folder: see there.
    """
    if labels.several:
        kept = SetOutcomes(len(data), len(labels), folder)
        return Subject(engine, preprocessing, labels, class_index, SetCounts(labels), outcomes=kept)
    present = np.unique(class_index[data.labels])
    subset = present if len(present) < len(labels) else None
    counts = Counts(len(labels), subset, k)
    one = Subject(engine, preprocessing, labels, class_index, counts)
    one.outcomes = Outcomes(len(data), len(labels), keep, folder)
    return one


def judge(
    subjects: Sequence[Subject],
    data: LabelledImages,
    *,
    indices: Sequence[int] | None = None,
    hashes: bool = False,
    batch_size: int,
    exif: bool = False,
    workers: int = 1,
    after_batch: Callable[[int], None] = lambda done: None,
    before_failures: Callable[[], None] | None = None,
    progress: Progress = silent,
) -> None:
    """Run every image through every model and count; in order, in constant memory.

    Args:
        subjects: the models, whose results grow.
        data: the images with their classes.
        indices: of the images to take, by default all.
        hashes: tell the subjects each file's hash, which costs the reading of all of it.
        batch_size: images per call of an engine.
        exif: turn pictures upright first; the published numbers were measured without.
        workers: threads that read and decode.
        after_batch: told how many images are done, when all that was counted is whole.
        before_failures: called when all images that can be read are counted; the others are then
            the last that the subjects are told of. By default each is told of in its place.
        progress: told of every batch.
    """
    wanted = range(len(data)) if indices is None else indices

    def prepare(index: int) -> _Prepared:
        started = perf_counter()
        told: list[str] = []
        try:
            image = data.load(index, exif, tell_hash=told.append if hashes else None)
            made: dict[tuple[Preprocessing, bool, bool], NDArray[Any]] = {}
            arrays = []
            for one in subjects:
                how = (one.preprocessing, one.engine.takes_pixels, one.engine.takes_crops)
                if how not in made:
                    made[how] = prepared(one.engine, image, one.preprocessing)
                arrays.append(made[how])
        except ImageError as error:
            return _Prepared(str(error), perf_counter() - started, told[0] if told else None)
        return _Prepared(arrays, perf_counter() - started, told[0] if told else None)

    def begin(chunk: list[tuple[int, _Prepared]]) -> list[_Finish]:
        return [_begun(one, place, chunk) for place, one in enumerate(subjects)]

    started, done = perf_counter(), 0
    failed: list[tuple[int, _Prepared]] = []  # that are counted last
    apart = any(isinstance(one.engine, Apart) for one in subjects)
    before = [one.result.seconds for one in subjects]
    with progress("evaluating", len(wanted)) as advance:
        ready = ahead(prepare, wanted, workers, 2 * batch_size, _bytes_of)
        chunks = batches(ready, batch_size, _bytes_of)
        for chunk, finishes in with_begun(chunks, begin, apart):
            at_once = chunk
            if before_failures is not None:
                failed += [item for item in chunk if isinstance(item[1].arrays, str)]
                at_once = [item for item in chunk if not isinstance(item[1].arrays, str)]
            for one, finish, earlier in zip(subjects, finishes, before, strict=True):
                _count(one, finish, at_once, data)
                one.result.seconds = earlier + perf_counter() - started
            done += len(chunk)
            after_batch(done)
            what = "exact match" if subjects[0].labels.several else "top-1"
            advance(len(chunk), f"{what} {subjects[0].result.top1:.4f}")
    if before_failures is not None:
        before_failures()
        for place, one in enumerate(subjects):
            _count(one, _begun(one, place, failed), failed, data)


def _bytes_of(ready: "_Prepared") -> int:
    """Of an image's arrays, some of which are several models'."""
    if isinstance(ready.arrays, str):
        return 0
    return sum({id(array): array.nbytes for array in ready.arrays}.values())


_Finish = Callable[[], NDArray[np.float32]]


def _begun(one: Subject, place: int, chunk: Sequence[tuple[int, "_Prepared"]]) -> _Finish:
    """Begin to run one model on the images of a batch that could be read."""
    arrays = [p.arrays[place] for _, p in chunk if not isinstance(p.arrays, str)]
    if not arrays:
        return lambda: np.empty((0, len(one.labels)), np.float32)
    transferred, started = one.engine.transfer_sec, perf_counter()
    finish = begun(one.engine, arrays)
    if not isinstance(one.engine, Apart):  # and it is done
        one.result.model_sec += perf_counter() - started
        one.result.transfer_sec += one.engine.transfer_sec - transferred
    return finish


def _finished(one: Subject, finish: _Finish) -> NDArray[np.float32]:
    """The logits; of a device that computes apart, note how long it took."""
    if not isinstance(one.engine, Apart):
        return finish()
    transferred, busy = one.engine.transfer_sec, one.engine.busy_sec
    logits = finish()
    one.result.model_sec += one.engine.busy_sec - busy
    one.result.transfer_sec += one.engine.transfer_sec - transferred
    return logits


def _count(
    one: Subject,
    finish: _Finish,
    chunk: Sequence[tuple[int, "_Prepared"]],
    data: LabelledImages,
) -> None:
    """Count all images of a batch by what one model says of those that could be read."""
    result = one.result
    readable = [(i, p.arrays) for i, p in chunk if not isinstance(p.arrays, str)]
    names = [data.names[i] for i, _ in readable]
    logits = _finished(one, finish)
    if readable:
        labels = one.right(data, [i for i, _ in readable])
        groups = [one.groups.get(name, "") for name in names] if one.groups else []
        real = [one.real[name] for name in names] if one.real else []
        answered, probabilities = result.add(logits, labels, names, groups, real)
        if one.outcomes is not None:
            one.outcomes.add([i for i, _ in readable], answered, probabilities)
    rows: Iterator[NDArray[np.float32]] = iter(logits)
    for index, (ready, seconds, sha256) in chunk:
        result.decode_sec += seconds
        name, right = data.names[index], one.right(data, [index])[0]
        if isinstance(ready, str):
            group = one.groups.get(name, "") if one.groups else None
            result.add_failure(name, ready, right, group, one.real.get(name, ()))
            if one.outcomes is not None:
                one.outcomes.add_failure(index, result.skipped)
        if one.judged is not None:
            one.truth.add(one, name, right)
            of_image = ready if isinstance(ready, str) else next(rows)
            judgement = _judged(one, name, right, of_image)
            one.judged(replace(judgement, weight=data.weight(index)), sha256)


def _judged(
    one: Subject, name: str, right: Any, logits: NDArray[np.float32] | str
) -> Judged | JudgedSet:
    """What a model said of an image, or why it cannot be read."""
    if one.labels.several:
        return judged(name, right, logits, one.labels)
    label = one.labels.names[right]
    if isinstance(logits, str):
        return Judged(name, label, error=logits)
    found = top_predictions(logits, one.labels, one.result.k)
    return Judged(name, label, found[0].index == int(right), found)


class _Prepared(NamedTuple):
    """An image, ready for every model."""

    arrays: list[NDArray[Any]] | str  # or why it cannot be read
    seconds: float  # that it took
    sha256: str | None  # of its file
