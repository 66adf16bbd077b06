"""Labelled images through one model or several, each image read once."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvt_cli.datasets import LabelledImages
from cvt_cli.engine import Engine, logits_of, prepared
from cvt_cli.errors import DataError, ImageError
from cvt_cli.inference import Prediction, ahead, top_predictions
from cvt_cli.labels import Labels
from cvt_cli.metrics import Evaluation
from cvt_cli.preprocessing import Preprocessing
from cvt_cli.progress import Progress, silent
from cvt_cli.writers import as_text, prediction_columns


@dataclass(frozen=True)
class Judged:
    """What a model said of one labelled image."""

    path: str
    label: str  # the right class, by the model's name
    correct: bool = False
    predictions: tuple[Prediction, ...] = ()
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The documented keys: ``predictions``, or ``error`` in its place."""
        start = {"path": self.path, "label": self.label, "correct": self.correct}
        if self.error is not None:
            return {**start, "error": self.error}
        return {**start, "predictions": [vars(p) for p in self.predictions]}


def judged_row(item: Judged, top_k: int) -> dict[str, Any]:
    """The same as a row of a table: ``path``, ``label``, ``correct``, ``error``, ``label_1``, …."""
    start = {"path": as_text(item.path), "label": item.label, "correct": item.correct}
    return {**start, "error": item.error, **prediction_columns(item.predictions, top_k)}


@dataclass
class Subject:
    """A model under evaluation, what it is judged by, and what was counted."""

    engine: Engine
    preprocessing: Preprocessing
    labels: Labels
    class_index: NDArray[np.int64]  # the model's class of each of the data's
    result: Evaluation
    groups: Mapping[str, str] = field(default_factory=dict)  # by image name
    real: Mapping[str, Sequence[int]] = field(default_factory=dict)  # ReaL's labels, likewise
    judged: Callable[[Judged], None] | None = None  # told of every image, in order


def subject(
    engine: Engine,
    preprocessing: Preprocessing,
    labels: Labels,
    class_index: NDArray[np.int64],
    data: LabelledImages,
    k: int = 5,
) -> Subject:
    """A model with nothing counted yet; if the data has not all its classes, those that it has."""
    present = np.unique(class_index[data.labels])
    subset = present if len(present) < len(labels) else None
    return Subject(engine, preprocessing, labels, class_index, Evaluation(len(labels), subset, k))


def evaluate(
    subjects: Sequence[Subject],
    data: LabelledImages,
    *,
    indices: Sequence[int] | None = None,
    batch_size: int,
    exif: bool = False,
    workers: int = 1,
    after_batch: Callable[[int], None] = lambda done: None,
    progress: Progress = silent,
) -> None:
    """Run every image through every model and count; in order, in constant memory.

    Args:
        subjects: the models, whose results grow.
        data: the images with their classes.
        indices: of the images to take, by default all.
        batch_size: images per call of an engine; it does not change the counts.
        exif: turn pictures upright first; the published numbers were measured without.
        workers: threads that read and decode.
        after_batch: told how many images are done, when all that was counted is whole.
        progress: told of every batch.
    """
    wanted = range(len(data)) if indices is None else indices

    def prepare(index: int) -> tuple[list[NDArray[Any]] | str, float]:
        started = perf_counter()
        try:
            image = data.load(index, exif)
            made: dict[tuple[Preprocessing, bool], NDArray[Any]] = {}
            arrays = []
            for one in subjects:
                how = (one.preprocessing, one.engine.takes_pixels)
                if how not in made:
                    made[how] = prepared(one.engine, image, one.preprocessing)
                arrays.append(made[how])
        except ImageError as error:
            return str(error), perf_counter() - started
        return arrays, perf_counter() - started

    started, done = perf_counter(), 0
    before = [one.result.seconds for one in subjects]
    with progress("evaluating", len(wanted)) as advance:
        ready = ahead(prepare, wanted, workers, 2 * batch_size)
        while chunk := list(islice(ready, batch_size)):
            for place, one in enumerate(subjects):
                _count(one, place, chunk, data)
                one.result.seconds = before[place] + perf_counter() - started
            done += len(chunk)
            after_batch(done)
            advance(len(chunk), f"top-1 {subjects[0].result.top1:.4f}")


