"""From options to a trained checkpoint: what ``cvt finetune`` does, and `finetune` from Python."""

import functools
import inspect
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ParamSpec

import torch

from cvt_cli.base import machine, places, streams, torchrun
from cvt_cli.base.progress import Progress, Say, silent, unheard
from cvt_cli.checkpoints import locate
from cvt_cli.checkpoints.locate import Access
from cvt_cli.datasets import held_out, layouts
from cvt_cli.datasets.table_sets import Told
from cvt_cli.datasets.torchvision_sets import check_data_dir
from cvt_cli.finetuning import origin
from cvt_cli.finetuning import plan as plans
from cvt_cli.finetuning import preparation as starts
from cvt_cli.finetuning.job import Images, Job
from cvt_cli.finetuning.results import Result
from cvt_cli.finetuning.run import Run
from cvt_cli.finetuning.settings import DEFAULT_VAL_FRACTION, Options, parse_duration
from cvt_cli.model import devices
from cvt_cli.spec import published

P = ParamSpec("P")


@dataclass(frozen=True)
class Prepared:
    """A run that is checked, and can begin or go on."""

    job: Job
    plan: dict[str, Any] | None  # of a run that begins
    start: Callable[[], Result]  # trains


def _taking(
    options: Callable[P, Options],
) -> Callable[[Callable[[Options], Result]], Callable[P, Result]]:
    """Let a function of options take what these are made of, so that they are declared once."""

    def decorate(train: Callable[[Options], Result]) -> Callable[P, Result]:
        @functools.wraps(train)
        def call(*args: P.args, **kwargs: P.kwargs) -> Result:
            return train(options(*args, **kwargs))

        call.__signature__ = inspect.signature(options)  # type: ignore[attr-defined]
        return call

    return decorate


@_taking(Options)
def finetune(options: Options) -> Result:
    """Train on labelled images, from a checkpoint or from scratch, as ``cvt finetune`` does.

        from cvt_cli import finetune

        result = finetune("my_folder", model="cvt-nano-cifar10", epochs=20)
        result.best, result.val_top1  # the best checkpoint's folder, and its top-1

    Every argument is that of the command's option of the same name (`Options`), and what is not
    given is as there: ``finetune(resume="runs/1")`` goes on with a run. A script that is started by
    torchrun trains in all its processes.

    Returns:
        What came of it; ``n_unreadable`` images were left out, which the command warns of.

    Raises:
        CvtError: one of its children, as the command explains it; messages are on stderr.
        KeyboardInterrupt: the run was asked to stop, also by SIGTERM; what is saved was said.
    """
    told = [
        f"{name}={(str(value) if isinstance(value, Path) else value)!r}"
        for name, value in options.values.items()
    ]
    say = streams.say if torchrun.rank() == 0 else unheard
    access = Access(say, silent, options.revision, bool(options.offline))
    options.check_together()
    with prepared(options, f"finetune({', '.join(told)})", access, silent) as ready:
        return ready.start()


@contextmanager
def prepared(
    options: Options, command: str, access: Access, progress: Progress
) -> Iterator[Prepared]:
    """Check all that a run needs before it trains: options, images, model, a few steps.

    Inside of it the processes of a torchrun can talk.

    Args:
        options: which go together (`Options.check_together`).
        command: that started this.
        access: how a model is fetched, and who is told what happens.
        progress: told of every image and step.

    Raises:
        CvtError: one of its children; nothing was written.
    """
    device = devices.choose_device(options.device or "auto")
    if options.resume is None:
        if options.sync_bn and device.type == "cuda" and torchrun.count() == 1:
            options.refuse(
                ["--sync-bn"], "there is only one process, so there is nothing to synchronise"
            )
        if torchrun.rank() == 0:
            starts.check_free(options.output or Path("runs", "new"))
    with torchrun.joined(device.type):
        if options.resume is None:
            yield _new(options, device, command, access, progress)
        else:
            yield _going_on(options, device, options.resume, access, progress)


