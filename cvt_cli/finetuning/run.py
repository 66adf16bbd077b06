"""A training run on disk, which nothing that happens to the process can spoil.

RUN/plan.json      everything that the run depends on: data, model, recipe, versions, command
RUN/split.json     names and contents of the images that the best epoch is chosen by
RUN/metrics.csv    a line per epoch, and of the part of one that --max-time ended early
RUN/best/          the epoch with the best top-1 on those images, as a checkpoint folder
RUN/last/          the last epoch done
RUN/state/         what --resume goes on from, in the middle of an epoch too
RUN/results.json   what came of it, once it has ended; gone when it is gone on with
RUN/log.txt        what was said; curves.png and TensorBoard's events with their extras
"""

import json
import shlex
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from cvt_cli.base import files, locks, torchrun
from cvt_cli.base.conditions import json_hash
from cvt_cli.base.errors import CvtError
from cvt_cli.base.progress import Progress, Say, silent, unheard
from cvt_cli.base.text import counted
from cvt_cli.datasets import datacheck, held_out
from cvt_cli.finetuning import plan, preparation, results, resume, run_card
from cvt_cli.finetuning.job import Job
from cvt_cli.finetuning.probe_run import solve
from cvt_cli.finetuning.results import Result
from cvt_cli.finetuning.resume import STATE_FILE, WHOLE_BEST, Epoch, Position
from cvt_cli.finetuning.stop import Stop
from cvt_cli.finetuning.training_loop import Loop
from cvt_cli.model import engine


