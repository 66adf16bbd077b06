"""Training on images that may have several classes: the loss, and what such a run can be told."""

import torch.nn.functional as F
from torch import Tensor

from cvt_cli.base.errors import UsageError
from cvt_cli.finetuning.settings import SELECT_OF_ONE, SELECT_OF_SEVERAL, Options


def loss(
    logits: Tensor, targets: Tensor, smoothing: float, positive: Tensor | None, own: Tensor | None
) -> Tensor:
    """Binary cross-entropy in nats, the mean over classes and images.

    Args:
        logits: (B, classes).
        targets: (B, classes) from 0 to 1: the share that an image has of a class.
        smoothing: how far 0 and 1 are moved towards a half, both together.
        positive: (classes,) factors of the loss of what an image has of each class.
        own: (B,) weights of the images.
    """
    wanted = targets.to(logits.dtype) * (1 - smoothing) + smoothing / 2
    each = F.binary_cross_entropy_with_logits(logits, wanted, pos_weight=positive, reduction="none")
    losses = each.mean(dim=1)
    return (losses if own is None else losses * own.to(losses.dtype)).mean()


def check(options: Options, several: bool) -> None:
    """Raises UsageError for what has no effect, or no meaning, with such images or without them."""
    select = options.select
    if not several:
        options.refuse(
            ["--threshold-for"], "it has no effect: every image has one label, which needs none"
        )
        if select is not None and select not in SELECT_OF_ONE:
            raise UsageError(
                f"--select {select} is for images that have several labels",
                hint=f"accepted are {', '.join(f'`{name}`' for name in SELECT_OF_ONE)}",
            )
        return
    options.refuse(
        ["--sampler"], "classes cannot come equally often where an image has several labels"
    )
    if options.base_recipe.optimizer == "newton":
        raise UsageError(
            "--recipe linear-probe: it is solved for one class an image, and these may have "
            "several",
            hint="--freeze backbone trains the head alone, step by step; if each image of the "
            "table has one class: --separator none",
        )
    if select is not None and select not in SELECT_OF_SEVERAL:
        raise UsageError(
            f"--select {select} has no meaning for images that have several labels",
            hint=f"accepted are {', '.join(f'`{name}`' for name in SELECT_OF_SEVERAL)}",
        )
