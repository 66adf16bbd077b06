"""``cvt finetune``: train on labelled images, from a checkpoint or from scratch."""

import os
import shlex
import sys
from dataclasses import replace
from typing import Any

import typer

from cvt_cli.base import machine, torchrun
from cvt_cli.base.errors import UsageError
from cvt_cli.base.progress import silent, unheard
from cvt_cli.base.text import counted
from cvt_cli.commands import finetune_options, options, output
from cvt_cli.spec import recipes

OF_A_RECIPE = frozenset(
    "--show-recipe --recipe --variant --epochs --batch-size --lr --warmup-epochs --weight-decay "
    "--clip --augment --json".split()
)
"""What has a part in a recipe that is shown."""


def finetune(
    ctx: typer.Context,
    data_argument: options.DataArgument = None,
    columns: options.Columns = None,
    images: options.ImagesFolder = None,
    separator: options.Separator = None,
    group_by: options.GroupBy = None,
    allow_overlap: finetune_options.AllowOverlap = False,
    folds: finetune_options.Folds = None,
    val_fraction: finetune_options.ValFraction = None,
    data_dir: options.DataDir = None,
    strict: finetune_options.Strict = False,
    data: options.Data = None,
    model: finetune_options.Start = None,
    variant: finetune_options.Variant = None,
    res: options.Res = None,
    resize: finetune_options.Resize = None,
    revision: options.Revision = None,
    offline: options.Offline = False,
    activation: options.Activation = None,
    run: finetune_options.Output = None,
    track: finetune_options.Track = None,
    json_output: options.Json = False,
    recipe: finetune_options.Recipe = None,
    epochs: finetune_options.Epochs = None,
    lr: finetune_options.LearningRate = None,
    batch_size: finetune_options.BatchSize = None,
    augment: finetune_options.Augment = None,
    freeze: finetune_options.Freeze = None,
    class_weights: finetune_options.ClassWeights = None,
    sampler: finetune_options.Sampler = None,
    select: finetune_options.Select = None,
    threshold_for: finetune_options.ThresholdFor = None,
    patience: finetune_options.Patience = None,
    max_time: finetune_options.MaxTime = None,
    warmup_epochs: finetune_options.WarmupEpochs = None,
    weight_decay: finetune_options.WeightDecay = None,
    clip: finetune_options.Clip = None,
    seed: finetune_options.Seed = 0,
    resume: finetune_options.Resume = None,
    dry_run: finetune_options.DryRun = False,
    show_recipe: finetune_options.ShowRecipe = False,
    device: options.Device = "auto",
    gpus: finetune_options.Gpus = None,
    precision: options.Precision = "auto",
    workers: finetune_options.Workers = None,
    sync_bn: finetune_options.SyncBatchNorm = False,
    accumulate: finetune_options.Accumulate = 1,
    checkpoint_activations: finetune_options.CheckpointActivations = False,
    energy: options.Energy = False,
    country: options.Country = None,
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
        output.print_json(told.overridden(named, batch_size).to_json(None))
        return
    told.check_together()
    if gpus is not None:
        _start_on(gpus, device)

    from cvt_cli.finetuning.finetune import evaluated_by, prepared
    from cvt_cli.finetuning.results import Result
    from cvt_cli.finetuning.stop import for_good

    alone = torchrun.rank() == 0  # of several processes, one speaks
    access = replace(output.access(revision, offline), say=output.note if alone else unheard)
    command = shlex.join(["cvt", *sys.argv[1:]])
    with prepared(told, command, access, output.progress if alone else silent) as ready:
        if dry_run:
            if json_output and alone:
                output.print_json(ready.plan)
            _warn_of(len(ready.job.images.unreadable), strict, alone)
            return
        with for_good():
            result = ready.start()
    if alone:
        if json_output:
            output.print_json(result.to_json())
        else:
            output.emit(*result.lines())
            if isinstance(result, Result):
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
        start = [*machine.python(), "-m", "torch.distributed.run", "--standalone"]
        command = [*start, f"--nproc-per-node={gpus}", "-m", "cvt_cli", *sys.argv[1:]]
        os.execv(sys.executable, command)
