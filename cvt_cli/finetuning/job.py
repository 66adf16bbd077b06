"""What a run trains, as values: its images, its settings, its model."""

from dataclasses import dataclass

import torch

from cvt_cli.datasets.labelled import LabelledImages
from cvt_cli.model.devices import Precision
from cvt_cli.model.network import CvT
from cvt_cli.spec.labels import Labels
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
    class_weights: bool = False  # every class weighs the same in the loss
    patience: int | None = None  # epochs without a better one
    max_time_sec: float | None = None  # from the start of a process, also of one that goes on
    sync_batchnorm: bool = False
    checkpoint_activations: bool = False
    every_image: bool = True  # is seen in every epoch; see `Batches`


@dataclass(frozen=True)
class Images:
    """What is trained on, what the best epoch is chosen by, and what was found in checking both."""

    training: LabelledImages
    validation: LabelledImages
    set_aside: bool  # the validation images were taken from the training images
    unreadable: tuple[str, ...]  # names of the images left out, with the reason
    only_headers: bool  # damage behind a header was not looked for
    fingerprint: str  # of all of them, by content
    size_fingerprint: str = ""  # likewise by the files' sizes, as a plan of version 1 has it


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
    notes: tuple[str, ...] = ()  # about the model

    @property
    def labels(self) -> Labels:
        return Labels(self.images.training.classes)
