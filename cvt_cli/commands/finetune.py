"""``cvt finetune``: train on labelled images, from a checkpoint or from scratch."""

import math
import os
import re
import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cvt_cli.base import places, torchrun
from cvt_cli.base.errors import UsageError
from cvt_cli.base.progress import Say, silent, unheard
from cvt_cli.commands import options, output
from cvt_cli.spec import published, recipes

if TYPE_CHECKING:
    from cvt_cli.finetuning.job import Images
    from cvt_cli.finetuning.results import Result

MEMORY = "Memory"  # a panel of its own, where 80 columns hold the longer name
TRAINING = "Training"
GOING_ON = "Going on"

DEFAULT_VAL_FRACTION = 0.1


# What a run that goes on may be told anew, since its weights do not depend on it.
TOLD_ANEW = frozenset(
    "--resume --data --data-dir --offline --device --gpus --workers --max-time --json".split()
)
# What a recipe is made of.
OF_A_RECIPE = frozenset(
    "--show-recipe --recipe --variant --epochs --batch-size --lr --warmup-epochs --weight-decay "
    "--clip --augment --json".split()
)
# What a linear probe, which takes no steps, has no use for.
OF_STEPS = (
    "--epochs", "--lr", "--warmup-epochs", "--weight-decay", "--clip", "--augment", "--freeze",
    "--patience", "--max-time", "--accumulate", "--checkpoint-activations", "--sync-bn", "--gpus",
    "--workers",
)  # fmt: skip


