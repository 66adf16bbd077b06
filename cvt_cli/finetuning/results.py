"""What comes of a run: its result, and metrics.csv."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from cvt_cli.base import files, text, torchrun
from cvt_cli.base.package import __version__
from cvt_cli.base.progress import Say
from cvt_cli.base.text import counted, fraction
from cvt_cli.checkpoints.checkpoint import Checkpoint
from cvt_cli.datasets import held_out
from cvt_cli.evaluation import figures, metrics
from cvt_cli.finetuning import run_card
from cvt_cli.finetuning.job import Job
from cvt_cli.finetuning.resume import Epoch, Position
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
    energy: dict[str, Any] | None = None  # that the run took, where it was measured
    thresholds: dict[str, float] | None = None  # of each class, chosen on the validation images
    thresholds_unreached: list[str] | None = None  # classes that --threshold-for is not held for
    penalty: float | None = None  # of a linear probe, on the squares of its weights; else None
    # Validation images that what the run started from was trained on; None where that is unknown.
    val_trained_before: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The documented keys, as results.json has them."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        if self.thresholds is None:
            for name in _OF_SEVERAL:
                del values[name]
        return _named(self.thresholds is not None, values | self._told())

    def lines(self) -> list[str]:
        """The result for a person; the last line is the best checkpoint's folder."""
        if self.thresholds is not None:
            line = (
                f"best: epoch {self.best_epoch}, mAP {fraction(self.val_map)}, micro F1 "
                f"{fraction(self.val_micro_f1)}, macro F1 {fraction(self.val_macro_f1)} on "
                f"{self.val_n} validation images, at thresholds chosen on them"
            )
        else:
            low, high = self.val_top1_interval
            line = (
                f"best: epoch {self.best_epoch}, top-1 {self.val_top1:.4f} on "
                f"{self.val_n} validation images (95 % interval {low:.4f} to {high:.4f})"
            )
        return [line, str(self.best)]

    def __repr__(self) -> str:
        return "\n".join(self.lines())

    def _told(self) -> dict[str, Any]:
        """What JSON has in another form."""
        return {
            "run": str(self.run),
            "best": str(self.best),
            "val_top1_interval": list(self.val_top1_interval),
            "recipe": self.recipe.to_json(self.preprocessing.size),
            "preprocessing": self.preprocessing.to_json(),
        }


_OF_SEVERAL = ("val_map", "val_micro_f1", "thresholds", "thresholds_unreached")


def _named(several: bool, values: dict[str, Any]) -> dict[str, Any]:
    """The values by the names that they have where an image may have several classes."""
    if not several:
        return values
    names = {"val_top1": "val_exact_match", "val_top1_interval": "val_exact_match_interval"}
    left_out = ("val_top5", "val_balanced_accuracy")
    return {names.get(key, key): v for key, v in values.items() if key not in left_out}


def finish(folder: Path, job: Job, position: Position, part: Epoch | None, say: Say) -> Result:
    """Write results.json and, of several epochs, curves.png with matplotlib; give the result.

    Args:
        folder: of the run.
        job: that was trained.
        position: how far it has come.
        part: what came of the epoch that it was stopped in.
        say: told of a card that is moved aside.
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
        energy=run_card.energy_of(folder),
        val_trained_before=job.validation_seen,
        penalty=best.penalty,
        thresholds=None
        if best.thresholds is None
        else dict(zip(job.labels.names, best.thresholds, strict=True)),
        thresholds_unreached=None
        if best.unreached is None
        else [job.labels.names[place] for place in best.unreached],
    )
    result = replace(result, **_trained_under(folder, result))
    for line in _of_thresholds(job, best):
        say(line)
    if torchrun.rank() == 0:
        if figures.available() and len(rows) > 1:  # of one there is no curve
            curves = [asdict(row) for row in rows]
            main = ("val_map", "mAP") if job.several else ("val_top1", "Top-1")
            by = "" if settings.select in ("top1", "map") else settings.select
            name, chosen = folder.resolve().name, (rows.index(best), by)
            figures.draw_curves(curves, folder / "curves.png", name, main, chosen)
        files.write_text(folder / "results.json", json.dumps(result.to_json(), indent=1) + "\n")
        run_card.finish(folder, result.seconds, say)
        remember(folder)
    return result


def remember(folder: Path) -> None:
    """Keep what a run was trained on beside it too, for copies of its checkpoints."""
    for place in ("best", "last"):
        if (folder / place).is_dir():
            held_out.remember(Checkpoint.at(folder / place))


def _of_thresholds(job: Job, best: Epoch) -> Iterator[str]:
    """Which classes have another threshold than was asked for, and why."""
    names = job.labels.names
    if best.unreached:
        yield (
            f"warning: no threshold reaches {job.settings.threshold_for} on the validation images "
            f"for {counted(len(best.unreached), 'class')}, answered only above every probability "
            f"there: {text.some(names[place] for place in best.unreached)}"
        )
    if best.absent:
        yield (
            f"no threshold is chosen for {counted(len(best.absent), 'class')} that no validation "
            f"image has: {text.some(names[place] for place in best.absent)}"
        )


def _trained_under(folder: Path, result: Result) -> dict[str, Any]:
    """What a finished run was trained with: it stays so when a process goes on with it for nothing,
    which may run elsewhere."""
    names = ("device", "hardware", "processes", "version", "torch")
    try:
        before = text.read_json(folder / "results.json")
        if (before["steps"], before["seconds"]) == (result.steps, result.seconds):
            return {name: before[name] for name in names}
    except (OSError, ValueError, LookupError, TypeError):  # it has ended for the first time
        pass
    return {}


def figures_of(row: Epoch) -> dict[str, float | None]:
    """What tools are told of an epoch, by the names of metrics.csv."""
    several = row.thresholds is not None
    values = _named(several, asdict(row))
    columns = COLUMNS_OF_SEVERAL if several else COLUMNS
    return {column: values[column] for column in columns[1:]}


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
