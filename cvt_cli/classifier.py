"""The Python interface: a model that answers for images, by the same path as ``cvt predict``."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from cvt_cli import loader, streams
from cvt_cli.config import Activation
from cvt_cli.loader import Access, EngineName, ReadyModel
from cvt_cli.progress import silent

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image
    import torch
    from numpy.typing import NDArray

    from cvt_cli.inference import Answer, Prediction, Wishes

    One = str | Path | PIL.Image.Image | NDArray[np.uint8] | torch.Tensor


class Classifier:
    """A CvT that names what is in images.

        from cvt_cli import Classifier

        classify = Classifier("cvt-13")
        classify("photo.jpg")[0].label          # of one image: its predictions, likeliest first
        classify(["a.jpg", "https://…/b.png"])  # of several: a list of those

    An image is a path, an http(s) or fsspec address, a Pillow image, an array (H, W, 3) or (H, W)
    of uint8, or a tensor (3, H, W) of uint8; arrays and tensors with one axis more are several.

    It can be pickled: what is pickled is what it was made with, and the model is loaded again where
    it is first used (Spark and Ray send it to their workers so).

    Args:
        model: as after ``--model``; by default ``cvt-21-384-22k``.
        res: as after ``--res``, likewise what follows.
        activation: of the MLPs, against what the checkpoint says.
        device: "auto", "cuda", "cuda:1", "mps" or "cpu".
        engine: "auto", "torch", "onnxruntime" or "openvino".
        precision: "auto", "fp32", "bf16" or "fp16".
        revision: branch, tag or commit of a hub repository.
        offline: ask no hub.
        top_k: how many classes to name.
        batch_size: images that are computed together.
        exif: turn pictures upright as their EXIF orientation says.
        background: as after ``--background``.

    Raises:
        CvtError: one of its children, as the command explains it; messages are on stderr.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        res: int | str | None = None,
        activation: Activation | None = None,
        device: str = "auto",
        engine: EngineName = "auto",
        precision: str = "auto",
        revision: str | None = None,
        offline: bool = False,
        top_k: int = 5,
        batch_size: int = 16,
        exif: bool = True,
        background: str | None = None,
    ) -> None:
        self._made_with: dict[str, Any] = {
            "text": None if model is None else str(model),
            "res": None if res is None else str(res),
            "activation": activation,
            "device": device,
            "engine": engine,
            "precision": precision,
        }
        self._access = (revision, offline)
        self._top_k, self._batch_size, self._exif = top_k, batch_size, exif
        self._background = background
        self._ready: ReadyModel | None = self._load()

    def _load(self) -> ReadyModel:
        revision, offline = self._access
        access = Access(streams.say, silent, revision, offline)
        return loader.load_classifier(**self._made_with, access=access)

    @property
    def model(self) -> ReadyModel:
        """What answers: name, revision, engine, class names, preprocessing."""
        if self._ready is None:
            self._ready = self._load()
        return self._ready

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ready": None}

    @overload
    def __call__(self, images: "One") -> "list[Prediction]": ...  # type: ignore[overload-overlap]

    @overload
    def __call__(self, images: "Iterable[One]") -> "list[list[Prediction]]": ...

    def __call__(self, images: Any) -> Any:
        """The likeliest classes of one image, or a list of those of several, in order.

        Raises:
            ImageError: an image cannot be read; `answers` goes on past it.
        """
        found = [list(answer.predictions) for answer in self._readable(images, features=False)]
        return found if _several(images) else found[0]

    def features(self, images: "One | Iterable[One]") -> "NDArray[np.float32]":
        """What the head reads, the class token after the last LayerNorm: (C,); of several (n, C).

        Raises:
            ImageError: an image cannot be read.
        """
        import numpy as np

        found = [answer.features for answer in self._readable(images, features=True)]
        return np.stack(found) if _several(images) else found[0]  # type: ignore[arg-type,return-value]

    def answers(self, images: "Iterable[One]") -> "Iterator[Answer]":
        """An answer for each image as soon as it is known, with an ``error`` if it is unreadable.

        Memory does not grow with the number of images.
        """
        return self._classify(images, self._wishes())

    def _wishes(self, features: bool = False) -> "Wishes":
        from cvt_cli.images import colour
        from cvt_cli.inference import Wishes

        background = colour(self._background) if self._background else None
        return Wishes(self._top_k, exif=self._exif, features=features, background=background)

    def _readable(self, images: Any, features: bool) -> "Iterator[Answer]":
        from cvt_cli.errors import ImageError

        given = images if _several(images) else [images]
        for answer in self._classify(given, self._wishes(features)):
            if answer.error is not None:
                raise ImageError(f"`{answer.path}`: {answer.error}")
            yield answer

    def _classify(self, images: "Iterable[One]", wishes: "Wishes") -> "Iterator[Answer]":
        from cvt_cli import inference

        model = self.model
        return inference.classify(
            model.engine,
            (_source(image, number) for number, image in enumerate(images)),
            model.preprocessing,
            model.labels,
            wishes,
            batch_size=self._batch_size,
        )


def _several(images: Any) -> bool:
    if hasattr(images, "ndim"):
        return bool(images.ndim == 4)
    return not (isinstance(images, str | Path) or hasattr(images, "getexif"))


@dataclass(frozen=True)
class _Given:
    """An image that is in memory already."""

    name: str
    image: Any

    def load(
        self,
        exif: bool,
        at_least: tuple[int, int] | None = None,
        background: tuple[int, int, int] | None = None,
    ) -> "PIL.Image.Image":
        """To RGB, as a file's would be."""
        from cvt_cli import images

        return images.from_memory(self.image, exif, background)


def _source(image: Any, number: int) -> Any:
    from cvt_cli import sources

    if isinstance(image, str | Path):
        return sources.source(str(image))
    return _Given(f"image {number}", image)
