"""A page of help can be read alone, at any width, and its examples can be copied."""

import re
import shlex
from typing import Any

import pytest
from typer.main import get_command

from cvt_cli.cli import app
from cvt_cli.commands import help_pages

WIDTHS = (60, 80, 120)

LONG = ("predict", "evaluate", "finetune", "export", "benchmark")


def commands() -> dict[str, Any]:
    """Every command by what is typed for it; the app itself by ""."""
    group: Any = get_command(app)
    found = {"": group}
    for name, command in group.commands.items():
        found[name] = command
        for inner, one in getattr(command, "commands", {}).items():
            found[f"{name} {inner}"] = one
    return found


COMMANDS = commands()


@pytest.fixture
def help_of(cvt, monkeypatch: pytest.MonkeyPatch):
    def help_of(name: str, width: int) -> str:
        monkeypatch.setenv("COLUMNS", str(width))
        result = cvt(*name.split(), "--help")
        assert result.exit_code == 0
        return result.stdout

    return help_of


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_names_of_values_and_never_their_types(help_of, name: str) -> None:
    shown = help_of(name, 80)

    assert not re.search(r"<[a-z]|x>=|<=x|\{[A-Z]|\[\[|\bTEXT\b|INTEGER|FLOAT|\bPATH\b", shown)
    assert shown.isascii()
    for parameter in (p for p in COMMANDS[name].params if not p.hidden):
        assert parameter.help.endswith((".", "]")), parameter.name
        assert parameter.is_flag if parameter.metavar is None else parameter.metavar in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_help_breaks_no_word_at_any_width(help_of, name: str) -> None:
    words = [help_of(name, width).split() for width in (*WIDTHS, 500)]

    assert all(found == words[0] for found in words)
    for width in WIDTHS:
        text = help_of(name, width).partition(help_pages.EXAMPLES)[0]
        assert max(map(len, text.splitlines())) <= width


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_examples_that_parse(help_of, name: str) -> None:
    shown = help_of(name, 80).partition(f"{help_pages.EXAMPLES}\n")[2]
    shown = shown.partition(help_pages.SEE_ALSO)[0].strip().splitlines()

    if hasattr(COMMANDS[name], "commands"):
        assert shown or name
    else:
        assert len(shown) >= (3 if name in LONG else 1)
    for line in shown:
        assert len(line) <= 80
        first, *words = shlex.split(line.partition(" > ")[0])
        assert first == "cvt" and " ".join(words).startswith(name)
        if "--help" not in words:
            parse(words)


@pytest.mark.parametrize("name", [name for name in COMMANDS if name and " " not in name])
def test_help_names_the_commands_that_come_next(help_of, name: str) -> None:
    said = " ".join(help_of(name, 80).partition(help_pages.SEE_ALSO)[2].split())

    named = re.findall(r"cvt ([a-z-]+)", said)
    assert named and set(named) <= COMMANDS.keys() - {name}
    for command, option in re.findall(r"cvt ([a-z-]+) (--[a-z-]+)", said):
        assert any(option in parameter.opts for parameter in COMMANDS[command].params)


def parse(words: list[str]) -> None:
    """Raises where typer cannot read a command line."""
    command: Any = COMMANDS[""]
    while hasattr(command, "commands"):
        command, words = command.commands[words[0]], words[1:]
    command.make_context(command.name, list(words))


def test_commands_are_listed_by_what_they_are_for(help_of) -> None:
    shown = help_of("", 80)

    assert re.findall(r"^(.+):$", shown, re.MULTILINE)[:4] == ["Use", "Train", "Ship", "Look up"]
    for name in COMMANDS[""].commands:
        assert len(re.findall(rf"^  {name}  ", shown, re.MULTILINE)) == 1


def test_wrong_usage_is_one_message_in_one_piece(cvt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    long = "a-name-that-is-longer-than-the-terminal-is-wide"

    for arguments, message in (
        (("predict", "x", f"--{long}"), f"error: No such option: --{long}"),
        (("predict", "x", "--engine", long), f"error: Invalid value for '--engine': '{long}' is"),
        ((long,), f"error: No such command '{long}'"),
    ):
        result = cvt(*arguments)

        assert result.exit_code == 2
        assert result.stderr.startswith(message)
        assert re.search(r"\n\nhint: `cvt( predict)? --help` lists its options$", result.stderr)


def test_a_command_that_has_commands_prints_its_help_when_none_is_given(cvt) -> None:
    for arguments in ((), ("cache",)):
        result = cvt(*arguments)

        assert result.exit_code == 2
        assert result.stdout.startswith(f"Usage: {' '.join(('cvt', *arguments))} ")
