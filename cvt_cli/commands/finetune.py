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
from cvt_cli.commands import options, output
from cvt_cli.spec import published, recipes, variants

if TYPE_CHECKING:
    from cvt_cli.finetuning.results import Result

MEMORY = "Memory"  # a panel of its own, where 80 columns hold the longer name
TRAINING = "Training"
GOING_ON = "Going on"

OF_A_RECIPE = frozenset(
    "--show-recipe --recipe --variant --epochs --batch-size --lr --warmup-epochs --weight-decay "
    "--clip --augment --json".split()
)
"""What has a part in a recipe that is shown."""


def _number(name: str, help: str, panel: str, *names: str) -> Any:
    """A number within its limits, which hold from Python too."""
    least, most = recipes.LIMITS[name]
    return typer.Option(*names, min=least, max=most, help=help, rich_help_panel=panel)


ValFraction = Annotated[
    float | None,
    _number(
        "val_fraction",
        "Part of the training images that the best epoch is chosen by; by default the "
        "data's own val/, or else 0.1.",
        options.DATA,
    ),
]
Start = Annotated[
    str | None,
    options.text_option(
        "NAME|PATH",
        f"Checkpoint to start from; by default {published.DEFAULT_MODEL}.",
        options.MODEL,
        "--model",
        "-m",
        parser=options.place,
    ),
]
Variant = Annotated[
    str | None,
    options.text_option(
        None, f"Architecture to train from scratch: {variants.names()}.", options.MODEL
    ),
]
Freeze = Annotated[
    str | None,
    options.text_option(
        "PARTS",
        "What is not trained, BatchNorm's statistics included: backbone, or stages such "
        "as stage0,stage1.",
        TRAINING,
    ),
]
Recipe = Annotated[
    recipes.RecipeName | None,
    typer.Option(
        help="Settings by name, which the options below override. Without it, `default` with "
        "a checkpoint and `imagenet` (the reference's) with --variant.",
        rich_help_panel=TRAINING,
        show_default=False,
    ),
]
ShowRecipe = Annotated[
    bool,
    typer.Option(
        "--show-recipe",
        help="Print the recipe as JSON, and end.",
        rich_help_panel=TRAINING,
    ),
]
Epochs = Annotated[
    int | None, _number("epochs", "Times that every training image is seen.", TRAINING)
]
BatchSize = Annotated[
    int | None,
    _number(
        "batch_size",
        "Images that a process computes together; by default the recipe's, shared out "
        "among processes and accumulated parts.",
        TRAINING,
        "--batch-size",
        "-b",
    ),
]
Accumulate = Annotated[
    int,
    _number(
        "accumulate",
        "Parts in which each process computes its images of a step, to save memory.",
        MEMORY,
    ),
]
LearningRate = Annotated[
    float | None,
    _number(
        "lr",
        "Peak learning rate; by default the recipe's, scaled with the images of a step.",
        TRAINING,
    ),
]
WarmupEpochs = Annotated[
    float | None,
    _number("warmup_epochs", "Epochs until the peak learning rate is reached.", TRAINING),
]
WeightDecay = Annotated[
    float | None,
    _number(
        "weight_decay",
        "Of matrices and kernels; biases, norms and the class token have none.",
        TRAINING,
    ),
]
Clip = Annotated[
    float | None, _number("clip", "Largest norm of all gradients together; 0 is without.", TRAINING)
]
Augment = Annotated[
    recipes.Augment | None,
    typer.Option(
        help="What is varied in the training images; medium and imagenet also mix them.",
        rich_help_panel=TRAINING,
        show_default=False,
    ),
]
ClassWeights = Annotated[
    Literal["balanced"] | None,
    typer.Option(
        help="balanced: every class weighs the same in the loss, however few its images.",
        rich_help_panel=TRAINING,
        show_default=False,
    ),
]
Patience = Annotated[
    int | None, _number("patience", "Stop after so many epochs without a better one.", TRAINING)
]
MaxTime = Annotated[
    str | None,
    options.text_option(
        "TIME", "Stop after this time, such as 2h or 1h30m, with what was reached.", TRAINING
    ),
]
Seed = Annotated[int, _number("seed", "Of every random choice.", TRAINING)]
Gpus = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Train on so many CUDA devices of this machine, as torchrun would.",
        rich_help_panel=options.RUN,
        show_default=False,
    ),
]
SyncBatchNorm = Annotated[
    bool,
    typer.Option(
        "--sync-bn",
        help="Take BatchNorm's statistics over all processes; CUDA only.",
        rich_help_panel=options.RUN,
    ),
]
CheckpointActivations = Annotated[
    bool,
    typer.Option(
        "--checkpoint-activations",
        help="Compute each block twice in place of keeping what it computed: less memory, a "
        "third more time.",
        rich_help_panel=MEMORY,
    ),
]
Workers = Annotated[
    int | None,
    _number(
        "workers",
        "Processes that decode, for each that trains; 0 decodes in the same.",
        options.RUN,
    ),
]
Resume = Annotated[
    Path | None,
    options.path_option(
        "RUN", "Go on with a run where it was left, with its own settings.", GOING_ON
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Check everything, time a few steps, print the plan, and end.",
        rich_help_panel=GOING_ON,
    ),
]
Output = Annotated[
    Path | None,
    options.path_option(
        "FOLDER",
        "Run folder to make; by default one below `runs`.",
        options.OUTPUT,
        "--output",
        "-o",
    ),
]


