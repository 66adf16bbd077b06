"""What the user sees: results on stdout, everything else on stderr."""

import json
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cvt_cli.base import files, streams
from cvt_cli.base.progress import Advance, Unit
from cvt_cli.base.text import csv_row, duration, human_bytes, printable

if TYPE_CHECKING:
    from cvt_cli.checkpoints.locate import Access
    from cvt_cli.engines.ready import ReadyModel
    from cvt_cli.spec.costs import Costs

PLAIN_INTERVAL_SEC = 30.0
"""Between two progress lines where stderr is no terminal."""

WIDTH_ELSEWHERE = 160
"""Columns that a table may take where stdout is no terminal."""

LEAST_TEXT = 12
"""Columns that text in a table keeps, however narrow the terminal is."""


def note(message: str) -> None:
    """Say something on stderr that is no result."""
    streams.say(message)


def error(message: str, hint: str | None = None) -> None:
    """Report a failure on stderr, with the next step after a blank line."""
    note(f"error: {message}")
    if hint:
        streams.say("")
        streams.say(f"hint: {hint}")


def note_conditions(classifier: "ReadyModel", verbose: bool) -> None:
    """What was assumed in loading, and with ``--verbose`` all that a result depends on."""
    for message in classifier.notes:
        note(message)
    if verbose:
        note(classifier.describe())


def emit(*lines: str) -> None:
    """Write lines of results for a person to stdout, at once; a line feed in one, which comes of a
    name, is escaped.

    Raises:
        BrokenPipeError, CvtError: as `_write`.
    """
    _write("\n".join(map(printable, lines)))


def _write(text: str, end: str = "\n") -> None:
    """Write to stdout, at once and as it is.

    Raises:
        BrokenPipeError: nobody reads it any more, as behind `| head`; ends a command in silence.
        CvtError: the disk is full.
    """
    print(text, end=end, flush=True)


def print_help(text: str) -> None:
    """A page of help on stdout, but for its last line's end, which typer writes."""
    _write(text, end="")


def print_json(document: Any) -> None:
    """One JSON document on stdout, indented."""
    _write(_as_json(document, indent=2))


def write_json(document: Any, path: Path) -> None:
    """One JSON document to a file, which is said."""
    files.write_text(path, json.dumps(document, indent=2, allow_nan=False) + "\n")
    note(f"written: `{path}`")


def print_result(
    document: Any, show: Callable[[], None], json_output: bool, json_file: Path | None = None
) -> None:
    """What was found: as one JSON document or as ``show`` prints it, and in a file if one is named.

    It is printed even if the file cannot be written, for it may have taken hours to find.
    """
    try:
        if json_file is not None:
            write_json(document, json_file)
    finally:
        if json_output:
            print_json(document)
        else:
            show()


def print_json_line(document: Any) -> None:
    """One JSON document on a line of its own on stdout, at once."""
    _write(_as_json(document, indent=None))


def _as_json(document: Any, indent: int | None) -> str:
    """JSON that stdout's encoding cannot spoil, and in which nothing ends a line or is hidden."""
    ascii_only = not streams.is_unicode(sys.stdout)
    text = json.dumps(document, indent=indent, ensure_ascii=ascii_only, allow_nan=False)
    return re.sub(r"[^\n -~]", _escaped_unless_printable, text)


def _escaped_unless_printable(found: re.Match[str]) -> str:
    return found[0] if found[0].isprintable() else json.dumps(found[0])[1:-1]


def print_csv_row(values: Iterable[Any]) -> None:
    """One row of a CSV table (RFC 4180) on stdout, at once.

    On a terminal, control characters in a name are escaped; elsewhere they stay as they are.
    """
    if sys.stdout.isatty():
        values = [printable(value) if isinstance(value, str) else value for value in values]
    _write(csv_row(values))


class Answered(str):
    """A class that a model answered with, as a cell of a table; a terminal colours it."""

    right: bool

    def __new__(cls, text: str, right: bool) -> "Answered":
        """A cell that is green where the answer is right and red where it is wrong."""
        cell = super().__new__(cls, text)
        cell.right = right
        return cell

    @staticmethod
    def style_of(cell: str) -> str:
        """The style of any cell, as rich names it."""
        return ("green" if cell.right else "red") if isinstance(cell, Answered) else ""


def print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1
) -> None:
    """A title and a table on stdout; the first columns hold text, the others numbers."""
    emit(title)
    plain = None
    if not sys.stdout.isatty():
        plain = _plain_table(columns, rows, text_columns)
    _write("\n".join(plain or _rich_table(columns, rows, text_columns)))


