"""A training run on disk, which nothing that happens to the process can spoil.

RUN/plan.json      everything that the run depends on: data, model, recipe, versions, command
RUN/split.json     names of the images that the best epoch is chosen by
RUN/metrics.csv    a line per epoch
RUN/best/          the epoch with the best top-1 on those images, as a checkpoint folder
RUN/last/          the last epoch done
RUN/state/         what --resume goes on from, in the middle of an epoch too
RUN/results.json   what came of it, once it is finished
RUN/log.txt        what was said; curves.png and TensorBoard's events with their extras
"""

import csv
import io
import json
import os
import platform
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

from cvt_cli import (
    __version__,
    cards,
    datacheck,
    devices,
    evaluation,
    files,
    layouts,
    machine,
    metrics,
    plots,
    probe,
    tensorboard,
    torchrun,
    training,
    training_data,
    weights,
)
from cvt_cli.datasets import LabelledImages
from cvt_cli.devices import Precision
from cvt_cli.errors import CheckpointError, CvtError, DataError, UsageError
from cvt_cli.labels import Labels
from cvt_cli.metrics import Evaluation
from cvt_cli.model import CvT
from cvt_cli.preprocessing import Preprocessing
from cvt_cli.progress import Progress, Say, silent
from cvt_cli.recipes import AUGMENTATIONS, Recipe
from cvt_cli.text import human_bytes
from cvt_cli.torch_engine import TorchEngine
from cvt_cli.training import Trainer, Watch
from cvt_cli.training_data import Batches

PLAN_FILE = "plan.json"
STATE_FILE = Path("state", "state.safetensors")

SAVE_EVERY_SEC = 60.0
"""Between two states in the middle of an epoch, unless writing one takes long."""

TIMED_STEPS = 3
"""By which the plan estimates the time."""

_INTERRUPTED, _OUT_OF_TIME = 2, 1


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


