"""``cvt benchmark``: how fast every engine is here."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from cvt_cli.base import machine, torchrun
from cvt_cli.base.errors import UsageError
from cvt_cli.base.text import human_bytes
from cvt_cli.checkpoints import architecture, export_metadata
from cvt_cli.commands import options, output
from cvt_cli.spec.config import parse_size

VERSIONS = ("cvt-cli", "torch", "onnxruntime", "openvino", "transformers")
"""Of what can be measured."""


def benchmark(
    ctx: typer.Context,
    variant: options.Variant = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            parser=options.place,
            metavar="NAME|PATH",
            help="A checkpoint's architecture in place of --variant, or a file of cvt export; "
            "given several times, the first is what the others' ratios are to.",
            rich_help_panel=options.MODEL,
            show_default=False,
        ),
    ] = None,
    res: options.Res = None,
    engine: Annotated[
        str | None,
        typer.Option(
            parser=options.text,
            metavar="NAME,…",
            help="Engines; by default every one that is installed, of a file its own.",
            rich_help_panel=options.RUN,
            show_default=False,
        ),
    ] = None,
    precision: Annotated[
        str,
        typer.Option(
            parser=options.text,
            metavar="NAME,…",
            help="fp32, bf16, fp16; an engine that lacks one is left out, and a file has its own.",
            rich_help_panel=options.RUN,
        ),
    ] = "fp32",
    batch_size: Annotated[
        str,
        typer.Option(
            parser=options.text, metavar="N,…", help="Images per call.", rich_help_panel=options.RUN
        ),
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
            parser=options.path,
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
    architecture, or a file that `cvt export` wrote, which is run as it is. By default it is CvT-13
    at 224.

    Example: cvt benchmark --against transformers --precision fp32,bf16
    """
    torchrun.refuse("a benchmark")
    if variant and model:
        raise UsageError("give --variant or --model, not both")
    from cvt_cli.export import benchmark as measuring

    size = parse_size(res) if res else None
    networks = []
    names: list[str | None] = [*model] if model else [None]
    for name in names:
        path = Path(name or "")
        if export_metadata.format_of(path):
            networks.append(measuring.Network.of_file(path, size))
            continue
        ((costs, config),) = architecture.architectures_of(
            variant or (None if name else "13"), name, res, None, output.access()
        )
        networks.append(measuring.Network.of(costs.variant, config, costs.height, costs.width))
    if against is None and all(network.file for network in networks):
        options.refuse(ctx, ["--precision"], "a file has its own")
        if device not in ("auto", "cpu"):
            raise UsageError(f"`{networks[0].name}` runs on the CPU here, not on `{device}`")
    import tempfile

    from cvt_cli.evaluation import plots
    from cvt_cli.model import devices

    if plot is not None:
        plots.check(plot)

    place = devices.choose_device(device)
    try:
        batch_sizes = [int(part) for part in measuring.names_of(batch_size)]
    except ValueError:
        batch_sizes = []
    if not batch_sizes or min(batch_sizes) < 1:
        raise UsageError(f"`{batch_size}` are no batch sizes; accepted are positive integers: 1,8")
    networks = [n if n.file else replace(n, device=str(place)) for n in networks]
    sides = measuring.sides(
        networks,
        measuring.names_of(engine) if engine else None,
        measuring.names_of(precision),
        batch_sizes,
        against is not None,
    )
    hardware = devices.hardware(place)
    one = networks[0] if len({(n.height, n.width) for n in networks}) == 1 else None
    kinds = {"exported" if network.file else "random" for network in networks}
    weights = " and ".join(sorted(kinds))
    title = f"{', '.join(network.name for network in networks)}"
    if one is not None:
        title += f" at {one.height}x{one.width}"
    title += f", {weights} weights"
    output.note(f"{title}; {place}, {hardware}; {len(sides)} sides, {rounds} rounds")
    with tempfile.TemporaryDirectory() as folder:
        rows = measuring.measure(
            sides,
            rounds=rounds,
            ratios=against is not None or len(networks) > 1,
            folder=Path(folder),
            progress=output.progress,
        )
    single = networks[0] if len(networks) == 1 else None
    versions = machine.versions(VERSIONS)
    document = {
        "model": single and single.name,
        "height": one and one.height,
        "width": one and one.width,
        "macs": single and single.macs,
        "weights": weights,
        "device": str(place),
        "hardware": hardware,
        "rounds": rounds,
        "versions": versions,
        "rows": [row.to_json() for row in rows],
    }
    if plot is not None:
        plots.draw_benchmark(document, plot)
    if json_output:
        output.print_json(document)
        return
    output.print_table(
        f"{title}, {place}, {hardware}, median of {rounds} rounds",
        (
            *(("model",) if single is None else ()),
            *("engine", "", "batch", "images/s", "range", "ratio", "of peak", "start"),
            *("first call", "peak memory"),
        ),
        [
            (
                *((row.side.network.name,) if single is None else ()),
                row.side.engine,
                row.side.precision,
                str(row.side.batch_size),
                f"{row.images_per_sec:.1f}",
                f"{row.slowest:.1f} to {row.fastest:.1f}",
                measuring.ratio_text(row),
                "" if row.share_of_peak is None else f"{100 * row.share_of_peak:.0f} %",
                f"{row.startup_sec:.2f} s",
                f"{row.first_call_sec:.2f} s",
                human_bytes(row.peak_memory_bytes),
            )
            for row in rows
        ],
        text_columns=2 if single else 3,
    )
    shown = ", ".join(f"{name} {version}" for name, version in versions.items())
    baseline = "transformers, eager, fp32" if against else "the first row"
    output.emit(
        f"ratio: to {baseline}, at the same batch size, the median of\n"
        "the rounds' ratios, or their range where they do not agree; of peak: of the rate of a\n"
        "matrix product in the same precision, measured in turn on torch; start: from a new\n"
        f"process to an engine that can be called\n{shown}"
    )
