"""The Python interface: a model that answers for images, by the same path as ``cvt predict``."""

import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, overload

from cvt_cli import loading
from cvt_cli.base import streams
from cvt_cli.base.conditions import Conditions
from cvt_cli.base.errors import (
    CheckpointError,
    CvtError,
    ImageError,
    UsageError,
    refuse_no_number,
    refuse_other_kind,
    refuse_other_kinds,
)
from cvt_cli.base.progress import silent
from cvt_cli.checkpoints import locate
from cvt_cli.checkpoints.locate import Access
from cvt_cli.spec import published
from cvt_cli.spec.config import Activation, Size
from cvt_cli.spec.formats import EngineChoice
from cvt_cli.spec.preprocessing import Resize

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image
    import torch
    from numpy.typing import NDArray

    from cvt_cli.checkpoints.checkpoint import Checkpoint
    from cvt_cli.engines.ready import ReadyModel
    from cvt_cli.explanation.explain import Explanation
    from cvt_cli.explanation.explainer import TracedEngine
    from cvt_cli.explanation.methods import Name
    from cvt_cli.prediction.answers import Answer, Prediction
    from cvt_cli.prediction.classify import Wishes

    One = (
        str | os.PathLike[str] | bytes | IO[bytes] | PIL.Image.Image | NDArray[np.generic]
        | torch.Tensor
    )  # fmt: skip

IMAGE_COLUMNS = ("image", "bytes", "path", "item")
"""Of a table, the columns that can hold its images: the first that is there does."""


