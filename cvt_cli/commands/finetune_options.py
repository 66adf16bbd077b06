"""The options of ``cvt finetune`` alone."""

from pathlib import Path
from typing import Annotated, Any, Literal

from cvt_cli.commands import completion, options
from cvt_cli.spec import published, recipes, variants

MEMORY = "Memory"
TRAINING = "Training"
RESUMING = "Resume and dry run"


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
Folds = Annotated[
    int | None,
    _number(
        "folds",
        "K",
        "K-fold cross-validation: K runs, each evaluated on the part that it was not trained on.",
        TRAINING,
    ),
]
AllowOverlap = Annotated[
    bool,
    options.flag(
        "Train even if the same images or groups are in more than one of train, val and test.",
        options.DATA,
        "--allow-overlap",
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
Resize = Annotated[
    Literal["crop", "squash", "pad"] | None,
    options.value_option(
        "NAME",
        "How images are resized: crop (only the centre is used), squash (the whole image, "
        "distorted) or pad (the whole image, with bars). Saved in the checkpoint. "
        "[default: the model's own]",
        options.MODEL,
    ),
]
ClassWeights = Annotated[
    str | None,
    options.text_option(
        "WEIGHTS",
        "Class weights in the loss: balanced (every class weighs the same), balanced^0.5 (half "
        "way), CLASS=WEIGHT,..., or a .json or .csv file of classes and weights.",
        TRAINING,
    ),
]
Sampler = Annotated[
    Literal["balanced"] | None,
    options.value_option(
        "balanced", "Draw all classes equally often; images of rare classes repeat.", TRAINING
    ),
]
Select = Annotated[
    Literal["top1", "balanced", "macro-f1", "auc", "loss", "map"] | None,
    options.value_option(
        "NAME",
        "Metric on the validation images that selects the best epoch: top1, balanced (accuracy), "
        "macro-f1, auc or loss; with several labels an image map, macro-f1, auc or loss. [default: "
        "top1, or map]",
        TRAINING,
    ),
]
ThresholdFor = Annotated[
    str | None,
    options.text_option(
        "AIM",
        "With several labels an image: choose each class's threshold on the validation images for "
        "f1, or for a precision, such as precision=0.9. [default: f1]",
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
Track = Annotated[
    str | None,
    options.text_option(
        "NAMES",
        "Also send settings, curves and card to: tensorboard, trackio, wandb or mlflow; several "
        "with commas. [default: tensorboard, if installed]",
        options.OUTPUT,
        autocompletion=completion.trackers,
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
