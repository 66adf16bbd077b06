"""From what a run is told to what it trains: its images, and the job that it is."""

import multiprocessing
from typing import Any

import torch

from cvt_cli.base import machine, places, torchrun
from cvt_cli.base.errors import DataError, UsageError
from cvt_cli.base.progress import Progress, Say, unheard
from cvt_cli.checkpoints.locate import Access
from cvt_cli.datasets import held_out, layouts, overlap
from cvt_cli.datasets.labelled import LabelledImages
from cvt_cli.datasets.table_sets import Told
from cvt_cli.datasets.torchvision_sets import check_data_dir
from cvt_cli.finetuning import origin, several_labels, validation
from cvt_cli.finetuning import preparation as starts
from cvt_cli.finetuning.began import Began
from cvt_cli.finetuning.job import Images, Job
from cvt_cli.finetuning.settings import Options
from cvt_cli.model import devices
from cvt_cli.spec import published
from cvt_cli.tracking import energy, trackers


def model_of(options: Options) -> str | None:
    """The checkpoint that a run starts from; None where it starts from scratch."""
    return None if options.variant else str(options.model or published.DEFAULT_MODEL)


def job_of(
    options: Options, images: Images, data: str, device: torch.device, command: str, access: Access
) -> Job:
    """The job of a run that begins.

    Args:
        options: of the run.
        images: of the run.
        data: as the user named them.
        device: that trains.
        command: that started this.
        access: how a model is fetched, and who is told what happens.
    """
    size = options.res or options.base_recipe.res
    several_labels.check(options, images.training.several)
    start = origin.start_of_training(
        images.training.classes,
        several=images.training.several,
        model=model_of(options),
        variant=options.variant,
        res=None if size is None else str(size),
        resize=options.resize,
        activation=options.activation,
        seed=options.seed or 0,
        access=access,
    )
    for message in start.notes:
        access.say(message)
    precision = devices.choose_precision(options.precision or "auto", device)
    n = len(images.training)
    settings = options.settings(
        start.model.config, n, precision, command, access.say, images.training.several
    )
    if settings.recipe.optimizer != "newton":
        validation.refuse_unmeasurable(settings.select, images.validation)
    before = None if start.checkpoint is None else held_out.trained_on_by(start.checkpoint)
    if start.checkpoint is not None and before is not None:
        measured = images.validation if images.held_out is None else images.held_out
        overlap.tell_trained_before(measured, before, start.checkpoint.name, access.say)
    return Job(
        start.name,
        start.model,
        start.preprocessing,
        images,
        settings,
        device,
        workers_of(options, device),
        start.repository,
        start.license,
        **followed(options),
        scratch=bool(options.variant),
        trained_before=before,
    )


def followed(options: Options) -> dict[str, Any]:
    """How a run is followed, as fields of its job: by which tools, and whether its energy is
    measured; raises UsageError as `trackers.parsed` and `energy.check`."""
    if options.energy:
        energy.check(options.country)
    return {
        "track": None if options.track is None else trackers.parsed(options.track),
        "energy": bool(options.energy),
        "country": options.country,
    }


def opened(options: Options, data: str, told: Told, say: Say, progress: Progress) -> LabelledImages:
    """The images to train on, unread."""
    check_data_dir(data, options.data_dir)
    place, offline = options.data_dir or places.data_dir(), bool(options.offline)
    return layouts.open_dataset(
        data, "train", place, offline=offline, say=say, told=told, progress=progress
    )


def test_of(data: str, found: LabelledImages, say: Say, told: Told) -> LabelledImages | None:
    """The data's own test images, which no others may be; None where there are none."""
    try:
        return layouts.open_given(data, "test", found, unheard, told)
    except DataError as error:
        say(f"not compared with the other images: those of `test`, because {error}")
        return None


def refuse_needless(options: Options, *others: LabelledImages | None) -> None:
    """Raises UsageError for ``--allow-overlap`` where there are no other parts to compare with."""
    if all(images is None for images in others):
        options.refuse(
            ["--allow-overlap"],
            "it has no effect: no validation or test images of the data are compared with those to "
            "train on",
        )


def images_of(
    options: Options,
    data: str,
    told: Told,
    own: bool,
    fraction: float,
    seed: int,
    say: Say,
    progress: Progress,
    began: Began | None = None,
) -> Images:
    """The images of a run, checked.

    Args:
        options: where known sets are kept, and whether they may be fetched.
        data: as the user named it.
        told: how they are read.
        own: take its own validation images, if it has any.
        fraction: of the training images, set aside where it has none.
        seed: of which they are.
        say: told what was found.
        progress: told of every image.
        began: what a run that goes on began with.
    """
    found = opened(options, data, told, say, progress)
    validation = layouts.open_given(data, "val", found, say, told) if own else None
    if validation is not None and not options.variant and options.base_recipe.optimizer == "newton":
        options.refuse(
            ["--seed"],
            "it has no effect: the data has its own validation images, and a linear "
            "probe is solved without random numbers",
        )
    if not own and torchrun.rank() == 0:
        layouts.pass_over_validation(data, say, told)
    begins = options.resume is None
    test = test_of(data, found, say, told) if begins else None
    refuse_needless(options, validation, test)
    return starts.check_images(
        found,
        validation,
        fraction,
        seed,
        test=test,
        overlap="allowed" if options.allow_overlap else "refused" if begins else "not sought",
        began=began,
        say=say if torchrun.rank() == 0 else unheard,
        progress=progress,
    )


def workers_of(options: Options, device: torch.device) -> int:
    """Processes that decode: on a CPU, whose cores train, one; else the cores of this process. None
    in a daemonic process, as `multiprocessing.Pool` starts them, which may start no others.

    Raises:
        UsageError: some were asked for there.
    """
    may_start = not multiprocessing.current_process().daemon
    if options.workers is not None:
        if options.workers and not may_start:
            raise UsageError(
                f"--workers {options.workers} starts processes, which a daemonic process of "
                "`multiprocessing` may not",
                hint="--workers 0, or leave it out, trains there without; a process of "
                "`concurrent.futures.ProcessPoolExecutor` may start some",
            )
        return options.workers
    if not may_start:
        return 0
    return 1 if device.type == "cpu" else min(machine.threads(), 8)
