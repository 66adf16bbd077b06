"""From options to a trained checkpoint: what ``cvt finetune`` does, and `finetune` from Python."""

import functools
import gc
import inspect
import itertools
import multiprocessing
import os
import shlex
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec

import numpy as np
import torch

from cvt_cli.base import files, places, streams, torchrun
from cvt_cli.base.errors import CvtError, DataError, UsageError
from cvt_cli.base.progress import Progress, Say, silent, unheard
from cvt_cli.checkpoints import locate
from cvt_cli.checkpoints.locate import Access
from cvt_cli.datasets import groups as grouping
from cvt_cli.datasets import held_out, layouts, torchvision_sets
from cvt_cli.datasets import overlap as overlaps
from cvt_cli.datasets.table_sets import Told
from cvt_cli.finetuning import fold_results, folds, from_options, trainer
from cvt_cli.finetuning import plan as plans
from cvt_cli.finetuning import preparation as starts
from cvt_cli.finetuning.began import Began
from cvt_cli.finetuning.job import Images, Job
from cvt_cli.finetuning.results import Result
from cvt_cli.finetuning.run import Run
from cvt_cli.finetuning.settings import DEFAULT_VAL_FRACTION, Options, parse_duration
from cvt_cli.model import devices

P = ParamSpec("P")


@dataclass(frozen=True)
class Prepared:
    """A run that is checked, and can begin or go on."""

    job: Job  # of several the first
    plan: dict[str, Any] | None  # of a run that begins
    start: Callable[[], Result | fold_results.Result]  # trains


def _taking(
    options: Callable[P, Options],
) -> Callable[[Callable[[Options], Any]], Callable[P, Any]]:
    """Let a function of options take what these are made of, so that they are declared once."""

    def decorate(train: Callable[[Options], Any]) -> Callable[P, Any]:
        @functools.wraps(train)
        def call(*args: P.args, **kwargs: P.kwargs) -> Any:
            return train(options(*args, **kwargs))

        returned = inspect.signature(train).return_annotation
        call.__signature__ = inspect.signature(  # type: ignore[attr-defined]
            options
        ).replace(return_annotation=returned)
        return call

    return decorate


@_taking(Options)
def finetune(options: Options) -> Result | fold_results.Result:
    """Train on labelled images, from a checkpoint or from scratch, as ``cvt finetune`` does.

        from cvt_cli import finetune

        result = finetune("my_folder", model="cvt-nano-cifar10", epochs=20)
        result.best, result.val_top1  # the best checkpoint's folder, and its top-1

    Every argument is that of the command's option of the same name (`Options`), and what is not
    given is as there: ``finetune(resume="runs/1")`` goes on with a run. A script that is started by
    torchrun trains in all its processes.

    Returns:
        What came of it; ``n_unreadable`` images were left out, which the command warns of. With
        ``folds=5`` it is a `fold_results.Result`, with the accuracy of each fold and their mean.

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
    with _able_to_train():
        try:
            return _trained(options, f"finetune({', '.join(told)})", access)
        except (CvtError, KeyboardInterrupt) as error:
            # A notebook keeps it, and with its frames the network and processes that load images.
            error.__traceback__ = None
            raise


def _trained(options: Options, command: str, access: Access) -> Result | fold_results.Result:
    """What it took to train is let go where this has been left."""
    with prepared(options, command, access, silent) as ready:
        return ready.start()


_one_thread = threading.Lock()
"""Held by the thread that trains."""


def _nobody_trains() -> None:
    """In a fork, which has none of the other threads."""
    global _one_thread
    _one_thread = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_nobody_trains)


@contextmanager
def _able_to_train() -> Iterator[None]:
    """With gradients, in float32 and with tensors where they are asked for, and small numbers may
    become 0, whatever the program that calls has set for itself.

    One thread at a time: all of them draw from the one generator and have the one default type.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # until it has begun
        raise UsageError(
            "training began again in a process that was started to load its images, since that "
            "imports the script",
            hint='put what the script does below `if __name__ == "__main__":`, or train with '
            "workers=0",
        )
    with _one_thread:
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)
        try:
            with (
                torch.inference_mode(False),
                torch.enable_grad(),
                devices.default_is_cpu(),
                torch.random.fork_rng(devices=[]),  # training seeds it, with every step
                np.errstate(under="ignore"),
            ):
                yield
        finally:
            torch.set_default_dtype(before)
            gc.collect()
            trainer.give_memory_back()


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
    devices.require_one_each(device)
    if options.resume is None:
        if options.sync_bn and device.type == "cuda" and torchrun.count() == 1:
            options.refuse(
                ["--sync-bn"], "there is only one process, so there is nothing to synchronise"
            )
    with torchrun.joined("finetune", device.type):
        again = options.resume is None and options.output
        if again and torchrun.gather(plans.is_of_this_start(again, command))[0]:
            access.say(f"torchrun has started this again: going on with `{again}`")
            options = replace(options, resume=again)
        if options.resume is None:
            if torchrun.rank() == 0:
                starts.check_free(options.output or Path("runs", "new"))
            begin = _new if options.folds is None else _new_folds
            yield begin(options, device, command, access, progress)
        elif (options.resume / folds.FOLDS_FILE).is_file():
            yield _folds_going_on(options, device, options.resume, access, progress)
        else:
            yield _going_on(options, device, options.resume, access, progress)


