"""How good a network is on the images that the best epoch is chosen by."""

from typing import NamedTuple

import numpy as np

from cvt_cli.base import machine, torchrun
from cvt_cli.base.progress import Progress, silent
from cvt_cli.evaluation import measure_outcomes, run_models
from cvt_cli.evaluation.counts import Counts
from cvt_cli.finetuning.job import Job
from cvt_cli.model.cuda import CudaEngine
from cvt_cli.model.engine import TorchEngine
from cvt_cli.model.network import CvT


class Validated(NamedTuple):
    """What was counted, and what `measure_outcomes.measure` measures of it."""

    counts: Counts
    balanced_accuracy: float | None
    macro_f1: float | None
    roc_auc: float | None  # where the best epoch is chosen by it


def engine_of(model: CvT, job: Job) -> TorchEngine:
    """What runs a network as the job computes."""
    if job.device.type == "cuda":
        return CudaEngine(model, job.device, job.settings.precision, job.preprocessing)
    return TorchEngine(model, job.device, job.settings.precision, job.macs)


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
        workers=machine.threads(),
        progress=progress if rank == 0 else silent,
    )
    for other, state in enumerate(torchrun.gather(subject.result.state())):
        if other != rank:
            subject.result.add_state(state, at_once=True)
    assert subject.outcomes is not None
    subject.outcomes.gather(mine)
    found = measure_outcomes.measure(
        subject.outcomes, images.labels, len(job.labels), weights=images.weights,
        threads=machine.threads(), intervals_too=False,
    )  # fmt: skip
    numbers = found.numbers if found else {}
    return Validated(
        subject.result,
        *(
            numbers[name].value if name in numbers else None
            for name in ("balanced_accuracy", "macro_f1", "roc_auc")
        ),
    )
