"""A training run that is killed, interrupted or out of room goes on, bit by bit."""

import csv
import errno
import json
import os
import random
import re
import resource
import shlex
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from safetensors import safe_open

import warm_processes
from cvt_cli.base import locks
from cvt_cli.evaluation import figures
from cvt_cli.finetuning import probe, tensor_files
from cvt_cli.finetuning.training_loop import Loop
from cvt_cli.model import weights
from tests_shared import CHELSEA, TESTS, as_unknown_user
from warm_processes import Started

OFTEN = (
    "from cvt_cli.finetuning import training_loop; training_loop.SAVE_EVERY_SEC = 0.05; "
    "from cvt_cli.cli import app; app()"
)
"""`cvt`, with a state after almost every step."""


@pytest.fixture(scope="module")
def digits(signdigits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three of the ten classes with few images."""
    root = tmp_path_factory.mktemp("digits")
    for name in ("0", "1", "5"):
        (root / name).mkdir()
        for path in sorted((signdigits / "train" / name).iterdir())[:16]:
            shutil.copy(path, root / name)
    return root


def command(digits: Path, run: Path, epochs: int = 4) -> list[str]:
    return [
        "finetune", "--data", str(digits), "--variant", "nano", "--augment", "medium",
        "--epochs", str(epochs), "--warmup-epochs", "1", "--batch-size", "8", "--output", str(run),
    ]  # fmt: skip


def start(arguments: list[str]) -> Started:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return warm_processes.start(None, *arguments, code=OFTEN, environment=environment)


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


def wait_for(there: Callable[[], bool], process: Started) -> None:
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


def test_a_run_killed_between_states_and_in_one_ends_with_the_same_bits(
    digits: Path, straight: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"

    kill_and_resume(digits, run, 2, epochs=4)

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
    said = re.search(r"interrupted and saved at step (\d+) of \d+; to continue: cvt (.+)", stderr)
    assert said is not None, stderr
    assert int(said[1]) > 0 and said[2] == f"finetune --resume {run}"
    process = start(["finetune", "--resume", str(run)])
    _, stderr = process.communicate(timeout=600)
    assert process.returncode == 0, stderr
    assert f"continuing at step {said[1]} of" in stderr
    assert what_came_of_it(run) == what_came_of_it(straight)


TINY = [
    "finetune", "--data", str(TESTS / "kept" / "images"), "--model", str(TESTS / "kept" / "model"),
    "--val-fraction", "0.3", "--warmup-epochs", "0.1",
]  # fmt: skip
"""Training on 21 images of a network that takes some milliseconds a step."""


@pytest.mark.parametrize("end", ["SIGTERM to the group, twice", "SIGHUP", "Ctrl-C twice, at once"])
def test_whatever_ends_it_is_saved_and_says_how_to_go_on(tmp_path: Path, end: str) -> None:
    run = tmp_path / "a run"
    state = run / "state" / "state.safetensors"
    often = OFTEN if end != "Ctrl-C twice, at once" else "from cvt_cli.cli import app; app()"
    process = warm_processes.start(
        None, *TINY, "--epochs", "5000", "--batch-size", "2", "--workers", "2", "--output", run,
        code=often, environment=dict(os.environ), new_session=True,
    )  # fmt: skip
    wait_for(state.exists, process)
    if end == "Ctrl-C twice, at once":
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
        process.send_signal(signal.SIGINT)
    else:
        wait_for(partial(newer, state, state.stat().st_mtime_ns), process)  # steps are taken
        if end == "SIGHUP":
            process.send_signal(signal.SIGHUP)
        else:  # as `timeout` does: to the process, and to its group
            process.send_signal(signal.SIGTERM)
            os.killpg(process.pid, signal.SIGTERM)

    _, stderr = process.communicate(timeout=120)

    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr and "Exception ignored" not in stderr
    said = re.search(r"interrupted and saved at step (\d+) of (\d+); to continue: cvt (.+)", stderr)
    assert said is not None, stderr
    assert shlex.split(said[3]) == ["finetune", "--resume", str(run)]
    with safe_open(state, "pt") as file:
        assert json.loads(file.metadata()["run"])["trainer"]["step"] == int(said[1])


@pytest.mark.parametrize("recipe", ["linear-probe", "quick"])
def test_who_is_told_to_stop_while_it_saves_stops_then(
    cvt, tmp_path: Path, monkeypatch, recipe: str
) -> None:
    save, run = tensor_files.save_file, tmp_path / "run"

    def told(*arguments: object, **named: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        save(*arguments, **named)

    monkeypatch.setattr(tensor_files, "save_file", told)
    probe = ["finetune", "--data", TESTS / "kept" / "images", "--model", "cvt-nano-cifar10",
             "--recipe", recipe, "--output", run]  # fmt: skip
    result = cvt(*probe)
    monkeypatch.undo()

    assert result.exit_code == 130
    assert f"to continue: cvt finetune --resume {run}" in result.stderr
    assert not (run / "best").exists()
    assert cvt("finetune", "--resume", run).exit_code == 0


def test_who_is_told_to_stop_at_the_very_end_has_the_results(
    cvt, tmp_path: Path, monkeypatch
) -> None:
    run = tmp_path / "run"

    def told() -> bool:  # as while matplotlib is imported for the curves
        os.kill(os.getpid(), signal.SIGINT)
        return False

    monkeypatch.setattr(figures, "available", told)
    result = cvt(*TINY, "--epochs", 1, "--batch-size", 16, "--workers", 0, "--output", run)

    assert result.exit_code == 130 and "interrupted and saved at step" in result.stderr
    assert "seconds" in json.loads((run / "results.json").read_text())


@pytest.mark.parametrize("end", ["a full disk", "Ctrl-C"])
def test_what_ended_before_its_first_state_can_be_begun_again(
    cvt, tmp_path: Path, monkeypatch, end: str
) -> None:
    run = tmp_path / "run"
    options = [*TINY, "--epochs", 1, "--batch-size", 16, "--output", run]

    def fails(*_: object, **named: object) -> None:
        raise KeyboardInterrupt if end == "Ctrl-C" else OSError(errno.ENOSPC, "the disk is full")

    monkeypatch.setattr(tensor_files, "save_file", fails)
    begun = cvt(*options)
    monkeypatch.undo()
    resumed = cvt("finetune", "--resume", run)
    again = cvt(*options)

    assert begun.exit_code == (130 if end == "Ctrl-C" else 1)
    assert "--resume" not in begun.stderr
    assert resumed.exit_code == 1
    assert f"`{run}` holds no run that can be continued: it ended before" in resumed.stderr
    assert "hint: start it again: cvt finetune --data " in resumed.stderr
    assert again.exit_code == 0, again.stderr


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Curves take longer to draw than a step of `TINY`, after which these runs end."""
    monkeypatch.setattr(figures, "draw_curves", lambda *arguments: None)


@pytest.mark.usefixtures("undrawn")
def test_epochs_are_epochs_however_often_the_time_was_over(cvt, tmp_path: Path) -> None:
    # The learning rate is such that no epoch is better than the first.
    whole, run = tmp_path / "whole", tmp_path / "run"
    options = [*TINY, "--epochs", 5, "--batch-size", 5, "--lr", 1e-6, "--patience", 2,
               "--workers", 0]  # fmt: skip
    straight = cvt(*options, "--output", whole, "--json")
    assert straight.json["epochs"] == straight.json["best_epoch"] + 2 <= 5

    found = cvt(*options, "--max-time", "0s", "--output", run, "--json")

    assert "stopped at step 1 of 25: 0 s have passed (--max-time)" in found.stderr
    assert "epoch 1/5 in part: loss" in found.stderr
    said = {key: found.json[key] for key in ("epochs", "best_epoch", "best_step", "steps")}
    assert said == {"epochs": 0, "best_epoch": 1, "best_step": 1, "steps": 1}
    for step in range(2, 8):  # into the second epoch
        found = cvt("finetune", "--resume", run, "--workers", 0, "--json")
        assert found.json["steps"] == step and found.json["epochs"] == step // 5
        rows = (run / "metrics.csv").read_text().splitlines()[1:]
        assert [row.split(",")[0] for row in rows] == [str(n + 1) for n in range(-(-step // 5))]
    judged = cvt("evaluate", "--data", TESTS / "kept" / "images", "--model", run / "best")
    assert judged.exit_code == 0
    found = cvt("finetune", "--resume", run, "--max-time", "1h", "--workers", 0, "--json")
    assert what_came_of_it(run) == what_came_of_it(whole)
    for key in ("epochs", "best_epoch", "best_step", "val_top1", "val_top5", "steps"):
        assert found.json[key] == straight.json[key]
    assert not (run / "state" / "best").exists()


@pytest.mark.usefixtures("undrawn")
def test_a_part_of_an_epoch_that_was_the_best_gives_its_place_back(cvt, tmp_path: Path) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    options = [*TINY, "--epochs", 3, "--batch-size", 5, "--lr", 5e-3, "--workers", 0]
    cvt(*options, "--output", whole)
    cvt(*options, "--max-time", "0s", "--output", run)
    replaced = 0
    for step in range(2, 15):
        found = cvt("finetune", "--resume", run, "--workers", 0, "--json")
        row = (run / "metrics.csv").read_text().splitlines()[found.json["best_epoch"]].split(",")
        assert float(row[4]) == pytest.approx(found.json["val_top1"], abs=1e-6)
        card = (run / "best" / "README.md").read_text()
        assert f"{found.json['best_epoch']} (step {found.json['best_step']}) of 3" in card
        replaced += step > 5 and (run / "state" / "best").exists()
    assert replaced  # else nothing was seen here

    cvt("finetune", "--resume", run, "--workers", 0)

    assert what_came_of_it(run) == what_came_of_it(whole)


def flip_last_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 0x40
    path.write_bytes(content)


def test_a_state_may_be_read_by_whom_the_umask_lets_and_says_who_may_not(
    cvt, tmp_path: Path
) -> None:
    run = tmp_path / "r"
    before = os.umask(0o027)
    try:
        trained = cvt(
            "finetune", TESTS / "kept" / "images", "--model", TESTS / "kept" / "model",
            "--epochs", 1, "--workers", 0, "-o", run,
        )  # fmt: skip
    finally:
        os.umask(before)
    assert trained.exit_code == 0, trained.stderr
    state = run / "state" / "state.safetensors"
    assert state.stat().st_mode & 0o777 == 0o640
    state.chmod(0)

    refused = as_unknown_user("finetune", "--resume", run)

    assert refused.exit_code == 1
    assert f"`{state}` cannot be read: Permission denied" in refused.stderr


def test_a_state_with_a_changed_byte_is_not_gone_on_from(cvt, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = [*TINY, "--epochs", 3, "--batch-size", 5, "--workers", 0, "--output", run]
    cvt(*options, "--max-time", "0s")
    flip_last_byte(run / "state" / "state.safetensors")

    result = cvt("finetune", "--resume", run, "--workers", 0)

    assert result.exit_code == 1
    assert "is not this run's state: its content has changed since it was written" in result.stderr


def test_a_linear_probe_that_was_interrupted_tells_the_time_of_all_its_parts(
    cvt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    line = ["finetune", TESTS / "kept" / "images", "--model", TESTS / "kept" / "model"]

    def slow(*_: object, **named: object) -> None:
        time.sleep(2)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(probe, "solve", slow)
        begun = cvt(*line, "--recipe", "linear-probe", "-o", run)
    result = cvt("finetune", "--resume", run, "--json")

    assert begun.exit_code == 130 and result.exit_code == 0, result.stderr
    assert 2 < result.json["seconds"]
    with (run / "metrics.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert float(row["seconds"]) == pytest.approx(result.json["seconds"], abs=0.06)


def test_features_with_a_changed_byte_are_computed_anew(cvt, tmp_path: Path) -> None:
    run = tmp_path / "run"
    probe = ["finetune", "--data", TESTS / "kept" / "images", "--model", TESTS / "kept" / "model"]
    right = cvt(*probe, "--recipe", "linear-probe", "-o", run, "--json").json
    head = (run / "best" / "model.safetensors").read_bytes()
    for part in ("train", "val"):
        flip_last_byte(run / "state" / f"features-{part}.safetensors")

    again = cvt("finetune", "--resume", run, "--json").json

    assert again["val_top1"] == right["val_top1"]
    assert (run / "best" / "model.safetensors").read_bytes() == head


def test_a_run_does_not_go_on_by_a_plan_or_a_split_that_were_changed(cvt, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = [*TINY, "--epochs", 3, "--batch-size", 5, "--workers", 0, "--output", run]
    cvt(*options, "--max-time", "0s")
    plan, split = ((run / f"{name}.json").read_text() for name in ("plan", "split"))

    (run / "plan.json").write_text(plan.replace('"epochs": 3', '"epochs": 30'))
    other_plan = cvt("finetune", "--resume", run, "--workers", 0)
    (run / "plan.json").write_text(plan)
    (run / "split.json").write_text(split.replace("blue/", "red/", 1))
    other_split = cvt("finetune", "--resume", run, "--workers", 0)

    assert other_plan.exit_code == other_split.exit_code == 1
    assert "plan.json` has been changed since the run began" in other_plan.stderr
    assert "split.json` lists other validation images" in other_split.stderr
    assert "the images were in other groups when the run began" in other_split.stderr


def test_results_of_an_earlier_state_do_not_stay_while_a_run_goes_on(
    cvt, tmp_path: Path, monkeypatch
) -> None:
    run = tmp_path / "run"
    options = [*TINY, "--epochs", 3, "--batch-size", 5, "--workers", 0, "--output", run]
    assert cvt(*options, "--max-time", "0s").exit_code == 0
    assert (run / "results.json").exists()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_train_epoch", interrupted)
        assert cvt("finetune", "--resume", run).exit_code == 130

    assert not (run / "results.json").exists()
    result = cvt("finetune", "--resume", run, "--max-time", "1h", "--json")
    assert json.loads((run / "results.json").read_text()) == result.json


def test_a_copy_of_what_an_interrupted_run_had_is_known_when_the_run_has_gone_on(
    cvt, tmp_path: Path, monkeypatch
) -> None:
    run, copy = tmp_path / "run", tmp_path / "copy"
    train_epoch, epochs = Loop._train_epoch, iter(range(2))

    def interrupted(loop: Loop) -> int:
        if next(epochs):
            raise KeyboardInterrupt
        return train_epoch(loop)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_train_epoch", interrupted)
        options = ["--epochs", 2, "--batch-size", 5, "--workers", 0, "--output", run]
        assert cvt(*TINY, *options).exit_code == 130
    shutil.copytree(run / "last", copy)
    assert cvt("finetune", "--resume", run).exit_code == 0
    result = cvt("evaluate", TINY[TINY.index("--data") + 1], "--model", copy)

    assert "images were trained on" in result.stdout
    assert "not used" not in result.stderr  # answers.jsonl, which lies around


def test_who_goes_on_waits_for_who_trains_and_begins_where_that_one_ended(
    straight: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    earlier = run / "state" / "state.safetensors"
    finished = earlier.read_bytes()
    earlier.write_bytes(b"what the other process had when this one was started")
    lock = run / "state" / "lock"
    with locks.locked(lock, "training", print):
        process = start(["finetune", "--resume", str(run), "--json"])
        assert process.stderr is not None
        said = ""
        while "waiting" not in said:
            said = process.stderr.readline()
            assert said, "it ended without waiting"
        assert f"another process is training in `{run}`; waiting for it" in said
        earlier.write_bytes(finished)

    stdout, stderr = process.communicate(timeout=120)

    assert process.returncode == 0, stderr
    assert json.loads(stdout)["epochs"] == 4 and "epoch 4/4" not in stderr
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
    assert f"ended by an error; to continue: cvt finetune --resume {run}" in stderr
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
        (["--lr", 1, "--seed", 0], 2, "--lr and --seed are fixed by the run"),
        (["--model", "x"], 2, "--model is fixed by the run"),
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
    assert "is not the data that the run began with: that had 42 training" in result.stderr


def test_where_the_images_have_moved_a_run_says_where_they_were_and_how_to_go_on(
    cvt, straight: Path, digits: Path, tmp_path: Path
) -> None:
    shutil.copytree(straight, tmp_path / "run")
    moved = digits.rename(tmp_path / "moved")
    try:
        lost = cvt("finetune", "--resume", tmp_path / "run")
        found = cvt("finetune", moved, "--resume", tmp_path / "run")
    finally:
        moved.rename(digits)

    assert lost.exit_code == 1
    assert f"error: `{digits}`, which `{tmp_path / 'run'}` is trained on, does not" in lost.stderr
    assert f"when it began, its images were in `{digits.resolve()}`" in lost.stderr
    assert f"hint: say where they are now: cvt finetune FOLDER --resume {tmp_path}" in lost.stderr
    assert found.exit_code == 0, found.stderr


def test_of_a_run_that_was_copied_in_part_it_is_said_what_is_missing(
    cvt, straight: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(straight, run, ignore=shutil.ignore_patterns("state", "best"))

    resumed = cvt("finetune", "--resume", run)
    asked = cvt("predict", CHELSEA, "--model", run)

    assert resumed.exit_code == asked.exit_code == 1
    assert f"`{run}` has ended, and `state/state.safetensors`, from which" in resumed.stderr
    assert "its `best` is not there; copy the whole folder" in asked.stderr


def test_a_folder_without_a_run_or_with_a_damaged_state_is_explained(
    cvt, straight: Path, tmp_path: Path
) -> None:
    result = cvt("finetune", "--resume", tmp_path)
    assert result.exit_code == 1
    assert f"error: `{tmp_path}` holds no run that can be continued" in result.stderr

    run = tmp_path / "a run"
    shutil.copytree(straight, run)
    state = run / "state" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:1000])
    result = cvt("finetune", "--resume", run)
    assert result.exit_code == 1
    assert f"error: `{state}` is not this run's state" in result.stderr
    assert f"from --model '{run / 'last'}'" in result.stderr
