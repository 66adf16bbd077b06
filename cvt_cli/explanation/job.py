"""Images that inputs name, explained, and the files that this goes to."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cvt_cli.base import files
from cvt_cli.base.errors import UsageError
from cvt_cli.engines.ready import ReadyModel
from cvt_cli.explanation.explain import Asked, Explanation, explain
from cvt_cli.explanation.explainer import TracedEngine
from cvt_cli.explanation.faithfulness import Means
from cvt_cli.explanation.outputs import Numbers, Pictures, is_picture
from cvt_cli.explanation.page import Page
from cvt_cli.images import sources
from cvt_cli.images.finding import Passed
from cvt_cli.prediction.predict import no_images
from cvt_cli.prediction.whole_files import WholeFile


@dataclass(frozen=True)
class Files:
    """Where explanations go."""

    pictures: Path | None = None  # a folder, or a .png
    html: Path | None = None
    npz: Path | None = None
    overwrite: bool = False

    def check(self, inputs: Sequence[str]) -> None:
        """Raises UsageError or CvtError for what cannot be, before anything is loaded."""
        for path, suffixes in ((self.html, (".html", ".htm")), (self.npz, (".npz",))):
            if path is not None and path.suffix.lower() not in suffixes:
                raise UsageError(
                    f"`{path}` is not a file name for --{suffixes[0][1:]}; accepted are names "
                    f"that end in `{suffixes[0]}`"
                )
        if self.pictures is not None and not is_picture(self.pictures):
            is_file = bool(self.pictures.suffix) or self.pictures.exists()
            if is_file and not self.pictures.is_dir():
                raise UsageError(
                    f"--output `{self.pictures}` is neither a folder nor a picture; accepted are a "
                    "folder, and a name that ends in `.png` for one image",
                    hint="--html FILE and --npz FILE write a page and the numbers",
                )
        written = [path for path in (self.pictures, self.html, self.npz) if path is not None]
        files.refuse_overwriting(written, [one.removeprefix("@") for one in inputs])
        files.refuse_replacing(written, self.overwrite)
        if (place := self.pictures) is not None:
            files.refuse_unwritable_place(place if is_picture(place) else place / "1.png")

    def is_spared(self, name: str) -> bool:
        """True of every image; raises UsageError for one that a picture could replace."""
        place, name = self.pictures, name.removeprefix("file://")
        if place is None or not is_picture(Path(name)):
            return True
        if is_picture(place):
            files.refuse_overwriting([place], [name])
            return True
        folder = os.path.dirname(name) or "."
        if place.is_dir() and os.path.isdir(folder) and os.path.samefile(place, folder):
            raise UsageError(
                f"`{name}` is an input, and a picture in `{place}` could replace it",
                hint="give --output a folder of its own",
            )
        return True


class Explanations:
    """The explanations, each of which is in its files when it is given; gone through once.

    Attributes:
        ready: the model.
        total: how many images there are; None where only reading tells.
        answered: those that were explained so far, or could not be read.
        failed: those of them that could not be read.
        means: of their scores.
    """

    def __init__(
        self,
        ready: ReadyModel,
        engine: TracedEngine,
        asked: Asked,
        listing: sources.Listing,
        pictures: Pictures | None,
    ) -> None:
        self.ready, self.total = ready, listing.total
        self.answered = self.failed = 0
        self.means = Means()
        self._asked, self._listing = asked, listing
        self._found = explain(ready, engine, listing, asked)
        self._pictures = pictures
        self._writers: list[WholeFile] = []

    @cached_property
    def conditions(self) -> dict[str, Any]:
        """What the explanations depend on, as the documented JSON keys."""
        return {**self.ready.conditions(), **self._asked.how_read}

    @property
    def passed(self) -> Passed:
        """What was passed over in folders and archives, once all were given."""
        return self._listing.passed

    def open_files(self, stack: ExitStack, wanted: Files) -> None:
        """Open the files that appear whole when the stack ends without an error."""
        if wanted.html is not None:
            self._writers.append(stack.enter_context(Page(wanted.html, self.conditions)))
        if wanted.npz is not None:
            self._writers.append(stack.enter_context(Numbers(wanted.npz, self.conditions)))

    def __iter__(self) -> Iterator[tuple[Explanation, Path | None]]:
        """Each with its picture's file."""
        for one in self._found:
            self.answered += 1
            self.failed += one.error is not None
            for each in one.explained:
                if each.scores:
                    self.means.add(each.scores)
            for writer in self._writers:
                writer.write(one)
            yield one, None if self._pictures is None else self._pictures.write(one)


@contextmanager
def explained(
    inputs: Sequence[str],
    asked: Asked,
    wanted: Files,
    load: Callable[[], tuple[ReadyModel, TracedEngine]],
) -> Iterator[Explanations]:
    """The explanations of the images that inputs name; files appear when the context ends well.

    Args:
        inputs: what `sources.sources` takes.
        asked: what is asked of every image.
        wanted: the files.
        load: loads the model, once the inputs were listed.

    Raises:
        UsageError: there is no such class, stage or file.
        CvtError: there are no images, or a file cannot be written.
    """
    wanted.check(inputs)
    _ = asked.colour  # which may be none
    listing = sources.Listing(inputs, wanted.is_spared)
    if listing.is_empty:
        raise no_images(listing)
    if wanted.pictures is not None and is_picture(wanted.pictures) and listing.total != 1:
        there = "there are several" if listing.total else "only reading tells how many there are"
        raise UsageError(
            f"--output `{wanted.pictures}` is a picture of one image, but {there}",
            hint="name a folder, or a page with --html",
        )
    with ExitStack() as stack:
        place = wanted.pictures
        pictures = None if place is None else Pictures(place, wanted.overwrite)
        found = Explanations(*load(), asked, listing, pictures)
        found.open_files(stack, wanted)
        yield found
