"""What inputs name, answered one by one: what ``cvt predict`` does, below the command."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from cvt_cli.base import files, machine, torchrun
from cvt_cli.base.conditions import Conditions
from cvt_cli.base.errors import CvtError, UsageError
from cvt_cli.base.progress import Say
from cvt_cli.base.text import counted
from cvt_cli.engines.ready import ReadyModel, deciding
from cvt_cli.images import decode, sources
from cvt_cli.images.finding import Passed
from cvt_cli.prediction import answer_tables, features, gallery
from cvt_cli.prediction.answers import Answer, flat_row
from cvt_cli.prediction.classify import Wishes, classify
from cvt_cli.prediction.resume import Answered, not_answered
from cvt_cli.prediction.whole_files import WholeFile

Load = Callable[[dict[str, Any] | None, int | None], ReadyModel]
"""Loads the model, told the conditions of a file that is gone on with, and how many images there
are, if that is known."""


TOP_K = 5
"""Classes that are told of an image unless another number is asked for."""

KINDS = {
    ".jsonl": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
    ".html": "html",
    ".htm": "html",
    ".npz": "features",
    ".safetensors": "features",
}
"""What a file holds, by its suffix: a field of `Asked`."""


def kind_of(path: Path) -> str:
    """What a file holds, by its suffix.

    Raises:
        UsageError: no such file is written.
    """
    kind = KINDS.get(path.suffix.lower())
    if kind is None:
        raise UsageError(
            f"--output `{path}` does not say what to write; accepted are `.jsonl`, `.json`, "
            "`.csv`, `.parquet`, `.html`, and `.npz` or `.safetensors` for features"
        )
    return kind


@dataclass(frozen=True)
class Asked:
    """What is asked of every image, how it is computed, and the files that the answers go to."""

    top_k: int | None = None  # by default 5; all where an image may have several classes
    threshold: float | None = None  # probability below which the answer is "unknown"
    exif: bool = True  # turn pictures upright
    background: str | None = None  # a colour that shows where a picture is transparent
    fast_decode: bool = False  # read large JPEGs at a part of their size
    batch_size: int = 16
    workers: int | None = None  # threads that decode; by default one for each processor
    resume: Path | None = None  # JSON lines that are appended to
    jsonl: Path | None = None  # the same, begun here
    json: Path | None = None
    csv: Path | None = None
    parquet: Path | None = None
    html: Path | None = None
    features: Path | None = None  # of vectors, in place of classes
    overwrite: bool = False  # replace files that exist

    @property
    def files(self) -> list[Path]:
        """The files that appear when all images are answered."""
        every = (self.json, self.csv, self.parquet, self.html, self.features)
        return [path for path in every if path is not None]

    @property
    def lines(self) -> Path | None:
        """The file that grows with every answer."""
        return self.resume or self.jsonl

    @property
    def how_read(self) -> dict[str, Any]:
        """The conditions that say how pictures were read, as the documented JSON keys."""
        how: dict[str, Any] = {"exif": self.exif, "fast_decode": self.fast_decode}
        return how if self.background is None else {**how, "background": self.background}

    def wishes(self, top_k: int | None) -> Wishes:
        """What is wanted of every image, of so many classes."""
        return Wishes(
            top_k=top_k,
            threshold=self.threshold,
            exif=self.exif,
            fast_decode=self.fast_decode,
            features=self.features is not None,
            thumbnails=self.html is not None,
            background=decode.colour(self.background) if self.background else None,
        )

    def check(self, inputs: Sequence[str]) -> None:
        """Raises UsageError for what cannot be, before anything is listed or loaded."""
        written = [*self.files, *([self.lines] if self.lines is not None else [])]
        files.refuse_overwriting(written, [one.removeprefix("@") for one in inputs])
        files.refuse_replacing(
            (torchrun.own_path(path) for path in written if path != self.resume), self.overwrite
        )
        once = sources.readable_once(inputs)
        if torchrun.count() > 1 and once is not None:
            raise UsageError(
                f"`{once}` can be read only once, but {torchrun.count()} processes "
                "would share its images",
                hint="write the list to a file, and give @list.txt",
            )
        if self.features is not None:
            features.check_suffix(self.features)
        if self.parquet is not None:
            answer_tables.require_parquet()
        self.wishes(self.top_k)  # whose background may be no colour


class Answers:
    """The answers, each of which is in its files when it is given; to be gone through once.

    Attributes:
        ready: the model.
        top_k: classes of each answer: as many as are asked for and the model has.
        total: how many images this process has; None where only reading tells.
        done: those of them that were answered before, by the file that is gone on with.
        answered: those that were tried here so far.
        failed: those of these that could not be read.
    """

    def __init__(
        self, ready: ReadyModel, asked: Asked, listing: sources.Listing, lines: Answered | None
    ) -> None:
        self.ready, self.total = ready, listing.total
        self.top_k: int | None = min(asked.top_k or TOP_K, len(ready.labels))
        if ready.labels.several:
            self.top_k = asked.top_k
        self.done = lines.done if lines else 0
        self.answered = self.failed = 0
        self._asked, self._listing, self._lines = asked, listing, lines
        self._writers: list[WholeFile] = []

    @cached_property
    def conditions(self) -> dict[str, Any]:
        """What the answers depend on, as the documented JSON keys."""
        found = self.ready.conditions()
        if self._asked.threshold is not None and "thresholds" in found:
            found["thresholds"] = [self._asked.threshold] * len(self.ready.labels)
        return {**found, **self._asked.how_read}

    @property
    def passed(self) -> Passed:
        """What was passed over in folders and archives, once all answers were given."""
        return self._listing.passed

    def begin(self, say: Say) -> None:
        """Go on with the file that is there under the conditions that hold now.

        Raises:
            UsageError: it was begun under others.
        """
        if self._lines is None:
            return
        kept = {**deciding(self.conditions), **self._asked.how_read}
        wanted = {**kept, "top_k": self.top_k, "threshold": self._asked.threshold}
        self._lines.begin(Conditions(wanted))
        if self.done:
            say(f"{counted(self.done, 'image')} already in `{self._lines.path}`")
            if remote := self._lines.remote:
                say(
                    f"{remote} of them behind addresses: not asked whether what is there has "
                    "changed; remove their lines to answer them anew"
                )
        if failed := self._lines.failed:
            say(
                f"{counted(failed, 'image')} could not be read when `{self._lines.path}` was "
                "written: those named here are tried again"
            )

    def open_files(self, stack: ExitStack) -> None:
        """Open the files that appear whole when the stack ends without an error."""
        asked = self._asked
        if asked.json is not None:
            path = torchrun.own_path(asked.json)
            self._writers.append(stack.enter_context(answer_tables.Json(path, self.conditions)))
        if asked.csv is not None:
            rows = answer_tables.Csv(torchrun.own_path(asked.csv), self.row, Answer(""))
            self._writers.append(stack.enter_context(rows))
        if asked.parquet is not None:
            path = torchrun.own_path(asked.parquet)
            table = answer_tables.Parquet(path, self.conditions, self.row, Answer(""))
            self._writers.append(stack.enter_context(table))
        if asked.html is not None:
            path = torchrun.own_path(asked.html)
            page = gallery.Page(path, self.conditions)
            self._writers.append(stack.enter_context(page))
        if asked.features is not None:
            vectors = features.Features(torchrun.own_path(asked.features), self.conditions)
            self._writers.append(stack.enter_context(vectors))

    @cached_property
    def row(self) -> Callable[[Answer], dict[str, Any]]:
        """An answer's columns, the same for every answer."""
        return partial(
            flat_row,
            top_k=self.top_k or 0,
            threshold=self._asked.threshold is not None,
            several=self.ready.labels.several,
        )

    def __iter__(self) -> Iterator[Answer]:
        wanted = iter(self._listing)
        hashes: deque[list[str]] = deque()  # of the images that are wanted and not answered yet
        workers = self._asked.workers
        if self._lines is not None:
            wanted = not_answered(self._lines, wanted, workers or machine.threads(), hashes)
        for answer in classify(
            self.ready.engine,
            wanted,
            self.ready.preprocessing,
            self.ready.labels,
            self._asked.wishes(self.top_k),
            batch_size=self._asked.batch_size,
            workers=workers,
        ):
            self.answered += 1
            self.failed += answer.error is not None
            if self._lines is not None:
                told = hashes.popleft()
                self._lines.write(answer, told[0] if told else None)
            for writer in self._writers:
                writer.write(answer)
            yield answer


