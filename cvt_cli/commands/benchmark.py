"""``cvt benchmark``: how fast every engine is here."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import typer

from cvt_cli.base import torchrun
from cvt_cli.base.errors import UsageError
from cvt_cli.base.text import counted, human_bytes
from cvt_cli.commands import completion, options, output
from cvt_cli.spec import variants

if TYPE_CHECKING:
    from cvt_cli.export.benchmark import Benchmark
    from cvt_cli.export.benchmark_sides import Network
    from cvt_cli.export.jobs import Measured


COMPARE = "What to compare"

Models = Annotated[
    list[str] | None,
    options.text_option(
        "MODEL",
        "The same as the argument MODEL; repeat it to compare several models.",
        options.MODEL,
        "--model",
        "-m",
        parser=options.place,
    ),
]
Written = Annotated[
    list[str] | None,
    typer.Argument(
        parser=options.place,
        metavar="[MODEL...]",
        autocompletion=completion.networks,
        help=f"A variant ({variants.names()}), a model (its architecture is timed), or a file "
        "made by cvt export. With several, ratios are to the first. [default: 13]",
    ),
]
Engines = Annotated[
    str | None,
    options.text_option(
        "NAMES",
        "Engines to compare, with commas: torch, onnxruntime, openvino. [default: all installed; "
        "for an exported file, its own]",
        COMPARE,
        autocompletion=completion.engines,
    ),
]
Precisions = Annotated[
    str,
    options.text_option(
        "NAMES",
        "Precisions to compare, with commas: fp32, bf16, fp16, int8 (not with --job). Unsupported "
        "combinations are skipped; ignored for exported files.",
        COMPARE,
    ),
]
BatchSizes = Annotated[
    str | None,
    options.text_option(
        "SIZES", "Batch sizes to compare, with commas. [default: 1,8; with --job: 32]", COMPARE
    ),
]
Against = Annotated[
    str | None,
    options.text_option(
        "NAMES",
        "Also time others, with commas: transformers (eager, fp32), transformers-openvino and "
        "transformers-onnx (files that it exports), and with --job timm-loop (its network in a "
        "loop as timm writes it). Ratios are to the first.",
        COMPARE,
    ),
]
JobName = Annotated[
    Literal["predict", "evaluate", "finetune"] | None,
    options.value_option(
        "JOB",
        "Time whole jobs, from files on disk to answers on disk: predict, evaluate or finetune "
        "(one epoch). It needs --data.",
        COMPARE,
    ),
]
JobData = Annotated[
    str | None,
    options.text_option("FOLDER", "With --job: folder of images, in class folders.", COMPARE),
]
Rounds = Annotated[int, options.value_option("N", "Number of rounds.", COMPARE, min=1)]
Plot = Annotated[
    Path | None,
    options.path_option("FILE", "Also draw a bar chart: .png, .svg or .pdf.", options.OUTPUT),
]


def benchmark(
    ctx: typer.Context,
    written: Written = None,
    variant: options.Variant = None,
    res: options.Res = None,
    model: Models = None,
    engine: Engines = None,
    precision: Precisions = "fp32",
    batch_size: BatchSizes = None,
    against: Against = None,
    job: JobName = None,
    data: JobData = None,
    rounds: Rounds = 5,
    device: options.Device = "auto",
    energy: options.Energy = False,
    country: options.Country = None,
    plot: Plot = None,
    card: options.CardFolder = None,
    overwrite: options.Overwrite = False,
    json_output: options.JsonOrFile = False,
    json_file: options.JsonFile = None,
) -> None:
    """Measure images per second of every engine.

    Each configuration runs in its own process, in alternating rounds. Prints medians and the range
    of the rounds. Speed does not depend on the weights, so random ones are used, except for
    exported files. By default, CvT-13 at 224 pixels is measured.

    Examples:
      cvt benchmark
      cvt benchmark --against transformers --precision fp32,bf16
      cvt benchmark model.onnx model.xml --batch-size 1,8,32
      cvt benchmark --job predict --data photos/ --against transformers,timm-loop

    See also: cvt export (write such files), cvt predict --engine (use an engine)
    """
    torchrun.refuse("a benchmark")
    if job is not None:
        options.refuse(ctx, ["--plot"], "--job draws no picture")
        options.refuse(ctx, ["--card", "--energy"], "it has no effect with --job")
    elif data is not None:
        raise UsageError("--data needs --job", hint="--job predict, evaluate or finetune")
    if not energy:
        options.refuse(ctx, ["--country"], "it needs --energy")
    named = (
        _names("--engine", engine), _names("--precision", precision), _names("--against", against)
    )  # fmt: skip
    if job == "finetune" and (other := [name for name in named[0] if name != "torch"]):
        raise UsageError(f"--engine: `{other[0]}` does not train; `torch` does")
    from cvt_cli.cards import gather
    from cvt_cli.evaluation import figures
    from cvt_cli.export import benchmark as measuring
    from cvt_cli.export import benchmark_sides

    options.once(" ".join(written or ()), " --model ".join(model or ()), "--model")
    if variant and model:
        raise UsageError("give --variant or --model, not both")
    names: list[str | None] = [*(written or model or [])]
    networks = [
        benchmark_sides.network_of(*options.architecture(name, variant, None), res, output.access())
        for name in names or [None]
    ]
    if against is None and all(network.file for network in networks):
        options.refuse(ctx, ["--precision"], "an exported file has its own precision")
    if plot is not None:
        figures.check(plot)
    elif json_file is None and card is None:
        options.refuse(ctx, ["--overwrite"], "there is no output file to replace")
    if card is not None:
        if len(networks) > 1 or against is not None:
            raise UsageError(
                "--card takes the rates of one model",
                hint="name one model, and leave out --against",
            )
        gather.check(card, overwrite=overwrite)
        gather.check_is_of(card, "benchmark", networks[0].to_json())
    for file in (plot, json_file):
        options.refuse_replacing(file, overwrite)
    if job is not None:
        how = _Job(job, data, *named)
        _measure_job(networks, how, batch_size, rounds, device, json_output, json_file)
        return
    found = measuring.benchmark(
        networks,
        engines=named[0] if engine else None,
        precisions=named[1],
        batch_sizes=_batch_sizes(batch_size or "1,8"),
        against=named[2],
        rounds=rounds,
        device=device,
        energy=energy,
        country=country,
        say=output.note,
        progress=output.progress,
    )
    document = found.to_json()
    try:
        if plot is not None:
            figures.draw_benchmark(document, plot)
        if card is not None:
            gather.add(card, [("the result", document)], output.note, overwrite=overwrite)
    finally:  # what was measured is printed, whatever cannot be written
        output.print_result(document, lambda: _print(found, against), json_output, json_file)


class _Job(NamedTuple):
    name: Literal["predict", "evaluate", "finetune"]
    data: str | None
    engines: list[str]
    precisions: list[str]
    against: list[str]


def _measure_job(
    networks: "list[Network]",
    asked: _Job,
    batch_size: str | None,
    rounds: int,
    device: str,
    json_output: bool,
    json_file: Path | None,
) -> None:
    """Measure whole jobs, and print or write what comes of it."""
    from cvt_cli.base import files
    from cvt_cli.export import benchmark_sides, job_processes, jobs

    if asked.data is None:
        raise UsageError("--job needs --data FOLDER, with images")
    sizes = _batch_sizes(batch_size or "32")
    if len(networks) > 1 or len(sizes) > 1 or networks[0].file is not None:
        raise UsageError("--job takes one model, which is no exported file, and one batch size")
    place = Path(tempfile.gettempdir(), "cvt-benchmark")
    with job_processes.ended_together(), files.workplace(place) as folder:
        found = jobs.measure(
            asked.name,
            asked.data,
            networks[0],
            engines=benchmark_sides.engines_of(asked.engines),
            precisions=[benchmark_sides.precision_of(name) for name in asked.precisions],
            batch_size=sizes[0],
            against=asked.against,
            rounds=rounds,
            device=device,
            folder=folder,
            say=output.note,
            progress=output.progress,
        )
    output.print_result(found.to_json(), lambda: _print_job(found), json_output, json_file)


def _print_job(found: "Measured") -> None:
    from cvt_cli.export.benchmark import ratio_text

    output.print_table(
        f"{found.job}: {counted(found.images, 'image')}, {found.model}, batch {found.batch_size}, "
        f"{found.device}, {found.hardware}, median of {counted(found.rounds, 'round')}",
        ("", "", "images/s", "range", "ratio", "of bound", "peak memory"),
        [
            (
                row.name,
                row.precision,
                f"{row.images_per_sec:.1f}",
                f"{row.slowest:.1f} to {row.fastest:.1f}",
                ratio_text(row),
                "" if row.share_of_bound is None else f"{100 * row.share_of_bound:.0f} %",
                human_bytes(row.peak_memory_bytes),
            )
            for row in found.rows
        ],
        text_columns=2,
    )
    if found.decode_images_per_sec is not None:
        output.emit(
            f"decoding alone: {found.decode_images_per_sec:.1f} images/s",
            "of bound: share of the rate that decoding alone and the engine alone, one after the "
            "other, would have",
        )
    shown = ", ".join(f"{name} {version}" for name, version in found.versions.items())
    output.emit(
        "images/s: of the whole process, from its start to its end",
        "ratio: to the first, round by round",
        shown,
    )


def _names(option: str, text: str | None) -> list[str]:
    """The names after an option, none where it is not given; raises UsageError if it has none."""
    found = _parts(text or "")
    if text is not None and not found:
        raise UsageError(f"{option}: there is no name in `{text}`")
    return found


def _parts(text: str) -> list[str]:
    """The parts of a list with commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def _batch_sizes(text: str) -> list[int]:
    try:
        found = [int(part) for part in _parts(text)]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise UsageError(
            f"`{text}` is not a list of batch sizes; accepted are positive integers with "
            "commas, such as 1,8"
        )
    return found