def finetune(
    ctx: typer.Context,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            "--dataset",
            parser=options.place,
            metavar="NAME|PATH",
            help="A folder, .zip or .tar in one of the usual layouts, or cifar10, cifar100, "
            "oxford-iiit-pet, flowers102, imagenette.",
            rich_help_panel=options.DATA,
            show_default=False,
        ),
    ] = None,
    data_dir: options.DataDir = None,
    val_fraction: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            max=0.5,
            help="Part of the training images that the best epoch is chosen by; by default the "
            "data's own val/, or else 0.1.",
            rich_help_panel=options.DATA,
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            parser=options.place,
            metavar="NAME|PATH",
            help=f"Checkpoint to start from; by default {published.DEFAULT_MODEL}.",
            rich_help_panel=options.MODEL,
            show_default=False,
        ),
    ] = None,
    revision: options.Revision = None,
    offline: options.Offline = False,
    variant: Annotated[
        str | None,
        typer.Option(
            parser=options.text,
            help="Architecture to train from scratch: 13, 21, w24 or nano.",
            rich_help_panel=options.MODEL,
            show_default=False,
        ),
    ] = None,
    res: options.Res = None,
    activation: options.Activation = None,
    freeze: Annotated[
        str | None,
        typer.Option(
            parser=options.text,
            metavar="PARTS",
            help="What is not trained, BatchNorm's statistics included: backbone, or stages such "
            "as stage0,stage1.",
            rich_help_panel=TRAINING,
            show_default=False,
        ),
    ] = None,
    recipe: Annotated[
        recipes.RecipeName | None,
        typer.Option(
            help="Settings by name, which the options below override. Without it, `default` with "
            "a checkpoint and `imagenet` (the reference's) with --variant.",
            rich_help_panel=TRAINING,
            show_default=False,
        ),
    ] = None,
    show_recipe: Annotated[
        bool,
        typer.Option(
            "--show-recipe",
            help="Print the recipe as JSON, and end.",
            rich_help_panel=TRAINING,
        ),
    ] = False,
    epochs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Times that every training image is seen.",
            rich_help_panel=TRAINING,
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Images that a process computes together; by default the recipe's, shared out "
            "among processes and accumulated parts.",
            rich_help_panel=TRAINING,
            show_default=False,
        ),
    ] = None,
    accumulate: Annotated[
        int,
        typer.Option(
            min=1,
            help="Parts in which each process computes its images of a step, to save memory.",
            rich_help_panel=MEMORY,
        ),
    ] = 1,
    lr: Annotated[
        float | None,
        typer.Option(
            min=1e-8,
            help="Peak learning rate; by default the recipe's, scaled with the images of a step.",
            rich_help_panel=TRAINING,
            show_default=False,
        ),
    ] = None,
    warmup_epochs: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="Epochs until the peak learning rate is reached.",
            rich_help_panel=TRAINING,
            show_default=False,
        ),
    ] = None,
    weight_decay: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="Of matrices and kernels; biases, norms and the class token have none.",
            rich_help_panel=TRAINING,
            show_default=False,
        ),
    ] = None,
    clip: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="Largest norm of all gradients together; 0 is without.",
            rich_help_panel=TRAINING,
            show_default=False,
        ),
    ] = None,
    augment: Annotated[
        recipes.Augment | None,
        typer.Option(
            help="What is varied in the training images; medium and imagenet also mix them.",
            rich_help_panel=TRAINING,
            show_default=False,
        ),
    ] = None,
    class_weights: Annotated[
        Literal["balanced"] | None,
        typer.Option(
            help="balanced: every class weighs the same in the loss, however few its images.",
            rich_help_panel=TRAINING,
            show_default=False,
        ),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Stop after so many epochs without a better one.",
            rich_help_panel=TRAINING,
            show_default=False,
        ),
    ] = None,
    max_time: Annotated[
        str | None,
        typer.Option(
            parser=options.text,
            metavar="TIME",
            help="Stop after this time, such as 2h or 1h30m, with what was reached.",
            rich_help_panel=TRAINING,
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            min=0, max=2**63 - 1, help="Of every random choice.", rich_help_panel=TRAINING
        ),
    ] = 0,
    device: options.Device = "auto",
    gpus: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Train on so many CUDA devices of this machine, as torchrun would.",
            rich_help_panel=options.RUN,
            show_default=False,
        ),
    ] = None,
    sync_bn: Annotated[
        bool,
        typer.Option(
            "--sync-bn",
            help="Take BatchNorm's statistics over all processes; CUDA only.",
            rich_help_panel=options.RUN,
        ),
    ] = False,
    precision: options.Precision = "auto",
    checkpoint_activations: Annotated[
        bool,
        typer.Option(
            "--checkpoint-activations",
            help="Compute each block twice in place of keeping what it computed: less memory, a "
            "third more time.",
            rich_help_panel=MEMORY,
        ),
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=256,
            help="Processes that decode, for each that trains; 0 decodes in the same.",
            rich_help_panel=options.RUN,
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            parser=options.path,
            metavar="RUN",
            help="Go on with a run where it was left, with its own settings.",
            rich_help_panel=GOING_ON,
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Check everything, time a few steps, print the plan, and end.",
            rich_help_panel=GOING_ON,
        ),
    ] = False,
    run: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            parser=options.path,
            metavar="FOLDER",
            help="Run folder to make; by default one below `runs`.",
            rich_help_panel=options.OUTPUT,
            show_default=False,
        ),
    ] = None,
    json_output: options.Json = False,
) -> None:
    """Train on labelled images, from a checkpoint (--model) or from scratch (--variant).

    The best epoch is chosen on the data's own val/ or on images set aside from the training
    images, whose list is saved; test images are read by `cvt evaluate` alone. Ctrl-C saves and
    says how to go on.

    Example: cvt finetune --data my_folder --model cvt-nano-cifar10 --epochs 20
    """
    changes = {
        "epochs": epochs,
        "learning_rate": lr,
        "warmup_epochs": warmup_epochs,
        "weight_decay": weight_decay,
        "clip_norm": clip,
        "augment": augment,
    }
    if model and variant:
        raise UsageError(
            "give either --model, a checkpoint to start from, or --variant, to start from scratch"
        )
    for option, value in (
        ("--lr", lr), ("--clip", clip), ("--warmup-epochs", warmup_epochs),
        ("--weight-decay", weight_decay),
    ):  # fmt: skip
        if value is not None and not math.isfinite(value):
            raise UsageError(f"{option} is {value}; it must be a finite number")
    name: recipes.RecipeName = recipe or ("imagenet" if variant else "default")
    if show_recipe:
        options.refuse_all_but(ctx, OF_A_RECIPE, "it is no part of a recipe (--show-recipe)")
        if recipes.RECIPES[name].optimizer == "newton":
            _refuse_steps(ctx)
        shown = recipes.named_recipe(name).override(**changes, batch_size=batch_size)
        output.print_json(shown.to_json())
        return
    max_time_sec = parse_duration(max_time) if max_time else None
    if resume is not None:
        if settled := [option for option in options.given(ctx) if option not in TOLD_ANEW]:
            raise UsageError(
                f"{' and '.join(settled)} {'is' if len(settled) == 1 else 'are'} settled by the "
                "run that --resume goes on with",
                hint="leave it out, or start another run",
            )
    elif data is None:
        raise UsageError(
            "there is no --data to train on",
            hint="name a folder with a folder of images per class, or a known set, for example "
            "--data cifar10",
        )
    elif recipes.RECIPES[name].optimizer == "newton":
        _refuse_steps(ctx)
    if variant:
        options.refuse(ctx, ["--revision"], "it is of a checkpoint's, and --variant has none")
    if gpus is not None:
        if device not in ("auto", "cuda"):
            raise UsageError(f"--gpus {gpus} trains on CUDA devices, not on `{device}`")
        if torchrun.count() > 1 and gpus != torchrun.count():
            raise UsageError(f"--gpus {gpus}: torchrun has started {torchrun.count()} processes")
        _start_on(gpus)

    from cvt_cli.datasets import held_out, layouts, torchvision_sets
    from cvt_cli.finetuning import origin
    from cvt_cli.finetuning import plan as plans
    from cvt_cli.finetuning import start as starts
    from cvt_cli.finetuning.job import Job, Settings
    from cvt_cli.finetuning.run import Run
    from cvt_cli.model import devices

    place = devices.choose_device(device)
    alone = torchrun.rank() == 0  # of several processes, one speaks
    say, progress = (output.note, output.progress) if alone else (unheard, silent)
    workers = _workers(workers, place.type)
    if resume is None and sync_bn and place.type == "cuda" and torchrun.count() == 1:
        options.refuse(ctx, ["--sync-bn"], "there is one process, which has all statistics")
    if resume is None and run is not None and alone:
        starts.check_free(run)

    def check(data: str, own: bool, fraction: float, seed: int) -> "Images":
        if data not in torchvision_sets.KNOWN_SETS:
            options.refuse(ctx, ["--data-dir"], f"it is where known sets are, and `{data}` is none")
        found = layouts.open_dataset(
            data, "train", data_dir or places.data_dir(), offline=offline, say=say
        )
        published = layouts.open_validation(data, found, say) if own else None
        if not own and alone:
            layouts.pass_over_validation(data, say)
        return starts.check_images(found, published, fraction, seed, progress=progress)

    with torchrun.joined(place.type):
        if resume is not None:
            plan = plans.read_plan(resume)
            settings = plans.settings_of(plan)
            if settings.recipe.optimizer == "newton":
                _refuse_steps(ctx)
            devices.choose_precision(settings.precision, place)  # the device may be another
            if max_time_sec is not None:
                settings = replace(settings, max_time_sec=max_time_sec)
            if data is not None:  # they have moved
                settings = replace(settings, data=data)
            images = check(
                settings.data,
                not plan["data"]["val_set_aside"],
                plan["data"]["val_fraction"],
                settings.seed,
            )
            job = starts.job_of(plan, settings, images, place, workers)
            result = Run(job, say=say, progress=progress).go_on(resume)
        else:
            assert data is not None
            fraction = val_fraction or DEFAULT_VAL_FRACTION
            images = check(data, val_fraction is None, fraction, seed)
            n = len(images.training)
            start = origin.start_of_training(
                images.training.classes,
                model=None if variant else model or published.DEFAULT_MODEL,
                variant=variant,
                res=res or (str(recipes.RECIPES[name].res) if recipes.RECIPES[name].res else None),
                activation=activation,
                seed=seed,
                access=replace(output.access(revision, offline), say=say),
            )
            for message in start.notes:
                say(message)
            chosen = recipes.named_recipe(name, start.model.config, data, n).override(**changes)
            chosen, part = _shared_out(chosen, batch_size, accumulate, n, lr, say)
            settings = Settings(
                data=data,
                command=shlex.join(["cvt", *sys.argv[1:]]),
                recipe=chosen,
                seed=seed,
                precision=devices.choose_precision(precision, place),
                batch_size=part,
                accumulate=accumulate,
                freeze=tuple(freeze.split(",")) if freeze else (),
                class_weights=class_weights == "balanced",
                patience=patience,
                max_time_sec=max_time_sec,
                sync_batchnorm=sync_bn,
                checkpoint_activations=checkpoint_activations,
            )
            job = Job(
                start.name, start.model, start.preprocessing, images, settings, place, workers
            )
            prepared = Run(job, say=say, progress=progress)
            plan = prepared.plan(fraction)
            for line in plans.describe(plan):
                say(line)
            if dry_run:
                if json_output and alone:
                    output.print_json(plan)
                return
            default_name = f"{start.name}-{Path(data).name}-{time.strftime('%Y%m%d-%H%M%S')}"
            result = prepared.begin(run or Path("runs", default_name), plan)
    if alone:
        _print(result, json_output)
        words = ["cvt", "evaluate", "--data", settings.data, "--model", str(result.best)]
        if data_dir is not None:
            words += ["--data-dir", str(data_dir)]
        if images.set_aside and held_out.is_trained_on_by_default(
            images.training,
            lambda: layouts.open_dataset(settings.data, "test", data_dir or places.data_dir()),
        ):
            words += ["--split", "val"]
        if settings.precision != devices.choose_precision("auto", place):
            words += ["--precision", settings.precision]
        if not json_output:
            output.note(f"next: {shlex.join(words)}")
    if result.n_unreadable:
        raise typer.Exit(1)


