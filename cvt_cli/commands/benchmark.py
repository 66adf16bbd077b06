"""``cvt benchmark``: how fast every engine is here."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from cvt_cli import loader, options, output
from cvt_cli.cache import human_bytes
from cvt_cli.errors import UsageError


def benchmark(
    variant: options.Variant = None,
    model: options.Architecture = None,
    res: options.Res = None,
    engine: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,…",
            help="Engines; by default every one that is installed.",
            rich_help_panel=options.RUN,
            show_default=False,
        ),
    ] = None,
    precision: Annotated[
        str,
        typer.Option(
            metavar="NAME,…",
            help="fp32, bf16, fp16; an engine that lacks one is left out.",
            rich_help_panel=options.RUN,
        ),
    ] = "fp32",
    batch_size: Annotated[
        str, typer.Option(metavar="N,…", help="Images per call.", rich_help_panel=options.RUN)
    ] = "1,8",
    against: Annotated[
        Literal["transformers"] | None,
        typer.Option(
            help="Baseline of the ratios: its eager network in fp32.",
            rich_help_panel=options.RUN,
            show_default=False,
        ),
    ] = None,
    rounds: Annotated[
        int, typer.Option(min=1, help="Turns of every side.", rich_help_panel=options.RUN)
    ] = 5,
    device: options.Device = "auto",
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Draw the rates too: .png, .svg or .pdf.",
            rich_help_panel=options.OUTPUT,
            show_default=False,
        ),
    ] = None,
    json_output: options.Json = False,
) -> None:
    """Measure images per second of every engine, side by side.

    Every side has a process of its own, and they take turns; medians and the range of the rounds
    are shown. The weights are random, since speed does not depend on them; --model names an
    architecture. By default it is CvT-13 at 224.

    Example: cvt benchmark --against transformers --precision fp32,bf16
    """
    ((costs, config),) = loader.architectures_of(
        variant or (None if model else "13"), model, res, None, output.access()
    )
    import tempfile

    from cvt_cli import benchmark as measuring
    from cvt_cli import devices, plots, runtimes

    if plot is not None:
        plots.check(plot)

    place = devices.choose_device(device)
    names = ("torch", "onnxruntime", "openvino")
    try:
        batch_sizes = [int(part) for part in measuring.names_of(batch_size)]
    except ValueError:
        batch_sizes = []
    if not batch_sizes or min(batch_sizes) < 1:
        raise UsageError(f"`{batch_size}` are no batch sizes; accepted are positive integers: 1,8")
    sides = measuring.sides(
        measuring.names_of(engine) if engine else [n for n in names if runtimes.installed(n)],
        measuring.names_of(precision),
        batch_sizes,
        place.type,
        against is not None,
    )
    hardware = devices.hardware(place)
    output.note(
        f"{costs.variant} at {costs.height}x{costs.width}, random weights; {place}, {hardware}; "
        f"{len(sides)} sides, {rounds} rounds"
    )
    with tempfile.TemporaryDirectory() as folder:
        rows = measuring.measure(
            measuring.Network(config, costs.height, costs.width, costs.macs, str(place)),
            sides,
            rounds=rounds,
            folder=Path(folder),
            progress=output.progress,
        )
    document = {
        "model": costs.variant,
        "height": costs.height,
        "width": costs.width,
        "macs": costs.macs,
        "weights": "random",
        "device": str(place),
        "hardware": hardware,
        "rounds": rounds,
        "versions": measuring.versions(),
        "rows": [row.to_json() for row in rows],
    }
    if plot is not None:
        plots.draw_benchmark(document, plot)
    if json_output:
        output.print_json(document)
        return
    output.print_table(
        f"{costs.variant} at {costs.height}x{costs.width}, random weights, {place}, {hardware}, "
        f"median of {rounds} rounds",
        (
            *("engine", "", "batch", "images/s", "range", "ratio", "of peak", "start"),
            *("first call", "peak memory"),
        ),
        [
            (
                row.side.engine,
                row.side.precision,
                str(row.side.batch_size),
                f"{row.images_per_sec:.1f}",
                f"{row.slowest:.1f} to {row.fastest:.1f}",
                "" if row.ratio is None else f"{row.ratio:.2f}",
                f"{100 * row.share_of_peak:.0f} %",
                f"{row.startup_sec:.2f} s",
                f"{row.first_call_sec:.2f} s",
                human_bytes(row.peak_memory_bytes),
            )
            for row in rows
        ],
        text_columns=2,
    )
    shown = ", ".join(f"{name} {version}" for name, version in measuring.versions().items())
    print(
        "ratio: to transformers, eager, fp32, at the same batch size; of peak: of the rate of a\n"
        "matrix product in the same precision, measured in turn on torch; start: from a new\n"
        f"process to an engine that can be called\n{shown}"
    )
