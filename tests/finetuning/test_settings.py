"""What a run can be told is the same on the command line and from Python."""

from dataclasses import dataclass, fields

import pytest
import typer.main

from cvt_cli.base.errors import UsageError
from cvt_cli.cli import app
from cvt_cli.commands import options as shared
from cvt_cli.finetuning.settings import CommandOptions, Options
from cvt_cli.spec import recipes
from cvt_cli.spec.variants import VARIANTS


def test_every_option_of_the_command_can_be_told_from_python_under_its_name() -> None:
    command = typer.main.get_command(app).commands["finetune"]
    names = {name.removeprefix("--") for name in shared.names_of(command).values()}

    told = {field.name.replace("_", "-") for field in fields(CommandOptions)}

    assert told == names - {"DATA", "strict", "show-recipe", "json", "help"}
    assert told - {field.name.replace("_", "-") for field in fields(Options)} == {"gpus", "dry-run"}


@pytest.mark.parametrize("name", recipes.LIMITS)
def test_a_number_beyond_its_limits_is_refused_before_anything_is_read(name: str) -> None:
    least, most = recipes.LIMITS[name]
    option = f"--{name.replace('_', '-')}"
    below = least - 1 if isinstance(least, int) else least / 2 or -0.1

    with pytest.raises(UsageError, match=f"{option} is {below}; it must be at least {least}"):
        Options("nowhere", **{name: below})
    if most is not None:
        with pytest.raises(UsageError, match=f"{option} is .*at most"):
            Options("nowhere", **{name: most * 2})
    assert getattr(Options("nowhere", **{name: least}), name) == least


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"recipe": "best"}, "--recipe is `best`; accepted are `default`, `paper`"),
        ({"augment": "much"}, "--augment is `much`; accepted are `none`, `crop-flip`"),
        ({"class_weights": "all"}, "--class-weights is `all`; accepted are `balanced`"),
        ({"class_weights": "balanced^2"}, "--class-weights is `balanced^2`; accepted are"),
        ({"class_weights": "a=0"}, "--class-weights: the weight of `a` is `0`; it must be a num"),
        ({"class_weights": "a=1e300"}, "--class-weights: the weight of `a` is `1e300`; it must"),
        ({"class_weights": "a=1e-50"}, "--class-weights: the weight of `a` is `1e-50`; it must"),
        ({"class_weights": "a=1,a=2"}, "--class-weights names `a` twice"),
        ({"sampler": "all"}, "--sampler is `all`; accepted are `balanced`"),
        ({"select": "f1"}, "--select is `f1`; accepted are `top1`, `balanced`, `macro-f1`"),
        ({"activation": "relu"}, "--activation is `relu`; accepted are "),
        ({"freeze": ""}, "--freeze is empty"),
        ({"columns": {"path": "file"}}, "--columns is {'path': 'file'}; it must be a text"),
        ({"class_weights": 2}, "--class-weights is `2`; accepted are `balanced`"),
        ({"class_weights": {"a": 0}}, "--class-weights: the weight of `a` is `0`; it must be a nu"),
        ({"allow_overlap": "no"}, "--allow-overlap is 'no'; it must be True or False"),
        ({"lr": float("nan")}, "--lr is nan; it must be a finite number"),
        ({"lr": "fast"}, "--lr is 'fast'; it must be a number"),
        ({"epochs": 1.5}, "--epochs is 1.5; it must be a whole number"),
        ({"model": "x", "variant": "nano"}, "give either --model, a checkpoint to start from"),
    ],
    ids=str,
)
def test_a_value_that_no_run_can_have_is_explained(told, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        Options("nowhere", **told)

    assert str(caught.value).startswith(message)


def test_what_is_told_has_its_place_in_the_settings() -> None:
    options = Options(
        "my_folder", epochs=7, batch_size=6, accumulate=2, lr=0.25, warmup_epochs=1.5,
        weight_decay=0.125, clip=3.0, augment="none", freeze="stage0,stage1",
        class_weights="b=2,a=0.5", patience=4, max_time="1h30m", seed=11,
        checkpoint_activations=True, sampler="balanced", select="macro-f1",
    )  # fmt: skip

    settings = options.settings(VARIANTS["nano"].config, 100, "fp32", "cvt finetune", print)

    recipe = settings.recipe
    assert (recipe.name, recipe.epochs, recipe.batch_size) == ("default", 7, 12)
    assert (recipe.learning_rate, recipe.warmup_epochs) == (0.25, 1.5)
    assert (recipe.weight_decay, recipe.clip_norm, recipe.augment) == (0.125, 3.0, "none")
    assert (settings.data, settings.command) == ("my_folder", "cvt finetune")
    assert (settings.batch_size, settings.accumulate, settings.seed) == (6, 2, 11)
    assert settings.freeze == ("stage0", "stage1")
    assert settings.class_weights == {"b": 2.0, "a": 0.5}
    assert (settings.sampler, settings.select) == ("balanced", "macro-f1")
    assert (settings.patience, settings.max_time_sec) == (4, 5400.0)
    assert (settings.checkpoint_activations, settings.sync_batchnorm) == (True, False)


def test_an_option_that_nobody_settles_is_an_error_and_not_passed_over() -> None:
    @dataclass(frozen=True)
    class More(Options):
        momentum: float | None = None

    with pytest.raises(AssertionError, match="no place in the settings for momentum"):
        More("my_folder").settings(VARIANTS["nano"].config, 100, "fp32", "cvt finetune", print)
