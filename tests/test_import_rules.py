"""Light commands load nothing heavy, and the folders without torch do not load torch."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import cvt_cli
from tests_shared import TESTS

PACKAGE = Path(cvt_cli.__file__).parent

ARRAYS = ("images", "engines", "prediction", "datasets", "evaluation")
"""The folders that may import NumPy and Pillow, and must not import torch."""

# Of huggingface_hub only the constants may be read, which say where its cache is.
HEAVY = {"torch", "torchvision", "numpy", "PIL", "transformers", "safetensors", "fsspec"}
HEAVY |= {"httpx", "httpx2", "requests", "filelock"}


def loaded_by(code: str) -> set[str]:
    """Top-level modules in a fresh interpreter after running some code."""
    script = f"{code}\nimport sys; print(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split("\n")[-2].split())


def command(*arguments: str) -> str:
    return (
        "from cvt_cli.cli import app\n"
        f"try: app({list(arguments)!r}, prog_name='cvt')\nexcept SystemExit as e: assert not e.code"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("--version",),
        ("flops",),
        ("flops", "--variant", "21", "--res", "384"),
        ("flops", "--model", "cvt-nano-cifar10", "--json"),
        ("count-params", "--model", "cvt-13"),
        ("models",),
        ("info", "cvt-21-384"),
        ("info", "cvt-nano-cifar10"),
        ("cache", "path"),
        ("cache", "list"),
        ("predict", "--help"),
        ("finetune", "--help"),
        ("push", "--help"),
    ],
    ids=" ".join,
)
def test_light_commands_import_nothing_heavy(arguments: tuple[str, ...]) -> None:
    assert not loaded_by(command(*arguments)) & HEAVY


def test_help_loads_nothing_of_checkpoints() -> None:
    script = f"{command('--help')}\nimport sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    loaded = set(done.stdout.split("\n")[-2].split())

    assert "cvt_cli.commands.push" in loaded
    assert not [m for m in loaded if m.startswith(("cvt_cli.checkpoints", "cvt_cli.loading"))]


def test_predicting_imports_neither_torchvision_nor_the_hub() -> None:
    photo = str(TESTS / "photos" / "chelsea.png")
    loaded = loaded_by(command("predict", photo, "--model", "cvt-nano-cifar10"))

    assert "torch" in loaded
    assert not loaded & {"torchvision", "huggingface_hub", "transformers"}


def test_the_folders_of_arrays_do_not_import_torch() -> None:
    files = (path for folder in ARRAYS for path in (PACKAGE / folder).glob("[a-z]*.py"))
    names = ", ".join(f"cvt_cli.{path.parent.name}.{path.stem}" for path in files)

    assert "torch" not in loaded_by(f"import {names}")


def test_the_page_for_developers_lists_every_file() -> None:
    page = (TESTS.parent / "docs" / "developing.md").read_text()
    tree = page.partition("```text\ncvt_cli/")[2].partition("\ntests/")[0]
    listed = set(re.findall(r"^ +(\w+\.py|\w+/)", tree, flags=re.MULTILINE))

    files = {p for p in PACKAGE.rglob("*.py") if p.name != "__init__.py"}
    of_commands = {p for p in files if p.parent.name == "commands"}
    shared = {
        "options.py",
        "output.py",
        "catalogue.py",
        "completion.py",
        "habits.py",
        "help_pages.py",
        "plain_values.py",
        "finetune_options.py",
    }
    present = {p.name for p in files - of_commands} | shared
    present |= {f"{p.parent.name}/" for p in files} - {"cvt_cli/"} | {"data/"}

    assert listed == present