def _print(found: "Benchmark", against: str | None) -> None:
    from cvt_cli.export.benchmark import ratio_text, title_of

    first = found.rows[0].side
    baseline = f"{first.network.name}, {first.engine} {first.precision}"
    if against:
        eager = "transformers, eager, fp32"
        baseline = eager if first.engine == "transformers" else f"{first.engine}, fp32"
    several = len(found.networks) > 1
    output.print_table(
        f"{title_of(found.networks)}, {found.device}, {found.hardware}, "
        f"median of {counted(found.rounds, 'round')}",
        (
            *(("model",) if several else ()),
            *("engine", "", "batch", "images/s", "range", "ratio", "of peak", "start"),
            *("first call", "peak memory"),
            *(("energy",) if found.energy else ()),
        ),
        [
            (
                *((row.side.network.name,) if several else ()),
                row.side.engine,
                row.side.precision,
                str(row.side.batch_size),
                f"{row.images_per_sec:.1f}",
                f"{row.slowest:.1f} to {row.fastest:.1f}",
                ratio_text(row),
                "" if row.share_of_peak is None else f"{100 * row.share_of_peak:.0f} %",
                f"{row.startup_sec:.2f} s",
                f"{row.first_call_sec:.2f} s",
                human_bytes(row.peak_memory_bytes),
                *((f"{row.joules_per_image:.3g} J",) if row.joules_per_image else ()),
            )
            for row in found.rows
        ],
        text_columns=3 if several else 2,
    )
    shown = ", ".join(f"{name} {version}" for name, version in found.versions.items())
    if any(row.ratios for row in found.rows):
        output.emit(
            f"ratio: images/s divided by those of {baseline}, at the same batch size and in the",
            "same round; the median of the rounds, or the range where they do not agree",
        )
    if found.energy:
        output.emit(f"energy: of one image; {found.energy['method']}")
    output.emit(
        "of peak: share of the rate of a plain matrix product in the same precision (torch)",
        "start: from a new process until the engine can be called",
        shown,
    )
