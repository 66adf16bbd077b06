"""Options that several commands share, declared once so that they mean the same everywhere."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from cvt_cli import loader
from cvt_cli.config import Activation as ActivationName

MODEL = "Model"
DATA = "Data"
RUN = "How it runs"
OUTPUT = "Output"

Variant = Annotated[
    str | None,
    typer.Option(
        help="Architecture: 13, 21, w24 or nano.", rich_help_panel=MODEL, show_default=False
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|PATH",
        help="A checkpoint: a known name, a hub repository (owner/name), a folder, a .safetensors, "
        "an original .pth or a file of cvt export; by default "
        f"{loader.DEFAULT_MODEL}.",
        rich_help_panel=MODEL,
        show_default=False,
    ),
]
Revision = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Branch, tag, refs/pr/N or commit of a hub repository; by default main.",
        rich_help_panel=MODEL,
        show_default=False,
    ),
]
Offline = Annotated[
    bool,
    typer.Option("--offline", help="Ask no hub; what is not here fails.", rich_help_panel=MODEL),
]
Architecture = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME|PATH",
        help="A checkpoint's or an exported file's architecture in place of --variant.",
        rich_help_panel=MODEL,
        show_default=False,
    ),
]
NumClasses = Annotated[
    int | None,
    typer.Option(min=1, help="Classes of the head.", rich_help_panel=MODEL, show_default=False),
]
Res = Annotated[
    str | None,
    typer.Option(
        metavar="PIXELS",
        help="Input size, 384 or 384x512 (height x width); by default the model's own.",
        rich_help_panel=MODEL,
        show_default=False,
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
Data = Annotated[
    str,
    typer.Option(
        "--data",
        "--dataset",
        metavar="NAME|PATH",
        help="A folder, .zip or .tar in one of the usual layouts, or cifar10, cifar100, "
        "oxford-iiit-pet, flowers102, imagenette.",
        rich_help_panel=DATA,
        show_default=False,
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Where known sets are kept, and fetched to; by default `data` in the cache folder.",
        rich_help_panel=DATA,
        show_default=False,
    ),
]
Device = Annotated[
    str,
    typer.Option(metavar="auto|cuda|cuda:1|mps|cpu", help="Where to compute.", rich_help_panel=RUN),
]
Engine = Annotated[
    loader.EngineName,
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
        min=1, help="Images that are computed together; changes no result.", rich_help_panel=RUN
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
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose", "-v", help="Say which engine was chosen and why.", rich_help_panel=OUTPUT
    ),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON document.", rich_help_panel=OUTPUT)
]