class Run:
    """Trains a job in its folder.

    Args:
        job: what to train.
        say: told what happens, one sentence at a time.
        progress: told of every step.

    Raises:
        UsageError: a part to freeze that is not there, or a device that cannot do what is asked.
        DataError: too few images for the parts of a step.
    """

    def __init__(self, job: Job, *, say: Say, progress: Progress = silent) -> None:
        self.job, self.progress = job, progress
        self._say_to = say if torchrun.rank() == 0 else unheard
        self._log: Path | None = None
        self._started = perf_counter()
        self._stop = Stop()
        self._part: Epoch | None = None  # what came of one that was ended early
        self._saved = ""  # what of it is on the disk, for who interrupts it
        preparation.refuse_different(job)
        self.batches = preparation.batches_of(job, self._say)
        self.trainer = preparation.trainer_of(job, self.batches) if job.takes_steps else None

    def plan(self, val_fraction: float) -> dict[str, Any]:
        """What is going to happen, as JSON values (`plan.plan_of`)."""
        return plan.plan_of(self.job, self.batches, self.trainer, val_fraction)

    def begin(self, folder: Path, planned: Mapping[str, Any], whole: Path | None = None) -> Result:
        """Train from the start, in a folder that does not exist or is empty.

        Args:
            folder: of the run.
            planned: what `plan` gave.
            whole: the folder to go on with, where the run is a part of more.

        Raises:
            CvtError: the folder is taken or cannot be written to, or the loss is no longer a
                number.
            DataError: an image cannot be read.
            KeyboardInterrupt: the run was asked to stop; what is saved was said.
        """
        if torchrun.rank() == 0:
            preparation.check_free(folder)
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise files.unwritable(folder / plan.SPLIT_FILE, error) from error

        def first() -> Position:
            position = Position([], plan=json_hash(planned))
            if torchrun.rank() == 0:
                preparation.check_free(folder)  # another process may have been faster
                images = self.job.images
                split: dict[str, Any] = {
                    "begun": run_card.now(),
                    "torchrun": torchrun.started_by(),
                    "seed": self.job.settings.seed,
                    "root": str(images.validation.root.resolve()),
                    "validation": list(images.validation.names),
                }
                if not images.unread:
                    split["contents"] = datacheck.contents(
                        images.validation, images.validation.readers
                    )
                if images.training.contents is not None:
                    split["trained_on"] = held_out.packed(images.training.contents)
                if self.job.trained_before is not None:
                    split["trained_before"] = held_out.packed(self.job.trained_before)
                if images.held_out is not None:
                    split["held_out"] = list(images.held_out.names)
                files.write_text(folder / plan.SPLIT_FILE, json.dumps(split, indent=1) + "\n")
                files.write_text(folder / plan.PLAN_FILE, json.dumps(planned, indent=1) + "\n")
                self._save(folder, position)
            return position

        return self._run(folder, first, whole)

    def go_on(self, folder: Path, whole: Path | None = None) -> Result:
        """Train on from where a run was left, to the result that it would have had.

        Args:
            folder: of the run.
            whole: see `begin`.

        Raises:
            CvtError: the folder cannot be written to, the run's state does not fit, or the loss is
                no longer a number.
            DataError: an image cannot be read, or others are set aside than when it began.
            KeyboardInterrupt: the run was asked to stop; what is saved was said.
        """
        if (origin := held_out.origin_of_run(folder)) is not None:
            self.job = replace(self.job, trained_before=origin.before)

        def restored() -> Position:
            # What an epoch that --max-time ended early took the place of; it goes on now.
            whole_best = folder / WHOLE_BEST
            preparation.check_split(folder, self.job.images.validation)
            position = resume.restore(folder, self.job.model, self.trainer, self.batches.steps)
            self._note_saved()
            before, now = plan.read_plan(folder)["processes"], torchrun.count()
            if before != now and self.trainer is not None and not position.finished:
                self._say(
                    f"the run began in {counted(before, 'process')} and goes on in {now}, with "
                    f"{counted(self.job.settings.batch_size, 'image')} at once in each: "
                    "BatchNorm's statistics are of these, so the weights will be others"
                )
            if torchrun.rank() == 0:
                if whole_best.is_dir():
                    shutil.rmtree(folder / "best", ignore_errors=True)
                    whole_best.rename(folder / "best")
                if self.trainer is not None and not position.finished:
                    # What --max-time came to is soon true no more.
                    (folder / "results.json").unlink(missing_ok=True)
            return position

        return self._run(folder, restored, whole)

    def _run(self, folder: Path, first: Callable[[], Position], whole: Path | None) -> Result:
        """Train from a position that is asked for when this process alone trains in the folder."""
        with ExitStack() as stack:
            if torchrun.rank() == 0:
                lock = folder / "state" / "lock"
                stack.enter_context(locks.locked(lock, f"training in `{folder}`", self._say_to))
            torchrun.gather(None)  # the others read nothing before the lock is held
            stack.enter_context(self._stop.heard())
            stack.enter_context(engine.computing_in(self.job.threads))
            if torchrun.rank() == 0:  # what a kill in the middle of writing left
                files.swept(folder, deep=True)
                for left in folder.rglob(".*.tmp"):
                    if not left.name.endswith(files.SUFFIX):  # of the version before
                        left.unlink(missing_ok=True)
            try:
                position = first()
                self._log = folder / "log.txt"
                with run_card.metered(folder, self.job, self._say):
                    self._train(folder, position)
                with self._stop.later():  # matplotlib's import is not to be interrupted
                    result = results.finish(folder, self.job, position, self._part, self._say)
                self._stop.obey()
            except (KeyboardInterrupt, CvtError) as error:
                is_begun = (folder / STATE_FILE).exists()
                again = f"to continue: cvt finetune --resume {shlex.quote(str(whole or folder))}"
                if isinstance(error, KeyboardInterrupt):
                    how = f"interrupted{self._saved}; {again}"
                    self._say(how if is_begun else "interrupted before training began")
                elif is_begun and isinstance(error.__cause__, OSError):  # as on a full disk
                    self._say(f"ended by an error; {again}")
                if torchrun.rank() == 0:
                    results.remember(folder)
                raise
        torchrun.gather(None)  # what the first one wrote is there for all that come back
        return result

    def _train(self, folder: Path, position: Position) -> None:
        if self.trainer is None:
            row = self._solved(folder, position)
            position.rows, position.best = [row], 1
            for place in ("best", "last"):
                run_card.keep(
                    folder / place, self.job.model, self.job, self.batches, row, 1, self._say
                )
            results.write_metrics(folder, position.rows)
            return
        loop = Loop(
            self.job,
            self.batches,
            self.trainer,
            folder,
            position,
            save=partial(self._save, folder, position),
            stop=self._stop,
            started=self._started,
            say=self._say,
            progress=self.progress,
        )
        self._part = loop.train()

    def _solved(self, folder: Path, position: Position) -> Epoch:
        """What came of a linear probe; how long it took, also in parts that were interrupted, is
        kept with the state."""
        started, before = perf_counter(), position.seconds
        try:
            row = solve(self.job, folder, self._say, self.progress)
        finally:
            position.seconds = before + perf_counter() - started
            with suppress(CvtError):  # which is no reason to lose what was solved, or interrupted
                resume.save(folder, position, self.job.model, None)
        return replace(row, seconds=position.seconds, elapsed=position.seconds)

    def _save(self, folder: Path, position: Position) -> None:
        with self._stop.later():  # what is said of the state is noted before anybody may ask
            if torchrun.rank() == 0:
                plan.refuse_moved(folder)
                resume.save(folder, position, self.job.model, self.trainer)
            self._note_saved()
        self._stop.obey()

    def _note_saved(self) -> None:
        if self.trainer is not None:
            steps = self.trainer.schedule.steps
            self._saved = f" and saved at step {self.trainer.step_number} of {steps}"

    def _say(self, message: str) -> None:
        self._say_to(message)
        if self._log is not None and torchrun.rank() == 0:
            try:
                with self._log.open("a", encoding="utf-8", errors="backslashreplace") as file:
                    file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {message}\n")
            except OSError as error:
                raise files.unwritable(self._log, error) from error