class Classifier:
    """A CvT that names what is in images.

        from cvt_cli import Classifier

        classify = Classifier("cvt-13")
        classify("photo.jpg")[0].label          # of one image: its predictions, likeliest first
        classify(["a.jpg", "https://…/b.png"])  # of several: a list of those

    An image is a path, an http(s) or fsspec address, the bytes of a file or an open one, a Pillow
    image, an array (H, W, 3) or (H, W), or a tensor (3, H, W), of integers 0 … 255 or floats 0 … 1,
    in the order red, green, blue; arrays and tensors with one axis more are several.

    A table with a column ``image``, ``bytes``, ``path`` or ``item`` (a dict of arrays, as Ray Data
    makes batches, a dict of one row, or a DataFrame) is given back with columns for the answers:
    ``error``, ``label_1``, ``score_1``, ``index_1``, ``wnid_1``, ``label_2``, ….

    It can be pickled: what is pickled is what it was made with, and the model is loaded again where
    it is first used; one with other weights or classes is refused there.

    Args:
        model: as after ``--model``; by default ``cvt-21-384-22k``.
        res: input size, as after ``--res``: 384 or "384x512".
        resize: how images come to that size, against what the checkpoint says: "crop", "squash" or
            "pad".
        activation: of the MLPs, against what the checkpoint says.
        device: "auto", "cuda", "cuda:1", "mps" or "cpu".
        engine: "auto", "torch", "onnxruntime" or "openvino".
        precision: "auto", "fp32", "bf16" or "fp16".
        revision: branch, tag or commit of a hub repository.
        offline: ask no hub.
        top_k: how many classes to name; by default 5, or where an image may have several classes,
            all at or above their thresholds.
        batch_size: images that are computed together.
        exif: turn pictures upright as their EXIF orientation says.
        background: as after ``--background``.

    Raises:
        CvtError: one of its children, as the command explains it; messages are on stderr.
    """

    _origin: "_Origin | None" = None  # of one that was pickled

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        res: int | str | None = None,
        resize: Resize | None = None,
        activation: Activation | None = None,
        device: str = "auto",
        engine: EngineChoice = "auto",
        precision: str = "auto",
        revision: str | None = None,
        offline: bool = False,
        top_k: int | None = None,
        batch_size: int = 16,
        exif: bool = True,
        background: str | None = None,
    ) -> None:
        for name, number in (("top_k", top_k), ("batch_size", batch_size)):
            if number is None:
                continue
            refuse_no_number(name, number)
            if number < 1:
                raise UsageError(f"{name} is {number}; it must be at least 1")
        refuse_other_kind("exif", exif, bool)
        if background is not None:
            from cvt_cli.images.decode import colour

            colour(background)  # else each image would tell of it
        self._made_with: dict[str, Any] = {
            "text": None if model is None else str(model),
            "res": None if res is None else str(res),
            "resize": resize,
            "activation": activation,
            "device": device,
            "engine": engine,
            "precision": precision,
        }
        self._access = (revision, offline)
        self._top_k, self._batch_size, self._exif = top_k, batch_size, exif
        self._background = background
        self._ready: ReadyModel | None = self._load()
        self._explainer: tuple[ReadyModel, TracedEngine] | None = None

    def _load(self) -> "ReadyModel":
        revision, offline = self._access
        access = Access(streams.say, silent, revision, offline)
        refuse_other_kinds(access)
        told = dict(self._made_with)
        if self._origin is not None:
            told["text"] = self._origin.found(told["text"], access)
        ready = loading.load_classifier(**told, access=access, together=self._batch_size)
        if self._origin is not None:
            self._origin.refuse_other(ready)
        return replace(ready, checkpoint=ready.checkpoint.absolute())

    @property
    def model(self) -> "ReadyModel":
        """What answers: name, revision, engine, class names, preprocessing."""
        if self._ready is None:
            self._ready = self._load()
        return self._ready

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, by index."""
        return self.model.labels.names

    def __repr__(self) -> str:
        if self._ready is None:
            name = self._made_with["text"] or published.DEFAULT_MODEL
            return f"<Classifier {name}, to be loaded where it is first used>"
        model, engine = self._ready, self._ready.engine
        size = f"{model.preprocessing.height}x{model.preprocessing.width}"
        return (
            f"<Classifier {model.model}: {len(model.labels)} classes, {size}; "
            f"{engine.device}, {engine.name}, {engine.precision}>"
        )

    def __getstate__(self) -> dict[str, Any]:
        origin = self._origin if self._ready is None else _Origin.of(self._ready)
        return {**self.__dict__, "_ready": None, "_explainer": None, "_origin": origin}

    @overload
    def __call__(self, images: Mapping[str, Any]) -> dict[str, Any]: ...  # type: ignore[overload-overlap]

    @overload
    def __call__(self, images: "One") -> "list[Prediction]": ...  # type: ignore[overload-overlap]

    @overload
    def __call__(self, images: "Iterable[One]") -> "list[list[Prediction]]": ...

    def __call__(self, images: Any) -> Any:
        """The likeliest classes of one image, or a list of those of several, in order.

        A table is given back with the answers beside its images, an ``error`` where one cannot be
        read.

        Raises:
            ImageError: an image, not in a table, cannot be read; `answers` goes on past it.
            UsageError: a table has no column of images.
        """
        if isinstance(images, Mapping) or _is_frame(images):
            return self._answered(images)
        from cvt_cli.prediction.answers import Predictions

        found = [Predictions(answer.predictions) for answer in self._readable(images)]
        return found if _several(images) else found[0]

    def features(self, images: "One | Iterable[One]") -> "NDArray[np.float32]":
        """What the head reads, the class token after the last LayerNorm: (C,); of several (n, C).

        Raises:
            ImageError: an image cannot be read.
            UsageError: it is a table.
        """
        import numpy as np

        found = [answer.features for answer in self._readable(images, features=True)]
        if not found:
            blank = self.features(np.zeros((8, 8, 3), np.uint8))
            return np.empty((0, *blank.shape), blank.dtype)
        return np.stack(found) if _several(images) else found[0]  # type: ignore[arg-type,return-value]

    def explain(
        self,
        images: "One | Iterable[One]",
        *,
        method: "Name | Sequence[Name] | None" = None,
        target: str | int | None = None,
        against: str | None = None,
        stage: int | None = None,
        top_k: int | None = None,
        score: bool = False,
    ) -> "Explanation | list[Explanation]":
        """Why it says what it says of an image, or of several; each draws itself in a notebook.

        ``.map`` is the first map on the photograph, float32 (height, width), ``.panel()`` a Pillow
        image of all. Arguments are the options of ``cvt explain``; a ``target`` that is a number
        and no text is the class's index. The network is loaded once.

        Raises:
            ImageError: an image cannot be read.
            UsageError: there is no such class, stage or method, one has no effect, or the model is
                a graph.
        """
        from cvt_cli.explanation import from_python

        if self._explainer is None:
            checkpoint = self.model.checkpoint
            self._explainer = from_python.load(checkpoint, self._made_with, *self._access)
        asked = from_python.asked(
            method, target, against, stage, top_k, score, self._exif, self._background
        )
        found = from_python.explained(self._explainer, _sources(_listed(images)), asked)
        return found if _several(images) else found[0]

    def answers(self, images: "One | Iterable[One]") -> "Iterator[Answer]":
        """An answer for each image as soon as it is known, with an ``error`` if it is unreadable.

        Memory does not grow with the number of images, of which some batches are read ahead.

        Raises:
            UsageError: it is a table.
        """
        return self._classify(_listed(images), self._wishes())

    def _wishes(self, features: bool = False) -> "Wishes":
        from cvt_cli.images.decode import colour
        from cvt_cli.prediction.classify import Wishes
        from cvt_cli.prediction.predict import TOP_K

        top_k = self._top_k if self.model.labels.several else self._top_k or TOP_K
        background = None if self._background is None else colour(self._background)
        return Wishes(top_k, exif=self._exif, features=features, background=background)

    def _readable(self, images: Any, features: bool = False) -> "Iterator[Answer]":
        for answer in self._classify(_listed(images), self._wishes(features)):
            if answer.error is not None:
                raise ImageError(f"`{answer.path}`: {answer.error}")
            yield answer

    def _answered(self, table: Any) -> Any:
        """A dict of arrays or of one row, or a DataFrame, with columns for the answers."""
        from cvt_cli.prediction.answers import Answer, flat_row
        from cvt_cli.prediction.predict import TOP_K

        columns = [name for name in IMAGE_COLUMNS if name in table]
        if not columns:
            raise UsageError(
                f"a table of images needs a column {' or '.join(f'`{c}`' for c in IMAGE_COLUMNS)}; "
                f"this has {', '.join(f'`{name}`' for name in table)}"
            )
        images = table[columns[0]]
        if _is_frame(images):
            raise UsageError(
                f"this table has several columns called `{columns[0]}`; only one is accepted"
            )
        is_row = isinstance(table, Mapping) and not _is_column(images)
        top_k, several = min(self._top_k or TOP_K, len(self.classes)), self.model.labels.several

        def columns_of(answer: "Answer") -> dict[str, Any]:
            row = flat_row(answer, top_k, threshold=False, several=several)
            del row["path"]
            return row

        names = columns_of(Answer(""))
        if own := [f"`{name}`" for name in names if name in table]:
            raise UsageError(
                f"this table has {' and '.join(own)} of its own, which the answers would replace",
                hint="rename them first, or pass the column of images alone",
            )
        answers = self._classify([images] if is_row else images, self._wishes())
        rows = [columns_of(answer) for answer in answers]
        if is_row:
            return {**table, **rows[0]}
        found = {name: _column(name, [row[name] for row in rows]) for name in names}
        if not _is_frame(table):
            return {**table, **found}
        # pandas has whole numbers that may be absent.
        whole = {name: "Int64" for name in names if name.startswith("index_")}
        return table.assign(**found).astype(whole)

    def _classify(self, images: "Iterable[One]", wishes: "Wishes") -> "Iterator[Answer]":
        from cvt_cli.prediction import classify

        model = self.model
        return classify.classify(
            model.engine,
            _sources(images),
            model.preprocessing,
            model.labels,
            wishes,
            batch_size=self._batch_size,
        )


@dataclass(frozen=True)
class _Origin:
    """By what a classifier answered that was pickled: its copies shall answer by the same."""

    name: str
    place: str | None  # of a file or folder, whatever the working folder is
    conditions: dict[str, str]

    @classmethod
    def of(cls, ready: "ReadyModel") -> "_Origin":
        """Raises CheckpointError if its files have changed since it was loaded, or are gone."""
        checkpoint = ready.checkpoint
        is_named_by_path = checkpoint.kind in ("folder", "graph", "file")
        return cls(
            checkpoint.name,
            str(checkpoint.path) if is_named_by_path else None,
            _of_the_model(ready),
        )

    def found(self, text: str | None, access: Access) -> "str | Checkpoint | None":
        """What to load where this is unpickled.

        Raises:
            CheckpointError: on this machine there is nothing at the place.
        """
        if self.place is None:
            return text
        return replace(locate.locate(self.place, access), name=self.name)

    def refuse_other(self, ready: "ReadyModel") -> None:
        """Raises CheckpointError if a model is not the one that was pickled."""
        if differences := Conditions(_of_the_model(ready)).differences(self.conditions):
            raise CheckpointError(
                f"`{self.place or self.name}` is not what it was when this Classifier was pickled, "
                f"with {'; '.join(differences)}",
                hint="pickle a Classifier of what is there now, or bring back what was there",
            )


def _of_the_model(ready: "ReadyModel") -> dict[str, str]:
    return {"weights_sha256": ready.weights_sha256, "classes_sha256": ready.classes_sha256}


def _listed(images: Any) -> Any:
    """Images, of which there may be one; of a table its columns would pass for them."""
    if isinstance(images, Mapping) or _is_frame(images):
        raise UsageError("this is a table; pass its column of images")
    return images if _several(images) else [images]


def _several(images: Any) -> bool:
    if hasattr(images, "ndim") and hasattr(images, "dtype"):  # which a memoryview has not
        return bool(images.ndim == 4) or _holds_objects(images)
    return not (
        isinstance(images, str | bytes | bytearray | memoryview | os.PathLike | Mapping)
        or hasattr(images, "getexif")
        or hasattr(images, "read")
        or not hasattr(images, "__iter__")
    )


def _holds_objects(array: Any) -> bool:
    """Whether a column holds texts, bytes or arrays, one for each image, or none at all."""
    kind = getattr(array.dtype, "kind", "")  # NumPy makes floats of an empty list
    return bool(array.ndim == 1 and (kind in tuple("OUST") or not len(array)))


def _is_column(values: Any) -> bool:
    """Whether these are the images of all rows, not the image of one; (H, W, 3) is one image."""
    if getattr(values, "ndim", 0) == 3:
        return values.shape[2] not in (1, 3, 4)
    return _several(values)


def _column(name: str, values: list[Any]) -> "NDArray[Any]":
    """An array of what there is of each image: scores as numbers, NaN where there is none."""
    import numpy as np

    if name.startswith("score_"):
        return np.array([np.nan if value is None else value for value in values], np.float64)
    is_whole = name.startswith("index_") and None not in values
    return np.array(values, np.int64 if is_whole else object)


def _is_frame(table: Any) -> bool:
    return hasattr(table, "columns") and hasattr(table, "assign")


@dataclass(frozen=True)
class _Given:
    """An image that is in memory already."""

    name: str
    image: Any

    def load(
        self,
        exif: bool,
        at_least: Size | None = None,
        background: tuple[int, int, int] | None = None,
    ) -> "PIL.Image.Image":
        """To RGB, as a file's would be."""
        from cvt_cli.images import decode

        return decode.from_memory(self.image, exif, background)