@contextmanager
def predict(inputs: Sequence[str], asked: Asked, load: Load, say: Say) -> Iterator[Answers]:
    """The answers to the images that inputs name; files appear when the context ends well.

    Under torchrun the processes share the images, and each writes files of its own.

    Args:
        inputs: what `sources.sources` takes.
        asked: what is asked of every image.
        load: called once, after the file that is gone on with was locked and read.
        say: told what is there already, and if another process has to be waited for.

    Raises:
        UsageError: there is no such colour or kind of file, a file would be overwritten, or what is
            gone on with was made under other conditions or of other images.
        CvtError: there are no images, or a file cannot be written.
    """
    asked.check(inputs)
    listing = sources.Listing(inputs, torchrun.is_mine if torchrun.count() > 1 else None)
    if listing.is_empty:
        raise no_images(listing)
    with ExitStack() as stack:
        lines: Answered | None = None
        if asked.lines is not None:
            # Its lock is held before anything is loaded, so that a second process waits for it.
            path, anew = torchrun.own_path(asked.lines), asked.resume is None
            if not anew:
                torchrun.refuse_another_count(asked.lines)
            lines = stack.enter_context(Answered(path, say, anew))
        ready = load(lines.made if lines else None, listing.total)
        answers = Answers(ready, asked, listing, lines)
        answers.begin(say)
        answers.open_files(stack)
        yield answers


def no_images(listing: sources.Listing) -> CvtError:
    """What is said, before a model is loaded or downloaded, of images that are not there."""
    gone = [name for name, why in listing.missing.items() if why == sources.NO_SUCH_FILE]
    empty = [name for name in listing.missing if name not in gone]
    said = [f"{', '.join(f'`{name}`' for name in gone)}: {sources.NO_SUCH_FILE}"] if gone else []
    if empty:
        said.append(f"no images in {', '.join(f'`{name}`' for name in empty)}")
    if str(listing.passed):
        said.append(str(listing.passed))
    return CvtError(
        "; ".join(said),
        hint="folders and archives are searched for .jpg, .png, .webp and other usual suffixes; a "
        "file that you name is read whatever its suffix"
        if empty
        else "name image files, folders, patterns, archives or URLs",
    )
