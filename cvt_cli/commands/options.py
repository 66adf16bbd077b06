"""Options that several commands share, declared once so that they mean the same everywhere."""

import math
import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from cvt_cli.base import files, places
from cvt_cli.base.errors import UsageError
from cvt_cli.commands import completion, help_pages
from cvt_cli.spec import published, variants
from cvt_cli.spec.config import Activation as ActivationName
from cvt_cli.spec.formats import AnswerPrecision, EngineChoice, Int8, PrecisionChoice
from cvt_cli.spec.preprocessing import Resize as ResizeName

MODEL = "Model"
DATA = "Data"
PERFORMANCE = "Performance"
OUTPUT = "Output"

# --- what stands on the command line


def given(ctx: typer.Context) -> list[str]:
    """The options and arguments that the user wrote, in the order of the help.

    An option is called by its first long name, "--lr", an argument as the help calls it, "IMAGE".
    One that was written with its default value counts.
    """
    return [
        name
        for parameter, name in names_of(ctx.command).items()
        if (source := ctx.get_parameter_source(parameter)) and source.name == "COMMANDLINE"
    ]


def refuse(ctx: typer.Context, names: Iterable[str], why: str, hint: str | None = None) -> None:
    """Refuse options that have no effect here, where the user wrote one.

    Args:
        ctx: of the command.
        names: of the options, as `given` calls them.
        why: a sentence about them, which follows their names and a colon.
        hint: what to do instead.

    Raises:
        UsageError: one was given.
    """
    without_effect = set(names)
    assert without_effect <= set(names_of(ctx.command).values()), without_effect
    if found := [name for name in given(ctx) if name in without_effect]:
        typed = ctx.meta.get(_TYPED, {})
        names = " and ".join(typed.get(name, name) for name in found)
        raise UsageError(f"{names}: {why}", hint)


def refuse_all_but(
    ctx: typer.Context, names: Iterable[str], why: str, hint: str | None = None
) -> None:
    """Refuse every option but those which have an effect here; as `refuse`."""
    effective = set(names)
    assert effective <= set(names_of(ctx.command).values()), effective
    refuse(ctx, set(names_of(ctx.command).values()) - effective, why, hint)


def names_of(command: Any) -> dict[str, str]:
    """The parameters of a command, and what they are called on the command line."""
    found = {}
    for parameter in command.params:
        long = [name for name in parameter.opts if name.startswith("--")]
        argument = str(getattr(parameter, "metavar", None) or parameter.name).strip("[].")
        found[str(parameter.name)] = long[0] if long else argument
    return found


def text(value: str) -> str:
    """The value of an option that takes any text; an empty one would pass for a missing one."""
    if not value:
        raise typer.BadParameter("it is empty; give a value, or leave it out")
    return value


def place(value: str) -> str:
    """A path, or a name or an address in its place; ``~`` is written out."""
    refuse_setting(value)
    try:
        return places.expanded(value)
    except UsageError as error:
        raise typer.BadParameter(str(error)) from None


def refuse_setting(value: str) -> None:
    """Raises BadParameter for ``epochs=3``, as other tools take settings, unless it is a file."""
    if re.match(r"[a-z_\d]+=", value):
        from cvt_cli.commands import habits

        if habits.is_setting(value):
            raise typer.BadParameter(
                f"`{value}` is not a file name; write options as `--name value`"
            )


def path(value: str) -> Path:
    """A path; ``~`` is written out."""
    return Path(place(value))


def device(value: str) -> str:
    """A device; a number alone, as other tools take it, is none."""
    if value.isdigit() or value.lower() == "gpu":
        raise typer.BadParameter(
            f"`{value}` is not a device; accepted are auto, cuda, cuda:1, mps, cpu"
        )
    return text(value)


def source(value: str) -> str:
    """A path, pattern or address of images, ``-``, or ``@`` before the path of a list."""
    if value.startswith("@") and not Path(value).exists():
        return f"@{place(value[1:])}"
    return place(value)


def once(written: Any, option: Any, name: str) -> Any:
    """What is given as an argument, or after the option that takes the same.

    Args:
        written: the argument; None or empty where there is none.
        option: what follows the option.
        name: of the option, "--data".

    Raises:
        UsageError: both were given.
    """
    if written and option:
        raise UsageError(f"`{written}` and {name} `{option}`: give only one of the two")
    return written or option


