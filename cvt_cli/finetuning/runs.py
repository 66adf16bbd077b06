"""A training run on disk, which nothing that happens to the process can spoil.

RUN/plan.json      everything that the run depends on: data, model, recipe, versions, command
RUN/split.json     names of the images that the best epoch is chosen by
RUN/metrics.csv    a line per epoch, and of the part of one that --max-time ended early
RUN/best/          the epoch with the best top-1 on those images, as a checkpoint folder
RUN/last/          the last epoch done
RUN/state/         what --resume goes on from, in the middle of an epoch too
RUN/results.json   what came of it, once it has ended; gone when it is gone on with
RUN/log.txt        what was said; curves.png and TensorBoard's events with their extras
"""

import csv
import io
import json
import os
import platform
import shlex
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from types import FrameType
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from cvt_cli.base import files, machine, text, torchrun
from cvt_cli.base.conditions import Conditions, names_hash
from cvt_cli.base.errors import CheckpointError, CvtError, DataError, UsageError
from cvt_cli.base.package import __version__
from cvt_cli.base.progress import Progress, Say, silent
from cvt_cli.base.text import human_bytes
from cvt_cli.checkpoints import cards, folders
from cvt_cli.datasets import datacheck
from cvt_cli.datasets.labelled import LabelledImages
from cvt_cli.evaluation import judge, metrics, plots
from cvt_cli.evaluation.metrics import Evaluation
from cvt_cli.finetuning import batches as training_data
from cvt_cli.finetuning import probe, tensorboard, training
from cvt_cli.finetuning.batches import Batches
from cvt_cli.finetuning.training import Trainer, Watch
from cvt_cli.model import devices, engine, weights
from cvt_cli.model.devices import Precision
from cvt_cli.model.engine import TorchEngine
from cvt_cli.model.network import CvT
from cvt_cli.spec.costs import costs
from cvt_cli.spec.labels import Labels
from cvt_cli.spec.preprocessing import Preprocessing
from cvt_cli.spec.recipes import AUGMENTATIONS, Recipe

PLAN_FILE = "plan.json"
STATE_FILE = Path("state", "state.safetensors")
WHOLE_BEST = Path("state", "best")
"""Where the best whole epoch is kept while `best` holds a part of one."""

PLAN_VERSION = 2
"""Of the plan's form. Version 1, without a number, is read too: its fingerprint is of the files'
sizes, and its epochs leave out what does not fill a step."""

SAVE_EVERY_SEC = 60.0
"""Between two states in the middle of an epoch, unless writing one takes long."""

TIMED_STEPS = 3
"""By which the plan estimates the time."""

_INTERRUPTED, _OUT_OF_TIME = 2, 1

_SAME_SIGNAL_SEC = 1.0
"""In which a second signal is the first once more: `timeout` and Slurm tell a process by itself and
with its group, torchrun passes on what its processes got from the terminal too."""


@dataclass(frozen=True)
class Settings:
    """Everything that a run depends on, besides its model and its images."""

    data: str  # as the user named it
    command: str
    recipe: Recipe
    seed: int
    precision: Precision
    batch_size: int  # images that a process computes together
    accumulate: int = 1  # of these in a step of one process
    freeze: tuple[str, ...] = ()
    class_weights: bool = False  # every class weighs the same in the loss
    patience: int | None = None  # epochs without a better one
    max_time_sec: float | None = None  # from the start of a process, also of one that goes on
    sync_batchnorm: bool = False
    checkpoint_activations: bool = False
    every_image: bool = True  # is seen in every epoch; see `Batches`


@dataclass(frozen=True)
class Images:
    """What is trained on, what the best epoch is chosen by, and what was found in checking both."""

    training: LabelledImages
    validation: LabelledImages
    set_aside: bool  # the validation images were taken from the training images
    unreadable: tuple[str, ...]  # names of the images left out, with the reason
    only_headers: bool  # damage behind a header was not looked for
    fingerprint: str  # of all of them, by content
    size_fingerprint: str = ""  # likewise by the files' sizes, as a plan of version 1 has it


def check_images(
    found: LabelledImages,
    published: LabelledImages | None,
    val_fraction: float,
    seed: int,
    *,
    progress: Progress = silent,
) -> Images:
    """Check every image, leave out what cannot be read, and set validation images aside.

    Args:
        found: the training images.
        published: the data's own validation images, if it has any.
        val_fraction: part of the training images to set aside where it has none.
        seed: of what is set aside.
        progress: told of every image.

    Raises:
        DataError: there is one class alone, a class has too few readable images, or the validation
            images have other classes.
    """
    if len(found.classes) < 2:
        raise DataError(
            f"there is one class alone, `{found.classes[0]}`, in `{found.root}`; training takes "
            "at least 2, to tell them apart",
            hint="expected is one folder per class with image files in it, such as "
            "`DATA/cat/1.jpg` and `DATA/dog/1.jpg`",
        )
    unreadable: list[str] = []
    prints, by_size, headers = [], [], False
    readable = []
    for images in (found, published):
        if images is None:
            continue
        checked = datacheck.check(images, machine.threads(), progress)
        prints.append(checked.fingerprint)
        by_size.append(checked.size_fingerprint)
        headers |= checked.only_headers
        bad = [index for index, _ in checked.unreadable]
        unreadable += [f"{images.names[index]}: {reason}" for index, reason in checked.unreadable]
        readable.append(images.subset(np.setdiff1d(np.arange(len(images)), bad)) if bad else images)
    if published is None:
        training_set, validation = readable[0].split(val_fraction, seed)
    else:
        training_set, validation = readable
        counts = np.bincount(training_set.labels, minlength=len(training_set.classes))
        if not counts.all():
            name = training_set.classes[int(counts.argmin())]
            raise DataError(f"class `{name}` in `{found.root}` has no image that can be read")
        if not len(validation):
            raise DataError(f"no image in `{published.root}` can be read")
    return Images(
        training_set,
        validation,
        published is None,
        tuple(unreadable),
        headers,
        " ".join(prints),
        " ".join(by_size),
    )


