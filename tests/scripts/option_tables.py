"""The option tables of the pages in docs/commands, made from the app.

    python tests/scripts/option_tables.py

Run it after an option, its help or its default has changed; a test fails until then. What stands
between the two comments of a page is replaced.
"""

import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

from cvt_cli.cli import app

FOLDER = Path(__file__).parents[2] / "docs" / "commands"
BEGIN = "<!-- options: made by tests/scripts/option_tables.py -->\n"
BAR = "\\|"  # inside of a table
END = "<!-- end of options -->\n"


def commands() -> dict[str, Any]:
    """Every command that the help lists, by its words on the command line: "cache list"."""

    def below(group: Any, words: str) -> Iterator[tuple[str, Any]]:
        for name, command in group.commands.items():
            if command.hidden:
                continue
            if hasattr(command, "commands"):
                yield from below(command, f"{words}{name} ")
            else:
                yield f"{words}{name}", command

    return dict(below(get_command(app), ""))


def renewed(page: str, name: str) -> str:
    """The text of a command's page with its tables as the app has them now.

    Args:
        page: the text.
        name: of the file without its suffix: "predict"; the page of a group has all its commands.
    """
    of_page = {n: c for n, c in commands().items() if n == name or n.startswith(f"{name} ")}
    tables = "".join(_tables(n, c, len(of_page) > 1) for n, c in of_page.items())
    before, _, rest = page.partition(BEGIN)
    return before + BEGIN + tables + END + rest.partition(END)[2]


def _tables(name: str, command: Any, several: bool) -> str:
    """A table for each panel of the help, in its order; the arguments first."""
    title = f"### cvt {name}\n\n" if several else ""
    panels: dict[str, list[str]] = {}
    hints = typing.get_type_hints(command.callback)
    for parameter in command.params:
        if getattr(parameter, "hidden", False) or parameter.name == "help":
            continue
        is_argument = parameter.param_type_name == "argument"
        panel = "Arguments" if is_argument else parameter.rich_help_panel or "Options"
        panels.setdefault(panel, []).append(_row(parameter, hints[parameter.name]))
    return title + "".join(
        f"| {panel} | | default |\n|---|---|---|\n{''.join(rows)}\n"
        for panel, rows in panels.items()
    )


def _row(parameter: Any, annotation: Any) -> str:
    value = parameter.metavar or _value(annotation)
    if parameter.param_type_name == "argument":
        names = f"`{value}`"
    else:
        names_of = (*parameter.opts, *parameter.secondary_opts)
        shown = [f"{n} {value}".rstrip() if n.startswith("--") else n for n in names_of]
        names = ", ".join(f"`{name}`" for name in shown)
    default = parameter.default
    shown_default = parameter.show_default and default is not None and default is not False
    said = "" if not shown_default else "on" if default is True else f"`{default}`"
    help, _, described = (parameter.help or "").partition(" [default: ")
    cells = (names, " ".join(help.split()), said or described.removesuffix("]"))
    return f"| {' | '.join(cell.replace('|', BAR) for cell in cells)} |\n"


def _value(annotation: Any) -> str:
    """What stands for a value whose option has no metavar."""
    kinds = [kind for kind in (annotation, *typing.get_args(annotation)) if kind is not type(None)]
    for kind in kinds:
        if typing.get_origin(kind) is typing.Literal:
            return "|".join(map(str, typing.get_args(kind)))
    for kind, shown in ((bool, ""), (int, "N"), (float, "X")):
        if kind in kinds:
            return shown
    return "TEXT"


if __name__ == "__main__":
    for path in sorted(FOLDER.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        path.write_text(renewed(text, path.stem), encoding="utf-8")