@dataclass(frozen=True)
class Images:
    """What is trained on, what the best epoch is chosen by, and what was found in checking both."""

    training: LabelledImages
    validation: LabelledImages
    set_aside: bool  # the validation images were taken from the training images
    unreadable: tuple[str, ...]  # names of the images left out, with the reason
    only_headers: bool  # damage behind a header was not looked for
    fingerprint: str


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
    prints, headers = [], False
    readable = []
    for images in (found, published):
        if images is None:
            continue
        checked = datacheck.check(images, machine.threads(), progress)
        prints.append(checked.fingerprint)
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
        training_set, validation, published is None, tuple(unreadable), headers, " ".join(prints)
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
    best: int | None = None  # its number, from 1
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
        )
        self.trainer: Trainer | None = None
        if recipe.optimizer == "newton":
            return
        if job.device.type == "cpu":
            training.keep_memory()
        if not self.batches.steps:
            raise DataError(
                f"{len(job.images.training)} images to train on are fewer than the "
                f"{self.batches.step_images} of a step",
                hint="give a smaller --batch-size, or less to --accumulate",
            )
        schedule = training.schedule_of(recipe, self.batches.steps)
        counted = training.class_weights(
            job.images.training.labels, len(job.images.training.classes)
        )
        self.trainer = Trainer(
            job.model,
            recipe,
            schedule,
            device=job.device,
            precision=settings.precision,
            seed=settings.seed,
            ema=recipe.ema_epochs * self.batches.steps,
            class_weights=counted if settings.class_weights else None,
            frozen=training.freeze(job.model, settings.freeze),
            sync_batchnorm=settings.sync_batchnorm,
            checkpoint_activations=settings.checkpoint_activations,
        )

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
                "config": layouts.transformers_config(job.model.config, job.labels, __version__),
                "preprocessing": job.preprocessing.to_transformers(),
            },
            "settings": {**asdict(settings), "recipe": recipe.to_json()},
            "processes": torchrun.count(),
            "workers": job.workers,
            "device": str(job.device),
            "hardware": devices.hardware(job.device),
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
        images = self.job.images
        if torchrun.rank() == 0:
            if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
                raise CvtError(
                    f"`{folder}` exists and is not an empty folder",
                    hint=f"go on with it, --resume {folder}, or name another with --output",
                )
            split = {
                "seed": self.job.settings.seed,
                "root": str(images.validation.root),
                "validation": list(images.validation.names),
            }
            files.write_text(folder / "split.json", json.dumps(split, indent=1) + "\n")
            files.write_text(folder / PLAN_FILE, json.dumps(plan, indent=1) + "\n")
            self._save(folder, _Position([]))
        return self._run(folder, _Position([]))

    def go_on(self, folder: Path) -> dict[str, Any]:
        """Train on from where a run was left; see `begin`.

        Raises:
            CvtError: likewise, or its state does not fit.
        """
        return self._run(folder, self._restore(folder))

    def _run(self, folder: Path, position: _Position) -> dict[str, Any]:
        with ExitStack() as stack:
            if torchrun.rank() == 0:
                lock = folder / "state" / "lock"
                stack.enter_context(files.locked(lock, f"training in `{folder}`", self._say_to))
            self._log = folder / "log.txt"
            if torchrun.rank() == 0:  # what a kill in the middle of writing left
                for left in folder.rglob(".*.tmp"):
                    left.unlink(missing_ok=True)
            if self.trainer is None:
                result = self._probe(folder, position)
            else:
                result = self._train(folder, position, self.trainer)
        return result

    def _train(self, folder: Path, position: _Position, trainer: Trainer) -> dict[str, Any]:
        job, settings = self.job, self.job.settings
        per_epoch, total = self.batches.steps, trainer.schedule.steps
        begun = perf_counter() - position.seconds  # as if it had been trained in one go
        if trainer.step_number:
            self._say(
                f"going on at step {trainer.step_number} of {total}, epoch "
                f"{min(trainer.step_number, total - 1) // per_epoch + 1}"
            )
        watch = Watch(len(job.labels), settings.recipe, settings.precision)
        events = (
            tensorboard.Events(folder / "events", trainer.step_number)
            if torchrun.rank() == 0 and tensorboard.available()
            else None
        )
        with ExitStack() as stack:
            if events is not None:
                stack.callback(events.close)
            while not position.finished:
                validated = position.rows[-1]["step"] if position.rows else 0
                at_end = trainer.step_number == total or trainer.step_number % per_epoch == 0
                why = 0
                if not (at_end and trainer.step_number > validated):
                    why = self._train_epoch(folder, position, trainer, watch, begun, events)
                    position.seconds = perf_counter() - begun
                    self._save(folder, position)
                    if why == _INTERRUPTED:
                        self._say(
                            f"interrupted and saved at step {trainer.step_number} of {total}; go "
                            f"on with: cvt finetune --resume {folder}"
                        )
                        raise KeyboardInterrupt
                self._validate(folder, position, trainer, begun, events)
                worse = len(position.rows) - (position.best or 0)
                if why == _OUT_OF_TIME:
                    self._say(
                        f"stopped at step {trainer.step_number} of {total}: "
                        f"{settings.max_time_sec:.0f} s are over (--max-time)"
                    )
                    self._save(folder, position)
                    break
                if settings.patience is not None and worse >= settings.patience:
                    self._say(f"stopped: no better epoch in {worse} (--patience)")
                elif trainer.step_number < total:
                    self._save(folder, position)
                    continue
                position.finished = True
                self._save(folder, position)
        return self._finish(folder, position)

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
        with (
            _interruptible() as asked,
            self.progress(
                f"epoch {epoch + 1}/{epochs}",
                min(per_epoch, total - epoch * per_epoch) * self.batches.step_images,
                done=first * self.batches.step_images,
            ) as advance,
        ):
            for parts in self.batches.of_epoch(epoch, first):
                rate = trainer.schedule(trainer.step_number)
                loss = trainer.step(parts)
                watch(loss, trainer.step_number - 1, rate)
                position.loss_sum = loss + position.loss_sum  # type: ignore[assignment]
                position.loss_steps += 1
                advance(self.batches.step_images, "")
                now = perf_counter()
                limit = settings.max_time_sec
                over = limit is not None and now - self._started > limit
                why = _INTERRUPTED if asked() else _OUT_OF_TIME if over else 0
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

    def _validate(
        self,
        folder: Path,
        position: _Position,
        trainer: Trainer,
        begun: float,
        events: "tensorboard.Events | None",
    ) -> None:
        """Judge the epoch, or the part of it that was done; keep it if it is the best."""
        found = self._evaluate(trainer.best_model)
        number = len(position.rows) + 1
        before = position.rows[-1]["elapsed"] if position.rows else 0.0
        elapsed = perf_counter() - begun
        row = {
            "epoch": number,
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
        position.rows.append(row)
        position.loss_sum, position.loss_steps = 0.0, 0
        position.seconds = elapsed
        is_best = found.correct_top1 > position.best_correct
        if is_best:
            position.best, position.best_correct = number, found.correct_top1
        if torchrun.rank() == 0:
            for place in ("best", "last") if is_best else ("last",):
                self._keep(folder, place, trainer.best_model, position, row)
            _write_metrics(folder, position.rows)
            if events is not None:
                values = {key: row[key] for key in ("training_loss", "val_loss", "val_top1")}
                events.add(trainer.step_number, {k: v for k, v in values.items() if v is not None})
        epochs = -(-trainer.schedule.steps // self.batches.steps)
        self._say(
            f"epoch {number}/{epochs}: loss {row['training_loss']:.4f}, validation top-1 "
            f"{found.top1:.4f}{' (best)' if is_best else ''}, {row['seconds']:.0f} s"
        )

    def _evaluate(self, model: CvT) -> Evaluation:
        job = self.job
        images = job.images.validation
        rank, count = torchrun.rank(), torchrun.count()
        judged = evaluation.subject(
            TorchEngine(model, job.device, job.settings.precision),
            job.preprocessing,
            job.labels,
            np.arange(len(job.labels), dtype=np.int64),
            images,
        )
        evaluation.evaluate(
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
        engine = TorchEngine(job.model, job.device, job.settings.precision)
        found = [
            probe.cached_features(
                engine,
                images,
                job.preprocessing,
                folder / "state" / f"features-{part}.safetensors",
                job.images.fingerprint,
                batch_size=job.settings.batch_size,
                workers=machine.threads(),
                progress=self.progress,
            )
            for part, images in (("train", job.images.training), ("val", job.images.validation))
        ]
        counted = training.class_weights(job.images.training.labels, len(job.labels)).numpy()
        solution = probe.solve(
            *found[0],
            *found[1],
            len(job.labels),
            counted.astype(np.float64) if job.settings.class_weights else None,
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

    def _finish(self, folder: Path, position: _Position) -> dict[str, Any]:
        job, settings = self.job, self.job.settings
        assert position.best is not None
        best = position.rows[position.best - 1]
        n = len(job.images.validation)
        result = {
            "run": str(folder),
            "best": str(folder / "best"),
            "best_epoch": position.best,
            "val_n": n,
            "val_top1": best["val_top1"],
            "val_top1_interval": list(metrics.wilson(best["val_correct"], n)),
            "val_top5": best["val_top5"],
            "epochs": len(position.rows),
            "steps": position.rows[-1]["step"],
            "train_n": len(job.images.training),
            "n_unreadable": len(job.images.unreadable),
            "classes": len(job.labels),
            "recipe": settings.recipe.to_json(),
            "preprocessing": job.preprocessing.to_json(),
            "seed": settings.seed,
            "device": str(job.device),
            "hardware": devices.hardware(job.device),
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
                plots.draw_curves(position.rows, folder / "curves.png")
            files.write_text(folder / "results.json", json.dumps(result, indent=1) + "\n")
        return result

    # --- files

    def _save(self, folder: Path, position: _Position) -> None:
        if torchrun.rank() != 0:
            return
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
        with files.replacing(folder / STATE_FILE) as temporary:
            try:
                save_file(tensors, temporary, metadata={"run": json.dumps(numbers)})
            except SafetensorError as error:  # a full disk, say
                raise OSError(str(error)) from error

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
        except (SafetensorError, OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"`{path}` is not this run's state: {error}",
                hint="start again in another folder, from "
                f"--model {folder / 'last'} if that is there",
            ) from None
        return _Position(**numbers["position"])

    def _keep(
        self, folder: Path, place: str, model: CvT, position: _Position, row: Mapping[str, Any]
    ) -> None:
        card = self._card(folder.name, position, row)
        weights.save(folder / place, model, self.job.labels, self.job.preprocessing, card)

    def _card(self, name: str, position: _Position, row: Mapping[str, Any]) -> str:
        job, settings = self.job, self.job.settings
        n = len(job.images.validation)
        recipe = ", ".join(
            f"{key} {value}" for key, value in asdict(settings.recipe).items() if value is not None
        )
        return cards.model_card(
            name,
            f"A CvT of {len(job.labels)} classes, trained from `{job.name}` on `{settings.data}` "
            "with `cvt finetune`.",
            facts={
                "command": f"`{settings.command}`",
                "epoch": f"{row['epoch']} (step {row['step']}) of {self._epochs()}",
                "seed": str(settings.seed),
                "recipe": recipe,
                "images": f"{len(job.images.training)} to train on, {n} "
                + ("set aside from them" if job.images.set_aside else "of the data's `val`")
                + f", {len(job.images.unreadable)} unreadable",
                "data fingerprint": job.images.fingerprint,
                "batch": f"{self.batches.step_images} images a step: {settings.batch_size} x "
                f"{settings.accumulate} accumulated x {torchrun.count()} processes",
                "precision": settings.precision,
                "hardware": f"{job.device}, {devices.hardware(job.device)}, {os.cpu_count()} cores",
                "time until this epoch": f"{row['elapsed'] / 60:.0f} minutes",
                "software": f"cvt-cli {__version__}, torch {torch.__version__}",
            },
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
        CheckpointError: there is no run in the folder, or its plan is damaged.
    """
    path = folder / PLAN_FILE
    try:
        plan: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        plan["settings"]["recipe"].pop("augmentation", None)
        return plan
    except FileNotFoundError:
        raise CheckpointError(
            f"`{folder}` holds no run to go on with: there is no `{PLAN_FILE}` in it",
            hint="name the folder that an earlier `cvt finetune` wrote",
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"`{path}` cannot be read: {error}") from None


def settings_of(plan: Mapping[str, Any]) -> Settings:
    """The settings of a plan."""
    values = dict(plan["settings"])
    recipe = dict(values.pop("recipe"))
    recipe["not_published"] = tuple(recipe["not_published"])
    values["freeze"] = tuple(values["freeze"])
    return Settings(recipe=Recipe(**recipe), **values)


def job_of(
    plan: Mapping[str, Any], settings: Settings, images: Images, device: torch.device, workers: int
) -> Job:
    """The job of a plan, whose weights are in its folder's state.

    Raises:
        DataError: the images are not those that the run began with.
        UsageError: the images of a step cannot be shared among so many processes.
    """
    if images.fingerprint != plan["data"]["fingerprint"]:
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
    config, _ = layouts.config_from_transformers(plan["model"]["config"])
    preprocessing = Preprocessing.from_transformers(plan["model"]["preprocessing"])
    start = plan["model"]["start"]
    return Job(start, CvT(config), preprocessing, images, settings, device, workers)


def _measured(correct: int, n: int) -> str:
    low, high = metrics.wilson(correct, n)
    return f"{cards.percent(correct, n)}, 95 % interval {100 * low:.2f} to {100 * high:.2f} %"


def _write_metrics(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    columns = ["epoch", "learning_rate", "training_loss", "val_loss", "val_top1", "val_top5"]
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([*columns, "seconds", "step"])
    for row in rows:
        numbers = ["" if row[c] is None else f"{row[c]:.6g}" for c in columns]
        table.writerow([*numbers, f"{row['seconds']:.1f}", row["step"]])
    files.write_text(folder / "metrics.csv", text.getvalue())


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Let a step finish when Ctrl-C, or torchrun, asks to stop; a second time stops at once."""
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    before = {}
    try:
        for which in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(which) is not signal.SIG_IGN:  # as nohup and a shell's & set it
                before[which] = signal.signal(which, ask)
    except ValueError:  # not in the main thread, where nobody presses keys
        pass
    try:
        yield lambda: asked
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)
