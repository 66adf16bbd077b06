"""Files that commands write where they cannot, over links and into pipes; and those they may not
read."""

import os
import resource
import shutil
import stat
import threading
from functools import partial
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

import cvt_cli
from cvt_cli.commands import output
from tests_shared import CHELSEA, TESTS, Machine, as_unknown_user, python

NANO = ("--model", "cvt-nano-cifar10")
PREDICT = ("predict", CHELSEA, *NANO)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two class folders with an image each."""
    root = tmp_path_factory.mktemp("data")
    for name in ("cat", "dog"):
        (root / name).mkdir()
        shutil.copy(CHELSEA, root / name / "1.png")
    return root


@pytest.mark.parametrize(
    ("option", "name"),
    [
        ("--html", "x.html"), ("--parquet", "x.parquet"), ("--features", "x.npz"),
        ("--features", "x.safetensors"), ("--resume", "x.jsonl"), ("--predictions", "x.jsonl"),
        ("--predictions", "x.csv"), ("--predictions", "x.parquet"), ("--report", "report"),
        ("--plot", "x.png"), ("--output", "x.safetensors"),
    ],
)  # fmt: skip
def test_a_file_in_place_of_the_folder_is_explained(
    cvt, data: Path, tmp_path: Path, option: str, name: str
) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / name
    command = {
        "--predictions": ("evaluate", "--data", data, *NANO),
        "--report": ("evaluate", "--data", data, *NANO),
        "--plot": ("benchmark", "--variant", "nano", "--engine", "torch"),
        "--output": ("export", "cvt-nano-cifar10"),
    }.get(option, PREDICT)

    result = cvt(*command, option, path)

    assert result.exit_code == 1
    assert f"error: cannot write `{path}" in result.stderr
    assert "images/s" not in result.stderr and "top-1" not in result.stdout  # before the work


def test_what_permissions_refuse_is_explained(data: Path, tmp_path: Path) -> None:
    folder, weights = tmp_path / "folder", tmp_path / "cvt-nano-cifar10"
    folder.mkdir(0o555)
    shutil.copytree(Path(cvt_cli.__file__).parent / "data" / "cvt-nano-cifar10", weights)

    weights.chmod(0o555)
    measured = as_unknown_user("evaluate", data, "--model", weights, "--card", weights)
    (weights / "model.safetensors").chmod(0)
    page = as_unknown_user(*PREDICT, "--html", folder / "page.html")
    unreadable = as_unknown_user("predict", CHELSEA, "--model", weights)
    weights.chmod(0)
    hidden = as_unknown_user("info", weights)
    weights.chmod(0o755)

    assert [one.exit_code for one in (measured, page, unreadable, hidden)] == [1, 1, 1, 1]
    assert f"error: cannot write `{weights}/card.json`" in measured.stderr
    assert measured.stdout == ""
    assert f"error: cannot write `{folder}/page.html`: Permission denied" in page.stderr
    assert f"error: `{weights}/model.safetensors`" in unreadable.stderr
    assert f"error: `{weights}" in hidden.stderr
    for one in (measured, page, unreadable, hidden):
        assert "Permission denied" in one.stderr and "Traceback" not in one.stderr


def test_a_link_stays_a_link_and_a_pipe_a_pipe(cvt, tmp_path: Path) -> None:
    there, link, pipe = tmp_path / "there.html", tmp_path / "link.html", tmp_path / "pipe"
    link.symlink_to(there)
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()), daemon=True)
    reader.start()

    assert cvt(*PREDICT, "--html", link).exit_code == 0
    assert cvt(*PREDICT, "--html", pipe).exit_code == 0
    reader.join(10)

    assert link.is_symlink() and there.read_text().endswith("</html>\n")
    # The page says the command that made it, in which the file has another name.
    assert [text.replace("/pipe<", "/link.html<") for text in read] == [there.read_text()]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_device_stays_a_device(cvt, tmp_path: Path) -> None:
    device = tmp_path / "null"
    try:
        os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        device.write_text("")
    except OSError:
        pytest.skip("no device can be made here")

    for option in ("--html", "--parquet"):
        assert cvt(*PREDICT, option, device).exit_code == 0

    assert stat.S_ISCHR(device.stat().st_mode)
    assert os.listdir(tmp_path) == ["null"]


def test_files_have_the_permissions_that_the_umask_leaves(cvt, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        for option, name in (("--html", "x.html"), ("--features", "x.safetensors")):
            assert cvt(*PREDICT, option, tmp_path / name).exit_code == 0
            assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o640
    finally:
        os.umask(before)


IMPORTED = """
import cvt_cli.loading, torch
print(next(line.split()[1] for line in open("/proc/self/status") if "VmPeak" in line))
"""
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # each takes some addresses


@pytest.fixture(scope="module")
def of_the_libraries() -> int:
    """The bytes of addresses that the libraries alone take, some 3 billion."""
    return 1024 * int(
        python(IMPORTED, environment=os.environ | ONE_THREAD | {"LC_ALL": "C"}).stdout
    )


@pytest.mark.parametrize(
    ("command", "hint"),
    [
        (("predict", CHELSEA, "--engine", "torch"), "a smaller --batch-size or --res"),
        (
            ("finetune", "--data", TESTS / "kept" / "images", "--workers", 0, "--dry-run"),
            "--accumulate computes the images of a step in parts",
        ),
    ],
    ids=["predict", "finetune"],
)
def test_memory_that_runs_out_is_a_sentence_with_what_takes_less(
    tmp_path: Path, of_the_libraries: int, command: tuple[object, ...], hint: str
) -> None:
    much = ["--model", "cvt-nano-cifar10", "--res", 2048, "--batch-size", 40]
    limit = of_the_libraries + 512 * 1024**2
    limited = {"preexec_fn": partial(resource.setrlimit, resource.RLIMIT_AS, (limit, limit))}
    machine = Machine(tmp_path, os.environ | ONE_THREAD, limited)

    result = machine.run(*command, *much)

    assert result.exit_code == 1
    assert "error: not enough memory\n\nhint: " in result.stderr
    assert hint in result.stderr and "Traceback" not in result.stderr


def test_a_library_that_cannot_be_loaded_is_a_sentence(machine: Machine, tmp_path: Path) -> None:
    package = tmp_path / "onnxruntime"
    package.mkdir()
    (package / "__init__.py").write_text("from onnxruntime import _pybind\n")
    (package / f"_pybind{EXTENSION_SUFFIXES[0]}").write_bytes(b"cut off")

    result = machine.run(*PREDICT, "--engine", "onnxruntime", PYTHONPATH=str(tmp_path))

    assert result.exit_code == 1
    assert "error: a library cannot be loaded: " in result.stderr and "_pybind" in result.stderr
    assert "hint: install its package again" in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize("text_columns", [1, 2])
def test_a_table_without_rich_has_the_lines_that_rich_makes(text_columns: int) -> None:
    columns = ("class", "of [dim]", "n", "share")
    rows = [
        ["cat", "a  b ", "1", "0.25"],
        ["", "[bold]x[/]", "", "1"],
        ["dog\nhouse", "x", "12345678", ""],
    ]
    for some in (rows, rows[:1], []):
        plain = output._plain_table(columns, some, text_columns)

        assert plain == output._rich_table(columns, some, text_columns)
    for name in ("x" * 160, "犬", "é"):
        assert output._plain_table(columns, [[name, "", "", ""]], text_columns) is None
