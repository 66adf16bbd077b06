"""The files of ``--predictions``: what was said of every image, and how they are gone on with."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import numpy as np

from cvt_cli.base import torchrun
from cvt_cli.base.ahead import ahead
from cvt_cli.base.conditions import Conditions, names_hash
from cvt_cli.base.errors import CvtError, ImageError, UsageError
from cvt_cli.base.progress import Progress, Say
from cvt_cli.base.text import as_utf8, counted
from cvt_cli.datasets.labelled import LabelledImages
from cvt_cli.datasets.several_labels import joined
from cvt_cli.engines.ready import deciding
from cvt_cli.evaluation.comparison import SUFFIXES
from cvt_cli.evaluation.resume import Counted, Line
from cvt_cli.evaluation.run_models import Judged, Subject
from cvt_cli.evaluation.several_labels import JudgedSet, SetOutcomes
from cvt_cli.prediction.answer_tables import Csv, Parquet, require_parquet
from cvt_cli.prediction.answers import prediction_columns


def check(path: Path | None, resume: bool, models: int) -> None:
    """Raises UsageError for a file that cannot be written, or not gone on with."""
    suffix = path.suffix.lower() if path else ""
    if path is not None and suffix not in SUFFIXES and not resume:
        raise UsageError(
            f"predictions cannot be written as `{path}`; "
            "accepted are `.jsonl`, `.csv` and `.parquet`"
        )
    if resume and (suffix != ".jsonl" or models > 1):
        named = f", not `{path}`" if path is not None and suffix != ".jsonl" else ""
        raise UsageError(f"--resume needs exactly one model, and --predictions FILE.jsonl{named}")


def named_for(path: Path, model: str | None) -> Path:
    """The file of one of several models, if it is named as in files."""
    return path if model is None else path.with_name(f"{path.stem}.{model}{path.suffix}")


def file_of(path: Path, model: str | None) -> Path:
    """The file of this process, and of one of several models if it is named as in files."""
    return torchrun.own_path(named_for(path, model))


def require(path: Path | None) -> None:
    """Raises UsageError if a package is missing that writes such a file."""
    if path is not None and path.suffix.lower() == ".parquet":
        require_parquet()


def name_in_files(model: str) -> str:
    """What a model is called in names of files and folders."""
    return model.replace("/", "--")


def row(item: Judged | JudgedSet, top_k: int) -> dict[str, Any]:
    """A row of a table: ``path``, ``label``, ``correct``, ``error``, ``label_1``, …."""
    weight = {} if item.weight is None else {"weight": item.weight}
    if isinstance(item, JudgedSet):
        return {"path": as_utf8(item.path), **item.row(), **weight}
    start = {"path": as_utf8(item.path), "label": item.label, "correct": item.correct}
    more = prediction_columns(item.predictions, top_k)
    return {**start, "error": item.error, **more, **weight}


class PredictionFiles:
    """A file for each model; tables appear when the context ends without an error.

    Args:
        path: what follows ``--predictions``; None writes nothing.
        resume: go on with what is there, which is JSON lines.
        several: there are several models, so that their names are in the files' names.
        say: told what is done already, and if another process has to be waited for.

    Raises:
        UsageError, CvtError: as of `Counted`.

    Attributes:
        unwritten: why a file is not whole, though all images are judged.
    """

    def __init__(self, path: Path | None, resume: bool, several: bool, say: Say) -> None:
        self._finished, self.unwritten = False, cast("CvtError | None", None)
        self._path, self._several, self._say = path, several, say
        self._stack = ExitStack()
        self._lines: list[tuple[Counted, Subject]] = []
        self._first: Counted | None = None
        if path is not None and path.suffix.lower() == ".jsonl" and not several:
            if resume:
                torchrun.refuse_another_count(path)
            # Its lock is held before anything is loaded, so that a second process waits for it.
            lines = Counted(torchrun.own_path(path), resume, say)
            self._first = self._stack.enter_context(lines)

    @property
    def made(self) -> dict[str, Any] | None:
        """The conditions under which what is there was made."""
        return self._first.made if self._first else None

    @property
    def needs_hashes(self) -> bool:
        """Whether each line holds the hash of its image's file."""
        return bool(self._lines)

    @property
    def kept(self) -> int:
        """Images of which a later process would know, in every file."""
        return min((lines.kept for lines, _ in self._lines), default=0)

    def judged(self) -> set[str]:
        """Names of the images that have a line."""
        return {line.path for lines, _ in self._lines for line in lines.lines}

    def begin(
        self,
        one: Subject,
        conditions: Mapping[str, Any],
        images: LabelledImages,
        mine: int,
        workers: int,
        progress: Progress,
        trained_on: int | None = None,
    ) -> None:
        """Let a file be told what this model says of each image.

        Args:
            one: the model; what was counted already is added to its result.
            conditions: what its answers depend on.
            images: the images.
            mine: how many of them this process has.
            workers: threads that read images which are in the file already.
            progress: of that.
            trained_on: how many of these this model was trained on, which a comparison says.

        Raises:
            UsageError: what is there was made under other conditions or of other images.
            CvtError: the file cannot be written.
        """
        if self._path is None:
            return
        name = name_in_files(conditions["model"]) if self._several else None
        path = file_of(self._path, name)
        if path != self._path:
            others = " and a file like it of each other process" if torchrun.count() > 1 else ""
            self._say(f"predictions of `{conditions['model']}`: `{path}`{others}")
        if path.suffix.lower() != ".jsonl":
            write = self._stack.enter_context(_table(path, conditions, one, images)).write
            one.judged = partial(self._write_row, write)
            return
        lines = self._first or self._stack.enter_context(Counted(path, False, self._say))
        lines.begin(_kept_under(conditions, one))
        lines.trained_on = trained_on
        if lines.counted is not None:
            check_lines(
                lines.path, lines.lines, lines.truth, one, images,
                workers=workers, progress=progress,
            )  # fmt: skip
            try:
                one.result.add_state(lines.counted)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise lines.unfit(error) from None
            _note_earlier(one, lines.lines, images)
            lines.cut_uncounted()
            self._say(f"{len(lines.lines)} of {counted(mine, 'image')} already in `{lines.path}`")
        one.judged = lines.write
        self._lines.append((lines, one))

    def save(self, at_once: bool = False) -> None:
        """Note what was counted, unless that was noted a moment ago."""
        for lines, one in self._lines:
            lines.save(one.result.state, one.truth.hashes(), at_once)

    def _write_row(self, write: Callable[[Any, Any], None], item: Any, sha256: str | None) -> None:
        """Write to a table, which nobody could go on with: the evaluation outlives an error."""
        if self.unwritten is None:
            try:
                write(item, sha256)
            except CvtError as error:
                self.unwritten = error
                self._say(f"{error}; the evaluation goes on without it")

    def before_failures(self) -> None:
        """Note what was counted of all images that can be read: an error is kept from now on,
        beside their results."""
        try:
            self.save(at_once=True)
        except CvtError as error:
            self.unwritten = error
            for _, one in self._lines:
                one.judged = None

    def finish(self) -> None:
        """Note that the other images have their lines too."""
        self._finished = True
        if self.unwritten is None:
            try:
                for lines, _ in self._lines:
                    lines.finish()
            except CvtError as error:
                self.unwritten = error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        failed_before = self.unwritten
        if error is None and failed_before is not None:  # so that no part of a table appears
            kind, error, trace = type(failed_before), failed_before, failed_before.__traceback__
        try:
            self._stack.__exit__(kind, error, trace)
        except CvtError as failed:
            if not self._finished or error is not failed_before:
                raise
            self.unwritten = self.unwritten or failed


