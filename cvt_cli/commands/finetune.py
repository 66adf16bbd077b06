"""``cvt finetune``: train on class folders, from a checkpoint or from scratch."""

import shlex
import sys
import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from cvt_cli import options, output
from cvt_cli.errors import UsageError

TRAINING = "Training"


def finetune(
    data: options.Data,
    data_dir: options.DataDir = None,
    val_fraction: Annotated[
        float,
        typer.Option(
            min=0.001,
            max=0.5,
            help="Part of the training images that the best epoch is chosen by.",
            rich_help_panel=options.DATA,
        ),
    ] = 0.1,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|PATH",
            help="Checkpoint to start from.",
            rich_help_panel=options.MODEL,
            show_default=False,
        ),
    ] = None,
    revision: options.Revision = None,
    offline: options.Offline = False,
    variant: options.Variant = None,
    res: options.Res = None,
    activation: options.Activation = None,
    recipe: Annotated[
        Literal["default", "imagenet"] | None,
        typer.Option(
            help="Settings by name; the options below override them. Without it, `default` with "
            "--model and `imagenet` (from scratch, the reference's) with --variant.",
            rich_help_panel=TRAINING,
            show_default=False,
        ),
    ] = None,
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
        typer.Option(min=2, help="Images per step.", rich_help_panel=TRAINING, show_default=False),
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(
            min=1e-8,
            help="Peak learning rate; by default the recipe's, scaled with the batch size.",
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
    augment: Annotated[
        Literal["none", "crop-flip", "imagenet"] | None,
        typer.Option(
            help="What is varied in the training images; imagenet includes mixup and CutMix.",
            rich_help_panel=TRAINING,
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Of every random choice.", rich_help_panel=TRAINING)
    ] = 0,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    workers: Annotated[
        int, typer.Option(min=0, help="Processes that decode.", rich_help_panel=options.RUN)
    ] = 0,
    run: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="Run folder to make; by default one below `runs`.",
            rich_help_panel=options.OUTPUT,
            show_default=False,
        ),
    ] = None,
    json_output: options.Json = False,
) -> None:
    """Train on class folders, from a checkpoint (--model) or from scratch (--variant).

    The best epoch is chosen on images set aside from the training images, whose list is saved;
    test images are read by `cvt evaluate` alone.

    Example: cvt finetune --data my_folder --model cvt-nano-cifar10 --epochs 20
    """
    if (model is None) == (variant is None):
        raise UsageError(
            "give either --model, a checkpoint to start from, or --variant, to start from scratch"
        )
    from cvt_cli import cache, datasets, devices, loader, runs, training

    place = devices.choose_device(device)
    images = datasets.open_dataset(
        data, "train", data_dir or cache.data_dir(), offline=offline, say=output.note
    )
    start = loader.start_of_training(
        images.classes,
        model=model,
        variant=variant,
        res=res,
        activation=activation,
        seed=seed,
        access=output.access(revision, offline),
    )
    for message in start.notes:
        output.note(message)
    named = training.named_recipe(
        recipe or ("default" if model else "imagenet"), start.model.config
    )
    train_set, val_set = images.split(val_fraction, seed)
    # A batch is at most all training images; the learning rate goes with it unless it is given.
    if (batch_size or named.batch_size) > len(train_set):
        batch_size = len(train_set)
        output.note(f"batch size {batch_size}: the data has no more training images")
    settings = runs.Settings(
        data=data,
        command=shlex.join(["cvt", *sys.argv[1:]]),
        recipe=named.override(
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=lr,
            warmup_epochs=warmup_epochs,
            weight_decay=weight_decay,
            augmentation=augment,
        ),
        seed=seed,
        device=place,
        precision=devices.choose_precision(precision, place),
        workers=workers,
    )
    default_name = f"{start.name}-{Path(data).name}-{time.strftime('%Y%m%d-%H%M%S')}"
    result = runs.run(
        run or Path("runs", default_name),
        start.model,
        train_set,
        val_set,
        start.preprocessing,
        settings,
        say=output.note,
        progress=output.progress,
    )
    if json_output:
        output.print_json(result)
        return
    print(
        f"best: epoch {result['best_epoch']}, top-1 {result['val_top1']:.4f} on "
        f"{result['val_n']} images set aside from training\n{result['best']}"
    )
    output.note(f"next: cvt evaluate --data {shlex.quote(data)} --model {result['best']}")
