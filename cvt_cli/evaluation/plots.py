"""Pictures of results, drawn with matplotlib (extra ``plots``)."""

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
from cvt_cli.base.text import as_utf8
from cvt_cli.evaluation.metrics import wilson

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


def _save(figure: "Figure", path: Path) -> None:
    with files.replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:].lower(), dpi=160)


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
    with _themed("light") as colours:
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


# --- pictures of an evaluation, for a page that is light or dark

Theme = Literal["light", "dark"]

READABLE_CLASSES = 30
"""Up to here a confusion matrix names its classes."""

_MATRIX_CELLS = 200  # at most, on a side; more classes share a cell
_LONGEST_NAME = 24  # characters of a class beside the matrix

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


@contextmanager
def _themed(theme: Theme) -> Iterator[dict[str, Any]]:
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


def _png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160)
    return buffer.getvalue()


def reliability(bins: Sequence[Mapping[str, Any]], theme: Theme = "light") -> bytes:
    """How often answers of each probability are right, and how many there are, as PNG.

    Args:
        bins: of equal width, with ``low``, ``high``, ``n``, ``confidence`` and ``accuracy`` as
            fractions; the last two are None where ``n`` is 0.
        theme: of the page.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    with _themed(theme) as colours:
        figure = Figure(figsize=(5.2, 5.4), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3.2, 1))
        centres = [50 * (row["low"] + row["high"]) for row in bins]
        width = 0.9 * 100 * (bins[0]["high"] - bins[0]["low"])
        full = [row for row in bins if row["n"]]

        ranges = [wilson(round(row["accuracy"] * row["n"]), row["n"]) for row in full]
        upper.bar(
            [50 * (row["low"] + row["high"]) for row in full],
            [100 * row["accuracy"] for row in full],
            width=width,
            color=colours["bar"],
            yerr=np.array(
                [
                    (100 * (row["accuracy"] - low), 100 * (high - row["accuracy"]))
                    for row, (low, high) in zip(full, ranges, strict=True)
                ]
            ).T.clip(0),
            error_kw={"ecolor": colours["text"], "elinewidth": 0.8, "capsize": 2},
            label="share that is right",
        )
        upper.plot([0, 100], [0, 100], color=colours["soft"], lw=1, ls="--", label="if calibrated")
        upper.plot(
            [100 * row["confidence"] for row in full],
            [100 * row["confidence"] for row in full],
            linestyle="none",
            marker="D",
            markersize=4.5,
            color=colours["mark"],
            markeredgecolor=colours["back"],
            markeredgewidth=0.8,
            label="mean probability",
            zorder=3,
            clip_on=False,
        )
        upper.set_ylim(0, 102)
        upper.set_ylabel("of these answers right")
        upper.yaxis.set_major_formatter(PercentFormatter(decimals=0))
        figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=8)

        lower.bar(centres, [row["n"] for row in bins], width=width, color=colours["soft"])
        most = max(row["n"] for row in bins) or 1
        for centre, row in zip(centres, bins, strict=True):
            if row["n"]:
                lower.annotate(
                    _short_count(row["n"]),
                    (centre, row["n"]),
                    xytext=(0, 2),
                    textcoords="offset points",
                    ha="center",
                    fontsize=6.5,
                )
        lower.set_ylim(0, 1.22 * most)
        lower.set_yticks([])
        lower.set_ylabel("images")
        lower.set_xlim(0, 100)
        lower.set_xlabel("probability of the likeliest class")
        lower.xaxis.set_major_formatter(PercentFormatter(decimals=0))
        for panel in (upper, lower):
            panel.spines[["top", "right"]].set_visible(False)
        return _png(figure)


def _short_count(n: int) -> str:
    return f"{n}" if n < 10_000 else f"{n / 1000:.0f}k"


def confusion(
    matrix: NDArray[np.int64],
    totals: NDArray[np.int64],
    names: Sequence[str],
    theme: Theme = "light",
) -> bytes:
    """Which class is taken for which, as shares of each true class, as PNG.

    Above `READABLE_CLASSES` the classes are not named, and above 200 several share a cell.

    Args:
        matrix: images (C, C), row = true class, column = predicted class.
        totals: images of each true class (C,), those included that the matrix lacks.
        names: of the classes.
        theme: of the page.
    """
    from matplotlib.colors import LinearSegmentedColormap, LogNorm, Normalize, PowerNorm
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    count = len(names)
    named = count <= READABLE_CLASSES
    together = classes_per_cell(count)
    starts = np.arange(0, count, together)
    cells = np.add.reduceat(np.add.reduceat(matrix, starts, axis=0), starts, axis=1)
    images = np.maximum(np.add.reduceat(totals, starts), 1)[:, None]
    shares = 100 * cells / images

    with _themed(theme) as colours:
        side = max(3.2, 1.8 + 0.36 * count) if named else 7.0
        figure = Figure(figsize=(side + 0.9, side), layout="constrained")
        panel = figure.subplots()
        ramp = LinearSegmentedColormap.from_list("ramp", colours["ramp"])
        norm: Normalize
        if named:  # a root shows the few per cent of a confusion beside the diagonal
            norm = PowerNorm(0.5, 0, 100)
        else:
            norm = LogNorm(max(0.01, float((100 / images).min())), 100)
            ramp = LinearSegmentedColormap.from_list("ramp", colours["ramp"][1:])
        drawn = panel.imshow(np.ma.masked_equal(shares, 0), cmap=ramp, norm=norm)
        panel.set_ylabel("true class")
        panel.set_xlabel("predicted class")
        panel.tick_params(length=0)
        if named:
            short = [_shortened(name) for name in names]
            panel.set_yticks(range(count), short)
            upright = all(len(name) <= 3 for name in short)
            panel.set_xticks(
                range(count), short, rotation=0 if upright else 45,
                ha="center" if upright else "right", rotation_mode="anchor",
            )  # fmt: skip
            panel.spines[:].set_visible(False)
            for row, column in np.argwhere(cells):
                light = norm(shares[row, column]) > 0.55
                panel.text(
                    column, row, _short_count(int(cells[row, column])),
                    ha="center", va="center", fontsize=7,
                    color=colours["back"] if light else colours["text"],
                )  # fmt: skip
        else:
            panel.set_xticks([])
            panel.set_yticks([])
        bar = figure.colorbar(drawn, ax=panel, shrink=0.75, pad=0.02, aspect=28)
        bar.outline.set_visible(False)
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
        bar.ax.tick_params(labelsize=7.5, length=2)
        bar.ax.minorticks_off()
        bar.set_label("of the true class's images", fontsize=8)
        return _png(figure)


def classes_per_cell(count: int) -> int:
    """How many neighbouring classes of ``count`` share a row of the confusion matrix."""
    return -(-count // _MATRIX_CELLS)


def _shortened(name: str) -> str:
    name = " ".join(as_utf8(name).split())
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1].rstrip(" ,") + "…"