def _note_earlier(one: Subject, lines: Sequence[Line], images: LabelledImages) -> None:
    """Note the outcomes of the images that a file says something of."""
    if one.outcomes is None or not lines:
        return
    said = {line.path: line for line in lines}
    for index, name in enumerate(images.names):
        if (line := said.get(name)) is not None:
            if line.answered is None:
                one.outcomes.add_failure(index, one.result.skipped)
            elif isinstance(one.outcomes, SetOutcomes):
                one.outcomes.add_earlier_set(index, line.said, line.scores)
            else:
                one.outcomes.add_earlier(index, line.answered, line.confidence)
    if not one.labels.several:  # whose lines have them
        one.outcomes.scores = None


def _named(one: Subject, right: Any) -> str:
    """The right class by the model's name; where there may be several, all of them."""
    if one.labels.several:
        return joined([one.labels.names[place] for place in np.flatnonzero(right).tolist()])
    return str(one.labels.names[right])


def _table(
    path: Path, conditions: Mapping[str, Any], one: Subject, images: LabelledImages
) -> Csv | Parquet:
    of_item = partial(row, top_k=one.result.k)
    weight = None if images.weights is None else 1.0
    empty: Judged | JudgedSet = Judged("", "", weight=weight)
    if one.labels.several:
        empty = JudgedSet("", (), weight=weight)
    if path.suffix.lower() == ".csv":
        return Csv(path, of_item, empty)
    return Parquet(path, conditions, of_item, empty)


