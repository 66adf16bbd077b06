"""The training loop: from scratch or from a checkpoint, on class folders.

The best epoch is chosen on a part set aside from the training images; test images are never read.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from cvt_cli import devices, images
from cvt_cli.config import CvTConfig
from cvt_cli.datasets import LabelledImages
from cvt_cli.devices import Precision
from cvt_cli.errors import CvtError, DataError, ImageError, UsageError
from cvt_cli.evaluation import evaluate, subject
from cvt_cli.labels import Labels
from cvt_cli.metrics import Evaluation
from cvt_cli.model import CvT, init_weights
from cvt_cli.preprocessing import Preprocessing
from cvt_cli.progress import Progress, silent
from cvt_cli.torch_engine import TorchEngine

Augmentation = Literal["none", "crop-flip", "imagenet"]

LOWEST_RATE = 1e-5
"""Learning rate at the end of the cosine (reference files)."""

WARMUP_RATE = 1e-6
"""Learning rate at the first step of the warm-up (reference files)."""


@dataclass(frozen=True)
class Recipe:
    """How to train: AdamW, linear warm-up, cosine decay."""

    epochs: int
    batch_size: int
    learning_rate: float  # peak, for this batch size; linear in the batch
    warmup_epochs: float
    weight_decay: float  # none on biases, norms and the class token
    augmentation: Augmentation
    label_smoothing: float = 0.1
    clip_norm: float = 1.0  # of all gradients together; ours, against early NaN losses

    def override(self, **changes: Any) -> "Recipe":
        """The recipe with the changes that are not None.

        Another batch size scales the learning rate with it, unless that is given too.

        Raises:
            UsageError: a value that cannot be trained with.
        """
        changes = {name: value for name, value in changes.items() if value is not None}
        if "batch_size" in changes and "learning_rate" not in changes:
            rate = self.learning_rate * changes["batch_size"] / self.batch_size
            changes["learning_rate"] = rate
        recipe = replace(self, **changes)
        if recipe.warmup_epochs >= recipe.epochs:
            raise UsageError(
                f"a warm-up of {recipe.warmup_epochs:g} epochs does not fit into "
                f"{recipe.epochs} epochs",
                hint="give a shorter one with --warmup-epochs, or more --epochs",
            )
        return recipe


def named_recipe(name: str, config: CvTConfig) -> Recipe:
    """A recipe by name, for this architecture.

    "imagenet" is the official code's training from scratch (experiments/imagenet/cvt/*.yaml), with
    torchvision's RandAugment(2, 9) in place of timm's rand-m9-mstd0.5-inc1. "default" fine-tunes.
    """
    if name == "imagenet":
        # 0.05 for CvT-13; 0.1 for the larger ones
        depth = sum(stage.depth for stage in config.stages)
        weight_decay = 0.05 if depth <= 13 else 0.1
        return Recipe(300, 2048, 0.002, 5, weight_decay, "imagenet")
    return Recipe(10, 64, 1e-4, 1, 0.05, "crop-flip")


def augmentation(kind: Augmentation, preprocessing: Preprocessing) -> Callable[[Any], Tensor]:
    """A transform of an RGB image to the network's input (3, H, W), with chance in it.

    It can be pickled, as worker processes need where they are not forked.
    """
    height, width = preprocessing.height, preprocessing.width
    size = [height, width]
    steps: list[Any]
    if kind == "imagenet":
        steps = [
            v2.RandomResizedCrop(size, interpolation=v2.InterpolationMode.BICUBIC),
            v2.RandomHorizontalFlip(),
            v2.RandAugment(num_ops=2, magnitude=9),
            v2.ColorJitter(0.4, 0.4, 0.4),
        ]
    elif kind == "crop-flip" and min(size) < 128:
        # For small images, where the 32 pixels below would be most of the picture.
        steps = [
            v2.Lambda(partial(images.resize, preprocessing=preprocessing)),
            v2.RandomCrop(size, padding=max(size) // 8),
            v2.RandomHorizontalFlip(),
        ]
    elif kind == "crop-flip":
        # The official code's fine-tuning without the training augmentation.
        steps = [
            v2.Resize([height + 32, width + 32], interpolation=v2.InterpolationMode.BICUBIC),
            v2.RandomCrop(size),
            v2.RandomHorizontalFlip(),
        ]
    else:
        steps = [v2.Lambda(partial(images.resize, preprocessing=preprocessing))]
    steps.append(v2.Lambda(partial(_to_tensor, preprocessing=preprocessing)))
    if kind == "imagenet":
        steps.append(v2.RandomErasing(p=0.25, value="random"))
    return v2.Compose(steps)


def _to_tensor(image: Any, preprocessing: Preprocessing) -> Tensor:
    return torch.from_numpy(images.normalise(image, preprocessing))


def mixing(kind: Augmentation, num_classes: int) -> Callable[..., Any] | None:
    """Mixup (alpha 0.8) or CutMix (alpha 1.0), drawn per batch, for "imagenet" only."""
    if kind != "imagenet" or num_classes < 2:
        return None
    return v2.RandomChoice(
        [v2.MixUp(alpha=0.8, num_classes=num_classes), v2.CutMix(num_classes=num_classes)]
    )


class _Augmented(Dataset[tuple[Tensor, int]]):
    def __init__(self, data: LabelledImages, transform: Callable[[Any], Tensor]) -> None:
        self.data = data
        self.transform = transform

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        try:
            image = self.data.load(index, exif=False)
        except ImageError as error:
            raise DataError(
                f"cannot train on `{self.data.root / self.data.names[index]}`: {error}",
                hint="repair or remove it",
            ) from None
        return self.transform(image), int(self.data.labels[index])


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters with and without weight decay: none on biases, norms and the class token."""
    decayed, spared = [], []
    for name, parameter in model.named_parameters():
        spare = parameter.ndim <= 1 or name.endswith("cls_token")
        (spared if spare else decayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]


