"""``cvt predict``: what is in a photograph."""

import sys
from collections import deque
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cvt_cli import loading
from cvt_cli.base import machine, progress, torchrun
from cvt_cli.base.conditions import Conditions
from cvt_cli.base.errors import CvtError, UsageError
from cvt_cli.base.files import refuse_overwriting
from cvt_cli.commands import options, output

if TYPE_CHECKING:
    from cvt_cli.prediction.answers import Answer


def predict(
    ctx: typer.Context,
    images: Annotated[
        list[str],
        typer.Argument(
            parser=options.source,
            metavar="IMAGE...",
            help="Files, folders, patterns, .zip and .tar archives, http(s) and other addresses, "
            "@FILE with a list of these, or - for such a list or one image on stdin.",
            show_default=False,
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
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            metavar="P",
            help="Probability below which the answer is `unknown`.",
            rich_help_panel=options.OUTPUT,
            show_default=False,
        ),
    ] = None,
    exif: options.Exif = True,
    background: options.Background = None,
    fast_decode: Annotated[
        bool,
        typer.Option(
            "--fast-decode",
            help="Decode large JPEGs at a part of their size: several times faster, not exact.",
            rich_help_panel=options.DATA,
        ),
    ] = False,
    batch_size: options.BatchSize = 16,
    workers: options.Workers = None,
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
    csv: Annotated[
        bool,
        typer.Option(
            "--csv", help="Print a row per image, likewise.", rich_help_panel=options.OUTPUT
        ),
    ] = False,
    resume: Annotated[
        Path | None,
        typer.Option(
            parser=options.path,
            metavar="FILE",
            help="Append JSON lines to a file, and pass over images that it answers already.",
            rich_help_panel=options.OUTPUT,
            show_default=False,
        ),
    ] = None,
    parquet: Annotated[
        Path | None,
        typer.Option(
            parser=options.path,
            metavar="FILE",
            help="Write a table.",
            rich_help_panel=options.OUTPUT,
            show_default=False,
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            parser=options.path,
            metavar="FILE",
            help="Write a page of thumbnails with their answers.",
            rich_help_panel=options.OUTPUT,
            show_default=False,
        ),
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option(
            parser=options.path,
            metavar="FILE",
            help="Write the vectors before the head (.npz, .safetensors) in place of classes.",
            rich_help_panel=options.OUTPUT,
            show_default=False,
        ),
    ] = None,
) -> None:
    """Name what is in images, with probabilities.

    An image that cannot be read is reported on stderr, the others are answered, and the exit code
    is 1. In folders, files are found by their suffix, at any depth; hidden ones are passed over.
    A model that is not here is fetched from the hub. Where the default one cannot be had,
    cvt-nano-cifar10, which is part of the package and knows ten classes, answers and says so.

    Example: cvt predict photo.jpg --model cvt-nano-cifar10
    """
    printed = [name for name, asked in (("--json", json_output), ("--jsonl", jsonl), ("--csv", csv))
               if asked]  # fmt: skip
    files = [path for path in (parquet, html, features) if path is not None]
    _check_options(ctx, printed, files, resume, features)
    written = [*files, *([resume] if resume is not None else [])]
    refuse_overwriting(written, [image.removeprefix("@") for image in images])
    from cvt_cli.images import decode, sources
    from cvt_cli.prediction import answers as answering
    from cvt_cli.prediction import classify, gallery, tables
    from cvt_cli.prediction import features as vectors_of
    from cvt_cli.prediction.answered import Answered, not_answered

    _check_shared(images, sources.readable_once(images))
    if features is not None:
        vectors_of.check_suffix(features)
    if parquet is not None:
        tables.require_parquet()
    shows_through = decode.colour(background) if background else None
    rank, several = torchrun.rank(), torchrun.count() > 1
    listing = sources.Listing(images, torchrun.is_mine if several else None)
    total, passed = listing.total, listing.passed
    if listing.is_empty:
        raise CvtError(
            f"no images in {', '.join(f'`{text}`' for text in images)}"
            + (f"; {passed}" if str(passed) else ""),
            hint="folders and archives are searched for .jpg, .png, .webp and other usual "
            "suffixes; a file that is named is read whatever its name",
        )
    wanted = iter(listing)
    results, failed, done = [], 0, 0
    with ExitStack() as stack:
        lines: Answered | None = None
        if resume is not None:
            # Its lock is held before anything is loaded, so that a second process waits for it.
            lines = stack.enter_context(Answered(torchrun.own_path(resume), output.note))
            engine = loading.engine_to_go_on_with(lines.made, engine)
        classifier = loading.load_classifier(
            model,
            res,
            activation,
            device,
            precision,
            output.access(revision, offline, verbose),
            engine=engine,
            images=loading.MANY_IMAGES if total is None else total,
            together=batch_size if total is None else min(total, batch_size),
            or_embedded=True,
        )
        if rank == 0:
            output.note_conditions(classifier)
            if fast_decode:
                output.note(
                    "--fast-decode: large JPEGs are read at a part of their size, not exact"
                )
        top_k = min(top_k, len(classifier.labels))
        wishes = classify.Wishes(
            top_k,
            threshold,
            exif,
            fast_decode,
            features is not None,
            html is not None,
            shows_through,
        )
        how_read: dict[str, Any] = {"exif": exif, "fast_decode": fast_decode}
        if background is not None:
            how_read["background"] = background
        conditions = {}
        if json_output or files or lines is not None:  # else nothing keeps them
            conditions = {**classifier.conditions(), **how_read}
        hashes: deque[list[str]] = deque()  # of the images that are wanted and not answered yet
        if lines is not None:
            kept = {name: conditions[name] for name in (*loading.DECIDE, *how_read)}
            lines.begin(Conditions({**kept, "top_k": top_k, "threshold": threshold}))
            done, failed = lines.done, lines.failed
            if done:
                output.note(f"{done} images are answered in `{lines.path}` already")
            wanted = not_answered(lines, wanted, workers or machine.threads(), hashes)
        outputs: list[gallery.Page | tables.Parquet | vectors_of.Features] = []
        if parquet is not None:
            row = partial(answering.flat_row, top_k=top_k, threshold=threshold is not None)
            table = tables.Parquet(
                torchrun.own_path(parquet), conditions, row, answering.Answer("")
            )
            outputs.append(stack.enter_context(table))
        if html is not None:
            page = gallery.Page(torchrun.own_path(html), conditions, classifier.describe())
            outputs.append(stack.enter_context(page))
        if features is not None:
            vectors = vectors_of.Features(torchrun.own_path(features), conditions)
            outputs.append(stack.enter_context(vectors))
        answers = classify.classify(
            classifier.engine,
            wanted,
            classifier.preprocessing,
            classifier.labels,
            wishes,
            batch_size=batch_size,
            workers=workers,
        )
        to_files = lines is not None or bool(outputs)
        to_terminal = not to_files and not json_output and sys.stdout.isatty()
        shown = progress.silent if to_terminal or rank else output.progress
        advance = stack.enter_context(shown("predicting", total, done=done))
        answered = 0
        for answer in answers:
            answered += 1
            if answer.error is not None:
                failed += 1
                output.error(f"`{answer.path}`: {answer.error}")
            if lines is not None:
                told = hashes.popleft()
                lines.write(answer, told[0] if told else None)
            for writer in outputs:
                writer.write(answer)
            if json_output:
                results.append(answer.to_json())
            elif jsonl:
                output.print_json_line(answer.to_json())
            elif csv:
                columns = answering.flat_row(answer, top_k, threshold is not None)
                if answered == 1:
                    output.print_csv_row(columns)
                output.print_csv_row(columns.values())
            elif answer.error is None and not to_files:
                _print_table(answer)
            advance(1, "")
    if total is None and not answered + done and not several:
        output.error(f"no images in {', '.join(f'`{text}`' for text in images)}")
        failed = 1
    if json_output:
        output.print_json({**conditions, "results": results})
    for path in files:
        output.note(f"written: `{torchrun.own_path(path)}`")
    if str(listing.passed) and rank == 0:
        output.note(str(listing.passed))
    if failed and answered + done:
        output.note(f"{failed} of {done + answered} images could not be read")
    if sum(torchrun.gather(failed)):
        raise typer.Exit(1)


