"""Pictures of results in files, drawn with matplotlib (extra ``plots``)."""

import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cvt_cli.base import files
from cvt_cli.base.errors import UsageError
from cvt_cli.base.package import installing
from cvt_cli.base.text import as_utf8, counted
from cvt_cli.prediction import shareable
from cvt_cli.spec.variants import VARIANTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LONGEST_NAME = 32
"""Characters of a model's name in a picture."""

SUFFIXES = (".png", ".svg", ".pdf")

# Blue and orange differ in lightness too, and so do without colour vision (Okabe and Ito).
_BLUE, _ORANGE = "#0072b2", "#d55e00"
_GREY, _TEXT, _SOFT, _LINE = "#8a8a8a", "#1a1a1a", "#5c5c5c", "#e4e4e0"


def check(path: Path) -> None:
    """Make sure that a picture can be drawn there, before the work that it shows.

    Raises:
        UsageError: matplotlib is missing, or draws no such files.
        CvtError: the folder cannot be written to.
    """
    if path.suffix.lower() not in SUFFIXES:
        accepted = ", ".join(f"`{suffix}`" for suffix in SUFFIXES)
        raise UsageError(f"`{path}` has no suffix of a picture; accepted are {accepted}")
    require()
    files.refuse_unwritable(path)


def available() -> bool:
    """Whether anything can be drawn at all."""
    return find_spec("matplotlib") is not None


def require() -> None:
    """Raises UsageError if nothing can be drawn at all."""
    if not available():
        raise UsageError("matplotlib is not installed", hint=installing("plots"))


@contextmanager
def _styled() -> Iterator[None]:
    """Draw in one style, whatever the user's matplotlibrc says."""
    import matplotlib

    style: Any = {
        "figure.facecolor": "white",
        "axes.facecolor": "white",
        "savefig.facecolor": "white",
        "text.color": _TEXT,
        "axes.labelcolor": _TEXT,
        "axes.edgecolor": _SOFT,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.titlelocation": "left",
        "axes.titlesize": 10,
        "axes.titlepad": 8,
        "grid.color": _LINE,
        "grid.linewidth": 0.8,
        "xtick.color": _SOFT,
        "ytick.color": _SOFT,
        "xtick.labelcolor": _TEXT,
        "ytick.labelcolor": _TEXT,
        "font.size": 9.5,
        "text.parse_math": False,  # a file may be called $a$
    }
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # it is a box
        yield


def _headed(figure: "Figure", title: str, note: str = "") -> None:
    """Set a picture's title and, under it all, a note; lines are broken to its width."""
    if (layout := figure.get_layout_engine()) is not None:
        layout.set(w_pad=0.1, h_pad=0.1)  # type: ignore[call-arg]
    width = figure.get_figwidth()
    for text, size, place in ((title, 12, figure.suptitle), (note, 8.5, figure.supxlabel)):
        if text:
            lines = textwrap.wrap(as_utf8(text), int(width * 122 / size), break_long_words=True)
            place("\n".join(lines), x=0.012, ha="left", fontsize=size)
            # A line more needs room that the panels do not have to give.
            figure.set_figheight(figure.get_figheight() + 1.3 * size / 72 * (len(lines) - 1))


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
    models = _names(rows)
    labels = [_label(row, models) for row in rows]
    tall = 0.42 if len(models) == 1 else 0.58  # in inches; names of models have a line of their own
    with _styled():
        figure = Figure(
            figsize=(max(6.4, 4.6 * len(batches)), 1.5 + tall * len(rows) / len(batches)),
            layout="constrained",
        )
        panels = figure.subplots(1, len(batches), squeeze=False, sharey=True)[0]
        fastest = max(row["images_per_sec_range"][1] for row in rows)
        for panel, batch in zip(panels, batches, strict=True):
            own = [place for place, row in enumerate(rows) if row["batch_size"] == batch]
            for place, number in enumerate(own):
                _draw_bar(panel, len(own) - 1 - place, rows[number], is_baseline=place == 0)
            panel.set_yticks(range(len(own) - 1, -1, -1), [labels[number] for number in own])
            panel.tick_params(axis="y", length=0)
            panel.set_title(f"{batch} {'image' if batch == 1 else 'images'} at a time")
            panel.set_xlim(0, 1.45 * fastest)
            panel.grid(axis="x")
        of = f" of {', '.join(models.values())}" if len(models) <= 3 else ""
        note = (
            f"{document['device']}, {document['hardware']}. "
            f"Median and range of {counted(document['rounds'], 'round')}, {document['weights']} "
            "weights."
        )
        if rows[0]["ratio_range"] is not None:
            against = labels[0].replace("\n", ", ")
            note += f" ×: rate compared with {against}, the median of the rounds' ratios."
        _headed(figure, f"Images per second{of}{_size(document)}", note)
        _save(figure, path)