def learning_rate_at(step: int, steps_per_epoch: int, recipe: Recipe) -> float:
    """Linear warm-up from `WARMUP_RATE`, then a cosine down to `LOWEST_RATE`."""
    warmup = recipe.warmup_epochs * steps_per_epoch
    peak = recipe.learning_rate
    if step < warmup:
        return WARMUP_RATE + (peak - WARMUP_RATE) * step / warmup
    lowest = min(LOWEST_RATE, peak)
    done = (step - warmup) / max(recipe.epochs * steps_per_epoch - warmup, 1)
    return lowest + (peak - lowest) * (1 + math.cos(math.pi * done)) / 2


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to."""

    number: int  # from 1
    learning_rate: float  # at its last step
    training_loss: float  # mean over its steps, with label smoothing and augmentation, in nats
    validation: Evaluation
    seconds: float  # training and validation


def fresh_model(config: CvTConfig, seed: int) -> CvT:
    """A model with freshly drawn weights."""
    torch.manual_seed(seed)
    model = CvT(config)
    init_weights(model)
    return model


def train(
    model: CvT,
    training: LabelledImages,
    validation: LabelledImages,
    preprocessing: Preprocessing,
    recipe: Recipe,
    *,
    device: torch.device,
    precision: Precision,
    seed: int,
    workers: int,
    progress: Progress = silent,
) -> Iterator[Epoch]:
    """Train in place and yield after every epoch; what to keep is the caller's choice.

    The training images must be at least one batch; the last, incomplete batch is left out.

    Raises:
        CvtError: the loss is no longer a number.
        DataError: a training image cannot be read.
    """
    torch.manual_seed(seed)
    model.to(device)
    loader = DataLoader(
        _Augmented(training, augmentation(recipe.augmentation, preprocessing)),
        batch_size=recipe.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
        generator=torch.Generator().manual_seed(seed),
    )
    mix = mixing(recipe.augmentation, model.config.num_classes)
    optimizer = torch.optim.AdamW(
        parameter_groups(model, recipe.weight_decay), lr=recipe.learning_rate, fused=True
    )
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    every_class = np.arange(len(training.classes), dtype=np.int64)
    names = Labels(training.classes)
    step = 0
    for number in range(1, recipe.epochs + 1):
        started = perf_counter()
        model.train()
        loss_sum = torch.zeros((), device=device)
        with progress(
            f"epoch {number}/{recipe.epochs}", len(loader) * recipe.batch_size
        ) as advance:
            for batch, targets in loader:
                rate = learning_rate_at(step, len(loader), recipe)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                batch, targets = batch.to(device), targets.to(device)
                if mix is not None:
                    batch, targets = mix(batch, targets)
                with devices.autocast(device, precision):
                    logits = model(batch)
                loss = F.cross_entropy(
                    logits.float(), targets, label_smoothing=recipe.label_smoothing
                )
                if step % 50 == 0:
                    _check_loss(loss, step, rate)
                optimizer.zero_grad(set_to_none=True)
                scaler.scale(loss).backward()
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
                scaler.step(optimizer)
                scaler.update()
                loss_sum += loss.detach()
                step += 1
                advance(len(batch), "")
        _check_loss(loss_sum, step, rate)
        judged = subject(
            TorchEngine(model, device, precision), preprocessing, names, every_class, validation
        )
        evaluate([judged], validation, batch_size=recipe.batch_size, progress=progress)
        yield Epoch(
            number, rate, float(loss_sum) / len(loader), judged.result, perf_counter() - started
        )


def _check_loss(loss: Tensor, step: int, rate: float) -> None:
    if not torch.isfinite(loss):
        raise CvtError(
            f"the loss is {float(loss)} at step {step}, with a learning rate of {rate:.2e}",
            hint="try a tenth of the learning rate (--lr), a longer --warmup-epochs, "
            "or --precision fp32; the epochs finished before are kept",
        )