def _new(
    options: Options, device: torch.device, command: str, access: Access, progress: Progress
) -> Prepared:
    """A run that begins."""
    say, data, seed = access.say, str(options.data), options.seed or 0
    told = Told(options.columns, options.images, options.group_by, options.separator)
    layouts.check_told(data, told)
    fraction = options.val_fraction or DEFAULT_VAL_FRACTION
    if (model := from_options.model_of(options)) is not None:  # before all images are read
        locate.find(model, replace(access, say=unheard))
    own = options.val_fraction is None
    images = from_options.images_of(options, data, told, own, fraction, seed, say, progress)
    job = from_options.job_of(options, images, data, device, command, access)
    run = Run(job, say=say, progress=progress)
    plan = run.plan(fraction)
    for line in plans.describe(plan):
        say(line)

    def start() -> Result:
        return run.begin(options.output or _claimed(f"{job.name}-{Path(data).name}"), plan)

    return Prepared(job, plan, start)


def _claimed(name: str) -> Path:
    """A folder that is made for a run that begins now: no other has it that begins in the same
    second, and all processes of a torchrun have the same."""
    folder = Path("runs", f"{name}-{time.strftime('%Y%m%d-%H%M%S')}")
    if torchrun.rank() == 0:
        later = (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(2))
        folder = next(filter(_made, itertools.chain([folder], later)))
    return Path(torchrun.gather(str(folder))[0])


def _made(folder: Path) -> bool:
    """Make a folder; False if it is there. Raises CvtError if that cannot be."""
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        if os.path.lexists(folder):
            return False
        raise files.unwritable(folder, error) from error
    return True


def _new_folds(
    options: Options, device: torch.device, command: str, access: Access, progress: Progress
) -> Prepared:
    """A cross-validation that begins."""
    torchrun.refuse("--folds")
    assert options.folds is not None
    say, data = access.say, str(options.data)
    fraction = options.val_fraction or DEFAULT_VAL_FRACTION
    if (model := from_options.model_of(options)) is not None:  # before all images are read
        locate.find(model, replace(access, say=unheard))
    plan = _fold_plan(options, data, options.folds, fraction, options.seed or 0, say, progress)

    def begun(images: Images) -> Job:
        return from_options.job_of(options, images, data, device, command, access)

    job = begun(plan.of_fold(0))
    run = Run(job, say=say, progress=progress)
    planned = run.plan(fraction)
    sizes = np.bincount(plan.of)
    say(f"{options.folds} folds of {sizes.min()} to {sizes.max()} images; the first trains so:")
    for line in plans.describe(planned):
        say(line)
    left = partial(_left_fold, options, device)
    told = {name: value for name, value in options.values.items() if name not in folds.NOT_KEPT}
    told |= {"precision": job.settings.precision}
    if isinstance(factors := job.settings.class_weights, dict):  # their file may change, or go
        told |= {"class_weights": factors}
    told = {name: str(v) if isinstance(v, Path) else v for name, v in told.items()}

    def start() -> fold_results.Result:
        folder = options.output or _claimed(f"{Path(data).name}-{options.folds}-folds")
        first = (run, planned)
        every = folds.Folds(folder, plan, command, begun, left, access, progress, first=first)
        return every.begin(told)

    return Prepared(job, {"folds": options.folds, **planned}, start)


def _folds_going_on(
    options: Options, device: torch.device, folder: Path, access: Access, progress: Progress
) -> Prepared:
    """A cross-validation that was left; what may be told anew is."""
    torchrun.refuse("--folds")
    options.refuse(["--max-time"], "it would end each of the folds early")
    about = folds.read(folder)
    anew = {name: v for name, v in options.values.items() if name not in ("resume", "gpus")}
    told = Options(**{**about["options"], **anew})
    data = str(told.data)
    _refuse_moved(data, None, folder)
    fraction, seed = about["val_fraction"], about["seed"]
    began = Began.of(about)
    plan = _fold_plan(told, data, about["folds"], fraction, seed, access.say, progress, began)
    folds.refuse_other(about, plan, folder)

    def begun(images: Images) -> Job:
        return from_options.job_of(told, images, data, device, about["command"], access)

    left = partial(_left_fold, told, device)
    every = folds.Folds(
        folder, plan, about["command"], begun, left, access, progress, start=about["start"]
    )
    job = begun(plan.of_fold(0))
    every.refuse_other_start(job)
    return Prepared(job, None, every.go_on)