def _draw_bar(panel: "Axes", place: int, row: Mapping[str, Any], is_baseline: bool) -> None:
    """The rate of one side, its range and its ratio to the baseline."""
    rate, (slowest, fastest) = row["images_per_sec"], row["images_per_sec_range"]
    panel.barh(
        place,
        rate,
        height=0.66,
        color=_GREY if is_baseline and row["ratio_range"] is not None else _BLUE,
        xerr=[[rate - slowest], [fastest - rate]],
        error_kw={"ecolor": _TEXT, "elinewidth": 0.9, "capsize": 2.5},
    )
    ratio = ""
    if row["ratio_range"] is not None and not is_baseline:
        low, high = row["ratio_range"]
        # Where the rounds do not agree there is no one ratio.
        ratio = f"×{low:.1f} to {high:.1f}" if row["ratio"] is None else f"×{row['ratio']:.2f}"
    panel.annotate(
        f"{rate:.1f}  {ratio}".rstrip(),
        (fastest, place),
        xytext=(5, 0),
        textcoords="offset points",
        va="center",
    )


def _names(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What each model of a benchmark is called: "CvT-13", or a file's name."""
    models = list(dict.fromkeys(str(row["model"]) for row in rows))
    found = shareable.distinct([model for model in models if model not in VARIANTS])
    return {model: _shortened(found.get(model, f"CvT-{model}")) for model in models}


def _shortened(name: str) -> str:
    """A name without its middle where it is long: its end tells most."""
    if len(name) <= _LONGEST_NAME:
        return name
    return f"{name[: _LONGEST_NAME // 4]}…{name[1 - _LONGEST_NAME + _LONGEST_NAME // 4 :]}"


def _label(row: Mapping[str, Any], models: Mapping[str, str]) -> str:
    """What a bar shows."""
    side = f"{row['engine']} {row['precision']}"
    return side if len(models) == 1 else f"{models[str(row['model'])]}\n{side}"


def _size(document: Mapping[str, Any]) -> str:
    """The size of the images, where all models take the same."""
    return f" at {document['height']}x{document['width']}" if document["height"] else ""


def draw_curves(
    rows: Sequence[Mapping[str, Any]],
    path: Path,
    name: str,
    main: tuple[str, str] = ("val_top1", "Top-1"),
    chosen: tuple[int, str] | None = None,
) -> None:
    """Losses, validation top-1 and learning rate of a run by epoch, its best epoch marked.

    Args:
        rows: one per epoch, at least one, with ``epoch``, ``learning_rate``, ``training_loss`` and
            ``val_loss`` in nats and ``val_top1`` as a fraction; None and NaN are gaps.
        path: of the picture; its suffix says which kind.
        name: of the run.
        main: what is drawn in place of top-1, a fraction: its name in the rows, and for people.
        chosen: the place of the best epoch among the rows, and what it was chosen by; None is the
            first of those with the best ``main``.

    Raises:
        UsageError, CvtError: as `check`.
    """
    check(path)
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    def column(key: str) -> NDArray[np.float64]:
        return np.array([np.nan if row[key] is None else row[key] for row in rows], np.float64)

    epochs, top1 = column("epoch"), 100 * column(main[0])
    with _styled():
        figure = Figure(figsize=(11, 3.7))
        left, middle, right = figure.subplots(1, 3, width_ratios=(4, 4, 3))
        # A dot for every epoch while they can be told apart, and so also where there is but one.
        style: dict[str, Any] = {
            "marker": "o" if len(rows) <= 60 else "",
            "markersize": 3,
            "lw": 1.5,
            "clip_on": False,
        }
        left.plot(epochs, column("training_loss"), color=_BLUE, label="training", **style)
        left.plot(epochs, column("val_loss"), color=_ORANGE, label="validation", **style)
        left.set_title("Loss (nats)")
        left.legend(frameon=False)
        middle.plot(epochs, top1, color=_ORANGE, **style)
        middle.set_ylim(0, 100)  # a part of the scale makes small gains look large
        middle.set_title(f"{main[1]} on validation images (%)")
        right.plot(epochs, column("learning_rate"), color=_BLUE, **style)
        right.set_title("Learning rate")
        best_said = ""
        if chosen is not None or np.isfinite(top1).any():
            best, by = chosen or (int(np.nanargmax(top1)), "")  # the first of equals
            value = f"{top1[best]:.2f} % " if np.isfinite(top1[best]) else ""
            best_said = f"; best{by and f' by {by}'}: {value}after epoch {epochs[best]:.0f}"
            for panel in (left, middle, right):
                panel.axvline(epochs[best], color=_SOFT, lw=1.1, ls="--", zorder=1.5)
            middle.plot(
                epochs[best], top1[best], marker="D", markersize=7, color=_ORANGE,
                markeredgecolor="white", clip_on=False,
            )  # fmt: skip
        for panel in (left, middle, right):
            panel.set_xlabel("epoch")
            panel.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
            panel.grid()
        for panel in (left, right):
            panel.set_ylim(0, 1.02 * panel.get_ylim()[1])
        _headed(figure, f"{name}{best_said}")
        # In inches, since the title may have made it higher. A layout that matplotlib finds itself
        # takes as long again as all the drawing.
        high = figure.get_figheight()
        figure.subplots_adjust(0.05, 0.52 / high, 0.985, 2.96 / high, wspace=0.2)
        _save(figure, path)