def _sources(images: "Iterable[Any]") -> "Iterator[Any]":
    """Images that have not been read yet. What is no list or column may give the same array or
    Pillow image again and again with other pixels, as videos are gone through."""
    changing = not (isinstance(images, list | tuple) or hasattr(images, "dtype"))
    return (_source(image, number, changing) for number, image in enumerate(images))


def _source(image: Any, number: int, changing: bool) -> Any:
    """An image that has not been read yet; an open file is read at once."""
    from cvt_cli.base.text import without_password
    from cvt_cli.images import decode, sources

    name = f"image {number}"
    called = None
    if isinstance(image, Mapping) and {"bytes", "path"} >= image.keys():  # as `datasets` has it
        called, content = image.get("path"), image.get("bytes")
        image = called if content is None else content
    try:
        if isinstance(image, str | os.PathLike):
            image = os.fsdecode(image)
            name = without_password(image)
            if not name:
                return _Unreadable(f"image {number}", "the path is empty")
            return sources.source(image)
        if hasattr(image, "read") and not hasattr(image, "getexif"):
            known = getattr(image, "name", None)
            if known and isinstance(known, str | bytes | os.PathLike):  # not the number of a file
                name = os.fsdecode(known)
            try:
                image = image.read()
            except Exception as error:  # each kind of file has its own, as one in an archive
                return _Unreadable(name, str(error) or type(error).__name__)
            if isinstance(image, str):
                return _Unreadable(name, "opened as text; open it with mode 'rb'")
        if isinstance(image, bytes | bytearray | memoryview):
            name = called if isinstance(called, str) and called else name
            return sources.Source(name, partial(io.BytesIO, bytes(image) if changing else image))
        if changing:
            image = decode.as_it_is_now(image)
    except (CvtError, OSError, ValueError) as error:
        return _Unreadable(name, str(error))
    return _Given(name, image)


@dataclass(frozen=True)
class _Unreadable:
    """What cannot even be tried."""

    name: str
    reason: str

    def load(self, *_: Any) -> "PIL.Image.Image":
        raise ImageError(self.reason)
