"""Pictures for the report on an evaluation, for a page that is light or dark."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvt_cli.base.text import as_utf8
from cvt_cli.evaluation.metrics import wilson
from cvt_cli.evaluation.plots import Theme, png, themed

READABLE_CLASSES = 30
"""Up to here a confusion matrix names its classes."""

_MATRIX_CELLS = 200  # at most, on a side; more classes share a cell
_LONGEST_NAME = 24  # characters of a class beside the matrix


def reliability(bins: Sequence[Mapping[str, Any]], theme: Theme = "light") -> bytes:
    """How often answers of each probability are right, and how many there are, as PNG.

    Args:
        bins: of equal width, with ``low``, ``high``, ``n``, ``confidence`` and ``accuracy`` as
            fractions; the last two are None where ``n`` is 0.
        theme: of the page.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    with themed(theme) as colours:
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
        return png(figure)


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

    with themed(theme) as colours:
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
        return png(figure)


def classes_per_cell(count: int) -> int:
    """How many neighbouring classes of ``count`` share a row of the confusion matrix."""
    return -(-count // _MATRIX_CELLS)


def _shortened(name: str) -> str:
    name = " ".join(as_utf8(name).split())
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1].rstrip(" ,") + "…"
