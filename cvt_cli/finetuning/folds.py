"""Cross-validation: a run for each fold of the images, which it does not see, in one folder.

RUN/folds.json         what all of it depends on: the options, the folds' number and images
RUN/fold-1/ …          a run that trains on the other folds (`run`), and sets images of these aside
                       to choose its best epoch by, so that the fold has no part in it
RUN/fold-1/out_of_fold.jsonl   what its best epoch says of the fold, once that is done
RUN/folds.csv          a line per fold, when all are done
RUN/out_of_fold.jsonl  what is said of every image by the run that did not see it, for `cvt compare`
RUN/results.json       what came of it
"""

import json
import shlex
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvt_cli import loading
from cvt_cli.base import files, locks, text
from cvt_cli.base.conditions import Conditions, json_hash
from cvt_cli.base.errors import CheckpointError, DataError
from cvt_cli.base.package import __version__
from cvt_cli.base.progress import Progress
from cvt_cli.checkpoints.locate import Access
from cvt_cli.datasets import held_out
from cvt_cli.datasets.labelled import LabelledImages
from cvt_cli.evaluation import metrics, run_models
from cvt_cli.evaluation.run_models import Judged
from cvt_cli.evaluation.several_labels import JudgedSet
from cvt_cli.finetuning import preparation
from cvt_cli.finetuning.began import others
from cvt_cli.finetuning.fold_results import OUT_OF_FOLD, Fold, Result, by_groups, of_mean, table
from cvt_cli.finetuning.job import Images, Job
from cvt_cli.finetuning.plan import much_set_aside
from cvt_cli.finetuning.preparation import Checked
from cvt_cli.finetuning.resume import STATE_FILE
from cvt_cli.finetuning.run import Run
from cvt_cli.finetuning.tensor_files import tensors_hash
from cvt_cli.finetuning.validation import engine_of, refuse_unreadable

FOLDS_FILE = "folds.json"
LOCK = "lock"

NOT_KEPT = frozenset("folds resume output offline device precision workers gpus dry_run".split())
"""The options that are told anew, or that are kept by themselves."""

_OTHER_START = "bring back what the folds before started from, or begin anew in another folder"


@dataclass(frozen=True)
class Plan:
    """The images of every fold, and what they depend on."""

    checked: Checked
    of: NDArray[np.int64]  # (n,) the fold of each readable image, from 0
    count: int
    fraction: float  # of what a fold trains on, set aside to choose by
    seed: int

    @property
    def images(self) -> LabelledImages:
        """All that can be read."""
        return self.checked.readable[0]

    def of_fold(self, number: int) -> Images:
        """What a fold (from 0) trains on, chooses by, and is judged on."""
        rest = self.images.subset(np.flatnonzero(self.of != number))
        held_out = self.images.subset(np.flatnonzero(self.of == number))
        try:
            return self.checked.images(*rest.split(self.fraction, self.seed), held_out)
        except DataError as error:
            raise self.checked.refused(
                DataError(f"fold {number + 1} of {self.count}: {error}", hint=error.hint)
            ) from None

    @property
    def hash(self) -> str:
        """Of the images and the fold of each."""
        return json_hash([list(self.images.names), self.of.tolist()])


def start_of(job: Job) -> Conditions:
    """What all folds must have alike of what a path of the command leads to, which may change
    while they are trained."""
    return Conditions(
        {
            "weights": tensors_hash(job.model.state_dict()),
            "activation": job.model.config.activation,
            "preprocessing": job.preprocessing.to_json(),
            "class_weights": job.settings.class_weights,
        }
    )


def read(folder: Path) -> dict[str, Any]:
    """What `Folds.begin` wrote of a cross-validation.

    Raises:
        CheckpointError: it is damaged.
    """
    path = folder / FOLDS_FILE
    try:
        found: dict[str, Any] = text.read_json(path)
        needed = "version folds seed val_fraction options command images fingerprint start"
        for name in needed.split():
            found[name]
        return found
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CheckpointError(f"`{path}` cannot be read: {error}") from None


