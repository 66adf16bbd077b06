"""The help of the app and of its commands, as plain text.

A help page has sections of options (their `rich_help_panel`), each option with the name of its
value and never with its type. No word is broken, so that an example can be copied at any width.
"""

import inspect
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from cvt_cli.commands import output, plain_values

ARGUMENTS = "Arguments"
COMMANDS = "Commands"
OTHER = "Other"

WIDEST = 110
"""Columns that a page takes at most; longer lines are hard to read."""

LEFT = 28
"""Columns for names and values at most; longer ones have a line of their own."""

EXAMPLES = "Examples:"
"""In a docstring, the line before the commands that are printed as they stand."""

SEE_ALSO = "See also:"
"""In a docstring, after the examples: what begins the last paragraph, with other commands."""


class Command(TyperCommand):
    """A command whose help is such a page, and which takes plain values without pydantic."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        plain_values.spare_pydantic(self.get_params(ctx))
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        output.print_help(page(self, ctx))

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return _usage(self, ctx)


class Group(TyperGroup):
    """A command that has commands; its help lists them in sections."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        plain_values.spare_pydantic(self.get_params(ctx))
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        output.print_help(page(self, ctx))

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return [*_usage(self, ctx), "COMMAND", "..."]


def cleaned(docstring: str | None) -> str:
    """A docstring as the help of a command; its first paragraph stands in lists of commands."""
    return inspect.cleandoc(docstring or "")


def examples_of(command: Any) -> list[str]:
    """The command lines that the help of a command shows."""
    lines = (command.help or "").partition(SEE_ALSO)[0].partition(EXAMPLES)[2].splitlines()
    return [line.strip() for line in lines if line.strip()]


def page(command: Any, ctx: Any) -> str:
    """All that ``--help`` prints for a command."""
    width = max(40, min(shutil.get_terminal_size().columns, WIDEST))
    text = (command.help or "").partition(EXAMPLES)[0]
    usage = " ".join([_bold("Usage:"), ctx.command_path, *command.collect_usage_pieces(ctx)])
    blocks = [usage, *(_wrapped(paragraph, width) for paragraph in text.strip().split("\n\n"))]
    for sections in _sections(command, ctx):
        lengths = [len(names) for entries in sections.values() for names, _ in entries]
        left = min(LEFT, max(lengths, default=0) + 2)
        for title, entries in sections.items():
            lines = [line for entry in entries for line in _entry(*entry, left, width)]
            blocks.append("\n".join([_bold(f"{title}:"), *lines]))
    if examples := examples_of(command):
        blocks.append("\n".join([_bold(EXAMPLES), *(f"  {line}" for line in examples)]))
    if others := (command.help or "").partition(SEE_ALSO)[2]:
        blocks.append(_wrapped(SEE_ALSO + others, width).replace(SEE_ALSO, _bold(SEE_ALSO)))
    return "\n\n".join(blocks)


_Sections = dict[str, list[tuple[str, str]]]
"""Names and help of arguments, commands and options, by the titles of their sections."""


def _sections(command: Any, ctx: Any) -> tuple[_Sections, _Sections]:
    """Of a command its commands, and its arguments and options."""
    commands: _Sections = {}
    for name, one in getattr(command, "commands", {}).items():
        if not one.hidden:
            title = one.rich_help_panel or COMMANDS
            commands.setdefault(title, []).append(
                (f"  {name}", (one.help or "").partition("\n\n")[0])
            )
    options: _Sections = {}
    for parameter in (p for p in command.get_params(ctx) if not p.hidden):
        if parameter.param_type_name == "argument":
            entry = (f"  {parameter.metavar.strip('[]')}", parameter.help)
            options.setdefault(ARGUMENTS, []).append(entry)
        else:
            title = parameter.rich_help_panel or OTHER
            entry = (f"  {_names(parameter)}", f"{parameter.help}{_default(parameter, ctx)}")
            options.setdefault(title, []).append(entry)
    options[OTHER] = options.pop(OTHER)  # the last one; it holds --help
    return commands, options


def _names(option: Any) -> str:
    """The names of an option with that of its value: "-k, --top-k N", "    --exif, --no-exif"."""
    short = [name for name in option.opts if not name.startswith("--")]
    long = [name for name in option.opts if name.startswith("--")][:1]
    value = "" if option.is_flag else f" {option.metavar}"
    names = ", ".join([*short, *long, *option.secondary_opts])
    return f"{names if short else f'    {names}'}{value}"


def _default(option: Any, ctx: Any) -> str:
    """The default that an option has, in brackets after its help."""
    value = option.get_default(ctx)
    if not option.show_default or value is None or (option.is_flag and not option.secondary_opts):
        return ""
    if option.is_flag:
        value = (option.opts if value else option.secondary_opts)[0]
    return f" [default: {value}]"


def _usage(command: Any, ctx: Any) -> list[str]:
    """What follows the name of a command; an argument in brackets can be left out."""
    shown = [p for p in command.get_params(ctx) if not p.hidden]
    return ["[OPTIONS]", *(p.metavar for p in shown if p.param_type_name == "argument")]


def _entry(names: str, text: str, left: int, width: int) -> Iterator[str]:
    """The lines of one option, argument or command."""
    first, *others = _wrapped(text, width - left).splitlines() or [""]
    if len(names) + 2 > left:
        yield names
        names = ""
    yield f"{names:<{left}}{first}"
    for line in others:
        yield f"{'':<{left}}{line}"


def _wrapped(text: str, width: int) -> str:
    return textwrap.fill(
        " ".join(text.split()), width, break_long_words=False, break_on_hyphens=False
    )


def _bold(text: str) -> str:
    """A title."""
    plain = "NO_COLOR" in os.environ or not sys.stdout.isatty()
    return text if plain else typer.style(text, bold=True)
