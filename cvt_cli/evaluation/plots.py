"""Pictures of results in files, drawn with matplotlib (extra ``plots``)."""

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from cvt_cli.base import files
from cvt_cli.base.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")

Theme = Literal["light", "dark"]

# Blue and orange differ in lightness too, and so do without colour vision (Okabe and Ito).
_THEMES = {
    "light": {
        "back": "#ffffff",
        "text": "#1b1b1b",
        "soft": "#6b6b6b",
        "bar": "#0072b2",
        "mark": "#d55e00",
        "ramp": ("#ffffff", "#a6cbe8", "#3d8ec4", "#0b5a94", "#062f55"),
    },
    "dark": {
        "back": "#222222",
        "text": "#eeeeee",
        "soft": "#9a9a9a",
        "bar": "#3d97d3",
        "mark": "#f5a742",
        "ramp": ("#222222", "#1f4566", "#2f7ab0", "#6fb5e6", "#e3f2ff"),
    },
}  # fmt: skip

_COLOURS = {  # distinguishable without colour vision too (Okabe and Ito)
    "transformers": "#999999",
    "torch": "#d55e00",
    "onnxruntime": "#0072b2",
    "openvino": "#009e73",
}


def check(path: Path) -> None:
    """Make sure that a picture can be drawn there, before the work that it shows.

    Raises:
        UsageError: matplotlib is missing, or draws no such files.
        CvtError: the folder cannot be written to.
    """
    if path.suffix.lower() not in SUFFIXES:
        accepted = ", ".join(f"`{suffix}`" for suffix in SUFFIXES)
        raise UsageError(f"`{path}` names no kind of picture; accepted are {accepted}")
    require()
    files.refuse_unwritable(path)


def available() -> bool:
    """Whether anything can be drawn at all."""
    return find_spec("matplotlib") is not None


def require() -> None:
    """Raises UsageError if nothing can be drawn at all."""
    if not available():
        raise UsageError("matplotlib is not installed", hint="pip install 'cvt-cli[plots]'")


@contextmanager
def themed(theme: Theme) -> Iterator[dict[str, Any]]:
    """Give a theme's colours, and draw in them what has none of its own."""
    import matplotlib

    colours: dict[str, Any] = _THEMES[theme]
    text, soft, back = colours["text"], colours["soft"], colours["back"]
    style: Any = {
        "figure.facecolor": back,
        "axes.facecolor": back,
        "savefig.facecolor": back,
        "text.color": text,
        "axes.labelcolor": text,
        "axes.edgecolor": soft,
        "xtick.color": soft,
        "ytick.color": soft,
        "xtick.labelcolor": text,
        "ytick.labelcolor": text,
        "font.size": 9,
        "text.parse_math": False,  # a class may be called $a$
    }
    with matplotlib.rc_context(style), warnings.catch_warnings():
        # A character that the font lacks is a box here; the page's tables have it.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield colours


def png(figure: "Figure") -> bytes:
    """A figure as a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160)
    return buffer.getvalue()


def _save(figure: "Figure", path: Path) -> None:
    with files.replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:].lower(), dpi=160)


def draw_benchmark(document: dict[str, Any], path: Path) -> None:
    """Bars of images per second, a panel for each batch size.

    Args:
        document: what ``cvt benchmark --json`` prints.
        path: of the picture; its suffix says which kind.

    Raises:
        UsageError, CvtError: as `check`.
    """
    check(path)
    from matplotlib.figure import Figure

    rows = document["rows"]
    batches = sorted({row["batch_size"] for row in rows})
    count = len(rows) / len(batches)
    figure = Figure(figsize=(4.6 * len(batches), 1.3 + 0.42 * count), layout="constrained")
    panels = figure.subplots(1, len(batches), squeeze=False, sharey=True)[0]
    fastest = max(row["images_per_sec_range"][1] for row in rows)
    several = len({row["model"] for row in rows}) > 1

    def name(row: dict[str, Any]) -> str:
        model = f"{row['model']}, " if several else ""
        return f"{model}{row['engine']} {row['precision']}"

    for panel, batch in zip(panels, batches, strict=True):
        own = [row for row in rows if row["batch_size"] == batch]
        rates = [row["images_per_sec"] for row in own]
        bars = panel.barh(
            [name(row) for row in own],
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


def draw_curves(rows: Sequence[Mapping[str, float | None]], path: Path) -> None:
    """Losses and validation top-1 of a training run by epoch, its best epoch marked.

    Args:
        rows: one per epoch, at least one, with ``epoch``, ``training_loss`` and ``val_loss`` in
            nats and ``val_top1`` as a fraction; None and NaN are gaps.
        path: of the picture; its suffix says which kind.

    Raises:
        UsageError, CvtError: as `check`.
    """
    check(path)
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    def column(key: str) -> NDArray[np.float64]:
        return np.array([np.nan if row[key] is None else row[key] for row in rows], np.float64)

    epochs, top1 = column("epoch"), 100 * column("val_top1")
    with themed("light") as colours:
        figure = Figure(figsize=(9.2, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        # A dot for every epoch while they can be told apart, and so also where there is but one.
        style: dict[str, Any] = {
            "marker": "o" if len(rows) <= 60 else "",
            "markersize": 3,
            "lw": 1.4,
        }
        left.plot(epochs, column("training_loss"), color=colours["bar"], label="training", **style)
        left.plot(epochs, column("val_loss"), color=colours["mark"], label="validation", **style)
        left.set_ylabel("loss (nats)")
        left.legend(frameon=False)
        right.plot(epochs, top1, color=colours["mark"], **style)
        right.set_ylabel("validation top-1 (%)")
        if np.isfinite(top1).any():
            best = int(np.nanargmax(top1))  # the first of equals, as the run keeps it
            for panel in (left, right):
                panel.axvline(epochs[best], color=colours["soft"], lw=0.8, ls="--", zorder=0)
            right.plot(
                epochs[best], top1[best], marker="D", markersize=6, color=colours["mark"],
                markeredgecolor=colours["back"],
            )  # fmt: skip
            right.set_title(
                f"best: {top1[best]:.2f} % after epoch {epochs[best]:.0f}", fontsize=9, loc="left"
            )
        for panel in (left, right):
            panel.set_xlabel("epoch")
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
            panel.spines[["top", "right"]].set_visible(False)
        _save(figure, path)
