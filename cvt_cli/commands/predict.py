"""``cvt predict``: what is in a photograph."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cvt_cli import loader, options, output
from cvt_cli.errors import CvtError, UsageError

if TYPE_CHECKING:
    from cvt_cli.inference import Answer


def predict(
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGE...", help="Image files, and folders to search.", show_default=False
        ),
    ],
    model: options.Model = None,
    revision: options.Revision = None,
    offline: options.Offline = False,
    res: options.Res = None,
    activation: options.Activation = None,
    top_k: Annotated[
        int,
        typer.Option("--top-k", "-k", min=1, help="Classes.", rich_help_panel=options.OUTPUT),
    ] = 5,
    exif: options.Exif = True,
    batch_size: options.BatchSize = 16,
    device: options.Device = "auto",
    engine: options.Engine = "auto",
    precision: options.Precision = "auto",
    verbose: options.Verbose = False,
    json_output: options.Json = False,
    jsonl: Annotated[
        bool,
        typer.Option(
            "--jsonl",
            help="Print one JSON object per image and line, as soon as it is answered.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = False,
) -> None:
    """Name what is in images, with probabilities.

    An image that cannot be read is reported on stderr, the others are answered, and the exit code
    is 1. In folders, files are found by their suffix, at any depth; hidden ones are passed over.
    A model that is not here is fetched from the hub. Where the default one cannot be had,
    cvt-nano-cifar10, which is part of the package and knows ten classes, answers and says so.

    Example: cvt predict photo.jpg --model cvt-nano-cifar10
    """
    if json_output and jsonl:
        raise UsageError("give --json or --jsonl, not both")
    from cvt_cli import inference
    from cvt_cli.images import find_images

    paths = list(find_images(images))
    if not paths:
        raise CvtError(
            f"no images in {', '.join(f'`{path}`' for path in images)}",
            hint="folders are searched for .jpg, .png, .webp and other usual suffixes; "
            "a file that is named is read whatever its name",
        )
    classifier = loader.load_classifier(
        model,
        res,
        activation,
        device,
        precision,
        output.access(revision, offline, verbose),
        engine=engine,
        images=len(paths),
        or_embedded=True,
    )
    output.note_conditions(classifier)
    answers = inference.classify(
        classifier.engine,
        paths,
        classifier.preprocessing,
        classifier.labels,
        top_k=top_k,
        batch_size=batch_size,
        exif=exif,
    )
    results, failed = [], 0
    for answer in answers:
        if answer.error is not None:
            failed += 1
            output.error(f"`{answer.path}`: {answer.error}")
        if json_output:
            results.append(answer.to_json())
        elif jsonl:
            output.print_json_line(answer.to_json())
        elif answer.error is None:
            _print_table(answer)
    if json_output:
        output.print_json({**output.conditions(classifier), "results": results})
    if failed:
        output.note(f"{failed} of {len(paths)} images could not be read")
        raise typer.Exit(1)


def _print_table(answer: "Answer") -> None:
    with_wnid = any(p.wnid for p in answer.predictions)
    output.print_table(
        answer.path,
        ("class", "probability", "index", *(("WNID",) if with_wnid else ())),
        [
            (p.label, f"{p.score:.4f}", str(p.index), *((p.wnid or "",) if with_wnid else ()))
            for p in answer.predictions
        ],
    )
