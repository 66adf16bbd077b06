"""Epoch after epoch: trained, judged, kept; ended early by a signal, by time or by patience."""

import shlex
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

from cvt_cli.base import torchrun
from cvt_cli.base.progress import Progress, Say
from cvt_cli.base.text import fraction
from cvt_cli.finetuning import plan, results, run_card
from cvt_cli.finetuning.batches import Batches, workers_watched
from cvt_cli.finetuning.job import Job
from cvt_cli.finetuning.resume import WHOLE_BEST, Epoch, Position
from cvt_cli.finetuning.stop import Stop
from cvt_cli.finetuning.trainer import Trainer
from cvt_cli.finetuning.validation import validate
from cvt_cli.finetuning.watch import Watch
from cvt_cli.tracking.feed import Feed

SAVE_EVERY_SEC = 60.0
"""Between two states in the middle of an epoch, unless writing one takes long."""

_INTERRUPTED, _OUT_OF_TIME, _WHOLE = 2, 1, 0
"""Why an epoch ended; of several processes the largest decides."""


class Loop:
    """Trains a run from where it stands to its end.

    Args:
        job: what is trained.
        batches: the training images.
        trainer: the network in training.
        folder: of the run.
        position: how far the run has come; it is moved on.
        save: writes the run's state.
        stop: who asks the run to stop.
        started: when this process began, by `perf_counter`; ``--max-time`` counts from there.
        say: told what happens, one sentence at a time.
        progress: told of every step.
    """

    def __init__(
        self,
        job: Job,
        batches: Batches,
        trainer: Trainer,
        folder: Path,
        position: Position,
        *,
        save: Callable[[], None],
        stop: Stop,
        started: float,
        say: Say,
        progress: Progress,
    ) -> None:
        self.job, self.batches, self.trainer = job, batches, trainer
        self.folder, self.position = folder, position
        self._save, self._stop, self._say, self._progress = save, stop, say, progress
        self._started = started
        self._begun = perf_counter() - position.seconds  # as if it had been trained in one go
        self._total, self._per_epoch = trainer.schedule.steps, batches.steps
        self._epochs = -(-self._total // self._per_epoch)
        recipe, precision = job.settings.recipe, job.settings.precision
        guessed = 2 if job.several else len(job.labels)  # of several, each is guessed by itself
        self._watch = Watch(guessed, recipe, precision, job.heaviest_class * batches.heaviest_image)
        self._feed: Feed | None = None

    def train(self) -> Epoch | None:
        """Train on.

        Returns:
            What came of the epoch that ``--max-time`` ended early, if it did.

        Raises:
            KeyboardInterrupt: the run was asked to stop, and its state is saved.
            CvtError: the run is lost, or a file cannot be written.
            DataError: an image cannot be read.
        """
        if self.trainer.step_number and not self.position.finished:
            self._say(
                f"continuing at step {self.trainer.step_number} of {self._total}, epoch "
                f"{min(self.trainer.step_number, self._total - 1) // self._per_epoch + 1}"
            )
        if torchrun.rank() != 0:
            return self._train()
        track, settings = self.job.track, plan.settings_json(self.job)
        with Feed(track, self.folder, settings, self.trainer.step_number, self._say) as self._feed:
            part = self._train()
            self._feed.card = self.folder / "best" / "README.md"
            return part

    def _train(self) -> Epoch | None:
        position = self.position
        while not position.finished:
            why = _WHOLE
            if not self._waits_for_judgement():
                why = self._train_epoch()
                position.seconds = perf_counter() - self._begun
                self._save()
                if why == _INTERRUPTED:
                    raise KeyboardInterrupt
            if why == _OUT_OF_TIME:
                self._say(
                    f"stopped at step {self.trainer.step_number} of {self._total}: "
                    f"{self.job.settings.max_time_sec:.0f} s have passed (--max-time)"
                )
                if not self._ends_epoch(self.trainer.step_number):
                    part = self._judged()
                    self._keep_part(part)
                    return part
            self._take(self._judged())
            self._finish_if_done()
            self._save()
            if why == _OUT_OF_TIME:
                break
        return None

    def _waits_for_judgement(self) -> bool:
        """Whether an epoch was trained to its end, and the run ended before it was judged."""
        judged = self.position.rows[-1].step if self.position.rows else 0
        return self._ends_epoch(self.trainer.step_number) and self.trainer.step_number > judged

    def _ends_epoch(self, step: int) -> bool:
        """Whether an epoch is whole after so many steps; the last one may be shorter."""
        return step == self._total or step % self._per_epoch == 0

    def _finish_if_done(self) -> None:
        """Note that the run is finished, if it has all its steps or nothing gets better."""
        position, patience = self.position, self.job.settings.patience
        worse = sum(self._ends_epoch(row.step) for row in position.rows[position.best :])
        if self.trainer.step_number == self._total:
            position.finished = True
        elif patience is not None and worse >= patience:
            self._say(f"stopped: no better epoch in {worse} (--patience)")
            position.finished = True

    def _train_epoch(self) -> int:
        """Train the rest of an epoch, and say why it ended."""
        trainer, position, seen = self.trainer, self.position, self.batches.images
        epoch, first = divmod(trainer.step_number, self._per_epoch)
        steps = min(self._per_epoch, self._total - epoch * self._per_epoch)
        saved, interval = perf_counter(), SAVE_EVERY_SEC
        folder = shlex.quote(str(self.folder))
        with (
            self._stop.later(),
            torchrun.others_watched(),
            workers_watched(f"continue with fewer: cvt finetune --resume {folder} --workers 0"),
            self._progress(
                f"epoch {epoch + 1}/{self._epochs}", seen(steps), done=seen(first)
            ) as advance,
        ):
            for step, parts in enumerate(self.batches.of_epoch(epoch, first), start=first):
                rate = trainer.schedule(trainer.step_number)
                images = seen(step + 1) - seen(step)
                loss = trainer.step(parts, images)
                self._watch(loss, trainer.step_number - 1, rate)
                position.loss_sum = loss + position.loss_sum
                position.loss_steps += 1
                advance(images, "")
                now = perf_counter()
                if why := torchrun.largest(self._why_end(now)):
                    self._watch.all_good(trainer.model.parameters())
                    return why
                if trainer.step_number == self._total:
                    break
                if now - saved > interval:
                    self._watch.all_good(trainer.model.parameters())
                    position.seconds = now - self._begun
                    self._save()
                    saved = perf_counter()
                    interval = max(SAVE_EVERY_SEC, 50 * (saved - now))
                if self._feed is not None and trainer.step_number % 50 == 0 and self._feed.wanted:
                    values = {"loss": float(loss), "learning_rate": rate}
                    self._feed.add(trainer.step_number, values)
        self._watch.all_good(trainer.model.parameters())
        return _WHOLE

    def _why_end(self, now: float) -> int:
        """Why this process wants the epoch to end here; `_WHOLE` if it does not."""
        if self._stop.asked:
            return _INTERRUPTED
        limit = self.job.settings.max_time_sec
        return _OUT_OF_TIME if limit is not None and now - self._started > limit else _WHOLE

    def _judged(self) -> Epoch:
        """What came of the epoch, or of the part of it, that was trained last."""
        trainer, position = self.trainer, self.position
        trainer.agree()
        validated = validate(trainer.best_model, self.job, self._progress)
        found, chosen = validated.counts, validated.chosen
        before = position.rows[-1].elapsed if position.rows else 0.0
        elapsed = perf_counter() - self._begun
        return Epoch(
            epoch=-(-trainer.step_number // self._per_epoch),
            learning_rate=trainer.schedule(trainer.step_number - 1),
            training_loss=float(position.loss_sum) / max(position.loss_steps, 1),
            val_loss=found.loss,
            val_top1=found.top1,
            val_top5=found.topk,
            seconds=elapsed - before,
            step=trainer.step_number,
            elapsed=elapsed,
            val_correct=found.correct_top1,
            val_correct_top5=found.correct_topk,
            val_balanced_accuracy=validated.balanced_accuracy,
            val_macro_f1=validated.macro_f1,
            val_roc_auc=validated.roc_auc,
            val_map=validated.mean_precision,
            val_micro_f1=validated.micro_f1,
            thresholds=chosen and chosen.thresholds,
            unreached=chosen and chosen.unreached,
            absent=chosen and chosen.absent,
        )

    def _take(self, row: Epoch) -> None:
        """Take a whole epoch into the run, and keep its network."""
        position = self.position
        position.rows.append(row)
        position.loss_sum, position.loss_steps = 0.0, 0
        position.seconds = row.elapsed
        score = row.score(self.job.settings.select)
        is_best = score > position.best_correct
        if is_best:
            position.best, position.best_correct = len(position.rows), score
        if torchrun.rank() == 0:
            self._keep(row, is_best)
            results.write_metrics(self.folder, position.rows)
            if self._feed is not None:
                self._feed.add(self.trainer.step_number, results.figures_of(row))
        self._say_row(row, is_best)

    def _keep_part(self, part: Epoch) -> None:
        """Keep what there is of an epoch that is not whole.

        It may be the best so far, and is so until the run goes on: then the epoch is made whole and
        judged anew, so that the run ends as one that was never stopped.
        """
        best = self.folder / "best"
        is_best = part.score(self.job.settings.select) > self.position.best_correct
        if torchrun.rank() == 0:
            if is_best and best.is_dir() and self.position.best is not None:
                best.rename(self.folder / WHOLE_BEST)
            self._keep(part, is_best)
            results.write_metrics(self.folder, [*self.position.rows, part])
        self._say_row(part, is_best, " in part")

    def _keep(self, row: Epoch, is_best: bool) -> None:
        for place in ("best", "last") if is_best else ("last",):
            model = self.trainer.best_model
            run_card.keep(
                self.folder / place, model, self.job, self.batches, row, self._epochs, self._say
            )

    def _say_row(self, row: Epoch, is_best: bool, what: str = "") -> None:
        self._say(
            f"epoch {row.epoch}/{self._epochs}{what}: loss {row.training_loss:.4f}, "
            f"validation {self._main(row)}{self._selected(row)}"
            f"{' (best)' if is_best else ''}, "
            f"{row.seconds:.0f} s"
        )

    def _main(self, row: Epoch) -> str:
        if not self.job.several:
            return f"top-1 {row.val_top1:.4f}"
        told = (
            ("mAP", row.val_map),
            ("micro F1", row.val_micro_f1),
            ("macro F1", row.val_macro_f1),
        )
        return ", ".join(f"{name} {fraction(value)}" for name, value in told)

    def _selected(self, row: Epoch) -> str:
        """What else the best epoch is chosen by, and its value."""
        select = self.job.settings.select
        values = {
            "balanced": ("balanced accuracy", row.val_balanced_accuracy),
            "macro-f1": ("macro F1", None if self.job.several else row.val_macro_f1),
            "auc": ("AUC", row.val_roc_auc),
            "loss": ("loss", row.val_loss),
        }
        name, value = values.get(select, ("", None))
        return "" if value is None else f", {name} {value:.4f}"
