"""Files import only from files above them; light commands import nothing heavy."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import cvt_cli
from tests_shared import TESTS

PACKAGE = Path(cvt_cli.__file__).parent

LAYERS = {
    "known": (
        "errors progress torchrun machine text limits streams files conditions places stamps "
        "config preprocessing labels checkpoints layouts exported costs cards recipes hub_cache "
        "hub upload"
    ),
    "arrays": (
        "images trees web sources datasets engine runtimes inference datacheck held_out gallery "
        "writers metrics evaluation comparison plots report verification"
    ),
    "tensors": (
        "model weights devices inference_form torch_engine graph_preprocessing quantisation graphs "
        "benchmark exporting probe tensorboard training_data training runs"
    ),
    "front": "loader classifier catalogue options output commands cli __main__",
}
ORDER = [module for modules in LAYERS.values() for module in modules.split()]
LAYER_OF = {module: layer for layer, modules in LAYERS.items() for module in modules.split()}

# Of huggingface_hub only the constants may be read, which say where its cache is.
HEAVY = {"torch", "torchvision", "numpy", "PIL", "transformers", "safetensors", "fsspec"}
HEAVY |= {"httpx", "httpx2", "requests", "filelock"}


def imports(path: Path, at_module_level: bool) -> set[str]:
    """Modules of the package that a file imports."""
    tree = ast.parse(path.read_text())
    if at_module_level:
        nodes = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
    else:
        nodes = [n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)]
    found = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cvt_cli"):
            _, _, module = (node.module or "").partition(".")
            found |= {module.split(".")[0]} if module else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("cvt_cli.")}
    return found - {"__version__"}


def modules() -> list[Path]:
    return sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_file_has_its_place_in_the_listing() -> None:
    assert {name_of(path) for path in modules()} == set(ORDER)


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_a_file_imports_only_from_files_above_it(path: Path) -> None:
    place = ORDER.index(name_of(path))

    below = {module for module in imports(path, False) if ORDER.index(module) > place}

    assert not below


@pytest.mark.parametrize("path", [p for p in modules() if LAYER_OF[name_of(p)] == "front"], ids=str)
def test_the_front_imports_the_slow_layers_inside_functions_only(path: Path) -> None:
    slow = {m for m in imports(path, True) if LAYER_OF[m] in ("arrays", "tensors")}

    assert not slow


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


def test_predicting_imports_neither_torchvision_nor_the_hub() -> None:
    photo = str(TESTS / "photos" / "chelsea.png")
    loaded = loaded_by(command("predict", photo, "--model", "cvt-nano-cifar10"))

    assert "torch" in loaded
    assert not loaded & {"torchvision", "huggingface_hub", "transformers"}


def test_the_arrays_layer_does_not_import_torch() -> None:
    names = ", ".join(f"cvt_cli.{module}" for module in LAYERS["arrays"].split())

    assert "torch" not in loaded_by(f"import {names}")


def test_the_readme_lists_every_file() -> None:
    readme = (TESTS.parent / "README.md").read_text()
    tree = readme.partition("```text\ncvt_cli/")[2].partition("\ntests/")[0]

    listed = set(re.findall(r"^ +(\w+)(?:\.py|/)", tree, flags=re.MULTILINE))

    assert listed - {"data", "__init__"} == set(ORDER)
