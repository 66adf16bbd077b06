"""``cvt finetune``: train on labelled images, from a checkpoint or from scratch."""

import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cvt_cli.base import torchrun
from cvt_cli.base.errors import UsageError
from cvt_cli.base.progress import silent, unheard
from cvt_cli.base.text import counted
from cvt_cli.commands import completion, options, output
from cvt_cli.spec import published, recipes, variants

if TYPE_CHECKING:
    from cvt_cli.finetuning.results import Result

MEMORY = "Memory"
TRAINING = "Training"
RESUMING = "Resume and dry run"

OF_A_RECIPE = frozenset(
    "--show-recipe --recipe --variant --epochs --batch-size --lr --warmup-epochs --weight-decay "
    "--clip --augment --json".split()
)
"""What has a part in a recipe that is shown."""


def _number(name: str, metavar: str, help: str, panel: str, *names: str) -> Any:
    """A number within its limits, which hold from Python too."""
    least, most = recipes.LIMITS[name]
    return options.value_option(metavar, help, panel, *names, min=least, max=most)


ValFraction = Annotated[
    float | None,
    _number(
        "val_fraction",
        "F",
        "Fraction held out for validation, at most 0.5. [default: val/ if present, else 0.1]",
        options.DATA,
    ),
]
Start = Annotated[
    str | None,
    options.text_option(
        "MODEL",
        f"Checkpoint to start from, as for cvt predict. [default: {published.DEFAULT_MODEL}]",
        options.MODEL,
        "--model",
        "-m",
        parser=options.place,
    ),
]
Variant = Annotated[
    str | None,
    options.text_option(
        "NAME",
        f"Train this architecture from scratch instead: {variants.names()}.",
        options.MODEL,
        autocompletion=completion.variant_names,
    ),
]
Freeze = Annotated[
    str | None,
    options.text_option(
        "PARTS",
        "Parts to freeze, with their BatchNorm statistics: backbone, or stages such as "
        "stage0,stage1.",
        TRAINING,
    ),
]
Recipe = Annotated[
    recipes.RecipeName | None,
    options.value_option(
        "NAME",
        f"Named set of training settings: {options.either(recipes.RecipeName)}. The options below "
        "override it. [default: `default`, or `imagenet` with --variant]",
        TRAINING,
    ),
]
ShowRecipe = Annotated[
    bool,
    options.flag("Print the recipe as JSON and exit.", RESUMING, "--show-recipe"),
]
Epochs = Annotated[int | None, _number("epochs", "N", "Number of epochs.", TRAINING)]
BatchSize = Annotated[
    int | None,
    _number(
        "batch_size",
        "N",
        "Batch size per process. [default: the recipe's total divided by processes and "
        "--accumulate; less for few images]",
        TRAINING,
        "--batch-size",
        "-b",
    ),
]
Accumulate = Annotated[int, _number("accumulate", "N", "Gradient accumulation steps.", MEMORY)]
LearningRate = Annotated[
    float | None,
    _number(
        "lr",
        "LR",
        "Peak learning rate. [default: the recipe's, scaled linearly with the effective batch "
        "size]",
        TRAINING,
    ),
]
WarmupEpochs = Annotated[
    float | None,
    _number("warmup_epochs", "N", "Epochs of learning-rate warm-up.", TRAINING),
]
WeightDecay = Annotated[
    float | None,
    _number(
        "weight_decay",
        "W",
        "Weight decay (not applied to biases, norms and the class token).",
        TRAINING,
    ),
]
Clip = Annotated[
    float | None,
    _number("clip", "NORM", "Clip the gradient norm; 0 disables clipping.", TRAINING),
]
Augment = Annotated[
    recipes.Augment | None,
    options.value_option(
        "NAME",
        f"Data augmentation: {options.either(recipes.Augment)}; medium and imagenet add mixup and "
        "CutMix. [default: by the number of images]",
        TRAINING,
    ),
]
ClassWeights = Annotated[
    str | None,
    options.text_option(
        "WEIGHTS",
        "Class weights in the loss: balanced (every class weighs the same), balanced^0.5 (less "
        "so), CLASS=WEIGHT,..., or a .json or .csv file of classes and weights.",
        TRAINING,
    ),
]
Sampler = Annotated[
    Literal["balanced"] | None,
    options.value_option(
        "balanced", "Show every class equally often in an epoch, rare ones repeatedly.", TRAINING
    ),
]
Select = Annotated[
    Literal["top1", "balanced", "macro-f1", "auc", "loss"] | None,
    options.value_option(
        "NAME",
        "What the best epoch is chosen by on the validation images: top1, balanced (accuracy), "
        "macro-f1, auc or loss. [default: top1]",
        TRAINING,
    ),
]
Patience = Annotated[
    int | None,
    _number("patience", "N", "Early stopping: epochs without improvement.", TRAINING),
]
MaxTime = Annotated[
    str | None,
    options.text_option(
        "TIME", "Time limit, such as 2h or 1h30m; keeps the best epoch so far.", TRAINING
    ),
]
Seed = Annotated[int, _number("seed", "N", "Random seed.", TRAINING)]
Gpus = Annotated[
    int | None,
    options.value_option("N", "Number of GPUs on this machine (CUDA).", options.PERFORMANCE, min=1),
]
SyncBatchNorm = Annotated[
    bool,
    options.flag(
        "Synchronise BatchNorm across processes (CUDA only).", options.PERFORMANCE, "--sync-bn"
    ),
]
CheckpointActivations = Annotated[
    bool,
    options.flag(
        "Gradient checkpointing: recompute activations. Less memory, a third more time.",
        MEMORY,
        "--checkpoint-activations",
    ),
]
Workers = Annotated[
    int | None,
    _number(
        "workers",
        "N",
        "Data-loading worker processes; 0 loads in the main process.",
        options.PERFORMANCE,
    ),
]
Resume = Annotated[
    Path | None,
    options.path_option("RUN", "Resume an interrupted run with its settings.", RESUMING),
]
DryRun = Annotated[
    bool,
    options.flag(
        "Check everything, time a few steps, print the plan and exit.", RESUMING, "--dry-run"
    ),
]
Strict = Annotated[
    bool,
    options.flag(
        "Exit with code 1 if images cannot be read. Otherwise they are left out with a warning.",
        options.DATA,
        "--strict",
    ),
]
Output = Annotated[
    Path | None,
    options.path_option(
        "FOLDER",
        "Output folder. [default: a new folder in runs/]",
        options.OUTPUT,
        "--output",
        "-o",
    ),
]