@dataclass(frozen=True)
class Job:
    """A run that can begin, or go on."""

    name: str  # of what it starts from
    model: CvT
    preprocessing: Preprocessing
    images: Images
    settings: Settings
    device: torch.device
    workers: int  # processes that decode
    notes: tuple[str, ...] = ()  # about the model

    @property
    def labels(self) -> Labels:
        return Labels(self.images.training.classes)


@dataclass
class _Position:
    """What a run has come to, besides its tensors."""

    rows: list[dict[str, Any]]  # an epoch each, as in metrics.csv
    best: int | None = None  # the best one's place among them, from 1
    best_correct: int = -1
    loss_sum: float = 0.0  # over the steps of the epoch under way
    loss_steps: int = 0
    seconds: float = 0.0  # of all parts of the run
    finished: bool = False


class Run:
    """Trains a job in its folder.

    Args:
        job: what to train.
        say: told what happens, one sentence at a time.
        progress: told of every step.

    Raises:
        UsageError: a part to freeze that is not there, or a batch that the processes cannot share.
    """

    def __init__(self, job: Job, *, say: Say, progress: Progress = silent) -> None:
        self.job, self.progress = job, progress
        self._say_to = say if torchrun.rank() == 0 else lambda message: None
        self._log: Path | None = None
        self._started = perf_counter()
        self._stop = _Stop()
        self._saved = ""  # what of it is on the disk, for who interrupts it
        settings, recipe = job.settings, job.settings.recipe
        if settings.sync_batchnorm and job.device.type != "cuda":
            raise UsageError(
                f"BatchNorm cannot be synchronised on `{job.device}`: PyTorch does it on CUDA only",
                hint="leave out --sync-bn, or train on CUDA devices",
            )
        self.batches = Batches(
            job.images.training,
            training_data.augmentation(AUGMENTATIONS[recipe.augment or "none"], job.preprocessing),
            part_images=settings.batch_size,
            parts=settings.accumulate,
            rank=torchrun.rank(),
            processes=torchrun.count(),
            seed=settings.seed,
            workers=job.workers,
            pin=job.device.type == "cuda",
            shared=self._has_room(),
            every_image=settings.every_image,
        )
        height, width = job.preprocessing.height, job.preprocessing.width
        of_one = costs(job.name, job.model.config, height, width).macs
        self._macs = of_one * settings.batch_size
        # Backward takes about twice what forward does.
        self._threads = engine.threads_for(3 * self._macs)
        self._hardware = (
            machine.named_threads(self._threads)
            if job.device.type == "cpu"
            else devices.hardware(job.device)
        )
        self._class_weights = None
        if settings.class_weights:
            found = job.images.training
            self._class_weights = training.class_weights(found.labels, len(found.classes))
        self.trainer: Trainer | None = None
        if recipe.optimizer == "newton":
            return
        if job.device.type == "cpu":
            training.keep_memory()
        if not self.batches.steps:
            raise DataError(
                f"{len(job.images.training)} images to train on cannot be shared out among "
                f"{torchrun.count()} processes with {settings.accumulate} parts each",
                hint="give a smaller --batch-size, or less to --accumulate",
            )
        schedule = training.schedule_of(recipe, self.batches.steps)
        self.trainer = Trainer(
            job.model,
            recipe,
            schedule,
            device=job.device,
            precision=settings.precision,
            seed=settings.seed,
            ema=recipe.ema_epochs * self.batches.steps,
            class_weights=self._class_weights,
            frozen=training.freeze(job.model, settings.freeze),
            sync_batchnorm=settings.sync_batchnorm,
            checkpoint_activations=settings.checkpoint_activations,
        )

    def _has_room(self) -> bool:
        """Whether the batches that the workers of this machine hold ready fit into shared memory,
        of which Docker gives a container 64 MB."""
        job, free = self.job, training_data.shared_memory_free()
        if not job.workers or job.settings.recipe.optimizer == "newton" or free is None:
            return True
        height, width = job.preprocessing.height, job.preprocessing.width
        # Two that wait for each worker, and those of a step.
        batches = 2 * job.workers + job.settings.accumulate + 1
        needed = batches * job.settings.batch_size * 3 * height * width * 4
        needed *= torchrun.local_count()
        if needed <= free:
            return True
        self._say(
            f"/dev/shm has {human_bytes(free)} free, and the batches of {job.workers} workers take "
            f"up to {human_bytes(needed)}: they come through pipes, which takes longer (docker run "
            "--shm-size gives more)"
        )
        return False

    # --- before the first step

    def plan(self, val_fraction: float) -> dict[str, Any]:
        """What is going to happen, as JSON values; the time is taken from a few steps.

        Args:
            val_fraction: part of the training images that was to be set aside.
        """
        job, settings, recipe = self.job, self.job.settings, self.job.settings.recipe
        images, trainer = job.images, self.trainer
        counts = np.bincount(images.training.labels, minlength=len(images.training.classes))
        smallest = int(counts.argmin())
        parameters = sum(p.numel() for p in job.model.parameters())
        trained = sum(p.numel() for p in job.model.parameters() if p.requires_grad)
        document: dict[str, Any] = {
            "version": PLAN_VERSION,
            "data": {
                "name": settings.data,
                "root": str(images.training.root),
                "classes": len(counts),
                "train_n": len(images.training),
                "val_n": len(images.validation),
                "val_set_aside": images.set_aside,
                "val_fraction": val_fraction,
                "smallest_class": images.training.classes[smallest],
                "smallest_n": int(counts[smallest]),
                "unreadable": list(images.unreadable),
                "only_headers_read": images.only_headers,
                "fingerprint": images.fingerprint,
            },
            "model": {
                "start": job.name,
                "params": parameters,
                "trained_params": trained
                if trainer
                else job.model.head.weight.numel() + job.model.head.bias.numel(),
                "config": folders.transformers_config(job.model.config, job.labels, __version__),
                "preprocessing": job.preprocessing.to_transformers(),
            },
            "settings": {**asdict(settings), "recipe": recipe.to_json()},
            "processes": torchrun.count(),
            "workers": job.workers,
            "device": str(job.device),
            "hardware": self._hardware,
            "versions": {
                "cvt-cli": __version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
            "step_images": None,
            "steps": None,
            "steps_per_epoch": None,
            "step_sec": None,
            "timed_steps": 0,
            "estimated_sec": None,
            "peak_memory_bytes": None,
        }
        if trainer is not None:
            steps = trainer.schedule.steps
            with (
                training_data.workers_watched("leave it room, or decode with --workers 0"),
                engine.computing_in(self._threads),
            ):
                step_sec, timed = trainer.trial(self.batches.of_epoch(0), TIMED_STEPS)
            # Forward alone takes about a third of forward and backward.
            validation = len(images.validation) * step_sec / self.batches.step_images / 3
            epochs = -(-steps // self.batches.steps)
            document |= {
                "step_images": self.batches.step_images,
                "steps": steps,
                "steps_per_epoch": self.batches.steps,
                "step_sec": step_sec if timed else None,
                "timed_steps": timed,
                "estimated_sec": steps * step_sec + epochs * validation if timed else None,
                "peak_memory_bytes": devices.peak_memory(job.device),
            }
        return document

    # --- the run

    def begin(self, folder: Path, plan: Mapping[str, Any]) -> dict[str, Any]:
        """Train from the start, in a folder that does not exist or is empty.

        Returns:
            What came of it, as JSON values.

        Raises:
            CvtError: the folder is taken or cannot be written to, or the loss is no longer a
                number.
            DataError: an image cannot be read.
        """
        if torchrun.rank() == 0:
            check_free(folder)
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise files.unwritable(folder / "split.json", error) from error

        def start() -> _Position:
            if torchrun.rank() == 0:
                check_free(folder)  # another process may have been faster
                images = self.job.images
                split = {
                    "seed": self.job.settings.seed,
                    "root": str(images.validation.root),
                    "validation": list(images.validation.names),
                }
                files.write_text(folder / "split.json", json.dumps(split, indent=1) + "\n")
                files.write_text(folder / PLAN_FILE, json.dumps(plan, indent=1) + "\n")
                self._save(folder, _Position([]))
            return _Position([])

        return self._run(folder, start)

    def go_on(self, folder: Path) -> dict[str, Any]:
        """Train on from where a run was left; see `begin`.

        Raises:
            CvtError: likewise, or its state does not fit.
        """

        def start() -> _Position:
            # What an epoch that --max-time ended early took the place of; it goes on now.
            whole = folder / WHOLE_BEST
            position = self._restore(folder)
            if torchrun.rank() == 0:
                if whole.is_dir():
                    shutil.rmtree(folder / "best", ignore_errors=True)
                    whole.rename(folder / "best")
                if self.trainer is not None and not position.finished:
                    # What --max-time came to is soon true no more.
                    (folder / "results.json").unlink(missing_ok=True)
            return position

        return self._run(folder, start)

    def _run(self, folder: Path, start: Callable[[], _Position]) -> dict[str, Any]:
        """Train from a position that is asked for when this process alone trains in the folder."""
        with ExitStack() as stack:
            if torchrun.rank() == 0:
                lock = folder / "state" / "lock"
                stack.enter_context(files.locked(lock, f"training in `{folder}`", self._say_to))
            torchrun.gather(None)  # the others read nothing before the lock is held
            stack.enter_context(self._stop.heard())
            stack.enter_context(engine.computing_in(self._threads))
            if torchrun.rank() == 0:  # what a kill in the middle of writing left
                files.swept(folder, deep=True)
                for left in folder.rglob(".*.tmp"):
                    if not left.name.endswith(files.SUFFIX):  # of the version before
                        left.unlink(missing_ok=True)
            try:
                position = start()
                self._log = folder / "log.txt"
                if self.trainer is None:
                    return self._probe(folder, position)
                return self._train(folder, position, self.trainer)
            except KeyboardInterrupt:
                self._say(
                    f"interrupted{self._saved}; go on with: cvt finetune --resume "
                    f"{shlex.quote(str(folder))}"
                    if (folder / STATE_FILE).exists()
                    else "interrupted before anything was trained"
                )
                raise

    def _train(self, folder: Path, position: _Position, trainer: Trainer) -> dict[str, Any]:
        job, settings = self.job, self.job.settings
        per_epoch, total = self.batches.steps, trainer.schedule.steps
        begun = perf_counter() - position.seconds  # as if it had been trained in one go
        if trainer.step_number and not position.finished:
            self._say(
                f"going on at step {trainer.step_number} of {total}, epoch "
                f"{min(trainer.step_number, total - 1) // per_epoch + 1}"
            )
        heaviest = 1.0 if self._class_weights is None else float(self._class_weights.max())
        watch = Watch(len(job.labels), settings.recipe, settings.precision, heaviest)
        events = (
            tensorboard.Events(folder / "events", trainer.step_number)
            if torchrun.rank() == 0 and tensorboard.available()
            else None
        )
        with ExitStack() as stack:
            if events is not None:
                stack.callback(events.close)
            while not position.finished:
                judged = position.rows[-1]["step"] if position.rows else 0
                why = 0
                if not (self._ends_epoch(trainer.step_number) and trainer.step_number > judged):
                    why = self._train_epoch(folder, position, trainer, watch, begun, events)
                    position.seconds = perf_counter() - begun
                    self._save(folder, position)
                    if why == _INTERRUPTED:
                        raise KeyboardInterrupt
                if why == _OUT_OF_TIME:
                    self._say(
                        f"stopped at step {trainer.step_number} of {total}: "
                        f"{settings.max_time_sec:.0f} s are over (--max-time)"
                    )
                    if not self._ends_epoch(trainer.step_number):
                        part = self._judge(position, trainer, begun)
                        self._keep_part(folder, position, trainer, part)
                        return self._finish(folder, position, part)
                row = self._judge(position, trainer, begun)
                self._validated(folder, position, trainer, row, events)
                worse = sum(self._ends_epoch(row["step"]) for row in position.rows[position.best :])
                if trainer.step_number == total:
                    position.finished = True
                elif settings.patience is not None and worse >= settings.patience:
                    self._say(f"stopped: no better epoch in {worse} (--patience)")
                    position.finished = True
                self._save(folder, position)
                if why == _OUT_OF_TIME:
                    break
        return self._finish(folder, position)

    def _ends_epoch(self, step: int) -> bool:
        """Whether an epoch is whole after so many steps; the last one may be shorter."""
        total = self.trainer.schedule.steps if self.trainer else 0
        return step == total or step % self.batches.steps == 0

    def _train_epoch(
        self,
        folder: Path,
        position: _Position,
        trainer: Trainer,
        watch: Watch,
        begun: float,
        events: "tensorboard.Events | None",
    ) -> int:
        """The rest of an epoch; why it ended early, 0 if it did not."""
        settings, per_epoch = self.job.settings, self.batches.steps
        total = trainer.schedule.steps
        epoch, first = divmod(trainer.step_number, per_epoch)
        epochs = -(-total // per_epoch)
        saved, interval = perf_counter(), SAVE_EVERY_SEC
        seen = self.batches.images
        again = f"go on with fewer: cvt finetune --resume {shlex.quote(str(folder))} --workers 0"
        with (
            self._stop.later(),
            training_data.workers_watched(again),
            self.progress(
                f"epoch {epoch + 1}/{epochs}",
                seen(min(per_epoch, total - epoch * per_epoch)),
                done=seen(first),
            ) as advance,
        ):
            for step, parts in enumerate(self.batches.of_epoch(epoch, first), start=first):
                rate = trainer.schedule(trainer.step_number)
                images = seen(step + 1) - seen(step)
                loss = trainer.step(parts, images)
                watch(loss, trainer.step_number - 1, rate)
                position.loss_sum = loss + position.loss_sum  # type: ignore[assignment]
                position.loss_steps += 1
                advance(images, "")
                now = perf_counter()
                limit = settings.max_time_sec
                over = limit is not None and now - self._started > limit
                why = _INTERRUPTED if self._stop.asked else _OUT_OF_TIME if over else 0
                if why := torchrun.largest(why):
                    watch.all_good()
                    return why
                if trainer.step_number == total:
                    break
                if now - saved > interval:
                    watch.all_good()
                    position.seconds = now - begun
                    self._save(folder, position)
                    saved = perf_counter()
                    interval = max(SAVE_EVERY_SEC, 50 * (saved - now))
                if events is not None and trainer.step_number % 50 == 0:
                    events.add(trainer.step_number, {"loss": float(loss), "learning_rate": rate})
        watch.all_good()
        return 0

    def _judge(self, position: _Position, trainer: Trainer, begun: float) -> dict[str, Any]:
        """How good the network is after the epoch, or the part of it, that was done; as a row."""
        trainer.agree()
        found = self._evaluate(trainer.best_model)
        before = position.rows[-1]["elapsed"] if position.rows else 0.0
        elapsed = perf_counter() - begun
        return {
            "epoch": -(-trainer.step_number // self.batches.steps),
            "learning_rate": trainer.schedule(trainer.step_number - 1),
            "training_loss": float(position.loss_sum) / max(position.loss_steps, 1),
            "val_loss": found.loss,
            "val_top1": found.top1,
            "val_top5": found.topk,
            "seconds": elapsed - before,
            "step": trainer.step_number,
            "elapsed": elapsed,
            "val_correct": found.correct_top1,
            "val_correct_top5": found.correct_topk,
        }

    def _validated(
        self,
        folder: Path,
        position: _Position,
        trainer: Trainer,
        row: dict[str, Any],
        events: "tensorboard.Events | None",
    ) -> None:
        """Take an epoch into the run, and keep it if it is the best."""
        position.rows.append(row)
        position.loss_sum, position.loss_steps = 0.0, 0
        position.seconds = row["elapsed"]
        is_best = row["val_correct"] > position.best_correct
        if is_best:
            position.best, position.best_correct = len(position.rows), row["val_correct"]
        if torchrun.rank() == 0:
            for place in ("best", "last") if is_best else ("last",):
                self._keep(folder, place, trainer.best_model, position, row)
            _write_metrics(folder, position.rows)
            if events is not None:
                values = {key: row[key] for key in ("training_loss", "val_loss", "val_top1")}
                events.add(trainer.step_number, {k: v for k, v in values.items() if v is not None})
        self._say_row(row, is_best)

    def _keep_part(
        self, folder: Path, position: _Position, trainer: Trainer, part: dict[str, Any]
    ) -> None:
        """Keep what there is of an epoch that is not whole.

        It may be the best so far, and is so until the run goes on: then the epoch is made whole and
        judged anew, so that the run ends as one that was never stopped.
        """
        is_best = part["val_correct"] > position.best_correct
        if torchrun.rank() == 0:
            if is_best and (folder / "best").is_dir() and position.best is not None:
                (folder / "best").rename(folder / WHOLE_BEST)
            for place in ("best", "last") if is_best else ("last",):
                self._keep(folder, place, trainer.best_model, position, part)
            _write_metrics(folder, [*position.rows, part])
        self._say_row(part, is_best, " in part")

    def _say_row(self, row: Mapping[str, Any], is_best: bool, what: str = "") -> None:
        self._say(
            f"epoch {row['epoch']}/{self._epochs()}{what}: loss {row['training_loss']:.4f}, "
            f"validation top-1 {row['val_top1']:.4f}{' (best)' if is_best else ''}, "
            f"{row['seconds']:.0f} s"
        )

    def _evaluate(self, model: CvT) -> Evaluation:
        job = self.job
        images = job.images.validation
        rank, count = torchrun.rank(), torchrun.count()
        judged = judge.subject(
            TorchEngine(model, job.device, job.settings.precision, self._macs),
            job.preprocessing,
            job.labels,
            np.arange(len(job.labels), dtype=np.int64),
            images,
        )
        judge.judge(
            [judged],
            images,
            indices=range(rank, len(images), count),
            batch_size=job.settings.batch_size,
            workers=machine.threads(),
            progress=self.progress if rank == 0 else silent,
        )
        for other, state in enumerate(torchrun.gather(judged.result.state())):
            if other != rank:
                judged.result.add_state(state, at_once=True)
        return judged.result

    def _probe(self, folder: Path, position: _Position) -> dict[str, Any]:
        """Solve the head alone, on features that are computed once."""
        job = self.job
        if torchrun.count() > 1:
            raise UsageError("`linear-probe` runs in one process", hint="start it without torchrun")
        started = perf_counter()
        engine = TorchEngine(job.model, job.device, job.settings.precision, self._macs)
        made_with = {
            "weights": probe.backbone_hash(job.model),
            "activation": job.model.config.activation,
            "preprocessing": job.preprocessing.to_json(),
            "precision": engine.precision,
            "device": job.device.type,
            "torch": torch.__version__,
            "version": __version__,
            "data": job.images.fingerprint,
        }
        found = [
            probe.cached_features(
                engine,
                images,
                job.preprocessing,
                folder / "state" / f"features-{part}.safetensors",
                Conditions({**made_with, "images": names_hash(images.names)}).key,
                batch_size=job.settings.batch_size,
                workers=machine.threads(),
                progress=self.progress,
            )
            for part, images in (("train", job.images.training), ("val", job.images.validation))
        ]
        counted = self._class_weights
        solution = probe.solve(
            *found[0],
            *found[1],
            len(job.labels),
            None if counted is None else counted.numpy().astype(np.float64),
        )
        for row in solution.rows:
            self._say(
                f"penalty {row.penalty:.3g}: loss {row.train_loss:.4f}, validation top-1 "
                f"{row.val_top1:.4f}{' (best)' if row.penalty == solution.penalty else ''}"
            )
        with torch.no_grad():
            job.model.head.weight.copy_(torch.from_numpy(solution.weight))
            job.model.head.bias.copy_(torch.from_numpy(solution.bias))
        judged = self._evaluate(job.model)
        chosen = next(row for row in solution.rows if row.penalty == solution.penalty)
        row = {
            "epoch": 1,
            "learning_rate": 0.0,
            "training_loss": chosen.train_loss,
            "val_loss": judged.loss,
            "val_top1": judged.top1,
            "val_top5": judged.topk,
            "seconds": perf_counter() - started,
            "step": 0,
            "elapsed": perf_counter() - started,
            "val_correct": judged.correct_top1,
            "val_correct_top5": judged.correct_topk,
        }
        position.rows, position.best = [row], 1
        position.seconds = row["elapsed"]
        for place in ("best", "last"):
            self._keep(folder, place, job.model, position, row)
        _write_metrics(folder, position.rows)
        return self._finish(folder, position)

    def _finish(
        self, folder: Path, position: _Position, part: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """What came of it, with the part of an epoch that it was stopped in."""
        job, settings = self.job, self.job.settings
        rows = position.rows if part is None else [*position.rows, part]
        if part is not None and part["val_correct"] > position.best_correct:
            best = part
        else:
            assert position.best is not None
            best = rows[position.best - 1]
        n = len(job.images.validation)
        result = {
            "run": str(folder),
            "best": str(folder / "best"),
            "best_epoch": best["epoch"],
            "best_step": best["step"],
            "val_n": n,
            "val_top1": best["val_top1"],
            "val_top1_interval": list(metrics.wilson(best["val_correct"], n)),
            "val_top5": best["val_top5"],
            "epochs": position.rows[-1]["epoch"] if position.rows else 0,
            "steps": rows[-1]["step"],
            "train_n": len(job.images.training),
            "n_unreadable": len(job.images.unreadable),
            "classes": len(job.labels),
            "recipe": settings.recipe.to_json(),
            "preprocessing": job.preprocessing.to_json(),
            "seed": settings.seed,
            "device": str(job.device),
            "hardware": self._hardware,
            "processes": torchrun.count(),
            "precision": settings.precision,
            "seconds": position.seconds,
            "fingerprint": job.images.fingerprint,
            "command": settings.command,
            "version": __version__,
            "torch": torch.__version__,
        }
        if torchrun.rank() == 0:
            if plots.available() and self.trainer is not None:
                plots.draw_curves(rows, folder / "curves.png")
            files.write_text(folder / "results.json", json.dumps(result, indent=1) + "\n")
        return result

    # --- files

    def _save(self, folder: Path, position: _Position) -> None:
        step = self.trainer.step_number if self.trainer else 0
        if torchrun.rank() == 0:
            position.loss_sum = float(position.loss_sum)
            if self.trainer is None:  # what the features are computed with
                state = {f"model.{name}": t for name, t in self.job.model.state_dict().items()}
            else:
                state = self.trainer.tensors()
            tensors = {name: t.detach().cpu().contiguous() for name, t in state.items()}
            numbers = {
                "trainer": self.trainer.numbers() if self.trainer else None,
                "position": asdict(position),
            }
            with self._stop.later(), files.replacing(folder / STATE_FILE) as temporary:
                try:
                    save_file(tensors, temporary, metadata={"run": json.dumps(numbers)})
                except SafetensorError as error:  # a full disk, say
                    raise OSError(str(error)) from error
        if self.trainer:
            self._saved = f" and saved at step {step} of {self.trainer.schedule.steps}"
        self._stop.obey()

    def _restore(self, folder: Path) -> _Position:
        path = folder / STATE_FILE
        try:
            with safe_open(path, "pt") as file:
                numbers = json.loads(file.metadata()["run"])
            tensors = load_file(path)
            if self.trainer is None:
                names = {name.removeprefix("model."): t for name, t in tensors.items()}
                self.job.model.load_state_dict(names)
            else:
                self.trainer.restore(tensors, numbers["trainer"])
                for row in numbers["position"]["rows"]:  # once they were counted as judged
                    row["epoch"] = -(-row["step"] // self.batches.steps)
                self._saved = (
                    f" and saved at step {self.trainer.step_number} of "
                    f"{self.trainer.schedule.steps}"
                )
            return _Position(**numbers["position"])
        except (SafetensorError, OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"`{path}` is not this run's state: {error}",
                hint="start again in another folder, from "
                f"--model {folder / 'last'} if that is there",
            ) from None

    def _keep(
        self, folder: Path, place: str, model: CvT, position: _Position, row: Mapping[str, Any]
    ) -> None:
        card = self._card(folder.name, position, row)
        weights.save(folder / place, model, self.job.labels, self.job.preprocessing, card)

    def _card(self, name: str, position: _Position, row: Mapping[str, Any]) -> str:
        job, settings = self.job, self.job.settings
        n = len(job.images.validation)
        facts = {
            "command": f"`{settings.command}`",
            "epoch": f"{row['epoch']} (step {row['step']}) of {self._epochs()}",
            "seed": str(settings.seed),
            "recipe": ", ".join(f"{key} {value}" for key, value in self._used().items()),
            "images": f"{len(job.images.training)} to train on, {n} "
            + ("set aside from them" if job.images.set_aside else "of the data's `val`")
            + f", {len(job.images.unreadable)} unreadable",
            "data fingerprint": job.images.fingerprint,
            "batch": f"up to {self.batches.step_images} images a step: {settings.batch_size} x "
            f"{settings.accumulate} accumulated x {torchrun.count()} processes",
            "precision": settings.precision,
            "hardware": f"{job.device}, {self._hardware}, {os.cpu_count()} cores",
            "time until this epoch": f"{row['elapsed'] / 60:.0f} minutes",
            "software": f"cvt-cli {__version__}, torch {torch.__version__}",
        }
        if self.trainer is None:  # no steps were taken
            facts = {key: value for key, value in facts.items() if key not in ("epoch", "batch")}
        return cards.model_card(
            name,
            f"A CvT of {len(job.labels)} classes, trained from `{job.name}` on `{settings.data}` "
            "with `cvt finetune`.",
            facts=facts,
            results={
                "top-1 on the validation images that the best epoch is chosen by": _measured(
                    row["val_correct"], n
                ),
                "top-5 on them": _measured(row["val_correct_top5"], n),
                "top-1 on test images": "not measured",
            },
            limits="It knows the classes that it was trained on and answers with one of them "
            "whatever the picture shows.",
        )

    def _used(self) -> dict[str, str]:
        """What of the recipe and the settings had a part in the training."""
        settings = self.job.settings
        recipe = {k: v for k, v in asdict(settings.recipe).items() if v is not None and v != ()}
        if self.trainer is None:
            recipe = {key: recipe[key] for key in ("name", "optimizer")}
        elif "steps" in recipe:  # which take the place of epochs
            del recipe["epochs"]
        if settings.freeze:
            recipe["frozen"] = " and ".join(settings.freeze)
        if settings.class_weights:
            recipe["class weights"] = "balanced"
        if settings.sync_batchnorm:
            recipe["BatchNorm"] = "synchronised"
        return recipe

    def _epochs(self) -> int:
        return -(-self.trainer.schedule.steps // self.batches.steps) if self.trainer else 1

    def _say(self, message: str) -> None:
        self._say_to(message)
        if self._log is not None and torchrun.rank() == 0:
            try:
                with self._log.open("a", encoding="utf-8") as file:
                    file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {message}\n")
            except OSError as error:
                raise files.unwritable(self._log, error) from error


def describe(plan: Mapping[str, Any]) -> list[str]:
    """A plan in lines for a person."""
    data, settings, model = plan["data"], plan["settings"], plan["model"]
    recipe = settings["recipe"]
    aside = "set aside from them" if data["val_set_aside"] else "of its own `val`"
    lines = [
        f"data: `{data['name']}`, {data['train_n']} images to train on, {data['val_n']} {aside} to "
        f"choose the best epoch by; {data['classes']} classes, the smallest `"
        f"{data['smallest_class']}` with {data['smallest_n']}; "
        + ("only the headers were read" if data["only_headers_read"] else "every file was read")
    ]
    if unreadable := data["unreadable"]:
        more = f" and {len(unreadable) - 5} more" if len(unreadable) > 5 else ""
        lines.append(f"{len(unreadable)} unreadable left out: {'; '.join(unreadable[:5])}{more}")
    preprocessing = Preprocessing.from_transformers(model["preprocessing"])
    lines.append(
        f"model: `{model['start']}`, {model['params']:,} parameters, "
        f"{model['trained_params']:,} of them trained; {preprocessing.describe()}"
    )
    if recipe["optimizer"] == "newton":
        lines.append(
            "recipe linear-probe: features computed once, the head solved by Newton's method, its "
            "penalty chosen on the validation images"
        )
    else:
        schedule = (
            f"{recipe['optimizer']}, peak learning rate {recipe['learning_rate']:.3g} for "
            f"{plan['step_images']} images a step ({settings['batch_size']} x "
            f"{settings['accumulate']} accumulated x {plan['processes']} processes), "
            f"warm-up {recipe['warmup_epochs']:g} epochs, {recipe['augment']}"
        )
        lines.append(f"recipe {recipe['name']}: {schedule}")
        if unstated := recipe["not_published"]:
            lines.append(f"not published, so ours: {', '.join(unstated)}")
        epochs = plan["steps"] / plan["steps_per_epoch"]
        lines.append(
            f"{plan['steps']} steps, {epochs:.4g} epochs of {plan['steps_per_epoch']}, seed "
            f"{settings['seed']}, {plan['device']}, {plan['hardware']}, {settings['precision']}"
        )
    if plan["estimated_sec"] is not None:
        lines.append(
            f"about {_rough(plan['estimated_sec'])} ({plan['step_sec']:.3g} s a step, measured on "
            f"{plan['timed_steps']}); peak memory so far "
            f"{human_bytes(plan['peak_memory_bytes'])}"
        )
    return lines


def _rough(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"


def read_plan(folder: Path) -> dict[str, Any]:
    """What `Run.begin` wrote of a run.

    Raises:
        CheckpointError: there is no run in the folder, or none with a state, or its plan is
            damaged.
    """
    path = folder / PLAN_FILE
    try:
        plan = text.read_json(path)
        version = plan.get("version", 1) if isinstance(plan, dict) else None
        if version in range(1, PLAN_VERSION + 1):
            settings_of(plan)  # whether it is whole
            for place, key in _ASKED_OF_A_PLAN:
                plan[place][key]
            plan["processes"], plan["step_images"]
            if (folder / STATE_FILE).exists():
                return plan  # type: ignore[no-any-return]
            raise CheckpointError(
                f"`{folder}` holds no run to go on with: it ended before `{STATE_FILE}` was there",
                hint=f"begin it again: {plan['settings']['command']}",
            )
    except FileNotFoundError:
        raise CheckpointError(
            f"`{folder}` holds no run to go on with: there is no `{PLAN_FILE}` in it",
            hint="name the folder that an earlier `cvt finetune` wrote",
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"`{path}` cannot be read: {error}") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"`{path}` is not a plan as this version of cvt writes it (version {PLAN_VERSION}): "
            f"{f'it has no {error}' if isinstance(error, KeyError) else error}",
            hint=_OTHER_VERSION,
        ) from None
    raise CheckpointError(
        f"`{path}` is of version {json.dumps(version)}; this version of cvt goes on with runs of "
        f"version 1 to {PLAN_VERSION}",
        hint=_OTHER_VERSION,
    )


_OTHER_VERSION = (
    "go on with the version of cvt that began it, or start another run, from --model RUN/best for "
    "example"
)

_ASKED_OF_A_PLAN = (
    ("data", "fingerprint"),
    ("data", "train_n"),
    ("data", "val_n"),
    ("data", "val_set_aside"),
    ("data", "val_fraction"),
    ("model", "start"),
    ("model", "config"),
    ("model", "preprocessing"),
)


def settings_of(plan: Mapping[str, Any]) -> Settings:
    """The settings of a plan; raises KeyError or TypeError where it is none."""
    values = dict(plan["settings"])
    recipe = dict(values.pop("recipe"))
    recipe.pop("augmentation", None)  # what the name stands for
    recipe["not_published"] = tuple(recipe["not_published"])
    values["freeze"] = tuple(values["freeze"])
    if "version" not in plan:
        values["every_image"] = False
    return Settings(recipe=Recipe(**recipe), **values)


def job_of(
    plan: Mapping[str, Any], settings: Settings, images: Images, device: torch.device, workers: int
) -> Job:
    """The job of a plan, whose weights are in its folder's state.

    Raises:
        DataError: the images are not those that the run began with.
        UsageError: the images of a step cannot be shared among so many processes.
    """
    found = images.fingerprint if "version" in plan else images.size_fingerprint
    if found != plan["data"]["fingerprint"]:
        raise DataError(
            f"`{settings.data}` is not what the run began with: it had {plan['data']['train_n']} "
            f"images to train on and {plan['data']['val_n']} to choose by, and another fingerprint",
            hint="bring the images back as they were, or start another run, from "
            "--model RUN/best for example",
        )
    shares = settings.accumulate * torchrun.count()
    if plan["step_images"] is not None:
        if plan["step_images"] % shares:
            raise UsageError(
                f"the {plan['step_images']} images of a step cannot be shared among "
                f"{torchrun.count()} processes",
                hint=f"go on with {plan['processes']}, as it began",
            )
        settings = replace(settings, batch_size=plan["step_images"] // shares)
    config, _ = folders.config_from_transformers(plan["model"]["config"])
    preprocessing = Preprocessing.from_transformers(plan["model"]["preprocessing"])
    start = plan["model"]["start"]
    return Job(start, CvT(config), preprocessing, images, settings, device, workers)


def _measured(correct: int, n: int) -> str:
    low, high = metrics.wilson(correct, n)
    return f"{cards.percent(correct, n)}, 95 % interval {100 * low:.2f} to {100 * high:.2f} %"


def _write_metrics(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    columns = ["epoch", "learning_rate", "training_loss", "val_loss", "val_top1", "val_top5"]
    content = io.StringIO()
    table = csv.writer(content, lineterminator="\n")
    table.writerow([*columns, "seconds", "step"])
    for row in rows:
        numbers = ["" if row[c] is None else f"{row[c]:.6g}" for c in columns]
        table.writerow([*numbers, f"{row['seconds']:.1f}", row["step"]])
    files.write_text(folder / "metrics.csv", content.getvalue())


def _deaf(number: int, frame: FrameType | None) -> None:
    """Nothing more is to be asked of this process."""


def check_free(folder: Path) -> None:
    """Raises CvtError if a run cannot begin in a folder.

    It can where there is none, or an empty one, or one with what a process leaves that ended before
    its first state was saved: a lock, a plan that nothing was done of.
    """
    ours = {folder / name for name in ("state", "state/lock", "split.json", PLAN_FILE)}
    try:
        if not folder.exists():
            return
        places = [place for place in (folder, folder / "state") if place.is_dir()]
        found = {path for place in places for path in place.iterdir()}
    except OSError as error:
        raise files.unwritable(folder, error) from error
    if places and all(path in ours or path.name.endswith(files.SUFFIX) for path in found):
        return
    raise CvtError(
        f"`{folder}` exists and is not an empty folder",
        hint=f"go on with it, --resume {shlex.quote(str(folder))}, or name another with --output",
    )


class _Stop:
    """Who asks a run to stop: Ctrl-C, SIGTERM (torchrun, `timeout`, Slurm), a closed terminal."""

    def __init__(self) -> None:
        self.asked = False
        self._since = 0.0
        self._deferred = 0

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Listen: outside of `later` KeyboardInterrupt is raised at once.

        What is ignored stays so: SIGHUP under nohup, SIGINT in a shell's background.
        """
        before = {}
        try:
            for name in ("SIGINT", "SIGTERM", "SIGHUP"):
                which = getattr(signal, name, None)  # Windows has no SIGHUP
                if which is not None and signal.getsignal(which) is not signal.SIG_IGN:
                    before[which] = signal.signal(which, self._hear)
        except ValueError:  # not in the main thread, where nobody presses keys
            pass
        ending = False
        try:
            yield
        except KeyboardInterrupt:
            ending = True
            raise
        finally:
            for which, handler in before.items():
                # Where the process ends now, being asked once more is no reason for tracebacks out
                # of whatever is cleaned up.
                signal.signal(which, _deaf if ending else handler)

    @contextmanager
    def later(self) -> Iterator[None]:
        """Let what is under way be finished first; being asked again by Ctrl-C stops at once."""
        self._deferred += 1
        try:
            yield
        finally:
            self._deferred -= 1

    def obey(self) -> None:
        """Raise the KeyboardInterrupt that `later` put off, unless it still does."""
        if self.asked and not self._deferred:
            raise KeyboardInterrupt

    def _hear(self, number: int, frame: FrameType | None) -> None:
        now = perf_counter()
        first = not self.asked
        if first:
            self.asked, self._since = True, now
        elif now - self._since < _SAME_SIGNAL_SEC or number != signal.SIGINT:
            return
        if not (first and self._deferred):
            raise KeyboardInterrupt
