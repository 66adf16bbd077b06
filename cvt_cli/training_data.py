"""Training images: which belong to which step, how they are varied, and who decodes them.

Nothing depends on what was drawn before: the order of an epoch comes from the seed and the epoch,
what happens to an image from the seed, the epoch and the image. So a run can go on in the middle of
an epoch, on any number of processes and workers, with the same images.
"""

import math
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info
from torchvision.transforms import v2

from cvt_cli import images
from cvt_cli.datasets import LabelledImages
from cvt_cli.errors import DataError, ImageError
from cvt_cli.preprocessing import Preprocessing
from cvt_cli.recipes import RANDOM_CROPS_BELOW, Augmentation

_BICUBIC = v2.InterpolationMode.BICUBIC


def draw(seed: int, *counters: int) -> int:
    """A seed of 63 bits for one of the things that a run draws, independent of all others."""
    words = np.random.SeedSequence([seed, *counters]).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))


def augmentation(what: Augmentation, preprocessing: Preprocessing) -> Callable[[Any], Tensor]:
    """A transform of an RGB image to the network's input (3, H, W), with chance in it.

    It can be pickled, as worker processes need where they are not forked.
    """
    height, width = preprocessing.height, preprocessing.width
    size = [height, width]
    steps: list[Any]
    if what.geometry == "none":
        steps = [v2.Lambda(partial(images.resize, preprocessing=preprocessing))]
    elif what.geometry == "resized-crop" and what.smallest_area < 0.1:
        steps = [v2.RandomResizedCrop(size, (what.smallest_area, 1.0), interpolation=_BICUBIC)]
    elif min(size) < RANDOM_CROPS_BELOW:
        # For small images, where the 32 pixels below would be most of the picture.
        steps = [
            v2.Lambda(partial(images.resize, preprocessing=preprocessing)),
            v2.RandomCrop(size, padding=max(size) // 8),
        ]
    elif what.geometry == "resized-crop":
        steps = [v2.RandomResizedCrop(size, (what.smallest_area, 1.0), interpolation=_BICUBIC)]
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
    return torch.from_numpy(images.normalise(image, preprocessing))


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


class _Varied(Dataset[tuple[Tensor, int] | str]):
    def __init__(self, data: LabelledImages, transform: Callable[[Any], Tensor], seed: int) -> None:
        self.data = data
        self.transform = transform
        self.seed = seed

    def __getitem__(self, place: tuple[int, int]) -> tuple[Tensor, int] | str:
        """An image of an epoch: (epoch, index); what is wrong with it if it cannot be read."""
        epoch, index = place
        try:
            image = self.data.load(index, exif=False)
        except ImageError as error:
            return f"cannot train on `{self.data.root / self.data.names[index]}`: {error}"
        # A worker's generator is its own; this process's belongs to the model.
        apart: AbstractContextManager[None] = (
            torch.random.fork_rng(devices=[]) if get_worker_info() is None else nullcontext()
        )
        with apart:
            torch.default_generator.manual_seed(draw(self.seed, 1, epoch, index))
            return self.transform(image), int(self.data.labels[index])


def _collate(items: list[tuple[Tensor, int] | str]) -> tuple[Tensor, Tensor] | str:
    """A batch; or what is wrong, since an exception would lose its hint on the way here."""
    readable = [item for item in items if not isinstance(item, str)]
    if len(readable) < len(items):
        return next(item for item in items if isinstance(item, str))
    batch, labels = zip(*readable, strict=True)
    return torch.stack(batch), torch.tensor(labels)


class _Places(Sampler[list[tuple[int, int]]]):
    """The images of one process, a list for each part of a step, from a step of an epoch on.

    It does not know its `Batches`: in a cycle the loader would be freed by the garbage collector,
    which closes the queues first, so that every worker is waited for in vain.
    """

    def __init__(self, count: int, shape: tuple[int, int, int], rank: int, seed: int) -> None:
        self.count, self.shape, self.rank, self.seed = count, shape, rank, seed
        self.step_images = math.prod(shape)  # processes x parts x images of a part
        self.steps = count // self.step_images  # of an epoch
        self.epoch = self.first_step = 0

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.random.default_rng([self.seed, 0, self.epoch]).permutation(self.count)
        for step in range(self.first_step, self.steps):
            of_step = order[step * self.step_images :][: self.step_images]
            for part in of_step.reshape(self.shape)[self.rank].tolist():
                yield [(self.epoch, index) for index in part]


class Batches:
    """The training images of this process, epoch after epoch.

    A step takes ``step_images`` images: of each process as many, in ``parts`` parts one after the
    other. The images that are left at the end of an epoch are left out of it.

    Args:
        data: all training images, at least those of a step.
        transform: see `augmentation`.
        part_images: computed together by one process.
        parts: accumulated in one step.
        rank: number of this process.
        processes: how many there are.
        seed: of the order and the augmentation.
        workers: processes that decode; 0 decodes in this one.
        pin: hold batches where a CUDA device fetches them faster.
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
    ) -> None:
        self.parts = parts
        self._places = _Places(len(data), (processes, parts, part_images), rank, seed)
        self.step_images, self.steps = self._places.step_images, self._places.steps
        self._loader = DataLoader(
            _Varied(data, transform, seed),
            batch_sampler=self._places,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=pin,
            worker_init_fn=_worker,
            collate_fn=_collate,
        )

    def of_epoch(self, epoch: int, first_step: int = 0) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """The steps of an epoch (from 0), each a list of parts: images (B, 3, H, W), labels (B,).

        Raises:
            DataError: an image cannot be read.
        """
        self._places.epoch, self._places.first_step = epoch, first_step
        parts: list[tuple[Tensor, Tensor]] = []
        for part in self._loader:
            if isinstance(part, str):
                raise DataError(part, hint="put a good file in its place, and go on with --resume")
            parts.append(part)
            if len(parts) == self.parts:
                yield parts
                parts = []


def _worker(number: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the training process decides when to stop
    torch.set_num_threads(1)