def finetune(
    ctx: typer.Context,
    data_argument: options.DataArgument = None,
    data: options.Data = None,
    data_dir: options.DataDir = None,
    val_fraction: ValFraction = None,
    model: Start = None,
    revision: options.Revision = None,
    offline: options.Offline = False,
    variant: Variant = None,
    res: options.Res = None,
    activation: options.Activation = None,
    freeze: Freeze = None,
    recipe: Recipe = None,
    show_recipe: ShowRecipe = False,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    accumulate: Accumulate = 1,
    lr: LearningRate = None,
    warmup_epochs: WarmupEpochs = None,
    weight_decay: WeightDecay = None,
    clip: Clip = None,
    augment: Augment = None,
    class_weights: ClassWeights = None,
    patience: Patience = None,
    max_time: MaxTime = None,
    seed: Seed = 0,
    device: options.Device = "auto",
    gpus: Gpus = None,
    sync_bn: SyncBatchNorm = False,
    precision: options.Precision = "auto",
    checkpoint_activations: CheckpointActivations = False,
    workers: Workers = None,
    resume: Resume = None,
    dry_run: DryRun = False,
    run: Output = None,
    json_output: options.Json = False,
) -> None:
    """Train on labelled images, from a checkpoint (--model) or from scratch (--variant).

    The best epoch is chosen on the data's own val/ or on images set aside from the training
    images, whose list is saved; test images are read by `cvt evaluate` alone. Ctrl-C saves and
    says how to go on.

    Example: cvt finetune --data my_folder --model cvt-nano-cifar10 --epochs 20
    """
    from cvt_cli.finetuning.settings import CommandOptions

    options.once(data_argument, data, "--data")
    told = CommandOptions(**_told(ctx))
    if show_recipe:
        options.refuse_all_but(ctx, OF_A_RECIPE, "it is no part of a recipe (--show-recipe)")
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
            if ready.job.images.unreadable:
                raise typer.Exit(1)
            return
        result = ready.start()
    if alone:
        _print(result, json_output)
        if not json_output:
            output.note(f"next: {shlex.join(evaluated_by(told, ready.job, result))}")
    if result.n_unreadable:
        raise typer.Exit(1)


def _told(ctx: typer.Context) -> dict[str, Any]:
    """What the user wrote, by the names of `CommandOptions`' fields."""
    given = frozenset(options.given(ctx)) - {"--show-recipe", "--json"}
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
        raise UsageError(f"--gpus {gpus}: torchrun has started {torchrun.count()} processes")
    import torch

    found = torch.cuda.device_count()
    if found < (gpus if torchrun.count() == 1 else torchrun.local_count()):
        raise UsageError(
            f"--gpus {gpus}: this machine has {found} CUDA devices",
            hint="leave it out to train on what is here",
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
