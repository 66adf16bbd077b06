"""What the user sees: results on stdout, everything else on stderr."""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cvt_cli.progress import Advance

if TYPE_CHECKING:
    from rich.console import Console

PLAIN_INTERVAL_SEC = 30.0
"""Between two progress lines where stderr is no terminal."""


def note(message: str) -> None:
    """Say something on stderr that is no result."""
    print(printable(message), file=sys.stderr, flush=True)


def error(message: str, hint: str | None) -> None:
    """Report a failure on stderr, with the next step after a blank line."""
    note(f"error: {message}")
    if hint:
        print(f"\nhint: {printable(hint)}", file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """The text with control characters escaped, so that a file name cannot break a line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def print_json(document: Any) -> None:
    """One JSON document on stdout, indented."""
    print(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False))


def print_json_line(document: Any) -> None:
    """One JSON document on a line of its own on stdout, at once."""
    print(json.dumps(document, ensure_ascii=False, allow_nan=False), flush=True)


def print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1
) -> None:
    """A table on stdout; the first ``text_columns`` columns to the left, numbers to the right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table: Table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for position, column in enumerate(columns):
        table.add_column(
            column,
            justify="left" if position < text_columns else "right",
            no_wrap=position >= text_columns,
            overflow="fold",
        )
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    _console().print(table)


def _console() -> "Console":
    from rich.console import Console

    # Where stdout is no terminal a table is as wide as it needs to be.
    return Console() if sys.stdout.isatty() else Console(width=160)


@contextmanager
def progress(what: str, total: int) -> Iterator[Advance]:
    """A bar with rate and time left on a terminal, plain lines otherwise (`progress.Progress`)."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(total=total, desc=what, unit="img", leave=False, file=sys.stderr) as bar:

            def advance_bar(items: int, text: str) -> None:
                bar.set_postfix_str(text, refresh=False)
                bar.update(items)

            yield advance_bar
        return

    started = last = time.perf_counter()
    done = 0

    def advance_lines(items: int, text: str) -> None:
        nonlocal done, last
        done += items
        now = time.perf_counter()
        if now - last >= PLAIN_INTERVAL_SEC:
            last = now
            rate = done / (now - started)
            left = duration((total - done) / rate)
            note(f"{what}: {done}/{total} images, {rate:.0f} images/s, {left} left {text}".rstrip())

    yield advance_lines


def duration(seconds: float) -> str:
    """A time as "0:42" or "1:02:03"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def human_count(value: int) -> str:
    """A large count with its metric prefix: "4.566 G", "20.00 M"."""
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3f} {prefix}"
    return str(value)