def _left_fold(options: Options, device: torch.device, images: Images, folder: Path) -> Job:
    """The job of a fold that goes on."""
    found = plans.read_plan(folder)
    settings = replace(plans.settings_of(found), data=str(options.data))
    workers = from_options.workers_of(options, device)
    return starts.job_of(folder, found, settings, images, device, workers)


def _fold_plan(
    options: Options,
    data: str,
    count: int,
    fraction: float,
    seed: int,
    say: Say,
    progress: Progress,
    began: Began | None = None,
) -> folds.Plan:
    """The images of a cross-validation, checked, and the fold of each."""
    told = Told(options.columns, options.images, options.group_by, options.separator)
    layouts.check_told(data, told)
    found = from_options.opened(options, data, told, say, progress)
    layouts.pass_over_validation(data, say, told)
    test = from_options.test_of(data, found, say, told)
    from_options.refuse_needless(options, test)
    overlap: starts.Overlap = "allowed" if options.allow_overlap else "refused"
    checked = starts.check_all(found, None, test, overlap, say, progress, began)
    images = checked.readable[0]
    try:
        images.refuse_classes_of_less_than(3, ", to train on, to choose by and to be held out")
        of = grouping.folds(images.labels, images.classes, images.groups, count, seed)
    except DataError as error:
        raise checked.refused(error) from None
    if options.resume is None:
        overlaps.tell_copies_in_folds(images, of, say)
    return folds.Plan(checked, of, count, fraction, seed)


def _going_on(
    options: Options, device: torch.device, folder: Path, access: Access, progress: Progress
) -> Prepared:
    """A run that was left, with its own settings but for what may be told anew."""
    if (folder.resolve().parent / folds.FOLDS_FILE).is_file():
        whole = shlex.quote(str(folder.resolve().parent))
        raise UsageError(
            f"`{folder}` is a fold of a cross-validation, which is gone on with as a whole",
            hint=f"cvt finetune --resume {whole}",
        )
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
    _refuse_moved(settings.data, plan["data"].get("root"), folder)
    images = from_options.images_of(
        options,
        settings.data,
        settings.told,
        not plan["data"]["val_set_aside"],
        plan["data"]["val_fraction"],
        settings.seed,
        access.say,
        progress,
        Began.of(plan["data"]),
    )
    workers = from_options.workers_of(options, device)
    job = starts.job_of(folder, plan, settings, images, device, workers)
    job = replace(job, **from_options.followed(options))
    run = Run(job, say=access.say, progress=progress)
    return Prepared(job, None, lambda: run.go_on(folder))


def _refuse_moved(data: str, root: str | None, folder: Path) -> None:
    """Raises DataError, with what a run knows of its images, where these are not there now."""
    if data in torchvision_sets.KNOWN or os.path.exists(places.expanded(data)):
        return
    raise DataError(
        f"`{data}`, which `{folder}` is trained on, does not exist here"
        + ("" if root is None else f"; when it began, its images were in `{root}`"),
        hint=f"say where they are now: cvt finetune FOLDER --resume {shlex.quote(str(folder))}",
    )


def evaluated_by(options: Options, job: Job, result: Result) -> list[str]:
    """The words of the command that measures a run's best checkpoint on images it has not seen."""
    settings, images = job.settings, job.images
    data = ["--data", settings.data] if settings.data.startswith("-") else [settings.data]
    words = ["cvt", "evaluate", *data, "--model", str(result.run)]
    for option, value in (
        ("--data-dir", options.data_dir),
        ("--columns", settings.columns),
        ("--images", settings.images),
        ("--separator", settings.separator),
    ):
        if value is not None:
            words += [option, str(value)]
    where = options.data_dir or places.data_dir()
    opened = partial(layouts.open_dataset, settings.data, "test", where, told=settings.told)
    measures = partial(held_out.measures, images.training)
    if images.set_aside and not measures(opened):
        words += ["--split", "val"]
    elif (
        not images.set_aside
        and layouts.gives(settings.data, "test", settings.told)
        and measures(partial(opened, only_test=True))
    ):
        words += ["--split", "test"]  # on `val` the best epoch was chosen
    if settings.precision != devices.choose_precision("auto", job.device):
        words += ["--precision", settings.precision]
    return words
