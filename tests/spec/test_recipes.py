"""Recipes are what the paper and the reference state, and what options make of them."""

import pytest

from cvt_cli.base.errors import UsageError
from cvt_cli.spec.recipes import named_recipe
from cvt_cli.spec.variants import VARIANTS


def test_the_imagenet_recipe_is_the_reference_files() -> None:
    recipe = named_recipe("imagenet", VARIANTS["13"].config)

    assert (recipe.epochs, recipe.batch_size, recipe.learning_rate) == (300, 2048, 0.002)
    assert (recipe.warmup_epochs, recipe.weight_decay, recipe.augment) == (5, 0.05, "imagenet")
    assert recipe.label_smoothing == 0.1
    assert named_recipe("imagenet", VARIANTS["21"].config).weight_decay == 0.1
    assert named_recipe("imagenet", VARIANTS["w24"].config).weight_decay == 0.1


@pytest.mark.parametrize(
    ("data", "images", "steps"),
    [
        ("cifar10", 50_000, 10_000),
        ("cifar100", 50_000, 10_000),
        ("oxford-iiit-pet", 3_680, 500),
        ("flowers102", 2_040, 500),
        ("imagenet", 1_281_167, 20_000),
    ],
)
def test_the_papers_recipe_has_the_papers_steps(data: str, images: int, steps: int) -> None:
    recipe = named_recipe("paper", None, data, images)

    assert (recipe.optimizer, recipe.batch_size, recipe.res) == ("sgd", 512, 384)
    assert recipe.steps == steps
    assert "learning_rate" in recipe.not_published and recipe.learning_rate == 0.01


@pytest.mark.parametrize(
    ("images", "augment"),
    [(500, "crop-flip"), (5_000, "medium"), (50_000, "medium"), (1_281_167, "imagenet")],
)
def test_the_default_recipe_varies_images_by_how_many_there_are(images: int, augment: str) -> None:
    assert named_recipe("default", None, "folder", images).augment == augment


def test_the_learning_rate_is_linear_in_the_batch_unless_given() -> None:
    recipe = named_recipe("imagenet", VARIANTS["13"].config)

    assert recipe.override(batch_size=512).learning_rate == pytest.approx(0.0005)
    assert recipe.override(batch_size=512, learning_rate=0.1).learning_rate == 0.1
    assert recipe.override(epochs=None) == recipe
    assert named_recipe("paper").override(epochs=3).steps is None
    assert recipe.override(epochs=8).warmup_epochs == 2
    with pytest.raises(
        UsageError, match="a warm-up of 5 epochs is longer than the training .3 epochs"
    ):
        recipe.override(epochs=3, warmup_epochs=5)
