"""Pictures of results, drawn with matplotlib (extra ``plots``)."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cvt_cli import cache
from cvt_cli.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")

_COLOURS = {  # distinguishable without colour vision too (Okabe and Ito)
    "transformers": "#999999",
    "torch": "#d55e00",
    "onnxruntime": "#0072b2",
    "openvino": "#009e73",
}


def check(path: Path) -> None:
    """Raises UsageError if no picture can be drawn there: before the work that it shows."""
    if path.suffix.lower() not in SUFFIXES:
        accepted = ", ".join(f"`{suffix}`" for suffix in SUFFIXES)
        raise UsageError(f"`{path}` names no kind of picture; accepted are {accepted}")
    if find_spec("matplotlib") is None:
        raise UsageError("matplotlib is not installed", hint="pip install 'cvt-cli[plots]'")


def draw_benchmark(document: dict[str, Any], path: Path) -> None:
    """Bars of images per second, a panel for each batch size.

    Args:
        document: what ``cvt benchmark --json`` prints.
        path: of the picture; its suffix says which kind.

    Raises:
        UsageError: as `check`.
        CvtError: the file cannot be written.
    """
    check(path)
    from matplotlib.figure import Figure

    rows = document["rows"]
    batches = sorted({row["batch_size"] for row in rows})
    count = len(rows) / len(batches)
    figure = Figure(figsize=(4.6 * len(batches), 1.3 + 0.42 * count), layout="constrained")
    panels = figure.subplots(1, len(batches), squeeze=False, sharey=True)[0]
    fastest = max(row["images_per_sec_range"][1] for row in rows)
    for panel, batch in zip(panels, batches, strict=True):
        own = [row for row in rows if row["batch_size"] == batch]
        rates = [row["images_per_sec"] for row in own]
        bars = panel.barh(
            [f"{row['engine']} {row['precision']}" for row in own],
            rates,
            color=[_COLOURS[row["engine"]] for row in own],
            alpha=0.85,
            xerr=[
                [r - row["images_per_sec_range"][0] for r, row in zip(rates, own, strict=True)],
                [row["images_per_sec_range"][1] - r for r, row in zip(rates, own, strict=True)],
            ],
            error_kw={"ecolor": "#444444", "elinewidth": 0.8, "capsize": 2},
        )
        for bar, row in zip(bars, own, strict=True):
            ratio = "" if row["ratio"] is None else f"  ×{row['ratio']:.2f}"
            panel.annotate(
                f"{row['images_per_sec']:.1f}{ratio}",
                (row["images_per_sec_range"][1], bar.get_y() + bar.get_height() / 2),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
            )
        panel.set_title(f"batch {batch}", fontsize=10, loc="left")
        panel.set_xlabel("images/s")
        panel.set_xlim(0, 1.3 * fastest)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].invert_yaxis()
    against = "; × to transformers" if any(row["ratio"] is not None for row in rows) else ""
    figure.suptitle(
        f"{document['model']} at {document['height']}x{document['width']}, {document['device']}, "
        f"{document['hardware']}: median and range of {document['rounds']} rounds{against}",
        fontsize=10,
    )
    _save(figure, path)


def _save(figure: "Figure", path: Path) -> None:
    with cache.replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:].lower(), dpi=160)