def _count(
    one: Subject,
    place: int,
    chunk: Sequence[tuple[int, tuple[list[NDArray[Any]] | str, float]]],
    data: LabelledImages,
) -> None:
    """Run one model on the images of a batch that could be read, and count all of them."""
    result = one.result
    readable = [(i, ready) for i, (ready, _) in chunk if not isinstance(ready, str)]
    names = [data.names[i] for i, _ in readable]
    logits: NDArray[np.float32] = np.empty((0, len(one.labels)), np.float32)
    if readable:
        transferred, started = one.engine.transfer_sec, perf_counter()
        logits = logits_of(one.engine, [arrays[place] for _, arrays in readable])
        result.model_sec += perf_counter() - started
        result.transfer_sec += one.engine.transfer_sec - transferred
        labels = one.class_index[data.labels[[i for i, _ in readable]]]
        groups = [one.groups.get(name, "") for name in names] if one.groups else []
        real = [one.real[name] for name in names] if one.real else []
        result.add(logits, labels, names, groups, real)
    rows: Iterator[NDArray[np.float32]] = iter(logits)
    for index, (ready, seconds) in chunk:
        result.decode_sec += seconds
        name, right = data.names[index], int(one.class_index[data.labels[index]])
        if isinstance(ready, str):
            group = one.groups.get(name, "") if one.groups else None
            result.add_failure(name, ready, right, group, one.real.get(name, ()))
        if one.judged is not None:
            label = one.labels.names[right]
            if isinstance(ready, str):
                one.judged(Judged(name, label, error=ready))
            else:
                found = top_predictions(next(rows), one.labels, result.k)
                one.judged(Judged(name, label, found[0].index == right, found))


_VALIDATION_NAME = re.compile(r"ILSVRC2012_val_(\d{8})")


def real_labels(names: Sequence[str], content: Any, where: str) -> dict[str, list[int]]:
    """ReaL's labels of each image, by file name (Beyer et al. 2020, arXiv 2006.07159).

    Args:
        names: of the images.
        content: of ``real.json``: for image i of ImageNet's validation set, a list of classes.
        where: it was read, for messages.

    Raises:
        DataError: it is no such list, or an image has lost the name that says which it is.
    """
    if not isinstance(content, list) or not all(isinstance(labels, list) for labels in content):
        raise DataError(f"`{where}` is not ReaL's file: expected is a list of lists of classes")
    found = {}
    for name in names:
        match = _VALIDATION_NAME.search(name.rpartition("/")[2])
        number = int(match[1]) if match else 0
        if not 1 <= number <= len(content):
            raise DataError(
                f"image `{name}` does not say which of ImageNet's validation images it is",
                hint="ReaL's labels go by the original file names, ILSVRC2012_val_00000001.JPEG …",
            )
        found[name] = content[number - 1]
    return found


def read_groups(
    lines: Iterator[Mapping[str, str]], names: Sequence[str], where: str
) -> dict[str, str]:
    """The group of each image, from a table with the columns ``path`` and ``group``.

    Raises:
        DataError: a column is missing, or an image is not in the table.
    """
    table: dict[str, str] = {}
    for row in lines:
        if row.get("path") is None or row.get("group") is None:
            raise DataError(f"`{where}` needs the columns `path` and `group`")
        table[row["path"]] = row["group"]
    if missing := [name for name in names if name not in table]:
        raise DataError(
            f"{len(missing)} of {len(names)} images have no group in `{where}`, such as "
            f"`{missing[0]}`",
            hint="paths are those below the data's folder, as --predictions writes them",
        )
    return {name: table[name] for name in names}
