"""What is written as TensorBoard events is what TensorBoard itself reads."""

import csv
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cvt_cli.base.errors import CvtError
from cvt_cli.tracking import tensorboard
from cvt_cli.tracking.tensorboard import Events


def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values by name."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def test_values_are_read_back_by_name_and_step(tmp_path: Path) -> None:
    events = Events(tmp_path / "events", 0)

    events.add(0, {"loss/training": 2.5, "learning_rate": 0.001})
    events.add(10, {"loss/training": 1.25})
    events.close()

    found = read(tmp_path / "events")
    assert found["loss/training"] == [(0, 2.5), (10, 1.25)]
    assert found["learning_rate"] == [(0, pytest.approx(0.001))]


def test_values_are_in_the_file_before_it_is_closed(tmp_path: Path) -> None:
    events = Events(tmp_path, 0)

    events.add(3, {"loss": 0.5})

    assert read(tmp_path) == {"loss": [(3, 0.5)]}
    events.close()


def test_a_resumed_run_replaces_what_was_written_after_its_state(tmp_path: Path) -> None:
    first = Events(tmp_path, 0)
    for step in range(6):
        first.add(step, {"loss": float(step)})
    first.close()

    second = Events(tmp_path, 3)
    for step in range(4, 8):
        second.add(step, {"loss": 100.0 + step})
    second.close()

    assert read(tmp_path)["loss"] == [
        (0, 0), (1, 1), (2, 2), (3, 3), (4, 104), (5, 105), (6, 106), (7, 107)
    ]  # fmt: skip


def test_what_goes_on_after_the_clock_was_set_back_is_read_last(tmp_path: Path) -> None:
    first = Events(tmp_path, 0)
    for step in range(4):
        first.add(step, {"loss": float(step)})
    first.close()
    (path,) = tmp_path.iterdir()
    now = re.search(r"\d{10}", path.name)
    assert now is not None
    path.rename(path.with_name(path.name.replace(now[0], str(int(now[0]) + 86400))))

    second = Events(tmp_path, 1)
    second.add(2, {"loss": 102.0})
    second.close()

    assert read(tmp_path)["loss"] == [(0, 0), (1, 1), (2, 102)]


KILLED = """
import os, signal, sys
from pathlib import Path
from cvt_cli.tracking.tensorboard import Events

events = Events(Path(sys.argv[1]), 0)
for step in range(5):
    events.add(step, {"loss": float(step)})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_run_loses_no_value_and_can_go_on(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED, tmp_path], check=False)
    assert read(tmp_path)["loss"] == [(step, step) for step in range(5)]
    # Files are read in the order of the seconds in their names; a process takes longer to start.
    time.sleep(1)

    events = Events(tmp_path, 2)
    events.add(3, {"loss": 30.0})
    events.close()

    assert read(tmp_path)["loss"] == [(0, 0), (1, 1), (2, 2), (3, 30)]


def test_a_run_that_goes_on_at_an_epochs_end_keeps_that_epoch(cvt, tmp_path: Path) -> None:
    kept = Path(__file__).parents[1] / "kept"
    run = tmp_path / "run"
    told = ("finetune", kept / "images", "--model", kept / "model", "--epochs", 2, "--workers", 0)
    cvt(*told, "--batch-size", 8, "-o", run, "--max-time", "0s")
    while cvt("finetune", "--resume", run, "--max-time", "0s", "--json").json["epochs"] < 2:
        pass

    (curve,) = [v for name, v in read(run / "events").items() if name == "val_top1"]
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [step for step, _ in curve] == [int(row["step"]) for row in rows]


def test_a_loss_that_is_no_number_is_written_too(tmp_path: Path) -> None:
    events = Events(tmp_path, 0)

    events.add(1, {"loss": float("nan")})
    events.close()

    ((step, value),) = read(tmp_path)["loss"]
    assert step == 1 and value != value


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(CvtError, match="cannot write `.*events`"):
        Events(tmp_path / "file" / "events", 0)


FULL = """
import resource, sys
from pathlib import Path
from cvt_cli.base.errors import CvtError
from cvt_cli.tracking.tensorboard import Events

events = Events(Path(sys.argv[1]), 0)
resource.setrlimit(resource.RLIMIT_FSIZE, (200, resource.RLIM_INFINITY))
try:
    for step in range(100):
        events.add(step, {"loss": float(step)})
except CvtError as error:
    print(step, error)
events.close()
"""


def test_a_file_that_can_grow_no_more_is_said_and_what_is_in_it_can_be_read(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, tmp_path], capture_output=True, text=True, check=True
    )

    step, _, message = done.stdout.strip().partition(" ")
    assert message == f"cannot write `{tmp_path}`: File too large"
    assert done.stderr == ""
    assert read(tmp_path)["loss"] == [(number, number) for number in range(int(step))]


def test_tensorflow_has_no_part_in_it(tmp_path: Path) -> None:
    (tmp_path / "tensorflow.py").write_text("raise SystemExit('TensorFlow was asked')")
    script = (
        "import sys; from pathlib import Path; from cvt_cli.tracking.tensorboard import Events\n"
        "Events(Path(sys.argv[1]), 0).add(1, {'loss': 2.0})"
    )
    paths = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])

    subprocess.run(
        [sys.executable, "-c", script, tmp_path / "events"],
        check=True,
        env={**os.environ, "PYTHONPATH": paths},
    )

    assert read(tmp_path / "events") == {"loss": [(1, 2.0)]}


def test_it_is_known_whether_events_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tensorboard.available()

    monkeypatch.setitem(sys.modules, "tensorboard", None)

    assert not tensorboard.available()


def test_a_module_imports_nothing_of_it_before_it_is_used() -> None:
    script = "import cvt_cli.tracking.tensorboard, sys; print('tensorboard' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=dict(os.environ)
    )
    assert done.stdout.strip() == "False", done.stderr
