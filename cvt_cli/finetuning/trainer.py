"""One training step after the other: loss, gradients, optimizer, moving average, precision.

A step's randomness comes from the seed and the step's number, so that the number is all there is to
keep of it.
"""

import ctypes
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from cvt_cli.base import torchrun
from cvt_cli.base.errors import UsageError
from cvt_cli.finetuning import several_labels
from cvt_cli.finetuning.batches import Part, draw, mixing
from cvt_cli.finetuning.parameter_groups import parameter_groups
from cvt_cli.finetuning.recomputation import recompute_blocks
from cvt_cli.finetuning.schedule import Schedule
from cvt_cli.model import devices
from cvt_cli.model.network import CvT
from cvt_cli.spec.formats import Precision
from cvt_cli.spec.recipes import AUGMENTATIONS, Recipe


class Trainer:
    """A network in training, with all that changes from step to step.

    Args:
        model: with one logit per class; it is moved to the device and trained in place.
        recipe: how to train.
        schedule: of the learning rate.
        device: where to compute.
        precision: of the forward and backward pass; weights stay float32.
        seed: of stochastic depth and of mixing.
        ema: keep a moving average of weights and buffers, of this many steps' time constant.
        class_weights: (classes,) factors of the loss of each class's images, or None.
        frozen: see `freeze`.
        several: an image may have several classes: the loss is that of each class by itself.
        sync_batchnorm: take BatchNorm's statistics over all processes.
        checkpoint_activations: compute each block's forward pass twice in place of keeping what it
            computed.
    """

    def __init__(
        self,
        model: CvT,
        recipe: Recipe,
        schedule: Schedule,
        *,
        device: torch.device,
        precision: Precision,
        seed: int,
        ema: float = 0.0,
        class_weights: Tensor | None = None,
        frozen: Sequence[nn.Module] = (),
        several: bool = False,
        sync_batchnorm: bool = False,
        checkpoint_activations: bool = False,
    ) -> None:
        self.model = model.to(device)
        self.recipe, self.schedule = recipe, schedule
        self.device, self.precision, self.seed = device, precision, seed
        self.step_number = 0
        self._ahead: tuple[Tensor, list[Tensor]] | None = None  # see `first_ahead`
        self._frozen, self._several = frozen, several
        self._weights = None if class_weights is None else class_weights.to(device)
        self._mix = mixing(AUGMENTATIONS[recipe.augment or "none"], model.config.num_classes)
        self._ema_steps = ema
        self.average = deepcopy(self.model).eval() if ema else None
        groups = parameter_groups(model, recipe.weight_decay, recipe.layer_decay)
        if not groups:
            raise UsageError("nothing is left to train: every part is frozen")
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.SGD(groups, lr=schedule.peak, momentum=0.9)
            if recipe.optimizer == "sgd"
            else torch.optim.AdamW(groups, lr=schedule.peak, fused=device.type != "mps")
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        if checkpoint_activations:
            recompute_blocks(model)
        self._trained: nn.Module = self.model
        if sync_batchnorm:
            self._trained = nn.SyncBatchNorm.convert_sync_batchnorm(self.model, torchrun.group())
        if torchrun.count() > 1:
            self._trained = DistributedDataParallel(
                self._trained,
                device_ids=[device] if device.type == "cuda" else None,
                process_group=torchrun.group(),
            )

    @property
    def best_model(self) -> CvT:
        """The moving average where there is one, else the network itself."""
        return self.model if self.average is None else self.average

    def loss(self, part: Part) -> Tensor:
        """The training loss of a part of a step, in nats, with a graph to differentiate."""
        images, targets, *rest = (one.to(self.device, non_blocking=True) for one in part)
        own = rest[0].float() if rest else None  # the weights of the images
        if self._mix is not None and own is None and not self._several:
            images, targets = self._mix(images, targets)
        elif self._mix is not None:
            images, targets, own = self._mixed(images, targets, own)
        with devices.autocast(self.device, self.precision):
            logits = self._trained(images)
        logits = logits.float() if logits.dtype != torch.float64 else logits
        smoothing = self.recipe.label_smoothing
        if self._several:
            return several_labels.loss(logits, targets, smoothing, self._weights, own)
        if self._weights is None and own is None:
            return F.cross_entropy(logits, targets, label_smoothing=smoothing)
        losses = F.cross_entropy(logits, targets, label_smoothing=smoothing, reduction="none")
        if self._weights is not None:
            weights = self._weights.to(losses.dtype)
            # An image that was mixed from two weighs what its shares of their classes weigh.
            losses = losses * (weights[targets] if targets.ndim == 1 else targets @ weights)
        return (losses if own is None else losses * own).mean()

    def _mixed(
        self, images: Tensor, targets: Tensor, own: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Mixed images, the shares of classes in each (B, classes), and its weight: the shares of
        those of the two that it was mixed from."""
        mix = mixing(AUGMENTATIONS[self.recipe.augment or "none"], len(images))
        if mix is None:  # of one image
            return images, targets, own
        # The shares of images in each (B, B), from which those of classes and weights follow.
        images, shares = mix(images, torch.arange(len(images), device=self.device))
        if shares.ndim == 1:  # this part is not mixed
            return images, targets, own
        if not self._several:
            targets = F.one_hot(targets, self.model.config.num_classes)
        mixed = shares @ targets.to(shares.dtype)
        return images, mixed, None if own is None else shares @ own

    @devices.exactly()
    def backward(self, parts: Sequence[Part], images: int | None = None) -> Tensor:
        """Add the gradients of the mean loss over the images of a step, of all processes.

        Args:
            parts: of the step, those of this process.
            images: of the step, those of all processes; None if each has as many as this one.

        Returns:
            The loss of this process's images; the mean over the processes is that of the step.
        """
        torch.manual_seed(draw(self.seed, 2, self.step_number, torchrun.rank()))
        self._training_mode()
        processes = torchrun.count()
        if images is None:
            images = processes * sum(len(part[1]) for part in parts)
        total = torch.zeros((), device=self.device)
        for number, part in enumerate(parts, start=1):
            with self._alone() if number < len(parts) else nullcontext():
                # Gradients are the mean over the processes, whose shares may differ by an image.
                loss = self.loss(part) * (len(part[1]) * processes / images)
                self.scaler.scale(loss).backward()
            total = total + loss.detach()
        return total

    def step(self, parts: Sequence[Part], images: int | None = None) -> Tensor:
        """Learn from a step's images, of all processes; give their loss before, on the device."""
        rate = self.schedule(self.step_number)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate_scale"]
        loss = self._taken_ahead()
        if loss is None:
            loss = self.backward(parts, images)
        if torchrun.count() > 1:
            distributed.all_reduce(loss, group=torchrun.group())
            loss /= torchrun.count()
        if self.recipe.clip_norm:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.step_number += 1
        if self.average is not None:
            self._update_average(self.average)
        return loss

    @torch.no_grad()
    def agree(self) -> None:
        """Give every process rank 0's `best_model`, which is what is saved: each process has taken
        BatchNorm's statistics over its own images."""
        if torchrun.count() > 1:
            for tensor in self.best_model.state_dict().values():
                distributed.broadcast(tensor, 0, torchrun.group())

    def trial(self, batches: Iterator[list[Part]], steps: int) -> tuple[float, int]:
        """Seconds that a step takes, from ``steps`` of them, and how many could be tried.

        Forward and backward only: nothing is learnt, and statistics are put back. One more comes
        before them to warm up; without any it is this one that is timed.
        """
        trained, self._trained = self._trained, self.model  # without talking to other processes
        tried = -1 if steps else 0
        with self._statistics_put_back():
            started = perf_counter()
            for parts in batches:
                if steps == 0:
                    started = perf_counter()  # without what it takes to start workers
                self.backward(parts).item()
                tried += 1
                if tried == 0:
                    started = perf_counter()
                if tried >= max(steps, 1):
                    break
            seconds = perf_counter() - started
        self._trained = trained
        self.optimizer.zero_grad(set_to_none=True)
        return seconds / max(tried, 1), max(tried, 0)

    def first_ahead(self, parts: Sequence[Part]) -> float:
        """Compute the first step's gradients, which `step` then takes; the seconds that it took.

        Until then the network is as it was. Of one process alone, whose step has these parts.
        """
        with self._statistics_put_back():
            started = perf_counter()
            loss = self.backward(parts)
            loss.item()
            seconds = perf_counter() - started
            self._ahead = loss, [buffer.clone() for buffer in self.model.buffers()]
        return seconds

    @contextmanager
    def _statistics_put_back(self) -> Iterator[None]:
        """Leave the network's buffers as they were before."""
        buffers = list(self.model.buffers())
        before = [buffer.clone() for buffer in buffers]
        yield
        _fill(buffers, before)

    def _taken_ahead(self) -> Tensor | None:
        """The loss of a first step whose gradients were computed ahead, its statistics in place."""
        if self._ahead is None:
            return None
        (loss, after), self._ahead = self._ahead, None
        _fill(list(self.model.buffers()), after)
        return loss

    def _training_mode(self) -> None:
        self.model.train()
        for module in self._frozen:
            module.eval()

    def _alone(self) -> AbstractContextManager[None]:
        """Keep this process's gradients to itself until the last part of a step."""
        if isinstance(self._trained, DistributedDataParallel):
            return self._trained.no_sync()
        return nullcontext()

    @torch.no_grad()
    def _update_average(self, average: CvT) -> None:
        # In the first steps it is the mean of few, so that the start is soon forgotten.
        keep = min(math.exp(-1 / self._ema_steps), self.step_number / (self.step_number + 9))
        ours, theirs = average.state_dict().values(), self.model.state_dict().values()
        pairs = list(zip(ours, theirs, strict=True))
        torch._foreach_lerp_(
            [a for a, _ in pairs if a.is_floating_point()],
            [b for a, b in pairs if a.is_floating_point()],
            1 - keep,
        )
        for a, b in pairs:
            if not a.is_floating_point():
                a.copy_(b)

    # --- to be kept, and gone on from

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor that the next step depends on, by name."""
        found = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        if self.average is not None:
            average = self.average.state_dict()
            found |= {f"average.{name}": tensor for name, tensor in average.items()}
        for number, values in self.optimizer.state_dict()["state"].items():
            found |= {
                f"optimizer.{number}.{key}": value
                for key, value in values.items()
                if isinstance(value, Tensor)
            }
        return found

    def numbers(self) -> dict[str, Any]:
        """Everything else that it depends on, for JSON."""
        return {"step": self.step_number, "scaler": self.scaler.state_dict()}

    def restore(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Go on from what `tensors` and `numbers` gave."""
        self._ahead = None
        self.optimizer.zero_grad(set_to_none=True)

        def below(prefix: str) -> dict[str, Tensor]:
            return {
                name.removeprefix(prefix): tensor
                for name, tensor in tensors.items()
                if name.startswith(prefix)
            }

        self.model.load_state_dict(below("model."))
        if self.average is not None:
            self.average.load_state_dict(below("average."))
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in below("optimizer.").items():
            number, key = name.split(".")
            state.setdefault(int(number), {})[key] = tensor.clone()
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.scaler.load_state_dict(dict(numbers["scaler"]))
        self.step_number = numbers["step"]


@torch.no_grad()
def _fill(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)


def keep_memory() -> None:
    """Tell glibc to keep freed memory: activations of the same sizes are needed every step.

    Elsewhere, or if it does not obey, nothing happens.
    """
    if (library := _glibc()) is not None:
        library.mallopt(_MMAP_MAX, 0)
        library.mallopt(_TRIM_THRESHOLD, -1)


def give_memory_back() -> None:
    """Undo `keep_memory`, and return to the system what is free.

    The limits are those that glibc comes to by itself where large blocks have been freed.
    """
    if (library := _glibc()) is not None:
        library.mallopt(_MMAP_MAX, 65536)
        library.mallopt(_MMAP_THRESHOLD, 32 * 1024**2)
        library.mallopt(_TRIM_THRESHOLD, 64 * 1024**2)
        library.malloc_trim(0)


_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
"""Of `mallopt`."""


def _glibc() -> ctypes.CDLL | None:
    """None where the C library is another."""
    if sys.platform != "linux":
        return None
    try:
        library = ctypes.CDLL(None)
        return library if hasattr(library, "mallopt") else None
    except OSError:
        return None