def finetune(
    ctx: typer.Context,
    data_argument: options.DataArgument = None,
    columns: options.Columns = None,
    images: options.ImagesFolder = None,
    group_by: options.GroupBy = None,
    val_fraction: ValFraction = None,
    data_dir: options.DataDir = None,
    strict: Strict = False,
    data: options.Data = None,
    model: Start = None,
    variant: Variant = None,
    res: options.Res = None,
    revision: options.Revision = None,
    offline: options.Offline = False,
    activation: options.Activation = None,
    run: Output = None,
    json_output: options.Json = False,
    recipe: Recipe = None,
    epochs: Epochs = None,
    lr: LearningRate = None,
    batch_size: BatchSize = None,
    augment: Augment = None,
    freeze: Freeze = None,
    class_weights: ClassWeights = None,
    sampler: Sampler = None,
    select: Select = None,
    patience: Patience = None,
    max_time: MaxTime = None,
    warmup_epochs: WarmupEpochs = None,
    weight_decay: WeightDecay = None,
    clip: Clip = None,
    seed: Seed = 0,
    resume: Resume = None,
    dry_run: DryRun = False,
    show_recipe: ShowRecipe = False,
    device: options.Device = "auto",
    gpus: Gpus = None,
    precision: options.Precision = "auto",
    workers: Workers = None,
    sync_bn: SyncBatchNorm = False,
    accumulate: Accumulate = 1,
    checkpoint_activations: CheckpointActivations = False,
) -> None:
    """Train on labelled images, from a checkpoint or from scratch.

    The best epoch is chosen on val/ if the data has one, else on images held out from the training
    images; their list is saved. test/ is never used in training. Ctrl-C saves the run and prints
    how to resume it.

    Examples:
      cvt finetune photos/ --model cvt-13 --epochs 20
      cvt finetune photos/ --model cvt-nano-cifar10 --dry-run
      cvt finetune cifar10 --variant nano --epochs 40 --output runs/nano
      cvt finetune --resume runs/nano

    See also: cvt evaluate --split (measure the result), cvt predict, cvt export, cvt push
    """
    from cvt_cli.finetuning.settings import CommandOptions

    options.once(data_argument, data, "--data")
    told = CommandOptions(**_told(ctx))
    if show_recipe:
        options.refuse_all_but(ctx, OF_A_RECIPE, "it is not part of a recipe (--show-recipe)")
        if told.base_recipe.optimizer == "newton":
            told.refuse_steps()
        named = recipes.named_recipe(told.recipe_name)
        output.print_json(told.overridden(named, batch_size).to_json())
        return
    told.check_together()
    if gpus is not None:
        _start_on(gpus, device)

    from cvt_cli.finetuning.finetune import evaluated_by, prepared

    alone = torchrun.rank() == 0  # of several processes, one speaks
    access = replace(output.access(revision, offline), say=output.note if alone else unheard)
    command = shlex.join(["cvt", *sys.argv[1:]])
    with prepared(told, command, access, output.progress if alone else silent) as ready:
        if dry_run:
            if json_output and alone:
                output.print_json(ready.plan)
            _warn_of(len(ready.job.images.unreadable), strict, alone)
            return
        result = ready.start()
    if alone:
        _print(result, json_output)
        if not json_output:
            output.note(f"next: {shlex.join(evaluated_by(told, ready.job, result))}")
    _warn_of(result.n_unreadable, strict, alone)