class Folds:
    """Runs fold after fold in a folder, each from where it was left.

    Args:
        folder: of all of it.
        plan: the folds.
        command: that began it.
        begun: makes the job of a fold that begins, of its images.
        left: makes the job of a fold that goes on, of its images and its folder.
        access: how models are fetched, and who is told what happens.
        progress: told of every image and step.
        first: the run of the first fold and its plan, where they were made already.
        start: what the folds start from, where some were begun (`start_of`).
    """

    def __init__(
        self,
        folder: Path,
        plan: Plan,
        command: str,
        begun: Callable[[Images], Job],
        left: Callable[[Images, Path], Job],
        access: Access,
        progress: Progress,
        first: tuple[Run, dict[str, Any]] | None = None,
        start: Mapping[str, Any] | None = None,
    ) -> None:
        self._first, self._start = first, start or {}
        self.folder, self.plan, self.command = folder, plan, command
        self._begun, self._left, self._access, self._progress = begun, left, access, progress

    def begin(self, options: dict[str, Any]) -> Result:
        """Run all of them; ``options`` are what was told, as JSON has it.

        Raises:
            CvtError: the folder is taken, perhaps by a process that was waited for.
            KeyboardInterrupt: it was asked to stop; what is saved was said.
        """
        assert self._first is not None
        self._start = start_of(self._first[0].job).values
        about = {
            "version": 1,
            "folds": self.plan.count,
            "seed": self.plan.seed,
            "val_fraction": self.plan.fraction,
            "images": self.plan.hash,
            "fingerprint": self.plan.checked.fingerprint,
            "used_fingerprint": self.plan.checked.used_fingerprint,
            "left_out": self.plan.checked.left_out,
            "unreadable": self.plan.checked.unreadable,
            "start": self._start,
            "options": options,
            "command": self.command,
        }
        with self._alone():
            preparation.check_free(self.folder)
            files.write_text(self.folder / FOLDS_FILE, json.dumps(about, indent=1) + "\n")
            return self._go_on()

    def go_on(self) -> Result:
        """Run those that are not done.

        Raises:
            UsageError: one begins, and would start from other weights than the others.
            KeyboardInterrupt: it was asked to stop; what is saved was said.
        """
        with self._alone():
            return self._go_on()

    def _alone(self) -> AbstractContextManager[None]:
        what = f"training in `{self.folder}`"
        return locks.locked(self.folder / LOCK, what, self._access.say)

    def _go_on(self) -> Result:
        say = self._access.say
        files.swept(self.folder, deep=True)
        for number in range(self.plan.count):
            place = self._place(number)
            if (place / OUT_OF_FOLD).exists():
                say(f"fold {number + 1} of {self.plan.count} is done")
                continue
            say(f"fold {number + 1} of {self.plan.count}")
            self._run(number, place)
        return self._result()

    def refuse_other_start(self, job: Job) -> None:
        """Raises UsageError if a fold is still to begin, and would not start as the others did."""
        states = (self._place(number) / STATE_FILE for number in range(self.plan.count))
        if not all(state.exists() for state in states):
            start_of(job).refuse_other(self.folder / FOLDS_FILE, self._start, _OTHER_START)

    def _place(self, number: int) -> Path:
        return self.folder / f"fold-{number + 1}"

    def _run(self, number: int, place: Path) -> None:
        images = self.plan.of_fold(number)
        if (place / STATE_FILE).exists():
            job = self._left(images, place)
            self._run_of(job).go_on(place, self.folder)
        else:
            run, planned = self._first or (None, None)
            if run is None or planned is None or number:
                begun = self._begun(images)
                self.refuse_other_start(begun)
                run = self._run_of(begun)
                planned = run.plan(self.plan.fraction)
                if much := much_set_aside(planned):
                    self._access.say(much)
            self._first, job = None, run.job
            run.begin(place, planned, self.folder)
        try:
            lines = self._judged(job, place, number)
        except KeyboardInterrupt:
            self._access.say(
                f"interrupted; to continue: cvt finetune --resume {shlex.quote(str(self.folder))}"
            )
            raise
        files.write_text(place / OUT_OF_FOLD, "".join(json.dumps(line) + "\n" for line in lines))

    def _run_of(self, job: Job) -> Run:
        return Run(job, say=self._access.say, progress=self._progress)

    def _judged(self, job: Job, place: Path, number: int) -> list[dict[str, Any]]:
        """What the best epoch of a fold says of the images that it has not seen."""
        images = job.images.held_out
        assert images is not None
        _, best = loading.load_checkpoint(str(place / "best"), None, None, self._access)
        subject = run_models.subject(
            engine_of(best.model, job),
            job.preprocessing,
            replace(job.labels, thresholds=best.labels.thresholds),
            np.arange(len(job.labels), dtype=np.int64),
            images,
        )
        lines: list[dict[str, Any]] = []

        def note(one: Judged | JudgedSet, sha256: str | None) -> None:
            lines.append({**one.to_json(), "fold": number + 1, "sha256": sha256})

        subject.judged = note
        run_models.judge(
            [subject],
            images,
            hashes=True,
            batch_size=job.settings.batch_size,
            workers=images.readers,
            progress=self._progress,
        )
        refuse_unreadable(subject, job)
        return lines

    def _result(self) -> Result:
        """Put the folds together; raises CheckpointError if what a fold left is damaged."""
        found, seconds = [], 0.0
        by_path: dict[str, tuple[bool, str]] = {}
        for number in range(self.plan.count):
            place = self._place(number)
            try:
                raw = (place / OUT_OF_FOLD).read_text("utf-8").splitlines()
                lines = [json.loads(line) for line in raw]
                names = self.plan.images.subset(np.flatnonzero(self.plan.of == number)).names
                if [line["path"] for line in lines] != list(names):
                    raise ValueError(f"`{OUT_OF_FOLD}` is not of the fold's {len(names)} images")
                one = text.read_json(place / "results.json")
                correct = sum(line["correct"] for line in lines)
                by_path |= {
                    line["path"]: (line["correct"], line_text)
                    for line, line_text in zip(lines, raw, strict=True)
                }
                found.append(
                    Fold(
                        number + 1,
                        len(lines),
                        correct,
                        correct / len(lines),
                        one["train_n"],
                        one["val_n"],
                        one["best_epoch"],
                        _trained_before(place, lines),
                    )
                )
                seconds += one["seconds"]
            except (OSError, ValueError, LookupError, TypeError) as error:
                raise CheckpointError(
                    f"what fold {number + 1} left in `{place}` cannot be read: {error}",
                    hint="remove the folder, and go on: the fold is trained again",
                ) from None
        images = self.plan.images
        judged = [by_path[name] for name in images.names]
        right = np.array([correct for correct, _ in judged], np.int64)
        content = "".join(f"{line}\n" for _, line in judged)
        files.write_text(self.folder / OUT_OF_FOLD, content)
        files.write_text(self.folder / "folds.csv", table(found, images.several))
        rates = [fold.top1 for fold in found]
        wilson = metrics.wilson(int(right.sum()), len(images))
        result = Result(
            run=self.folder,
            folds=tuple(found),
            n=len(images),
            correct=int(right.sum()),
            top1=float(right.sum()) / len(images),
            top1_interval=wilson
            if images.groups is None
            else by_groups(right, images.groups, wilson),
            mean=float(np.mean(rates)),
            mean_interval=of_mean(rates, wilson),
            groups=None if images.groups is None else len(images.named_groups),
            classes=len(images.classes),
            n_unreadable=len(self.plan.checked.unreadable),
            seed=self.plan.seed,
            seconds=seconds,
            fingerprint=self.plan.checked.fingerprint,
            command=self.command,
            version=__version__,
            trained_before=_sum([fold.trained_before for fold in found]),
            several=images.several,
        )
        about = json.dumps(result.to_json(), indent=1) + "\n"
        files.write_text(self.folder / "results.json", about)
        return result


def _trained_before(place: Path, lines: list[dict[str, Any]]) -> int | None:
    """How many of a fold's images its start was trained on, by what they hold."""
    origin = held_out.origin_of_run(place)
    if origin is None or origin.before is None:
        return None
    contents = [int(line["sha256"][:16], 16) for line in lines if line["sha256"]]
    return int(np.isin(np.array(contents, np.uint64), origin.before).sum())


def _sum(counts: list[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def refuse_other(about: dict[str, Any], plan: Plan, folder: Path) -> None:
    """Raises DataError if the images, or their folds, are not those that were begun with."""
    checked = plan.checked
    kept = about.get("used_fingerprint", about["fingerprint"])
    found = checked.used_fingerprint if "used_fingerprint" in about else checked.fingerprint
    if about["images"] != plan.hash or kept != found:
        which = ""
        with suppress(DataError):  # these are too few for folds
            which = others(folder / "fold-1", plan.of_fold(0))
        raise DataError(
            f"the images are not what `{folder}` began with, or lie in other folds{which}",
            hint="bring them back as they were, or begin anew in another folder",
        )
