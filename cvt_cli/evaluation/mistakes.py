"""The surest wrong answers, as a report shows them, and maps of why they were given."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from cvt_cli.base.errors import ImageError, UsageError
from cvt_cli.checkpoints.locate import Access
from cvt_cli.datasets.labelled import LabelledImages
from cvt_cli.engines.ready import ReadyModel
from cvt_cli.evaluation.run_models import Subject
from cvt_cli.prediction import classify, pages, shareable
from cvt_cli.spec.formats import format_of

if TYPE_CHECKING:
    from cvt_cli.evaluation.request import Asked  # which imports the report


@dataclass(frozen=True)
class Mistake:
    """A wrong answer."""

    path: str  # below the data's root
    label: str  # the true class
    predicted: str
    score: float  # probability of the predicted class, 0 … 1
    thumbnail: bytes | None  # JPEG; None where the image can be read no more
    link: str | None = None  # from the page to the image's own file
    overlay: bytes | None = None  # JPEG: the image under the map of why

    @property
    def said(self) -> str:
        """What the model said, in words."""
        return f"predicted {self.predicted} ({100 * self.score:.0f} %), labelled {self.label}"

    @property
    def is_small(self) -> bool:
        """Whether the picture has so few pixels that they are better shown as squares."""
        picture = self.thumbnail
        return picture is not None and max(pages.jpeg_size(picture)) <= pages.SMALL_PIXELS


def _again(one: Subject, data: LabelledImages, exif: bool) -> Iterator[Image.Image | None]:
    """The images of the mistakes; None for one that cannot be read a second time, as on a server
    that gives it no more: that costs its picture and not the page."""
    wanted = {mistake[1] for mistake in one.result.mistakes}
    where = {name: index for index, name in enumerate(data.names) if name in wanted}
    for _, name, _, _ in one.result.mistakes:
        try:
            yield data.load(where[name], exif)
        except ImageError:
            yield None


def gather(
    folder: Path,
    one: Subject,
    data: LabelledImages,
    exif: bool,
    overlays: Mapping[str, bytes],
) -> list[Mistake]:
    """The surest mistakes of a model that was evaluated, the surest first.

    Args:
        folder: of the page that links to the images.
        one: the model, with what was counted.
        data: the images.
        exif: whether they were turned upright.
        overlays: of `explain`, by image name; empty where none were asked for.
    """
    names = one.labels.names
    return [
        Mistake(
            # A table's path may begin at the disk's root, which is nobody's who gets the page.
            shareable.shown(name) if os.path.isabs(name) or "://" in name else name,
            names[right],
            names[answered],
            score,
            None if image is None else classify.thumbnail(image),
            shareable.link(str(data.root / name), folder),
            overlays.get(name),
        )
        for (score, name, right, answered), image in zip(
            one.result.mistakes, _again(one, data, exif), strict=True
        )
    ]


def check(names: Sequence[str], report: Path | None) -> None:
    """Raises UsageError where the mistakes of models cannot be explained, or are not shown."""
    if report is None:
        raise UsageError("--explain: it needs --report, whose mistakes it explains")
    for name in names:
        if format_of(Path(name)):
            raise UsageError(
                f"--explain: `{name}` is an exported graph, which cannot be explained",
                hint="give the checkpoint that it was exported from",
            )


def explain(
    ready: ReadyModel, one: Subject, data: LabelledImages, settings: "Asked", access: Access
) -> dict[str, bytes]:
    """Why the wrong class and not the labelled one: an overlay of each mistake, by image name.

    The weights are run by torch in fp32, whatever engine and precision gave the answers. The method
    is the default of ``cvt explain``: others are faster, but their maps are less true by its scores
    (docs/commands/explain.md), and a mistake is looked at for its reason.

    Returns:
        JPEG files.
    """
    from cvt_cli.explanation import drawing, explainer
    from cvt_cli.explanation.explain import drawn
    from cvt_cli.explanation.geometry import View
    from cvt_cli.explanation.methods import DEFAULT
    from cvt_cli.explanation.target import Target
    from cvt_cli.images import transform
    from cvt_cli.spec.config import Size

    wrong = one.result.mistakes
    found: dict[str, bytes] = {}
    if not wrong:
        return found
    _, engine = explainer.load(
        ready.checkpoint, settings.res, settings.activation, settings.device, access
    )
    with access.progress("explaining", len(wrong)) as advance:
        images = _again(one, data, settings.exif)
        for (_, name, right, answered), image in zip(wrong, images, strict=True):
            advance(1, "")
            if image is None:
                continue
            picture = transform.preprocess(image, ready.preprocessing)
            ((map_,),) = engine.maps(picture, [Target(answered, right)], (DEFAULT,), None)
            photo = drawn(image)
            view = View.of(ready.preprocessing, image.height, image.width)
            laid = view.lay(map_.values, map_.grid, Size(photo.height, photo.width))
            shown = drawing.scaled(laid, map_.signed)
            found[name] = drawing.jpeg(drawing.overlaid(photo, shown, map_.signed))
    return found
