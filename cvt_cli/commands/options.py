"""Options that several commands share, declared once so that they mean the same everywhere."""

import re
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from cvt_cli.base import files, places
from cvt_cli.base.errors import UsageError
from cvt_cli.spec import published, variants
from cvt_cli.spec.config import Activation as ActivationName
from cvt_cli.spec.formats import EngineChoice

MODEL = "Model"
DATA = "Data"
RUN = "How it runs"
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
        raise UsageError(f"{' and '.join(found)}: {why}", hint)


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
        raise typer.BadParameter("it is empty; leave it out, or say something")
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
            raise typer.BadParameter(f"`{value}` is no file; options are written `--name value`")


def path(value: str) -> Path:
    """A path; ``~`` is written out."""
    return Path(place(value))


def device(value: str) -> str:
    """A device; a number alone, as other tools take it, is none."""
    if value.isdigit() or value.lower() == "gpu":
        raise typer.BadParameter(
            f"`{value}` is no device; accepted are auto, cuda, cuda:1, cpu, mps"
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
        raise UsageError(f"`{written}` and {name} `{option}`: give one of them")
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


def refuse_replacing(file: Path | None, overwrite: bool) -> None:
    """Raises CvtError if a file that shall be written exists, and nobody said it may be replaced;
    UsageError if it names no file."""
    if file is not None:
        files.refuse_replacing([file], overwrite)
        files.refuse_unwritable(file)


class Command(TyperCommand):
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
                if not left or (left[0] and not left[0].lower().endswith(".jsonl")):
                    word = "--resume-predictions"
            if flag in known and kind in (".json", ".csv", ".jsonl"):
                if not sign and left and left[0].lower().endswith(kind):
                    file = left.pop(0)
                if file:
                    words += [_file_option(flag, known, file, ctx, [*words, *left]), file]
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
        f"{flag} `{file}`: here {flag} prints, and takes no file",
        hint=f"{line} > {shlex.quote(file)}",
    )


# --- options


def text_option(
    metavar: str | None,
    help: str,
    panel: str,
    *names: str,
    parser: Callable[[str], Any] = text,
) -> Any:
    """An option that takes text, which ``parser`` reads; `help` states its default, if any."""
    return typer.Option(
        *names,
        parser=parser,
        metavar=metavar,
        help=help,
        rich_help_panel=panel,
        show_default=False,
    )


def path_option(metavar: str, help: str, panel: str, *names: str) -> Any:
    """An option that takes the path of a file or folder; as `text_option`."""
    return text_option(metavar, help, panel, *names, parser=path)


Variant = Annotated[
    str | None,
    text_option(None, f"Architecture: {variants.names()}.", MODEL),
]
Model = Annotated[
    str | None,
    text_option(
        "NAME|PATH",
        "A checkpoint: a known name, a hub repository (owner/name), a folder, a .safetensors, "
        "an original .pth or a file of cvt export; by default "
        f"{published.DEFAULT_MODEL}.",
        MODEL,
        "--model",
        "-m",
        parser=place,
    ),
]
Revision = Annotated[
    str | None,
    text_option(
        "NAME", "Branch, tag, refs/pr/N or commit of a hub repository; by default main.", MODEL
    ),
]
Offline = Annotated[
    bool,
    typer.Option("--offline", help="Ask no hub; what is not here fails.", rich_help_panel=MODEL),
]
Architecture = Annotated[
    str | None,
    text_option(
        "NAME|PATH",
        "A checkpoint's or an exported file's architecture in place of --variant.",
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
        help=f"A variant ({variants.names()}), or what follows --model.",
        show_default=False,
    ),
]
NumClasses = Annotated[
    int | None,
    typer.Option(min=1, help="Classes of the head.", rich_help_panel=MODEL, show_default=False),
]
Res = Annotated[
    str | None,
    text_option(
        "PIXELS", "Input size, 384 or 384x512 (height x width); by default the model's own.", MODEL
    ),
]
Activation = Annotated[
    ActivationName | None,
    typer.Option(
        help="Activation of the MLPs, against what the checkpoint says.",
        rich_help_panel=MODEL,
        show_default=False,
    ),
]
DataArgument = Annotated[
    str | None,
    typer.Argument(
        parser=place,
        metavar="DATA",
        help="What follows --data.",
        show_default=False,
    ),
]
Data = Annotated[
    str | None,
    text_option(
        "NAME|PATH",
        "A folder, .zip or .tar in one of the usual layouts, or cifar10, cifar100, "
        "oxford-iiit-pet, flowers102, imagenette.",
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
        "Where known sets are kept, and fetched to; by default `data` in the cache folder.",
        DATA,
    ),
]
Device = Annotated[
    str,
    typer.Option(
        parser=device,
        metavar="auto|cuda|cuda:1|mps|cpu",
        help="Where to compute.",
        rich_help_panel=RUN,
    ),
]
Engine = Annotated[
    EngineChoice,
    typer.Option(
        help="Runtime; auto is torch on a GPU, else the fastest that is installed and whose graph "
        "is prepared already or pays for being prepared.",
        rich_help_panel=RUN,
    ),
]
Precision = Annotated[
    Literal["auto", "fp32", "bf16", "fp16"],
    typer.Option(help="auto is bf16 on CUDA cards that have it, else fp32.", rich_help_panel=RUN),
]
BatchSize = Annotated[
    int,
    typer.Option(
        "--batch-size",
        "-b",
        min=1,
        help="Images that are computed together; moves scores by rounding alone, by some 1e-6 in "
        "fp32, by hundredths in bf16.",
        rich_help_panel=RUN,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Threads that decode images; by default one for each processor.",
        rich_help_panel=RUN,
        show_default=False,
    ),
]
Exif = Annotated[
    bool,
    typer.Option(
        "--exif/--no-exif",
        help="Turn pictures upright as their EXIF orientation says.",
        rich_help_panel=DATA,
    ),
]
Background = Annotated[
    str | None,
    text_option(
        "COLOR",
        "What shows through transparent pixels, such as white or #ff8000; by default they "
        "have the colours that the file holds for them.",
        DATA,
    ),
]
Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", help="Replace output files that exist.", rich_help_panel=OUTPUT),
]
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose", "-v", help="Say which engine was chosen and why.", rich_help_panel=OUTPUT
    ),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON document.", rich_help_panel=OUTPUT)
]
JsonOrFile = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print one JSON document, or write it: --json FILE.json.",
        rich_help_panel=OUTPUT,
    ),
]
JsonFile = Annotated[
    Path | None, typer.Option("--json-file", parser=path, metavar="FILE", hidden=True)
]
"""Where `Command` puts the file that follows ``--json``."""
