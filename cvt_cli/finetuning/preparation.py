"""The beginning of a run: images checked and split, batches and trainer made, a free folder."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from cvt_cli.base import files, machine, text, torchrun
from cvt_cli.base.conditions import json_hash
from cvt_cli.base.errors import CvtError, DataError, UsageError
from cvt_cli.base.progress import Progress, Say, silent, unheard
from cvt_cli.base.text import counted, human_bytes
from cvt_cli.checkpoints import folders
from cvt_cli.datasets import datacheck
from cvt_cli.datasets import overlap as overlaps
from cvt_cli.datasets.labelled import LabelledImages
from cvt_cli.finetuning import batches as training_data
from cvt_cli.finetuning import trainer
from cvt_cli.finetuning.batches import Batches
from cvt_cli.finetuning.began import Began, are_of, others
from cvt_cli.finetuning.job import Images, Job, Settings
from cvt_cli.finetuning.parameter_groups import freeze
from cvt_cli.finetuning.plan import PLAN_FILE, SPLIT_FILE
from cvt_cli.finetuning.schedule import schedule_of
from cvt_cli.finetuning.trainer import Trainer
from cvt_cli.model.network import CvT
from cvt_cli.spec.preprocessing import Preprocessing
from cvt_cli.spec.recipes import AUGMENTATIONS
from cvt_cli.spec.variants import VARIANTS


@dataclass(frozen=True)
class Checked:
    """Images of a set, those left out that cannot be read."""

    readable: tuple[LabelledImages, ...]  # to train on, and to choose by where the data have some
    unreadable: tuple[str, ...]  # names with the reason
    only_headers: bool
    unread: bool
    fingerprint: str
    size_fingerprint: str
    used_fingerprint: str  # of those that can be read
    left_out: tuple[tuple[str, ...], ...]  # names of the others, of each part

    def refused(self, error: DataError) -> DataError:
        """What is wrong with the readable images, and which are not."""
        if not self.unreadable:
            return error
        shown = "; ".join(self.unreadable[:10]) + ("; …" if len(self.unreadable) > 10 else "")
        told = f"{error}; {len(self.unreadable)} cannot be read: {shown}"
        return DataError(told, hint=error.hint)

    def images(
        self,
        training: LabelledImages,
        validation: LabelledImages,
        held_out: LabelledImages | None = None,
    ) -> Images:
        """Those of a run."""
        return Images(
            training,
            validation,
            len(self.readable) == 1,
            self.unreadable,
            self.only_headers,
            self.fingerprint,
            self.unread,
            self.size_fingerprint,
            self.used_fingerprint,
            self.left_out,
            held_out,
        )


Overlap = Literal["refused", "allowed", "not sought"]
"""What of pictures and groups that lie in two parts of a set."""


def check_images(
    found: LabelledImages,
    published: LabelledImages | None,
    val_fraction: float,
    seed: int,
    *,
    test: LabelledImages | None = None,
    overlap: Overlap = "not sought",
    began: Began | None = None,
    say: Say = unheard,
    progress: Progress = silent,
) -> Images:
    """Check every image, leave out what cannot be read, and set validation images aside.

    Args:
        found: the training images.
        published: the data's own validation images, if it has any.
        val_fraction: part of the training images to set aside where it has none.
        seed: of what is set aside.
        test: the data's own test images, in which no other picture or group may be.
        overlap: what of pictures and groups that lie in two parts.
        began: what a run that goes on began with.
        say: told of those that are allowed, and of what is left out as when the run began.
        progress: told of every image.

    Raises:
        DataError: there is one class alone, a class has a name that no checkpoint can have or too
            few readable images, the validation images have other classes, two parts overlap, or
            a run that goes on has lost an image.
    """
    checked = check_all(found, published, test, overlap, say, progress, began)
    try:
        if published is None:
            training, validation = checked.readable[0].split(val_fraction, seed)
            if overlap != "not sought":
                overlaps.tell_copies(training, validation, say)
            return checked.images(training, validation)
        training, validation = checked.readable
        training.refuse_classes_of_less_than(1, " that can be read")
        if not len(validation):
            raise DataError(f"no image in `{published.root}` can be read")
        return checked.images(training, validation)
    except DataError as error:
        raise checked.refused(error) from None


def check_all(
    found: LabelledImages,
    published: LabelledImages | None,
    test: LabelledImages | None,
    overlap: Overlap,
    say: Say,
    progress: Progress,
    began: Began | None = None,
) -> Checked:
    """Check every image and leave out what cannot be read; see `check_images`."""
    _refuse_at_once(found, set_aside=published is None)
    unreadable: list[str] = []
    prints, by_size, used, headers, unread = [], [], [], False, False
    readable: list[LabelledImages] = []
    parts: list[overlaps.Part] = []
    left_out: list[tuple[str, ...]] = []
    given = overlap != "not sought" and (published is not None or test is not None)
    for name, images in (("train", found), ("val", published), ("test", test)):
        if images is None or (name == "test" and not given):
            continue
        if began is not None:
            images = began.used(len(readable), images)
        checked = datacheck.check(images, images.readers, progress, given)
        parts.append(overlaps.Part(name, images, checked.seen))
        if name == "test":
            continue
        if began is not None:
            began.refuse(images, checked.unreadable)
        prints.append(checked.fingerprint)
        by_size.append(checked.size_fingerprint)
        used.append(checked.used_fingerprint)
        headers |= checked.only_headers
        unread |= checked.unread
        images = replace(images, contents=checked.contents)
        bad = [index for index, _ in checked.unreadable]
        left_out.append(tuple(images.names[index] for index in bad))
        unreadable += [f"{images.names[index]}: {reason}" for index, reason in checked.unreadable]
        readable.append(images.subset(np.setdiff1d(np.arange(len(images)), bad)) if bad else images)
    if began is None and overlap != "not sought":
        overlaps.tell_two_classes(readable[0], say)
    if given:
        overlaps.refuse(parts, overlap == "allowed", machine.threads(), say)
    if began is not None and (line := began.describe()):
        say(line)
    return Checked(
        tuple(readable),
        tuple(unreadable) if began is None else began.unreadable,
        headers,
        unread,
        " ".join(prints) if began is None else began.fingerprint,
        " ".join(by_size),
        " ".join(used),
        tuple(left_out) if began is None else began.left_out,
    )


def _refuse_at_once(found: LabelledImages, set_aside: bool) -> None:
    """Raises DataError with all that the names and numbers of images say, before one is read."""
    problems, hints = [], []
    if len(found.classes) < 2:
        problems.append(
            f"there is only one class, `{found.classes[0]}`, in `{found.root}`; training needs "
            "at least 2"
        )
        hints.append(
            "expected is one folder per class with image files in it, such as "
            "`DATA/cat/1.jpg` and `DATA/dog/1.jpg`"
        )
        if all(name.count("/") > 1 for name in found.names) and found.table is None:
            place = found.root / found.classes[0]
            hints[-1] += f"; if the folders in `{place}` are the classes, name that"
    names = [name.encode(errors="backslashreplace").decode() for name in found.classes]
    if odd := [shown for shown, name in zip(names, found.classes, strict=True) if shown != name]:
        listed = ", ".join(f"`{shown}`" for shown in odd)
        problems.append(
            f"the {'name' if len(odd) == 1 else 'names'} of the "
            f"{'class' if len(odd) == 1 else 'classes'} {listed} in `{found.root}` "
            f"{'is' if len(odd) == 1 else 'are'} not in UTF-8, as the class names of a checkpoint "
            "must be"
        )
        hints.append(f"rename {'its folder' if len(odd) == 1 else 'their folders'}")
    if set_aside:
        try:
            found.refuse_classes_of_less_than(2, ", one for training and one for validation")
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("; ".join(problems), hint="; ".join(hints) or None)


def job_of(
    folder: Path,
    plan: Mapping[str, Any],
    settings: Settings,
    images: Images,
    device: torch.device,
    workers: int,
) -> Job:
    """The job of a run that is gone on with.

    Args:
        folder: of the run, whose state has the weights.
        plan: of the run.
        settings: of the plan, with what is told anew.
        images: found now.
        device: that trains.
        workers: processes that decode.

    Raises:
        DataError: the images are not those that the run began with.
        UsageError: the images of a step cannot be shared among so many processes.
    """
    if not are_of(plan, images):
        raise DataError(
            f"`{settings.data}` is not the data that the run began with: that had "
            f"{plan['data']['train_n']} training and {plan['data']['val_n']} validation images, "
            f"and another fingerprint{others(folder, images)}",
            hint="bring the same files back, or start another run, for example from --model "
            "RUN/best",
        )
    shares = settings.accumulate * torchrun.count()
    if plan["step_images"] is not None:
        if plan["step_images"] % shares:
            raise UsageError(
                f"the {plan['step_images']} images of a step cannot be divided among "
                f"{torchrun.count()} processes",
                hint=f"use {plan['processes']}, as at the start",
            )
        settings = replace(settings, batch_size=plan["step_images"] // shares)
    config, _ = folders.config_from_transformers(plan["model"]["config"])
    preprocessing = Preprocessing.from_transformers(plan["model"]["preprocessing"])
    start = plan["model"]
    return Job(
        start["start"],
        CvT(config),
        preprocessing,
        images,
        settings,
        device,
        workers,
        start.get("repository"),  # the version before does not say it
        start.get("license"),
        scratch=start.get("scratch", start["start"] in VARIANTS),
    )


def refuse_different(job: Job) -> None:
    """Raises DataError if the processes of a torchrun have not found the same images: each takes
    its part of a step by numbers, which would be of other images."""
    if torchrun.count() == 1:
        return
    parts = (job.images.training, job.images.validation)
    own = json_hash(
        [job.images.fingerprint, *([list(one.names), one.labels.tolist()] for one in parts)]
    )
    if len(set(torchrun.gather(own))) > 1:
        raise DataError(
            "the processes have not found the same images",
            hint="let nobody write into the data while they are read; several machines need the "
            "same files",
        )


def batches_of(job: Job, say: Say) -> Batches:
    """The training images of this process.

    Args:
        job: that they are trained by.
        say: told where batches come to the training process on the slower way.

    Raises:
        UsageError: the processes are to share statistics on a device where they cannot.
    """
    settings = job.settings
    if settings.sync_batchnorm and job.device.type != "cuda":
        raise UsageError(
            f"BatchNorm cannot be synchronised on `{job.device}`: PyTorch does it on CUDA only",
            hint="leave out --sync-bn, or train on CUDA devices",
        )
    augmentation = AUGMENTATIONS[settings.recipe.augment or "none"]
    return Batches(
        job.images.training,
        training_data.augmentation(augmentation, job.preprocessing),
        part_images=settings.batch_size,
        parts=settings.accumulate,
        rank=torchrun.rank(),
        processes=torchrun.count(),
        seed=settings.seed,
        workers=job.workers,
        pin=job.device.type == "cuda",
        shared=_has_room(job, say),
        every_image=settings.every_image,
        balanced=settings.sampler == "balanced",
    )


_FILES = 64
"""That a training holds open, without those of its workers."""
_FILES_OF_WORKER = 8
_TENSORS = 3
"""Of a batch: images, classes and weights."""


def _has_room(job: Job, say: Say) -> bool:
    """Whether the batches that the workers of this machine hold ready fit into shared memory, of
    which Docker gives a container 64 MB, and each of their tensors may be an open file.

    Raises:
        CvtError: not even the workers' pipes may be open.
    """
    free = training_data.shared_memory_free()
    if not job.workers or not job.takes_steps or free is None:
        return True
    height, width = job.preprocessing.size
    # Two that wait for each worker, and those of a step.
    batches = 2 * job.workers + job.settings.accumulate + 1
    files = _FILES + _FILES_OF_WORKER * job.workers
    if not machine.may_open(files):
        raise CvtError(
            f"{counted(job.workers, 'worker')} take up to {files} open files, more than this "
            "process may have",
            hint="--workers 0 trains without; `ulimit -n` tells and sets the limit",
        )
    if not machine.may_open(files + _TENSORS * batches):
        say("batches go through pipes, which is slower: `ulimit -n` allows few open files")
        return False
    needed = batches * job.settings.batch_size * 3 * height * width * 4
    needed *= torchrun.local_count()
    if needed <= free:
        return True
    say(
        f"/dev/shm has {human_bytes(free)} free, and the batches of {job.workers} workers take "
        f"up to {human_bytes(needed)}: they go through pipes, which is slower (docker run "
        "--shm-size gives more)"
    )
    return False


def trainer_of(job: Job, batches: Batches) -> Trainer:
    """The job's network, ready for its first step; it is moved to the device.

    Raises:
        DataError: there are fewer images than parts of a step.
        UsageError: a part to freeze that is not there, or a schedule that does not fit.
    """
    settings, recipe = job.settings, job.settings.recipe
    if job.device.type == "cpu":
        trainer.keep_memory()
    if not batches.steps:
        raise DataError(
            f"{len(job.images.training)} training images cannot be divided among "
            f"{torchrun.count()} processes with {settings.accumulate} accumulation steps each",
            hint="use a smaller --batch-size, or a smaller --accumulate",
        )
    schedule = schedule_of(recipe, batches.steps)
    return Trainer(
        job.model,
        recipe,
        schedule,
        device=job.device,
        precision=settings.precision,
        seed=settings.seed,
        ema=recipe.ema_epochs * batches.steps,
        class_weights=job.class_weights,
        frozen=freeze(job.model, settings.freeze),
        several=job.several,
        sync_batchnorm=settings.sync_batchnorm,
        checkpoint_activations=settings.checkpoint_activations,
    )


def check_split(folder: Path, validation: LabelledImages) -> None:
    """Raises DataError if other images are set aside now than when the run began.

    They are drawn from the same images (`job_of`) by NumPy, of which another version may draw
    others, or in whole groups, which the fingerprint of the images does not know of.
    """
    path = folder / SPLIT_FILE
    try:
        then = text.read_json(path)["validation"]
    except FileNotFoundError:
        return
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(f"`{path}` cannot be read: {error}") from None
    if then != list(validation.names):
        raise DataError(
            f"`{path}` lists other validation images than would be held out now",
            hint="restore it; if it is as it was, the images were in other groups when the run "
            "began, or were drawn by another version of cvt, NumPy or scikit-learn",
        )


def check_free(folder: Path) -> None:
    """Raises CvtError if a run cannot begin in a folder.

    It can where there is none, or an empty one, or one with what a process leaves that ended before
    its first state was saved: a lock, a plan that nothing was done of.
    """
    ours = {folder / name for name in ("state", "state/lock", "lock", SPLIT_FILE, PLAN_FILE)}
    try:
        if not folder.exists():
            return files.refuse_unwritable_place(folder / SPLIT_FILE)
        places = [place for place in (folder, folder / "state") if place.is_dir()]
        found = {path for place in places for path in place.iterdir()}
    except OSError as error:
        raise files.unwritable(folder, error) from error
    if places and all(path in ours or path.name.endswith(files.SUFFIX) for path in found):
        return files.refuse_unwritable_place(folder / SPLIT_FILE)
    if not places:
        raise files.unwritable(folder / SPLIT_FILE, NotADirectoryError())
    raise CvtError(
        f"`{folder}` exists and is not empty",
        hint=f"continue it with --resume {shlex.quote(str(folder))}, or name another with --output",
    )