def _refuse_steps(ctx: typer.Context) -> None:
    options.refuse(ctx, OF_STEPS, "a linear probe takes no training steps, and runs alone")
    torchrun.refuse("a linear probe")


def parse_duration(text: str) -> float:
    """Seconds of "2h", "90m", "1h30m" or "45s".

    Raises:
        UsageError: it is no such time.
    """
    parts = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text.strip())
    if not text.strip() or parts is None:
        raise UsageError(f"`{text}` is no time; accepted are such as `2h`, `1h30m`, `90m`, `45s`")
    hours, minutes, seconds = (int(part or 0) for part in parts.groups())
    return float(3600 * hours + 60 * minutes + seconds)


def _start_on(gpus: int) -> None:
    """Start this command again under torchrun, a process for each CUDA device, and do not return;
    for one device, or in a process that torchrun has started, only see whether they are there."""
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


def _workers(asked: int | None, device: str) -> int:
    """Processes that decode: on a CPU, whose cores train, one; else the cores of this process."""
    if asked is not None:
        return asked
    cores = max(1, (os.cpu_count() or 1) // torchrun.local_count())
    return 1 if device == "cpu" else min(cores, 8)


def _shared_out(
    recipe: recipes.Recipe,
    batch_size: int | None,
    accumulate: int,
    images: int,
    lr: float | None,
    say: Say,
) -> tuple[recipes.Recipe, int]:
    """The recipe for the images of a step, and how many of them a process computes together."""
    shares = accumulate * torchrun.count()
    if batch_size is None:
        recipe = recipes.for_few_images(recipe, images)
    part = batch_size or max(1, recipe.batch_size // shares)
    if part * shares > images:
        part = max(1, images // shares)
        say(f"batch size {part}: the data has no more training images")
    return recipe.override(batch_size=part * shares, learning_rate=lr), part


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
