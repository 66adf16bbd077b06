"""How good a network is on the images that the best epoch is chosen by."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from cvt_cli.base import machine, torchrun
from cvt_cli.base.errors import DataError
from cvt_cli.base.progress import Progress, silent
from cvt_cli.datasets.labelled import LabelledImages
from cvt_cli.evaluation import measure_outcomes, run_models, several_measures, thresholds
from cvt_cli.evaluation.counts import Counts
from cvt_cli.evaluation.run_models import Subject
from cvt_cli.evaluation.several_labels import SetOutcomes
from cvt_cli.evaluation.thresholds import Chosen
from cvt_cli.finetuning.job import BRING_BACK, Job
from cvt_cli.finetuning.settings import parsed_aim
from cvt_cli.model.cuda import CudaEngine
from cvt_cli.model.engine import TorchEngine
from cvt_cli.model.network import CvT


class Validated(NamedTuple):
    """What was counted, and what `measure_outcomes.measure` measures of it."""

    counts: Counts
    balanced_accuracy: float | None
    macro_f1: float | None
    roc_auc: float | None  # where the best epoch is chosen by it
    # Where an image may have several classes, at the thresholds that are best for these images:
    mean_precision: float | None = None
    micro_f1: float | None = None
    chosen: Chosen | None = None


def engine_of(model: CvT, job: Job) -> TorchEngine:
    """What runs a network as the job computes."""
    if job.device.type == "cuda":
        return CudaEngine(model, job.device, job.settings.precision, job.preprocessing)
    return TorchEngine(model, job.device, job.settings.precision, job.macs)


def refuse_unmeasurable(select: str, images: LabelledImages) -> None:
    """Raises DataError if there is no number to choose the best epoch by, whatever is learnt: every
    epoch would be as good as the first."""
    has = images.sizes
    if select == "auc" and not ((has > 0) & (has < len(images))).any():
        raise DataError(
            "--select auc: there is none on the validation images, each of which has the same "
            "classes",
            hint="add validation images of other classes, or select by another metric, such as "
            "--select loss",
        )
    if select == "map" and not has.any():
        raise DataError(
            "--select map: there is none on the validation images, none of which has a class",
            hint="add validation images that have classes, or use --select loss",
        )


def validate(model: CvT, job: Job, progress: Progress) -> Validated:
    """What a network says of the job's validation images, which the processes share out."""
    by_rank = job.settings.select == "auc"
    images = job.images.validation
    rank, count = torchrun.rank(), torchrun.count()
    subject = run_models.subject(
        engine_of(model, job),
        job.preprocessing,
        job.labels,
        np.arange(len(job.labels), dtype=np.int64),
        images,
        keep=by_rank,
    )
    mine = range(rank, len(images), count)
    run_models.judge(
        [subject],
        images,
        indices=mine,
        batch_size=job.settings.batch_size,
        workers=images.readers,
        progress=progress if rank == 0 else silent,
    )
    for other, state in enumerate(torchrun.gather(subject.result.state())):
        if other != rank:
            subject.result.add_state(state, at_once=True)
    refuse_unreadable(subject, job)
    assert subject.outcomes is not None
    subject.outcomes.gather(mine)
    if isinstance(subject.outcomes, SetOutcomes):
        return _of_sets(subject, subject.outcomes, job)
    found = measure_outcomes.measure(
        subject.outcomes, images.labels, len(job.labels), weights=images.weights,
        threads=machine.threads(), intervals_too=False,
    )  # fmt: skip
    numbers = {name: one.value for name, one in found.numbers.items()} if found else {}
    return Validated(
        subject.result,
        balanced_accuracy=numbers.get("balanced_accuracy"),
        macro_f1=numbers.get("macro_f1"),
        roc_auc=numbers.get("roc_auc"),
    )


def refuse_unreadable(subject: Subject, job: Job) -> None:
    """Raises DataError if an image could not be judged that was read before training, as where a
    network folder is gone for a while: it would count as wrong in this epoch and not in others.

    Of a set too large to be read before, what is damaged counts as wrong in all epochs alike.
    """
    if subject.result.failures and not (job.images.only_headers or job.images.unread):
        name, reason = subject.result.failures[0]
        raise DataError(
            f"cannot judge by `{name}`: {reason}",
            hint=BRING_BACK,
        )


def _of_sets(subject: Subject, outcomes: SetOutcomes, job: Job) -> Validated:
    """The same where an image may have several classes: by thresholds chosen on these images."""
    images = job.images.validation
    truth, untold = subject.right(images), subject.labels.thresholds
    assert untold is not None
    aim = parsed_aim(job.settings.threshold_for or "f1")
    chosen = thresholds.best_thresholds(outcomes, truth, untold, images.weights, aim)
    labels = replace(subject.labels, thresholds=chosen.thresholds)
    thresholds.answered_from(outcomes, labels)
    exact = (outcomes.said == (truth > 0)).all(axis=1) & (outcomes.answered >= 0)
    subject.result.correct_top1 = int(exact.sum())
    found = several_measures.measure(
        outcomes, truth, labels, weights=images.weights, threads=machine.threads(),
        intervals_too=False,
    )  # fmt: skip
    numbers = {name: one.value for name, one in found.numbers.items()} if found else {}
    return Validated(
        subject.result,
        balanced_accuracy=None,
        macro_f1=numbers.get("macro_f1"),
        roc_auc=numbers.get("roc_auc"),
        mean_precision=numbers.get("map"),
        micro_f1=numbers.get("micro_f1"),
        chosen=chosen,
    )
