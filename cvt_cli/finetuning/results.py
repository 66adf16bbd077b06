"""What comes of a run: its result, metrics.csv, checkpoints with their model cards."""

import csv
import io
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from cvt_cli.base import files, torchrun
from cvt_cli.base.package import __version__
from cvt_cli.base.text import counted
from cvt_cli.checkpoints import cards
from cvt_cli.checkpoints.cards import Score
from cvt_cli.evaluation import figures, metrics
from cvt_cli.finetuning.batches import Batches
from cvt_cli.finetuning.job import Job, parts_of_a_step
from cvt_cli.finetuning.resume import Epoch, Position
from cvt_cli.model import weights
from cvt_cli.model.network import CvT
from cvt_cli.spec.preprocessing import Preprocessing
from cvt_cli.spec.recipes import Recipe

COLUMNS = (
    *("epoch", "learning_rate", "training_loss", "val_loss", "val_top1", "val_top5"),
    *("val_balanced_accuracy", "val_macro_f1", "val_roc_auc"),
)
"""Of metrics.csv, before ``seconds`` and ``step``."""

COLUMNS_OF_SEVERAL = (
    *("epoch", "learning_rate", "training_loss", "val_loss", "val_map", "val_micro_f1"),
    *("val_macro_f1", "val_roc_auc", "val_exact_match"),
)
"""The same where an image may have several classes."""


