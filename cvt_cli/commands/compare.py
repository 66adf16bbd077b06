"""``cvt compare``: two models on the same images."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cvt_cli.base.text import WEIGHTED, counted
from cvt_cli.commands import options, output

if TYPE_CHECKING:
    from cvt_cli.evaluation.comparison import Comparison, Line


def compare(
    ctx: typer.Context,
    a: Annotated[
        Path,
        typer.Argument(
            parser=options.path,
            metavar="A",
            help="Predictions of the first model: a .jsonl, .csv or .parquet file.",
        ),
    ],
    b: Annotated[
        Path,
        typer.Argument(parser=options.path, metavar="B", help="Predictions of the second model."),
    ],
    changed: Annotated[
        int,
        options.value_option(
            "N",
            "How many images to list whose predicted class changed (--json lists all).",
            options.OUTPUT,
            min=0,
        ),
    ] = 20,
    overwrite: options.Overwrite = False,
    json_output: options.JsonOrFile = False,
    json_file: options.JsonFile = None,
) -> None:
    """Compare the accuracy of two models on the same images.

    Prints the difference with its 95 % interval (paired bootstrap) and its p-value (McNemar's exact
    test). The files are written by cvt evaluate --predictions FILE; images are paired by path.

    Examples:
      cvt compare small.jsonl large.jsonl
      cvt compare small.jsonl large.jsonl --changed 100

    See also: cvt evaluate (writes the files that are compared)
    """
    from cvt_cli.evaluation import comparison

    if json_output:
        options.refuse(ctx, ["--changed"], "--json lists all images whose predicted class changed")
    if json_file is None:
        options.refuse(ctx, ["--overwrite"], "there is no output file to replace")
    options.refuse_replacing(json_file, overwrite)
    found = comparison.compare(comparison.read(a), comparison.read(b))
    for count, path in ((found.only_in_a, a), (found.only_in_b, b)):
        if count:
            images = counted(count, "image")
            output.note(f"left out: {images} only in `{path}`")
    if found.differ:
        output.note(
            f"{found.differ} of {counted(found.n, 'image')}: different pictures under the same path"
        )
    for count, path in zip(found.unreadable, (a, b), strict=True):
        if count:  # also where `cvt evaluate --skip-unreadable` left them out of its own figures
            images = counted(found.n, "image")
            output.note(f"counted as wrong: {count} of {images}, unreadable in `{path}`")
    seen = {"n_trained_on_a": comparison.trained_on(a), "n_trained_on_b": comparison.trained_on(b)}
    for name, path, known in zip("AB", (a, b), seen.values(), strict=True):
        if known:
            images = counted(known, "image")
            output.note(f"{name} is too high: its model was trained on {images} of `{path}`")
    document = {"a": str(a), "b": str(b), **seen, **found.to_json()}
    output.print_result(document, lambda: _print(found, a, b, changed), json_output, json_file)


def _print(found: "Comparison", a: Path, b: Path, changed: int) -> None:
    """For people, with so many of the images whose predicted class changed."""
    from cvt_cli.prediction.answers import NONE

    output.emit(*_summary(found, a, b), *_measures(found))
    if not found.changed:
        output.emit("", "no image's predicted class changed")
        return
    shown = found.changed[:changed]
    total = len(found.changed)
    if not shown:
        images = counted(total, "image")
        output.emit("", f"the predicted class of {images} changed")
        return
    which = f"the first {len(shown)} of {total}" if len(shown) < total else str(total)
    output.emit("")
    output.print_table(
        f"Images whose predicted class changed ({which})",
        ("image", "true class", "A", "B", "right"),
        [
            (one.path, one.label or NONE, *_classes(one, other), _right(one, other))
            for one, other in shown
        ],
        text_columns=5,
    )


def _summary(found: "Comparison", a: Path, b: Path) -> list[str]:
    from cvt_cli.evaluation.comparison import RESAMPLES

    low, high = found.interval
    p = "under 1e-300" if found.p_value < 1e-300 else f"{found.p_value:.3g}"
    return [
        f"A            {100 * found.correct_a / found.n:.2f} %  "
        f"({found.correct_a} of {found.n} right; {a})",
        f"B            {100 * found.correct_b / found.n:.2f} %  "
        f"({found.correct_b} of {found.n} right; {b})",
        f"B minus A    {found.difference:+.2f} points  (95 % interval {low:+.2f} to {high:+.2f}; "
        f"paired bootstrap, {RESAMPLES:,} resamples)",
        f"p-value      {p}  (McNemar's exact test, two-sided)",
        f"both right   {found.both_right}",
        f"only A       {found.only_a}",
        f"only B       {found.only_b}",
        f"both wrong   {found.both_wrong}",
    ]


_SHOWN = {
    "balanced_accuracy": "balanced", "micro_f1": "micro F1", "macro_f1": "macro F1",
    "sample_f1": "sample F1",
}  # fmt: skip
"""Measures that a person is shown, where there are any; ``--json`` has all."""


def _measures(found: "Comparison") -> list[str]:
    lines = [f"{WEIGHTED}:"] if found.weighted and found.measures else []
    for name, word in _SHOWN.items():
        one = found.measures.get(name)
        if one is None or one.a is None or one.b is None or one.interval is None:
            continue
        low, high = (100 * end for end in one.interval)
        lines.append(
            f"{word:<12} {100 * one.a:.2f} %, {100 * one.b:.2f} %  (B minus A "
            f"{100 * (one.b - one.a):+.2f} points; 95 % interval {low:+.2f} to {high:+.2f})"
        )
    return lines


def _classes(one: "Line", other: "Line") -> tuple[str, str]:
    """The likeliest classes, with their WordNet identifiers where the names are the same."""
    from cvt_cli.prediction.answers import NONE

    same = one.predicted == other.predicted
    a, b = (
        "unreadable" if line.predicted is None
        else f"{line.predicted} ({line.wnid})" if same
        else line.predicted or NONE
        for line in (one, other)
    )  # fmt: skip
    return output.Answered(a, one.correct), output.Answered(b, other.correct)


def _right(one: "Line", other: "Line") -> str:
    """Which of the two is right."""
    return " ".join(name for name, line in (("A", one), ("B", other)) if line.correct)