def _kept_under(conditions: Mapping[str, Any], one: Subject) -> Conditions:
    """What the counts and lines of a file depend on, beside what each image is judged by."""
    present = one.result.present
    among = None  # the second accuracy is among the classes that the data has
    if present is not None:
        indices = names_hash(map(str, present.tolist()))
        among = f"{len(present)} of {len(one.labels)}, {indices[:16]}"
    return Conditions(
        {
            **deciding(conditions),
            "exif": conditions["exif"],
            "processes": torchrun.count(),
            "skipped": one.result.skipped,
            "k": one.result.k,
            "classes_present": among,
        }
    )


def check_lines(
    path: Path,
    lines: Sequence[Line],
    truth: Mapping[str, str] | None,
    one: Subject,
    data: LabelledImages,
    *,
    workers: int,
    progress: Progress,
) -> None:
    """See that the images that a file says something of are the data's still, and the same.

    All that was judged is read again for its hash, which takes a small part of what judging takes.

    Args:
        path: of the file.
        lines: of it.
        truth: the hashes of what they were judged by; None if unknown.
        one: the model; its `truth` is then of these images.
        data: the images.
        workers: threads that read.
        progress: told of every image.

    Raises:
        UsageError: an image has gone, has another class, group or ReaL label, or another content.
    """
    hint = "name another file, or start over: --predictions with --overwrite"
    place = {name: index for index, name in enumerate(data.names)}
    if gone := [line.path for line in lines if line.path not in place]:
        raise UsageError(
            f"`{path}` has {len(gone)} of its {counted(len(lines), 'image')} from other data: this "
            "data has no "
            f"`{gone[0]}`",
            hint,
        )
    for line in lines:
        right = one.right(data, [place[line.path]])[0]
        label = _named(one, right)
        if line.label != label:
            raise UsageError(
                f"`{line.path}` is of class `{line.label}` in `{path}`, and of `{label}` now",
                hint,
            )
        one.truth.add(one, line.path, right)
        weight = data.weight(place[line.path])
        if line.weight not in (None, weight):
            raise UsageError(
                f"`{line.path}` has the weight {line.weight:g} in `{path}`, and now "
                f"{'none' if weight is None else format(weight, 'g')}",
                hint,
            )
    for kind, found in one.truth.hashes().items():
        if truth is not None and truth.get(kind) != found:
            raise UsageError(f"`{path}` was made with other {kind} of the same images", hint)

    def problem(line: Line) -> str | None:
        if not line.sha256 or line.answered is None:  # of an earlier version
            return None
        try:
            same = data.content_hash(place[line.path]) == line.sha256
        except ImageError as error:
            return f"could be read when `{path}` was made, and cannot now: {error}"
        return None if same else f"has changed since `{path}` was made"

    with progress("checking what is done", len(lines)) as advance:
        for line, wrong in ahead(problem, lines, workers, 4 * workers):
            advance(1, "")
            if wrong is not None:
                raise UsageError(f"`{line.path}` {wrong}", f"bring the same file back, {hint}")
