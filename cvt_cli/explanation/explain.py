"""What inputs name, explained one by one: what ``cvt explain`` does, below the command."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cvt_cli.base import machine
from cvt_cli.base.ahead import ahead
from cvt_cli.base.errors import ImageError
from cvt_cli.engines.protocol import logits_of
from cvt_cli.engines.ready import ReadyModel
from cvt_cli.explanation import drawing, methods
from cvt_cli.explanation.explainer import TracedEngine
from cvt_cli.explanation.faithfulness import Scores
from cvt_cli.explanation.geometry import View
from cvt_cli.explanation.methods import Map, Name
from cvt_cli.explanation.target import Target, index_of, pair_of
from cvt_cli.images import transform
from cvt_cli.images.decode import Colour, colour
from cvt_cli.prediction.answers import Prediction
from cvt_cli.prediction.classify import Loadable, sigmoid
from cvt_cli.spec.config import Size
from cvt_cli.spec.labels import Labels

SHOWN_PIXELS = 320
"""Longer side of a photograph where it is drawn, in pixels; a smaller one is enlarged."""

_WAITING = 4
"""Decoded pictures that wait for the network."""


@dataclass(frozen=True)
class Asked:
    """What is asked of every image."""

    methods: tuple[Name, ...] = (methods.DEFAULT,)
    targets: tuple[str | int, ...] = ()  # names, WNIDs or indices; by default the likeliest classes
    against: str | None = None  # "A,B": why A and not B
    top_k: int = 1  # of the likeliest classes
    stage: int | None = None
    score: bool = False
    exif: bool = True
    background: str | None = None  # a colour that shows where a picture is transparent
    workers: int | None = None

    @property
    def colour(self) -> Colour | None:
        """The background's; raises UsageError for what is none."""
        return None if self.background is None else colour(self.background)

    @property
    def how_read(self) -> dict[str, Any]:
        """The conditions that say how pictures were read, as the documented JSON keys."""
        found = {"exif": self.exif, "background": self.background}
        return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True)
class Explained:
    """A class of an image, and where what speaks for it lies."""

    prediction: Prediction
    against: Prediction | None
    maps: tuple[Map, ...]
    scores: dict[str, Scores] = field(default_factory=dict)  # by method, and of the baselines

    def title_of(self, one: Map) -> str:
        """What a map explains, in words."""
        return self.title if methods.METHODS[one.method].by_class else "whatever the class"

    @property
    def title(self) -> str:
        """What is explained, in words."""
        said = f"{self.prediction.label} ({100 * self.prediction.score:.1f} %)"
        if self.against is None:
            return said
        return f"{said} and not {self.against.label} ({100 * self.against.score:.1f} %)"


@dataclass(frozen=True)
class Explanation:
    """Why a model says what it says of one image; draws itself in a notebook."""

    path: str
    error: str | None = None
    size: Size = Size(1, 1)  # of the photograph, turned upright
    view: View | None = None  # None where it could not be read
    photo: Image.Image | None = None  # as it is drawn
    predictions: tuple[Prediction, ...] = ()  # the likeliest classes
    explained: tuple[Explained, ...] = ()

    def laid(self, one: Map, size: Size | None = None) -> NDArray[np.float32]:
        """A map on the photograph, float32 (height, width); NaN where the network does not see it.

        Args:
            one: of this explanation.
            size: to which the photograph is scaled; by default its own.
        """
        assert self.view is not None
        return self.view.lay(one.values, one.grid, size or self.size)

    @property
    def map(self) -> NDArray[np.float32]:
        """The first map, on the photograph."""
        return self.laid(self.explained[0].maps[0])

    def panel(self) -> Image.Image:
        """The photograph, each map, and both over each other."""
        assert self.photo is not None
        size = Size(self.photo.height, self.photo.width)
        rows = [
            (each.title_of(one), described(one), self.laid(one, size), one.signed)
            for each in self.explained
            for one in each.maps
        ]
        return drawing.panel(self.photo, rows)

    def box(self, one: Map) -> list[int] | None:
        """Left, top, right and bottom in the photograph of the strongest half of a map.

        That is the smallest box around the strongest pixels that together have half of what speaks
        for the class; None where nothing does.
        """
        largest = max(self.size)
        scale = min(1.0, SHOWN_PIXELS / largest)
        small = Size(
            max(1, round(self.size.height * scale)), max(1, round(self.size.width * scale))
        )
        values = np.nan_to_num(self.laid(one, small), nan=0.0).clip(min=0).astype(np.float64)
        if not values.any():
            return None
        order = np.argsort(-values, axis=None, kind="stable")
        sums = values.ravel()[order].cumsum()
        strongest = order[: int(np.searchsorted(sums, sums[-1] / 2)) + 1]
        rows, columns = np.unravel_index(strongest, values.shape)
        across, down = self.size.width / small.width, self.size.height / small.height
        return [
            int(columns.min() * across), int(rows.min() * down),
            round((columns.max() + 1) * across), round((rows.max() + 1) * down),
        ]  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """The documented keys, or ``error`` in their place."""
        if self.error is not None:
            return {"path": self.path, "error": self.error}
        assert self.view is not None
        (top, bottom), (left, right) = self.view.rows.seen, self.view.columns.seen
        return {
            "path": self.path,
            "size": [self.size.height, self.size.width],
            "seen": [round(side, 2) for side in (left, top, right, bottom)],
            "not_seen_share": round(self.view.not_seen, 6),
            "predictions": [vars(one) for one in self.predictions],
            "explanations": [
                {
                    "class": vars(each.prediction),
                    "against": each.against and vars(each.against),
                    "method": one.method,
                    "stage": one.stage,
                    "signed": one.signed,
                    "box": self.box(one),
                    "scores": vars(each.scores[one.method]) if each.scores else None,
                }
                for each in self.explained
                for one in each.maps
            ],
        }

    def _repr_html_(self) -> str:
        from cvt_cli.prediction import pages

        if self.error is not None:
            return pages.template("explained.html").render(path=self.path, error=self.error)
        return pages.template("explained.html").render(
            path=self.path,
            error=None,
            picture=drawing.png(self.panel()),
            said=[each.title for each in self.explained],
        )


