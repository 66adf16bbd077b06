"""`--track`: every tool with its real package, without a network; none disturbs the training."""

import importlib.util
import json
import os
import signal
import sqlite3
import sys
import threading
import time
from pathlib import Path

import pytest

from cvt_cli.base.errors import UsageError
from cvt_cli.tracking import feed as feeding
from cvt_cli.tracking import trackers
from cvt_cli.tracking.feed import Feed
from tests_shared import TESTS, Machine

KEPT = TESTS / "kept"

NO_NETWORK = """
import socket, traceback

connect = socket.socket.connect

def refused(self, address):
    if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1", "localhost"):
        with open({path!r}, "a") as file:
            file.write(f"{{address}}\\n")
        raise OSError("no network")
    return connect(self, address)

socket.socket.connect = refused
"""


def need(name: str) -> None:
    for package in trackers.TRACKERS[name].packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed (pip install '.[test-tracking]')")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of work in which a connection to another machine is noted and refused."""
    guard = tmp_path / "guard"
    guard.mkdir()
    (guard / "sitecustomize.py").write_text(NO_NETWORK.format(path=str(tmp_path / "asked")))
    old = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(guard), old])))
    for name in ("TRACKIO_DIR", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tracked(place: Path, names: tuple[str, ...]) -> list[str]:
    """A run that is killed after two epochs and goes on, told to tools; what was said."""
    said: list[str] = []
    run = place / "run"
    run.mkdir()
    (place / "README.md").write_text("# The card\n")
    settings = {"seed": 3, "recipe": {"learning_rate": 0.25, "freeze": None}}
    first = Feed(names, run, settings, 0, said.append)
    for step in (10, 20):
        first.add(step, {"training_loss": 1.0 / step, "val_top1": step / 100, "val_roc_auc": None})
    for one in first._processes:  # as when the training is killed: its end of the pipe is gone
        one._waiting.put(None)
        assert one.process.wait(60) == 0, one.last_words()
    with Feed(None, run, settings, 20, said.append) as second:
        second.add(30, {"training_loss": 1.0 / 30, "val_top1": 0.3})
        second.card = place / "README.md"
    return said


def test_trackio_has_settings_curves_and_card_in_one_run(place: Path) -> None:
    need("trackio")
    said = tracked(place, ("trackio",))

    assert said == ["tracked by trackio: Trackio's own folder; `trackio show` opens it"] * 2
    (path,) = (place / "home").rglob("cvt.db")
    with sqlite3.connect(path) as database:
        rows = database.execute(
            "select run_name, step, metrics from metrics order by id"
        ).fetchall()
        configs = database.execute("select config from configs").fetchall()
    assert {name for name, *_ in rows} == {
        f"run-{json.loads((place / 'run/tracking/trackio.json').read_text())['id']}"
    }
    curves = [(step, json.loads(metrics)) for _, step, metrics in rows]
    assert [s for s, found in curves if "training_loss" in found] == [10, 20, 30]
    assert curves[1][1]["val_top1"] == 0.2
    assert "The card" in str(curves[-1][1])
    assert json.loads(configs[0][0])["recipe.learning_rate"] == 0.25
    assert not (place / "asked").exists()


def test_mlflow_has_settings_curves_and_card_in_one_run_of_a_file(place: Path) -> None:
    need("mlflow")
    said = tracked(place, ("mlflow",))

    assert len(said) == 2 and not any("failed" in line for line in said)
    with sqlite3.connect(place / "mlflow.db") as database:
        runs = database.execute("select run_uuid, name, status from runs").fetchall()
        metrics = database.execute(
            "select step, value from metrics where key = 'training_loss' order by step"
        ).fetchall()
        params = dict(database.execute("select key, value from params").fetchall())
    ((run_id, name, status),) = runs
    assert (name, status) == ("run", "FINISHED")
    assert metrics == [(10, 0.1), (20, 0.05), (30, pytest.approx(1 / 30))]
    assert params["recipe.learning_rate"] == "0.25" and params["seed"] == "3"
    (card,) = place.rglob(f"{run_id}/**/README.md")
    assert card.read_text() == "# The card\n"
    assert not (place / "asked").exists()


def test_wandb_offline_has_settings_curves_and_card_under_one_id(place: Path) -> None:
    need("wandb")
    said = tracked(place, ("wandb",))

    assert len(said) == 2 and not any("failed" in line for line in said)
    files = sorted((place / "run" / "tracking" / "wandb").rglob("*.wandb"))
    run_id = json.loads((place / "run/tracking/wandb.json").read_text())["id"]
    assert [path.name for path in files] == [f"run-{run_id}.wandb"] * 2
    first, second = (path.read_bytes() for path in files)
    assert b"recipe.learning_rate" in first and b"training_loss" in first
    assert b"val_top1" in second and f"card-{run_id}".encode() in second
    assert not (place / "asked").exists()


def test_a_tool_that_stalls_does_not_hold_up_the_training(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeding, "END_SEC", 0.3)
    monkeypatch.setattr(feeding, "MOST_WAITING", 200)
    said: list[str] = []
    run = place / "run"
    run.mkdir()
    feed = Feed(("mlflow",), run, {}, 0, said.append)
    os.kill(feed._processes[0].process.pid, signal.SIGSTOP)

    begun = time.process_time()
    for step in range(10_000):  # of more than the pipe and the queue hold
        feed.add(step, {"loss": 0.5, "learning_rate": 0.001})
    per_record = (time.process_time() - begun) / 10_000
    begun = time.monotonic()
    feed.end("finished")

    assert per_record < 1e-3  # of a step of 0.1 s, 1 %; it is one of fifty steps that has a record
    assert time.monotonic() - begun < 5
    assert said[-1].startswith("tracking by mlflow did not take everything within")


def test_a_tool_that_fails_is_said_once_and_the_training_goes_on(cvt, place: Path) -> None:
    (place / "guard" / "mlflow.py").write_text("raise RuntimeError('it is broken today')")
    for name in ("sqlalchemy", "alembic"):
        (place / "guard" / f"{name}.py").touch()
    need_path = str(place / "guard")
    import sys

    sys.path.insert(0, need_path)
    try:
        result = cvt(
            "finetune", KEPT / "images", "--model", KEPT / "model", "--epochs", 2,
            "--val-fraction", 0.3, "--batch-size", 8, "--workers", 0, "-o", "run",
            "--track", "mlflow,tensorboard",
        )  # fmt: skip
    finally:
        sys.path.remove(need_path)

    assert result.exit_code == 0, result.stderr
    assert result.stderr.count("RuntimeError: it is broken today") == 1
    assert json.loads(Path("run/results.json").read_text())["epochs"] == 2
    assert json.loads(Path("run/tracking/trackers.json").read_text()) == ["mlflow", "tensorboard"]
    assert list(Path("run/events").iterdir())


def test_a_run_with_events_goes_on_where_tensorboard_has_gone_or_fails(
    cvt, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = cvt(
        "finetune", KEPT / "images", "--model", KEPT / "model", "--epochs", 2, "--max-time", "0s",
        "--val-fraction", 0.3, "--batch-size", 8, "--workers", 0, "-o", "run",
        "--track", "tensorboard",
    )  # fmt: skip
    assert begun.exit_code == 0, begun.stderr
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)

    result = cvt("finetune", "--resume", "run", "--max-time", "1h")

    assert result.exit_code == 0, result.stderr
    assert "no events for TensorBoard, and the training goes on: " in result.stderr


CHILD = """
import pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
pathlib.Path("child").write_text(str(child.pid))
time.sleep(60)
"""
"""A tool that starts a process of its own and stalls."""


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # where the interrupt lies is by chance
@pytest.mark.parametrize("ctrl_c", [False, True])
def test_of_a_tool_that_stalls_no_process_is_left(
    place: Path, monkeypatch: pytest.MonkeyPatch, python_takes_ctrl_c: None, ctrl_c: bool
) -> None:
    (place / "guard" / "trackio.py").write_text(CHILD)
    run = place / "run"
    run.mkdir()
    said: list[str] = []
    feed = Feed(("trackio",), run, {}, 0, said.append)
    process = feed._processes[0].process
    while not (child := place / "child").exists() or not child.read_text():
        time.sleep(0.02)

    if ctrl_c:
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            feed.end("stopped")
    else:
        monkeypatch.setattr(feeding, "END_SEC", 0.3)
        feed.end("finished")
        assert "did not take everything" in said[-1]

    assert process.poll() == -signal.SIGKILL
    for _ in range(100):
        if state_of(int(child.read_text())) in ("", "Z"):
            return
        time.sleep(0.05)
    pytest.fail("the tool's own process is still there")


def state_of(pid: int) -> str:
    """One letter for what a process does; empty where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return ""


def test_a_tool_is_not_looked_for_in_the_working_folder(place: Path) -> None:
    (place / "guard" / "trackio.py").write_text("print('the installed one'); raise SystemExit")
    for name in ("trackio", "secrets"):
        (place / f"{name}.py").write_text("print('of the working folder'); raise SystemExit")
    (place / "run").mkdir()
    feed = Feed(("trackio",), place / "run", {}, 0, print)
    log = feed._processes[0].log
    feed.end("finished")

    assert log.read_text() == "the installed one\n"


def test_a_tool_that_is_not_known_or_not_installed_is_refused(
    cvt, monkeypatch: pytest.MonkeyPatch
) -> None:
    for told in ("neptune", "wandb,neptune", ","):
        result = cvt("finetune", "x", "--track", told)
        assert result.exit_code in (1, 2)
    with pytest.raises(UsageError, match="accepted are tensorboard, trackio, wandb, mlflow"):
        trackers.parsed("neptune")
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="--track wandb needs `wandb`") as caught:
        trackers.parsed("wandb")
    assert caught.value.hint.startswith("pip install")


@pytest.mark.slow
def test_all_tools_together_follow_a_run_that_is_killed_and_resumed(place: Path) -> None:
    for name in trackers.TRACKERS:
        need(name)
    machine = Machine(place, dict(os.environ))
    process = machine.start(
        "finetune", KEPT / "images", "--model", KEPT / "model", "--epochs", 400,
        "--val-fraction", 0.3, "--batch-size", 8, "--workers", 0, "-o", "run",
        "--track", "trackio,wandb,mlflow,tensorboard", "--patience", 3000,
    )  # fmt: skip
    metrics = place / "run" / "metrics.csv"
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 100:
        time.sleep(0.1)
    process.kill()
    process.communicate()
    resumed = machine.run("finetune", "--resume", "run", "--max-time", "5s")

    assert resumed.exit_code == 0, resumed.stderr
    assert "failed" not in resumed.stderr
    time.sleep(1)
    with sqlite3.connect(place / "mlflow.db") as database:
        assert database.execute("select count(*) from runs").fetchone() == (1,)
    assert not (place / "asked").exists()
