"""A training run on disk: what was split off, every epoch's figures, the best and last checkpoint.

RUN/split.json     names of the images that the best epoch was chosen by
RUN/metrics.csv    a line per epoch
RUN/best/          the epoch with the best top-1 on those images, as a checkpoint folder
RUN/last/          the last epoch done
"""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from cvt_cli import __version__, cache, cards, devices, training, weights
from cvt_cli.datasets import LabelledImages
from cvt_cli.devices import Precision
from cvt_cli.errors import CvtError
from cvt_cli.labels import Labels
from cvt_cli.model import CvT
from cvt_cli.preprocessing import Preprocessing
from cvt_cli.progress import Progress, silent
from cvt_cli.training import Epoch, Recipe


@dataclass(frozen=True)
class Settings:
    """Everything that a run depends on, besides its model and its images."""

    data: str  # as the user named it
    command: str
    recipe: Recipe
    seed: int
    device: torch.device
    precision: Precision
    workers: int


def run(
    folder: Path,
    model: CvT,
    train_set: LabelledImages,
    val_set: LabelledImages,
    preprocessing: Preprocessing,
    settings: Settings,
    *,
    say: Callable[[str], None] = lambda message: None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Train ``model`` and keep the best and the last epoch in ``folder``.

    Interrupted, it leaves the epochs done so far.

    Args:
        folder: must not exist, or be empty.
        model: with one logit per class of the images.
        train_set: images to train on, at least a batch.
        val_set: images set aside from them, to choose the best epoch by.
        preprocessing: of the model.
        settings: see `Settings`.
        say: told what happens, one sentence at a time.
        progress: told of every batch.

    Returns:
        What came of it, as JSON values.

    Raises:
        CvtError: the folder is taken, or the loss is no longer a number.
        DataError: an image cannot be read.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise CvtError(
            f"`{folder}` exists and is not an empty folder",
            hint="name another run folder with --output",
        )
    started = perf_counter()
    classes = train_set.classes
    split = {"seed": settings.seed, "root": str(train_set.root), "validation": list(val_set.names)}
    cache.write_text(folder / "split.json", json.dumps(split, indent=1) + "\n")
    recipe = settings.recipe
    say(
        f"training on {len(train_set)} images of {len(classes)} classes, choosing the best "
        f"epoch on {len(val_set)} set aside ({folder / 'split.json'})"
    )
    say(
        f"{recipe.epochs} epochs, batch {recipe.batch_size}, peak learning rate "
        f"{recipe.learning_rate:.3g}, {recipe.augmentation}, {preprocessing.describe()}, "
        f"{settings.device}, {devices.hardware(settings.device)}, {settings.precision}"
    )
    names = Labels(classes)
    lines = ["epoch,learning_rate,training_loss,val_loss,val_top1,val_top5,seconds"]
    best: Epoch | None = None
    epoch: Epoch | None = None
    try:
        for epoch in training.train(
            model,
            train_set,
            val_set,
            preprocessing,
            recipe,
            device=settings.device,
            precision=settings.precision,
            seed=settings.seed,
            workers=settings.workers,
            progress=progress,
        ):
            is_best = best is None or epoch.validation.correct_top1 > best.validation.correct_top1
            best = epoch if is_best else best
            val = epoch.validation
            lines.append(
                f"{epoch.number},{epoch.learning_rate:.6g},{epoch.training_loss:.5f},"
                f"{'' if val.loss is None else f'{val.loss:.5f}'},"
                f"{val.top1:.5f},{val.topk:.5f},{epoch.seconds:.1f}"
            )
            card = _card(folder.name, epoch, settings, perf_counter() - started)
            for place in ("best", "last") if is_best else ("last",):
                weights.save(folder / place, model, names, preprocessing, card)
            cache.write_text(folder / "metrics.csv", "\n".join(lines) + "\n")
            say(
                f"epoch {epoch.number}/{recipe.epochs}: loss {epoch.training_loss:.4f}, "
                f"validation top-1 {val.top1:.4f}{' (best)' if is_best else ''}, "
                f"{epoch.seconds:.0f} s"
            )
    except KeyboardInterrupt:
        if epoch is not None:
            say(f"interrupted: epoch {epoch.number}, the last one finished, is in `{folder}`")
        raise
    assert best is not None and epoch is not None  # a recipe has at least one epoch
    return {
        "run": str(folder),
        "best": str(folder / "best"),
        "best_epoch": best.number,
        "val_n": best.validation.n,
        "val_top1": best.validation.top1,
        "val_top5": best.validation.topk,
        "epochs": recipe.epochs,
        "train_n": len(train_set),
        "classes": len(classes),
        "recipe": asdict(recipe),
        "preprocessing": preprocessing.to_json(),
        "seed": settings.seed,
        "device": str(settings.device),
        "hardware": devices.hardware(settings.device),
        "precision": settings.precision,
        "seconds": perf_counter() - started,
        "command": settings.command,
        "version": __version__,
        "torch": torch.__version__,
    }


def _card(name: str, epoch: Epoch, settings: Settings, seconds: float) -> str:
    validation = epoch.validation
    recipe = settings.recipe
    return cards.model_card(
        name,
        f"A CvT trained on `{settings.data}` with `cvt finetune`.",
        facts={
            "command": f"`{settings.command}`",
            "epoch": f"{epoch.number} of {recipe.epochs}",
            "seed": str(settings.seed),
            "recipe": ", ".join(f"{key} {value}" for key, value in asdict(recipe).items()),
            "precision": settings.precision,
            "hardware": f"{settings.device}, {devices.hardware(settings.device)}, "
            f"{os.cpu_count()} cores",
            "time until this epoch": f"{seconds / 60:.0f} minutes",
            "software": f"cvt-cli {__version__}, torch {torch.__version__}",
        },
        results={
            "top-1 on the validation images that the best epoch is chosen by": cards.percent(
                validation.correct_top1, validation.n
            ),
            "top-5 on them": cards.percent(validation.correct_topk, validation.n),
            "top-1 on test images": "not measured",
        },
        limits="It knows the classes that it was trained on and answers with one of them whatever "
        "the picture shows.",
    )
