"""Markdown that nothing which is put into it can break: names and paths may hold any character."""

import functools
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from cvt_cli.base.package import DATA
from cvt_cli.base.text import as_utf8

if TYPE_CHECKING:
    from jinja2 import Environment


class Markdown(str):
    """Text that is Markdown already; all other text is escaped where it is put into a card."""


_SPECIAL = re.compile(r"([\\`*\[\]#~]|(?<!\w)_|_(?!\w))")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;"}


def escaped(text: str) -> str:
    """Text as Markdown that shows it in one line, also inside a table."""
    if isinstance(text, Markdown):
        return text
    line = " ".join(as_utf8(text).split())
    return "".join(_ENTITIES.get(c, c) for c in _SPECIAL.sub(r"\\\1", line))


def code(text: str) -> Markdown:
    """Text in the type of a terminal, also inside a table."""
    line = " ".join(as_utf8(str(text)).split())
    if "|" not in line and "<" not in line and "`" not in line:
        return Markdown(f"`{line}`")
    return Markdown(f"<code>{escaped(line)}</code>")


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> Markdown:
    """A table; without rows there is none."""
    lines = [[escaped(str(c) if not isinstance(c, str) else c) for c in row] for row in rows]
    if not lines:
        return Markdown("")
    shown = [[escaped(c) for c in head], ["---"] * len(head), *lines]
    return Markdown("\n".join(f"| {' | '.join(row)} |" for row in shown))


def rows(pairs: Iterable[tuple[str, Any]]) -> Markdown:
    """A table of two columns without a head; a pair without a value is left out."""
    return table(("", ""), [(name, value) for name, value in pairs if value not in (None, "")])


def named_list(pairs: Iterable[tuple[str, Any]]) -> Markdown:
    """A list of named values, as the hub's template has them."""
    return Markdown("\n".join(f"- **{name}:** {escaped(value)}" for name, value in pairs))


@functools.cache
def environment() -> "Environment":
    """Where the template of the card is found."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(DATA / "templates", encoding="utf-8"),
        auto_reload=False,
        undefined=StrictUndefined,
        finalize=lambda value: escaped(value) if isinstance(value, str) else value,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters["plain"] = Markdown  # in a block of code, where nothing is escaped
    made.globals["list"] = named_list
    return made