@dataclass(frozen=True)
class Result:
    """What came of a run, with the conditions that it was trained under."""

    run: Path
    best: Path  # the folder of the best epoch's checkpoint
    best_epoch: int  # from 1
    best_step: int
    val_n: int  # validation images
    val_top1: float  # of the best epoch, as a fraction, like what follows
    val_top1_interval: tuple[float, float]  # 95 %, by Wilson
    val_top5: float
    val_balanced_accuracy: float | None
    val_macro_f1: float | None
    val_roc_auc: float | None  # where the best epoch was chosen by it
    select: str  # what it was chosen by
    epochs: int  # whole ones
    steps: int
    train_n: int
    n_unreadable: int  # images left out
    classes: int
    recipe: Recipe
    preprocessing: Preprocessing
    seed: int
    device: str
    hardware: str
    processes: int
    precision: str
    seconds: float
    fingerprint: str  # of the images
    command: str
    version: str
    torch: str
    val_map: float | None = None  # where an image may have several classes, like what follows;
    val_micro_f1: float | None = None  # `val_top1` is then the share of exact matches
    thresholds: dict[str, float] | None = None  # of each class, chosen on the validation images

    def to_json(self) -> dict[str, Any]:
        """The documented keys, as results.json has them."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        if self.thresholds is None:
            for name in _OF_SEVERAL:
                del values[name]
        return _named(self.thresholds is not None, values | self._told())

    def _told(self) -> dict[str, Any]:
        """What JSON has in another form."""
        return {
            "run": str(self.run),
            "best": str(self.best),
            "val_top1_interval": list(self.val_top1_interval),
            "recipe": self.recipe.to_json(),
            "preprocessing": self.preprocessing.to_json(),
        }


_OF_SEVERAL = ("val_map", "val_micro_f1", "thresholds")


def _named(several: bool, values: dict[str, Any]) -> dict[str, Any]:
    """The values by the names that they have where an image may have several classes."""
    if not several:
        return values
    names = {"val_top1": "val_exact_match", "val_top1_interval": "val_exact_match_interval"}
    left_out = ("val_top5", "val_balanced_accuracy")
    return {names.get(key, key): v for key, v in values.items() if key not in left_out}


def finish(folder: Path, job: Job, position: Position, part: Epoch | None = None) -> Result:
    """Write results.json and, where there is matplotlib, curves.png; give the result.

    Args:
        folder: of the run.
        job: that was trained.
        position: how far it has come.
        part: what came of the epoch that it was stopped in.
    """
    settings = job.settings
    rows = position.rows if part is None else [*position.rows, part]
    if part is not None and part.score(settings.select) > position.best_correct:
        best = part
    else:
        assert position.best is not None
        best = rows[position.best - 1]
    n = len(job.images.validation)
    result = Result(
        run=folder,
        best=folder / "best",
        best_epoch=best.epoch,
        best_step=best.step,
        val_n=n,
        val_top1=best.val_top1,
        val_top1_interval=metrics.wilson(best.val_correct, n),
        val_top5=best.val_top5,
        val_balanced_accuracy=best.val_balanced_accuracy,
        val_macro_f1=best.val_macro_f1,
        val_roc_auc=best.val_roc_auc,
        select=settings.select,
        epochs=position.rows[-1].epoch if position.rows else 0,
        steps=rows[-1].step,
        train_n=len(job.images.training),
        n_unreadable=len(job.images.unreadable),
        classes=len(job.labels),
        recipe=settings.recipe,
        preprocessing=job.preprocessing,
        seed=settings.seed,
        device=str(job.device),
        hardware=job.hardware,
        processes=torchrun.count(),
        precision=settings.precision,
        seconds=position.seconds,
        fingerprint=job.images.fingerprint,
        command=settings.command,
        version=__version__,
        torch=torch.__version__,
        val_map=best.val_map,
        val_micro_f1=best.val_micro_f1,
        thresholds=None
        if best.thresholds is None
        else dict(zip(job.labels.names, best.thresholds, strict=True)),
    )
    if torchrun.rank() == 0:
        if figures.available() and job.takes_steps:
            curves = [asdict(row) for row in rows]
            main = ("val_map", "mAP") if job.several else ("val_top1", "Top-1")
            figures.draw_curves(curves, folder / "curves.png", folder.resolve().name, main)
        files.write_text(folder / "results.json", json.dumps(result.to_json(), indent=1) + "\n")
    return result


def write_metrics(folder: Path, rows: Sequence[Epoch]) -> None:
    """Write metrics.csv: a line per epoch, or part of one."""
    content = io.StringIO()
    table = csv.writer(content, lineterminator="\n")
    several = rows[0].thresholds is not None
    columns = COLUMNS_OF_SEVERAL if several else COLUMNS
    table.writerow([*columns, "seconds", "step"])
    for row in rows:
        values = _named(several, asdict(row))
        numbers = ["" if values[c] is None else f"{values[c]:.6g}" for c in columns]
        table.writerow([*numbers, f"{row.seconds:.1f}", row.step])
    files.write_text(folder / "metrics.csv", content.getvalue())


def keep(folder: Path, model: CvT, job: Job, batches: Batches, row: Epoch, epochs: int) -> None:
    """Write a checkpoint, with a model card that says how it came about.

    Args:
        folder: ``RUN/best`` or ``RUN/last``.
        model: as it is after the epoch.
        job: that it was trained by.
        batches: that it was trained on.
        row: what came of the epoch.
        epochs: that the run is to have.
    """
    card = _card(folder.parent.name, job, batches, row, epochs)
    labels = job.labels
    if row.thresholds is not None:
        labels = replace(labels, thresholds=tuple(row.thresholds))
    weights.save(folder, model, labels, job.preprocessing, card)


def _card(name: str, job: Job, batches: Batches, row: Epoch, epochs: int) -> str:
    settings, n = job.settings, len(job.images.validation)
    top5 = len(job.labels) > 5  # else it is certain
    facts = {
        "command": f"`{settings.command}`",
        "epoch": f"{row.epoch} (step {row.step}) of {epochs}",
        "seed": str(settings.seed),
        "recipe": ", ".join(f"{key} {value}" for key, value in _used(job).items()),
        "images": f"{len(job.images.training)} to train on, {n} "
        + ("held out from them" if job.images.set_aside else "of the data's `val`")
        + f", {len(job.images.unreadable)} unreadable",
        "data fingerprint": job.images.fingerprint,
        "batch": f"up to {counted(batches.step_images, 'image')} per step"
        + parts_of_a_step(settings.batch_size, settings.accumulate, torchrun.count()),
        "precision": settings.precision,
        "hardware": f"{job.device}, {job.hardware}, {counted(os.cpu_count() or 1, 'core')}",
        "time until this epoch": f"{row.elapsed / 60:.0f} minutes",
        "software": f"cvt-cli {__version__}, torch {torch.__version__}",
    }
    if not job.takes_steps:
        del facts["epoch"], facts["batch"]
    return cards.model_card(
        name,
        f"A CvT of {counted(len(job.labels), 'class')}, trained from `{job.name}` on "
        f"`{settings.data}` "
        "with `cvt finetune`.",
        facts=facts,
        results=_of_sets(row, n)
        if job.several
        else {
            "top-1 on the validation images that the best epoch is chosen by": _measured(
                row.val_correct, n
            ),
            **({"top-5 on them": _measured(row.val_correct_top5, n)} if top5 else {}),
            "top-1 on test images": "not measured",
        },
        limits="It knows the classes that it was trained on, and says of each whether the picture "
        "shows it, perhaps of none. The thresholds were chosen on the validation images, so that "
        "F1 on others may be lower."
        if job.several
        else "It knows the classes that it was trained on and answers with one of them "
        "whatever the picture shows.",
        license=job.license,
        base_model=job.repository,
        data=settings.data,
        scores=[
            Score(name, correct / n, Path(settings.data).name, _validation_part(job))
            for name, correct in (("top-1", row.val_correct), ("top-5", row.val_correct_top5))
            if (name == "top-1" or top5) and not job.several
        ],
    )


def _of_sets(row: Epoch, n: int) -> dict[str, str]:
    """The results of a card where an image may have several classes."""
    found = {
        "mAP on the validation images that the best epoch is chosen by": row.val_map,
        "micro F1 on them, at thresholds chosen on them": row.val_micro_f1,
        "macro F1, likewise": row.val_macro_f1,
    }
    known = {
        name: "not known" if value is None else f"{100 * value:.2f} %"
        for name, value in found.items()
    }
    exact = _measured(row.val_correct, n)
    return {**known, "exactly right, likewise": exact, "mAP on test images": "not measured"}


def _validation_part(job: Job) -> str:
    return "train, a part held out" if job.images.set_aside else "val"


def _used(job: Job) -> dict[str, str]:
    """What of the recipe and the settings had a part in the training."""
    settings = job.settings
    recipe = {k: v for k, v in asdict(settings.recipe).items() if v is not None and v != ()}
    if not job.takes_steps:
        recipe = {key: recipe[key] for key in ("name", "optimizer")}
    elif "steps" in recipe:  # which take the place of epochs
        del recipe["epochs"]
    if settings.freeze:
        recipe["frozen"] = " and ".join(settings.freeze)
    if settings.class_weights:
        told = settings.class_weights
        if isinstance(told, dict):
            told = ", ".join(f"{name} {value:g}" for name, value in told.items())
        recipe["class weights"] = "balanced" if told is True else told
    if settings.sampler:
        recipe["sampler"] = settings.sampler
    if settings.threshold_for:
        recipe["thresholds for"] = settings.threshold_for
    if settings.select != "top1":
        recipe["best epoch by"] = settings.select
    if settings.sync_batchnorm:
        recipe["BatchNorm"] = "synchronised"
    return recipe


def _measured(correct: int, n: int) -> str:
    low, high = metrics.wilson(correct, n)
    return f"{cards.percent(correct, n)}, 95 % interval {100 * low:.2f} to {100 * high:.2f} %"
