"""What a run can be told, and how that becomes its settings; imports no torch."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, fields, replace
from numbers import Number
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from cvt_cli.base import places, torchrun
from cvt_cli.base.errors import UsageError, refuse_no_number, refuse_other_kinds
from cvt_cli.base.progress import Say
from cvt_cli.finetuning import balance
from cvt_cli.spec import recipes
from cvt_cli.spec.config import Activation, CvTConfig
from cvt_cli.spec.preprocessing import Resize
from cvt_cli.spec.recipes import Augment, Recipe, RecipeName

if TYPE_CHECKING:
    from cvt_cli.finetuning.job import Settings
    from cvt_cli.spec.formats import Precision

DEFAULT_VAL_FRACTION = 0.1

Select = Literal["top1", "balanced", "macro-f1", "auc", "loss", "map"]
"""What the best epoch can be chosen by."""

SELECT_OF_ONE: tuple[Select, ...] = ("top1", "balanced", "macro-f1", "auc", "loss")
"""Of images with one label each; the first unless another is asked for."""

SELECT_OF_SEVERAL: tuple[Select, ...] = ("map", "macro-f1", "auc", "loss")
"""Of images that may have several."""

OF_A_RECIPE = {
    "epochs": "epochs",
    "lr": "learning_rate",
    "warmup_epochs": "warmup_epochs",
    "weight_decay": "weight_decay",
    "clip": "clip_norm",
    "augment": "augment",
}
"""Options that override a field of the recipe, and which."""

_TOLD_ANEW = frozenset(
    "--resume --data --data-dir --images --offline --device --gpus --workers --max-time "
    "--track --energy --country".split()
)
"""What a run that goes on may be told anew, since its weights do not depend on it."""

_OF_STEPS = frozenset(
    "--epochs --lr --warmup-epochs --weight-decay --clip --augment --freeze --patience --max-time "
    "--sampler --select --threshold-for --accumulate --checkpoint-activations --sync-bn --gpus "
    "--workers --track".split()
)
"""What a linear probe, which takes no steps, has no use for."""

_CHOICES = {
    "activation": get_args(Activation),
    "recipe": get_args(RecipeName),
    "augment": get_args(Augment),
    "sampler": ("balanced",),
    "select": get_args(Select),
    "resize": get_args(Resize),
}


@dataclass(frozen=True)
class Options:
    """What a run is told, each as after the option of ``cvt finetune`` that is called so.

    None is what was not told. A ``~`` in front of a path is written out.

    Raises:
        UsageError: a value that no run can have, whatever else is told.
    """

    data: str | Path | None = None  # a folder, an archive or a known set
    _: KW_ONLY
    data_dir: Path | None = None  # where known sets are kept
    columns: str | None = None  # of a table: which has which part
    images: Path | None = None  # the folder that a table's paths start from
    separator: str | None = None  # between the classes in a table's label, or "none"
    group_by: str | None = None  # a table's column or a pattern of paths: what belongs together
    allow_overlap: bool | None = None  # pictures or groups in two parts of the data
    folds: int | None = None  # parts of the images, each held out once
    val_fraction: float | None = None  # of the training images, that the best epoch is chosen by
    model: str | Path | None = None  # the checkpoint to start from
    revision: str | None = None  # of a hub repository
    offline: bool | None = None  # ask no hub
    variant: str | None = None  # the architecture to train from scratch
    res: int | str | None = None  # input size in pixels
    resize: Resize | None = None  # how pictures come to that size; by default the model's way
    activation: Activation | None = None
    freeze: str | None = None  # parts that are not trained, with commas between
    recipe: RecipeName | None = None
    epochs: int | None = None
    batch_size: int | None = None  # images that a process computes together
    accumulate: int | None = None  # parts of a step; by default 1
    lr: float | None = None  # the peak learning rate
    warmup_epochs: float | None = None
    weight_decay: float | None = None
    clip: float | None = None  # largest norm of all gradients together; 0 is without
    augment: Augment | None = None
    class_weights: str | Mapping[str, float] | None = None  # see `balance.parsed`
    sampler: Literal["balanced"] | None = None  # every class equally often
    select: Select | None = None  # what the best epoch is chosen by; by default "top1", or "map"
    threshold_for: str | None = None  # "f1" or "precision=P"; see `thresholds.best_threshold`
    patience: int | None = None  # epochs without a better one
    max_time: str | None = None  # such as "1h30m"
    seed: int | None = None  # by default 0
    device: str | None = None  # by default "auto"
    sync_bn: bool | None = None  # take BatchNorm's statistics over all processes
    precision: str | None = None  # by default "auto"
    checkpoint_activations: bool | None = None  # compute each block twice, to save memory
    workers: int | None = None  # processes that decode
    track: str | None = None  # tools that are told the figures, with commas between
    energy: bool | None = None  # measure it
    country: str | None = None  # whose electricity the CO2 is estimated for
    resume: Path | None = None  # the run to go on with
    output: Path | None = None  # the run folder to make

    def __post_init__(self) -> None:
        refuse_other_kinds(self, _option)
        for name, value in self.values.items():
            if value == "":
                raise UsageError(f"{_option(name)} is empty; give a value, or leave it out")
            if name == "data" and isinstance(value, Path):
                from cvt_cli.datasets.torchvision_sets import as_data

                value = as_data(value)
            if name in ("data", "data_dir", "images", "model", "resume", "output"):
                written_out = places.expanded(str(value))
                kind = str if name in ("data", "model") else Path
                object.__setattr__(self, name, kind(written_out))
            if isinstance(value, Number) and hasattr(value, "item"):  # of NumPy
                object.__setattr__(self, name, value.item())
        if self.model and self.variant:
            raise UsageError(
                "give either --model, a checkpoint to start from, or --variant, to train from "
                "scratch"
            )
        for name in ("lr", "clip", "warmup_epochs", "weight_decay"):
            value = getattr(self, name)
            if value is not None:
                refuse_no_number(_option(name), value, whole=False)
            if value is not None and not math.isfinite(value):
                raise UsageError(f"{_option(name)} is {value}; it must be a finite number")
        for name, (least, most) in recipes.LIMITS.items():
            value = getattr(self, name)
            if value is not None:
                refuse_no_number(_option(name), value, whole=isinstance(least, int))
            if value is not None and not least <= value <= (math.inf if most is None else most):
                accepted = f"at least {least}" + ("" if most is None else f" and at most {most}")
                raise UsageError(f"{_option(name)} is {value}; it must be {accepted}")
        if self.class_weights is not None:
            balance.parsed(self.class_weights)
        if self.threshold_for is not None:
            parsed_aim(self.threshold_for)
        for name, choices in _CHOICES.items():
            if (value := getattr(self, name)) is not None and value not in choices:
                known = ", ".join(f"`{one}`" for one in choices)
                raise UsageError(f"{_option(name)} is `{value}`; accepted are {known}")

    @property
    def values(self) -> dict[str, Any]:
        """What was told, by the names of the fields."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def told(self) -> list[str]:
        """What was told, by the names of the command's options: "--lr"."""
        return [_option(name) for name in self.values]

    def refuse(self, names: Iterable[str], why: str) -> None:
        """Raises UsageError, with a sentence that says why, if one of these options was told."""
        if found := [name for name in self.told if name in frozenset(names)]:
            raise UsageError(f"{' and '.join(found)}: {why}")

    def refuse_steps(self) -> None:
        """Raises UsageError for what a linear probe has no use for, and for several processes."""
        self.refuse(_OF_STEPS, "a linear probe has no training steps, and runs in one process")
        torchrun.refuse("a linear probe")

    def check_together(self) -> None:
        """Raises UsageError if something is missing, or has no effect beside the rest."""
        if self.max_time:
            parse_duration(self.max_time)
        if not self.energy:
            self.refuse(["--country"], "it needs --energy")
        if self.resume is not None:
            if settled := [option for option in self.told if option not in _TOLD_ANEW]:
                raise UsageError(
                    f"{' and '.join(settled)} {'is' if len(settled) == 1 else 'are'} fixed by "
                    "the run that --resume continues",
                    hint="leave it out, or start another run",
                )
        elif self.data is None:
            raise places.no_data("finetune", "train on", self.data_dir)
        elif self.base_recipe.optimizer == "newton":
            self.refuse_steps()
        if self.class_weights is not None and self.sampler is not None:
            if isinstance(balance.parsed(self.class_weights), str):
                raise UsageError(
                    "--sampler balanced shows every class equally often already, so "
                    f"--class-weights {self.class_weights} would count rare classes twice",
                    hint="give one of the two",
                )
        if self.folds is not None:
            self.refuse(["--max-time"], "with --folds it would end each of the folds early")
            self.refuse(["--gpus", "--sync-bn"], "the runs of --folds have one process each")
        if self.variant:
            self.refuse(
                ["--revision"], "it belongs to a checkpoint, and --variant trains without one"
            )

    @property
    def recipe_name(self) -> RecipeName:
        """The recipe asked for, or else the one that goes with how the run starts."""
        return self.recipe or ("imagenet" if self.variant else "default")

    @property
    def base_recipe(self) -> Recipe:
        """The recipe as it is before options override it."""
        return recipes.RECIPES[self.recipe_name]

    def overridden(self, recipe: Recipe, batch_size: int | None = None) -> Recipe:
        """The recipe with what the options say in place of its own, for other batches if given."""
        changes = {field: getattr(self, name) for name, field in OF_A_RECIPE.items()}
        recipe = recipe.override(**changes, batch_size=batch_size)
        return recipe if self.res is None else replace(recipe, res=None)

    def share_out(self, recipe: Recipe, images: int, say: Say) -> tuple[Recipe, int]:
        """The recipe for the images of a step, and how many of them a process computes together.

        Args:
            recipe: overridden already.
            images: to train on.
            say: told where the data has fewer than a step.
        """
        shares = (self.accumulate or 1) * torchrun.count()
        if self.batch_size is None:
            recipe = recipes.for_few_images(recipe, images)
        part = self.batch_size or max(1, recipe.batch_size // shares)
        if part * shares > images:
            part = max(1, images // shares)
            if recipe.optimizer != "newton":  # whose steps are of all images
                say(f"batch size {part}: limited by the number of training images")
        return recipe.override(batch_size=part * shares, learning_rate=self.lr), part

    def settings(
        self,
        config: CvTConfig,
        images: int,
        precision: "Precision",
        command: str,
        say: Say,
        several: bool = False,
    ) -> "Settings":
        """The settings of a new run.

        Each option has its place here or in `SETTLED_ELSEWHERE`; one that has none is an error.

        Args:
            config: of the network.
            images: to train on.
            precision: that the device computes in.
            command: that starts the run.
            say: told of what turns out otherwise than asked.
            several: an image may have several classes.

        Raises:
            UsageError: a recipe that cannot be trained by, or an option without effect.
        """
        from cvt_cli.finetuning.job import Settings  # which imports torch

        left = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name not in SETTLED_ELSEWHERE
        }
        take = left.pop
        data = str(take("data"))
        named = recipes.named_recipe(self.recipe_name, config, data, images)
        recipe, part = self.share_out(self.overridden(named), images, say)
        for name in ("recipe", "batch_size", *OF_A_RECIPE):
            take(name)
        max_time, weights = take("max_time"), take("class_weights")
        freeze = tuple(told.split(",")) if (told := take("freeze")) else ()
        if "backbone" in freeze or {f"stage{i}" for i in range(len(config.stages))} <= set(freeze):
            self.refuse(
                ["--checkpoint-activations"],
                "it has no effect, since --freeze leaves no stage to train; a block keeps what it "
                "computed only if it, or a stage before it, is trained",
            )
        settings = Settings(
            data=data,
            command=command,
            columns=take("columns"),
            images=None if (folder := take("images")) is None else str(folder),
            group_by=take("group_by"),
            separator=take("separator"),
            recipe=recipe,
            seed=take("seed") or 0,
            precision=precision,
            batch_size=part,
            accumulate=take("accumulate") or 1,
            freeze=freeze,
            class_weights=balance.parsed(weights) if weights else False,
            sampler=take("sampler"),
            select=take("select") or (SELECT_OF_SEVERAL if several else SELECT_OF_ONE)[0],
            threshold_for=take("threshold_for") or ("f1" if several else None),
            patience=take("patience"),
            max_time_sec=parse_duration(max_time) if max_time else None,
            sync_batchnorm=bool(take("sync_bn")),
            checkpoint_activations=bool(take("checkpoint_activations")),
        )
        assert not left, f"no place in the settings for {', '.join(left)}"
        return settings


@dataclass(frozen=True)
class CommandOptions(Options):
    """What the command alone can be told besides."""

    gpus: int | None = None  # CUDA devices to start a process for each
    dry_run: bool | None = None  # end after the plan


SETTLED_ELSEWHERE = frozenset(
    "data_dir allow_overlap folds val_fraction model revision offline variant res resize "
    "activation device precision workers track energy country resume output gpus dry_run".split()
)
"""Options of which the images are made, the model, the device, the folder and the processes."""


def parsed_aim(told: str) -> float | None:
    """What follows ``--threshold-for``: None for F1, or the precision that is wished for.

    Raises:
        UsageError: it is neither.
    """
    if told == "f1":
        return None
    name, _, value = told.partition("=")
    try:
        precision = float(value)
    except ValueError:
        precision = math.nan
    if name != "precision" or not 0 < precision <= 1:
        raise UsageError(
            f"--threshold-for is `{told}`; accepted are `f1`, and `precision=P` with P above 0 and "
            "at most 1, such as `precision=0.9`"
        )
    return precision


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def parse_duration(text: str) -> float:
    """Seconds of "2h", "90m", "1h30m" or "45s".

    Raises:
        UsageError: it is no such time.
    """
    parts = re.fullmatch(r"(?:(\d{1,9})h)?(?:(\d{1,9})m)?(?:(\d{1,9})s)?", text.strip())
    if not text.strip() or parts is None:
        raise UsageError(
            f"`{text}` is not a time; accepted are, for example, `2h`, `1h30m`, `90m`, `45s`"
        )
    hours, minutes, seconds = (int(part or 0) for part in parts.groups())
    return float(3600 * hours + 60 * minutes + seconds)