def _check_options(
    ctx: typer.Context,
    printed: list[str],
    files: list[Path],
    resume: Path | None,
    features: Path | None,
) -> None:
    """Raises UsageError for options that exclude each other, or that have no effect here."""
    if len(printed) > 1:
        raise UsageError(f"give one of {' and '.join(printed)}")
    if features is not None:
        options.refuse(
            ctx,
            ["--json", "--jsonl", "--csv", "--resume", "--parquet", "--html"],
            "--features takes the place of classes; give it without other outputs",
        )
        options.refuse(ctx, ["--top-k", "--threshold"], "of classes, whose place --features takes")
    if resume is not None:
        options.refuse(
            ctx, ["--parquet", "--html"], "--resume keeps JSON lines alone; give it without these"
        )
    if torchrun.count() > 1 and printed != ["--jsonl"] and not (files or resume):
        raise UsageError(
            "the outputs of several processes would be mixed; accepted are --jsonl, and "
            "--resume, --parquet, --html or --features with a file, of which each makes its own"
        )


def _check_shared(images: list[str], once: str | None) -> None:
    """Raises UsageError if several processes should share what only one of them can read."""
    if torchrun.count() > 1 and once is not None:
        raise UsageError(
            f"`{once}` can be read once, by one of the {torchrun.count()} processes that should "
            "share its images",
            hint="write the list to a file and name that: @list.txt",
        )


def _print_table(answer: "Answer") -> None:
    with_wnid = any(p.wnid for p in answer.predictions)
    output.print_table(
        answer.path if answer.answer is None else f"{answer.path}: {answer.answer}",
        ("class", "probability", "index", *(("WNID",) if with_wnid else ())),
        [
            (p.label, f"{p.score:.4f}", str(p.index), *((p.wnid or "",) if with_wnid else ()))
            for p in answer.predictions
        ],
    )