def architecture(
    written: str | None, variant: str | None, model: str | None
) -> tuple[str | None, str | None]:
    """The variant, or the model, that an argument or the options name.

    A known checkpoint's name, as "cvt-13", is the checkpoint's; "13" is the variant.

    Raises:
        UsageError: as `once`.
    """
    if written is None:
        return variant, model
    once(written, variant, "--variant")
    once(written, model, "--model")
    is_variant = variants.is_variant(written) and published.find(written) is None
    return (written, None) if is_variant else (None, written)


def quantised(
    ctx: typer.Context, precision: str, calibration: Path | None, max_drop: float | None
) -> str | Int8:
    """The precision with what belongs to int8.

    Raises:
        UsageError: that is given with another one.
    """
    if precision != "int8":
        refuse(ctx, ["--calibration", "--max-drop"], "it needs --precision int8")
        return precision
    return Int8(calibration, max_drop)


def refuse_replacing(file: Path | None, overwrite: bool) -> None:
    """Raises CvtError if a file that shall be written exists, and nobody said it may be replaced;
    UsageError if it names no file."""
    if file is not None:
        files.refuse_replacing([file], overwrite)
        files.refuse_unwritable(file)


_TYPED = "cvt_cli.typed"
"""Where a context holds what the user wrote, by the option that it was taken for."""


_OF_PREDICTIONS = (".jsonl", ".csv", ".parquet", ".json")
"""Suffixes by which a word behind ``--resume`` is its file, and no data."""