def _warn_of(unreadable: int, strict: bool, alone: bool) -> None:
    """Say that images were left out; with ``--strict`` that is a failure."""
    if unreadable and alone:
        images = "1 image was" if unreadable == 1 else f"{unreadable} images were"
        output.note(f"warning: {images} left out: cannot be read")
    if unreadable and strict:
        raise typer.Exit(1)


def _told(ctx: typer.Context) -> dict[str, Any]:
    """What the user wrote, by the names of `CommandOptions`' fields."""
    given = frozenset(options.given(ctx)) - {"--show-recipe", "--json", "--strict"}
    return {
        name.removeprefix("--").replace("-", "_").lower(): ctx.params[parameter]
        for parameter, name in options.names_of(ctx.command).items()
        if name in given
    }


def _start_on(gpus: int, device: str) -> None:
    """Start this command again under torchrun, a process for each CUDA device, and do not return;
    for one device, or in a process that torchrun has started, only see whether they are there.

    Raises:
        UsageError: they are not there, or something else was asked for too.
    """
    if device not in ("auto", "cuda"):
        raise UsageError(f"--gpus {gpus} trains on CUDA devices, not on `{device}`")
    if torchrun.count() > 1 and gpus != torchrun.count():
        raise UsageError(
            f"--gpus {gpus}: torchrun has started {counted(torchrun.count(), 'process')}"
        )
    import torch

    found = torch.cuda.device_count()
    if found < (gpus if torchrun.count() == 1 else torchrun.local_count()):
        raise UsageError(
            f"--gpus {gpus}: this machine has {counted(found, 'CUDA device')}",
            hint="leave out --gpus to train on what is here",
        )
    if gpus > 1 and torchrun.count() == 1:
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command = [*start, f"--nproc-per-node={gpus}", "-m", "cvt_cli", *sys.argv[1:]]
        os.execv(sys.executable, command)


def _print(result: "Result", json_output: bool) -> None:
    if json_output:
        output.print_json(result.to_json())
        return
    low, high = result.val_top1_interval
    output.emit(
        f"best: epoch {result.best_epoch}, top-1 {result.val_top1:.4f} on "
        f"{result.val_n} validation images (95 % interval {low:.4f} to {high:.4f})\n"
        f"{result.best}"
    )