def _plain_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int
) -> list[str] | None:
    """The lines of `_rich_table` without the time that importing rich takes; None where there may
    be more to a table than putting its cells in columns."""
    cells = [columns, *([printable(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    length = sum(widths) + 3 * len(columns) - 1
    every = "".join(cell for row in cells for cell in row)
    if not every.isascii() or length >= WIDTH_ELSEWHERE or not streams.is_unicode(sys.stdout):
        return None
    lines = []
    for row in cells:
        places = enumerate(zip(row, widths, strict=True))
        put = [c.ljust(w) if i < text_columns else c.rstrip().rjust(w) for i, (c, w) in places]
        lines.append(f"  {'   '.join(put)}".rstrip())
    return ["", lines[0], " " + "─" * length, *lines[1:], ""]


def _rich_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int
) -> list[str]:
    """The lines of a table; too wide for a terminal, its text is folded."""
    from rich import box
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    for position, column in enumerate(columns):
        table.add_column(
            Text(column),
            justify="left" if position < text_columns else "right",
            no_wrap=position >= text_columns,
            overflow="fold",
        )
    for row in rows:
        table.add_row(*(Text(printable(cell), Answered.style_of(cell)) for cell in row))
    # In a file or a pipe a table is as wide as it needs to be.
    on_a_terminal = sys.stdout.isatty()
    width = Console().width if on_a_terminal else WIDTH_ELSEWHERE
    cells = zip(columns, *rows, strict=True)
    widths = [max(cell_len(printable(cell)) for cell in column) for column in cells]
    # Narrower, rich would leave columns out.
    least = sum(min(w, LEAST_TEXT) if i < text_columns else w for i, w in enumerate(widths))
    console = Console(width=max(width, least + 3 * len(columns)))
    with console.capture() as capture:
        console.print(table)
    lines = capture.get().splitlines()
    return lines if on_a_terminal else [line.rstrip() for line in lines]


def gone_on_with(path: Path, *writing: str, without: Iterable[Path] = ()) -> str:
    """This command line, as it goes on with what it has left unfinished.

    Args:
        path: of what is there.
        writing: options that this name followed, in whose place ``--resume`` comes.
        without: other files that they name, which ``--resume`` does not write.
    """
    words: list[str] = []
    others = set(without)
    left = [word for word in sys.argv[1:] if word != "--overwrite"]
    while left:
        word = left.pop(0)
        option, sign, value = word.partition("=")
        if word.startswith("-o") and len(word) > 2:  # `-oFILE`
            option, sign, value = "-o", word[:2], word[2:]
        if option in writing and (sign or left):
            named = Path(value if sign else left[0])
            if named == path or named in others:
                value = value if sign else left.pop(0)
                words += ["--resume", value] if named == path else []
                continue
        words.append(word)
    return shlex.join(["cvt", *words])


def access(revision: str | None = None, offline: bool = False, verbose: bool = False) -> "Access":
    """Fetch models where they are asked for, and say and show that on stderr."""
    from cvt_cli.checkpoints.locate import Access

    access = Access(note, progress, revision, offline)
    return replace(access, detail=note) if verbose else access


@contextmanager
def progress(
    what: str, total: int | None, *, unit: Unit = "images", done: int = 0
) -> Iterator[Advance]:
    """A bar with rate and time left on a terminal, plain lines otherwise (`progress.Progress`)."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(
            total=total,
            initial=done,
            desc=what,
            unit={"bytes": "B", "images": "img", "turns": "turn"}[unit],
            unit_scale=unit == "bytes",
            leave=False,
            file=sys.stderr,
        ) as bar:

            def advance_bar(items: int, text: str) -> None:
                if text:
                    bar.set_postfix_str(text, refresh=False)
                bar.update(items)

            yield advance_bar
        return

    def amount(number: float) -> str:
        return human_bytes(number) if unit == "bytes" else f"{number:.0f} {unit}"

    started = last = time.perf_counter()
    new = 0

    def advance_lines(items: int, text: str) -> None:
        nonlocal new, last
        new += items
        now = time.perf_counter()
        if now - last >= PLAIN_INTERVAL_SEC:
            last = now
            rate = new / (now - started)
            of, left = "", ""
            if total is not None:
                of = f" of {amount(total)}"
                left = f", {duration((total - done - new) / rate)} left"
            note(f"{what}: {amount(done + new)}{of}, {amount(rate)}/s{left} {text}".rstrip())

    yield advance_lines


def difference(ours: int, theirs: int | None) -> str:
    """How far ours is from theirs, "+0.80 %"; empty where theirs is not known."""
    return "" if theirs is None else f"{100 * (ours - theirs) / theirs:+.2f} %"


def stage_name(stage: int | None) -> str:
    """The name of a row's stage; what follows the last stage has none."""
    return "" if stage is None else f"stage {stage}"


def print_costs_json(found: "Sequence[Costs]") -> None:
    """One object for one model, a list for several."""
    documents = [costs.to_json() for costs in found]
    print_json(documents[0] if len(documents) == 1 else documents)
