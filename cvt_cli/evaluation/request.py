"""What an evaluation is asked for, and what of it cannot be, as values."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from cvt_cli.base import files, places
from cvt_cli.base.errors import DataError, UsageError, refuse_no_number, refuse_other_kinds
from cvt_cli.base.progress import Progress, Say, silent
from cvt_cli.cards import gather
from cvt_cli.datasets.labelled import LabelledImages, Split
from cvt_cli.datasets.layouts import check_told, open_dataset
from cvt_cli.datasets.table_sets import Told
from cvt_cli.datasets.torchvision_sets import check_data_dir
from cvt_cli.evaluation import mistakes, predictions, report, score_files
from cvt_cli.evaluation.result import Part
from cvt_cli.images import columns
from cvt_cli.spec import published
from cvt_cli.spec.config import Activation
from cvt_cli.spec.formats import EngineChoice, Int8
from cvt_cli.spec.labels import Labels
from cvt_cli.spec.preprocessing import Resize
from cvt_cli.tracking import energy
from cvt_cli.tracking.energy import Energy

TOP_K = 5
"""k of the second accuracy, unless another is asked for."""


@dataclass(frozen=True)
class Asked:
    """The arguments of `evaluate.evaluate` but for the models."""

    data: str
    split: Part | None
    data_dir: Path | None
    told: Told  # how the data are read
    label_map: Path | None
    real: Path | None
    groups: Path | None
    skip_unreadable: bool
    res: str | None
    resize: Resize | None
    activation: Activation | None
    exif: bool
    batch_size: int
    workers: int | None
    device: str
    engine: EngineChoice
    precision: str | Int8
    top_k: int | None  # by default TOP_K
    predictions: Path | None
    resume: bool
    scores: Path | None
    confusion: Path | None
    report: Path | None
    overwrite: bool
    card: Path | None = None
    energy: bool = False
    country: str | None = None
    explain: bool = False

    def metered(self) -> AbstractContextManager[Energy | None]:
        """Inside of it the energy is measured, if that was asked for."""
        return energy.measured(self.country) if self.energy else nullcontext()

    def opened(
        self, part: Split, offline: bool, say: Say, progress: Progress = silent
    ) -> LabelledImages:
        """A part of the data."""
        data_dir = self.data_dir or places.data_dir()
        return open_dataset(
            self.data,
            part,
            data_dir,
            offline=offline,
            say=say,
            told=self.told,
            progress=progress,
            only_test=self.split == "test",
        )


def check_task(model: str, labels: Labels, images: LabelledImages, asked: Asked) -> None:
    """Raises DataError if a model gives one class an image and the data several, or the other way
    round, and UsageError for what has no effect where there are several."""
    if labels.several and not images.several:
        raise DataError(
            f"`{model}` gives an image any number of classes, and `{images.root}` "
            f"({images.layout}) has one label an image",
            hint="--separator '|' reads each label of a table as a set of classes, of one perhaps"
            if images.table is not None
            else "a table can have several labels an image: see docs/data.md",
        )
    if images.several and not labels.several:
        raise DataError(
            f"`{model}` answers an image with one class, and `{images.root}` ({images.layout}) has "
            "several labels an image",
            hint="train a model for them: cvt finetune DATA; if each image has one class, perhaps "
            "with `|` in its name: --separator none",
        )
    if not labels.several:
        return
    for option, value in (
        ("--top-k", asked.top_k),
        ("--real", asked.real),
        ("--confusion", asked.confusion),
        ("--explain", asked.explain or None),
    ):
        if value is not None:
            raise UsageError(f"{option}: it has no effect where an image has several labels")


def check(names: list[str], asked: Asked) -> None:
    """Raises UsageError for values that cannot be, do not go together, or have no effect."""
    refuse_other_kinds(asked)
    refuse_other_kinds(asked.told)
    for what, number, least in (
        ("batch_size", asked.batch_size, 1),
        ("workers", asked.workers, 1),
        ("top_k", asked.top_k, 2),
    ):
        if number is not None:
            refuse_no_number(what, number)
        if number is not None and number < least:
            raise UsageError(f"{what} is {number}; it must be at least {least}")
    if asked.split not in (None, *get_args(Part)):
        raise UsageError(f"split is `{asked.split}`; accepted are `val` and `test`")
    if not names:
        raise UsageError("no model to evaluate")
    if asked.explain:
        mistakes.check(names, asked.report)
    if asked.country is not None and not asked.energy:
        raise UsageError("--country: it needs --energy")
    if asked.energy and asked.resume:
        raise UsageError(
            "--energy: with --resume it would be of the images that are left, and the result is of "
            "all",
            hint="leave out one of the two",
        )
    if asked.energy and len(names) > 1:
        raise UsageError(
            "--energy: of several models it would be that of all together",
            hint="evaluate them one by one",
        )
    if asked.energy:
        energy.check(asked.country)
    if asked.groups is not None and asked.told.group_by is not None:
        raise UsageError("--groups and --group-by both define groups; give only one of the two")
    if asked.groups is not None and columns.parse(asked.told.columns).get("group"):
        raise UsageError("--groups and --columns group=… both define groups; give one of them")
    predictions.check(asked.predictions, asked.resume, len(names))
    score_files.check(asked.scores, asked.confusion, asked.resume)
    check_data_dir(asked.data, asked.data_dir)
    check_told(asked.data, asked.told)
    known = [found.name if (found := published.find(name)) else name for name in names]
    called = [predictions.name_in_files(name) for name in known]
    if twice := [name for name, call in zip(names, called, strict=True) if called.count(call) > 1]:
        raise UsageError(
            f"--model {' and --model '.join(f'`{name}`' for name in twice)} are the same, or would "
            "have the same name in the output files",
            hint="give each model once; to rename a folder, link to it",
        )
    in_files = called if len(names) > 1 else [None]
    named = [
        predictions.named_for(path, name)
        for path in (asked.predictions, asked.scores, asked.confusion)
        if path is not None
        for name in in_files
    ]
    given = (asked.data, asked.label_map, asked.real, asked.groups)
    files.refuse_overwriting(
        [*named, *([asked.report] if asked.report is not None else [])],
        [*names, *(str(path) for path in given if path is not None)],
    )
    if asked.predictions is not None and not asked.resume:
        files.refuse_replacing(
            [predictions.file_of(asked.predictions, name) for name in in_files],
            asked.overwrite,
        )
    for path in (asked.scores, asked.confusion):
        if path is not None:
            written = [predictions.named_for(path, name) for name in in_files]
            if path.suffix.lower() == ".npy":
                written += [score_files.about(one) for one in written]
            files.refuse_replacing(written, asked.overwrite)
            for one in written:
                files.refuse_unwritable(one)
    if asked.card is not None:
        if len(names) > 1:
            raise UsageError(
                "--card takes the result of one model", hint="evaluate them one by one"
            )
        gather.check(asked.card, overwrite=asked.overwrite)
    if asked.report is not None:
        folders = [asked.report / name for name in called] if len(names) > 1 else [asked.report]
        files.refuse_replacing([folder / "index.html" for folder in folders], asked.overwrite)
        report.check(asked.report)
    predictions.require(asked.predictions)