def described(one: Map) -> str:
    """The method, and what of the network it looked at."""
    return one.method if one.stage is None else f"{one.method}, stage {one.stage}"


class Wanted:
    """What is explained of every image, with classes looked up.

    Raises:
        UsageError: the model has no such class or stage, or a method is not installed.
    """

    def __init__(self, asked: Asked, labels: Labels, stages: int) -> None:
        methods.check(asked.methods, asked.stage, stages)
        self._labels, self._top_k = labels, min(asked.top_k, len(labels))
        self._fixed: list[Target] = [
            Target(index_of(text, labels), several=labels.several) for text in asked.targets
        ]
        if asked.against is not None:
            self._fixed.append(Target(*pair_of(asked.against, labels), labels.several))

    def of(self, logits: NDArray[np.float32]) -> list[Target]:
        """The targets of an image, from its logits (classes,)."""
        likeliest = np.argsort(-logits, kind="stable")[: self._top_k].tolist()
        return self._fixed or [Target(i, several=self._labels.several) for i in likeliest]


def explain(
    ready: ReadyModel, engine: TracedEngine, sources: Iterable[Loadable], asked: Asked
) -> Iterator[Explanation]:
    """An explanation of every image, in order; of one that cannot be read the reason.

    One image is explained at a time, so that memory does not grow with them.

    Raises:
        UsageError: as `Wanted`, before the first image is read.
    """
    wanted = Wanted(asked, ready.labels, len(ready.described.config.stages))
    return _explanations(ready, engine, sources, asked, wanted)


@dataclass(frozen=True)
class _Prepared:
    picture: NDArray[np.float32]
    photo: Image.Image  # as it is drawn
    size: Size


def _explanations(
    ready: ReadyModel,
    engine: TracedEngine,
    sources: Iterable[Loadable],
    asked: Asked,
    wanted: Wanted,
) -> Iterator[Explanation]:
    background = asked.colour

    def prepare(source: Loadable) -> _Prepared | str:
        try:
            image = source.load(asked.exif, None, background)
            picture = transform.preprocess(image, ready.preprocessing)
        except ImageError as error:
            return str(error)
        return _Prepared(picture, drawn(image), Size(image.height, image.width))

    workers = asked.workers or machine.threads()
    for number, (source, one) in enumerate(ahead(prepare, sources, workers, _WAITING)):
        if isinstance(one, str):
            yield Explanation(source.name, one)
            continue
        logits = logits_of(engine, [one.picture])[0]
        targets = wanted.of(logits)
        told = predictions(logits, ready.labels)
        found = engine.maps(one.picture, targets, asked.methods, asked.stage)
        explained = []
        for target, maps in zip(targets, found, strict=True):
            scores = {}
            if asked.score:
                scores = engine.scores(one.picture, maps, target, number)
            against = None if target.against is None else told(target.against)
            explained.append(Explained(told(target.index), against, tuple(maps), scores))
        likeliest = np.argsort(-logits, kind="stable")[:5].tolist()
        yield Explanation(
            source.name,
            None,
            one.size,
            View.of(ready.preprocessing, *one.size),
            one.photo,
            tuple(map(told, likeliest)),
            tuple(explained),
        )


def predictions(logits: NDArray[np.float32], labels: Labels) -> Callable[[int], Prediction]:
    """From a class's index to what is said of it, with the probabilities of ``cvt predict``."""
    wide = logits.astype(np.float64)
    if labels.several:
        scores = sigmoid(wide)
    else:
        exponentials = np.exp(wide - wide.max())
        scores = exponentials / exponentials.sum()
    return lambda i: Prediction(int(i), labels.wnid(i), labels.names[i], float(scores[i]))


def drawn(image: Image.Image) -> Image.Image:
    """A photograph at the size at which it is drawn."""
    scale = SHOWN_PIXELS / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    blocky = scale >= 2
    return image.resize(size, Image.Resampling.NEAREST if blocky else Image.Resampling.LANCZOS)
