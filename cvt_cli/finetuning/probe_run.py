"""A linear probe as a run: features computed once, the head solved on them."""

from pathlib import Path
from time import perf_counter

import numpy as np
import torch

from cvt_cli.base import torchrun
from cvt_cli.base.conditions import Conditions, names_hash
from cvt_cli.base.errors import UsageError
from cvt_cli.base.package import __version__
from cvt_cli.base.progress import Progress, Say
from cvt_cli.finetuning import probe
from cvt_cli.finetuning.job import Job
from cvt_cli.finetuning.probe import Solution
from cvt_cli.finetuning.resume import Epoch
from cvt_cli.finetuning.validation import engine_of, validate
from cvt_cli.model import weights


def solve(job: Job, folder: Path, say: Say, progress: Progress) -> Epoch:
    """Give the job's model the best linear head on its features.

    The features are kept in ``folder / "state"``.

    Returns:
        What came of it, as an epoch of no steps.

    Raises:
        UsageError: there are several processes.
        DataError: an image cannot be read.
    """
    if torchrun.count() > 1:
        raise UsageError("`linear-probe` runs in one process", hint="start it without torchrun")
    started = perf_counter()
    solution = _solution(job, folder / "state", progress)
    for tried in solution.rows:
        say(
            f"penalty {tried.penalty:.3g}: loss {tried.train_loss:.4f}, validation top-1 "
            f"{tried.val_top1:.4f}{' (best)' if tried.penalty == solution.penalty else ''}"
        )
    with torch.no_grad():
        job.model.head.weight.copy_(torch.from_numpy(solution.weight))
        job.model.head.bias.copy_(torch.from_numpy(solution.bias))
    weights.balance_head(job.model)
    validated = validate(job.model, job, progress)
    found = validated.counts
    chosen = next(row for row in solution.rows if row.penalty == solution.penalty)
    seconds = perf_counter() - started
    return Epoch(
        epoch=1,
        learning_rate=0.0,
        training_loss=chosen.train_loss,
        val_loss=found.loss,
        val_top1=found.top1,
        val_top5=found.topk,
        seconds=seconds,
        step=0,
        elapsed=seconds,
        val_correct=found.correct_top1,
        val_correct_top5=found.correct_topk,
        val_balanced_accuracy=validated.balanced_accuracy,
        val_macro_f1=validated.macro_f1,
        penalty=solution.penalty,
    )


def _solution(job: Job, kept: Path, progress: Progress) -> Solution:
    engine = engine_of(job.model, job)
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
    training, validation = (
        probe.cached_features(
            engine,
            images,
            job.preprocessing,
            kept / f"features-{part}.safetensors",
            Conditions({**made_with, "images": names_hash(images.names)}).key,
            batch_size=job.settings.batch_size,
            workers=images.readers,
            progress=progress,
        )
        for part, images in (("train", job.images.training), ("val", job.images.validation))
    )
    of_classes = job.class_weights
    return probe.solve(
        *training,
        *validation,
        len(job.labels),
        None if of_classes is None else of_classes.numpy().astype(np.float64),
        image_weights=job.images.training.weights,
    )
