"""How good a network is on the images that the best epoch is chosen by."""

import numpy as np

from cvt_cli.base import machine, torchrun
from cvt_cli.base.progress import Progress, silent
from cvt_cli.evaluation import judge
from cvt_cli.evaluation.counts import Counts
from cvt_cli.finetuning.job import Job
from cvt_cli.model.engine import TorchEngine
from cvt_cli.model.network import CvT


def validate(model: CvT, job: Job, progress: Progress) -> Counts:
    """What a network says of the job's validation images, which the processes share out."""
    images = job.images.validation
    rank, count = torchrun.rank(), torchrun.count()
    subject = judge.subject(
        TorchEngine(model, job.device, job.settings.precision, job.macs),
        job.preprocessing,
        job.labels,
        np.arange(len(job.labels), dtype=np.int64),
        images,
    )
    judge.judge(
        [subject],
        images,
        indices=range(rank, len(images), count),
        batch_size=job.settings.batch_size,
        workers=machine.threads(),
        progress=progress if rank == 0 else silent,
    )
    for other, state in enumerate(torchrun.gather(subject.result.state())):
        if other != rank:
            subject.result.add_state(state, at_once=True)
    return subject.result
