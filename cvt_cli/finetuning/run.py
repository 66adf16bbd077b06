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

import json
import os
import platform
import shlex
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from cvt_cli.base import files, machine, torchrun
from cvt_cli.base.conditions import Conditions, json_hash, names_hash
from cvt_cli.base.errors import CheckpointError, DataError, UsageError
from cvt_cli.base.package import __version__
from cvt_cli.base.progress import Progress, Say, silent
from cvt_cli.base.text import human_bytes
from cvt_cli.checkpoints import cards, folders
from cvt_cli.evaluation import judge, metrics, plots
from cvt_cli.evaluation.counts import Counts
from cvt_cli.finetuning import batches as training_data
from cvt_cli.finetuning import probe, tensorboard, training
from cvt_cli.finetuning.batches import Batches
from cvt_cli.finetuning.job import Job
from cvt_cli.finetuning.plan import PLAN_FILE, PLAN_VERSION, SPLIT_FILE
from cvt_cli.finetuning.results import measured, write_metrics
from cvt_cli.finetuning.start import check_free, check_split
from cvt_cli.finetuning.state import (
    STATE_FILE,
    WHOLE_BEST,
    Position,
    read_tensors,
    write_tensors,
)
from cvt_cli.finetuning.stop import Stop
from cvt_cli.finetuning.training import Trainer, Watch
from cvt_cli.model import devices, engine, weights
from cvt_cli.model.engine import TorchEngine
from cvt_cli.model.network import CvT
from cvt_cli.spec.costs import costs
from cvt_cli.spec.recipes import AUGMENTATIONS

SAVE_EVERY_SEC = 60.0
"""Between two states in the middle of an epoch, unless writing one takes long."""

TIMED_STEPS = 3
"""By which the plan estimates the time."""

_INTERRUPTED, _OUT_OF_TIME = 2, 1


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
        self._stop = Stop()
        self._saved = ""  # what of it is on the disk, for who interrupts it
        self._plan_hash: str | None = None  # of the plan that it began with, where that is known
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
                "root": str(images.training.root.resolve()),
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
                raise files.unwritable(folder / SPLIT_FILE, error) from error

        def start() -> Position:
            if torchrun.rank() == 0:
                check_free(folder)  # another process may have been faster
                images = self.job.images
                split = {
                    "seed": self.job.settings.seed,
                    "root": str(images.validation.root.resolve()),
                    "validation": list(images.validation.names),
                }
                files.write_text(folder / SPLIT_FILE, json.dumps(split, indent=1) + "\n")
                files.write_text(folder / PLAN_FILE, json.dumps(plan, indent=1) + "\n")
                self._plan_hash = json_hash(plan)
                self._save(folder, Position([]))
            return Position([])

        return self._run(folder, start)

    def go_on(self, folder: Path) -> dict[str, Any]:
        """Train on from where a run was left; see `begin`.

        Raises:
            CvtError: likewise, or its state does not fit.
        """

        def start() -> Position:
            # What an epoch that --max-time ended early took the place of; it goes on now.
            whole = folder / WHOLE_BEST
            check_split(folder, self.job.images.validation)
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

    def _run(self, folder: Path, start: Callable[[], Position]) -> dict[str, Any]:
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

    def _train(self, folder: Path, position: Position, trainer: Trainer) -> dict[str, Any]:
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
        position: Position,
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

    def _judge(self, position: Position, trainer: Trainer, begun: float) -> dict[str, Any]:
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
        position: Position,
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
            write_metrics(folder, position.rows)
            if events is not None:
                values = {key: row[key] for key in ("training_loss", "val_loss", "val_top1")}
                events.add(trainer.step_number, {k: v for k, v in values.items() if v is not None})
        self._say_row(row, is_best)

    def _keep_part(
        self, folder: Path, position: Position, trainer: Trainer, part: dict[str, Any]
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
            write_metrics(folder, [*position.rows, part])
        self._say_row(part, is_best, " in part")

    def _say_row(self, row: Mapping[str, Any], is_best: bool, what: str = "") -> None:
        self._say(
            f"epoch {row['epoch']}/{self._epochs()}{what}: loss {row['training_loss']:.4f}, "
            f"validation top-1 {row['val_top1']:.4f}{' (best)' if is_best else ''}, "
            f"{row['seconds']:.0f} s"
        )

    def _evaluate(self, model: CvT) -> Counts:
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

    def _probe(self, folder: Path, position: Position) -> dict[str, Any]:
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
        write_metrics(folder, position.rows)
        return self._finish(folder, position)

    def _finish(
        self, folder: Path, position: Position, part: dict[str, Any] | None = None
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

    def _save(self, folder: Path, position: Position) -> None:
        step = self.trainer.step_number if self.trainer else 0
        if torchrun.rank() == 0:
            position.loss_sum = float(position.loss_sum)
            if self.trainer is None:  # what the features are computed with
                state = {f"model.{name}": t for name, t in self.job.model.state_dict().items()}
            else:
                state = self.trainer.tensors()
            numbers = {
                "trainer": self.trainer.numbers() if self.trainer else None,
                "position": asdict(position),
                "plan": self._plan_hash,
            }
            with self._stop.later():
                write_tensors(folder / STATE_FILE, state, {"run": json.dumps(numbers)})
        if self.trainer:
            self._saved = f" and saved at step {step} of {self.trainer.schedule.steps}"
        self._stop.obey()

    def _restore(self, folder: Path) -> Position:
        path = folder / STATE_FILE
        try:
            tensors, about = read_tensors(path)
            numbers = json.loads(about["run"])
            self._plan_hash = numbers.get("plan")
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
            return Position(**numbers["position"])
        except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"`{path}` is not this run's state: {error}",
                hint="start again in another folder, from "
                f"--model {folder / 'last'} if that is there",
            ) from None

    def _keep(
        self, folder: Path, place: str, model: CvT, position: Position, row: Mapping[str, Any]
    ) -> None:
        card = self._card(folder.name, position, row)
        weights.save(folder / place, model, self.job.labels, self.job.preprocessing, card)

    def _card(self, name: str, position: Position, row: Mapping[str, Any]) -> str:
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
                "top-1 on the validation images that the best epoch is chosen by": measured(
                    row["val_correct"], n
                ),
                "top-5 on them": measured(row["val_correct_top5"], n),
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
