"""How to train, by name: each recipe is a frozen dataclass that options override.

What the paper and the official code state is in `RECIPES` as they state it; what they leave open
is ours, and `Recipe.not_published` names it.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from cvt_cli.base.errors import UsageError
from cvt_cli.base.text import counted
from cvt_cli.spec.config import CvTConfig, Size
from cvt_cli.spec.variants import VARIANTS, variant_of

Optimizer = Literal["adamw", "sgd", "newton"]
Augment = Literal["none", "crop-flip", "medium", "imagenet"]
RecipeName = Literal["default", "paper", "imagenet", "linear-probe", "quick"]

RANDOM_CROPS_BELOW = 128
"""Input size in pixels below which images are padded and cropped, as is usual for CIFAR."""

LIMITS: dict[str, tuple[float, float | None]] = {
    "folds": (2, 20),
    "val_fraction": (0.001, 0.5),
    "epochs": (1, None),
    "batch_size": (2, None),
    "accumulate": (1, None),
    "lr": (1e-8, None),
    "warmup_epochs": (0.0, None),
    "weight_decay": (0.0, None),
    "clip": (0.0, None),
    "patience": (1, None),
    "seed": (0, 2**63 - 1),
    "workers": (0, 256),
}
"""Least and most of what a run may be told, by the names of options; None is without an end. Where
the least is an `int`, whole numbers are meant."""


@dataclass(frozen=True)
class Augmentation:
    """What is varied in the training images, before and after they are made a batch."""

    # All but "none" flip half of them. "crop-flip": crops of what is 32 pixels larger;
    # "padded-crop": of what is padded by an eighth; "resized-crop": of parts, of any area.
    geometry: Literal["none", "crop-flip", "padded-crop", "resized-crop"] = "none"
    smallest_area: float = 1.0  # of a resized crop, as a part of the image
    randaugment: tuple[int, int] | None = None  # operations per image, magnitude of 0 to 30
    colour_jitter: float = 0.0  # of brightness, contrast and saturation
    erasing: float = 0.0  # probability that a rectangle is filled with noise
    mixup: float = 0.0  # alpha of the Beta distribution (Zhang et al. 2018); 0 is without
    cutmix: float = 0.0  # alpha of the Beta distribution (Yun et al. 2019); 0 is without
    mixed: float = 0.0  # probability that a batch is mixed at all; then by either

    def at(self, size: Size) -> "Augmentation":
        """What is done at an input size: of small images, the 32 pixels of "crop-flip" would be
        most of the picture, and a part of one little."""
        mild = self.geometry == "crop-flip" or (
            self.geometry == "resized-crop" and self.smallest_area >= 0.1
        )
        if not mild or min(size) >= RANDOM_CROPS_BELOW:
            return self
        return replace(self, geometry="padded-crop", smallest_area=1.0)


AUGMENTATIONS: dict[Augment, Augmentation] = {
    "none": Augmentation(),
    "crop-flip": Augmentation("crop-flip"),
    "medium": Augmentation("resized-crop", 0.35, (1, 5), mixup=0.2, cutmix=1.0, mixed=0.5),
    # The reference's, with torchvision's RandAugment in place of timm's rand-m9-mstd0.5-inc1.
    "imagenet": Augmentation("resized-crop", 0.08, (2, 9), 0.4, 0.25, 0.8, 1.0, 1.0),
}


@dataclass(frozen=True)
class Recipe:
    """How to train. The learning rate belongs to the batch size and goes with it linearly."""

    name: str
    optimizer: Optimizer
    epochs: int
    batch_size: int  # images per step, over all processes and accumulated parts
    learning_rate: float  # peak, for this batch size
    warmup_epochs: float  # linear; a cosine down to `schedule.LOWEST_RATE` follows
    weight_decay: float  # none on biases, norms and the class token
    augment: Augment | None  # None chooses by the number of images
    label_smoothing: float = 0.1
    clip_norm: float = (
        1.0  # of all gradients together, ours, against early NaN losses; 0 is without
    )
    layer_decay: float = 1.0  # each block learns this much slower than the one after it
    ema_epochs: float = 0.0  # time constant of the weights' moving average; 0 is without
    steps: int | None = None  # in place of epochs
    res: int | None = None  # input size in pixels, unless --res says otherwise
    not_published: tuple[str, ...] = ()  # what neither the paper nor the official code states

    def override(self, **changes: Any) -> "Recipe":
        """The recipe with the changes that are not None.

        Another batch size scales the learning rate with it, unless that is given too. Where epochs
        are given, steps are dropped, and a warm-up that is not given is at most a quarter of them.

        Raises:
            UsageError: a value that cannot be trained with.
        """
        changes = {name: value for name, value in changes.items() if value is not None}
        told = frozenset(changes)
        if "batch_size" in changes and "learning_rate" not in changes:
            rate = self.learning_rate * changes["batch_size"] / self.batch_size
            changes["learning_rate"] = rate
        if "epochs" in changes:
            changes["steps"] = None
            changes.setdefault("warmup_epochs", min(self.warmup_epochs, changes["epochs"] / 4))
        changes["not_published"] = tuple(n for n in self.not_published if n not in told)
        recipe = replace(self, **changes)
        if recipe.steps is None and recipe.warmup_epochs >= recipe.epochs > 0:
            raise UsageError(
                f"a warm-up of {counted(recipe.warmup_epochs, 'epoch')} is longer than the "
                f"training ({counted(recipe.epochs, 'epoch')})",
                hint="use a smaller --warmup-epochs, or more --epochs",
            )
        return recipe

    def to_json(self, size: Size | None) -> dict[str, Any]:
        """The fields, with what the augmentation consists of, at an input size if it is known."""
        parts = None
        if self.augment is not None:
            named = AUGMENTATIONS[self.augment]
            parts = asdict(named if size is None else named.at(size))
        return {**asdict(self), "augmentation": parts}


RECIPES: dict[RecipeName, Recipe] = {
    "default": Recipe(
        "default", "adamw", 20, 64, 5e-4, 1, 0.05, None, layer_decay=0.8, ema_epochs=0.5
    ),
    "paper": Recipe(
        "paper",
        "sgd",
        0,  # see `steps_of_the_paper`
        512,
        0.01,
        0,
        0.0,
        "crop-flip",
        label_smoothing=0.0,
        steps=500,
        res=384,
        not_published=(
            "learning_rate", "warmup_epochs", "weight_decay", "augment", "label_smoothing",
            "clip_norm",
        ),
    ),
    "imagenet": Recipe(
        "imagenet", "adamw", 300, 2048, 0.002, 5, 0.05, "imagenet", not_published=("clip_norm",)
    ),
    "linear-probe": Recipe("linear-probe", "newton", 0, 64, 0.0, 0, 0.0, "none", 0.0, 0.0),
    "quick": Recipe("quick", "adamw", 3, 64, 1e-3, 0.3, 0.05, "crop-flip", layer_decay=0.8),
}  # fmt: skip


def named_recipe(
    name: RecipeName, config: CvTConfig | None = None, data: str = "", images: int = 0
) -> Recipe:
    """A recipe by name, with what it makes of a network and of the data.

    Args:
        name: of the recipe.
        config: of the network; the official code decays CvT-13's weights by 0.05, the larger
            ones' by 0.1 (experiments/imagenet/cvt/*.yaml).
        data: as the user named it; the paper's steps depend on it.
        images: to train on; 0 leaves open what depends on them.
    """
    recipe = RECIPES[name]
    if name == "imagenet" and config is not None:
        depth = sum(stage.depth for stage in config.stages)
        variant = variant_of(config)
        decay = VARIANTS[variant].weight_decay if variant else 0.05 if depth <= 13 else 0.1
        recipe = replace(recipe, weight_decay=decay)
    if name == "paper":
        recipe = replace(recipe, steps=steps_of_the_paper(data, images))
    if recipe.augment is None and images:
        recipe = replace(recipe, augment=augment_for(images))
    return recipe


SMALLEST_BATCH = 16
STEPS_PER_EPOCH = 20
"""That a batch of our own choice leaves to an epoch, down to the smallest batch."""


def for_few_images(recipe: Recipe, images: int) -> Recipe:
    """The recipe with smaller batches where its own would leave an epoch a handful of steps.

    Of the recipes that are ours; the others have the batch that was published. The rate goes with
    the root of the batch, as AdamW's steps are of one size whatever the gradient's is: a quarter of
    the batch makes four times the steps, of half the size.
    """
    if recipe.name not in ("default", "quick"):
        return recipe
    batch = recipe.batch_size
    while batch > SMALLEST_BATCH and images < batch * STEPS_PER_EPOCH:
        batch //= 2
    rate = recipe.learning_rate * (batch / recipe.batch_size) ** 0.5
    return replace(recipe, batch_size=batch, learning_rate=rate)


def steps_of_the_paper(data: str, images: int) -> int:
    """Steps of the paper's fine-tuning (section 4.1), for other data those of the nearest in size.

    20,000 for ImageNet-1k, 10,000 for CIFAR-10 and -100, 500 for Pets and Flowers.
    """
    if data in ("oxford-iiit-pet", "flowers102"):
        return 500
    if data in ("cifar10", "cifar100"):
        return 10_000
    return 500 if images < 15_000 else 10_000 if images < 300_000 else 20_000


def augment_for(images: int) -> Augment:
    """How much to vary: a few images are learnt in few steps, which strong mixing would spoil."""
    return "crop-flip" if images < 5_000 else "medium" if images < 100_000 else "imagenet"
