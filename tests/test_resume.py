"""A training run that is killed, interrupted or out of room goes on, bit by bit."""

import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from cvt_cli import weights

OFTEN = "from cvt_cli import runs; runs.SAVE_EVERY_SEC = 0.05; from cvt_cli.cli import app; app()"
"""`cvt`, with a state after almost every step."""


@pytest.fixture(scope="module")
def digits(signdigits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three of the ten classes with few images."""
    root = tmp_path_factory.mktemp("digits")
    for name in ("0", "1", "5"):
        (root / name).mkdir()
        for path in sorted((signdigits / "train" / name).iterdir())[:40]:
            shutil.copy(path, root / name)
    return root


def command(digits: Path, run: Path, epochs: int = 4) -> list[str]:
    return [
        "finetune", "--data", str(digits), "--variant", "nano", "--augment", "medium",
        "--epochs", str(epochs), "--warmup-epochs", "1", "--batch-size", "8", "--output", str(run),
    ]  # fmt: skip


def start(arguments: list[str]) -> "subprocess.Popen[str]":
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", OFTEN, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


@pytest.fixture(scope="module")
def straight(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to."""
    run = tmp_path_factory.mktemp("straight") / "run"
    process = start(command(digits, run))
    _, stderr = process.communicate(timeout=600)
    assert process.returncode == 0, stderr
    return run


def what_came_of_it(run: Path) -> tuple[bytes, bytes, list[str]]:
    rows = (run / "metrics.csv").read_text().splitlines()
    timeless = [re.sub(r",[^,]*(,[^,]*)$", r"\1", row) for row in rows]  # without seconds
    best, last = ((run / place / "model.safetensors").read_bytes() for place in ("best", "last"))
    return best, last, timeless


def wait_for(there: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 300
    while not there() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)


def newer(path: Path, than_ns: int) -> bool:
    return path.exists() and path.stat().st_mtime_ns > than_ns


def kill_and_resume(digits: Path, run: Path, kills: int, epochs: int) -> None:
    chance = random.Random(kills)
    state = run / "state" / "state.safetensors"
    arguments = command(digits, run, epochs)
    done = 0
    while True:
        before = state.stat().st_mtime_ns if state.exists() else 0
        process = start(arguments)
        if done < kills:
            # Only what went on counts as a run to kill: a state of its own must be there.
            wait_for(partial(newer, state, before), process)
            if done % 2:
                wait_for(lambda: any(state.parent.glob(".*.tmp")), process)  # while it writes
            else:
                time.sleep(chance.uniform(0, 0.3))
            process.kill()
            done += 1
        _, stderr = process.communicate(timeout=600)
        if process.returncode == 0:  # a worker whose parent was killed may print what it likes
            assert "Traceback" not in stderr
        if state.exists():
            arguments = ["finetune", "--resume", str(run)]
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, stderr
        for place in ("best", "last"):  # whatever stands under a good name is whole
            if (run / place / "model.safetensors").exists():
                weights.load(run / place)
    assert done == kills


def test_a_run_killed_three_times_ends_with_the_same_bits(
    digits: Path, straight: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"

    kill_and_resume(digits, run, 3, epochs=4)

    assert what_came_of_it(run) == what_came_of_it(straight)
    assert not list(run.rglob(".*.tmp"))


@pytest.mark.slow
def test_a_run_killed_twenty_times_ends_with_the_same_bits(digits: Path, tmp_path: Path) -> None:
    run, straight = tmp_path / "run", tmp_path / "straight"
    process = start(command(digits, straight, epochs=20))
    process.communicate(timeout=600)
    assert process.returncode == 0

    kill_and_resume(digits, run, 20, epochs=20)

    assert what_came_of_it(run) == what_came_of_it(straight)


def test_ctrl_c_saves_in_the_middle_of_an_epoch_and_says_how_to_go_on(
    digits: Path, straight: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    state = run / "state" / "state.safetensors"
    process = start(command(digits, run))
    wait_for(state.exists, process)
    first = state.stat().st_mtime_ns
    wait_for(partial(newer, state, first), process)

    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)

    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    said = re.search(r"interrupted and saved at step (\d+) of \d+; go on with: cvt (.+)", stderr)
    assert said is not None, stderr
    assert int(said[1]) > 0 and said[2] == f"finetune --resume {run}"
    process = start(["finetune", "--resume", str(run)])
    _, stderr = process.communicate(timeout=600)
    assert process.returncode == 0, stderr
    assert f"going on at step {said[1]} of" in stderr
    assert what_came_of_it(run) == what_came_of_it(straight)


def test_a_full_disk_stops_the_run_and_leaves_the_last_good_state(
    digits: Path, straight: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    size = (straight / "state" / "state.safetensors").stat().st_size
    process = start(command(digits, run))
    state = run / "state" / "state.safetensors"
    wait_for(state.exists, process)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size // 2, size // 2))

    _, stderr = process.communicate(timeout=120)

    assert process.returncode == 1, stderr
    assert f"error: cannot write `{state}`" in stderr and "Traceback" not in stderr
    process = start(["finetune", "--resume", str(run)])
    process.communicate(timeout=600)
    assert process.returncode == 0
    assert what_came_of_it(run) == what_came_of_it(straight)


def test_a_finished_run_is_not_trained_again(cvt, straight: Path) -> None:
    before = what_came_of_it(straight)

    result = cvt("finetune", "--resume", straight, "--json")

    assert result.exit_code == 0, result.stderr
    assert result.json["epochs"] == 4
    assert what_came_of_it(straight) == before


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--lr", 1], 2, "--lr is settled by the run"),
        (["--model", "x"], 2, "--model is settled by the run"),
    ],
    ids=str,
)
def test_what_a_run_has_settled_is_not_changed(
    cvt, straight: Path, arguments, code: int, message: str
) -> None:
    result = cvt("finetune", "--resume", straight, *arguments)

    assert result.exit_code == code and message in result.stderr


def test_other_images_than_the_run_began_with_are_refused(
    cvt, digits: Path, straight: Path, tmp_path: Path
) -> None:
    shutil.copytree(digits, tmp_path / "other")
    next((tmp_path / "other" / "0").iterdir()).unlink()

    result = cvt("finetune", "--resume", straight, "--data", tmp_path / "other")

    assert result.exit_code == 1
    assert "is not what the run began with: it had 108 images to train on" in result.stderr


def test_a_folder_without_a_run_or_with_a_damaged_state_is_explained(
    cvt, straight: Path, tmp_path: Path
) -> None:
    result = cvt("finetune", "--resume", tmp_path)
    assert result.exit_code == 1
    assert f"error: `{tmp_path}` holds no run to go on with" in result.stderr

    shutil.copytree(straight, tmp_path / "run")
    state = tmp_path / "run" / "state" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:1000])
    result = cvt("finetune", "--resume", tmp_path / "run")
    assert result.exit_code == 1
    assert f"error: `{state}` is not this run's state" in result.stderr
