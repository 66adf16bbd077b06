"""The README shows what its commands really print."""

import re
import shlex

import pytest

import cvt_cli
from cvt_cli.cli import app
from cvt_cli.commands import cache
from tests_shared import TESTS

README = (TESTS.parent / "README.md").read_text()
BLOCKS = dict(re.findall(r"```console\n\$ cvt (.+)\n([^`]+?)\n```", README))


@pytest.mark.parametrize(
    "command", [c for c in BLOCKS if c.startswith(("flops", "count", "models", "info"))]
)
def test_counts_are_printed_as_shown(cvt, command: str) -> None:
    assert cvt(*shlex.split(command)).stdout.rstrip() == BLOCKS[command]


def test_the_first_command_names_what_is_in_its_photograph(cvt, monkeypatch) -> None:
    command = re.search(r"^pip install \. && cvt (.+)$", README, re.MULTILINE)[1]
    monkeypatch.chdir(TESTS.parent)

    printed = cvt(*shlex.split(command)).stdout

    assert shown_labels(printed)[0] == "ship"
    assert shown_labels(printed) == shown_labels(BLOCKS[command.removeprefix("cvt ")])


def test_the_photograph_that_it_misreads_is_answered_as_shown(cvt, monkeypatch) -> None:
    monkeypatch.chdir(TESTS.parent)

    command = "predict tests/photos/chelsea.png --model cvt-nano-cifar10"
    printed = cvt(*command.split()).stdout

    assert shown_labels(printed)[:3] == shown_labels(BLOCKS[command])[:3]


def shown_labels(table: str) -> list[str]:
    return re.findall(r"^  (\w+) +0\.\d{4} +\d+$", table, re.MULTILINE)


def test_the_readme_and_the_package_tell_the_same(cvt) -> None:
    assert {"flops --variant 21 --res 384", "flops", "count-params"} <= set(BLOCKS)
    assert cvt("--version").stdout == f"cvt {cvt_cli.__version__}\n"
    card = (TESTS.parent / "cvt_cli/data/cvt-nano-cifar10/README.md").read_text()
    command = re.search(r"^\| command \| `(cvt finetune .+)` \|$", card, re.MULTILINE)[1]
    assert command in README.replace(" \\\n    ", " ")
    top1 = re.search(r"^\| top-1 on the 10,000 test images \| (.+ %) \((\d+) of", card, re.M)
    assert f"top-1   {top1[1]}  ({top1[2]} of 10000;" in README


def test_every_command_has_an_example_in_its_help(cvt) -> None:
    for command in (c.name for c in app.registered_commands):
        help_text = cvt(command, "--help").stdout
        assert f"Example: cvt {command}" in help_text, command
        assert f"### cvt {command}\n" in README
    for command in (c.name or c.callback.__name__ for c in cache.app.registered_commands):
        assert f"Example: cvt cache {command}" in cvt("cache", command, "--help").stdout
        assert f"cvt cache {command}" in README
