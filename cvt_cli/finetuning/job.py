"""What a run trains, as values: its images, its settings, its model."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cvt_cli.base import machine, torchrun
from cvt_cli.base.errors import ImageError
from cvt_cli.datasets.labelled import LabelledImages
from cvt_cli.datasets.table_sets import Told
from cvt_cli.finetuning.balance import ClassWeights, factors, positive_factors
from cvt_cli.model import devices, engine
from cvt_cli.model.network import CvT
from cvt_cli.spec.costs import costs
from cvt_cli.spec.formats import Precision
from cvt_cli.spec.labels import UNTOLD_THRESHOLD, Labels
from cvt_cli.spec.preprocessing import Preprocessing
from cvt_cli.spec.recipes import Recipe


@dataclass(frozen=True)
class Settings:
    """Everything that a run depends on, besides its model and its images."""

    data: str  # as the user named it
    command: str
    recipe: Recipe
    seed: int
    precision: Precision
    batch_size: int  # images that a process computes together
    accumulate: int = 1  # of these in a step of one process
    freeze: tuple[str, ...] = ()
    class_weights: ClassWeights = False  # factors of the loss of each class's images
    sampler: str | None = None  # "balanced": every class comes equally often
    select: str = "top1"  # what the best epoch is chosen by
    patience: int | None = None  # epochs without a better one
    max_time_sec: float | None = None  # from the start of a process, also of one that goes on
    sync_batchnorm: bool = False
    checkpoint_activations: bool = False
    every_image: bool = True  # is seen in every epoch; see `Batches`
    columns: str | None = None  # how the data are read; see `Told`
    images: str | None = None
    group_by: str | None = None
    separator: str | None = None
    threshold_for: str | None = None  # of each class, where an image may have several

    @property
    def told(self) -> Told:
        """How the data are read."""
        images = None if self.images is None else Path(self.images)
        return Told(self.columns, images, self.group_by, self.separator)


def parts_of_a_step(batch_size: int, accumulate: int, processes: int) -> str:
    """How the images of a step come together, " (8 x 3 accumulated)"; empty if all at once."""
    factors = [str(batch_size)]
    factors += [f"{accumulate} accumulated"] if accumulate > 1 else []
    factors += [f"{processes} processes"] if processes > 1 else []
    return f" ({' x '.join(factors)})" if len(factors) > 1 else ""


@dataclass(frozen=True)
class Images:
    """What is trained on, what the best epoch is chosen by, and what was found in checking both."""

    training: LabelledImages
    validation: LabelledImages
    set_aside: bool  # the validation images were taken from the training images
    unreadable: tuple[str, ...]  # names of the images left out, with the reason
    only_headers: bool  # damage behind a header was not looked for
    fingerprint: str  # of all of them, by content
    unread: bool = False  # there are so many that no file was read
    size_fingerprint: str = ""  # of all of them, by the files' sizes: plans of version 1
    used_fingerprint: str = ""  # by content, of those alone that can be read
    left_out: tuple[tuple[str, ...], ...] = ()  # names of the others, of each part
    held_out: LabelledImages | None = None  # the fold that has no part in the run

    @property
    def held_out_groups(self) -> int | None:
        """How many whole groups were set aside to choose the best epoch by; None where images
        were, or none."""
        if not self.set_aside or self.training.groups is None:
            return None
        return len(self.validation.named_groups)


@dataclass(frozen=True)
class Job:
    """A run that can begin, or go on."""

    name: str  # of what it starts from
    model: CvT
    preprocessing: Preprocessing
    images: Images
    settings: Settings
    device: torch.device
    workers: int  # processes that decode
    repository: str | None = None  # of the hub, where it starts from one
    license: str | None = None  # of what it starts from, where that is known
    track: tuple[str, ...] | None = None  # tools that are told its figures; None: see `Feed`
    energy: bool = False  # measure it
    country: str | None = None  # for the CO2 of it
    scratch: bool = False  # it starts from fresh weights, and ``name`` is a variant
    # Contents of the images that what it starts from was trained on.
    trained_before: NDArray[np.uint64] | None = None

    @property
    def labels(self) -> Labels:
        """The classes that the images are of; where one may have several, with thresholds that no
        image was looked at for."""
        classes = self.images.training.classes
        untold = (UNTOLD_THRESHOLD,) * len(classes)
        return Labels(classes, thresholds=untold if self.several else None)

    @property
    def several(self) -> bool:
        """Whether an image may have several classes."""
        return self.images.training.several

    @property
    def validation_seen(self) -> int | None:
        """Validation images that what it starts from was trained on; None where that is unknown."""
        contents = self.images.validation.contents
        if contents is None or self.trained_before is None:
            return None
        return int(np.isin(contents, self.trained_before).sum())

    @property
    def takes_steps(self) -> bool:
        """Whether it is trained step by step; a linear probe is solved at once."""
        return self.settings.recipe.optimizer != "newton"

    @cached_property
    def macs(self) -> int:
        """Multiply-adds of a forward pass over the images that a process computes together."""
        height, width = self.preprocessing.size
        of_one = costs(self.name, self.model.config, height, width).macs
        return of_one * self.settings.batch_size

    @cached_property
    def threads(self) -> int:
        """How many threads train on a CPU."""
        # Backward takes about twice what forward does.
        return engine.threads_for(3 * self.macs)

    @cached_property
    def hardware(self) -> str:
        """What trains, as a person names it: "2 threads", "NVIDIA H100"."""
        if self.device.type == "cpu":
            return torchrun.of_all(machine.named_threads(self.threads))
        return torchrun.of_all(devices.hardware(self.device))

    @cached_property
    def class_weights(self) -> Tensor | None:
        """Factors of the loss of each class's images (classes,), where they are not all 1; where
        an image may have several, of what it has of each class."""
        if not self.settings.class_weights:
            return None
        training, wanted = self.images.training, self.settings.class_weights
        if self.several:
            return torch.from_numpy(
                positive_factors(wanted, training.sizes, len(training), training.classes)
            ).float()
        return torch.from_numpy(factors(wanted, training.labels, training.classes)).float()

    @property
    def heaviest_class(self) -> float:
        """The largest factor of the loss; where an image may have several classes, it is at least
        the 1 of those that it has not."""
        if self.class_weights is None:
            return 1.0
        return max(float(self.class_weights.max()), 1.0 if self.several else 0.0)


BRING_BACK = "bring the same file back, and continue with --resume"
"""What to do where an image of a run cannot be read any more: one with another content is no image
of the run, which would not be gone on with."""


def remedy(data: LabelledImages, index: int) -> str:
    """What to do where an image cannot be trained on; ``data`` are those of a run."""
    if data.contents is None:  # of so many that none was read, the names alone are the run's
        return "replace the file, and continue with --resume"
    found: list[str] = []
    try:
        data.load(index, exif=False, tell_hash=found.append)
    except ImageError:
        if found and int(found[0][:16], 16) == int(data.contents[index]):
            return (
                "the file is as it was when the run began, which read of so many images the "
                "headers alone: repair it, or leave it out, and start another run"
            )
    return BRING_BACK