class Command(help_pages.Command):
    """Takes ``--json FILE.json``, ``--csv FILE.csv`` and ``--jsonl FILE.jsonl`` as what they look
    like; without a file of that suffix behind them they are flags.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        known = {name for parameter in self.params for name in parameter.opts}
        words: list[str] = []
        left = list(args)
        while left:
            word = left.pop(0)
            flag, sign, file = word.partition("=")
            kind = f".{flag.removeprefix('--')}"
            if word == "--":
                words += [word, *left]
                break
            if word == "--resume" and "--resume-predictions" in known:
                # Without a file, as version 0.1 took it.
                # What another suffix says cannot be gone on with is refused by that.
                if not left or (left[0] and not left[0].lower().endswith(_OF_PREDICTIONS)):
                    word = "--resume-predictions"
                    ctx.meta.setdefault(_TYPED, {})[word] = "--resume"
            if flag in known and kind in (".json", ".csv", ".jsonl"):
                if not sign and left and left[0].lower().endswith(kind):
                    file = left.pop(0)
                if file:
                    ours = _file_option(flag, known, file, ctx, [*words, *left])
                    ctx.meta.setdefault(_TYPED, {})[ours] = flag
                    words += [ours, file]
                    continue
            words.append(word)
        return list(super().parse_args(ctx, words))


def _file_option(flag: str, known: set[str], file: str, ctx: Any, others: list[str]) -> str:
    """The option that takes what a flag was given to write.

    Raises:
        UsageError: this command prints alone.
    """
    if {"--output", "--csv"} <= known:  # predict, whose --output writes what a suffix says
        return "--output"
    if f"{flag}-file" in known:
        return f"{flag}-file"
    line = shlex.join(["cvt", *ctx.command_path.split()[1:], *others, flag])
    raise UsageError(
        f"{flag} `{file}`: {flag} prints here, and takes no file",
        hint=f"{line} > {shlex.quote(file)}",
    )


# --- options


def _number(value: Any) -> Any:
    """What is within its range; NaN is in none, and passes the comparisons of Typer before 0.29."""
    if isinstance(value, float) and math.isnan(value):
        raise typer.BadParameter("`nan` is no number")
    return value


def value_option(metavar: str, help: str, panel: str, *names: str, **more: Any) -> Any:
    """An option that takes a value.

    Args:
        metavar: what its value is called.
        help: a sentence that can be read alone; values from a closed set are in it.
        panel: title of its section in the help.
        names: on the command line; by default that of the parameter.
        more: of `typer.Option`, such as ``min``.
    """
    more.setdefault("autocompletion", completion.BY_METAVAR.get(metavar))
    if "min" in more:
        more["callback"] = _number
    return typer.Option(*names, metavar=metavar, help=help, rich_help_panel=panel, **more)


def text_option(metavar: str, help: str, panel: str, *names: str, **more: Any) -> Any:
    """An option that takes text, which a ``parser`` reads; as `value_option`."""
    return value_option(metavar, help, panel, *names, **{"parser": text, **more})


def path_option(metavar: str, help: str, panel: str, *names: str, **more: Any) -> Any:
    """An option that takes the path of a file or folder; as `value_option`."""
    return value_option(metavar, help, panel, *names, parser=path, **more)


def flag(help: str, panel: str, *names: str) -> Any:
    """An option that takes no value; as `value_option`."""
    return typer.Option(*names, help=help, rich_help_panel=panel)


def either(choices: Any) -> str:
    """The values of a `Literal` as a phrase, "gelu or quick_gelu"."""
    *others, last = get_args(choices)
    return f"{', '.join(others)} or {last}" if others else str(last)


Variant = Annotated[
    str | None,
    text_option(
        "NAME",
        f"Architecture: {variants.names()}.",
        MODEL,
        autocompletion=completion.variant_names,
    ),
]
Model = Annotated[
    str | None,
    text_option(
        "MODEL",
        "A known name (cvt models), a hub repository (owner/name), a checkpoint folder, a "
        ".safetensors, an original .pth, or a file made by cvt export. "
        f"[default: {published.DEFAULT_MODEL}]",
        MODEL,
        "--model",
        "-m",
        parser=place,
    ),
]
Revision = Annotated[
    str | None,
    text_option(
        "REV", "Branch, tag, commit or refs/pr/N of the hub repository. [default: main]", MODEL
    ),
]
Offline = Annotated[
    bool,
    flag("Download nothing; fail if the model is not on this machine.", MODEL, "--offline"),
]
Architecture = Annotated[
    str | None,
    text_option(
        "MODEL",
        "Use the architecture of this model or file.",
        MODEL,
        "--model",
        "-m",
        parser=place,
    ),
]
ArchitectureArgument = Annotated[
    str | None,
    typer.Argument(
        parser=place,
        metavar="[MODEL]",
        autocompletion=completion.networks,
        help=f"A variant ({variants.names()}), or a model, to count its architecture. "
        "[default: all variants]",
    ),
]
NumClasses = Annotated[
    int | None,
    value_option("N", "Number of classes. [default: the architecture's own]", MODEL, min=1),
]
Res = Annotated[
    str | None,
    text_option(
        "PIXELS",
        "Input size: 384, or 384x512 for height x width. [default: the model's own]",
        MODEL,
    ),
]
Activation = Annotated[
    ActivationName | None,
    value_option(
        "NAME",
        f"Override the checkpoint's activation function: {either(ActivationName)}.",
        MODEL,
    ),
]
Resize = Annotated[
    ResizeName | None,
    value_option(
        "NAME",
        "Override how images are resized: crop (only the centre is used), squash (the whole image, "
        "distorted) or pad (the whole image, with bars). [default: the model's own]",
        MODEL,
    ),
]
DataArgument = Annotated[
    str | None,
    typer.Argument(
        parser=place,
        metavar="DATA",
        autocompletion=completion.data,
        help="A folder, .zip or .tar of labelled images, a table of them (.csv, .tsv, .jsonl, "
        ".parquet), or a data set: cifar10, cifar100, oxford-iiit-pet, flowers102 or imagenette.",
    ),
]
Data = Annotated[
    str | None,
    text_option(
        "DATA",
        "The same as the argument DATA.",
        DATA,
        "--data",
        "--dataset",
        "-d",
        parser=place,
    ),
]
DataDir = Annotated[
    Path | None,
    path_option(
        "FOLDER",
        "Where data sets are stored and downloaded to. [default: data/ in the cache folder]",
        DATA,
    ),
]
Columns = Annotated[
    str | None,
    text_option(
        "PART=NAME,...",
        "Which columns of a table to use as path, label, split, group and weight, such as "
        "path=file,label=species. [default: by their names]",
        DATA,
    ),
]
ImagesFolder = Annotated[
    Path | None,
    path_option(
        "FOLDER",
        "Folder to which the paths in a table are relative. [default: the table's own]",
        DATA,
    ),
]
Separator = Annotated[
    str | None,
    text_option(
        "SIGN",
        "What stands between the classes in a table's label column, such as | or ;, or `none`: "
        "each image has one class. [default: | where names recur between it]",
        DATA,
    ),
]
GroupBy = Annotated[
    str | None,
    text_option(
        "COLUMN|REGEX",
        "Group the images, for example by patient or video: a column of the table, or a regular "
        "expression that finds the group in the path, such as '(video\\d+)_'.",
        DATA,
    ),
]
Device = Annotated[
    str,
    text_option("DEVICE", "Device: auto, cuda, cuda:1, mps or cpu.", PERFORMANCE, parser=device),
]
Engine = Annotated[
    EngineChoice,
    value_option(
        "NAME",
        f"Inference runtime: {either(EngineChoice)}. auto: torch on a GPU; on a CPU another one "
        "if its graph is ready, or the job would take more than about 40 seconds.",
        PERFORMANCE,
    ),
]
Precision = Annotated[
    PrecisionChoice,
    value_option(
        "NAME",
        f"Precision: {either(PrecisionChoice)}. auto: bf16 on CUDA GPUs that support it, else "
        "fp32.",
        PERFORMANCE,
    ),
]
AnswersPrecision = Annotated[
    AnswerPrecision,
    value_option(
        "NAME",
        f"Precision: {either(AnswerPrecision)}. auto: bf16 on CUDA GPUs that support it, else "
        "fp32; never int8.",
        PERFORMANCE,
        "--precision",
    ),
]
Calibration = Annotated[
    Path | None,
    path_option(
        "FOLDER",
        "Typical images, to measure the value ranges for --precision int8; at most 300 are used. "
        "[default: a few of the package's]",
        PERFORMANCE,
        "--calibration",
    ),
]
MaxDrop = Annotated[
    float | None,
    value_option(
        "POINTS",
        "Percentage points of top-1 that --precision int8 may lose on the calibration images, by "
        "their class folders, else by agreement with fp32. Layers stay in floating "
        "point until that holds.",
        PERFORMANCE,
        "--max-drop",
        min=0,
    ),
]
BatchSize = Annotated[
    int,
    value_option(
        "N",
        "Batch size. It changes scores only by rounding: about 1e-6 in fp32, 0.01 in bf16.",
        PERFORMANCE,
        "--batch-size",
        "-b",
        min=1,
    ),
]
Workers = Annotated[
    int | None,
    value_option("N", "Image-loading threads. [default: number of CPUs]", PERFORMANCE, min=1),
]
Exif = Annotated[
    bool,
    flag("Rotate images by their EXIF orientation.", DATA, "--exif/--no-exif"),
]
Background = Annotated[
    str | None,
    text_option(
        "COLOR",
        "Background for transparent pixels, such as white or #ff8000. [default: the colors that "
        "the file stores]",
        DATA,
    ),
]
Energy = Annotated[
    bool,
    flag("Also measure or estimate the energy used, with codecarbon.", PERFORMANCE, "--energy"),
]
Country = Annotated[
    str | None,
    text_option(
        "CODE",
        "With --energy: country whose electricity the CO2 is estimated for, such as DEU.",
        PERFORMANCE,
    ),
]
CardFolder = Annotated[
    Path | None,
    path_option(
        "FOLDER",
        "Also put the result into the model card of this run or checkpoint folder (cvt card).",
        OUTPUT,
        "--card",
    ),
]
Overwrite = Annotated[bool, flag("Replace existing output files.", OUTPUT, "--overwrite")]
Verbose = Annotated[
    bool,
    flag(
        "Also show preprocessing, precision, engine, and why this engine was chosen.",
        OUTPUT,
        "--verbose",
        "-v",
    ),
]
JSON_HELP = "Print the result as one JSON document"
Json = Annotated[bool, flag(f"{JSON_HELP}.", OUTPUT, "--json")]
JsonOrFile = Annotated[bool, flag(f"{JSON_HELP}, or write it: --json FILE.json.", OUTPUT, "--json")]
JsonFile = Annotated[Path | None, path_option("FILE", "", OUTPUT, "--json-file", hidden=True)]
"""Where `Command` puts the file that follows ``--json``."""
