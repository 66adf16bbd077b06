"""Training images: which belong to which step, how they are varied, and who decodes them.

Nothing depends on what was drawn before: the order of an epoch comes from the seed and the epoch,
what happens to an image from the seed, the epoch and the image. So a run can go on in the middle of
an epoch, on any number of processes and workers, with the same images.
"""

import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info
from torchvision.transforms import v2

from cvt_cli.base.errors import CvtError, DataError, ImageError
from cvt_cli.base.text import human_bytes
from cvt_cli.datasets.labelled import LabelledImages
from cvt_cli.finetuning.balance import balanced_order
from cvt_cli.finetuning.job import remedy
from cvt_cli.images import transform
from cvt_cli.spec.preprocessing import Preprocessing
from cvt_cli.spec.recipes import Augmentation

Part = tuple[Tensor, ...]
"""Images (B, 3, H, W) and their classes (B,), of several (B, classes) of 0 and 1; where images have
weights, these (B,) too."""

_BICUBIC = v2.InterpolationMode.BICUBIC


def draw(seed: int, *counters: int) -> int:
    """A seed of 63 bits for one of the things that a run draws, independent of all others."""
    words = np.random.SeedSequence([seed, *counters]).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))


def augmentation(what: Augmentation, preprocessing: Preprocessing) -> Callable[[Any], Tensor]:
    """A transform of an RGB image to the network's input (3, H, W), with chance in it.

    It can be pickled, as worker processes need where they are not forked.
    """
    height, width = preprocessing.size
    size = [height, width]
    what = what.at(preprocessing.size)
    steps: list[Any]
    if what.geometry == "none":
        steps = [v2.Lambda(partial(transform.resize, preprocessing=preprocessing))]
    elif what.geometry == "padded-crop":  # as is usual for CIFAR
        steps = [
            v2.Lambda(partial(transform.resize, preprocessing=preprocessing)),
            v2.RandomCrop(size, padding=max(size) // 8),
        ]
    elif what.geometry == "resized-crop":
        steps = [v2.RandomResizedCrop(size, (what.smallest_area, 1.0), interpolation=_BICUBIC)]
    elif preprocessing.resize == "pad":
        larger = replace(preprocessing, height=height + 32, width=width + 32)
        steps = [
            v2.Lambda(partial(transform.resize, preprocessing=larger)),
            v2.RandomCrop(size),
        ]
    else:
        # The official code's fine-tuning without the training augmentation.
        steps = [
            v2.Resize([height + 32, width + 32], interpolation=_BICUBIC),
            v2.RandomCrop(size),
        ]
    if what.geometry != "none":
        steps.append(v2.RandomHorizontalFlip())
    if what.randaugment is not None:
        steps.append(v2.RandAugment(*what.randaugment))
    if what.colour_jitter:
        steps.append(v2.ColorJitter(*[what.colour_jitter] * 3))
    steps.append(v2.Lambda(partial(_to_tensor, preprocessing=preprocessing)))
    if what.erasing:
        steps.append(v2.RandomErasing(p=what.erasing, value="random"))
    return v2.Compose(steps)


def _to_tensor(image: Any, preprocessing: Preprocessing) -> Tensor:
    return torch.from_numpy(transform.normalise(image, preprocessing))


def mixing(what: Augmentation, num_classes: int) -> Callable[..., Any] | None:
    """What makes of a batch and its labels mixed images and their shares; None if nothing does."""
    ways = [
        way(alpha=alpha, num_classes=num_classes)
        for way, alpha in ((v2.MixUp, what.mixup), (v2.CutMix, what.cutmix))
        if alpha
    ]
    if not ways or not what.mixed or num_classes < 2:
        return None
    return v2.RandomApply([v2.RandomChoice(ways)], p=what.mixed)


class _Varied(Dataset["tuple[Any, ...] | _Problem"]):
    def __init__(self, data: LabelledImages, transform: Callable[[Any], Tensor], seed: int) -> None:
        self.data = data
        self.transform = transform
        self.seed = seed
        # So that images weigh 1 in the mean, and the learning rate means what it always does.
        self.weights = None if data.weights is None else data.weights / data.weights.mean()

    def __getitem__(self, place: tuple[int, ...]) -> "tuple[Any, ...] | _Problem":
        """An image of an epoch, or what is wrong with it if it cannot be read.

        Args:
            place: (epoch, index), and how often the image came before in the epoch if it did.
        """
        epoch, index, *times = place
        try:
            image = self.data.load(index, exif=False)
        except ImageError as error:
            return _Problem(
                f"cannot train on `{self.data.place(index)}`: {error}", remedy(self.data, index)
            )
        # A worker's generator is its own; this process's belongs to the model.
        apart: AbstractContextManager[None] = (
            torch.random.fork_rng(devices=[]) if get_worker_info() is None else nullcontext()
        )
        with apart:
            torch.default_generator.manual_seed(draw(self.seed, 1, epoch, index, *times))
            found = self.transform(image), self.data.labels[index].tolist()
        return found if self.weights is None else (*found, float(self.weights[index]))

    def __getitems__(self, places: list[tuple[int, ...]]) -> "list[tuple[Any, ...] | _Problem]":
        """A batch of them, which the loader asks for; after one that cannot be read no other is
        waited for."""
        found: list[tuple[Any, ...] | _Problem] = []
        for place in places:
            found.append(self[place])
            if isinstance(found[-1], _Problem):
                break
        return found


class _Problem(NamedTuple):
    """What is wrong, from a worker; an exception would lose its hint on the way."""

    message: str
    hint: str


def _collate(
    items: "list[tuple[Any, ...] | _Problem]", shared: bool
) -> "tuple[Any, ...] | _Problem":
    """A batch; or what is wrong with it.

    Args:
        items: of the batch.
        shared: a worker puts it into memory that it shares with the training process; else it is
            NumPy's, whose content goes through a pipe.
    """
    readable = [item for item in items if not isinstance(item, _Problem)]
    if len(readable) < len(items):
        return next(item for item in items if isinstance(item, _Problem))
    images, *numbers = zip(*readable, strict=True)
    batch = torch.stack(images)
    whole = (batch, *map(torch.tensor, numbers))
    if get_worker_info() is None:
        return whole
    if not shared:
        return tuple(one.numpy() for one in whole)
    try:
        # Here and not in the queue's thread, which would lose a batch that finds no room.
        return tuple(one.share_memory_() for one in whole)
    except RuntimeError as error:
        return _Problem(
            f"a worker cannot hand over a batch of {human_bytes(batch.nbytes)}: {error}",
            "free space in /dev/shm (docker run --shm-size), or continue with --resume and "
            "--workers 0",
        )


def shared_memory_free() -> int | None:
    """Bytes of memory that processes can share for batches; None where nobody says."""
    try:
        found = os.statvfs("/dev/shm")
    except (OSError, AttributeError):  # not Linux
        return None
    return found.f_bavail * found.f_frsize


_OR_UNGUARDED = (
    ', or in a script that trains without `if __name__ == "__main__":`, which each such process '
    "imports"
)


@contextmanager
def workers_watched(hint: str) -> Iterator[None]:
    """Raises CvtError in place of torch's error, which may come anywhere, if a worker is gone."""
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        other = "" if multiprocessing.get_start_method() == "fork" else _OR_UNGUARDED
        raise CvtError(
            "a data-loading process has ended or was killed, as happens when memory runs out"
            f"{other}: {str(error).strip()}",
            hint=hint,
        ) from None


class _Places(Sampler[list[tuple[int, ...]]]):
    """The images of one process, a list for each part of a step, from a step of an epoch on.

    It does not know its `Batches`: in a cycle the loader would be freed by the garbage collector,
    which closes the queues first, so that every worker is waited for in vain.
    """

    def __init__(
        self,
        count: int,
        shape: tuple[int, int, int],
        rank: int,
        seed: int,
        every_image: bool,
        balanced: NDArray[np.int64] | None = None,
    ) -> None:
        self.count, self.rank, self.seed = count, rank, seed
        self.balanced = balanced  # the labels, if each is to come equally often
        self.processes, self.parts, part_images = shape
        self.step_images = math.prod(shape)  # at most
        self.steps = count // self.step_images  # of an epoch
        self.taken = self.steps * self.step_images  # images of it
        if every_image and count >= self.processes * self.parts:
            self.steps, self.taken = -(-count // self.step_images), count
            # One image alone has no statistics for BatchNorm to learn from.
            smallest = count // (self.steps * self.processes * self.parts)
            if smallest < min(2, part_images):
                self.steps = max(1, count // self.step_images)
        self.epoch = self.first_step = 0

    def images(self, steps: int) -> int:
        """How many images the first steps of an epoch have, of all processes."""
        return self.taken * steps // max(self.steps, 1)

    def __iter__(self) -> Iterator[list[tuple[int, ...]]]:
        generator = np.random.default_rng([self.seed, 0, self.epoch])
        if self.balanced is None:
            order, times = generator.permutation(self.count), None
        else:
            order, times = balanced_order(self.balanced, generator)
        shares = self.processes * self.parts
        for step in range(self.first_step, self.steps):
            first = step * shares + self.rank * self.parts
            for share in range(first, first + self.parts):
                begin, end = (self.taken * s // (self.steps * shares) for s in (share, share + 1))
                indices = order[begin:end].tolist()
                if times is None:
                    yield [(self.epoch, index) for index in indices]
                    continue
                before = times[begin:end].tolist()
                yield [
                    (self.epoch, index, again) if again else (self.epoch, index)
                    for index, again in zip(indices, before, strict=True)
                ]


class Batches:
    """The training images of this process, epoch after epoch.

    A step takes up to ``step_images`` images, in ``parts`` parts one after the other in each
    process. The images of an epoch are shared out over its steps, processes and parts, so that
    these differ by one image at most.

    Args:
        data: all training images, at least one for every part of a step.
        transform: see `augmentation`.
        part_images: computed together by one process, at most.
        parts: accumulated in one step.
        rank: number of this process.
        processes: how many there are.
        seed: of the order and the augmentation.
        workers: processes that decode; 0 decodes in this one.
        pin: hold batches where a CUDA device fetches them faster.
        shared: workers hand batches over in shared memory, else through pipes.
        every_image: an epoch has all images; else a step has exactly ``step_images``, and an epoch
            leaves out what is left at its end.
        balanced: every class comes equally often (`balance.balanced_order`).
    """

    def __init__(
        self,
        data: LabelledImages,
        transform: Callable[[Any], Tensor],
        *,
        part_images: int,
        parts: int,
        rank: int,
        processes: int,
        seed: int,
        workers: int,
        pin: bool,
        shared: bool = True,
        every_image: bool = True,
        balanced: bool = False,
    ) -> None:
        self.parts = parts
        shape, labels = (processes, parts, part_images), data.labels if balanced else None
        self._places = _Places(len(data), shape, rank, seed, every_image, labels)
        self.step_images, self.steps = self._places.step_images, self._places.steps
        # Of `first`; not a generator of this object's, with which it would be a cycle (`_Places`).
        self._begun: tuple[list[Part], Iterator[Any]] | None = None
        varied = _Varied(data, transform, seed)
        self.heaviest_image = 1.0 if varied.weights is None else float(varied.weights.max())
        self._loader = DataLoader(
            varied,
            batch_sampler=self._places,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=pin,
            worker_init_fn=_worker,
            collate_fn=partial(_collate, shared=shared),
        )

    def images(self, steps: int) -> int:
        """How many images the first steps of an epoch have, of all processes together."""
        return self._places.images(steps)

    def of_epoch(self, epoch: int, first_step: int = 0) -> Iterator[list[Part]]:
        """The steps of an epoch (from 0), each a list of parts.

        Raises:
            DataError: an image cannot be read.
        """
        begun, self._begun = self._begun, None
        if begun is not None and epoch == first_step == 0:
            parts, decoded = begun
            yield parts
        else:
            decoded = self._decoded(epoch, first_step)
        yield from _steps(decoded, self.parts)

    def first(self) -> list[Part]:
        """The first step of all, from which `of_epoch` goes on without decoding it anew."""
        decoded = self._decoded(0, 0)
        parts = next(_steps(decoded, self.parts))
        self._begun = parts, decoded
        return parts

    def _decoded(self, epoch: int, first_step: int) -> Iterator[Any]:
        self._places.epoch, self._places.first_step = epoch, first_step
        with _sigterm_held_back():
            return iter(self._loader)


def _steps(decoded: Iterator[Any], count: int) -> Iterator[list[Part]]:
    """Lists of so many parts; raises DataError for an image that cannot be read."""
    parts: list[Part] = []
    for part in decoded:
        if isinstance(part, _Problem):
            raise DataError(part.message, hint=part.hint)
        parts.append(tuple(map(torch.as_tensor, part)))
        if len(parts) == count:
            yield parts
            parts = []


@contextmanager
def _sigterm_held_back() -> Iterator[None]:
    """Start workers that hold SIGTERM back from the first.

    Where the number of threads was set before, PyTorch makes its pool anew in the fork, by threads
    with the mask of who forked; one that did not hold it back would end the worker. See `_worker`.
    """
    if not hasattr(signal, "sigwaitinfo"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _worker(number: int) -> None:
    """Leave it to the training process when to stop, though its whole group may be told."""
    torch.set_num_threads(1)
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None and hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_wait_for_the_end, args=(parent.pid,), daemon=True).start()
    elif hasattr(os, "setpgrp"):
        os.setpgrp()


def _wait_for_the_end(parent: int) -> None:
    """End this worker when the training process says so, and nobody else."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
