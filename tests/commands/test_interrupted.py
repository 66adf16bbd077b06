"""Ctrl-C says what is kept, and the command that goes on."""

import json
import os
import re
import shlex
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests_shared import Machine

NANO = ["--model", "cvt-nano-cifar10", "--batch-size", "1", "--workers", "1", "--engine", "torch"]


@pytest.fixture
def images(cifar10: Path, tmp_path: Path) -> Path:
    """Three hundred images of two classes, in a folder whose name has a space."""
    for name in ("cat", "dog"):
        (tmp_path / "my images" / name).mkdir(parents=True)
        for path in sorted((cifar10 / "test" / name).iterdir())[:150]:
            shutil.copy(path, tmp_path / "my images" / name)
    return tmp_path


def interrupted(machine: Machine, words: list[str], lines: Path | None) -> tuple[int, str]:
    """Run a command until it has written a line, or has begun, and press Ctrl-C."""
    process = machine.start(*words)
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if lines is not None and lines.exists() and lines.stat().st_size:
            break
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_ctrl_c_says_how_many_are_done_and_the_line_that_goes_on(
    images: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(images)
    machine = Machine(images, dict(os.environ))
    lines = Path("my lines.jsonl")
    writing = "-o" if command == "predict" else "--predictions"

    code, said = interrupted(
        machine, [command, "my images", *NANO, writing, str(lines)], images / lines
    )

    assert code == 130
    done = re.search(r"^stopped: (\d+) of 300 images are .+ in `my lines.jsonl`", said, re.M)
    assert done and int(done[1]) < 300
    go_on = shlex.split(re.search(r"to continue: cvt (.+)$", said, re.MULTILINE)[1])
    assert go_on == [command, "my images", *NANO, "--resume", "my lines.jsonl"]
    went_on = machine.run(*go_on)
    assert went_on.exit_code == 0, went_on.stderr
    known = re.search(r"^(\d+)( of 300)? images? already ", went_on.stderr, re.M)
    assert known[1] == done[1]
    assert len({json.loads(line)["path"] for line in lines.read_text().splitlines()}) == 300


def test_the_line_that_goes_on_leaves_out_what_resume_refuses(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(images)
    machine = Machine(images, dict(os.environ))
    words = ["-o", "a.csv", "-o", "./a.jsonl", "--output=a.html", "-oa.parquet", "--json", "a.json"]

    code, said = interrupted(machine, ["predict", "my images", *NANO, *words], images / "a.jsonl")

    assert code == 130
    go_on = shlex.split(re.search(r"to continue: cvt (.+)$", said, re.MULTILINE)[1])
    assert go_on == ["predict", "my images", *NANO, "--resume", "./a.jsonl"]
    went_on = machine.run(*go_on)
    assert went_on.exit_code == 0, went_on.stderr


@pytest.mark.parametrize("what", ["renamed", "removed"])
def test_a_run_whose_folder_goes_while_it_trains_ends_with_a_sentence(
    images: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.chdir(images)
    machine = Machine(images, dict(os.environ))
    run, moved = images / "run", images / "better"
    process = machine.start(
        "finetune", "my images", "--model", "cvt-nano-cifar10", "--epochs", "50", "--workers", "0",
        "-o", "run",
    )  # fmt: skip
    deadline = time.monotonic() + 100
    while not (run / "last" / "model.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    if what == "renamed":
        run.rename(moved)
    else:
        shutil.rmtree(run, ignore_errors=True)
        shutil.rmtree(run, ignore_errors=True)  # what was written meanwhile
    _, said = process.communicate(timeout=100)

    assert process.returncode == 1 and "Traceback" not in said
    in_between = "No such file or directory" in said  # it went while a file was written
    assert in_between or "moved, renamed or removed meanwhile" in said
    assert not (run / "best" / "model.safetensors").exists()
    if what == "renamed":
        went_on = machine.run("finetune", "--resume", moved, "--max-time", "1s")
        assert went_on.exit_code == 0, went_on.stderr


def test_ctrl_c_where_nothing_is_kept_says_so(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(images)
    machine = Machine(images, dict(os.environ))
    process = machine.start("predict", "my images", *NANO, "--jsonl")
    assert process.stdout is not None and process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)

    assert process.returncode == 130
    assert re.search(r"^stopped: \d+ of 300 images are classified$", said, re.MULTILINE)