def _new(
    options: Options, device: torch.device, command: str, access: Access, progress: Progress
) -> Prepared:
    """A run that begins."""
    say, data, seed = access.say, str(options.data), options.seed or 0
    told = Told(options.columns, options.images, options.group_by)
    layouts.check_told(data, told)
    fraction = options.val_fraction or DEFAULT_VAL_FRACTION
    model = None if options.variant else str(options.model or published.DEFAULT_MODEL)
    if model is not None:  # before all images are read
        locate.find(model, replace(access, say=unheard))
    own = options.val_fraction is None
    images = _images(options, data, told, own, fraction, seed, say, progress)
    size = options.res or options.base_recipe.res
    start = origin.start_of_training(
        images.training.classes,
        model=model,
        variant=options.variant,
        res=None if size is None else str(size),
        activation=options.activation,
        seed=seed,
        access=access,
    )
    for message in start.notes:
        say(message)
    precision = devices.choose_precision(options.precision or "auto", device)
    n = len(images.training)
    settings = options.settings(start.model.config, n, precision, command, say)
    workers = _workers(options.workers, device)
    job = Job(
        start.name,
        start.model,
        start.preprocessing,
        images,
        settings,
        device,
        workers,
        start.repository,
        start.license,
    )
    run = Run(job, say=say, progress=progress)
    plan = run.plan(fraction)
    for line in plans.describe(plan):
        say(line)
    name = f"{start.name}-{Path(data).name}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder = options.output or Path("runs", name)
    return Prepared(job, plan, lambda: run.begin(folder, plan))


def _going_on(
    options: Options, device: torch.device, folder: Path, access: Access, progress: Progress
) -> Prepared:
    """A run that was left, with its own settings but for what may be told anew."""
    plan = plans.read_plan(folder)
    settings = plans.settings_of(plan)
    if settings.recipe.optimizer == "newton":
        options.refuse_steps()
    devices.choose_precision(settings.precision, device)  # the device may be another
    if options.max_time is not None:
        settings = replace(settings, max_time_sec=parse_duration(options.max_time))
    if options.data is not None:  # they have moved
        settings = replace(settings, data=str(options.data))
    if options.images is not None:
        settings = replace(settings, images=str(options.images))
    images = _images(
        options,
        settings.data,
        settings.told,
        not plan["data"]["val_set_aside"],
        plan["data"]["val_fraction"],
        settings.seed,
        access.say,
        progress,
    )
    job = starts.job_of(plan, settings, images, device, _workers(options.workers, device))
    run = Run(job, say=access.say, progress=progress)
    return Prepared(job, None, lambda: run.go_on(folder))


def _images(
    options: Options,
    data: str,
    told: Told,
    own: bool,
    fraction: float,
    seed: int,
    say: Say,
    progress: Progress,
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
    """
    check_data_dir(data, options.data_dir)
    place, offline = options.data_dir or places.data_dir(), bool(options.offline)
    found = layouts.open_dataset(
        data, "train", place, offline=offline, say=say, told=told, progress=progress
    )
    validation = layouts.open_given(data, "val", found, say, told) if own else None
    if validation is not None and not options.variant and options.base_recipe.optimizer == "newton":
        options.refuse(
            ["--seed"],
            "it has no effect: the data has its own validation images, and a linear "
            "probe is solved without random numbers",
        )
    if not own and torchrun.rank() == 0:
        layouts.pass_over_validation(data, say, told)
    return starts.check_images(found, validation, fraction, seed, progress=progress)


def _workers(asked: int | None, device: torch.device) -> int:
    """Processes that decode: on a CPU, whose cores train, one; else the cores of this process."""
    if asked is not None:
        return asked
    return 1 if device.type == "cpu" else min(machine.threads(), 8)


def evaluated_by(options: Options, job: Job, result: Result) -> list[str]:
    """The words of the command that measures a run's best checkpoint on images it has not seen."""
    settings, images = job.settings, job.images
    data = ["--data", settings.data] if settings.data.startswith("-") else [settings.data]
    words = ["cvt", "evaluate", *data, "--model", str(result.run)]
    for option, value in (
        ("--data-dir", options.data_dir),
        ("--columns", settings.columns),
        ("--images", settings.images),
    ):
        if value is not None:
            words += [option, str(value)]
    if images.set_aside and held_out.is_trained_on_by_default(
        images.training,
        lambda: layouts.open_dataset(
            settings.data, "test", options.data_dir or places.data_dir(), told=settings.told
        ),
    ):
        words += ["--split", "val"]
    if settings.precision != devices.choose_precision("auto", job.device):
        words += ["--precision", settings.precision]
    return words
